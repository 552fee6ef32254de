"""Distribution specification 1.1, "Pull": manifests and blobs by tag and digest, parts of blobs, conditional requests."""

from __future__ import annotations

import json
import os

import pytest

from tests.lib.distribution import ACCEPT, OCI_MANIFEST, Client, digest_of

MISSING = digest_of(b"this is nowhere")


def test_base_says_that_the_api_is_there(registry: Client) -> None:
    """end-1: GET /v2/ answers 200 where the specification is implemented; Docker's clients look for the version header."""
    answer = registry.get("/v2/")
    assert answer.status == 200
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_a_manifest_comes_as_it_was_pushed(registry: Client, name: str, by: str) -> None:
    """end-3: GET of a manifest answers 200, its bytes unchanged, with the media type it was pushed with and its digest."""
    digest, raw = registry.push_image(name, "latest")
    answer = registry.get(f"/v2/{name}/manifests/{digest if by == 'digest' else 'latest'}", Accept=ACCEPT)
    assert (answer.status, answer.body) == (200, raw)
    assert answer.headers["content-type"] == OCI_MANIFEST
    assert answer.headers["docker-content-digest"] == digest


def test_head_of_a_manifest_has_the_head_alone(registry: Client, name: str) -> None:
    """HEAD answers like GET without the body: status, length and digest tell whether the content is there."""
    digest, raw = registry.push_image(name, "latest")
    for reference in ("latest", digest):
        answer = registry.head(f"/v2/{name}/manifests/{reference}", Accept=ACCEPT)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-length"] == str(len(raw))
        assert answer.headers["docker-content-digest"] == digest


@pytest.mark.parametrize("reference", ["nothing", MISSING])
def test_an_unknown_manifest_is_not_found(registry: Client, name: str, reference: str) -> None:
    """A manifest that is not there is 404, with MANIFEST_UNKNOWN in a body of the specified form."""
    registry.push_image(name, "latest")
    answer = registry.get(f"/v2/{name}/manifests/{reference}", Accept=ACCEPT)
    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    assert registry.head(f"/v2/{name}/manifests/{reference}", Accept=ACCEPT).status == 404


def test_a_malformed_reference_is_not_found(registry: Client, name: str) -> None:
    """What can be neither a tag nor a digest names nothing."""
    registry.push_image(name, "latest")
    assert registry.get(f"/v2/{name}/manifests/.INVALID_MANIFEST_NAME", Accept=ACCEPT).status == 404


def test_an_unknown_repository_is_not_found(registry: Client, name: str) -> None:
    """Pulling from a repository that does not exist is 404."""
    assert registry.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).status == 404
    assert registry.get(f"/v2/{name}/blobs/{MISSING}").status == 404


def test_a_blob_comes_with_its_length_and_digest(registry: Client, name: str) -> None:
    """end-2: GET of a blob answers 200 and the content; HEAD the same without it."""
    data = os.urandom(300_000)
    digest = registry.push_blob(name, data)
    answer = registry.get(f"/v2/{name}/blobs/{digest}")
    assert (answer.status, answer.body) == (200, data)
    assert answer.headers["docker-content-digest"] == digest
    head = registry.head(f"/v2/{name}/blobs/{digest}")
    assert (head.status, head.headers["content-length"], head.body) == (200, "300000", b"")


def test_an_unknown_blob_is_not_found(registry: Client, name: str) -> None:
    """A blob that is not in the repository is 404 BLOB_UNKNOWN."""
    registry.push_blob(name, b"something")
    answer = registry.get(f"/v2/{name}/blobs/{MISSING}")
    assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    assert registry.head(f"/v2/{name}/blobs/{MISSING}").status == 404


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), ("bytes=90-", 90, 99), ("bytes=-5", 95, 99), ("bytes=50-500", 50, 99)],
)  # fmt: skip
def test_a_part_of_a_blob(registry: Client, name: str, wanted: str, first: int, last: int) -> None:
    """A registry should serve ranges of blobs (RFC 9110): 206, the part, and where it lies."""
    data = os.urandom(100)
    digest = registry.push_blob(name, data)
    answer = registry.get(f"/v2/{name}/blobs/{digest}", Range=wanted)
    assert (answer.status, answer.body) == (206, data[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/100"


def test_a_part_outside_of_the_blob(registry: Client, name: str, conforming: None) -> None:
    """A range that begins behind the end is 416, and the reply says how long the blob is."""
    digest = registry.push_blob(name, b"x" * 100)
    answer = registry.get(f"/v2/{name}/blobs/{digest}", Range="bytes=100-")
    assert answer.status == 416
    assert answer.headers["content-range"] == "bytes */100"


def test_a_range_that_is_none_is_ignored(registry: Client, name: str, ours: None) -> None:
    """RFC 9110 section 14.2: a Range that is malformed or of another unit counts as absent; so do several ranges here."""
    digest = registry.push_blob(name, b"x" * 100)
    for wanted in ("bytes=5-2", "lines=1-2", "bytes=0-1,3-4", "bytes=-", "bytes=a-b"):
        assert registry.get(f"/v2/{name}/blobs/{digest}", Range=wanted).status == 200, wanted


def test_content_that_the_client_has_is_not_sent_again(registry: Client, name: str) -> None:
    """The digest is the entity tag: If-None-Match with it is answered with 304 and no body."""
    digest, _ = registry.push_image(name, "latest")
    etag = registry.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).headers["etag"]
    answer = registry.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT, If_None_Match=etag)
    assert (answer.status, answer.body) == (304, b"")
    changed, _ = registry.push_image(name, "latest")
    assert changed != digest
    assert registry.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT, If_None_Match=etag).status == 200


def test_a_resumed_download_continues_only_the_same_blob(registry: Client, name: str, ours: None) -> None:
    """If-Range: the part when the tag is the blob's, else the whole."""
    digest = registry.push_blob(name, b"0123456789")
    path = f"/v2/{name}/blobs/{digest}"
    assert registry.get(path, Range="bytes=5-", If_Range=f'"{digest}"').body == b"56789"
    assert registry.get(path, Range="bytes=5-", If_Range='"other"').body == b"0123456789"


@pytest.mark.parametrize("wrong", ["UPPER/case", "a//b", "-a/b", "a/b_", "a/.hidden", "a" * 256])
def test_a_name_outside_of_the_grammar(registry: Client, wrong: str, ours: None) -> None:
    """Names that the grammar does not have are refused with NAME_INVALID; they never become paths."""
    answer = registry.get(f"/v2/{wrong}/manifests/latest", Accept=ACCEPT)
    assert (answer.status, answer.code) == (400, "NAME_INVALID")


@pytest.mark.parametrize(
    "path", ["/v2/../../etc/passwd", "/v2/a/blobs/../../../etc/passwd", "/v2/%2e%2e/%2e%2e/manifests/latest", "/v3/", "/"]
)
def test_what_is_no_address_names_nothing(registry: Client, path: str, ours: None) -> None:
    """Nothing outside of the end points is served."""
    assert registry.get(path).status in (400, 404)


def test_errors_are_json_of_the_specified_form(registry: Client, name: str) -> None:
    """An error's body is {"errors": [{"code", "message", "detail"}]} as application/json."""
    answer = registry.get(f"/v2/{name}/tags/list")
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("application/json")
    (error,) = json.loads(answer.body)["errors"]
    assert error["code"] == "NAME_UNKNOWN"
    assert isinstance(error["message"], str)


def test_a_repository_may_be_called_like_an_end_point(registry: Client, name: str) -> None:
    """A name is everything before the last end point in the path."""
    odd = f"{name}/manifests/blobs/uploads"
    _, raw = registry.push_image(odd, "tags")
    assert registry.get(f"/v2/{odd}/manifests/tags", Accept=ACCEPT).body == raw
    assert registry.get(f"/v2/{odd}/tags/list").json()["tags"] == ["tags"]


def test_a_method_that_an_end_point_does_not_have(registry: Client, name: str, ours: None) -> None:
    """405 UNSUPPORTED."""
    registry.push_image(name, "latest")
    for method, path in (("POST", f"/v2/{name}/manifests/latest"), ("PUT", f"/v2/{name}/tags/list"), ("POST", "/v2/_catalog")):
        answer = registry.request(method, path, b"")
        assert (answer.status, answer.code) == (405, "UNSUPPORTED"), path
