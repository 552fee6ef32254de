"""HTTP/1.1 for the Engine API: listeners, connections, request bodies, streams, hijacking. Knows nothing of Docker."""
