"""Distribution specification 1.1, "Content Management": deleting tags, manifests and blobs, and what follows from that."""

from __future__ import annotations

import json

from tests.conformance.test_discovery import refer, referrers
from tests.lib.distribution import ACCEPT, OCI_INDEX, OCI_MANIFEST, Client, descriptor, digest_of


def test_delete_a_tag(registry: Client, name: str, ours: None) -> None:
    """end-9: DELETE of a tag answers 202; the tag is gone, the manifest and its other tags are not."""
    digest, raw = registry.push_image(name, "one")
    registry.put_manifest(name, "two", raw)
    assert registry.request("DELETE", f"/v2/{name}/manifests/one").status == 202
    assert registry.get(f"/v2/{name}/tags/list").json()["tags"] == ["two"]
    assert registry.head(f"/v2/{name}/manifests/one").status == 404
    assert registry.head(f"/v2/{name}/manifests/{digest}").status == 200


def test_delete_a_manifest(registry: Client, name: str) -> None:
    """DELETE by digest answers 202; the manifest and every tag on it are gone."""
    digest, raw = registry.push_image(name, "one")
    registry.put_manifest(name, "two", raw)
    kept, _ = registry.push_image(name, "kept")
    assert registry.request("DELETE", f"/v2/{name}/manifests/{digest}").status == 202
    for reference in ("one", "two", digest):
        assert registry.get(f"/v2/{name}/manifests/{reference}", Accept=ACCEPT).status == 404
    assert registry.get(f"/v2/{name}/tags/list").json()["tags"] == ["kept"]
    assert registry.head(f"/v2/{name}/manifests/{kept}", Accept=ACCEPT).status == 200


def test_delete_what_is_not_there(registry: Client, name: str, ours: None) -> None:
    """404 for a tag, a manifest or a blob that does not exist, in a repository that does and in one that does not."""
    registry.push_image(name, "latest")
    nowhere = digest_of(b"nowhere")
    for path, code in (
        (f"{name}/manifests/missing", "MANIFEST_UNKNOWN"), (f"{name}/manifests/{nowhere}", "MANIFEST_UNKNOWN"),
        (f"{name}/blobs/{nowhere}", "BLOB_UNKNOWN"), (f"{name}/x/manifests/{nowhere}", "NAME_UNKNOWN"),
        (f"{name}/x/manifests/latest", "NAME_UNKNOWN"), (f"{name}/x/blobs/{nowhere}", "BLOB_UNKNOWN"),
    ):  # fmt: skip
        answer = registry.request("DELETE", f"/v2/{path}")
        assert (answer.status, answer.code) == (404, code), path


def test_delete_a_blob(registry: Client, name: str) -> None:
    """end-10: DELETE of a blob answers 202; it is gone from this repository, and only from this one."""
    digest = registry.push_blob(name, b"shared")
    registry.push_blob(f"{name}/other", b"shared")
    assert registry.request("DELETE", f"/v2/{name}/blobs/{digest}").status == 202
    assert registry.get(f"/v2/{name}/blobs/{digest}").status == 404
    assert registry.get(f"/v2/{name}/other/blobs/{digest}").body == b"shared"


def test_push_again_what_was_deleted(registry: Client, name: str) -> None:
    """What was deleted can be pushed again."""
    digest, raw = registry.push_image(name, "latest")
    assert registry.request("DELETE", f"/v2/{name}/manifests/{digest}").status == 202
    assert registry.put_manifest(name, "latest", raw).status == 201
    assert registry.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).body == raw


def test_a_deleted_referrer_is_not_listed(registry: Client, name: str, ours: None) -> None:
    """Neither by the referrers API nor in the index that a client keeps under the fallback tag."""
    digest, raw = registry.push_image(name, "latest")
    subject, tag = descriptor(raw, OCI_MANIFEST), digest.replace(":", "-")
    first, second = refer(registry, name, subject, mark=1), refer(registry, name, subject, mark=2)
    entries = [descriptor(one, OCI_MANIFEST) for one in (first, second)]
    assert registry.put_manifest(name, tag, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).status == 201

    assert registry.request("DELETE", f"/v2/{name}/manifests/{digest_of(first)}").status == 202
    assert [one["digest"] for one in referrers(registry, name, digest)] == [digest_of(second)]
    fallback = json.loads(registry.get(f"/v2/{name}/manifests/{tag}").body)
    assert [one["digest"] for one in fallback["manifests"]] == [digest_of(second)]

    assert registry.request("DELETE", f"/v2/{name}/manifests/{digest_of(second)}").status == 202
    assert referrers(registry, name, digest) == []
    assert registry.get(f"/v2/{name}/tags/list").json()["tags"] == ["latest"]
