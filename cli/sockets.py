"""Private folders for the unix sockets that a command makes for as long as it runs."""

import posix

from cli.client import getenv

_ADDRESS_MAX = 107  # bytes of a path in a unix socket's address (unix(7))


def make_folder(kind: str, name: str) -> str:
    """A new folder, for this user alone, in which a socket called `name` can be bound: in TMPDIR, or in /tmp where its path would be too
    long for a socket's address. Raises OSError."""
    own = f"knarr-{kind}-{posix.getpid()}-{posix.urandom(8).hex()}"
    folder = f"{getenv('TMPDIR') or '/tmp'}/{own}"
    if len(f"{folder}/{name}".encode("utf-8", "surrogateescape")) > _ADDRESS_MAX:
        folder = f"/tmp/{own}"
    posix.mkdir(folder, 0o700)
    return folder
