"""Builds beside each other, and beside everything that removes images, layers and caches: each one comes out right, and nothing is lost."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib import buildwork, busybox
from tests.lib.buildwork import SLEEP, WAYS, building, site, wait, wake
from tests.lib.daemon import Daemon, docker_program
from tests.lib.images import docker_archive, entry, tar

QUIET = ("--network", "none")


@pytest.fixture
def clean(daemon: Daemon) -> Iterator[Daemon]:
    """The daemon; afterwards its store is sound, and no build has left anything."""
    yield daemon
    daemon.remove_all()
    buildwork.forget(daemon)
    wait(lambda: not buildwork.leftovers(daemon), told=lambda: f"left behind: {buildwork.leftovers(daemon)}")
    assert buildwork.findings(daemon) == []
    assert "Traceback" not in daemon.log.read_text(errors="replace"), daemon.log_tail(80)


def run(daemon: Daemon, image: str, *words: str) -> str:
    return daemon.out("run", "--rm", *QUIET, image, *words)


def run_beside_prunes(daemon: Daemon, image: str, *words: str) -> str:
    """The same, again when the container was pruned before it was started."""
    for _ in range(200):
        done = daemon.docker("run", "--rm", *QUIET, image, *words, check=False)
        if done.returncode == 0:
            return done.stdout.decode()
        told = done.stderr.decode()
        assert any(words in told for words in ("No such container", "marked for removal", "received 404")), told
    raise AssertionError(f"{image} never ran")


class Loops:
    """Functions that are called again and again, each in a thread, until the block ends."""

    def __init__(self, *functions: Callable[[], object]) -> None:
        self.wrong: list[BaseException] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(function,)) for function in functions]

    def _repeat(self, function: Callable[[], object]) -> None:
        try:
            while not self._over.is_set():
                function()
        except BaseException as error:  # raised by the test's thread
            self.wrong.append(error)

    def __enter__(self) -> Loops:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self.wrong:
            raise self.wrong[0]


def at_once(*functions: Callable[[], object]) -> None:
    """Call them at the same time."""
    wrong: list[BaseException] = []

    def call(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # raised by the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def docker(daemon: Daemon, *words: str) -> Callable[[], object]:
    """The docker CLI's command, over and over: one that finds nothing, or another one at work, is no trouble."""

    def call() -> None:
        done = subprocess.run([docker_program(), *words], env=daemon.docker_environment(), capture_output=True, timeout=60)
        told = done.stderr.decode()
        assert done.returncode == 0 or "already running" in told or "No such image" in told, told

    return call


@pytest.mark.parametrize("way", WAYS)
def test_everything_is_pruned_all_the_time(clean: Daemon, tmp_path: Path, way: str) -> None:
    """Builds, cached and not, while the cache, images and the rest are pruned in loops."""
    files = {f"part/{number}": b"%d\n" % number for number in range(200)}
    text = """FROM busybox AS first
COPY part /part
RUN echo one > /one
FROM busybox AS second
RUN --mount=type=cache,target=/cache --mount=type=bind,from=first,target=/first cat /first/one > /two && date >> /cache/log
FROM busybox
COPY --from=first /part /part
COPY --from=second /two /two
WORKDIR /made/here
RUN --mount=type=bind,target=/context ls /part | wc -l > /count && cat /context/part/7 > /seven
"""
    if way == "classic":
        text = text.replace("--mount=type=cache,target=/cache ", "").replace(" && date >> /cache/log", "")
    folder = site(tmp_path / "context", text, files)
    prune = ("builder", "prune", "-af"), ("image", "prune", "-f"), ("system", "prune", "-f")
    with Loops(*(docker(clean, *words) for words in prune)):
        for number in range(buildwork.environ("KNARR_BUILDS", 4)):
            (folder / "part/0").write_bytes(b"%d\n" % (number // 2))
            buildwork.build(clean, folder, *QUIET, "-t", "pruned", way=way)
            assert run_beside_prunes(clean, "pruned", "cat", "/two", "/count", "/seven", "/part/0").split() == [
                "one",
                "200",
                "7",
                str(number // 2),
            ]


def base(number: int, name: str = "based:on") -> bytes:
    layers = [busybox.layer(), tar([entry("own", data=b"%d" % number), entry("much", data=bytes(300_000))])]
    return docker_archive(layers, [name], {"Cmd": ["sh"]})


@pytest.mark.parametrize("number", [1, 2])
def test_its_base_image_is_removed_meanwhile(clean: Daemon, tmp_path: Path, number: int) -> None:
    """By its name, in the middle of a step; 2: and everything that is pruned with it."""
    assert clean.api("POST", "/images/load?quiet=1", base(number)).status == 200
    folder = site(tmp_path / "context", f"FROM based:on\nRUN echo now; {SLEEP}; cat /own > /copy\nCOPY Dockerfile /\n")
    with building(clean, folder, *QUIET, "-t", "standing") as build:
        build.says("now\n")
        assert clean.api("DELETE", "/images/based:on?force=1").status == 200
        if number == 2:
            for words in (("system", "prune", "-f"), ("builder", "prune", "-af")):
                docker(clean, *words)()
        wake(clean)
        assert build.result() == 0, build.output
    assert run(clean, "standing", "cat", "/copy") == str(number)
    save = clean.docker("save", "standing").stdout
    buildwork.forget(clean)
    clean.docker("load", input=save)
    assert run(clean, "standing", "cat", "/own") == str(number)


def test_images_come_and_go_under_builds(clean: Daemon, tmp_path: Path) -> None:
    """The base image is loaded and removed in a loop: a build finds it or not, and what is built of it is whole."""
    name = "localhost:1/based:on"  # of a registry that refuses at once: a build that misses it asks no other host
    data = base(3, name)
    folder = site(tmp_path / "context", f"FROM {name}\nRUN cat /own > /copy\n")
    assert clean.api("POST", "/images/load?quiet=1", data).status == 200
    moments = itertools.cycle((0, 0.05, 0.3, 1))

    def come_and_go() -> None:
        time.sleep(next(moments))
        assert clean.api("DELETE", f"/images/{name}?force=1").status in (200, 404)
        assert clean.api("POST", "/images/load?quiet=1", data).status == 200

    built = tried = 0
    with Loops(come_and_go):
        while tried < 8 or not built:
            tried += 1
            code, told = buildwork.build(clean, folder, *QUIET, "--no-cache", "-t", "standing", check=False)
            if code == 0:
                built += 1
                assert run(clean, "standing", "cat", "/copy") == "3"
            else:
                assert "based" in told and ("not found" in told or "refused" in told), told
            assert tried < 200, "no build found the image"


def test_equal_steps_of_builds_are_done_once(clean: Daemon, tmp_path: Path) -> None:
    folder = site(tmp_path / "context", "FROM busybox\nCOPY Dockerfile /\nRUN sleep 0.7; head -c 9 /dev/urandom | md5sum > /own\n")
    ids: list[str] = []

    def one(number: int) -> None:
        buildwork.build(clean, folder, *QUIET, "-t", f"equal:{number}", "-t", "equal:same", way=WAYS[number % 2])
        ids.append(run(clean, f"equal:{number}", "cat", "/own"))

    at_once(*(lambda number=number: one(number) for number in range(4)))  # type: ignore[misc]
    assert len(set(ids)) == 1
    assert run(clean, "equal:same", "cat", "/own") == ids[0]


def test_the_one_who_works_for_others_goes_away(clean: Daemon, tmp_path: Path) -> None:
    """Whoever waited for its step does it then."""
    folder = site(tmp_path / "context", "FROM busybox\nRUN echo now; sleep 1; echo done > /own\n")
    with building(clean, folder, *QUIET) as first:
        first.says("now\n")
        with building(clean, folder, *QUIET, "-t", "second") as second:
            time.sleep(0.3)
            first.interrupt()
            assert second.result() == 0, second.output
    assert run(clean, "second", "cat", "/own") == "done"


@pytest.mark.parametrize(("sharing", "seen"), [("shared", {"2"}), ("locked", {"1", "2"}), ("private", {"1"})])
def test_cache_mounts_of_builds_at_once(clean: Daemon, tmp_path: Path, sharing: str, seen: set[str]) -> None:
    """Two steps see each other in a shared one, wait for each other's end in a locked one, and have private ones for themselves."""
    mounts = f"--mount=type=cache,id=own-{sharing},sharing={sharing},target=/cache --mount=type=cache,id=meet-{sharing},target=/meet"

    def one(number: int) -> None:
        # In a locked one they never meet: each has some time in which the other could come.
        meet = "sleep 0.8" if sharing == "locked" else f"until [ -e /meet/{3 - number} ]; do sleep 0.05; done"
        text = f"RUN {mounts} touch /cache/{number} /meet/{number}; {meet}; ls /cache | wc -l > /seen"
        buildwork.build(clean, site(tmp_path / str(number), f"FROM busybox\n{text}\n"), *QUIET, "-t", f"cached:{number}")

    at_once(lambda: one(1), lambda: one(2))
    assert {run(clean, f"cached:{number}", "cat", "/seen") for number in (1, 2)} == seen
    kept = [one for one in buildwork.cache(clean) if one["Type"] == "exec.cachemount"]
    assert len(kept) == 1 + (2 if sharing == "private" else 1)


def test_locked_cache_mounts_in_any_order(clean: Daemon, tmp_path: Path) -> None:
    """Steps that want two of them, each in another order, do not wait for each other for ever; and one may be mounted twice."""
    mount = "--mount=type=cache,sharing=locked,id={id},target=/{place} "

    def one(number: int) -> None:
        ids = ("a", "b") if number % 2 else ("b", "a")
        mounts = "".join(mount.format(id=id, place=place) for id, place in zip(ids, ("x", "y"), strict=True))
        twice = mount.format(id="a", place="deep/er")
        folder = site(tmp_path / str(number), f"FROM busybox\nRUN {mounts}{twice}sleep 0.1; echo {number} > /number\n")
        buildwork.build(clean, folder, *QUIET, "-t", f"locked:{number}")

    at_once(*(lambda number=number: one(number) for number in range(6)))  # type: ignore[misc]
    assert [run(clean, f"locked:{number}", "cat", "/number") for number in range(6)] == [str(number) for number in range(6)]


def test_a_cache_mount_begins_whole(clean: Daemon, tmp_path: Path) -> None:
    """Who comes while it is filled from another stage waits for that."""
    mount = "--mount=type=cache,id=stock,from=stock,source=/stock,target=/cache"
    text = f"FROM busybox AS stock\nCOPY files /stock\nFROM busybox\nARG N\nRUN {mount} ls /cache | wc -l > /seen; echo $N\n"
    folder = site(tmp_path / "context", text, {f"files/{number}": b"x" for number in range(900)})
    buildwork.build(clean, folder, *QUIET, "--target", "stock")

    def one(number: int) -> None:
        buildwork.build(clean, folder, *QUIET, "-t", f"stock:{number}", "--build-arg", f"N={number}")

    at_once(lambda: one(1), lambda: one(2), lambda: one(3))
    assert {run(clean, f"stock:{number}", "cat", "/seen") for number in (1, 2, 3)} == {"900"}


def test_a_cache_mount_in_use_is_not_pruned(clean: Daemon, tmp_path: Path) -> None:
    folder = site(
        tmp_path / "context",
        f"FROM busybox\nRUN --mount=type=cache,sharing=locked,target=/cache echo 1 > /cache/1; echo now; {SLEEP}; cat /cache/1 > /seen\n",
    )
    with building(clean, folder, *QUIET, "-t", "held") as build:
        build.says("now\n")
        for _ in range(3):
            docker(clean, "builder", "prune", "-af")()
        assert [one["InUse"] for one in buildwork.cache(clean) if one["Type"] == "exec.cachemount"] == [True]
        wake(clean)
        assert build.result() == 0, build.output
    assert run(clean, "held", "cat", "/seen") == "1"


def test_one_context_by_many_at_once(clean: Daemon, tmp_path: Path) -> None:
    """Clients that send the same folder, which changes meanwhile: each image has what its client had."""
    folder = site(
        tmp_path / "context", "FROM busybox\nCOPY . /all\nRUN cat /all/number > /copy\n", {f"x/{n}": b"%d" % n for n in range(150)}
    )
    builds = []
    for number in range(6):
        (folder / "number").write_text(str(number))
        builds.append(buildwork.Build(clean, folder, *QUIET, "-t", f"many:{number}"))
        builds[-1].says("load build definition")
        wait(lambda one=builds[-1]: "COPY" in one.output or one.process.poll() is not None)
    for build in builds:
        assert build.result() == 0, build.output
    for number in range(6):
        assert run(clean, f"many:{number}", "cat", "/copy", "/all/number") == f"{number}{number}"


def test_one_tag_by_many(clean: Daemon, tmp_path: Path) -> None:
    """One of them has it in the end; the others are there without a name, and all of them are whole."""

    def one(number: int) -> None:
        folder = site(tmp_path / str(number), f"FROM busybox\nRUN echo {number} > /number\n")
        buildwork.build(clean, folder, *QUIET, "-t", "one:tag", way=WAYS[number % 2])

    at_once(*(lambda number=number: one(number) for number in range(4)))  # type: ignore[misc]
    images = [image for image in clean.api("GET", "/images/json").json() if "busybox:latest" not in (image["RepoTags"] or ())]
    assert len(images) == 4
    assert [image["RepoTags"] for image in images if image["RepoTags"]] == [["one:tag"]]
    assert sorted(run(clean, image["Id"], "cat", "/number") for image in images) == ["0", "1", "2", "3"]


def test_a_squashed_image_goes_with_its_layer(clean: Daemon, tmp_path: Path) -> None:
    folder = site(tmp_path / "context", "FROM busybox\nRUN echo one > /one\nRUN echo two > /two\n")
    before = len(list((clean.data_root / "snapshots").iterdir()))
    for number in range(3):
        archive = tar([entry("Dockerfile", data=(folder / "Dockerfile").read_bytes())])
        answer = clean.api("POST", f"/build?networkmode=none&squash=1&nocache=1&t=squashed:{number}", archive)
        assert b"Successfully tagged" in answer.body, answer.body[-500:]
        assert run(clean, f"squashed:{number}", "cat", "/one", "/two") == "one\ntwo"
    buildwork.forget(clean)
    wait(lambda: len(list((clean.data_root / "snapshots").iterdir())) <= before + 16)
    rows = json.loads(clean.api("GET", "/system/df").body)["LayersSize"]
    assert rows < 4 << 20
