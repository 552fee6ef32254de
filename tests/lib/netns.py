"""Network namespaces as hosts: made and joined by veth pairs, entered for a socket or a program, and sockets that report what they saw.

A socket belongs to the namespace it was made in, for good: a test holds both ends of a connection that crosses several hosts. Everything
that `host` makes is gone when its `with` ends; a namespace of another owner (a container's, a peer daemon's) is only entered.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

CLONE_NEWNET = 0x40000000
TIMEOUT = 30.0  # seconds that what should come about is waited for; a lost SYN is sent again after one
PATIENCE = 0.5  # what is expected to be dropped: an answer here takes some milliseconds
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()
PORTS = range(22000, 24000)
_ports = itertools.count(os.getpid() * 100)  # apart from those of another run of tests beside this one


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """A network namespace, held by a descriptor. `with` enters it for the current thread; children started inside are in it too."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._outer: list[int] = []

    @classmethod
    def named(cls, name: str) -> Namespace:
        return cls(f"/run/netns/{name}")

    @classmethod
    def of(cls, pid: int) -> Namespace:
        return cls(f"/proc/{pid}/ns/net")

    @classmethod
    def here(cls) -> Namespace:
        return cls("/proc/thread-self/ns/net")

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Namespace:
        self._outer.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        _setns(self.fd)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        outer = self._outer.pop()
        _setns(outer)
        os.close(outer)

    def run(self, *command: str, check: bool = True, input: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A program inside; its result with text."""
        inside = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.fd}", "--", *command]
        result = subprocess.run(inside, capture_output=True, text=True, input=input, timeout=timeout, check=False)
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command)}: {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def ip(self, *arguments: str, check: bool = True) -> str:
        return self.run("ip", *arguments, check=check).stdout

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Read or write a value below /proc/sys/net; `name` with slashes."""
        with self:
            file = Path("/proc/sys/net", name)  # shows the namespace of whoever opens it
            if value is not None:
                file.write_text(value)
            return file.read_text().strip()

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        with self:
            made = socket.socket(family, kind, protocol)
        made.settimeout(TIMEOUT)
        return made

    def connect(self, address: str, port: int, *, source: str = "", timeout: float = TIMEOUT) -> socket.socket:
        """A TCP connection from inside. Raises OSError: ConnectionRefusedError, TimeoutError, unreachable."""
        made = self.socket(family_of(address))
        made.settimeout(timeout)  # also what a SYN without an answer waits for
        try:
            if source:
                made.bind((source, 0))
            made.connect((address, port))
        except OSError:
            made.close()
            raise
        made.settimeout(TIMEOUT)
        return made

    def reaches(self, address: str, port: int, timeout: float = TIMEOUT) -> bool:
        """Whether a TCP connection comes about and a byte goes there and back (the other side is an `Echo`)."""
        try:
            with self.connect(address, port, timeout=timeout) as made:
                made.sendall(b"?")
                return made.recv(1) == b"?"
        except OSError:
            return False

    def kept_from(self, address: str, port: int) -> bool:
        """The opposite of `reaches`, for what is expected to fail."""
        return not self.reaches(address, port, PATIENCE)

    def unanswered(self, address: str, port: int) -> bool:
        """The opposite of `asks`, for what is expected to fail."""
        return self.asks(address, port, timeout=PATIENCE) is None

    def asks(self, address: str, port: int, data: bytes = b"hello", timeout: float = TIMEOUT) -> bytes | None:
        """Send a UDP datagram and return the answer; None when there is none."""
        with self.socket(family_of(address), socket.SOCK_DGRAM) as made:
            made.settimeout(timeout)
            try:
                made.connect((address, port))
                made.send(data)
                return made.recv(65536)
            except OSError:
                return None

    def pings(self, address: str, wait: int = 20) -> bool:
        """Whether an echo request is answered within `wait` seconds."""
        return self.run("busybox", "ping", "-c", "1", "-W", str(wait), address, check=False).returncode == 0

    def no_echo(self, address: str) -> bool:
        """The opposite of `pings`, for what is expected to fail."""
        return not self.pings(address, 1)

    def links(self) -> set[str]:
        return {name for _, name in self.interfaces()}

    def interfaces(self) -> list[tuple[int, str]]:
        with self:
            return socket.if_nameindex()


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def free_port() -> int:
    """A port that nobody listens on in the namespace of the calling thread, below those that the kernel gives to clients' sockets: a
    connection of somebody else cannot have it by the time it is published."""
    for number in _ports:
        port = PORTS[number % len(PORTS)]
        try:
            if socket.has_dualstack_ipv6():
                socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
            else:
                socket.create_server(("", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("not reached: the numbers do not end")


@contextmanager
def made(prefix: str = "knarrtest") -> Iterator[Namespace]:
    """A new named namespace with `lo` up."""
    name = f"{prefix}-{os.getpid()}-{next(_numbers)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        namespace = Namespace.named(name)
        try:
            namespace.ip("link", "set", "lo", "up")
            yield namespace
        finally:
            namespace.close()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextmanager
def joined(left: Namespace, right: Namespace, left_addresses: list[str], right_addresses: list[str]) -> Iterator[tuple[str, str]]:
    """A veth pair between two namespaces with addresses (in CIDR form); the names of its ends. Gone at the end, from both."""
    names = f"kt{os.getpid() % 10**7}x{next(_numbers)}"[:13]
    ends = (f"{names}l", f"{names}r")
    left.ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1], "netns", f"/proc/{os.getpid()}/fd/{right.fd}")
    try:
        for namespace, end, addresses in ((left, ends[0], left_addresses), (right, ends[1], right_addresses)):
            for address in addresses:
                namespace.ip("addr", "add", address, "dev", end, *(("nodad",) if ":" in address else ()))
            namespace.ip("link", "set", end, "up")
        yield ends
    finally:
        left.ip("link", "del", ends[0], check=False)


class Echo:
    """A TCP server in a namespace that sends back what it gets, in a thread; `peers` are the addresses that its clients had."""

    def __init__(self, namespace: Namespace, port: int, address: str = "") -> None:
        self.peers: list[str] = []
        family = family_of(address) if address else socket.AF_INET6
        self.socket = namespace.socket(family)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not address:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind((address or "::", port))
        self.socket.listen(64)
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, peer = self.socket.accept()
            except OSError:
                return
            self.peers.append(plain(peer[0]))
            threading.Thread(target=_echo, args=(client,), daemon=True).start()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


def _echo(client: socket.socket) -> None:
    with client:
        client.settimeout(30)
        try:
            while data := client.recv(65536):
                client.sendall(data)
        except OSError:
            pass


class Datagrams:
    """A UDP server in a namespace: answers each datagram with `<sender's address> <data>`; `peers` as in Echo."""

    def __init__(self, namespace: Namespace, port: int, address: str = "") -> None:
        self.peers: list[str] = []
        self.socket = namespace.socket(family_of(address) if address else socket.AF_INET6, socket.SOCK_DGRAM)
        self.socket.settimeout(0.2)
        if not address:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind((address or "::", port))
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while not self.ending.is_set():
            try:
                data, peer = self.socket.recvfrom(65536)
                self.peers.append(plain(peer[0]))
                self.socket.sendto(plain(peer[0]).encode() + b" " + data, peer)
            except OSError:
                continue

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self.thread.join()
        self.socket.close()


def plain(address: str) -> str:
    """An IPv4-mapped address as IPv4."""
    return address.removeprefix("::ffff:")


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it comes true within a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
