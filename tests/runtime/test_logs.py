"""Reading and following rotated logs: no line lost, none twice."""

from __future__ import annotations

import gc
import os
import pathlib
import random
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from engine import _core
from engine.errors import KnarrError
from engine.service import logs
from engine.wire import jsonlog, stdcopy

BASE = jsonlog.nanoseconds("2024-01-01T00:00:00Z")


class Writer:
    """Writes as the monitor does: whole lines (or, on demand, pieces of them), rotation by renames, the oldest goes."""

    def __init__(self, folder: pathlib.Path, files: int = 3) -> None:
        self.path = str(folder / "id-json.log")
        self.files = files
        self.count = 0
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def line(self, text: str = "", stream: str = "stdout") -> bytes:
        self.count += 1
        return jsonlog.encode(
            jsonlog.Entry((text or f"line {self.count}") + "\n", stream, None, jsonlog.format_time(BASE + self.count * 10**9))
        )

    def write(self, lines: int = 1, stream: str = "stdout") -> None:
        for _ in range(lines):
            os.write(self.fd, self.line(stream=stream))

    def rotate(self) -> None:
        for number in range(self.files - 1, 0, -1):
            source = f"{self.path}.{number - 1}" if number > 1 else self.path
            if os.path.exists(source):
                os.rename(source, f"{self.path}.{number}")
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if self.files == 1 else 0))

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def writer(tmp_path: pathlib.Path) -> Writer:
    return Writer(tmp_path)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await test()

    gc.collect()  # what an earlier test left to the collector must not go in between
    before = len(os.listdir("/proc/self/fd"))
    trio.run(bounded)
    assert len(os.listdir("/proc/self/fd")) <= before


async def collect(path: str, **options: object) -> bytes:
    return b"".join([piece async for piece in logs.read(path, framed=False, **options)])  # type: ignore[arg-type]


def numbers(output: bytes) -> list[int]:
    return [int(line.split()[1]) for line in output.decode().splitlines()]


def test_rotated_files_in_order_and_tails(writer: Writer) -> None:
    async def test() -> None:
        for _ in range(4):
            writer.write(10)
            writer.rotate()
        writer.write(5)
        assert numbers(await collect(writer.path)) == list(range(21, 46))
        for tail in (0, 1, 5, 6, 15, 16, 25, 26, 1000):
            assert numbers(await collect(writer.path, tail=tail)) == list(range(46 - min(tail, 25), 46)), tail
        assert numbers(await collect(writer.path, since=BASE + 40 * 10**9)) == list(range(40, 46))
        assert numbers(await collect(writer.path, since=BASE + 23 * 10**9, until=BASE + 25 * 10**9)) == [23, 24, 25]
        assert await collect(writer.path, tail=1, timestamps=True) == b"2024-01-01T00:00:45.000000000Z line 45\n"

    run(test)
    writer.close()


def test_streams_and_frames(writer: Writer) -> None:
    async def test() -> None:
        writer.write(1)
        writer.write(1, "stderr")
        framed = b"".join([piece async for piece in logs.read(writer.path)])
        assert framed == stdcopy.frame(1, b"line 1\n") + stdcopy.frame(2, b"line 2\n")
        assert await collect(writer.path, stdout=False) == b"line 2\n"
        assert await collect(writer.path, tail=1, stderr=False) == b""

    run(test)
    writer.close()


def test_nothing_there(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        assert await collect(str(tmp_path / "no.log")) == b""
        assert await collect(str(tmp_path / "folder" / "no.log"), follow=True) == b""
        os.symlink("/etc/passwd", tmp_path / "link.log")
        with pytest.raises(KnarrError, match="reading the log"):
            await collect(str(tmp_path / "link.log"))

    run(test)


def test_long_tail_over_blocks(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHUNK", 100)

    async def test() -> None:
        writer.write(200)
        for tail in (1, 3, 50, 199, 200, 201):
            assert numbers(await collect(writer.path, tail=tail)) == list(range(201 - min(tail, 200), 201))

    run(test)
    writer.close()


@pytest.mark.parametrize("inotify", [True, False], ids=["inotify", "polling"])
def test_following(writer: Writer, inotify: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not inotify:

        def none_left() -> int:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(_core, "inotify_init", none_left)

    async def test() -> None:
        ended = False
        seen: list[int] = []

        async def follow() -> None:
            async for piece in logs.read(writer.path, follow=True, tail=1, framed=False, finished=lambda: ended):
                seen.extend(numbers(piece))

        async def until(count: int) -> None:
            while len(seen) < count:  # noqa: ASYNC110
                await trio.sleep(0.001)

        writer.write(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await until(1)
            torn = writer.line()
            os.write(writer.fd, torn[:20])
            await trio.sleep(0.02)
            assert seen == [3]
            os.write(writer.fd, torn[20:])
            await until(2)
            writer.write(2)
            writer.rotate()
            writer.write(1)
            await until(5)
            writer.rotate()
            writer.rotate()
            writer.write(1)
            await until(6)
            writer.write(1)
            ended = True
        assert seen == list(range(3, 10))

    run(test)
    writer.close()


@pytest.mark.parametrize("seed", range(6))
def test_rotation_at_any_moment(writer: Writer, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer acts between any two system calls of the reader."""
    chance = random.Random(seed)
    writer.files = 1000  # nothing is deleted, so everything must arrive
    left = 300

    def maybe() -> None:
        nonlocal left
        while left and chance.random() < 0.5:
            left -= 1
            chance.choice([lambda: writer.write(chance.randrange(1, 4)), writer.rotate])()

    for name in ("_open", "_numbers", "_inode"):

        def between(*arguments: object, real: Callable[..., object] = getattr(logs, name)) -> object:  # noqa: B008
            maybe()
            found = real(*arguments)
            maybe()
            return found

        monkeypatch.setattr(logs, name, between)
    monkeypatch.setattr(logs, "POLL", 0.001)
    monkeypatch.setattr(logs, "LOOKS", 100_000)
    monkeypatch.setattr(logs, "CHUNK", 64)

    async def test() -> None:
        output = await collect(writer.path, follow=True, finished=lambda: not left)
        assert numbers(output) == list(range(1, writer.count + 1))

    run(test)
    writer.close()


def test_one_file_that_is_emptied(tmp_path: pathlib.Path) -> None:
    writer = Writer(tmp_path, files=1)

    async def test() -> None:
        ended = False
        seen: list[int] = []

        async def follow() -> None:
            async for piece in logs.read(writer.path, follow=True, framed=False, finished=lambda: ended):
                seen.extend(numbers(piece))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for expected in (3, 4):
                writer.write(3 if expected == 3 else 1)
                while len(seen) < expected:  # noqa: ASYNC110
                    await trio.sleep(0.001)
                writer.rotate()
                await trio.sleep(0.15)
            ended = True
        assert seen == [1, 2, 3, 4]

    run(test)
    writer.close()


def test_without_follow_it_ends_although_more_comes(writer: Writer) -> None:
    async def test() -> None:
        writer.write(2000)
        seen = 0
        async for piece in logs.read(writer.path, framed=False):
            seen += piece.count(b"\n")
            writer.write(500)
        assert seen == 2000

    run(test)
    writer.close()


def test_a_reader_that_leaves_gives_everything_back(writer: Writer) -> None:
    async def test() -> None:
        writer.write(10)
        with trio.move_on_after(0.05):
            async for _ in logs.read(writer.path, follow=True, finished=lambda: False):
                pass

    run(test)
    writer.close()


def test_following_ends_at_until(writer: Writer) -> None:
    async def test() -> None:
        writer.write(2)
        output = await collect(writer.path, follow=True, until=time.time_ns() + 50_000_000, finished=lambda: False)
        assert numbers(output) == [1, 2]

    run(test)
    writer.close()
