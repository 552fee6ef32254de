ARGUMENTS = ("--label", "com.example.b=from the command", "--label", "cli=1")
