BEFORE = [("-t", "knarr-corpus-onbuild-base", "-f", "context/base.Dockerfile")]
ARGUMENTS = ("--build-arg", "MODE=prod")
CLASSIC = True
