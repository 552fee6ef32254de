ARGUMENTS = ("--build-arg", "HTTP_PROXY=http://proxy.invalid:1", "--build-arg", "https_proxy=http://other.invalid:2")
