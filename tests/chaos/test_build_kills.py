"""The daemon is killed at random moments of builds: after every start the host is clean, finished steps are cached, and every image that
was acknowledged is there and runs. And a disk that is full.

KNARR_BUILD_KILLS is how many times (60 for a long run); KNARR_CHAOS_SEED repeats a run, which prints its seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from builder.sources import manifest
from tests.chaos.buildkills import Builds, killed_amid
from tests.lib import buildwork, busybox
from tests.lib.daemon import Daemon
from tests.lib.leaks import Leaks

KILLS = int(os.environ.get("KNARR_BUILD_KILLS", "3"))
SEED = int(os.environ.get("KNARR_CHAOS_SEED", "0")) or random.randrange(1 << 30)
_BUSY_SECONDS = 2.0  # a kill comes so long after the daemon answers at the latest


def test_kills_leave_nothing_half_built(own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    print(f"KNARR_CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    daemon = own_daemon().start()
    busybox.load(daemon)
    builds = Builds(daemon, tmp_path, chance)
    leaks = Leaks(daemon)
    warm = 0
    for _ in range(KILLS):
        killed_amid(builds, chance.uniform(0.1, _BUSY_SECONDS))
        daemon.start()
        builds.look()
        warm += builds.warm()
    print(f"{KILLS} kills, {builds.done} builds acknowledged, {builds.cut} cut off, {warm} times looked for what is cached")
    daemon.remove_all()
    buildwork.forget(daemon)
    daemon.restart()
    assert buildwork.findings(daemon) == []
    buildwork.forget(daemon)
    buildwork.wait(lambda: not buildwork.leftovers(daemon), told=lambda: f"left behind: {buildwork.leftovers(daemon)}")
    # Folders that the builder has once it was used.
    leaks.before.files |= {
        f"{daemon.data_root}/{name}" for name in ("build", "build/mounts", "build/contexts", "build/sources", "build/scratch")
    }
    leaks.before.files |= {f"{daemon.exec_root}/build"}
    leaks.before.cgroups |= {str(group) for group in daemon.cgroups() if group.name == "default-devices"}
    leaks.pid = -1
    leaks.check()
    assert "Traceback" not in daemon.log.read_text(errors="replace"), daemon.log_tail(80)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 MB."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", str(image), "60M"], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no loop devices: {mounted.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


FULL = (
    "RUN dd if=/dev/zero of=/big bs=1M count=90",
    "COPY --chown=5:5 . /one\nCOPY --chown=6:6 . /two\nCOPY --chown=7:7 . /three\nCOPY --chown=8:8 . /four",
    "RUN --mount=type=cache,target=/cache dd if=/dev/zero of=/cache/big bs=1M count=90",
    "ADD --chown=9:9 context.tar /unpacked",
)


def test_a_full_disk(small_disk: Path, own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """Builds say so and leave nothing; the daemon lives, and what is pruned gives the room back."""
    daemon = own_daemon("--data-root", str(small_disk / "data"))
    daemon.data_root = small_disk / "data"
    daemon.start()
    busybox.load(daemon)
    warm = buildwork.site(tmp_path / "warm", "FROM busybox\nRUN echo warm > /warm\n")
    buildwork.build(daemon, warm, "-t", "warm")
    free = room(small_disk)
    files = {"much": os.urandom(12_000_000), "context.tar": bytes(1)}
    for number, steps in enumerate(FULL):
        for way in buildwork.WAYS:
            if way == "classic" and "--mount" in steps:
                continue
            folder = buildwork.site(tmp_path / f"{number}-{way}", f"FROM busybox\n{steps}\n", files)
            if "context.tar" in steps:
                (folder / "much").unlink()
                (tmp_path / "zeros").write_bytes(bytes(80_000_000))
                subprocess.run(["tar", "-czf", str(folder / "context.tar"), "-C", str(tmp_path), "zeros"], check=True)
            code, told = buildwork.build(daemon, folder, way=way, check=False)
            assert code != 0, told
            assert "no space left" in told.lower(), told
            assert daemon.api("GET", "/_ping").status == 200
            buildwork.wait(lambda: buildwork.pruned(daemon))
            room_comes_back(small_disk, free)
    # A context that does not fit, and then everything works as before.
    folder = buildwork.site(tmp_path / "large", "FROM busybox\nCOPY . /all\n", {f"{n}": os.urandom(9_000_000) for n in range(8)})
    for way in buildwork.WAYS:
        code, told = buildwork.build(daemon, folder, way=way, check=False)
        assert code != 0 and "no space left" in told.lower(), told
    buildwork.wait(lambda: buildwork.pruned(daemon))
    room_comes_back(small_disk, free)
    buildwork.build(daemon, warm, "--no-cache", "-t", "again")
    assert daemon.out("run", "--rm", "--network", "none", "again", "cat", "/warm") == "warm"
    assert buildwork.findings(daemon) == []
    assert not buildwork.leftovers(daemon)
    assert "Traceback" not in daemon.log.read_text(errors="replace"), daemon.log_tail(80)


def test_another_boot_of_the_host(own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """As after a power cut: of what was never synced the disk may have anything. Images that were acknowledged are whole, steps that nobody
    synced are done again, and of contexts only what is really there is believed."""
    daemon = own_daemon().start()
    busybox.load(daemon)
    folder = buildwork.site(tmp_path / "kept", "FROM busybox\nCOPY a b /\nRUN cat /a > /c\n", {"a": b"one", "b": b"two"})
    buildwork.build(daemon, folder, "-t", "kept")
    lost = buildwork.site(tmp_path / "lost", "FROM busybox\nCOPY a b /\nRUN cat /a > /c\nRUN false\n", {"a": b"1", "b": b"2"})
    assert buildwork.build(daemon, lost, check=False)[0]
    daemon.kill()
    with contextlib.closing(sqlite3.connect(daemon.data_root / "meta.db")) as database, database:
        database.execute("UPDATE snapshots SET boot = 'another' WHERE name LIKE 'build:%'")
        torn = [number for (number,) in database.execute("SELECT number FROM snapshots WHERE boot = 'another'")]
    assert len(torn) == 2
    for number in torn:
        for path in (daemon.data_root / f"snapshots/{number}/fs").iterdir():
            path.unlink()  # it may be linked elsewhere
    for index in (daemon.data_root / "build/contexts").glob("*/index"):
        of_this_boot = manifest.decode_index(index.read_bytes())
        assert of_this_boot is not None
        index.write_bytes(manifest.encode_index(msgspec.structs.replace(of_this_boot, boot="another")))
    trees = [path.parent for path in (daemon.data_root / "build/contexts").glob("*/tree-*/a")]
    assert len(trees) == 2
    for tree in trees:
        write_anew(tree / "a", b"")  # as a file that was never written back
        (tree / "b").unlink()
    daemon.start()
    assert buildwork.findings(daemon) == []
    assert daemon.out("run", "--rm", "--network", "none", "kept", "cat", "/a", "/b", "/c") == "onetwoone"
    _, told = buildwork.build(daemon, folder, "-t", "kept:again")
    assert "0 steps executed, 2 from the cache" in told, told
    site = buildwork.site(tmp_path / "lost", "FROM busybox\nCOPY a b /\nRUN cat /a > /c\n")
    _, told = buildwork.build(daemon, site, "-t", "lost")
    assert "2 steps executed, 0 from the cache" in told, told
    assert daemon.out("run", "--rm", "--network", "none", "lost", "cat", "/a", "/b", "/c") == "121"
    buildwork.wait(lambda: buildwork.findings(daemon) == [])


def write_anew(path: Path, data: bytes) -> None:
    """A file of that name, mode and time with other content, and not in those that are linked to it."""
    info = path.stat()
    path.unlink()
    path.write_bytes(data)
    os.chmod(path, info.st_mode & 0o7777)
    os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))


def room(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def room_comes_back(place: Path, free: int) -> None:
    """Wait until about as much is free as it was."""

    def told() -> str:
        sizes = subprocess.run(["du", "-ak", str(place)], capture_output=True, text=True).stdout
        largest = sorted(sizes.splitlines(), key=lambda line: int(line.split()[0]))[-30:]
        return f"{free} before, {room(place)} now:\n" + "\n".join(largest)

    buildwork.wait(lambda: room(place) > free - (1 << 20), told=told)
