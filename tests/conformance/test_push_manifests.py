"""Distribution specification 1.1, "Pushing Manifests": by tag and digest, indexes, subjects, several tags, and what is refused."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.lib.distribution import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Client,
    descriptor,
    digest_of,
)

DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def manifest_of(registry: Client, name: str, **fields: Any) -> dict[str, Any]:
    """A manifest whose blobs are pushed."""
    config, layer = b"{}", os.urandom(50)
    registry.push_blob(name, config)
    registry.push_blob(name, layer)
    return {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(config, OCI_CONFIG), "layers": [descriptor(layer, OCI_LAYER)],
        **fields,
    }  # fmt: skip


def index_of(*manifests: bytes, kind: str = OCI_INDEX, member: str = OCI_MANIFEST) -> dict[str, Any]:
    return {
        "schemaVersion": 2, "mediaType": kind,
        "manifests": [descriptor(raw, member, platform={"os": "linux", "architecture": "amd64"}) for raw in manifests],
    }  # fmt: skip


def test_push_by_tag(registry: Client, name: str) -> None:
    """end-7a: PUT answers 201 with the Location of the manifest, by its digest."""
    raw = json.dumps(manifest_of(registry, name)).encode()
    answer = registry.put_manifest(name, "v1", raw)
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest_of(raw))
    assert registry.get(answer.headers["location"], Accept=ACCEPT).body == raw


def test_push_by_digest(registry: Client, name: str) -> None:
    """PUT by digest stores a manifest without any tag; the digest must be that of the bytes."""
    raw = json.dumps(manifest_of(registry, name)).encode()
    assert registry.put_manifest(name, digest_of(raw), raw).status == 201
    assert registry.get(f"/v2/{name}/manifests/{digest_of(raw)}", Accept=ACCEPT).body == raw
    answer = registry.put_manifest(name, digest_of(b"other"), raw)
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


def test_a_tag_moves(registry: Client, name: str) -> None:
    """A tag stands for what was pushed last; what it stood for before is there by digest."""
    first, _ = registry.push_image(name, "latest")
    second, _ = registry.push_image(name, "latest")
    assert registry.head(f"/v2/{name}/manifests/latest", Accept=ACCEPT).headers["docker-content-digest"] == second
    assert registry.head(f"/v2/{name}/manifests/{first}", Accept=ACCEPT).status == 200


def test_the_bytes_are_the_truth(registry: Client, name: str) -> None:
    """A registry must not change a manifest: spaces, order and unknown members stay."""
    raw = json.dumps({"x-unknown": [1, {"a": None}], **manifest_of(registry, name)}, indent=7).encode() + b"\n\n"
    assert registry.put_manifest(name, "odd", raw).status == 201
    assert registry.get(f"/v2/{name}/manifests/odd", Accept=ACCEPT).body == raw


def test_docker_manifest_and_list(registry: Client, name: str) -> None:
    """Docker's media types are stored and given out as such."""
    config, layer = b'{"architecture":"amd64","os":"linux"}', os.urandom(50)
    registry.push_blob(name, config)
    registry.push_blob(name, layer)
    layers = [descriptor(layer, DOCKER_LAYER)]
    manifest = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": descriptor(config, DOCKER_CONFIG), "layers": layers}
    raw = json.dumps(manifest).encode()
    assert registry.put_manifest(name, digest_of(raw), raw, DOCKER_MANIFEST).status == 201
    assert registry.put_manifest(name, "multi", index_of(raw, kind=DOCKER_LIST, member=DOCKER_MANIFEST)).status == 201
    answer = registry.get(f"/v2/{name}/manifests/multi", Accept=ACCEPT)
    assert answer.headers["content-type"] == DOCKER_LIST
    assert registry.get(f"/v2/{name}/manifests/{digest_of(raw)}", Accept=ACCEPT).headers["content-type"] == DOCKER_MANIFEST


def test_index_of_what_is_there(registry: Client, name: str) -> None:
    """An index of manifests of the repository is stored and given out with its media type."""
    _, one = registry.push_image(name)
    _, two = registry.push_image(name)
    assert registry.put_manifest(name, "multi", index_of(one, two)).status == 201
    assert registry.get(f"/v2/{name}/manifests/multi", Accept=ACCEPT).headers["content-type"] == OCI_INDEX


def test_index_of_what_is_missing(registry: Client, name: str) -> None:
    """An index that names a manifest that is not there is refused, as by Docker's registry: MANIFEST_BLOB_UNKNOWN."""
    _, one = registry.push_image(name)
    answer = registry.put_manifest(name, "multi", index_of(one, b"missing"))
    assert answer.code == "MANIFEST_BLOB_UNKNOWN"
    assert answer.status in (400, 404)
    assert registry.head(f"/v2/{name}/manifests/multi", Accept=ACCEPT).status == 404


@pytest.mark.parametrize("part", ["config", "layers"])
def test_a_manifest_of_blobs_that_are_missing(registry: Client, name: str, part: str) -> None:
    """A manifest must name blobs that are there; every missing one is told with MANIFEST_BLOB_UNKNOWN."""
    manifest = manifest_of(registry, name)
    lost = descriptor(b"never pushed", OCI_LAYER)
    manifest[part] = lost if part == "config" else [*manifest["layers"], lost]
    answer = registry.put_manifest(name, "latest", manifest)
    assert answer.code == "MANIFEST_BLOB_UNKNOWN"
    assert lost["digest"] in answer.body.decode()
    assert registry.head(f"/v2/{name}/manifests/latest", Accept=ACCEPT).status == 404


def test_a_blob_of_another_repository_is_missing(registry: Client, name: str) -> None:
    """A manifest cannot reach blobs that only another repository has."""
    manifest = manifest_of(registry, f"{name}/private")
    registry.push_blob(name, b"{}")
    assert registry.put_manifest(name, "latest", manifest).code == "MANIFEST_BLOB_UNKNOWN"


def test_foreign_layers_need_not_be_here(registry: Client, name: str, ours: None) -> None:
    """Layers that may not be distributed are named with URLs and not pushed."""
    urls = ["https://example.com/layer"]
    foreign = descriptor(b"far away", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", urls=urls)
    manifest = manifest_of(registry, name)
    manifest["layers"].append(foreign)
    assert registry.put_manifest(name, "latest", manifest).status == 201


def test_an_artifact_without_layers(registry: Client, name: str) -> None:
    """The list of blobs may be empty; artifacts have the empty descriptor as config."""
    registry.push_blob(name, b"{}")
    manifest = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example", "config": descriptor(b"{}", OCI_EMPTY),
        "layers": [],
    }  # fmt: skip
    assert registry.put_manifest(name, "artifact", manifest).status == 201


def test_the_size_of_a_blob_must_be_right(registry: Client, name: str, ours: None) -> None:
    """A descriptor whose size is not the blob's could not be pulled: 400 MANIFEST_INVALID."""
    manifest = manifest_of(registry, name)
    manifest["layers"][0]["size"] += 1
    answer = registry.put_manifest(name, "latest", manifest)
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"{}", b'{"schemaVersion":3}', b'{"schemaVersion":2,"layers":[]}', b"\xff\xfe",
        b"[" * 100_000,
        b'{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[]}', b'{"schemaVersion":2,"config":{"digest":"../../etc/passwd"}}',
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_manifest(registry: Client, name: str, raw: bytes, ours: None) -> None:
    """400 MANIFEST_INVALID, whatever was sent."""
    answer = registry.put_manifest(name, "latest", raw)
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


def test_media_types_must_agree(registry: Client, name: str, ours: None) -> None:
    """The header and the document must not say different things, nor may a document be an image and an index (CVE-2021-41190)."""
    manifest = manifest_of(registry, name)
    assert registry.put_manifest(name, "a", manifest, DOCKER_MANIFEST).code == "MANIFEST_INVALID"
    assert registry.put_manifest(name, "b", {**manifest, "manifests": []}).code == "MANIFEST_INVALID"
    assert registry.put_manifest(name, "c", {**index_of(), "layers": manifest["layers"]}).code == "MANIFEST_INVALID"
    assert registry.put_manifest(name, "d", manifest, "text/html").code == "MANIFEST_INVALID"
    assert registry.put_manifest(name, "e", {**manifest, "mediaType": "application/x-evil"}, OCI_MANIFEST).code == "MANIFEST_INVALID"


@pytest.mark.parametrize("length", ["announced", "chunked"])
def test_a_manifest_that_is_too_large(registry: Client, name: str, length: str, ours: None) -> None:
    """4 MiB are taken, as the specification asks; more is 413."""
    manifest = manifest_of(registry, name)
    fits = json.dumps(manifest).encode().ljust(4 * 1024 * 1024)
    assert registry.put_manifest(name, "fits", fits).status == 201
    body: Any = fits + b" "
    headers = {"Content-Type": OCI_MANIFEST}
    if length == "chunked":
        body, headers = iter([fits, b" "]), {**headers, "Transfer-Encoding": "chunked"}
    try:
        answer = Client(registry.url).request("PUT", f"/v2/{name}/manifests/large", body, headers)
    except (ConnectionError, BrokenPipeError):
        pass  # the reply came before all was sent, and the connection was closed
    else:
        assert (answer.status, answer.code) == (413, "MANIFEST_INVALID")
    assert registry.head(f"/v2/{name}/manifests/large").status == 404


@pytest.mark.parametrize("tag", ["-dash", ".dot", "a" * 129, "sp%20ace"])
def test_a_malformed_tag(registry: Client, name: str, tag: str, ours: None) -> None:
    """Tags outside of the grammar are refused."""
    answer = registry.put_manifest(name, tag, manifest_of(registry, name))
    assert (answer.status, answer.code) == (400, "TAG_INVALID")


def test_several_tags_at_once(registry: Client, name: str, ours: None) -> None:
    """end-7b: PUT by digest with `tag` parameters sets all of these tags, and the reply says which (OCI-Tag). Ten at least."""
    raw = json.dumps(manifest_of(registry, name)).encode()
    tags = [f"v{number}" for number in range(12)]
    answer = registry.put_manifest(name, f"{digest_of(raw)}?" + "&".join(f"tag={tag}" for tag in tags), raw)
    assert answer.status == 201
    assert [value for key, value in answer.all if key == "OCI-Tag"] == tags
    assert sorted(registry.get(f"/v2/{name}/tags/list").json()["tags"]) == sorted(tags)
    assert registry.head(f"/v2/{name}/manifests/v7").headers["docker-content-digest"] == digest_of(raw)


def test_several_tags_all_or_none(registry: Client, name: str, ours: None) -> None:
    """One malformed tag, or tags at a push by tag, and nothing is stored."""
    raw = json.dumps(manifest_of(registry, name)).encode()
    assert registry.put_manifest(name, f"{digest_of(raw)}?tag=good&tag=-bad", raw).code == "TAG_INVALID"
    assert registry.put_manifest(name, "latest?tag=other", raw).code == "TAG_INVALID"
    assert registry.head(f"/v2/{name}/manifests/{digest_of(raw)}").status == 404


def test_a_manifest_by_another_digest(registry: Client, name: str, ours: None) -> None:
    """A manifest may be pushed by its sha512 digest, and is then known by that."""
    raw = json.dumps(manifest_of(registry, name)).encode()
    digest = digest_of(raw, "sha512")
    assert registry.put_manifest(name, f"{digest}?tag=strong", raw).status == 201
    for reference in (digest, "strong"):
        answer = registry.get(f"/v2/{name}/manifests/{reference}")
        assert (answer.status, answer.headers["docker-content-digest"], answer.body) == (200, digest, raw)


def test_a_subject_is_confirmed(registry: Client, name: str, ours: None) -> None:
    """A manifest with a subject is taken whether that is there or not; OCI-Subject tells that the referrers API knows it."""
    subject = descriptor(b"not pushed yet", OCI_MANIFEST)
    answer = registry.put_manifest(name, "signature", manifest_of(registry, name, subject=subject))
    assert (answer.status, answer.headers["oci-subject"]) == (201, subject["digest"])
