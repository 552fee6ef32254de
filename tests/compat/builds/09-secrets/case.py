ARGUMENTS = ("--secret", "id=token,src=token.txt", "--secret", "id=from-env,env=CORPUS_SECRET")
