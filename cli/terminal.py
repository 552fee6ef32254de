"""The terminal: size, raw mode and back, detach keys. Uses the C modules only (`termios` costs 0.3 ms, `tty` and `signal` cost more)."""

import posix

from cli.client import Failure

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"


def is_terminal(descriptor: int) -> bool:
    try:
        return posix.isatty(descriptor)
    except OSError:
        return False


def size(descriptor: int = 1) -> "tuple[int, int]":
    """Rows and columns, (0, 0) where there is no terminal."""
    try:
        columns, rows = posix.get_terminal_size(descriptor)
    except OSError:
        return 0, 0
    return rows, columns


def _end(number: int, frame: object) -> None:
    raise Failure("", 128 + number)


class Raw:
    """`with Raw(fd):` keys go through one by one and unechoed; the former mode comes back in any case."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.saved: list[object] | None = None

    def __enter__(self) -> "Raw":
        import _signal
        import termios

        for number in (_signal.SIGTERM, _signal.SIGHUP):
            if _signal.getsignal(number) == _signal.SIG_DFL:
                _signal.signal(number, _end)  # else the terminal would be left raw
        mode = termios.tcgetattr(self.descriptor)
        self.saved = termios.tcgetattr(self.descriptor)
        mode[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
        mode[0] &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.descriptor, termios.TCSANOW, mode)
        return self

    def __exit__(self, *exception: object) -> None:
        import termios

        if self.saved is not None:
            termios.tcsetattr(self.descriptor, termios.TCSANOW, self.saved)


def detach_bytes(keys: str) -> bytes:
    """The bytes of `ctrl-p,ctrl-q`. Raises Failure."""
    result = bytearray()
    for key in (keys or DEFAULT_DETACH_KEYS).split(","):
        if len(key) == 1 and key.isascii():
            result += key.encode()
        elif key[:5] == "ctrl-" and len(key) == 6 and ((key[5].islower() and key[5].isascii()) or key[5] in "@[\\]^_"):
            result.append(ord(key[5].upper()) - 64)
        elif key == "DEL":
            result.append(127)
        else:
            raise Failure(f"invalid detach keys ({keys}): Unknown character: '{key}'")
    return bytes(result)


class Detacher:
    """Finds the detach keys in what is typed; a started sequence is held back until it breaks off."""

    def __init__(self, keys: bytes):
        self.keys = keys
        self.held = 0

    def feed(self, data: bytes) -> "tuple[bytes, bool]":
        """What to send on, and whether the keys were complete (the rest is then dropped)."""
        if not self.held and self.keys[0] not in data:
            return data, False
        out = bytearray()
        for byte in data:
            if byte == self.keys[self.held]:
                self.held += 1
                if self.held == len(self.keys):
                    return bytes(out), True
                continue
            out += self.keys[:self.held]
            self.held = 0
            if byte == self.keys[0]:
                self.held = 1
            else:
                out.append(byte)
        return bytes(out), False
