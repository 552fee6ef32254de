"""The question before something is removed for good."""

import posix

from cli.streams import output


def confirmed(warning: str, separator: str = "\n") -> bool:
    """Show what will happen and ask; anything but `y` or `yes` is no, and so is the end of the input."""
    output(f"{warning}{separator}Are you sure you want to continue? [y/N] ")
    data = b""
    while len(data) < 100 and (byte := posix.read(0, 1)) not in (b"", b"\n"):
        data += byte
    return data.strip().lower() in (b"y", b"yes")
