"""Distribution specification 1.1, "Content Discovery": tags, referrers; and `_catalog` of Docker's registry."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.lib.distribution import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, Client, descriptor, digest_of


def next_page(registry: Client, link: str) -> str:
    target, _, relation = link.partition(";")
    assert relation.strip() == 'rel="next"'
    return urljoin(f"{registry.url}/", target.strip("<>"))


def all_pages(registry: Client, path: str, key: str) -> list[list[str]]:
    """The lists of every page, following Link."""
    pages = []
    while True:
        answer = registry.get(path)
        assert answer.status == 200
        pages.append(answer.json()[key] or [])
        if "link" not in answer.headers:
            return pages
        path = next_page(registry, answer.headers["link"])


@pytest.fixture
def tagged(registry: Client, name: str) -> str:
    """A repository with five tags on one image."""
    _, raw = registry.push_image(name)
    for tag in ("v10", "alpha", "v2", "beta", "latest"):
        assert registry.put_manifest(name, tag, raw).status == 201
    return name


def test_all_tags_in_order(registry: Client, tagged: str, conforming: None) -> None:
    """end-8a: GET of tags/list answers 200 with the name and every tag in lexical order."""
    answer = registry.get(f"/v2/{tagged}/tags/list")
    assert answer.json() == {"name": tagged, "tags": ["alpha", "beta", "latest", "v10", "v2"]}


def test_tags_whatever_their_case(registry: Client, name: str, ours: None) -> None:
    """The order does not regard upper and lower case."""
    _, raw = registry.push_image(name)
    for tag in ("b", "A", "C", "a", "B"):
        registry.put_manifest(name, tag, raw)
    assert registry.get(f"/v2/{name}/tags/list").json()["tags"] == ["A", "a", "B", "b", "C"]
    assert all_pages(registry, f"/v2/{name}/tags/list?n=2", "tags") == [["A", "a"], ["B", "b"], ["C"]]


def test_tags_page_by_page(registry: Client, tagged: str, ours: None) -> None:
    """end-8b: n limits the list, last says where to go on, Link has the next page; the last one has no Link."""
    pages = all_pages(registry, f"/v2/{tagged}/tags/list?n=2", "tags")
    assert pages == [["alpha", "beta"], ["latest", "v10"], ["v2"]]
    assert all_pages(registry, f"/v2/{tagged}/tags/list?n=5", "tags") == [["alpha", "beta", "latest", "v10", "v2"]]


def test_tags_after_one_that_is_not_there(registry: Client, tagged: str, ours: None) -> None:
    """`last` is a value, not a position: what follows it is listed although it is no tag. n is optional with it."""
    assert registry.get(f"/v2/{tagged}/tags/list?last=b").json()["tags"] == ["beta", "latest", "v10", "v2"]
    assert registry.get(f"/v2/{tagged}/tags/list?n=1&last=latest").json()["tags"] == ["v10"]
    assert registry.get(f"/v2/{tagged}/tags/list?last=zzz").json()["tags"] == []


def test_no_tags_wanted(registry: Client, tagged: str, ours: None) -> None:
    """n=0 gives an empty list and no Link."""
    answer = registry.get(f"/v2/{tagged}/tags/list?n=0")
    assert answer.json()["tags"] == []
    assert "link" not in answer.headers


@pytest.mark.parametrize("wrong", ["-1", "x", "1.5", "9" * 30])
def test_a_wrong_number(registry: Client, tagged: str, wrong: str, ours: None) -> None:
    """400 for what is no number."""
    assert registry.get(f"/v2/{tagged}/tags/list?n={wrong}").status == 400
    assert registry.get(f"/v2/_catalog?n={wrong}").status == 400


def test_tags_of_an_unknown_repository(registry: Client, name: str) -> None:
    """404 NAME_UNKNOWN."""
    answer = registry.get(f"/v2/{name}/tags/list")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


def test_a_repository_without_tags(registry: Client, name: str, ours: None) -> None:
    """The list may be empty when the repository exists."""
    registry.push_image(name)
    assert registry.get(f"/v2/{name}/tags/list").json() == {"name": name, "tags": []}


def test_catalog_page_by_page(registry: Client, name: str) -> None:
    """`_catalog` lists repositories in order, in pages."""
    mine = [f"{name}/{letter}" for letter in "abc"]
    for repository in mine:
        registry.push_image(repository, "latest")
    whole = [one for page in all_pages(registry, "/v2/_catalog", "repositories") for one in page]
    paged = [one for page in all_pages(registry, "/v2/_catalog?n=2", "repositories") for one in page]
    assert [one for one in whole if one.startswith(name)] == mine
    assert paged == whole == sorted(whole)
    answer = registry.get(f"/v2/_catalog?n=1&last={name}/a")
    assert answer.json()["repositories"] == [f"{name}/b"]


# referrers


def refer(registry: Client, name: str, subject: dict[str, Any], kind: str = "application/vnd.example.sbom", **fields: Any) -> bytes:
    """Push an artifact that refers to `subject`; its bytes."""
    registry.push_blob(name, b"{}")
    config = descriptor(b"{}", OCI_EMPTY)
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "config": config, "layers": [], "subject": subject}
    manifest |= fields
    raw = json.dumps(manifest).encode()
    assert registry.put_manifest(name, digest_of(raw), raw).status == 201
    return raw


def referrers(registry: Client, name: str, digest: str, query: str = "") -> list[dict[str, Any]]:
    answer = registry.get(f"/v2/{name}/referrers/{digest}{query}")
    assert (answer.status, answer.headers["content-type"]) == (200, OCI_INDEX)
    index = answer.json()
    assert (index["schemaVersion"], index["mediaType"]) == (2, OCI_INDEX)
    return list(index["manifests"])


def test_referrers_of_a_manifest(registry: Client, name: str, ours: None) -> None:
    """end-12a: an index of what has this subject: media type, digest, size, artifact type, annotations of each."""
    digest, raw = registry.push_image(name, "latest")
    sbom = refer(registry, name, descriptor(raw, OCI_MANIFEST), annotations={"org.example": "yes"})
    assert referrers(registry, name, digest) == [
        descriptor(sbom, OCI_MANIFEST, artifactType="application/vnd.example.sbom", annotations={"org.example": "yes"})
    ]


def test_referrers_of_what_has_none(registry: Client, name: str, ours: None) -> None:
    """An empty index, never 404: for a manifest without referrers, one that is not there, and a repository that does not exist."""
    digest, _ = registry.push_image(name, "latest")
    for repository, subject in ((name, digest), (name, digest_of(b"nowhere")), (f"{name}/unknown", digest)):
        assert referrers(registry, repository, subject) == []


def test_referrers_of_no_digest(registry: Client, name: str, ours: None) -> None:
    """400 for what is no digest."""
    assert registry.get(f"/v2/{name}/referrers/latest").status == 400


def test_referrers_before_their_subject(registry: Client, name: str, ours: None) -> None:
    """A referrer may be pushed first."""
    subject = descriptor(b"later", OCI_MANIFEST)
    raw = refer(registry, name, subject)
    assert [one["digest"] for one in referrers(registry, name, subject["digest"])] == [digest_of(raw)]


def test_referrers_of_a_type(registry: Client, name: str, ours: None) -> None:
    """end-12b: only those of artifactType, and OCI-Filters-Applied says so."""
    digest, raw = registry.push_image(name, "latest")
    subject = descriptor(raw, OCI_MANIFEST)
    refer(registry, name, subject, "application/vnd.example.sbom")
    signature = refer(registry, name, subject, "application/vnd.example.signature+json")
    wanted = "?artifactType=application%2Fvnd.example.signature%2Bjson"
    assert [one["digest"] for one in referrers(registry, name, digest, wanted)] == [digest_of(signature)]
    answer = registry.get(f"/v2/{name}/referrers/{digest}{wanted}")
    assert answer.headers["oci-filters-applied"] == "artifactType"
    assert "oci-filters-applied" not in registry.get(f"/v2/{name}/referrers/{digest}").headers


def test_the_type_of_a_referrer_without_artifact_type(registry: Client, name: str, ours: None) -> None:
    """Without artifactType the config's media type stands for it; an index has none then."""
    digest, raw = registry.push_image(name, "latest")
    subject = descriptor(raw, OCI_MANIFEST)
    image, _ = registry.push_image(name, subject=subject)
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": subject}).encode()
    assert registry.put_manifest(name, digest_of(index), index, OCI_INDEX).status == 201
    found = {one["digest"]: one.get("artifactType") for one in referrers(registry, name, digest)}
    assert found == {image: "application/vnd.oci.image.config.v1+json", digest_of(index): None}


def test_many_referrers_come_in_pages(registry: Client, name: str, ours: None) -> None:
    """The reply stays within what clients read of an index; Link has the rest."""
    digest, raw = registry.push_image(name, "latest")
    subject = descriptor(raw, OCI_MANIFEST)
    filler = "x" * 1_200_000
    pushed = {digest_of(refer(registry, name, subject, annotations={"number": f"{number}", "filler": filler})) for number in range(5)}
    found: list[str] = []
    path, pages = f"/v2/{name}/referrers/{digest}?artifactType=application%2Fvnd.example.sbom", 0
    while path:
        answer = registry.get(path)
        assert len(answer.body) < 4 * 1024 * 1024
        found += [one["digest"] for one in answer.json()["manifests"]]
        path, pages = next_page(registry, answer.headers["link"]) if "link" in answer.headers else "", pages + 1
    assert set(found) == pushed
    assert len(found) == 5
    assert pages > 1


def test_referrers_pushed_with_the_fallback_tag(registry: Client, name: str, ours: None) -> None:
    """What a client without the referrers API pushed, with an index under the tag of the schema, is listed by the API too."""
    digest, raw = registry.push_image(name, "latest")
    sbom = refer(registry, name, descriptor(raw, OCI_MANIFEST))
    fallback = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(sbom, OCI_MANIFEST)]}
    assert registry.put_manifest(name, digest.replace(":", "-"), fallback).status == 201
    assert [one["digest"] for one in referrers(registry, name, digest)] == [digest_of(sbom)]
