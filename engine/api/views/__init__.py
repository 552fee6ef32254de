"""Records to Docker's JSON. Pure: no engine, no I/O; what a view needs besides the record comes in as an argument."""
