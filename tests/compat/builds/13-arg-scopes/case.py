ARGUMENTS = ("--build-arg", "GIVEN=given", "--build-arg", "C=3", "--build-arg", "LOCAL=from outside", "--build-arg", "UNUSED=x")
