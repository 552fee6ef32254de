ARGUMENTS = (
    "--build-context",
    "lib=lib",
    "--build-context",
    "base=docker-image://busybox",
    "--build-context",
    "other=docker-image://busybox:latest",
)
