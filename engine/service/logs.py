"""`logs`: reads a container's rotated json-file logs, oldest first, and follows them while the container runs.

Owns the reading; the monitor writes the files (native/monitor_log.h): FILE grows, is renamed FILE.1 (which becomes FILE.2 and so on) and
begun anew. A reader holds the file it reads open, so its inode stays its own; everything newer is found by looking from FILE upwards
until that inode, again when a rotation came in between. So no line is lost or seen twice, except those of files that were deleted before
they were read.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator

import trio

from engine import _core
from engine.aio.blocking import blocking
from engine.errors import KnarrError
from engine.wire.logfiles import Formatter

CHUNK = 256 * 1024  # bytes read at a time
INLINE = 16 * 1024  # up to here reading and formatting is cheaper than a thread hop (0.2 ms)
# The end of a container, unlike new output, wakes nobody here; and this is how often files are looked at where inotify has run out.
POLL = 0.1  # seconds

LOOKS = 100  # at the files' names, a millisecond apart, before a rotation that does not end is taken for the writer's death

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x80, 0x100


class _File:
    """An open log file. `start` is where reading begins, `end` where it stops (None: wherever the file ends)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        info = os.fstat(fd)
        self.inode = info.st_ino
        self.size = info.st_size
        self.position = 0
        self.end: int | None = None

    def read(self) -> bytes:
        """The next piece, b"" at the end."""
        size = CHUNK if self.end is None else min(CHUNK, self.end - self.position)
        piece = os.pread(self.fd, size, self.position) if size > 0 else b""
        self.position += len(piece)
        return piece

    def available(self) -> int:
        """Bytes not read yet; negative when the writer cut the file shorter than what was read."""
        return (os.fstat(self.fd).st_size if self.end is None else self.end) - self.position

    def close(self) -> None:
        os.close(self.fd)


def _open(path: str) -> _File | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    return _File(fd)


def _inode(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return 0


def _numbers(path: str) -> list[int]:
    """The numbers N of the FILE.N that are there, ascending."""
    folder, name = os.path.split(path)
    prefix = name + "."
    try:
        names = os.listdir(folder or ".")
    except FileNotFoundError:
        return []
    return sorted(int(each[len(prefix) :]) for each in names if each.startswith(prefix) and each[len(prefix) :].isdigit())


def _names(path: str) -> Iterator[str]:
    """FILE, then FILE.1 and so on; how many there are is asked after FILE was looked at, and one more may come about meanwhile."""
    yield path
    numbers = _numbers(path)
    yield from (f"{path}.{number}" for number in range(1, (numbers[-1] if numbers else 0) + 2))


def _newer_than(path: str, inode: int) -> list[_File]:
    """Files newer than the one with this inode (0: all there are), oldest first."""
    for attempt in range(LOOKS):
        found = _look(path, inode)
        # A rotation puts another inode at FILE: then files have moved under our eyes, and their order is not sure. Without a FILE one is
        # going on right now, unless its writer died in it.
        present = _inode(path)
        if present == (found[-1].inode if found else inode) and (present or not _numbers(path)):
            return found
        if attempt == LOOKS - 1:
            return found
        for file in found:
            file.close()
        time.sleep(0.001)
    return []


def _look(path: str, inode: int) -> list[_File]:
    """One look from FILE upwards; a file that is renamed meanwhile is met again at its new number."""
    found: list[_File] = []
    for name in _names(path):
        file = _open(name)
        if file is None:
            continue
        if file.inode == inode:
            file.close()
            break
        if any(file.inode == other.inode for other in found):
            file.close()
            continue
        found.append(file)
    found.reverse()
    return found


def _last_lines(files: list[_File], count: int) -> None:
    """Set the files' positions to where the last `count` lines of all begin."""
    for file in reversed(files):
        file.position = _line_start(file, count) if count else file.size
        count -= _count_lines(file) if count else 0


def _line_start(file: _File, count: int) -> int:
    """Where the last `count` complete lines begin; 0 when there are not more."""
    end = file.size
    # The newline that ends the last complete line is not the one before it.
    wanted = count + 1
    while end > 0:
        begin = max(end - CHUNK, 0)
        block = os.pread(file.fd, end - begin, begin)
        at = len(block)
        while wanted:
            at = block.rfind(b"\n", 0, at)
            if at < 0:
                break
            wanted -= 1
        if not wanted:
            return begin + at + 1
        end = begin
    return 0


def _count_lines(file: _File) -> int:
    """Complete lines from the file's position on."""
    count, at = 0, file.position
    while block := os.pread(file.fd, min(CHUNK, file.size - at), at) if at < file.size else b"":
        count += block.count(b"\n")
        at += len(block)
    return count


def _snapshot(path: str, tail: int, since: int, follow: bool) -> list[_File]:
    """The files to read from their right places. Without `follow` each ends where it ends now."""
    files = _newer_than(path, 0)
    if since:
        # A file last written before `since` has nothing to say; the current one may be written yet.
        keep = [file for file in files[:-1] if os.fstat(file.fd).st_mtime_ns >= since] + files[-1:]
        for file in files:
            if file not in keep:
                file.close()
        files = keep
    if tail >= 0:
        _last_lines(files, tail)
    for file in files:
        file.end = None if follow and file is files[-1] else file.size
    return files


class _Watch:
    """Wakes when the folder changes; falls back to looking every POLL seconds."""

    def __init__(self, path: str) -> None:
        self.fd = -1
        try:
            self.fd = _core.inotify_init()
            _core.inotify_add_watch(self.fd, os.path.dirname(path) or ".", _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE)
        except OSError as error:
            self.close()
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOENT, errno.ENOSYS):
                raise

    async def wait(self, seconds: float) -> None:
        """Until something changed, at most `seconds`."""
        if self.fd < 0:
            await trio.sleep(min(seconds, POLL))
            return
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(self.fd)
            try:
                os.read(self.fd, 65536)
            except BlockingIOError:
                pass

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Reader:
    """The files of one request, and the bytes they come to."""

    def __init__(self, path: str, formatter: Formatter) -> None:
        self.path = path
        self.formatter = formatter
        self.files: list[_File] = []

    def _chunk(self, file: _File) -> tuple[bytes, bool]:
        piece = file.read()
        return (self.formatter.feed(piece), True) if piece else (b"", False)

    async def chunk(self, file: _File) -> tuple[bytes, bool]:
        """(output, whether anything was read)."""
        available = file.available()
        if available < 0:
            self._cut(file, available)
            available = file.available()
        if available > INLINE:
            return await blocking("disk", self._chunk, file)
        return self._chunk(file)

    def _cut(self, file: _File, lost: int) -> None:
        """The writer took bytes back: an incomplete line after a failed write, or everything, when it rotates within one file."""
        if -lost <= self.formatter.pending:
            file.position += lost
        else:
            file.position = 0
        self.formatter.drop_pending()

    async def advance(self) -> bool:
        """Go from the current file to those that came after it; False when there are none."""
        current = self.files[0] if self.files else None
        if current and _inode(self.path) == current.inode:
            return False
        newer = await blocking("disk", _newer_than, self.path, current.inode if current else 0)
        self.files += newer
        return bool(newer)

    def next_file(self) -> None:
        """Done with the oldest file."""
        self.files.pop(0).close()
        self.formatter.drop_pending()

    def close(self) -> None:
        for file in self.files:
            file.close()
        self.files.clear()


async def read(
    path: str,
    *,
    follow: bool = False,
    tail: int = -1,
    since: int = 0,
    until: int = 0,
    timestamps: bool = False,
    stdout: bool = True,
    stderr: bool = True,
    details: bool = False,
    framed: bool = True,
    finished: Callable[[], bool] = lambda: True,
) -> AsyncIterator[bytes]:
    """The container's output so far, in pieces of whole lines; with `follow` also what comes, until it ended and all is read.

    `tail`: the last N lines of both streams together (before any other choice, as in Docker), below 0 for all. `since` and `until`:
    nanoseconds since the epoch, 0 for none. `framed`: Docker's stdcopy frames, else bare text. `finished` tells whether the container
    has ended and its monitor has written everything. No file at all is an empty log. Raises KnarrError when a file cannot be read.
    """
    formatter = Formatter(
        stdout=stdout, stderr=stderr, since=since, until=until, timestamps=timestamps, details=details, framed=framed
    )  # fmt: skip
    reader = _Reader(path, formatter)
    watch = _Watch(path) if follow else None
    try:
        reader.files = await blocking("disk", _snapshot, path, tail, since, follow)
        async for piece in _pieces(reader, watch, until, finished):
            yield piece
    except OSError as error:
        raise KnarrError(f"reading the log {path}: {error.strerror}") from None
    finally:
        reader.close()
        if watch:
            watch.close()


async def _pieces(reader: _Reader, watch: _Watch | None, until: int, finished: Callable[[], bool]) -> AsyncIterator[bytes]:
    while True:
        while len(reader.files) > 1:
            async for piece in _drain(reader):
                yield piece
            reader.next_file()
        # In this order: what is written before the end is seen as finished is read after it.
        ended = finished()
        async for piece in _drain(reader):
            yield piece
        if watch is None or reader.formatter.past_until:
            return
        if await reader.advance():
            # The writer closed the old file before it began the new one: one more look at the old one finds its end.
            continue
        if ended or _over(until):
            return
        await watch.wait(_patience(until))


async def _drain(reader: _Reader) -> AsyncIterator[bytes]:
    while reader.files and not reader.formatter.past_until:
        output, more = await reader.chunk(reader.files[0])
        if output:
            yield output
        if not more:
            return


def _over(until: int) -> bool:
    return bool(until) and time.time_ns() > until


def _patience(until: int) -> float:
    return min(POLL, max((until - time.time_ns()) / 1e9, 0.001)) if until else POLL
