"""Published ports: what a container asks for (pure), and the host's ports that are held for it.

A held port is a socket that is bound and never listens: the kernel's address translation leads packets away before they reach it, and no
other program can take the port. Where nothing can be translated (`firewall.served`), the relay gets the same socket and listens on it.
Docker's rules: docs.docker.com/engine/network/port-publishing; words as dockerd has them.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import InvalidParameter, KnarrError
from engine.spec.docker.containers import PortBinding
from engine.spec.network import Published

PROTOCOLS: Final = ("tcp", "udp", "sctp")
_ANY: Final = ("0.0.0.0", "::")
_DYNAMIC: Final = (32768, 60999)
_NOT_THERE: Final = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)


class PortUnavailable(KnarrError):
    """A port of the host cannot be had. The request was right, so Docker calls it a server's error: 500.

    `final`: another port would fare no better (the address is not the host's, the right is missing).
    """

    final = False


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A container's `port` for each of `host_ips`, all under one host port, the first free one from `first` to `last`; 0 and 0: any.

    `direct`: the network is routed, so the container's own address is reached and the host has no part in it.
    """

    protocol: str
    port: int
    host_ips: tuple[str, ...]
    first: int = 0
    last: int = 0
    direct: bool = False


Bindings = Mapping[str, list[PortBinding] | None]


def check(bindings: Bindings | None) -> None:
    """Raises InvalidParameter for what can never be published, so that it fails at create."""
    for name, some in (bindings or {}).items():
        _container_ports(name)
        for one in some or ():
            _host_range(one.host_port)
            _host_address(one.host_ip)


def plan(
    bindings: Bindings | None,
    exposed: Iterable[str] = (),
    *,
    publish_all: bool = False,
    default_ip: str = "",
    host_ipv6: bool = True,
    ipv4: bool = True,
    modes: tuple[str, str] = ("nat", "nat"),
) -> list[Wanted]:
    """What a container publishes, fixed ports before those that take what is free.

    `exposed`: "80/tcp"; with `publish_all` those that have no binding get any port. `default_ip`: the network's address for bindings that
    name none; without, they are for all addresses, of IPv6 too where the host has it (`host_ipv6`). `ipv4`: whether the network has IPv4.
    `modes`: the network's gateway modes for IPv4 and IPv6. Raises InvalidParameter.
    """
    found: list[Wanted] = []
    published = set()
    for name, some in (bindings or {}).items():
        for protocol, port in _container_ports(name):
            for one in some or ():
                published.add((protocol, port))
                first, last = _host_range(one.host_port)
                addresses = _addresses(_host_address(one.host_ip), default_ip, host_ipv6, ipv4)
                found += _split(protocol, port, addresses, first, last, modes)
    if publish_all:
        for name in exposed:
            for protocol, port in _container_ports(name, ranges=True):
                if (protocol, port) not in published:
                    published.add((protocol, port))
                    found += _split(protocol, port, _addresses("", default_ip, host_ipv6, ipv4), 0, 0, modes)
    return sorted(found, key=lambda one: (one.first == 0, one.last > one.first, one.port))


def _split(protocol: str, port: int, addresses: tuple[str, ...], first: int, last: int, modes: tuple[str, str]) -> list[Wanted]:
    direct = tuple(address for address in addresses if modes[":" in address] == "routed")
    held = tuple(address for address in addresses if address not in direct)
    found = [Wanted(protocol=protocol, port=port, host_ips=held, first=first, last=last)] if held else []
    return [*found, Wanted(protocol=protocol, port=port, host_ips=direct, direct=True)] if direct else found


def _addresses(given: str, default_ip: str, host_ipv6: bool, ipv4: bool) -> tuple[str, ...]:
    if given:
        return (given,)
    if default_ip and default_ip not in _ANY:
        return (default_ip,)
    return (*(("0.0.0.0",) if ipv4 else ()), *(("::",) if host_ipv6 else ()))


def _container_ports(name: str, ranges: bool = False) -> list[tuple[str, int]]:
    """(protocol, port) of "80", "80/tcp", "80/TCP"; with `ranges` also "80-90/tcp", as images may expose."""
    text, _, protocol = name.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {protocol}")
    low, dash, high = text.partition("-")
    first, last = _number(low), _number(high) if dash else _number(low)
    if (dash and not ranges) or first is None or last is None or not 0 < first <= last:
        raise InvalidParameter(f'invalid port specification: "{text}"')
    return [(protocol, port) for port in range(first, last + 1)]


def _host_range(text: str) -> tuple[int, int]:
    """First and last of "8080", "8000-8010", "8080/tcp" (Docker overlooks the protocol); 0 and 0 for "" and "0"."""
    low, dash, high = text.partition("/")[0].partition("-")
    first, last = _number(low) if low or dash else 0, _number(high) if dash else None
    if first is None or (dash and (last is None or last < first or not first)):
        raise InvalidParameter(f'invalid port specification: "{text}"')
    return first, first if last is None else last


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536 else None


def _host_address(text: str) -> str:
    if not text:
        return ""
    try:
        found = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise InvalidParameter(f"invalid IP address: {text}") from None
    if found.version == 6 and found.ipv4_mapped:
        found = found.ipv4_mapped
    return str(found)


def host_has_ipv6() -> bool:
    """Whether sockets of IPv6 can be bound in the calling thread's network namespace."""
    return Path("/proc/thread-self/net/if_inet6").exists()


class Ports:
    """All ports that a daemon holds. Made for one thread."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, int], list[str]] = {}
        self._cursor: dict[str, int] = {}
        self._sockets = 0
        # Each port takes a descriptor; without any the daemon could do nothing else.
        self._sockets_max = os.sysconf("SC_OPEN_MAX") * 3 // 4

    def reserve(self, wanted: Iterable[Wanted]) -> Reservation:
        """Holds everything that is wanted, or nothing. Raises PortUnavailable."""
        found = Reservation(self)
        try:
            for one in wanted:
                self._take(found, one)
        except BaseException:
            found.close()
            raise
        return found

    def again(self, published: Iterable[Published]) -> tuple[Reservation, list[PortUnavailable]]:
        """Holds the ports of a container that runs already, after a restart of the daemon.

        A port that somebody else took meanwhile is told about; the container keeps it, since translation comes before sockets.
        """
        found = Reservation(self)
        problems = []
        for one in published:
            try:
                if one.host_port:
                    self._hold(found, one)
                else:
                    found._add(one, None)
            except PortUnavailable as error:
                problems.append(error)
                self._mark(one)
                found._add(one, None)
        return found, problems

    def _take(self, into: Reservation, wanted: Wanted) -> None:
        if wanted.direct:
            for address in wanted.host_ips:
                into._add(Published(protocol=wanted.protocol, host_ip=address, host_port=0, port=wanted.port), None)
            return
        problem: PortUnavailable | None = None
        for number in self._candidates(wanted):
            mark = len(into.ports)
            try:
                for address in wanted.host_ips:
                    self._hold(into, Published(protocol=wanted.protocol, host_ip=address, host_port=number, port=wanted.port))
            except PortUnavailable as error:
                problem = problem or error
                into.release(into.ports[mark:])
                if error.final:
                    raise
            else:
                return
        if problem is None or not wanted.first:
            raise PortUnavailable("all ports are allocated")
        raise problem

    def _candidates(self, wanted: Wanted) -> Iterable[int]:
        """A range from its start; any port: behind the last one that was given, so that a port is not given to another at once."""
        if wanted.first:
            yield from range(wanted.first, wanted.last + 1)
            return
        first, last = _dynamic()
        start = self._cursor.get(wanted.protocol, first)
        start = start if first <= start <= last else first
        for number in itertools.chain(range(start, last + 1), range(first, start)):
            self._cursor[wanted.protocol] = number + 1
            yield number

    def _hold(self, into: Reservation, one: Published) -> None:
        taken = self._taken.get((one.protocol, one.host_port), ())
        if any(_clash(one.host_ip, other) for other in taken):
            raise PortUnavailable(f"Bind for {_joined(one)} failed: port is already allocated")
        try:
            if self._sockets >= self._sockets_max:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            held = bound(one)
            self._sockets += held is not None
        except OSError as error:
            number = error.errno or 0
            failure = PortUnavailable(f"failed to bind host port {_joined(one)}/{one.protocol}: {os.strerror(number).lower()}")
            failure.final = number != errno.EADDRINUSE
            raise failure from None
        self._mark(one)
        into._add(one, held)

    def _mark(self, one: Published) -> None:
        self._taken.setdefault((one.protocol, one.host_port), []).append(one.host_ip)

    def _free(self, one: Published, held: socket.socket | None) -> None:
        if held is not None:
            held.close()
            self._sockets -= 1
        key = one.protocol, one.host_port
        if one.host_port:
            self._taken[key].remove(one.host_ip)
            if not self._taken[key]:
                del self._taken[key]


class Reservation:
    """Ports that are held for one container, until `close`. `ports`: with the host's ports that were found."""

    def __init__(self, owner: Ports) -> None:
        self._owner = owner
        self._held: dict[Published, socket.socket | None] = {}

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ports(self) -> tuple[Published, ...]:
        return tuple(self._held)

    def holder(self, one: Published) -> socket.socket | None:
        """The bound socket of a port, for a relay to listen on; None where there is none (no sctp, taken by others, routed)."""
        return self._held.get(one)

    def _add(self, one: Published, held: socket.socket | None) -> None:
        self._held[one] = held

    def release(self, some: Iterable[Published]) -> None:
        """Gives some of them up."""
        for one in some:
            held = self._held.pop(one)
            self._owner._free(one, held)

    def close(self) -> None:
        """Gives all of them up."""
        self.release(self.ports)


def bound(one: Published) -> socket.socket | None:
    """A socket that holds a port; None for sctp on a kernel without it. Raises OSError.

    SO_REUSEADDR would let two sockets that do not listen share a port. It is tried second and taken back at once: connections of an
    earlier server that wait for their end (TIME_WAIT) are no reason to refuse, a listener is.
    """
    family = socket.AF_INET6 if ":" in one.host_ip else socket.AF_INET
    kind = socket.SOCK_DGRAM if one.protocol == "udp" else socket.SOCK_STREAM
    try:
        found = socket.socket(family, kind | socket.SOCK_CLOEXEC, socket.IPPROTO_SCTP if one.protocol == "sctp" else 0)
    except OSError as error:
        if one.protocol == "sctp" and error.errno in _NOT_THERE:
            return None
        raise
    try:
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_DGRAM:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # nobody reads: the kernel's minimum
        try:
            found.bind((one.host_ip, one.host_port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or one.protocol != "tcp":
                raise
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((one.host_ip, one.host_port))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        found.close()
        raise
    return found


def _clash(one: str, other: str) -> bool:
    return (":" in one) == (":" in other) and (one == other or one in _ANY or other in _ANY)


def _joined(one: Published) -> str:
    return f"[{one.host_ip}]:{one.host_port}" if ":" in one.host_ip else f"{one.host_ip}:{one.host_port}"


def _dynamic() -> tuple[int, int]:
    """The host's range for ports that nobody chose; read each time, because it can be set."""
    try:
        fd = os.open("/proc/sys/net/ipv4/ip_local_port_range", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return _DYNAMIC
    try:
        first, last = os.read(fd, 64).split()
    finally:
        os.close(fd)
    return int(first), int(last)
