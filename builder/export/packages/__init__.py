"""Which packages an image has: a module for each kind of database, all of them over hostile trees."""
