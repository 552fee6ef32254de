ARGUMENTS = ("--target", "WANTED")
