"""Pieces from one worker thread to another, a bounded number at a time: two steps of a pipeline on two processors.

Whoever ends closes its side in a `finally`; so neither waits for one that is gone, and no time-out is needed.
"""

from __future__ import annotations

import threading
from collections import deque


class Closed(Exception):
    """The other side is gone and wants nothing more."""


class Handoff:
    """A queue of at most `room` pieces. Both ends block; for worker threads alone."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._pieces: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._unwanted = False
        self._failure: BaseException | None = None

    def put(self, piece: bytes) -> None:
        """Pass one on. Raises Closed when nobody will take it."""
        with self._changed:
            while len(self._pieces) >= self._room and not self._unwanted:
                self._changed.wait()
            if self._unwanted:
                raise Closed
            self._pieces.append(piece)
            self._changed.notify_all()

    def end(self, failure: BaseException | None = None) -> None:
        """Nothing more will come; with `failure` the taker gets that instead of the end. The first call counts."""
        with self._changed:
            if not self._ended:
                self._ended, self._failure = True, failure
            self._changed.notify_all()

    def get(self) -> bytes:
        """The next one, b"" at the end and after it. Raises what the giver ended with."""
        with self._changed:
            while not self._pieces and not self._ended:
                self._changed.wait()
            if self._pieces:
                piece = self._pieces.popleft()
                self._changed.notify_all()
                return piece
            if self._failure is not None:
                raise self._failure
            return b""

    def close(self) -> None:
        """The taker wants nothing more."""
        with self._changed:
            self._unwanted = True
            self._pieces.clear()
            self._changed.notify_all()
