ARGUMENTS = ("--build-arg", "BASE=busybox")
