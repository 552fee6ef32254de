ARGUMENTS = ("-f", "context/docker/app.Dockerfile")
