DEBIAN = True
ONLY = ("home",)
