"""`save`: what is in an archive, and that loading it gives back what was saved. Real files, no daemon."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import zstandard

from engine.errors import Damaged, InvalidParameter, KnarrError, NotFound
from engine.spec import archive as documents
from engine.spec import image as spec
from engine.spec.platform import parse as platform
from engine.spec.reference import parse as reference_of
from tests.lib.images import ARCHITECTURE, Layout, docker_archive, entry, image_config, tar
from tests.unit.test_images import BASE, HOST, TOP, Box, opened

INDEX_MEDIA = "application/vnd.oci.image.index.v1+json"
CONFIG_MEDIA = "application/vnd.oci.image.config.v1+json"
MANIFEST_MEDIA = "application/vnd.oci.image.manifest.v1+json"
LAYER_MEDIA = "application/vnd.oci.image.layer.v1.tar"
OTHER = "arm64" if ARCHITECTURE != "arm64" else "amd64"


class Memory:
    """An archive's reader. `before` is called ahead of each blob."""

    def __init__(self, before: Callable[[int], object] = lambda count: None) -> None:
        self.data = bytearray()
        self.blobs = 0
        self._before = before

    async def write(self, data: bytes) -> None:
        self.data += data

    async def write_file(self, descriptor: int, offset: int, count: int) -> None:
        self._before(self.blobs)
        self.blobs += 1
        await trio.lowlevel.checkpoint()
        self.data += os.pread(descriptor, count, offset)


def save(box: Box, *names: str, sink: Memory | None = None, **options: Any) -> bytes:
    into = sink or Memory()

    async def run() -> None:
        async with box.archives() as archives:
            with archives.save(names, **options) as archive:
                await archive.check()
                await archive.write(into)

    trio.run(run)
    return bytes(into.data)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path / "root") as made:
        yield made


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {one.name: (archive.extractfile(one) or io.BytesIO()).read() for one in archive.getmembers() if one.isfile()}


def streams(box: Box, data: bytes, **options: Any) -> list[str]:
    return [message.stream for message in box.load(data, quiet=True, **options)]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# -- the documents


def test_documents_are_those_of_docker_save() -> None:
    """Checked against what dockerd 26.1 writes for the same: three names, two of them of one image, and an image without a name."""
    first, second = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    target = spec.Descriptor(media_type=MANIFEST_MEDIA, digest="sha256:" + "c" * 64, size=5)
    names = (reference_of("app:1"), reference_of("host:5000/x/app:2"))
    saved = [
        documents.Saved(names=names, target=target, config=first, layers=(second,)),
        documents.Saved(names=(), target=target, config=second, layers=()),
    ]
    found = documents.documents(saved, since="debian:12")
    assert list(found) == ["oci-layout", "index.json", "manifest.json", "repositories"]
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(found["index.json"])
    plain = {"mediaType": MANIFEST_MEDIA, "digest": target.digest, "size": 5}
    assert index["manifests"] == [
        {**plain, "annotations": {"io.containerd.image.name": "docker.io/library/app:1", "org.opencontainers.image.ref.name": "1"}},
        {**plain, "annotations": {"io.containerd.image.name": "host:5000/x/app:2", "org.opencontainers.image.ref.name": "2"}},
        plain,
    ]
    assert (index["schemaVersion"], index["mediaType"]) == (2, INDEX_MEDIA)
    assert index["annotations"]["io.knarr.archive.since"] == "debian:12"
    assert json.loads(found["manifest.json"]) == [
        {"Config": f"blobs/sha256/{'a' * 64}", "RepoTags": ["app:1", "host:5000/x/app:2"], "Layers": [f"blobs/sha256/{'b' * 64}"]},
        {"Config": f"blobs/sha256/{'b' * 64}", "RepoTags": None, "Layers": []},
    ]
    assert json.loads(found["repositories"]) == {"app": {"1": "b" * 64}, "host:5000/x/app": {"2": "b" * 64}}


def test_what_is_in_an_archive(box: Box) -> None:
    box.load(docker_archive([BASE, TOP], ["app:1", "app:2"]))
    box.load(docker_archive([BASE], ["base"]))
    found = members(save(box, "app:1", "base", "app:2"))
    app, base = box.images.get("app:1"), box.images.get("base")
    blobs = {name: data for name, data in found.items() if name.startswith("blobs/")}
    assert set(blobs) == {documents.path(digest) for image in (app, base) for digest in image.blobs}, "a shared layer is there once"
    assert all(documents.path(digest_of(data)) == name for name, data in blobs.items())
    assert [one["RepoTags"] for one in json.loads(found["manifest.json"])] == [["app:1", "app:2"], ["base:latest"]]
    assert [one["digest"] for one in json.loads(found["index.json"])["manifests"]] == [app.manifest, app.manifest, base.manifest]
    assert "repositories" not in members(save(box, app.id)), "an image that was asked for by its identifier has no name"
    assert json.loads(members(save(box, app.id[7:19]))["manifest.json"])[0]["RepoTags"] is None
    assert [one["RepoTags"] for one in json.loads(members(save(box, "app"))["manifest.json"])] == [["app:1", "app:2"]], "all tags"


def test_names_are_checked_before_the_first_byte(box: Box) -> None:
    box.load(docker_archive([BASE], ["app:1"]))
    sink = Memory()
    for names, message in (
        (("nope",), "No such image: nope"), (("app:1", "nope:2"), "No such image: nope:2"), (("0" * 64,), f"No such image: {'0' * 64}"),
        ((f"app@sha256:{'1' * 64}",), "No such image: app@sha256:"),
    ):  # fmt: skip
        with pytest.raises(NotFound, match=message):
            save(box, *names, sink=sink)
    with pytest.raises(InvalidParameter, match="no image was named"):
        save(box, sink=sink)
    with pytest.raises(InvalidParameter, match="lowercase"):
        save(box, "BAD", sink=sink)
    with pytest.raises(NotFound, match=f"does not provide the specified platform \\(linux/s390x\\).*it has: linux/{ARCHITECTURE}"):
        save(box, "app:1", platform=["linux/s390x"], sink=sink)
    with pytest.raises(NotFound, match="No such image: nope"):
        save(box, "app:1", since="nope", sink=sink)
    assert not sink.data
    assert not box.images._pinned


# -- there and back


def random_layer(chance: random.Random) -> bytes:
    """Some with members that only make sense on the layers below: those are not unpacked on their way in."""
    size = chance.choice((10, 40_000, 600_000))
    entries = [entry("etc", tarfile.DIRTYPE), entry(f"etc/{chance.randrange(4)}", data=chance.randbytes(size))]
    if chance.random() < 0.3:
        entries.append(entry("etc/sub/implied", data=b"x" * size))
    if chance.random() < 0.3:
        entries.append(entry(f"etc/.wh.{chance.randrange(4)}"))
    return tar(entries)


def random_layout(chance: random.Random) -> bytes:
    layout = Layout()
    pool = [random_layer(chance) for _ in range(4)]
    named: list[dict[str, Any]] = []
    for number in range(chance.randint(1, 3)):
        platforms = chance.sample([ARCHITECTURE, OTHER, "s390x"], chance.randint(1, 3))
        images = [packed_image(layout, chance, chance.sample(pool, chance.randint(0, 3)), one) for one in platforms]
        target = images[0]
        if len(images) > 1 or chance.random() < 0.5:
            beside = [layout.attestation(images[0])] if chance.random() < 0.5 else []
            absent = {**images[0], "digest": "sha256:" + f"{number}" * 64, "platform": {"os": "linux", "architecture": "ppc64le"}}
            target = layout.index([*images, *beside, *([absent] if chance.random() < 0.5 else [])])
        target = {key: value for key, value in target.items() if key != "platform"}
        for tag in range(chance.randint(1, 2)):
            named.append({**target, "annotations": {"io.containerd.image.name": f"docker.io/library/app{number}:{tag}"}})
    return layout.archive(named)


def packed_image(layout: Layout, chance: random.Random, layers: list[bytes], architecture: str) -> dict[str, Any]:
    forms: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("+gzip", lambda data: gzip.compress(data, 1, mtime=0)), ("+zstd", zstandard.compress), ("", lambda data: data),
    ]  # fmt: skip
    described = []
    for layer in layers:
        suffix, pack = chance.choice(forms)
        described.append(layout.blob(pack(layer), LAYER_MEDIA + suffix))
    config = layout.blob(image_config([digest_of(layer) for layer in layers], architecture=architecture, variant=""), CONFIG_MEDIA)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_MEDIA, "config": config, "layers": described}
    where = {"os": "linux", "architecture": architecture}
    return layout.blob(json.dumps(manifest).encode(), MANIFEST_MEDIA, platform=where)


@pytest.mark.parametrize("seed", range(12))
def test_saved_loaded_and_saved_again_gives_the_same_bytes(tmp_path: Path, seed: int) -> None:
    """Whatever was saved: layers as gzip, zstd or plain, several platforms, attestations, platforms that are not there."""
    chance = random.Random(seed)
    with opened(tmp_path / "one") as one:
        told = streams(one, random_layout(chance))
        names = sorted({line.removeprefix("Loaded image: ").strip() for line in told})
        first = save(one, *names)
        assert save(one, *names) == first
        assert one.left()["ingest"] == []
        shown = {name: described(one, name) for name in names}
    with opened(tmp_path / "two") as two:
        assert sorted(line.removeprefix("Loaded image: ").strip() for line in streams(two, first)) == names
        assert {name: described(two, name) for name in names} == shown
        assert save(two, *names) == first
        before = two.left()
        streams(two, first)
        assert two.left() == before, "loading again changes nothing"
        for name in names:
            two.do(two.images.delete, name)
        two.do(two.images.sweep)
        assert two.empty


def described(box: Box, name: str) -> Any:
    """What a name stands for, and the files of each image of it."""
    reference = reference_of(name)
    found = []
    for image in box.images.variants(reference):
        box.unpack(image)
        found.append((image.id, image.manifest, image.diff_ids, merged(box.images.layer_folders(image))))
    return box.images.store.target(reference), box.images.get(name).id, found


def merged(folders: tuple[str, ...]) -> list[dict[str, tuple[int, int]]]:
    """Per layer: path -> type and mode, size."""
    layers = []
    for folder in folders:
        paths = [os.path.join(top, name) for top, folders_, files in os.walk(folder) for name in (*folders_, *files)]
        info = {os.path.relpath(path, folder): os.lstat(path) for path in paths}
        layers.append({name: (one.st_mode, one.st_size if not os.path.isdir(f"{folder}/{name}") else 0) for name, one in info.items()})
    return layers


def test_a_docker_archive_loaded_and_saved_keeps_its_image(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        one.load(docker_archive([BASE, TOP], ["app:1"]))
        data = save(one, "app:1")
        assert streams(two, gzip.compress(data)) == ["Loaded image: app:1\n"]
        image = two.images.get("app:1")
        assert (image.id, image.layers) == (one.images.get("app:1").id, one.images.get("app:1").layers)
        assert two.text(image, "etc/name") == "top"


def test_equal_layers_become_equal_blobs(tmp_path: Path) -> None:
    """However the archive arrives, and wherever in it they lie."""
    layer = tar([entry("data", data=random.Random(3).randbytes(300_000) + b"x" * 900_000)])
    found = set()
    for number, others in enumerate(([], [BASE], [TOP, BASE])):
        with opened(tmp_path / str(number)) as box:
            box.load(docker_archive([*others, layer], ["app"]), quiet=number == 1)
            found.add(box.images.get("app").layers[-1].digest)
    assert len(found) == 1


def test_a_layer_that_needs_those_below_is_unpacked_after_them(box: Box) -> None:
    """On its way in nothing is known of what lies below it."""
    below = tar([entry("data", tarfile.DIRTYPE, mode=0o711), entry("data/file", data=b"below")])
    above = tar([
        entry("big", data=b"z" * 400_000), entry("data/link", tarfile.LNKTYPE, linkname="data/file"), entry("data/more", data=b"m"),
    ])  # fmt: skip
    box.load(docker_archive([below, above], ["app"]))
    image = box.images.get("app")
    top = box.images.layer_folders(image)[0]
    assert os.stat(f"{top}/data").st_mode & 0o777 == 0o711
    assert Path(top, "data/link").read_text() == "below"
    whiteouts = tar([entry("big", data=b"z" * 400_000), entry(".wh.nothing"), entry("sub", tarfile.DIRTYPE), entry("sub/.wh..wh..opq")])
    box.load(docker_archive([whiteouts], ["bottom"]))
    assert sorted(os.listdir(box.images.layer_folders(box.images.get("bottom"))[0])) == ["big", "sub"]


# -- platforms


def multi(*, beside: bool = True) -> tuple[Layout, bytes]:
    layout = Layout()
    made = [layout.image([tar([entry("arch", data=one.encode())])], one, compress=True) for one in (ARCHITECTURE, OTHER, "s390x")]
    index = layout.index([*made, *([layout.attestation(made[1])] if beside else [])])
    return layout, layout.archive([{**index, "annotations": {"io.containerd.image.name": "docker.io/library/multi:1"}}])


def test_platforms_of_a_name(tmp_path: Path) -> None:
    layout, data = multi()
    with opened(tmp_path / "one") as box:
        box.load(data)
        target = box.images.store.target(reference_of("multi:1"))
        whole = members(save(box, "multi:1"))
        (element,) = json.loads(whole["manifest.json"])
        assert whole[element["Config"]] == box.images.get("multi:1").raw, "who knows no platforms gets the one of this host"
        assert json.loads(whole["index.json"])["manifests"][0]["digest"] == target
        assert {name for name in whole if name.startswith("blobs")} == {documents.path(digest) for digest in layout.blobs}
        single = save(box, "multi:1", platform=[f"linux/{OTHER}"])
        other = box.images.get("multi:1", f"linux/{OTHER}")
        assert json.loads(members(single)["index.json"])["manifests"][0]["digest"] == other.manifest
        assert {name for name in members(single) if name.startswith("blobs")} == {documents.path(digest) for digest in other.blobs}
        pair = members(save(box, "multi:1", platform=["linux/s390x", f"linux/{OTHER}"]))
        assert json.loads(pair["index.json"])["manifests"][0]["digest"] == target
        assert documents.path(box.images.get("multi:1").manifest) not in pair
    with opened(tmp_path / "two") as box:
        box.load(single)
        assert box.images.get("multi:1").architecture == OTHER
        assert box.text(box.images.get("multi:1"), "arch") == OTHER
    with opened(tmp_path / "three") as box:
        with pytest.raises(NotFound, match=r"no image for platform linux/riscv64; the archive has: .*linux/s390x"):
            box.load(data, platform=["linux/riscv64"])
        with pytest.raises(NotFound, match="no image for platform linux/riscv64"):
            box.load(docker_archive([BASE], ["app"]), platform=["linux/riscv64"])
        assert box.empty
        box.load(data, platform=["linux/s390x", f"linux/{OTHER}"])
        assert {one.architecture for one in box.images.variants(reference_of("multi:1"))} == {OTHER, "s390x"}
        assert box.images.store.target(reference_of("multi:1")) == target
        box.load(data)
        assert len(box.images.variants(reference_of("multi:1"))) == 3
        assert box.images.get("multi:1").architecture == ARCHITECTURE


def test_an_archive_without_an_image_for_this_host(tmp_path: Path) -> None:
    with opened(tmp_path, host=platform("linux/riscv64")) as box:
        assert streams(box, multi()[1]) == ["Loaded image: multi:1\n"]
        assert len(box.images.variants(reference_of("multi:1"))) == 3


def test_an_index_in_an_index(box: Box) -> None:
    layout = Layout()
    inner = layout.index([layout.image([BASE], ARCHITECTURE), layout.image([TOP], "s390x")])
    outer = layout.index([inner, layout.image([TOP], OTHER)])
    named = {**outer, "annotations": {"io.containerd.image.name": "docker.io/library/nested:1"}}
    box.load(layout.archive([named]))
    assert box.images.get("nested:1").architecture == ARCHITECTURE
    assert box.images.store.target(reference_of("nested:1")) == outer["digest"]
    assert box.stores.content.exists(inner["digest"])
    box.do(box.images.delete, "nested:1")
    box.do(box.images.sweep)
    assert box.empty


def test_descriptors_of_one_name_are_an_index(box: Box) -> None:
    """Some write the platforms of a name into index.json, side by side."""
    layout = Layout()
    note = {"annotations": {"org.opencontainers.image.ref.name": "app:1"}}
    box.load(layout.archive([{**layout.image([BASE], one), **note} for one in (OTHER, ARCHITECTURE)]))
    assert {one.architecture for one in box.images.variants(reference_of("app:1"))} == {OTHER, ARCHITECTURE}
    first = save(box, "app:1")
    assert save(box, "app:1") == first


def test_a_name_with_a_digest_must_be_what_it_says(box: Box) -> None:
    layout = Layout()
    image = layout.image([BASE])
    for digest in ("sha256:" + "1" * 64, image["digest"]):
        note = {"annotations": {"io.containerd.image.name": f"docker.io/library/app@{digest}"}}
        data = layout.archive([{**image, **note}])
        if digest == image["digest"]:
            box.load(data)
        else:
            with pytest.raises(InvalidParameter, match="is not what the archive calls so"):
                box.load(data)
    assert box.images.get("app@" + image["digest"]).manifest == image["digest"]
    with pytest.raises(InvalidParameter, match="is not what the archive calls so"):
        box.load(docker_archive([BASE], ["app@sha256:" + "1" * 64]))


def test_an_index_that_names_itself_a_million_times_over(box: Box) -> None:
    """Each of four levels names the one below two hundred times: what was looked at is not looked at again."""
    layout = Layout()
    level = layout.image([BASE])
    for _ in range(3):
        level = layout.index([level] * 200)
    box.load(layout.archive([{**level, "annotations": {"io.containerd.image.name": "docker.io/library/deep:1"}}] * 200))
    assert box.images.count() == 1
    assert box.images.get("deep:1").architecture == ARCHITECTURE


@pytest.mark.parametrize("what", ["layer", "manifest", "config"])
def test_a_size_that_is_not_the_blobs_is_refused(box: Box, what: str) -> None:
    """And the layer that is here already is not taken for damaged because of it."""
    layout = Layout()
    named = {"annotations": {"org.opencontainers.image.ref.name": "app:1"}}
    good = layout.image([BASE])
    box.load(layout.archive([{**good, **named}]))
    manifest = json.loads(layout.blobs[good["digest"]])
    target = good
    if what == "manifest":
        target = {**good, "size": good["size"] + 1}
    else:
        (manifest["layers"][0] if what == "layer" else manifest["config"])["size"] += 1
        target = layout.blob(json.dumps(manifest).encode(), MANIFEST_MEDIA)
    with pytest.raises(InvalidParameter, match=r"has \d+ bytes, not \d+"):
        box.load(layout.archive([{**target, **named}]))
    assert box.images.get("app:1").manifest == good["digest"]
    assert box.stores.content.verify(box.images.get("app:1").layers[0].digest)


# -- since


def test_since_leaves_out_what_the_other_side_has(tmp_path: Path) -> None:
    more = tar([entry("more", data=b"m")])
    with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        one.load(docker_archive([BASE, TOP], ["base:1"]))
        one.load(docker_archive([BASE, TOP, more], ["app:1"]))
        data = save(one, "app:1", since="base:1")
        app, base = one.images.get("app:1"), one.images.get("base:1")
        assert {name for name in members(data) if name.startswith("blobs")} == {
            documents.path(digest) for digest in (app.id, app.manifest, app.layers[2].digest)
        }
        with pytest.raises(NotFound) as caught:
            two.load(data)
        assert str(caught.value) == (
            f"layer {base.layers[0].digest} is neither in the archive nor here (it was saved with --since base:1; load that first)"
        )
        assert two.empty
        two.load(save(one, "base:1"))
        two.load(data)
        assert two.images.get("app:1").layers == app.layers
        assert two.text(two.images.get("app:1"), "more") == "m"
        assert save(two, "app:1") == save(one, "app:1")
        two.do(two.images.delete, "base:1")
        assert all(two.stores.content.verify(layer.digest) for layer in two.images.get("app:1").layers)


def test_since_an_image_that_is_there_in_another_form(tmp_path: Path) -> None:
    """The same content, compressed by somebody else: the image comes to be, with a manifest that names what is here."""
    layout = Layout()
    more = tar([entry("more", data=b"m")])
    names = [{"annotations": {"org.opencontainers.image.ref.name": name}} for name in ("base:1", "app:1")]
    images = [layout.image([BASE], compress=True), layout.image([BASE, more], compress=True)]
    with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        one.load(layout.archive([{**image, **name} for image, name in zip(images, names, strict=True)]))
        two.load(docker_archive([BASE], ["mine"]))
        assert two.images.get("mine").layers[0].digest != one.images.get("base:1").layers[0].digest
        two.load(save(one, "app:1", since="base:1"))
        app = two.images.get("app:1")
        assert app.id == one.images.get("app:1").id
        assert [layer.digest for layer in app.layers] == [
            two.images.get("mine").layers[0].digest, one.images.get("app:1").layers[1].digest,
        ]  # fmt: skip
        manifest = json.loads(two.stores.content.read(app.manifest))
        assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in app.layers]
        assert two.text(app, "more") == "m"


def test_since_with_platforms(tmp_path: Path) -> None:
    def images(*layers: Callable[[str], bytes]) -> bytes:
        layout = Layout()
        made = [layout.image([layer(one) for layer in layers], one, compress=True) for one in (ARCHITECTURE, OTHER)]
        name = f"docker.io/library/{'base' if len(layers) == 1 else 'app'}:1"
        return layout.archive([{**layout.index(made), "annotations": {"io.containerd.image.name": name}}])

    def low(one: str) -> bytes:
        return tar([entry("low", data=one.encode())])

    def top(one: str) -> bytes:
        return tar([entry("top", data=one.encode())])

    with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        one.load(images(low))
        one.load(images(low, top))
        data = save(one, "app:1", since="base:1")
        two.load(images(low), platform=[f"linux/{ARCHITECTURE}"])
        with pytest.raises(NotFound, match=r"neither in the archive nor here \(it was saved with --since base:1"):
            two.load(data)
        two.load(images(low))
        two.load(data)
        assert save(two, "app:1") == save(one, "app:1")
        for image in two.images.variants(reference_of("app:1")):
            assert two.text(two.unpack(image), "top") == image.architecture


# -- what goes wrong


def test_a_damaged_blob_ends_the_archive_before_its_end(box: Box) -> None:
    box.load(docker_archive([BASE, TOP], ["app"]))
    image = box.images.get("app")
    path = Path(box.stores.content.path(image.layers[1].digest))
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    sink = Memory()
    with pytest.raises(Damaged, match=f"blob {image.layers[1].digest} is damaged"):
        save(box, "app", sink=sink)
    assert sink.data
    assert not sink.data.endswith(bytes(1024))
    with pytest.raises(KnarrError):  # and who loads it all the same is told
        box.load(bytes(sink.data))
    assert not path.exists(), "it was set aside"
    sink = Memory()
    with pytest.raises(Damaged, match=f"blob {image.layers[1].digest} is not here.*pull or load the image again"):
        save(box, "app", sink=sink)
    assert not sink.data
    box.load(docker_archive([BASE, TOP], ["app"]))
    assert save(box, "app")


def test_what_is_being_saved_stays_while_it_is(box: Box) -> None:
    box.load(docker_archive([BASE, TOP], ["app"]))
    whole = save(box, "app")

    async def run() -> bytes:
        sink = Memory()
        async with box.archives() as archives:
            with archives.save(["app"]) as archive:
                await box.images.delete("app", True)
                await box.images.collect()
                await archive.check()
                await archive.write(sink)
        return bytes(sink.data)

    assert trio.run(run) == whole
    box.do(box.images.collect)
    assert box.empty


def test_an_archive_is_visible_only_when_all_of_it_is_whole(box: Box) -> None:
    """The second of two images is hostile: the first is not there either, and what the name stood for before still is."""
    box.load(docker_archive([TOP], ["first:1"]))
    before, id = box.left(), box.images.get("first:1").id
    layout = Layout()
    bad = tar([entry("../../x", data=b"1")])
    named = [
        {**layout.image([layer]), "annotations": {"org.opencontainers.image.ref.name": name}}
        for layer, name in ((BASE, "first:1"), (bad, "second:1"))
    ]
    with pytest.raises(InvalidParameter, match=r"entry '../../x'"):
        box.load(layout.archive(named))
    assert (box.images.count(), box.images.get("first:1").id) == (1, id)
    assert box.left() == before


def test_names_of_indexes_come_back_after_the_database_is_lost(tmp_path: Path) -> None:
    _, data = multi()
    with opened(tmp_path) as box:
        box.load(data)
        box.do(box.images.tag, "multi:1", "again", "2")
        whole = save(box, "multi:1", "again:2")
        database = box.stores.layout.database
    Path(database).write_bytes(b"damage" * 1000)
    with opened(tmp_path) as box:
        assert box.images.count() == 0
        box.do(box.images.sweep)
        assert box.recover() == []
        assert save(box, "multi:1", "again:2") == whole
        for image in box.images.variants(reference_of("again:2")):
            assert box.text(box.unpack(image), "arch") == image.architecture
    with opened(tmp_path, host=HOST) as box:
        box.do(box.images.sweep)
        assert save(box, "multi:1", "again:2") == whole
