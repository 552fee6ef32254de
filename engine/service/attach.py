"""Clients that want a process's streams: their sockets are handed to the monitor, which serves them without the daemon.

A connection that cannot be handed over (TLS) is refused here. Options and detach keys follow Docker's attach endpoint.
"""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import trio

from engine.errors import InvalidParameter, LaunchError, NotImplementedYet
from engine.monitor.client import MonitorGone
from engine.service.container import Pending
from engine.service.supervise import Process
from engine.spec.docker.streams import AttachOptions
from engine.wire import control, stdcopy

_CHECK_SECONDS = 1.0  # how often a client that waits for a start is checked for having gone


class Hijacked(Protocol):
    """A connection that the HTTP layer has given up; `early` was read past the request."""

    early: bytes

    def plain_fd(self) -> int | None:
        """The descriptor, if bytes on it are the client's bytes."""

    async def send(self, data: bytes) -> None:
        """Write all of `data`."""

    def close(self) -> None:
        """Close this side's copy, without a shutdown of the connection."""


def detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q`, `a`, `ctrl-@` -> bytes; "" is Docker's default. Raises InvalidParameter."""
    if not text:
        return control.DEFAULT_DETACH_KEYS
    found = bytearray()
    for key in text.split(","):
        if len(key) == 1 and key.isascii():
            found += key.encode()
        elif len(key) == 6 and key.startswith("ctrl-") and (key[5].isalpha() or key[5] in "@[\\]^_"):
            found.append(ord(key[5].upper()) & 0x1F)
        else:
            raise InvalidParameter(f"Invalid detach keys ({text}) provided", hint="a comma-separated list of one letter or ctrl-<letter>")
    return bytes(found)


def message(options: AttachOptions, tty: bool, early: bytes = b"") -> control.Attach:
    """The monitor's form of the options. Raises InvalidParameter."""
    return control.Attach(
        id=0,
        stdin=options.stdin,
        stdout=options.stdout,
        stderr=options.stderr,
        framed=not tty,
        detach_keys=detach_keys(options.detach_keys),
        early=early,
    )


class Attachment:
    """An attach that was checked and may take the connection over. `run` returns when the daemon has nothing more to do with it."""

    def __init__(
        self,
        options: control.Attach,
        *,
        process: Callable[[], Process | None],
        pending: list[Pending],
        gone: Callable[[str], None],
        stream: bool = True,
        history: Callable[[], AsyncIterator[bytes]] | None = None,
        after: Callable[[], Awaitable[None]] | None = None,
        tty: bool = False,
    ) -> None:
        self._options = options
        self._process = process
        self._pending = pending
        self._gone = gone
        self._stream = stream
        self._history = history
        self._after = after
        self.tty = tty

    async def run(self, connection: Hijacked) -> None:
        """Serve a connection. Raises NotImplementedYet when it cannot be handed over."""
        try:
            if self._history is not None:
                async for chunk in self._history():
                    await connection.send(chunk)
            if self._stream:
                await self._hand_over(connection)
            if self._after is not None:
                await self._after()
        except LaunchError as error:
            # The reply was sent before the start: Docker, too, tells the client in the stream, the exit code follows by inspect.
            text = f"{error}\r\n".encode()
            await connection.send(text if self.tty else stdcopy.frame(stdcopy.STDOUT, text))
        finally:
            connection.close()

    async def _hand_over(self, connection: Hijacked) -> None:
        fd = connection.plain_fd()
        if fd is None:
            raise NotImplementedYet("attach over TLS")
        own = os.dup(fd)
        options = control.Attach(
            id=0, stdin=self._options.stdin, stdout=self._options.stdout, stderr=self._options.stderr, framed=self._options.framed,
            detach_keys=self._options.detach_keys, early=connection.early,
        )  # fmt: skip
        process = self._process()
        if process is not None:
            try:
                await process.attach(own, options, self._gone)
            except MonitorGone:
                pass  # it ended meanwhile: the client sees the end of the stream
            finally:
                os.close(own)
            return
        client = Pending(own, options)
        self._pending.append(client)
        if self._after is None:
            connection.close()
            await self._until_started(client)

    async def _until_started(self, client: Pending) -> None:
        """Keep the client until the start takes it; give it up when it hangs up before that."""
        poller = select.poll()
        poller.register(client.fd, 0)  # POLLHUP and POLLERR alone: input may wait there and is not ours to read
        try:
            while not client.done.is_set():
                with trio.move_on_after(_CHECK_SECONDS):
                    await client.done.wait()
                if not client.done.is_set() and poller.poll(0):
                    return
        finally:
            if client in self._pending:
                self._pending.remove(client)
            client.release()
