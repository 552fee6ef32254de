"""Reading and writing the files of a control group, for both versions. Owns nothing but the paths it is given."""

from __future__ import annotations

import errno
import os
import signal
import time

from engine.errors import Conflict, InvalidParameter, KnarrError

RMDIR_PATIENCE = 2.0  # seconds: a group stays busy for a moment after its last process was reaped
FREEZE_PATIENCE = 10.0  # seconds: a task in an uninterruptible sleep delays the freezer


def read(path: str) -> str:
    """A file's text; "" when it or its group does not exist (the container may end at any moment)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts).decode("ascii", "replace")
    except OSError as error:
        if error.errno == errno.ENODEV:  # the group was removed between open and read
            return ""
        raise
    finally:
        os.close(fd)


def number(path: str) -> int | None:
    """A file's number; None for "max" and for a file that is not there."""
    text = read(path).strip()
    return int(text) if text and text != "max" else None


def flat(path: str) -> dict[str, int]:
    """A "flat keyed" file: one `name number` a line."""
    table = {}
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            table[name] = int(value)
    return table


def write(path: str, value: str | int) -> None:
    """One write. Raises OSError with the file's path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def limit(path: str, value: str | int) -> None:
    """Write a limit. Raises InvalidParameter when the kernel refuses the value, KnarrError when it cannot be set at all."""
    try:
        write(path, value)
    except OSError as error:
        what = f"setting {os.path.basename(path)} of cgroup {os.path.dirname(path)} to {value}: {error.strerror}"
        if error.errno in (errno.EINVAL, errno.ERANGE, errno.EBUSY, errno.E2BIG, errno.ENODEV):
            raise InvalidParameter(what) from None
        raise KnarrError(what, hint="the kernel lacks this limit" if error.errno == errno.ENOENT else "") from None


def make(group: str) -> None:
    """Create a group; one of that name left by an earlier run is replaced. Raises Conflict when processes still live in it."""
    try:
        os.mkdir(group, 0o755)
    except FileExistsError:
        try:
            remove(group, patience=0.05)
        except OSError as error:
            raise Conflict(f"cgroup {group} exists and is in use: {error.strerror}") from None
        os.mkdir(group, 0o755)


def pids(group: str) -> list[int]:
    """Process ids in the group itself."""
    return [int(word) for word in read(f"{group}/cgroup.procs").split()]


def tree(group: str) -> list[str]:
    """The group and all groups below it, children before parents; empty when it does not exist."""
    try:
        with os.scandir(group) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [deeper for child in children for deeper in tree(child)] + [group]


def all_pids(group: str) -> list[int]:
    """Process ids in the group and below."""
    return [pid for each in tree(group) for pid in pids(each)]


def remove(group: str, *, patience: float = RMDIR_PATIENCE) -> bool:
    """Remove a group and those below it; False when it was not there. Raises OSError(EBUSY) when it stays in use for `patience` seconds."""
    deadline = 0.0
    pause = 0.0005
    while True:
        try:
            os.rmdir(group)
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            now = time.monotonic()
            deadline = deadline or now + patience
            if now > deadline:
                raise
        children = tree(group)[:-1]
        for child in children:
            try:
                os.rmdir(child)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                    raise
        if not children:
            time.sleep(pause)
            pause = min(pause * 2, 0.02)


def signal_all(group: str, number: int = signal.SIGKILL) -> int:
    """Signal every process in the group and below; how many there were. One that ended meanwhile is fine."""
    found = all_pids(group)
    for pid in found:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    return len(found)


def wait_for(path: str, wanted: str, what: str) -> None:
    """Wait until the file's text has `wanted`. Raises KnarrError after FREEZE_PATIENCE; a group that is gone has nothing to wait for."""
    deadline = time.monotonic() + FREEZE_PATIENCE
    pause = 0.0002
    while True:
        text = read(path)
        if not text or wanted in text:
            return
        if time.monotonic() > deadline:
            raise KnarrError(f"{what}: {os.path.dirname(path)} did not get there in {FREEZE_PATIENCE:.0f} seconds")
        time.sleep(pause)
        pause = min(pause * 2, 0.01)
