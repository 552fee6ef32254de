"""Another host's daemon over ssh: `ssh://[USER@]HOST[:PORT][/SOCKET]`.

A connection is the standard input and output of one `ssh HOST knarr system dial-stdio`, so the user's keys, agent and known hosts count.
"""

from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket, socketpair

from cli.client import Failure

_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def arguments(url: str) -> "list[str]":
    """Arguments of ssh; what ssh could take for an option, or the other side's shell for more than a word, is refused. Raises Failure."""
    place, _, path = url.removeprefix("ssh://").partition("/")
    user, at, rest = place.rpartition("@")
    if ":" in user:
        raise Failure(f"{url}: a password in the address is not supported; use a key")
    if rest[:1] == "[":
        host, bracket, tail = rest[1:].partition("]")
        colon, port = (tail[:1], tail[1:]) if bracket else ("[", "")
        allowed = _SAFE | {":"}
    else:
        host, colon, port = rest.partition(":")
        allowed = _SAFE
    good = (
        host and host[0] != "-" and allowed.issuperset(host) and (not at or (user and user[0] != "-" and _SAFE.issuperset(user)))
        and colon in ("", ":") and (not colon or (port.isdigit() and port.isascii() and 0 < int(port) < 65536))
        and (_SAFE | {"/"}).issuperset(path)
    )  # fmt: skip
    if not good:
        raise Failure(f"{url}: not of the form ssh://[USER@]HOST[:PORT][/SOCKET]")
    command = ["knarr", *(["-H", f"unix:///{path}"] if path else []), "system", "dial-stdio"]
    return [*(["-l", user] if at else []), *(["-p", port] if colon else []), "-o", "ConnectTimeout=30", "-T", "--", host, *command]


def program(url: str) -> str:
    """The path of ssh. Raises Failure."""
    from cli.processes import find

    if not (path := find("ssh")):
        raise Failure(f"{url}: no ssh on PATH")
    return path


def connect(url: str) -> socket:
    """A connection to the daemon of `url`. Raises Failure."""
    from cli.processes import spawn

    words = arguments(url)
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    spawn(program(url), words, theirs.fileno(), theirs.fileno())
    theirs.close()
    return ours
