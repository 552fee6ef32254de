"""Prune, disk usage, the check and the rules of `gc`, through a whole daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.lib import busybox
from tests.lib.daemon import Daemon, knarr_command
from tests.lib.images import docker_archive, entry, tar
from tests.lib.registries import DockerRegistry, digest_of, seed


@pytest.fixture
def own(own_daemon: Callable[..., Daemon]) -> Daemon:
    return own_daemon().start()


def load(daemon: Daemon, name: str, data: bytes = b"", *, labels: dict[str, str] | None = None) -> str:
    """An image of busybox and a file; its identifier."""
    layers = [busybox.layer(), tar([entry("data", data=data or name.encode())])]
    answer = daemon.api("POST", "/images/load?quiet=1", docker_archive(layers, [name], {"Labels": labels or {}}))
    assert answer.status == 200, answer.body
    assert b"error" not in answer.body, answer.body
    return str(daemon.api("GET", f"/images/{name}/json").json()["Id"])


def names(daemon: Daemon) -> list[str]:
    return sorted(tag for image in daemon.api("GET", "/images/json").json() for tag in image["RepoTags"] or [])


def prune(daemon: Daemon, what: str, **filters: Any) -> dict[str, Any]:
    answer = daemon.api("POST", f"/{what}/prune?filters={quote(json.dumps(filters))}")
    assert answer.status == 200, answer.body
    return dict(answer.json())


def check(daemon: Daemon, options: str = "") -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Findings and the summary of a system check."""
    answer = daemon.api("GET", f"/system/check?{options}")
    lines = [json.loads(line) for line in answer.body.splitlines()]
    return lines[:-1], lines[-1]["summary"]


def blobs(daemon: Daemon) -> set[str]:
    return set(os.listdir(daemon.data_root / "content/blobs/sha256"))


def layer_folder(daemon: Daemon, image: str) -> Path:
    """Where the topmost layer of an image lies."""
    return Path(daemon.api("GET", f"/images/{image}/json").json()["GraphDriver"]["Data"]["UpperDir"])


def runs(daemon: Daemon, image: str) -> str:
    return daemon.out("run", "--rm", "--network", "none", image, "cat", "/data")


# -- prune


def test_dangling_images_go_and_others_stay(own: Daemon) -> None:
    old = load(own, "app:1", b"one" * 1000)
    load(own, "app:1", b"two" * 1000)  # takes the name away
    before = blobs(own)
    answer = prune(own, "images")
    assert {"Deleted": old} in answer["ImagesDeleted"]
    assert answer["SpaceReclaimed"] > 0
    assert names(own) == ["app:1"]
    assert len(before - blobs(own)) == 3  # configuration, manifest, the topmost layer
    assert runs(own, "app:1") == "two" * 1000
    assert prune(own, "images") == {"ImagesDeleted": None, "SpaceReclaimed": 0}


def test_all_unused_images_but_those_of_containers(own: Daemon) -> None:
    load(own, "a:1")
    load(own, "b:1")
    own.api("POST", "/images/b:1/tag?repo=c&tag=2")
    own.docker("create", "--name", "user", "a:1", "true")
    answer = prune(own, "images", dangling=["false"])
    untagged = [one["Untagged"] for one in answer["ImagesDeleted"] if "Untagged" in one]
    assert untagged == ["b:1", "c:2"]
    assert names(own) == ["a:1"]


def test_filters(own: Daemon) -> None:
    load(own, "keep:1", labels={"keep": "yes"})
    load(own, "drop:1")
    assert prune(own, "images", dangling=["false"], until=["2023-01-01T00:00:00Z"])["ImagesDeleted"] is None
    assert prune(own, "images", dangling=["false"], **{"unused-for": ["1h"]})["ImagesDeleted"] is None
    prune(own, "images", dangling=["false"], **{"label!": ["keep=yes"]})
    assert names(own) == ["keep:1"]
    prune(own, "images", dangling=["false"], label=["keep"], **{"unused-for": ["0s"]})
    assert names(own) == []


@pytest.mark.parametrize(
    ("what", "filters", "message"),
    [
        ("images", {"foo": ["x"]}, "invalid filter 'foo'"),
        ("containers", {"dangling": ["true"]}, "invalid filter 'dangling'"),
        ("images", {"dangling": ["xx"]}, "invalid filter 'dangling=[xx]'"),
        ("images", {"until": ["1h", "2h"]}, "more than one until filter specified"),
        ("containers", {"until": ["xx"]}, "failed to parse value as time or duration"),
    ],
)
def test_bad_filters_in_dockers_words(daemon: Daemon, what: str, filters: dict[str, list[str]], message: str) -> None:
    answer = daemon.api("POST", f"/{what}/prune?filters={quote(json.dumps(filters))}")
    assert answer.status == 400
    assert message in answer.json()["message"]


def test_containers(daemon: Daemon) -> None:
    wrote = daemon.out("create", "--network", "none", "--label", "x=1", "busybox", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=3")
    daemon.docker("start", "-a", wrote)
    other = daemon.out("create", "--network", "none", "busybox", "true")
    running = daemon.out("run", "-d", "--network", "none", "busybox", "sleep", "600")
    assert prune(daemon, "containers", until=["1h"]) == {"ContainersDeleted": None, "SpaceReclaimed": 0}
    answer = prune(daemon, "containers", label=["x=1"])
    assert answer["ContainersDeleted"] == [wrote]
    assert answer["SpaceReclaimed"] >= 3 << 20
    answer = prune(daemon, "containers")
    assert answer["ContainersDeleted"] == [other]
    assert [one["Id"] for one in daemon.api("GET", "/containers/json?all=1").json()] == [running]
    daemon.remove_all()


def test_docker_system_prune_and_its_events(own: Daemon) -> None:
    load(own, "gone:1")
    own.docker("create", "--network", "none", "gone:1", "true")
    since = int(time.time())
    own.docker("container", "prune", "-f")
    shown = own.out("image", "prune", "-a", "-f")
    assert "untagged: gone:1" in shown
    assert "Total reclaimed space: " in shown
    lines = own.out("events", "--since", str(since - 1), "--until", str(time.time()), "--filter", "event=prune", "--format", "{{json .}}")
    found = {event["Type"]: event["Actor"]["Attributes"] for event in map(json.loads, lines.splitlines())}
    assert set(found) == {"container", "image"}
    assert int(found["image"]["reclaimed"]) > 0
    assert not blobs(own)
    assert own.api("GET", "/images/json").json() == []


# -- disk usage


def test_disk_usage_adds_up(own: Daemon) -> None:
    load(own, "a:1", b"a" * 500_000)
    load(own, "b:1", b"b" * 300_000)
    made = own.out("create", "--network", "none", "a:1", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=2")
    own.docker("start", "-a", made)
    df = own.api("GET", "/v1.45/system/df").json()
    assert list(df) == ["LayersSize", "Images", "Containers", "Volumes", "BuildCache"]
    images = {image["RepoTags"][0]: image for image in df["Images"]}
    shared = {image["SharedSize"] for image in images.values()}
    assert len(shared) == 1
    assert df["LayersSize"] == sum(image["Size"] for image in images.values()) - shared.pop()
    assert [images["a:1"]["Containers"], images["b:1"]["Containers"]] == [1, 0]
    (container,) = df["Containers"]
    assert container["SizeRw"] >= 2 << 20
    assert container["SizeRootFs"] == container["SizeRw"] + images["a:1"]["Size"]
    assert (df["Volumes"], df["BuildCache"]) == ([], [])
    one = own.api("GET", "/v1.45/system/df?type=container").json()
    assert (one["LayersSize"], one["Images"], len(one["Containers"]), one["Volumes"]) == (0, None, 1, None)
    bad = own.api("GET", "/v1.45/system/df?type=bogus")
    assert (bad.status, bad.json()["message"]) == (400, "unknown object type: bogus")
    shown = own.out("system", "df")
    assert "Images          2         1" in shown
    assert own.out("system", "df", "-v").count("300kB") == 1


# -- check


def test_a_sound_store_is_sound(own: Daemon) -> None:
    load(own, "app:1")
    findings, summary = check(own)
    assert findings == []
    assert summary["checked"] >= 8
    assert summary["bytes"] > 0
    everything, _ = check(own, "all=1")
    assert {one["kind"] for one in everything} == {"blob", "database", "image", "snapshot"}
    assert {one["state"] for one in everything} == {"ok"}


@pytest.mark.parametrize("repair", [True, False])
def test_empty_files_after_a_power_cut(own: Daemon, repair: bool) -> None:
    load(own, "app:1", b"content")
    folder = layer_folder(own, "app:1")
    os.truncate(folder / "data", 0)
    findings, summary = check(own, "quick=1" + "&repair=1" * repair)
    damaged = [one for one in findings if one["state"] == "damaged"]
    assert [(one["kind"], one["repaired"]) for one in damaged] == [("snapshot", repair)]
    assert "'data' has 0 bytes instead of 7" in damaged[0]["detail"]
    assert summary["damaged"] == 1
    if not repair:
        own.restart()  # the mark survives
        assert [one["state"] for one in check(own)[0]] == ["damaged"]
    assert runs(own, "app:1") == "content"  # whatever is damaged is unpacked again before a container is made of it
    left = [(one["state"], one["repaired"]) for one in check(own, "repair=1")[0]]
    assert left == ([] if repair else [("set aside", True)])
    assert check(own)[0] == []
    assert not list((own.data_root / "snapshots").glob("*.damaged"))


def test_a_container_that_runs_on_damaged_files_is_left_alone(own: Daemon) -> None:
    load(own, "app:1", b"content")
    made = own.out("run", "-d", "--network", "none", "app:1", "sleep", "600")
    (layer_folder(own, "app:1") / "data").unlink()
    findings, _ = check(own, "repair=1")
    name = own.out("inspect", "-f", "{{.Name}}", made).lstrip("/")
    assert [(one["state"], one["repaired"]) for one in findings] == [("damaged", True), ("set aside", False)]
    assert f"{name} run on the damaged files" in findings[0]["detail"]
    assert own.docker("exec", made, "cat", "/data", check=False).returncode == 1
    own.docker("restart", "-t", "0", made)
    assert own.out("exec", made, "cat", "/data") == "content"
    own.docker("rm", "-f", made)
    assert [(one["state"], one["repaired"]) for one in check(own, "repair=1")[0]] == [("set aside", True)]


def test_orphans_and_garbage(own: Daemon) -> None:
    load(own, "app:1")
    content = own.data_root / "content"
    (content / "blobs/sha256" / ("0" * 64)).write_bytes(b"")  # not even what its name says
    (content / "blobs/sha256/garbage").write_bytes(b"x")
    (content / "ingest/1-1-1").write_bytes(b"x")
    (content / "uploads").mkdir(exist_ok=True)
    (content / "uploads/lost").write_bytes(b"x")
    (own.data_root / "snapshots/stray/fs").mkdir(parents=True)
    found = {(one["kind"], one["state"]) for one in check(own)[0]}
    assert found == {("blob", "damaged"), ("blob", "orphan"), ("ingest", "orphan"), ("upload", "orphan"), ("snapshot", "orphan")}
    findings, summary = check(own, "repair=1")
    assert all(one["repaired"] for one in findings), findings
    assert {one["state"] for one in findings} == {"orphan", "set aside"}
    assert summary["damaged"] == 0
    assert check(own)[0] == []
    assert runs(own, "app:1") == "app:1"


def test_the_command(own: Daemon) -> None:
    load(own, "app:1", b"content")
    assert "No damage found" in knarr(own, "system", "check")[1]
    os.truncate(layer_folder(own, "app:1") / "data", 3)
    status, shown = knarr(own, "system", "check")
    assert status == 1
    assert "has 3 bytes instead of 7" in shown
    status, shown = knarr(own, "system", "check", "--repair")
    assert status == 0
    assert "No damage is left" in shown


def knarr(daemon: Daemon, *arguments: str) -> tuple[int, str]:
    result = subprocess.run([*knarr_command(), "-H", f"unix://{daemon.socket}", *arguments], capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as running:
        yield running


def test_a_pull_repairs(own: Daemon, registry: DockerRegistry) -> None:
    seeded = seed(registry, "damaged", "1", files=[{"data": b"content" * 1000}])
    name = f"{registry.host}/damaged:1"
    own.docker("pull", "-q", name)
    blob = own.data_root / "content/blobs/sha256" / digest_of(seeded.layers[0]).removeprefix("sha256:")
    blob.write_bytes(bytes(blob.stat().st_size))
    os.truncate(layer_folder(own, name) / "data", 0)
    findings, _ = check(own, "repair=1")
    assert {(one["kind"], one["state"], one["repaired"]) for one in findings} >= {("blob", "damaged", False)}
    own.docker("pull", "-q", name)
    assert (layer_folder(own, name) / "data").read_bytes() == b"content" * 1000
    findings, summary = check(own, "repair=1")
    assert {one["state"] for one in findings} <= {"set aside"}
    assert summary["damaged"] == 0
    assert check(own)[0] == []


def test_what_an_update_leaves_is_dangling(own: Daemon, registry: DockerRegistry) -> None:
    """A pull that moves a tag leaves the old image with its digest alone. As dockerd 26.1 lists and prunes it."""
    name = f"{registry.host}/updated"
    for content in (b"old", b"new"):
        seed(registry, "updated", "1", files=[{"data": content}])
        own.docker("pull", "-q", f"{name}:1")
    shown = [sorted(own.out("images", "--filter", f"dangling={yes}", "--format", "{{.Tag}}").split()) for yes in ("true", "false")]
    assert shown == [["<none>"], ["1", "<none>"]]
    removed = prune(own, "images")["ImagesDeleted"]
    assert removed[0]["Untagged"].startswith(f"{name}@sha256:")
    assert [list(one) for one in removed] == [["Untagged"], ["Deleted"], ["Deleted"]]
    assert names(own) == [f"{name}:1"]


def test_an_image_whose_layer_is_gone_for_good(own: Daemon) -> None:
    load(own, "app:1")
    layer_blobs = own.api("GET", "/images/app:1/json").json()
    for path in (own.data_root / "content/blobs/sha256").iterdir():
        if path.stat().st_size > 100_000:
            path.unlink()  # busybox's layer
    findings, _ = check(own)
    assert [(one["kind"], one["state"]) for one in findings] == [("image", "missing")]
    assert "it runs" in findings[0]["detail"]
    assert runs(own, "app:1") == "app:1"
    shutil.rmtree(Path(layer_blobs["GraphDriver"]["Data"]["LowerDir"].split(":")[-1]).parent)
    own.restart()
    findings, _ = check(own, "repair=1")
    assert any(one["kind"] == "image" and one["repaired"] and "dropped" in one["detail"] for one in findings), findings
    assert names(own) == []
    assert check(own)[0] == []


# -- starting with damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "database of zeros": lambda data: [(data / f"meta.db{end}").write_bytes(bytes(8192)) for end in ("", "-wal")],
    "database cut off": lambda data: os.truncate(data / "meta.db", 5000),
    "no database": lambda data: [path.unlink() for path in data.glob("meta.db*")],
    "snapshots gone": lambda data: shutil.rmtree(data / "snapshots"),
    "ingest is a file": lambda data: (shutil.rmtree(data / "content/ingest"), (data / "content/ingest").write_bytes(b"")),
    "containers is a file": lambda data: (shutil.rmtree(data / "containers"), (data / "containers").write_bytes(b"")),
    "blobs is a file": lambda data: (shutil.rmtree(data / "content/blobs"), (data / "content/blobs").write_bytes(b"")),
    "mirror is garbage": lambda data: (data / "content/images.json").write_bytes(b"\0" * 100),
    "garbage": lambda data: [
        (
            (data / folder / "garbage").write_bytes(b"x"),
            (data / folder / "folder/deep").mkdir(parents=True),
            (data / folder / "1.x").symlink_to("/"),
        )
        for folder in ("", "content", "content/blobs", "content/blobs/sha256", "content/ingest", "snapshots", "containers")
    ],
    "engine-id is garbage": lambda data: (data / "engine-id").write_bytes(b"\xff\0"),
}  # fmt: skip
LOST = ("blobs is a file",)


@pytest.mark.parametrize("name", DAMAGE)
def test_the_daemon_always_starts(own: Daemon, name: str) -> None:
    load(own, "app:1", b"content")
    own.stop()
    DAMAGE[name](own.data_root)
    own.start()
    if name not in LOST:
        assert runs(own, "app:1") == "content"
    check(own, "repair=1")
    findings = [one for one in check(own)[0] if one["kind"] != "database"]
    assert findings == [] or name in LOST, findings
    load(own, "app:2", b"again")
    assert runs(own, "app:2") == "again"


def test_the_daemon_starts_on_a_full_disk(own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "small", str(folder)], check=True)
    try:
        daemon = own_daemon("--data-root", str(folder / "data"))
        daemon.data_root = folder / "data"
        daemon.start()
        load(daemon, "app:1", b"content")
        load(daemon, "app:2", os.urandom(1 << 20))
        daemon.kill()
        with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        daemon.start()
        assert names(daemon) == ["app:1", "app:2"]
        # What makes room again must work.
        assert daemon.api("DELETE", "/images/app:2").status == 200
        assert names(daemon) == ["app:1"]
        # The reserve is spent; a start finds room in what can be fetched again.
        daemon.kill()
        (folder / "data/content/ingest" / ("sha256-" + "1" * 64)).write_bytes(b"")
        (folder / "filler").rename(folder / "data/content/ingest/1-filler")
        with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        daemon.start()
        assert names(daemon) == ["app:1"]
        (folder / "filler").unlink()
        assert runs(daemon, "app:1") == "content"
        daemon.remove_all()
        daemon.stop()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_after_the_host_stopped_recent_layers_are_checked(own: Daemon) -> None:
    load(own, "app:1", b"content")
    wait_for(lambda: (own.data_root / "running").exists())
    own.kill()
    (own.data_root / "running").write_text("another boot\n")
    folder = next(path for path in (own.data_root / "snapshots").glob("*/fs/data"))
    os.truncate(folder, 0)
    own.start()
    wait_for(lambda: text(folder) == "content")
    wait_for(lambda: "another" not in text(own.data_root / "running") != "")
    own.stop()
    assert not (own.data_root / "running").exists()


def text(path: Path) -> str:
    """What is in a file, "" while it is not there."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


# -- the rules of an edge host


def test_keep_the_newest_tags(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon("--gc-keep", "2", "--gc-pin", "docker.io/library/pinned").start()
    for number in range(4):
        load(daemon, f"pinned:{number}")
    load(daemon, "labelled:0", labels={"knarr.pin": "true"})
    for number in range(1, 4):
        load(daemon, f"labelled:{number}")
    for number in range(4):
        load(daemon, f"app:{number}")
        if number == 0:
            daemon.docker("create", "--network", "none", "app:0", "true")
    wait_for(lambda: "app:1" not in names(daemon))
    wait_for(lambda: "labelled:1" not in names(daemon))
    assert names(daemon) == ["app:0", "app:2", "app:3", "labelled:0", "labelled:2", "labelled:3", *(f"pinned:{n}" for n in range(4))]
    wait_for(lambda: "image app:1 removed: more than 2 newer tags" in daemon.log.read_text())
    wait_for(lambda: check(daemon)[0] == [])


def test_a_dry_run_removes_nothing(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon("--gc-unused-for", "10m").start()
    load(daemon, "app:1")
    daemon.stop()
    daemon.options = ("--gc-unused-for", "1ms")
    daemon.start()
    answer = daemon.api("POST", "/system/gc?dry-run=1").json()
    assert answer["DryRun"] is True
    assert [one["Reason"] for one in answer["Removed"]] == ["unused for 0.0 days"]
    assert answer["SpaceReclaimed"] > 1_000_000
    assert names(daemon) == ["app:1"]
    answer = daemon.api("POST", "/system/gc").json()
    assert len(answer["Removed"]) == 1
    assert names(daemon) == []
    assert not blobs(daemon)


def test_a_full_disk_loses_what_was_used_least_recently(own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "small", str(folder)], check=True)
    try:
        daemon = own_daemon("--data-root", str(folder / "data"), "--gc-high-watermark", "60", "--gc-low-watermark", "55")
        daemon.data_root = folder / "data"
        daemon.start()
        for number in range(3):
            load(daemon, f"app:{number}", os.urandom(3 << 20))
        daemon.docker("run", "--rm", "--network", "none", "app:0", "true")  # the oldest, used last
        time.sleep(1.2)  # a run soon after they came in must not find anything to do
        assert len(names(daemon)) == 3
        load(daemon, "app:3", os.urandom(6 << 20))
        wait_for(lambda: len(names(daemon)) < 4)
        answer = daemon.api("POST", "/system/gc").json()
        assert answer["Removed"] == []
        assert names(daemon) == ["app:0", "app:2", "app:3"]
        daemon.stop()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
