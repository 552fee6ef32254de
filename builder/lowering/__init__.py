"""From instructions to the graph of what is to be done. Pure."""
