ALONE = "RUN --mount=type=secret,env= needs BuildKit 0.16"
ARGUMENTS = ("--secret", "id=token,src=token.txt")
