"""The image service: archives in, names, deletion, recovery. Real files, no daemon."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import zstandard

from engine.errors import Conflict, InvalidParameter, KnarrError, NotFound
from engine.service.archives import Archives
from engine.service.images import Images
from engine.service.layers import Layers
from engine.service.pull import Pulls
from engine.spec.platform import parse as platform
from engine.spec.reference import parse as reference_of
from engine.store.images import ImageRecord
from engine.store.unpack import Limits
from engine.wire import jsonstream
from tests.lib.images import ARCHITECTURE, Layout, busybox_layer, docker_archive, entry, image_config, tar
from tests.lib.stores import Stores, open_stores

HOST = platform(f"linux/{ARCHITECTURE}")


class Box:
    """Images over the stores of one data root."""

    def __init__(self, stores: Stores, **options: Any) -> None:
        self.stores = stores
        self.users: list[Any] = []
        self.images = Images(
            stores.layout,
            stores.db,
            stores.content,
            stores.snapshots,
            users=lambda id: self.users,
            host=options.pop("host", HOST),
            **options,
        )

    @asynccontextmanager
    async def archives(self) -> AsyncIterator[Archives]:
        """Archives over these images, with a nursery of their own."""
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            layers = Layers(self.stores.content, self.stores.snapshots, nursery, limits=self.images.limits)
            try:
                yield Archives(self.images, layers, nursery)
            except Exception as error:  # raised below, so that it does not arrive wrapped in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def load(self, data: bytes, **options: Any) -> list[jsonstream.Message]:
        async def run() -> list[jsonstream.Message]:
            decoder = jsonstream.Decoder()
            async with self.archives() as archives:
                return [message async for line in archives.load(chunks(data), **options) for message in decoder.feed(line)]

        return trio.run(run)

    def do(self, call: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        return trio.run(lambda: call(*args))

    def recover(self) -> list[str]:
        async def run() -> list[str]:
            async with self.archives() as archives:
                return await archives.recover()

        return trio.run(run)

    def import_(self, data: bytes, *args: Any) -> str:
        async def run() -> list[bytes]:
            async with self.archives() as archives:
                return [line async for line in archives.import_(chunks(data), *args)]

        return str(json.loads(trio.run(run)[-1])["status"])

    def unpack(self, image: ImageRecord) -> ImageRecord:
        """Make an image ready to run that is here in blobs alone, as making a container does."""

        async def run() -> None:
            async with self.archives() as archives:
                await Pulls(self.images, None, archives.layers).unpack(image)  # type: ignore[arg-type]

        trio.run(run)
        return self.images.get(image.id)

    def left(self) -> dict[str, list[str]]:
        """What is on the disk, by kind."""
        layout = self.stores.layout
        return {
            "snapshots": sorted(name for name in os.listdir(layout.snapshots) if name.isdecimal()),
            "ingest": os.listdir(layout.ingest),
            "blobs": sorted(digest for digest, _ in self.stores.content.list()),
        }

    @property
    def empty(self) -> bool:
        return not any(self.left().values())

    def text(self, image: ImageRecord, name: str) -> str:
        for folder in self.images.layer_folders(image):
            if os.path.exists(f"{folder}/{name}"):
                return Path(folder, name).read_text()
        raise FileNotFoundError(name)


async def chunks(data: bytes, step: int = 60_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


@contextmanager
def opened(root: Path, **options: Any) -> Iterator[Box]:
    with open_stores(root) as stores:
        yield Box(stores, **options)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path / "root") as made:
        yield made


BASE = tar([entry("etc", tarfile.DIRTYPE), entry("etc/name", data=b"base"), entry("etc/old", data=b"x"), entry("big", data=b"y" * 700_000)])
TOP = tar([entry("etc/name", data=b"top"), entry("etc/.wh.old")])


def compressed(data: bytes, how: str) -> bytes:
    return {"plain": data, "gzip": gzip.compress(data, 1), "zstd": zstandard.compress(data)}[how]


# -- docker-archive


@pytest.mark.parametrize("outer", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("layers_compressed", [False, True])
def test_docker_archive(box: Box, outer: str, layers_compressed: bool) -> None:
    data = docker_archive([BASE, TOP], ["app:v1", "localhost:5000/app:v2"], {"Labels": {"a": "b"}}, compress=layers_compressed)
    messages = box.load(compressed(data, outer))
    assert [message.stream for message in messages if message.stream] == ["Loaded image: app:v1\n", "Loaded image: localhost:5000/app:v2\n"]
    assert {message.status for message in messages if message.status} <= {"Loading layer", "Reading archive"}
    image = box.images.get("app:v1")
    assert image.repo_tags == ("app:v1", "localhost:5000/app:v2")
    assert image.id == "sha256:" + hashlib.sha256(image.raw).hexdigest()
    assert image.diff_ids == tuple("sha256:" + hashlib.sha256(layer).hexdigest() for layer in (BASE, TOP))
    assert image.size == len("base") + 1 + 700_000 + len("top")
    assert image.config.defaults.labels == {"a": "b"}
    assert box.text(image, "etc/name") == "top"
    assert {layer.media_type for layer in image.layers} == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    for layer in image.layers:
        packed = box.stores.content.read(layer.digest)
        assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == layer.diff_id[7:]
    manifest = json.loads(box.stores.content.read(image.manifest))
    assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in image.layers]
    assert manifest["config"]["digest"] == image.id
    assert box.left()["ingest"] == []
    assert box.images.layer_sizes(image) == (700_005, 3)


def test_loading_again_changes_nothing(box: Box) -> None:
    data = docker_archive([BASE, TOP], ["app:v1"])
    box.load(data)
    before = box.left()
    assert [m.stream for m in box.load(data, quiet=True)] == ["Loaded image: app:v1\n"]
    assert box.left() == before
    assert box.images.count() == 1


def test_a_name_that_moves(box: Box) -> None:
    box.load(docker_archive([BASE], ["app"]))
    old = box.images.get("app").id
    messages = box.load(docker_archive([BASE, TOP], ["app"]), quiet=True)
    assert messages[0].stream == f"The image app:latest already exists, renaming the old one with ID {old} to empty string\n"
    assert box.images.get(old).repo_tags == ()
    assert box.images.get("app").id != old


def test_several_images_without_names_and_with_links(box: Box) -> None:
    """Old `docker save` linked equal layers instead of storing them twice."""
    configs = [image_config(["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]) for layers in ((BASE,), (BASE, TOP))]
    names = [hashlib.sha256(raw).hexdigest() + ".json" for raw in configs]
    manifest = [{"Config": names[0], "RepoTags": None, "Layers": ["a/layer.tar"]},
                {"Config": names[1], "RepoTags": ["two"], "Layers": ["b/layer.tar", "c/layer.tar"]}]  # fmt: skip
    archive = tar([
        entry("./a", tarfile.DIRTYPE), entry("./a/VERSION", data=b"1.0"), entry("./a/layer.tar", data=BASE),
        entry("./b/layer.tar", tarfile.SYMTYPE, linkname="../a/layer.tar"), entry("c/layer.tar", data=TOP),
        *(entry(name, data=raw) for name, raw in zip(names, configs, strict=True)),
        entry("repositories", data=b"{}"), entry("manifest.json", data=json.dumps(manifest).encode()),
    ])  # fmt: skip
    streams = [message.stream for message in box.load(archive, quiet=True)]
    assert streams == [f"Loaded image ID: sha256:{names[0][:-5]}\n", "Loaded image: two:latest\n"]
    assert box.images.get("two").chain_ids[0] == box.images.get(names[0][:12]).chain_id


def test_bzip2_and_xz_layers_become_gzip(box: Box) -> None:
    import bz2
    import lzma

    for name, body in (("bz", bz2.compress(BASE)), ("xz", lzma.compress(BASE))):
        raw = image_config(["sha256:" + hashlib.sha256(BASE).hexdigest()], {"Labels": {"n": name}})
        manifest = [{"Config": "c.json", "RepoTags": [name], "Layers": ["l"]}]
        box.load(tar([entry("c.json", data=raw), entry("l", data=body), entry("manifest.json", data=json.dumps(manifest).encode())]))
        assert box.images.get(name).layers[0].media_type.endswith("+gzip")


def test_an_image_without_layers(box: Box, tmp_path: Path) -> None:
    box.load(docker_archive([], ["nothing"]))
    image = box.images.get("nothing")
    assert (image.chain_id, image.size) == (None, 0)
    assert box.stores.snapshots.prepare("c", image.chain_id).type == "overlay"


# -- OCI layouts


def skopeo(tmp_path: Path, archive: bytes, target: str, *options: str) -> None:
    (tmp_path / "in.tar").write_bytes(archive)
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", *options, f"docker-archive:{tmp_path}/in.tar", target], check=True)


@pytest.mark.parametrize("format", ["gzip", "zstd"])
@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_oci_layout_of_skopeo(box: Box, tmp_path: Path, format: str, transport: str) -> None:
    options = ("--dest-compress", "--dest-compress-format", format) if transport == "oci" else ()
    skopeo(tmp_path, docker_archive([BASE, TOP], ["app:v1"]), f"{transport}:{tmp_path}/out:app:v1", *options)
    data = (tmp_path / "out").read_bytes() if transport == "oci-archive" else tar_of(tmp_path / "out")
    assert [message.stream for message in box.load(data, quiet=True)] == ["Loaded image: app:v1\n"]
    image = box.images.get("app:v1")
    assert box.text(image, "etc/name") == "top"
    if transport == "oci":
        assert {layer.media_type for layer in image.layers} == {f"application/vnd.oci.image.layer.v1.tar+{format}"}
        index = json.loads((tmp_path / "out" / "index.json").read_bytes())
        assert image.manifest == index["manifests"][0]["digest"]
    assert box.left()["ingest"] == []


def test_plain_layers_of_a_layout_keep_their_digest(box: Box) -> None:
    layout = Layout()
    manifest = layout.image([BASE])
    box.load(layout.archive([{**manifest, "annotations": {"org.opencontainers.image.ref.name": "app:v1"}}]))
    assert box.images.get("app:v1").layers[0].digest == "sha256:" + hashlib.sha256(BASE).hexdigest()


def test_a_layout_of_umoci(box: Box, tmp_path: Path) -> None:
    out = tmp_path / "layout"
    subprocess.run(["umoci", "init", "--layout", out], check=True)
    subprocess.run(["umoci", "new", "--image", f"{out}:v1"], check=True)
    (tmp_path / "file").write_text("hello")
    subprocess.run(["umoci", "insert", "--image", f"{out}:v1", tmp_path / "file", "/file"], check=True)
    subprocess.run(["umoci", "config", "--image", f"{out}:v1", "--config.cmd", "/bin/true"], check=True)
    (message,) = box.load(tar_of(out), quiet=True)
    image = box.images.get(message.stream.removeprefix("Loaded image ID: ").strip())
    assert image.repo_tags == ()
    assert image.config.defaults.cmd == ("/bin/true",)
    assert box.text(image, "file") == "hello"


def tar_of(folder: Path) -> bytes:
    return subprocess.run(["tar", "-C", folder, "-cf", "-", "."], check=True, capture_output=True).stdout


def multi() -> bytes:
    layout = Layout()
    made = [layout.image([tar([entry("arch", data=f"{a}{v}".encode())])], a, v) for a, v in (
        ("amd64", ""), ("arm64", "v8"), ("arm", "v6"), ("arm", "v7"), ("386", ""))]  # fmt: skip
    unknown = layout.blob(b"{}", "application/vnd.oci.image.manifest.v1+json", platform={"os": "unknown", "architecture": "unknown"})
    nested = layout.index([unknown, *made])
    return layout.archive([{**nested, "annotations": {"io.containerd.image.name": "docker.io/library/multi:1"}}])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("linux/amd64", "amd64"), ("linux/arm64", "arm64v8"), ("linux/arm/v6", "armv6"), ("linux/arm/v7", "armv7"), ("linux/386", "386")],
)
def test_the_right_platform_of_an_index(tmp_path: Path, wanted: str, found: str) -> None:
    with opened(tmp_path, host=platform(wanted)) as box:
        box.load(multi(), quiet=True)
        assert box.text(box.images.get("multi:1"), "arch") == found
        image = box.images.get("multi:1")
        assert len(box.left()["snapshots"]) == 1, "the others are unpacked when they are first used"
        reference = reference_of("multi:1")
        variants = box.images.variants(reference)
        assert [f"{one.architecture}{one.variant}" for one in variants] == ["amd64", "arm64v8", "armv6", "armv7", "386"]
        assert len(box.images.list()) == 1, "the others are part of what the name stands for"
        assert len(box.left()["blobs"]) == 5 * 3 + 2, "with the index, and what is beside the images"
        for other in variants:
            assert box.text(box.unpack(other), "arch") == f"{other.architecture}{other.variant}"
        box.do(box.images.delete, "multi:1")
        assert box.empty
        assert image.repo_tags == ("multi:1",)


def test_a_platform_that_is_not_there(box: Box) -> None:
    with pytest.raises(NotFound, match="no image for platform linux/s390x; the archive has: linux/386, linux/amd64, linux/arm/v6"):
        box.load(multi(), platform=["linux/s390x"])
    assert box.empty
    box.load(multi(), platform=["linux/arm64"])
    assert box.images.get("multi:1").architecture == "arm64"


# -- what is refused


def broken() -> dict[str, tuple[bytes, str]]:
    good = docker_archive([BASE], ["app"])
    config = image_config(["sha256:" + "0" * 64])
    document = [{"Config": "c.json", "RepoTags": ["app"], "Layers": ["l.tar"]}]

    def archive(**members: bytes) -> bytes:
        return tar([entry(name.replace("__", "."), data=data) for name, data in members.items()])

    layout = Layout()
    lying = layout.image([BASE])
    layout.blobs[lying["digest"]] = b'{"x": 1}'
    deep: dict[str, Any] = Layout().image([BASE])
    nest = Layout()
    for _ in range(12):
        deep = nest.index([deep])
    return {
        "garbage": (os.urandom(5000), "wrong checksum|damaged"),
        "empty": (b"", "unrecognized image format"),
        "a root file system": (BASE, "unrecognized image format.*import"),
        "cut off": (good[: len(good) // 2], "cut off"),
        "cut off gzip": (gzip.compress(good)[:-20], "cut off|damaged"),
        "not json": (archive(manifest__json=b"hello"), "manifest.json"),
        "wrong types": (archive(manifest__json=b'[{"Config": 1}]'), "manifest.json"),
        "no config": (archive(manifest__json=json.dumps(document).encode()), "'c.json' is not in the archive"),
        "outside": (archive(manifest__json=b'[{"Config": "../../../../etc/passwd", "Layers": []}]'), "is not in the archive"),
        "no layer": (archive(manifest__json=json.dumps(document).encode(), c__json=config), "'l.tar' is not in the archive"),
        "other digest": (archive(manifest__json=json.dumps(document).encode(), c__json=config, l__tar=BASE), "unpacks to sha256:"),
        "bad name": (docker_archive([BASE], ["Bad:x"]), "must be lowercase"),
        "too few layers": (archive(manifest__json=b'[{"Config": "c.json", "Layers": []}]', c__json=config), "layers length mismatch"),
        "layer no tar": (docker_archive([os.urandom(3000)], ["app"]), "no tar archive|checksum"),
        "hostile layer": (docker_archive([tar([entry("../../x", data=b"1")])], ["app"]), "entry '../../x'"),
        "hostile second layer": (docker_archive([BASE, tar([entry("a/../../x", data=b"1")])], ["app"]), "entry 'a/../../x'"),
        "lying blob": (layout.archive([lying]), "has the content of"),
        "missing blob": (Layout().archive([Layout().image([BASE])]), "is not in the archive"),
        "deep index": (nest.archive([deep]), "nested too deeply"),
        "empty index": (Layout().archive([]), "no image in the archive"),
    }  # fmt: skip


@pytest.mark.parametrize("case", sorted(broken()))
def test_broken_archives_leave_nothing(box: Box, case: str) -> None:
    data, message = broken()[case]
    with pytest.raises(KnarrError, match=message):
        box.load(data)
    assert box.images.count() == 0
    left = box.left()
    if case == "hostile second layer":  # the first one was good; it goes when nothing refers to it
        box.do(box.images.sweep)
        left = box.left()
    assert not any(left.values())


def test_a_bomb(tmp_path: Path) -> None:
    """Two hundred megabytes of zeros in two hundred kB."""
    raw = io.BytesIO()
    with gzip.open(raw, "wb", 9) as packed:
        info, _ = entry("zeros", data=b"")
        info.size = 200_000_000
        packed.write(info.tobuf())
        for _ in range(200):
            packed.write(bytes(1_000_000))
        packed.write(bytes(2048))
    data = raw.getvalue()
    diff_id = "sha256:" + hashlib.sha256(gzip.decompress(data)).hexdigest()
    manifest = [{"Config": "c.json", "RepoTags": ["bomb"], "Layers": ["l"]}]
    archive = tar(
        [entry("c.json", data=image_config([diff_id])), entry("l", data=data), entry("manifest.json", data=json.dumps(manifest).encode())]
    )
    for limits, message in (
        (Limits(ratio=100, ratio_from=10_000_000), "more than 100 to one"),
        (Limits(bytes=10_000_000), "entry 'zeros'"),
    ):
        with opened(tmp_path / message[-6:], limits=limits) as box:
            with pytest.raises(InvalidParameter, match=message):
                box.load(archive)
            assert box.empty


# -- names


class User:
    def __init__(self, id: str, running: bool) -> None:
        self.id = id
        self.state = type("State", (), {"running": running})()


def test_look_ups(box: Box) -> None:
    box.load(docker_archive([BASE], ["app:v1", "app"]))
    image = box.images.get("app")
    for name in ("app:v1", "docker.io/library/app", image.id, image.id[7:], image.id[7:19], image.id[:20]):
        assert box.images.get(name) == image
    for name, shown in (
        ("nope", "nope:latest"),
        ("nope:x", "nope:x"),
        ("0" * 64, "0" * 64),
        ("sha256:12", "sha256:12"),
        ("q/w", "q/w:latest"),
    ):
        with pytest.raises(NotFound) as caught:
            box.images.get(name)
        assert str(caught.value) == f"No such image: {shown}"
    for name in ("", "A", "a b"):
        with pytest.raises(InvalidParameter, match="invalid reference format"):
            box.images.get(name)


def test_tag(box: Box) -> None:
    box.load(docker_archive([BASE], ["app"]))
    box.do(box.images.tag, "app", "host:5000/x/y", "v2")
    box.do(box.images.tag, box.images.get("app").id, "other")
    assert (
        box.images.get("app").repo_tags == ("app:latest", "other:latest", "host:5000/x/y:v2") or len(box.images.get("app").repo_tags) == 3
    )
    assert box.images.get("app").tagged > 0
    with pytest.raises(NotFound):
        box.do(box.images.tag, "nope", "x")
    with pytest.raises(InvalidParameter):
        box.do(box.images.tag, "app", "Upper")
    with pytest.raises(InvalidParameter):
        box.do(box.images.tag, "app", "x", "a b")


def test_delete_the_last_name(box: Box) -> None:
    box.load(docker_archive([BASE, TOP], ["app", "app:2"]))
    image = box.images.get("app")
    assert box.do(box.images.delete, "app:2") == [{"Untagged": "app:2"}]
    assert not box.empty
    assert box.do(box.images.delete, "app") == [
        {"Untagged": "app:latest"}, {"Deleted": image.id}, {"Deleted": image.chain_ids[1]}, {"Deleted": image.chain_ids[0]},
    ]  # fmt: skip
    assert box.empty
    with pytest.raises(NotFound, match="No such image: app:latest"):
        box.do(box.images.delete, "app")


def test_shared_layers_stay(box: Box) -> None:
    box.load(docker_archive([BASE, TOP], ["two"]))
    box.load(docker_archive([BASE], ["one"]))
    deleted = box.do(box.images.delete, "two")
    assert len(deleted) == 3
    assert box.text(box.images.get("one"), "etc/name") == "base"
    assert len(box.left()["snapshots"]) == 1
    box.do(box.images.delete, "one")
    assert box.empty


def test_delete_by_identifier(box: Box) -> None:
    box.load(docker_archive([BASE], ["app", "app:2"]))
    image = box.images.get("app")
    with pytest.raises(Conflict) as caught:
        box.do(box.images.delete, image.id)
    assert (
        str(caught.value) == f"conflict: unable to delete {image.id[7:19]} (must be forced) - image is referenced in multiple repositories"
    )
    assert len(box.do(box.images.delete, image.id[7:19], True)) == 4
    assert box.empty


def test_images_in_use(box: Box) -> None:
    box.load(docker_archive([BASE], ["app"]))
    image = box.images.get("app")
    short, container = image.id[7:19], "c" * 64
    box.stores.snapshots.prepare(container, image.chain_id)
    box.users = [User(container, True)]
    with pytest.raises(Conflict) as caught:
        box.do(box.images.delete, "app")
    assert str(caught.value) == (
        'conflict: unable to remove repository reference "app" (must force) - '
        f"container {container[:12]} is using its referenced image {short}"
    )
    with pytest.raises(Conflict) as caught:
        box.do(box.images.delete, short, True)
    assert str(caught.value) == (
        f"conflict: unable to delete {short} (cannot be forced) - image is being used by running container {container[:12]}"
    )
    box.users = [User(container, False)]
    with pytest.raises(Conflict, match="must be forced\\) - image is being used by stopped container"):
        box.do(box.images.delete, short)
    assert box.do(box.images.delete, "app", True) == [{"Untagged": "app:latest"}, {"Deleted": image.id}]
    assert box.stores.snapshots.mount(container)  # the layers stay while the container does
    box.stores.snapshots.delete_files(box.stores.snapshots.forget(container))
    box.do(box.images.collect)
    assert box.empty


def test_list_and_filters(box: Box) -> None:
    box.load(docker_archive([BASE], ["app:1", "host:5000/x:2"], {"Labels": {"k": "v"}}))
    box.load(docker_archive([TOP], [], {}))

    def names(**filters: list[str]) -> list[tuple[str, ...]]:
        return [image.repo_tags for image in box.images.list(filters)]

    assert len(box.images.list()) == 2
    assert names(dangling=["true"]) == [()]
    assert len(names(dangling=["false"])) == 1
    assert len(names(label=["k"])) == len(names(label=["k=v"])) == 1
    assert names(label=["k=w"]) == []
    assert names(**{"label!": ["k"]}) == [()]
    assert len(names(reference=["app"])) == len(names(reference=["app:*"])) == len(names(reference=["host:5000/*"])) == 1
    assert names(reference=["x"]) == []
    assert names(before=["app:1"]) == []
    assert len(names(until=["1h"])) == 2
    with pytest.raises(InvalidParameter):
        names(dangling=["maybe"])
    with pytest.raises(NotFound):
        names(since=["nope"])


# -- import


def test_import(box: Box) -> None:
    id = box.import_(zstandard.compress(BASE), "root", "v1", "by hand", ["CMD /bin/x", "ENV A=b"])
    image = box.images.get("root:v1")
    assert image.id == id
    assert image.config.defaults.cmd == ("/bin/sh", "-c", "/bin/x")
    assert (image.config.comment, image.architecture, len(image.history)) == ("by hand", ARCHITECTURE, 1)
    assert abs(time.time() - datetime.fromisoformat(image.created).timestamp()) < 60
    assert box.images.get(box.import_(BASE)).repo_tags == ()
    assert box.images.get(box.import_(BASE, "arm", "", "", [], "linux/arm/v6")).variant == "v6"
    for data, args, message in (
        (b"", (), "empty"), (b"garbage" * 1000, (), "checksum"), (BASE, ("Bad",), "lowercase"),
        (BASE, ("x", "", "", ["RUN x"]), "not a valid change"), (BASE[:5000], (), "cut off"),
        (BASE, ("x", "", "", [], "a/b/c/d"), "platform"), (gzip.compress(BASE)[:-20], (), "cut off|damaged"),
    ):  # fmt: skip
        with pytest.raises(InvalidParameter, match=message):
            box.import_(data, *args)
    assert box.left()["ingest"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("megabytes", [2, 7])
def test_a_full_disk_is_the_hosts_trouble_and_leaves_nothing(tmp_path: Path, megabytes: int) -> None:
    """Full while the archive is read, and full while the layer is unpacked."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", tmp_path], check=True)
    try:
        with opened(tmp_path) as box:
            with pytest.raises(KnarrError, match=r"No space left on device.*free some space") as caught:
                box.load(docker_archive([tar([entry("big", data=random.Random(1).randbytes(4_000_000))])], ["app"]))
            assert caught.value.status == 500
            assert box.empty
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# -- crashes


def test_the_busybox_archive_runs(box: Box, tmp_path: Path) -> None:
    box.load(docker_archive([busybox_layer()], ["busybox"]))
    folder = box.images.layer_folders(box.images.get("busybox"))[0]
    assert subprocess.run(["chroot", folder, "/bin/echo", "hi"], check=True, capture_output=True).stdout == b"hi\n"


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """SIGKILL at random moments of loads and deletes: the next start finds whole images only, and cleans up the rest."""
    chance = random.Random(7)
    archives = [docker_archive([BASE, TOP], ["app:1"]), docker_archive([BASE, tar([entry("other", data=b"z" * 400_000)])], ["app:2"])]
    for _ in range(15):
        pid = os.fork()
        if pid == 0:
            try:
                work(tmp_path, archives)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.05, 0.35))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with opened(tmp_path) as box:
            box.do(box.images.sweep)
            box.stores.snapshots.sweep()
            for image in box.images.list():
                assert box.text(image, "etc/name") in ("top", "base")
                assert all(box.stores.content.verify(layer.digest) for layer in image.layers)
            layers = {chain for image in box.images.list() for chain in image.chain_ids}
            assert len(box.left()["snapshots"]) == len(layers)
            assert box.left()["ingest"] == []


def work(root: Path, archives: list[bytes]) -> None:
    with opened(root) as box:
        box.do(box.images.sweep)
        while True:
            for archive in archives:
                box.load(archive)
            for name in ("app:1", "app:2"):
                box.do(box.images.delete, name)


def test_cancelled_loads_leave_nothing(box: Box) -> None:
    async def slow(data: bytes) -> AsyncIterator[bytes]:
        async for piece in chunks(data, 5000):
            await trio.sleep(0.001)
            yield piece

    async def run(seconds: float) -> None:
        with trio.move_on_after(seconds):
            async with box.archives() as archives, aclosing(archives.load(slow(docker_archive([BASE, TOP], ["app"])))) as lines:
                async for _ in lines:
                    pass

    for number in range(8):
        trio.run(run, 0.03 * number)
        if box.images.count():
            box.do(box.images.delete, "app")
    box.do(box.images.sweep)
    assert box.empty


def test_loads_and_deletes_at_once(box: Box) -> None:
    archive = docker_archive([BASE, TOP], ["app"])

    async def load(archives: Archives) -> None:
        for _ in range(4):
            async for _ in archives.load(chunks(archive)):
                pass

    async def delete() -> None:
        for _ in range(30):
            await trio.sleep(0.005)
            try:
                await box.images.delete("app", True)
            except NotFound:
                continue

    async def run() -> None:
        async with box.archives() as archives, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(load, archives)
            nursery.start_soon(delete)

    trio.run(run)
    box.load(archive)
    assert all(box.stores.content.verify(layer.digest) for layer in box.images.get("app").layers)
    box.do(box.images.delete, "app")
    box.do(box.images.sweep)
    assert box.empty


def test_images_come_back_after_the_database_is_lost(tmp_path: Path) -> None:
    with opened(tmp_path) as box:
        box.load(docker_archive([BASE, TOP], ["app:1", "app:2"]))
        box.load(docker_archive([BASE], ["lost"]))
        app, lost = box.images.get("app:1"), box.images.get("lost")
        box.stores.content.delete(lost.manifest)
        database = box.stores.layout.database
    Path(database).write_bytes(b"damage" * 1000)
    with opened(tmp_path) as box:
        assert box.stores.db.set_aside
        assert box.images.count() == 0
        box.do(box.images.sweep)
        (message,) = box.recover()
        assert message.startswith("image lost:latest cannot be recovered: no blob")
        found = box.images.get("app:2")
        assert (found.id, found.layers, found.repo_tags) == (app.id, app.layers, ("app:1", "app:2"))
        assert box.text(box.unpack(found), "etc/name") == "top"
    with opened(tmp_path) as box:
        box.do(box.images.sweep)
        box.stores.snapshots.sweep()
        assert box.images.count() == 1
        box.do(box.images.delete, box.images.get("app:1").id, True)
        assert box.empty
