"""Sockets to listen on: `unix://PATH`, `tcp://HOST:PORT` (with TLS or without), `fd://` (sockets handed over by systemd).

Addresses are written as for dockerd's `-H`. Owns creating and removing the sockets; knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import logging
import os
import socket
import ssl
import stat

import msgspec

from engine.errors import InvalidParameter, KnarrError

PORT = 2375  # Docker's registered port, 2376 with TLS
TLS_PORT = 2376
_BACKLOG = 1024
_FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)

_log = logging.getLogger("knarr.http")


class TlsFiles(msgspec.Struct, frozen=True):
    """Paths of PEM files. With `ca`, clients must present a certificate signed by it (dockerd's --tlsverify)."""

    cert: str
    key: str
    ca: str = ""


class Listener:
    """A listening socket. `path` is the file of a unix socket that we made and remove; `tls` is set when connections are encrypted."""

    def __init__(self, sock: socket.socket, address: str, *, path: str = "", tls: ssl.SSLContext | None = None) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.address = address
        self.tls = tls
        self._path = path
        self._inode = os.stat(path).st_ino if path else 0

    def close(self) -> None:
        """Stop listening. Removes the socket file unless another process has put its own in its place."""
        self.socket.close()
        if self._path:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)


def open_listener(address: str, *, group: str = "", tls: TlsFiles | None = None, root: bool = True) -> list[Listener]:
    """Listen on one address; `fd://` may give several. `group` owns unix sockets if it exists. `root`: clients can do everything, so warn
    when they need not show who they are. Raises InvalidParameter, KnarrError."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = ("unix", address) if address.startswith("/") else ("tcp", address)
    if scheme == "unix":
        return [_unix(rest, group)]
    if scheme == "tcp":
        return [_tcp(rest, tls, root)]
    if scheme == "fd":
        return _inherited(rest)
    raise InvalidParameter(f"listening on {address}: unknown protocol {scheme}", hint="use unix://PATH, tcp://HOST:PORT or fd://")


def open_listeners(addresses: list[str], *, group: str = "", tls: TlsFiles | None = None) -> list[Listener]:
    """Listen on all of them, or on none: what is open is closed again when one fails."""
    listeners: list[Listener] = []
    try:
        for address in addresses:
            listeners += open_listener(address, group=group, tls=tls)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _unix(path: str, group: str) -> Listener:
    if not path.startswith("/"):
        raise InvalidParameter(f"listening on unix://{path}: the path must be absolute")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _remove_stale(path)
        # A umask, not a later chmod: between the two anybody could connect.
        before = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        _give_to_group(path, group)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise KnarrError(f"listening on unix://{path}: {os.strerror(error.errno or 0) if error.errno else error}")
    except BaseException:
        sock.close()
        raise
    return Listener(sock, f"unix://{path}", path=path)


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on any more. Raises KnarrError when somebody does or it is no socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise KnarrError(f"listening on unix://{path}: a file that is not a socket is in the way")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    finally:
        probe.close()
    if code in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise KnarrError(f"listening on unix://{path}: another daemon is listening there", hint="stop it, or choose another -H")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _give_to_group(path: str, group: str) -> None:
    """Let a group use the socket, as dockerd's --group: by name or number; a name that does not exist is not an error."""
    if not group:
        return
    try:
        gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        if group != "docker":
            _log.warning("group %s does not exist: the socket %s belongs to root alone", group, path)
        return
    with contextlib.suppress(PermissionError):
        os.chown(path, -1, gid)


def _tcp(rest: str, tls: TlsFiles | None, root: bool) -> Listener:
    host, port = _host_port(rest, TLS_PORT if tls else PORT)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise InvalidParameter(f"listening on tcp://{rest}: {error.strerror or error}")
    context = tls_context(tls) if tls else None
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise KnarrError(f"listening on tcp://{rest}: {error.strerror or error}")
    if root and context is None and not ipaddress.ip_address(where[0]).is_loopback:
        _log.warning("listening on tcp://%s without TLS: whoever reaches this port is root on this host", rest)
    shown = f"[{host}]" if ":" in host else host
    return Listener(sock, f"tcp://{shown}:{sock.getsockname()[1]}", tls=context)


def _host_port(rest: str, default: int) -> tuple[str, int]:
    """`host:port`, `[v6]:port`, `:port`, `host`, "" -> host and port; the host defaults to loopback, as in dockerd."""
    host, port = rest, ""
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        port = port.removeprefix(":")
    elif ":" in rest:
        host, _, port = rest.rpartition(":")
    if port and not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise InvalidParameter(f"listening on tcp://{rest}: invalid port {port}")
    return host or "127.0.0.1", int(port) if port else default


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """A server's context. Raises InvalidParameter when the files do not fit."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.cert, files.key)
        if files.ca:
            context.load_verify_locations(files.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InvalidParameter(f"loading the TLS files {files.cert}, {files.key}: {error}")
    return context


def _inherited(which: str) -> list[Listener]:
    """Sockets of systemd's socket activation: all of them, or the one with a name (LISTEN_FDNAMES) or number."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        raise KnarrError("listening on fd://: no sockets were handed over", hint="this address is for socket activation by systemd")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        if which in ("", "*", name, str(_FIRST_FD + index)):
            os.set_inheritable(_FIRST_FD + index, False)
            found.append(Listener(socket.socket(fileno=_FIRST_FD + index), f"fd://{name or _FIRST_FD + index}"))
    if not found:
        raise KnarrError(f"listening on fd://{which}: no such socket was handed over")
    return found
