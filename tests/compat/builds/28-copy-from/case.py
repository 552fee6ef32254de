BEFORE = [("-t", "knarr-corpus-from-image", "-f", "context/image.Dockerfile")]
