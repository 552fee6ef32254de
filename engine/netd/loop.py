"""The event loop of knarr-netd: epoll, a function for each descriptor, a tick while anything waits for time. Owns no socket."""

from __future__ import annotations

import _socket
import errno
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IN = select.EPOLLIN
OUT = select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP

TICK = 0.25  # seconds
DRAIN = 32  # of what waits at one socket in one round
_FAILURES = 100
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # what accepting needs will be there again later


class Loop:
    """`now`: seconds, read once for each round. `report` is told of a handler that failed, which is a mistake in it: what it serves is
    given up when that goes on, everybody else is served as before."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._tickers: list[Callable[[], bool]] = []
        self._failures: dict[int, int] = {}
        self.now = monotonic()
        self.ended = False
        self.report: Callable[[str], None] = lambda text: None

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Raises OSError."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Before its descriptor is closed."""
        self._failures.pop(fd, None)
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def every_tick(self, ticker: Callable[[], bool]) -> None:
        """Call `ticker` each `TICK` while any of them returns true."""
        self._tickers.append(ticker)

    def run(self) -> None:
        """Until `ended` is set."""
        poll, handlers = self._epoll.poll, self._handlers
        ticking, due = False, 0.0
        while not self.ended:
            events = poll(TICK if ticking else -1)
            self.now = now = monotonic()
            for fd, mask in events:
                handler = handlers.get(fd)  # one that ran before it may have removed it
                if handler is not None:
                    try:
                        handler(mask)
                    except Exception as error:
                        self._failed(fd, error)
            if not ticking or now >= due:
                due = now + TICK
                ticking = False
                for ticker in self._tickers:
                    ticking = ticker() or ticking

    def _failed(self, fd: int, error: Exception) -> None:
        place, trace = "", error.__traceback__
        while trace is not None:
            place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
        self._failures[fd] = count = self._failures.get(fd, 0) + 1
        self.report(f"knarr-netd: descriptor {fd}: {type(error).__name__}: {error} ({place})")
        if count >= _FAILURES:
            self.remove(fd)


class Listener:
    """A listening socket's clients, each handed to `accepted`. The socket is another's, who takes it out of the loop before closing it.

    What cannot be accepted for want of descriptors or memory waits for a tick: else the loop would be told of it without end.
    """

    def __init__(self, loop: Loop, sock: _socket.socket, accepted: Callable[[_socket.socket], None]) -> None:
        self._loop, self._sock, self._accepted = loop, sock, accepted
        self._deaf = 0.0
        loop.add(sock.fileno(), IN, self._ready)

    def _ready(self, _: int) -> None:
        for _ in range(DRAIN):
            try:
                fd, _peer = self._sock._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                if error.errno in _EXHAUSTED:
                    self._deaf = self._loop.now
                    self._loop.change(self._sock.fileno(), 0)
                else:  # who may manage the network that it is in has ended the socket
                    self._loop.remove(self._sock.fileno())
                return
            client = _socket.socket(fileno=fd)
            client.setblocking(False)
            self._accepted(client)

    def tick(self) -> bool:
        """Listens again when its time has come; whether it waits for that."""
        if self._deaf and self._loop.now - self._deaf >= TICK:
            self._deaf = 0.0
            self._loop.change(self._sock.fileno(), IN)
        return bool(self._deaf)
