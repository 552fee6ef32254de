DEBIAN = True
ONLY = ("opt", "etc/hello", "usr/bin/hello", "tmp", "run")
