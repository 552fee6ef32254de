"""knarr-netd: the helper process that answers names and relays ports, and the daemon's side of its socket. It outlives the daemon.

`client` and `messages` are used by the daemon. Everything else runs in a bare interpreter (-I -S) and may import nothing heavy: no
`socket`, `typing`, `collections`, `json` or `re`, each of which costs a good part of the process's memory.
"""
