"""Outputs of a build: what `--output` says, and what the client gets. Real stores, no daemon."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from builder.export.exportfiles import Annotation, Output, Surroundings, carry_out, metadata, output, outputs
from builder.export.images import Added, Part
from engine.errors import InvalidParameter, KnarrError, NotImplementedYet
from engine.service.layerblobs import Form
from engine.spec import image as spec
from engine.spec.build import Endpoint, Options
from engine.spec.digest import sha256
from engine.spec.platform import Platform
from engine.spec.reference import parse
from tests.lib.pulling import folder
from tests.lib.stores import open_stores
from tests.unit.test_build_export import AMD64, Bench, target_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts need root")


def asked(
    type: str, epoch: int | None = None, *, tags: tuple[str, ...] = (), annotations: tuple[str, ...] = (), **attributes: str
) -> Output:
    named = {key.replace("_", "-"): value for key, value in attributes.items()}
    return output(Endpoint(type=type, attributes=named), Options(tags=tags, annotations=annotations), epoch)


def test_without_an_output_the_image_goes_into_the_store() -> None:
    (one,) = outputs(Options(tags=("app",), squash=True), 5)
    assert (one.kind, one.names, one.push, one.vertex, one.streamed) == ("image", (parse("app"),), False, "exporting to image", False)
    assert one.manner.squash and one.manner.epoch == 5 and one.manner.form is None and not one.manner.docker


def test_attributes() -> None:
    one = asked(
        "image", name="a,b:2", push="true", compression="zstd", compression_level="7", oci_mediatypes="false", force_compression="1"
    )
    assert one.names == (parse("a"), parse("b:2")) and one.push
    assert one.manner.form == Form("zstd", 7) and one.manner.force and not one.manner.docker  # Docker has no type for zstd
    assert asked("registry", name="a").push
    assert asked("image", tags=("t",), name="n").names == (parse("t"),)
    assert asked("docker").manner.docker and asked("docker").manner.form is None
    assert asked("oci").manner.form == Form() and not asked("oci").manner.docker
    assert asked("local", name="x", platform_split="false").split is False
    assert asked("tar").split is None


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("bogus", {}, 'exporter "bogus" could not be found'),
        ("image", {"push": "maybe", "name": "a"}, 'non-bool value specified for push: "maybe"'),
        ("image", {"push": "true"}, "tag is needed when pushing to registry"),
        ("image", {"compression": "lz4"}, "unsupported layer compression type lz4"),
        ("image", {"compression_level": "x"}, 'non-integer value specified for compression-level: "x"'),
        ("image", {"compression_level": "10"}, "compression level 10: gzip has 0 to 9"),
        ("image", {"pussh": "true"}, 'unknown attribute "pussh"'),
        ("image", {"annotation.": "x"}, 'invalid annotation "annotation."'),
        ("local", {"compression": "gzip"}, 'unknown attribute "compression"'),
        ("image", {"name": "UPPER"}, "must be lowercase"),
    ],
)
def test_what_is_wrong_is_told(kind: str, attributes: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message.replace(".", r"\.")):
        asked(kind, **attributes)


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(NotImplementedYet):
        asked("image", name="a", compression="estargz")


def test_a_push_by_digest_has_no_tag() -> None:
    one = asked("image", name="reg.example/a", push="true", push_by_digest="true")
    assert one.digests and one.names == (parse("reg.example/a"),) and one.stored and not one.insecure
    assert not asked("image", name="a:1", push_by_digest="true").digests  # nothing is pushed
    with pytest.raises(InvalidParameter, match=r"can't push tagged ref docker\.io/library/a:1 by digest"):
        asked("image", name="a:1", push="true", push_by_digest="true")


def test_an_annotation_of_several_things() -> None:
    assert asked("image", annotations=("index,manifest[linux/arm64]:a:b=c",)).annotations == (
        Annotation("index", "a:b", "c"), Annotation("manifest", "a:b", "c", Platform("arm64", "linux"))
    )  # fmt: skip


def test_annotations() -> None:
    one = asked("image", annotations=("a=1", "index:b=2", "manifest[linux/arm64]:c.d/e=3=4"), **{"annotation-manifest-descriptor.f": "5"})
    arm = Platform(architecture="arm64")
    assert one.annotations == (
        Annotation("manifest", "a", "1"), Annotation("index", "b", "2"), Annotation("manifest", "c.d/e", "3=4", arm),
        Annotation("manifest-descriptor", "f", "5"),
    )  # fmt: skip


# -- carrying out


class Client:
    """Takes streams."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.data = b""

    def report(self, text: str, *, done: bool = False) -> None:
        if done:
            self.told.append(text)

    async def send(self, pieces: AsyncIterable[bytes]) -> None:
        async for piece in pieces:
            self.data += piece

    def around(self, **more: Any) -> Surroundings:
        return Surroundings(report=self.report, send=self.send, **more)

    def tar(self) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(self.data)) as archive:
            return {info.name: (archive.extractfile(info) or io.BytesIO()).read() if info.isreg() else b"" for info in archive}


def part(bench: Bench, *layers: dict[str, bytes | None], platform: Platform = AMD64) -> Part:
    added: list[Added] = []
    parent = ""
    for layer in layers:
        row = bench.layer(layer, parent)
        added.append(Added(row, 10**18))
        parent = row.name
    return Part(msgspec.structs.replace(target_of(len(layers)), platform=platform), added)


def with_bench(work: Any) -> None:
    with folder() as root, open_stores(root) as stores:
        trio.run(work, Bench(stores))


def test_files_as_a_tar() -> None:
    async def main(bench: Bench) -> None:
        client = Client()
        one = part(bench, {"a": b"1", "d/b": b"2"}, {"a": None, "d/c": b"3"})
        assert await carry_out(bench.context, asked("tar"), [one], client.around()) is None
        assert client.tar() == {"d": b"", "d/b": b"2", "d/c": b"3"}
        assert client.told == ["sending tarball"]
        assert len(bench.images.store) == 0 and not bench.images._pinned

    with_bench(main)


def test_files_of_several_platforms_have_folders() -> None:
    async def main(bench: Bench) -> None:
        parts = [part(bench, {"a": b"1"}), part(bench, {"a": b"2"}, platform=Platform(architecture="arm", variant="v7"))]
        client = Client()
        around = client.around(files=lambda part: {"provenance.json": part.target.platform.architecture.encode()})
        await carry_out(bench.context, asked("local", attestation_prefix="x."), parts, around)
        assert client.tar() == {
            "linux_amd64": b"", "linux_amd64/x.provenance.json": b"amd64", "linux_amd64/a": b"1", "linux_arm_v7": b"",
            "linux_arm_v7/x.provenance.json": b"arm", "linux_arm_v7/a": b"2",
        }  # fmt: skip
        with pytest.raises(NotImplementedYet):
            await carry_out(bench.context, asked("local", platform_split="false"), parts, around)

    with_bench(main)


def test_nothing_as_a_tar() -> None:
    async def main(bench: Bench) -> None:
        client = Client()
        await carry_out(bench.context, asked("tar"), [part(bench)], client.around())
        assert client.data == bytes(1024)

    with_bench(main)


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_image_as_an_archive(kind: str) -> None:
    async def main(bench: Bench) -> None:
        client = Client()
        made = await carry_out(bench.context, asked(kind, tags=("app", "other:2")), [part(bench, {"a": b"1"})], client.around())
        assert made is not None
        found = client.tar()
        index = json.loads(found["index.json"])
        assert {one["digest"] for one in index["manifests"]} == {made.digest}
        (docker,) = json.loads(found["manifest.json"])
        assert docker["RepoTags"] == ["app:latest", "other:2"]
        manifest = json.loads(found[f"blobs/sha256/{made.digest[7:]}"])
        assert manifest["mediaType"] == (spec.MEDIA_MANIFEST if kind == "oci" else spec.DOCKER_MANIFEST)
        layer = found[f"blobs/sha256/{manifest['layers'][0]['digest'][7:]}"]
        assert sha256(gzip.decompress(layer) if kind == "oci" else layer) == made.image.diff_ids[0]
        assert client.told[-1] == "sending tarball"
        assert len(bench.images.store) == 0 and bench.stores.content.list() == [] and not bench.images._pinned
        assert not bench.events

    with_bench(main)


def test_an_archive_leaves_the_image_in_the_store_as_it_was() -> None:
    async def main(bench: Bench) -> None:
        one = part(bench, {"a": b"1"})
        stored = await carry_out(bench.context, asked("image", tags=("app",)), [one], Client().around())
        assert stored is not None
        await carry_out(bench.context, asked("oci", **{"annotation.k": "v"}), [one], Client().around())
        assert bench.images.get("app").manifest == stored.digest
        assert {digest for digest, _ in bench.stores.content.list()} == {stored.digest, stored.image.id}

    with_bench(main)


def test_several_platforms_as_an_archive() -> None:
    async def main(bench: Bench) -> None:
        parts = [part(bench, {"a": b"1"}), part(bench, {"a": b"2"}, platform=Platform(architecture="arm64"))]
        client = Client()
        made = await carry_out(bench.context, asked("oci", **{"annotation-index.k": "v"}), parts, client.around())
        assert made is not None
        index = json.loads(client.tar()[f"blobs/sha256/{made.digest[7:]}"])
        assert len(index["manifests"]) == 2 and index["annotations"] == {"k": "v"}
        with pytest.raises(InvalidParameter, match="does not currently support exporting manifest lists"):
            await carry_out(bench.context, asked("docker"), parts, client.around())
        with pytest.raises(InvalidParameter, match="index annotations not supported for single platform export"):
            await carry_out(bench.context, asked("oci", **{"annotation-index.k": "v"}), parts[:1], client.around())

    with_bench(main)


def test_annotations_of_one_of_several_platforms() -> None:
    async def main(bench: Bench) -> None:
        parts = [part(bench, {"a": b"1"}), part(bench, {"a": b"2"}, platform=Platform(architecture="arm64"))]
        client = Client()
        wanted = {
            "annotation.a": "all", "annotation[linux/arm64].a": "arm", "annotation[linux/amd64].b": "amd",
            "annotation-manifest-descriptor[linux/arm64].c": "beside",
        }  # fmt: skip
        made = await carry_out(bench.context, asked("oci", **wanted), parts, client.around())
        assert made is not None
        files = client.tar()
        members = json.loads(files[f"blobs/sha256/{made.digest[7:]}"])["manifests"]
        assert [one.get("annotations") for one in members] == [None, {"c": "beside"}]
        manifests = [json.loads(files[f"blobs/sha256/{one['digest'][7:]}"]) for one in members]
        assert [one["annotations"] for one in manifests] == [{"a": "all", "b": "amd"}, {"a": "arm"}]
        with pytest.raises(InvalidParameter, match=r"invalid annotation: no platform linux/s390x found in source"):
            await carry_out(bench.context, asked("oci", **{"annotation[linux/s390x].a": "1"}), parts, client.around())

    with_bench(main)


def test_an_image_that_is_not_stored_leaves_nothing() -> None:
    async def main(bench: Bench) -> None:
        made = await carry_out(bench.context, asked("image", tags=("app",), store="false"), [part(bench, {"a": b"1"})], Client().around())
        assert made is not None and made.digest.startswith("sha256:")
        assert list(bench.images.store) == [] and bench.stores.content.list() == []

    with_bench(main)


def test_a_client_that_goes_ends_the_work() -> None:
    async def main(bench: Bench) -> None:
        one = part(bench, {"a": b"1" * (8 << 20)})

        async def send(pieces: AsyncIterable[bytes]) -> None:
            async for _ in pieces:
                raise KnarrError("the client is gone")

        around = Surroundings(report=Client().report, send=send)
        for one_output in (asked("tar"), asked("oci", compression="uncompressed")):
            with pytest.raises(KnarrError, match="the client is gone"):
                await carry_out(bench.context, one_output, [one], around)
        assert not bench.images._pinned and bench.stores.content.list() == []

    with_bench(main)


def test_names_with_digests() -> None:
    async def main(bench: Bench) -> None:
        one = part(bench, {"a": b"1"})
        made = await carry_out(bench.context, asked("image", tags=("app",), name_canonical="true"), [one], Client().around())
        assert made is not None
        assert bench.images.get(f"app@{made.digest}").id == made.image.id
        other = await carry_out(bench.context, asked("image", dangling_name_prefix="loose"), [part(bench, {"b": b"1"})], Client().around())
        assert other is not None
        assert bench.images.get(f"loose@{other.digest}").id == other.image.id

    with_bench(main)


def test_an_output_may_be_nothing() -> None:
    async def main(bench: Bench) -> None:
        assert await carry_out(bench.context, asked("cacheonly"), [part(bench, {"a": b"1"})], Client().around()) is None
        with pytest.raises(InvalidParameter, match="needs a client that takes it"):
            await carry_out(bench.context, asked("tar"), [part(bench)], Surroundings(report=Client().report))

    with_bench(main)


def test_metadata() -> None:
    async def main(bench: Bench) -> None:
        made = await carry_out(bench.context, asked("image", tags=("app",)), [part(bench, {"a": b"1"})], Client().around())
        assert made is not None
        found = json.loads(msgspec.json.encode(metadata(made, (parse("app"),))))
        assert found["image.name"] == "docker.io/library/app:latest"
        assert found["containerimage.descriptor"] == {"mediaType": spec.MEDIA_MANIFEST, "digest": made.digest, "size": made.size}
        assert found["containerimage.config.digest"] == made.image.id and found["containerimage.digest"] == made.digest

    with_bench(main)


def test_times_are_bounded_by_the_epoch() -> None:
    async def main(bench: Bench) -> None:
        one = part(bench, {"a": b"1"})
        os.utime(Path(bench.stores.snapshots.upper(one.added[0].snapshot.name), "a"), (5000, 5000))
        client = Client()
        await carry_out(bench.context, asked("tar", 100), [one], client.around())
        with tarfile.open(fileobj=io.BytesIO(client.data)) as archive:
            assert [info.mtime for info in archive] == [100]

    with_bench(main)
