DEBIAN = True
ONLY = ("venv", "app")
