CLASSIC = False
