"""The registry server's pure parts: addresses, ranges, manifests, settings, passwords, tokens, the referrers' pages."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidParameter
from engine.registry.server import auth, documents, names, referrers, settings, tokens
from engine.registry.server.app import needed
from engine.registry.server.errors import ManifestErrors, RegistryError
from engine.registry.server.names import Address
from engine.registry.server.proxy import source
from engine.registry.server.request import encode_fields, location
from engine.spec.docker.registry import Credentials
from engine.spec.image import DOCKER_MANIFEST, MEDIA_INDEX, MEDIA_MANIFEST
from engine.store.repositories import StoredManifest

A, B = ("sha256:" + letter * 64 for letter in "ab")


# addresses


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/", Address("base")),
        ("/v2", Address("base")),
        ("/v2/_catalog", Address("catalog")),
        ("/v2/a/tags/list", Address("tags", "a")),
        ("/v2/a/b/manifests/latest", Address("manifest", "a/b", "latest")),
        ("/v2/a/blobs/" + A, Address("blob", "a", A)),
        ("/v2/a/blobs/uploads/", Address("upload", "a")),
        ("/v2/a/blobs/uploads", Address("upload", "a")),
        ("/v2/a/blobs/uploads/0123", Address("upload", "a", "0123")),
        ("/v2/a/referrers/" + A, Address("referrers", "a", A)),
        ("/v2/a/manifests/b/manifests/c", Address("manifest", "a/manifests/b", "c")),
        ("/v2/blobs/uploads/blobs/uploads/", Address("upload", "blobs/uploads")),
        ("/v2/localhost:5000/a/manifests/x", Address("manifest", "localhost:5000/a", "x")),
        ("/v2/a", None),
        ("/v2/a/manifests/", None),
        ("/v1/a/manifests/b", None),
        ("/v2/" + "a/" * 2000 + "manifests/b", None),
    ],
)
def test_split(path: str, expected: Address | None) -> None:
    assert names.split(path) == expected


@pytest.mark.parametrize("name", ["a", "a/b/c", "a.b", "a_b", "a__b", "a--b", "0", "a" * 255])
def test_names(name: str) -> None:
    assert names.is_name(name)


@pytest.mark.parametrize(
    "name", ["", "A", "/a", "a/", "a//b", "a..b", ".a", "a.", "a___b", "a/../b", "a:5000/b", "a b", "a\n", "é", "a" * 256]
)
def test_no_names(name: str) -> None:
    assert not names.is_name(name)


def test_tags() -> None:
    assert all(map(names.is_tag, ("a", "A.b-C_d", "_x", "9", "x" * 128)))
    assert not any(map(names.is_tag, ("", ".a", "-a", "a/b", "a:b", "x" * 129, "a\n")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-9", (0, 9)), ("5-5", (5, 5)), ("bytes 3-4/10", (3, 4)), ("bytes=3-4", (3, 4)),
        ("9-0", None), ("-5", None), ("a-b", None), ("", None),
    ],
)
def test_content_range(text: str, expected: tuple[int, int] | None) -> None:
    assert names.content_range(text) == expected


@given(st.integers(0, 1000), st.integers(0, 1200), st.integers(0, 1200))
def test_byte_ranges_lie_within_the_blob(size: int, first: int, last: int) -> None:
    data = bytes(number % 256 for number in range(size))
    suffix = data[-first:] if first else b""
    both = f"bytes={first}-{last}"
    for text, expected in ((both, data[first : last + 1]), (f"bytes={first}-", data[first:]), (f"bytes=-{first}", suffix)):
        if last < first and text == both:
            assert names.byte_range(text, size) is None  # malformed, so that all of it is sent
        elif expected:
            offset, count = names.byte_range(text, size) or (0, 0)
            assert data[offset : offset + count] == expected
        else:
            with pytest.raises(RegistryError) as caught:
                names.byte_range(text, size)
            assert (caught.value.status, caught.value.fields) == (416, b"Content-Range: bytes */%d\r\n" % size)


def test_no_digest_becomes_anything_else() -> None:
    for text in ("", "latest", "sha256:" + "A" * 64, "sha256:../../x", A + "\n", "md5:" + "0" * 32):
        with pytest.raises(RegistryError) as caught:
            names.digest(text)
        assert caught.value.code == "DIGEST_INVALID"


def test_an_address_that_is_no_text() -> None:
    with pytest.raises(RegistryError):
        names.unescape("/v2/%ff/manifests/a")


def test_fields_hold_no_line_break() -> None:
    assert encode_fields({"A": "b", "C": ["d", "e"]}) == b"A: b\r\nC: d\r\nC: e\r\n"
    with pytest.raises(AssertionError):
        encode_fields({"A": "b\r\nSet-Cookie: x"})
    assert location("a/b", "blobs", A) == f"/v2/a/b/blobs/{A}"


# manifests


def manifest(**fields: Any) -> bytes:
    named = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": A, "size": 2}
    layers = [{**named, "digest": B}]
    return json.dumps({"schemaVersion": 2, "mediaType": MEDIA_MANIFEST, "config": named, "layers": layers, **fields}).encode()


def test_a_manifest_names_its_blobs() -> None:
    found = documents.parse(manifest(subject={"digest": B}, artifactType="x/y", annotations={"k": "v"}), MEDIA_MANIFEST)
    assert (found.refers, found.subject, found.artifact_type, found.annotations) == ([A, B], B, "x/y", {"k": "v"})
    assert documents.checked_sizes(found, {A: 2, B: 2}, {}) == []
    assert documents.checked_sizes(found, {}, {}) == [A, B]


def test_an_index_names_manifests() -> None:
    manifests = [{"mediaType": MEDIA_MANIFEST, "digest": A, "size": 9}, {"mediaType": "application/x-other", "digest": B, "size": 2}]
    raw = json.dumps({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": manifests}).encode()
    found = documents.parse(raw, MEDIA_INDEX)
    assert documents.checked_sizes(found, {}, {A: 9, B: 2}) == []
    assert documents.checked_sizes(found, {B: 2}, {A: 9}) == []  # what is of a type unknown here may have been pushed as a blob
    assert documents.checked_sizes(found, {A: 9, B: 2}, {}) == [A]
    with pytest.raises(RegistryError, match="has 8 bytes, not 9"):
        documents.checked_sizes(found, {}, {A: 8, B: 2})


def test_too_many_layers() -> None:
    many = [{"digest": A, "size": 1}] * (documents.DESCRIPTORS_MAX + 1)
    with pytest.raises(RegistryError, match="at most are supported"):
        documents.parse(manifest(layers=many), "")


@pytest.mark.parametrize("content_type", ["", "application/json", "application/octet-stream", f"{MEDIA_MANIFEST}; charset=utf-8"])
def test_the_type_may_be_left_to_the_document(content_type: str) -> None:
    assert documents.parse(manifest(), content_type).media_type == MEDIA_MANIFEST


def test_docker_manifests_have_no_subject() -> None:
    assert documents.parse(manifest(mediaType=DOCKER_MANIFEST, subject={"digest": B}), DOCKER_MANIFEST).subject == ""


KEYS = st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "subject", "urls"])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)))
def test_any_json_is_a_manifest_or_refused(value: Any) -> None:
    codes = {"MANIFEST_INVALID"}
    try:
        documents.parse(json.dumps(value).encode(), "")
    except RegistryError as error:
        codes.add(error.code)
    assert codes == {"MANIFEST_INVALID"}


def test_the_body_of_errors() -> None:
    assert json.loads(RegistryError("BLOB_UNKNOWN", {"digest": A}).body()) == {
        "errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown to registry", "detail": {"digest": A}}]
    }
    assert [one["detail"]["digest"] for one in json.loads(ManifestErrors([A, B]).body())["errors"]] == [A, B]


def test_pages_of_referrers_are_bounded() -> None:
    def stored(number: int, size: int) -> StoredManifest:
        return StoredManifest(digest=f"sha256:{number:064x}", media_type=MEDIA_MANIFEST, size=1, annotations={"a": "x" * size})

    assert len(referrers.page([stored(number, 1 << 20) for number in range(9)])) == 2
    assert len(referrers.page([stored(number, 9 << 20) for number in range(2)])) == 1
    assert len(referrers.page([stored(number, 1) for number in range(2000)])) == 1000


# who may do what


def test_what_a_request_needs() -> None:
    def scopes(method: str, path: str, **query: list[str]) -> list[str]:
        address = names.split(path)
        assert address is not None
        return [str(one) for one in needed(method, address, query)]

    assert scopes("GET", "/v2/") == []
    assert scopes("GET", "/v2/_catalog") == ["registry:catalog:*"]
    assert scopes("HEAD", "/v2/a/manifests/x") == ["repository:a:pull"]
    assert scopes("PUT", "/v2/a/manifests/x") == ["repository:a:pull,push"]
    assert scopes("DELETE", "/v2/a/manifests/x") == ["repository:a:delete"]
    assert scopes("GET", "/v2/a/blobs/uploads/1") == ["repository:a:pull,push"]
    assert scopes("DELETE", "/v2/a/blobs/uploads/1") == ["repository:a:pull,push"]
    assert scopes("POST", "/v2/a/blobs/uploads/", mount=[A], **{"from": ["b"]}) == ["repository:a:pull,push", "repository:b:pull"]
    assert scopes("POST", "/v2/a/blobs/uploads/", mount=[A], **{"from": ['b",x="']}) == ["repository:a:pull,push"]


def test_htpasswd_lines() -> None:
    assert auth.parse_htpasswd("# people\n\nalice:$2y$x\n bob:{SHA}y \n") == {"alice": "$2y$x", "bob": "{SHA}y"}
    for text in ("alice", ":hash", "alice:"):
        with pytest.raises(InvalidParameter, match="line 1 is not USER:HASH"):
            auth.parse_htpasswd(text)


@pytest.mark.parametrize("prefix", ["2y", "2b", "2a"])
def test_bcrypt(prefix: str) -> None:
    stored = f"${prefix}$05$sBDy6ywMgsSquNj67tBDu.lWP7zZznvIEI/bsZOacUmKQ6AOoWoj6"  # htpasswd -nbB u p
    assert auth.matches("p", stored)
    assert not auth.matches("q", stored)
    assert not auth.matches("p\0", stored)
    assert not auth.matches("p" * 100, stored)


@pytest.mark.parametrize("stored", ["", "p", "$apr1$x$y", "{SHA}x", "$2y$05$short", "$2y$99$" + "a" * 53, "$2y$05$" + "é" * 53])
def test_what_is_no_bcrypt_matches_nothing(stored: str) -> None:
    assert not auth.matches("p", stored)
    assert not auth.matches("", stored)


def test_claims() -> None:
    now = time.time()
    granted = (("a", "pull"), ("a", "push"), ("b", "*"))
    access = tuple(tokens.Grant("repository", name, (action,)) for name, action in granted)
    claims = tokens.Claims(iss="i", aud=("s", "t"), exp=now + 10, nbf=now, access=access)
    assert claims.valid("i", "s", now)
    assert not claims.valid("x", "s", now)
    assert not claims.valid("i", "x", now)
    assert not claims.valid("i", "s", now + 100)
    assert claims.grants("repository", "a", ("pull", "push"))
    assert not claims.grants("repository", "a", ("delete",))
    assert claims.grants("repository", "b", ("delete",))
    assert not claims.grants("registry", "a", ("pull",))
    assert not tokens.Claims(iss="i", exp=now + 10).valid("i", "", now)


@given(st.text(max_size=200))
def test_any_text_is_no_token(text: str) -> None:
    with pytest.raises(tokens.InvalidToken):
        tokens.verify(text, [])


# settings


def test_where_to_listen() -> None:
    for addr, expected in (
        ("127.0.0.1:5000", "tcp://127.0.0.1:5000"), (":80", "tcp://:80"), ("host", "tcp://host:5000"), ("[::1]", "tcp://[::1]:5000"),
        ("[::1]:443", "tcp://[::1]:443"), ("unix:///run/r.sock", "unix:///run/r.sock"),
    ):  # fmt: skip
        assert settings.parse(json.dumps({"addr": addr}).encode()).listen == expected


def test_settings_are_checked() -> None:
    for wrong in ({"nonsense": 1}, {"addr": 5000}, {"htpasswd": "relative"}, {"tls-key": "/x"}, {"name": ["/"]}, {"proxy-username": "x"}):
        with pytest.raises(InvalidParameter):
            settings.parse(json.dumps(wrong).encode())


def test_sources() -> None:
    secret = Credentials(username="u", password="p")
    hub = source("https://registry-1.docker.io", insecure=False, credentials=secret)
    assert (hub.domain, hub.prefix, hub.credentials) == ("docker.io", "docker.io//", secret)
    assert source("quay.io", insecure=False, credentials=secret).domain == "quay.io"
    assert not names.is_name(f"{hub.prefix}a")  # no client can ask for it by that name
    for wrong in ("http://quay.io", "ftp://x", "https://", "https://a/b", "https://user:pass@host"):
        with pytest.raises(InvalidParameter):
            source(wrong, insecure=False, credentials=secret)
