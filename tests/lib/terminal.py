"""A program on a pseudo-terminal, driven like a person does: type, then wait for words on the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time


class Terminal:
    """Runs `command` with a terminal of `rows` by `columns` as its controlling terminal."""

    def __init__(self, command: list[str], environment: dict[str, str], rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.screen = b""
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize_inside(self, rows: int, columns: int) -> None:
        """Resize, and wait until the shell in a container has it. A client that has only just begun may not listen to SIGWINCH yet."""
        self.resize(rows, columns)
        self.type(f'until [ "$(stty size)" = "{rows} {columns}" ]; do sleep 0.1; done; echo resized-$((1+1))\n'.encode())
        deadline = time.monotonic() + 60
        while b"resized-2" not in self.screen and time.monotonic() < deadline:
            os.kill(self.process.pid, signal.SIGWINCH)
            self.read(0.2)
        self.expect(b"resized-2", 1)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def read(self, seconds: float) -> bool:
        """Take what is there within `seconds`; False at the end of the terminal."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            chunk = os.read(self.master, 65536)
        except OSError:  # EIO: the last holder of the other side is gone
            return False
        self.screen += chunk
        return bool(chunk)

    def expect(self, words: bytes, timeout: float = 60) -> bytes:
        """Wait until `words` are on the screen; returns and forgets what came up to them."""
        deadline = time.monotonic() + timeout
        while words not in self.screen:
            alive = self.read(max(0.0, min(0.2, deadline - time.monotonic())))
            if words in self.screen:
                break
            if not alive or time.monotonic() > deadline:
                raise AssertionError(f"{words!r} is not on the screen:\n{self.screen.decode(errors='replace')}")
        before, _, self.screen = self.screen.partition(words)
        return before + words

    def wait(self, timeout: float = 60) -> int:
        """Read to the end and return the program's exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"the program does not end:\n{self.screen.decode(errors='replace')}")
            if not self.read(0.05):
                break
        while select.select([self.master], [], [], 0)[0] and self.read(0):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
