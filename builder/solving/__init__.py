"""From a graph to results: order, cache keys, and the work itself."""
