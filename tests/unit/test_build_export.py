"""What a build solved becomes an image: identifiers, names of layers, blobs made when they are wanted. Real stores, no daemon."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio

from builder.export import imagedocs
from builder.export.attest import Attached
from builder.export.images import Added, Exported, Manner, Part, export_images
from builder.files.squash import merge
from builder.graph import Step, Target
from engine.errors import Damaged, KnarrError, NotFound
from engine.service.durability import Durability
from engine.service.images import Images
from engine.service.layerblobs import Form
from engine.spec import image as spec
from engine.spec.digest import chain_ids, sha256
from engine.spec.event import Event
from engine.spec.platform import Platform
from engine.spec.reference import parse
from engine.store.images import ImageRecord
from engine.store.merged import OPAQUE_ATTRIBUTE
from engine.store.snapshots import Snapshot
from tests.lib.pulling import folder
from tests.lib.stores import Stores, describe, open_stores

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts need root")

AMD64 = Platform(architecture="amd64", os="linux")
SECOND = 10**9


class Bench:
    """Stores, and images as a build gives them."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.events: list[Event] = []
        self.images = Images(stores.layout, stores.db, stores.content, stores.snapshots, self)
        self.context: Any = SimpleNamespace(images=self.images, snapshots=stores.snapshots, durability=Durability(stores.db))
        self.count = 0

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def layer(self, files: dict[str, bytes | None], parent: str = "") -> Snapshot:
        """A committed snapshot as a RUN leaves it; None is a whiteout, a name with "/" at its end a folder."""
        snapshots = self.stores.snapshots
        self.count += 1
        key = f"run-{self.count}"
        snapshots.prepare(key, parent or None)
        fill(Path(snapshots.upper(key)), files)
        return snapshots.commit_active(key, f"build:{self.count}", 4096, len(files))

    async def build(self, *rows: Snapshot, base: ImageRecord | None = None, names: tuple[str, ...] = (), **manner: Any) -> Exported:
        added = [Added(row, (1_700_000_000 + place) * SECOND + 5) for place, row in enumerate(rows)]
        attach = manner.pop("attach", None)
        parts = [Part(target_of(len(rows), base), added)]
        return await export_images(self.context, parts, [parse(name) for name in names], Manner(**manner), attach=attach)

    async def bytes_of(self, digest: str) -> bytes:
        pieces: list[bytes] = []

        async def write(piece: bytes) -> None:
            pieces.append(piece)

        await self.images.layer_blobs.send(digest, write)
        return b"".join(pieces)


def fill(root: Path, files: dict[str, bytes | None]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            os.mknod(path, stat.S_IFCHR, 0)
            continue
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)
        os.utime(path, ns=(SECOND, SECOND + 7))


def target_of(layers: int, base: ImageRecord | None = None) -> Target:
    steps: list[Step] = []
    for number in range(layers):
        steps += [Step(created_by=f"RUN {number} > x", vertex=number), Step(created_by=f"ENV n={number}")]
    config = spec.ImageConfig(config=spec.ContainerConfig(env=("A=1",), labels={"z": "1", "b": "<&>"}))
    return Target(root=layers - 1, config=config, platform=AMD64, base=base.config if base else None, steps=tuple(steps))


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with folder() as root, open_stores(root) as stores:
        yield Bench(stores)


def test_an_image_of_two_layers(bench: Bench) -> None:
    async def main() -> None:
        first = bench.layer({"a": b"1", "etc/x": b"2"})
        second = bench.layer({"a": None, "b": b"3"}, first.name)
        made = await bench.build(first, second, names=("app", "host:5000/app:2"))
        image = made.image
        assert image.repo_tags == ("app:latest", "host:5000/app:2")
        assert not made.existed and made.digest == image.manifest and made.size == image.manifest_size
        assert [row.name for row in (first, second)] == list(image.chain_ids) == list(chain_ids(image.diff_ids))
        assert (first.parent, second.parent) == ("", first.name)
        assert (first.boot, second.boot) == ("", "")
        assert image.size == 8192
        content = bench.stores.content
        assert content.read(image.id) == image.raw
        manifest = json.loads(content.read(image.manifest))
        assert [layer["digest"] for layer in manifest["layers"]] == list(image.diff_ids)
        assert not any(content.exists(digest) for digest in image.diff_ids)
        for layer in image.layers:
            data = await bench.bytes_of(layer.digest)
            assert sha256(data) == layer.digest and len(data) == layer.size
        with tarfile.open(fileobj=io.BytesIO(await bench.bytes_of(image.diff_ids[1]))) as archive:
            assert archive.getnames() == [".wh.a", "b"]
        assert [(event.action, event.attributes["name"]) for event in bench.events] == [("tag", "app"), ("tag", "host:5000/app:2")]
        assert not bench.images._pinned

    trio.run(main)


def test_the_configuration_is_as_buildkit_writes_it(bench: Bench) -> None:
    async def main() -> None:
        image = (await bench.build(bench.layer({"a": b"1"}))).image
        assert (
            image.raw
            == (
                b'{"architecture":"amd64","config":{"Env":["A=1"],"Labels":{"b":"\\u003c\\u0026\\u003e","z":"1"}},'
                b'"created":"2023-11-14T22:13:20.000000005Z","history":[{"created":"2023-11-14T22:13:20.000000005Z",'
                b'"created_by":"RUN 0 \\u003e x",'
                b'"comment":"buildkit.dockerfile.v0"},{"created":"2023-11-14T22:13:20.000000005Z","created_by":"ENV n=0",'
                b'"comment":"buildkit.dockerfile.v0","empty_layer":true}],"os":"linux","rootfs":{"type":"layers","diff_ids":["%b"]}}'
            )
            % image.diff_ids[0].encode()
        )

    trio.run(main)


def test_the_same_again_packs_nothing_and_is_the_same_image(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        row = bench.layer({"a": b"1"})
        made = await bench.build(row, names=("app",))
        monkeypatch.setattr("engine.store.pack.pack", None)
        again = await bench.build(row, names=("app", "other"))
        assert again.existed and again.image.id == made.image.id
        assert again.image.repo_tags == ("app:latest", "other:latest")
        assert [event.action for event in bench.events] == ["tag"] * 3

    trio.run(main)


def test_digests_are_remembered_over_a_restart() -> None:
    async def first(bench: Bench) -> None:
        await bench.build(bench.layer({"a": b"1"}), names=("app",))

    async def second(bench: Bench) -> None:
        image = bench.images.get("app")
        assert sha256(await bench.bytes_of(image.diff_ids[0])) == image.diff_ids[0]

    with folder() as root:
        for work in (first, second):
            with open_stores(root) as stores:
                trio.run(work, Bench(stores))


def test_a_layer_that_is_here_under_its_chain_is_used(bench: Bench) -> None:
    async def main() -> None:
        one, other = bench.layer({"a": b"1"}), bench.layer({"a": b"1"})
        top = bench.layer({"b": b"1"}, other.name)
        first = await bench.build(one, names=("one",))
        made = await bench.build(other, top, names=("two",))
        assert made.image.chain_ids[0] == first.image.chain_ids[0] == one.name
        assert other.name.startswith("build:")
        assert top.parent == one.name
        with bench.stores.db.transaction() as cursor:
            bench.stores.snapshots.set_cached(other, False, cursor)
        assert await bench.images.collect() == (0, 4096)
        assert bench.stores.snapshots.whole(top.name) and not bench.stores.snapshots.is_current(other)

    trio.run(main)


def test_a_damaged_layer_is_replaced_by_what_was_built(bench: Bench) -> None:
    async def main() -> None:
        one, other = bench.layer({"a": b"1"}), bench.layer({"a": b"1"})
        top = bench.layer({"b": b"1"}, one.name)
        image = (await bench.build(one, top, names=("one",))).image
        bench.stores.snapshots.set_damaged(image.chain_ids[0], "broken")
        await bench.build(other)
        assert other.name == image.chain_ids[0] and top.parent == other.name
        assert bench.stores.snapshots.whole(image.chain_ids[1])

    trio.run(main)


def test_on_a_base_image_that_was_built(bench: Bench) -> None:
    async def main() -> None:
        lower = bench.layer({"a": b"1"})
        base = (await bench.build(lower, names=("base",))).image
        upper = bench.layer({"b": b"1"}, lower.name)
        image = (await bench.build(upper, base=base, names=("app",))).image
        assert image.diff_ids[:1] == base.diff_ids and image.chain_ids == (lower.name, upper.name)
        assert [entry.created_by for entry in image.history] == ["RUN 0 > x", "ENV n=0"] * 2

    trio.run(main)


def test_a_base_image_that_is_gone_is_an_error(bench: Bench) -> None:
    async def main() -> None:
        base = (await bench.build(bench.layer({"a": b"1"}))).image
        config = spec.ImageConfig(rootfs=spec.RootFS(diff_ids=("sha256:" + "1" * 64,)))
        lost = ImageRecord(
            id=base.id, manifest=base.manifest, manifest_size=1, config=config,
            raw=b"", layers=(), size=0,
        )  # fmt: skip
        with pytest.raises(NotFound, match="base image's layer"):
            await bench.build(bench.layer({"b": b"1"}), base=lost)
        with pytest.raises(KnarrError, match="0 layers for 1 steps"):
            await export_images(bench.context, [Part(target_of(1), [])])
        assert not bench.images._pinned

    trio.run(main)


def test_an_image_without_layers(bench: Bench) -> None:
    async def main() -> None:
        target = Target(root=-1, config=spec.ImageConfig(), platform=AMD64, steps=(Step(created_by="LABEL a=b"),))
        image = (await export_images(bench.context, [Part(target, [])], [parse("empty")])).image
        assert image.raw == (
            b'{"architecture":"amd64","config":{},"history":[{"created_by":"LABEL a=b",'
            b'"comment":"buildkit.dockerfile.v0","empty_layer":true}],'
            b'"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
        )
        assert image.chain_id is None and image.size == 0

    trio.run(main)


def test_blobs_for_a_registry_are_made_once(bench: Bench) -> None:
    async def main() -> None:
        row = bench.layer({"a": b"1" * 5000})
        image = (await bench.build(row, names=("app",))).image
        whole = await bench.images.layer_blobs.for_registry(image)
        assert whole.id == image.id and whole.manifest != image.manifest
        assert bench.images.get("app") == whole
        assert whole.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar+gzip"
        assert all(bench.stores.content.verify(digest) for digest in whole.blobs)
        assert (await bench.images.layer_blobs.for_registry(whole)).manifest == whole.manifest
        again = await bench.build(row, names=("app",))
        assert again.existed and again.image.manifest == whole.manifest

    trio.run(main)


def test_a_changed_file_is_found_when_bytes_are_made(bench: Bench) -> None:
    async def main() -> None:
        row = bench.layer({"a": b"1"})
        image = (await bench.build(row, names=("app",))).image
        Path(bench.stores.snapshots.upper(row.name), "a").write_bytes(b"2")
        with pytest.raises(Damaged, match="its files were changed on the disk"):
            await bench.bytes_of(image.diff_ids[0])
        for work in (bench.images.layer_blobs.for_registry(image), bench.images.layer_blobs.bring(image.diff_ids[0])):
            with pytest.raises(Damaged):
                await work
        assert not os.listdir(bench.stores.layout.ingest)

    trio.run(main)


def test_a_plain_blob_can_be_brought_into_the_store(bench: Bench) -> None:
    async def main() -> None:
        image = (await bench.build(bench.layer({"a": b"1"}))).image
        blobs = bench.images.layer_blobs
        assert await blobs.bring(image.diff_ids[0])
        assert bench.stores.content.verify(image.diff_ids[0])
        assert await blobs.bring(image.diff_ids[0])
        assert not await blobs.bring("sha256:" + "0" * 64)

    trio.run(main)


@pytest.mark.parametrize("kind", ["uncompressed", "gzip", "zstd"])
def test_layers_as_blobs(bench: Bench, kind: str) -> None:
    async def main() -> None:
        base = (await bench.build(bench.layer({"a": b"1"}), names=("base",))).image
        row = bench.layer({"b": b"1"}, base.chain_ids[0])
        image = (await bench.build(row, base=base, form=Form(kind), docker=True)).image
        assert all(bench.stores.content.verify(digest) for digest in image.blobs)
        manifest = json.loads(bench.stores.content.read(image.manifest))
        suffix = "" if kind == "uncompressed" else f".{kind}"
        assert {layer["mediaType"] for layer in manifest["layers"]} == {f"application/vnd.docker.image.rootfs.diff.tar{suffix}"}
        assert manifest["mediaType"] == spec.DOCKER_MANIFEST
        assert image.chain_ids == (base.chain_ids[0], row.name)

    trio.run(main)


def test_an_epoch_sets_every_time_of_the_build(bench: Bench) -> None:
    async def main() -> None:
        row = bench.layer({"a": b"1"})
        os.utime(Path(bench.stores.snapshots.upper(row.name), "a"), (5000, 5000))
        plain = (await bench.build(row, epoch=1000)).image
        assert {entry.created for entry in plain.history} == {plain.created} == {"1970-01-01T00:16:40Z"}
        rewritten = (await bench.build(row, epoch=1000, rewrite=True)).image
        assert rewritten.diff_ids != plain.diff_ids
        assert bench.stores.content.verify(rewritten.layers[0].digest)
        assert row.name == plain.chain_ids[0]

    trio.run(main)


def test_an_index_with_what_stands_beside_the_image(bench: Bench) -> None:
    async def main() -> None:
        async def attach(target: Target, image: spec.Descriptor) -> list[Attached]:
            assert image.platform == AMD64
            data = b"statement of " + image.digest.encode()
            unknown = Platform(architecture="unknown", os="unknown")
            descriptor = spec.Descriptor(media_type="text/plain", digest=sha256(data), size=len(data), platform=unknown)
            return [Attached(descriptor, ((sha256(data), data),))]

        row = bench.layer({"a": b"1"})
        made = await bench.build(row, names=("app",), form=Form(), attach=attach, annotations={"k": "v"})
        index = bench.images.store.index(made.digest)
        assert index is not None and len(index.manifests) == 2 and len(index.held) == 1
        assert bench.images.store.target(parse("app:latest")) == made.digest
        assert json.loads(bench.stores.content.read(made.image.manifest))["annotations"] == {"k": "v"}
        assert bench.stores.content.verify(index.held[0]) and bench.stores.content.verify(index.digest)
        again = await bench.build(row, names=("app",), form=Form(), attach=attach, annotations={"k": "v"})
        assert again.existed and again.digest == made.digest

    trio.run(main)


def test_several_platforms_are_an_index(bench: Bench) -> None:
    async def main() -> None:
        bench.images.host = AMD64
        parts = []
        for place, architecture in enumerate(("amd64", "arm64")):
            target = msgspec.structs.replace(target_of(1), platform=Platform(architecture=architecture))
            parts.append(Part(target, [Added(bench.layer({"a": architecture.encode()}), place)]))
        made = await export_images(bench.context, parts, [parse("app")])
        assert made.image.architecture == "amd64" and len(made.images) == 2
        assert bench.images.get("app", "linux/arm64").architecture == "arm64"
        index = json.loads(bench.stores.content.read(made.digest))
        assert [one["platform"]["architecture"] for one in index["manifests"]] == ["amd64", "arm64"]
        assert (await export_images(bench.context, parts, [parse("app")])).existed
        assert await bench.images.collect() == (0, 0)

    trio.run(main)


def test_squashed_layers_are_one(bench: Bench) -> None:
    async def main() -> None:
        base = (await bench.build(bench.layer({"base": b"1", "dir/x": b"1"}))).image
        first = bench.layer({"a": b"1", "new/x": b"1"}, base.chain_ids[0])
        second = bench.layer({"a": None, "b": b"2", "dir/x": None}, first.name)
        image = (await bench.build(first, second, base=base, squash=True)).image
        assert len(image.layers) == 2 and image.diff_ids[0] == base.diff_ids[0]
        with tarfile.open(fileobj=io.BytesIO(await bench.bytes_of(image.diff_ids[1]))) as archive:
            assert archive.getnames() == [".wh.a", "b", "dir", "dir/.wh.x", "new", "new/x"]
        assert [entry.empty_layer for entry in image.history] == [False, True, True, True, True, True, False]
        assert image.history[-1].comment.startswith("merge 2 layers to sha256:")
        assert not bench.images._pinned

    trio.run(main)


def test_merging_follows_the_rules_of_overlays(tmp_path: Path) -> None:
    for name in ("one", "two", "target"):
        (tmp_path / name).mkdir()
    fill(tmp_path / "one", {"gone/x": b"1", "opaque/x": b"1", "file": b"1", "kept/x": b"1", "hidden": None, "became": b"1"})
    fill(tmp_path / "two", {"gone": None, "opaque/y": b"2", "file/z": b"2", "kept/y": b"2", "hidden/n": b"2", "became": b"2"})
    os.setxattr(tmp_path / "two" / "opaque", OPAQUE_ATTRIBUTE, b"y")
    os.chmod(tmp_path / "two" / "kept", 0o700)
    merge([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "target"))
    target = tmp_path / "target"
    assert sorted(describe(target)) == [
        "became",
        "file",
        "file/z",
        "gone",
        "hidden",
        "hidden/n",
        "kept",
        "kept/x",
        "kept/y",
        "opaque",
        "opaque/y",
    ]
    assert stat.S_ISCHR((target / "gone").lstat().st_mode)
    opaque = {name for name in ("file", "hidden", "kept", "opaque") if OPAQUE_ATTRIBUTE in os.listxattr(target / name)}
    assert opaque == {"file", "hidden", "opaque"}
    assert stat.S_IMODE((target / "kept").stat().st_mode) == 0o700
    assert (target / "became").read_bytes() == b"2"


def test_times_of_steps_without_a_layer() -> None:
    steps = [Step(created_by=name, vertex=None if name.islower() else 0) for name in ("A", "e", "B", "l", "C", "c")]
    target = Target(root=0, config=spec.ImageConfig(), platform=AMD64, steps=tuple(steps))
    found = imagedocs.history(target, [1 * SECOND, 2 * SECOND, 3 * SECOND], None)
    assert [(entry.created or "")[-3:-1] for entry in found] == ["01", "02", "02", "02", "03", "03"]


def test_timestamps_are_gos() -> None:
    assert imagedocs.timestamp(0) == "1970-01-01T00:00:00Z"
    assert imagedocs.timestamp(1_795_741_924_390_037_430) == "2026-11-27T01:12:04.39003743Z"


def test_forms_of_layers() -> None:
    for form in ("uncompressed", "gzip", "zstd"):
        for docker in (False, True):
            assert imagedocs.form_of(imagedocs.layer_type(form, docker=docker)) == form
            assert Form(form).media_type(docker) == imagedocs.layer_type(form, docker=docker)
