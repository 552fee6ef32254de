"""What waits to be sent to the client of a build. Whoever can wait asks for room first; what cannot is taken at once, up to a limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

_FULL, _MANY = 1 << 20, 1000  # bytes and messages that a client may be behind before whoever can wait does
_PATIENCE = 10.0  # seconds that a step waits for a client: others may wait for the same step
_MOST = 64 << 20  # bytes that nothing may pass: this client reads nothing at all


class Outbox:
    """Messages in order, sent by `run`."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._more = trio.Event()
        self._less = trio.Event()
        self._closed = False
        self._stalled = False

    def put(self, message: bytes) -> None:
        """Send this after the others. Never waits. Raises ConnectionAbortedError for a client that is far behind."""
        if self._bytes + len(message) > _MOST:
            raise ConnectionAbortedError("the client of a build does not read what it is told")
        self._waiting.append(message)
        self._bytes += len(message)
        self._more.set()

    async def send(self, message: bytes) -> None:
        """The same, once there is room."""
        while self._full():
            await self._less.wait()
        self.put(message)

    def _full(self) -> bool:
        return self._bytes > _FULL or len(self._waiting) > _MANY

    async def room(self) -> bool:
        """Wait until most of what was put before is sent; False when the client does not read: what can be left out is to be left out."""
        if not self._stalled:
            with trio.move_on_after(_PATIENCE):
                while self._full():
                    await self._less.wait()
        self._stalled = self._full()
        return not self._stalled

    def close(self) -> None:
        """Nothing more will come: `run` returns when all is sent."""
        self._closed = True
        self._more.set()

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send what comes, until `close`. Raises what `send` does."""
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                await send(message)
                self._bytes -= len(message)
                if not self._full():
                    self._less.set()
                    self._less = trio.Event()
            if self._closed:
                return
            self._more = trio.Event()
            await self._more.wait()
