"""A limit on bytes per second: a token bucket that many readers share. Knows nothing of what the bytes are.

A reader takes what it read and sleeps off the debt, so chunks may be larger than the bucket and nobody is cut short.
"""

from __future__ import annotations

import trio

_BURST = 0.1  # seconds' worth that may be saved up: small enough to look like a steady stream


class Rate:
    """`per_second` bytes for all who share it; 0 is no limit."""

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        self._paid_until = 0.0  # the moment at which everything taken is paid for

    async def take(self, size: int) -> None:
        """Count `size` bytes, and wait until they are paid for. Waiters come out in the order in which they came."""
        if not self.per_second:
            return
        now = trio.current_time()
        self._paid_until = max(self._paid_until, now - _BURST) + size / self.per_second
        if self._paid_until > now:
            await trio.sleep_until(self._paid_until)
