"""Distribution specification 1.1, "Push": blobs in one piece, in chunks, streamed, mounted; uploads asked for, cancelled, wrong."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lib.distribution import Client, digest_of, with_query

OCTETS = {"Content-Type": "application/octet-stream"}


def stored(registry: Client, name: str, digest: str) -> bytes:
    answer = registry.get(f"/v2/{name}/blobs/{digest}")
    assert answer.status == 200, answer
    return answer.body


def test_post_then_put(registry: Client, name: str) -> None:
    """end-4a, end-6: POST opens a session (202, Location); PUT with the digest and the bytes closes it (201, Location of the blob)."""
    data = os.urandom(200_000)
    location = registry.begin(name)
    answer = registry.request("PUT", with_query(location, digest=digest_of(data)), data, OCTETS)
    assert answer.status == 201
    assert answer.headers["docker-content-digest"] == digest_of(data)
    assert registry.get(answer.headers["location"]).body == data


def test_single_post(registry: Client, name: str, ours: None) -> None:
    """end-4b: POST with the digest and the bytes stores the blob at once: 201 and its Location."""
    data = os.urandom(2_500_000)
    answer = registry.request("POST", f"/v2/{name}/blobs/uploads/?digest={digest_of(data)}", data, OCTETS)
    assert answer.status == 201
    assert registry.get(answer.headers["location"]).body == data


def test_single_post_with_another_digest(registry: Client, name: str, ours: None) -> None:
    """The digest must be that of the bytes: 400 DIGEST_INVALID, and nothing is stored."""
    answer = registry.request("POST", f"/v2/{name}/blobs/uploads/?digest={digest_of(b'other')}", b"data", OCTETS)
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert registry.head(f"/v2/{name}/blobs/{digest_of(b'other')}").status == 404


def test_an_empty_blob(registry: Client, name: str) -> None:
    """A blob may have no bytes."""
    digest = registry.push_blob(name, b"")
    assert stored(registry, name, digest) == b""


def test_chunks_in_order(registry: Client, name: str) -> None:
    """end-5: PATCH with Content-Range appends; each reply (202) says with Range how far the upload is and with Location where to go on."""
    data = os.urandom(2_400_000)
    location = registry.begin(name)
    for start in range(0, len(data), 1_000_000):
        chunk = data[start : start + 1_000_000]
        end = start + len(chunk) - 1
        answer = registry.request("PATCH", location, chunk, {**OCTETS, "Content-Range": f"{start}-{end}"})
        assert answer.status == 202
        assert answer.headers["range"] == f"0-{end}"
        location = answer.headers["location"]
    answer = registry.request("PUT", with_query(location, digest=digest_of(data)), b"")
    assert answer.status == 201
    assert stored(registry, name, digest_of(data)) == data


def test_the_last_chunk_in_the_closing_put(registry: Client, name: str) -> None:
    """The last chunk may come with the PUT that closes the session."""
    location = registry.request("PATCH", registry.begin(name), b"first,", {**OCTETS, "Content-Range": "0-5"}).headers["location"]
    whole = with_query(location, digest=digest_of(b"first,last"))
    answer = registry.request("PUT", whole, b"last", {**OCTETS, "Content-Range": "6-9"})
    assert answer.status == 201
    assert stored(registry, name, digest_of(b"first,last")) == b"first,last"


@pytest.mark.parametrize("wrong", ["0-5", "7-12", "100-105"])
def test_a_chunk_out_of_order(registry: Client, name: str, wrong: str, conforming: None) -> None:
    """A chunk that does not begin where the last one ended is 416, and the upload is as it was."""
    location = registry.request("PATCH", registry.begin(name), b"first,", {**OCTETS, "Content-Range": "0-5"}).headers["location"]
    assert registry.request("PATCH", location, b"second", {**OCTETS, "Content-Range": wrong}).status == 416
    status = registry.get(location)
    assert (status.status, status.headers["range"]) == (204, "0-5")
    location = registry.request("PATCH", status.headers["location"], b"second", {**OCTETS, "Content-Range": "6-11"}).headers["location"]
    assert registry.request("PUT", with_query(location, digest=digest_of(b"first,second")), b"").status == 201


def test_the_first_chunk_begins_at_zero(registry: Client, name: str, conforming: None) -> None:
    """416 for a first chunk with another begin."""
    assert registry.request("PATCH", registry.begin(name), b"abc", {**OCTETS, "Content-Range": "5-7"}).status == 416


def test_the_reply_to_a_wrong_chunk_says_where_to_go_on(registry: Client, name: str, ours: None) -> None:
    """So that a client need not ask: Range and Location come with the 416."""
    location = registry.request("PATCH", registry.begin(name), b"first,", {**OCTETS, "Content-Range": "0-5"}).headers["location"]
    answer = registry.request("PATCH", location, b"x", {**OCTETS, "Content-Range": "9-9"})
    assert (answer.status, answer.headers["range"], answer.headers["location"]) == (416, "0-5", location)


@pytest.mark.parametrize(("header", "code"), [("0-9", "SIZE_INVALID"), ("5-3", "BLOB_UPLOAD_INVALID"), ("rubbish", "BLOB_UPLOAD_INVALID")])
def test_a_content_range_that_does_not_fit(registry: Client, name: str, header: str, code: str, ours: None) -> None:
    """400 when Content-Range is malformed or has another length than the body."""
    answer = registry.request("PATCH", registry.begin(name), b"abc", {**OCTETS, "Content-Range": header})
    assert (answer.status, answer.code) == (400, code)


def test_a_streamed_upload(registry: Client, name: str) -> None:
    """Docker streams: one PATCH without Content-Range and without a length."""
    pieces = [os.urandom(70_000) for _ in range(30)]

    def stream() -> Iterator[bytes]:
        yield from pieces

    answer = registry.request("PATCH", registry.begin(name), stream(), {**OCTETS, "Transfer-Encoding": "chunked"})
    assert answer.status == 202
    data = b"".join(pieces)
    answer = registry.request("PUT", with_query(answer.headers["location"], digest=digest_of(data)), b"")
    assert answer.status == 201
    assert stored(registry, name, digest_of(data)) == data


def test_status_of_an_upload(registry: Client, name: str) -> None:
    """end-13: GET of the location answers 204 with the bytes that are here."""
    location = registry.begin(name)
    assert registry.get(location).status == 204
    location = registry.request("PATCH", location, b"12345", OCTETS).headers["location"]
    answer = registry.get(location)
    assert (answer.status, answer.headers["range"]) == (204, "0-4")


def test_cancel_an_upload(registry: Client, name: str) -> None:
    """end-14: DELETE of the location ends the session; after that it is unknown."""
    location = registry.request("PATCH", registry.begin(name), b"12345", OCTETS).headers["location"]
    assert registry.request("DELETE", location).status == 204
    answer = registry.get(location)
    assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_is_over_after_its_put(registry: Client, name: str, conforming: None) -> None:
    """A session ends with its blob, and with a wrong digest too."""
    for digest in (digest_of(b"data"), digest_of(b"other")):
        location = registry.request("PATCH", registry.begin(name), b"data", OCTETS).headers["location"]
        answer = registry.request("PUT", with_query(location, digest=digest), b"")
        assert answer.status == (201 if digest == digest_of(b"data") else 400)
        assert registry.get(location).status == 404


def test_a_wrong_digest_stores_nothing(registry: Client, name: str) -> None:
    """400 DIGEST_INVALID when the bytes have another digest than the client says; the blob is not there."""
    registry.push_blob(name, b"so that the repository exists")
    answer = registry.request("PUT", with_query(registry.begin(name), digest=digest_of(b"promised")), b"delivered", OCTETS)
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    for data in (b"promised", b"delivered"):
        assert registry.head(f"/v2/{name}/blobs/{digest_of(data)}").status == 404


@pytest.mark.parametrize("digest", ["", "sha256:abc", "md5:" + "0" * 32, "nonsense"])
def test_a_digest_that_is_none(registry: Client, name: str, digest: str) -> None:
    """400 for a missing, malformed or unknown digest."""
    assert registry.request("PUT", with_query(registry.begin(name), digest=digest), b"data", OCTETS).status == 400


def test_an_upload_of_another_repository_is_unknown(registry: Client, name: str, ours: None) -> None:
    """A session belongs to the repository that it was opened in."""
    location = registry.begin(name)
    answer = registry.request("PATCH", location.replace(name, f"{name}/other"), b"data", OCTETS)
    assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_that_never_was(registry: Client, name: str, ours: None) -> None:
    """404, whatever the identifier looks like."""
    for id in ("0" * 32, "x", "..%2f..%2fetc%2fpasswd"):
        answer = registry.request("PATCH", f"/v2/{name}/blobs/uploads/{id}", b"data", OCTETS)
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN" if "%" not in id else "NAME_UNKNOWN"), id


@pytest.mark.parametrize("announced", [False, True])
def test_another_digest_algorithm(registry: Client, name: str, announced: bool, ours: None) -> None:
    """sha512 is a registered algorithm; it may be announced with the POST (end-4c) or come with the PUT alone."""
    data = os.urandom(100_000)
    digest = digest_of(data, "sha512")
    path = f"/v2/{name}/blobs/uploads/" + ("?digest-algorithm=sha512" if announced else "")
    location = registry.request("POST", path, b"").headers["location"]
    location = registry.request("PATCH", location, data, OCTETS).headers["location"]
    answer = registry.request("PUT", with_query(location, digest=digest), b"")
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest)
    assert stored(registry, name, digest) == data


def test_an_unknown_digest_algorithm(registry: Client, name: str, ours: None) -> None:
    """400 says so at once, before the bytes are sent."""
    answer = registry.request("POST", f"/v2/{name}/blobs/uploads/?digest-algorithm=crc32", b"")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


def test_mount_from_another_repository(registry: Client, name: str) -> None:
    """end-11: POST with mount and from answers 201 and the Location of the blob, without any upload."""
    data = os.urandom(1000)
    digest = registry.push_blob(f"{name}/source", data)
    assert registry.head(f"/v2/{name}/target/blobs/{digest}").status == 404
    answer = registry.request("POST", f"/v2/{name}/target/blobs/uploads/?mount={digest}&from={name}/source", b"")
    assert answer.status == 201
    assert registry.get(answer.headers["location"]).body == data
    assert stored(registry, f"{name}/target", digest) == data


@pytest.mark.parametrize("source", ["nowhere", "IN VALID".replace(" ", "%20")])
def test_a_mount_that_is_not_possible_begins_an_upload(registry: Client, name: str, source: str, ours: None) -> None:
    """202 and a session when the blob cannot be mounted: the client goes on and sends it."""
    answer = registry.request("POST", f"/v2/{name}/blobs/uploads/?mount={digest_of(b'data')}&from={source}", b"")
    assert answer.status == 202
    assert registry.request("PUT", with_query(answer.headers["location"], digest=digest_of(b"data")), b"data", OCTETS).status == 201


def test_mount_without_from(registry: Client, name: str, ours: None) -> None:
    """A registry may look for the blob itself when no repository is named."""
    data = os.urandom(1000)
    digest = registry.push_blob(f"{name}/source", data)
    assert registry.request("POST", f"/v2/{name}/target/blobs/uploads/?mount={digest}", b"").status == 201
    assert stored(registry, f"{name}/target", digest) == data


def test_a_blob_is_visible_only_where_it_was_pushed(registry: Client, name: str) -> None:
    """That another repository has a blob does not make it readable in this one."""
    digest = registry.push_blob(f"{name}/one", os.urandom(100))
    registry.push_blob(f"{name}/two", b"something else")
    assert registry.get(f"/v2/{name}/two/blobs/{digest}").status == 404


def test_pushing_what_is_there_already(registry: Client, name: str) -> None:
    """The same blob again, here and in another repository: 201."""
    data = os.urandom(1000)
    for repository in (name, name, f"{name}/other"):
        assert stored(registry, repository, registry.push_blob(repository, data)) == data


def test_many_clients_push_the_same_blob(registry: Client, name: str) -> None:
    """At once, into one repository and into others: every one of them is answered with 201, and the blob is whole."""
    data = os.urandom(2_000_000)
    with ThreadPoolExecutor(8) as pool:
        repositories = [f"{name}/{number % 3}" for number in range(16)]
        digests = list(pool.map(lambda repository: Client(registry.url).push_blob(repository, data), repositories))
    assert set(digests) == {digest_of(data)}
    for repository in set(repositories):
        assert stored(registry, repository, digests[0]) == data


def test_an_interrupted_chunk_goes_on_where_it_broke_off(registry: Client, name: str, ours: None) -> None:
    """After a lost connection the status says how much arrived, and the upload continues there."""
    data = os.urandom(400_000)
    location = registry.begin(name)
    host, port = registry.host.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as sock:
        head = f"PATCH {location} HTTP/1.1\r\nHost: {registry.host}\r\nContent-Length: {len(data)}\r\n\r\n"
        sock.sendall(head.encode() + data[:150_000])
        sock.shutdown(socket.SHUT_WR)
        sock.recv(65536)
    answer = registry.get(location)
    arrived = int(answer.headers["range"].partition("-")[2]) + 1
    assert arrived == 150_000
    rest = {**OCTETS, "Content-Range": f"{arrived}-{len(data) - 1}"}
    location = registry.request("PATCH", answer.headers["location"], data[arrived:], rest).headers["location"]
    assert registry.request("PUT", with_query(location, digest=digest_of(data)), b"").status == 201
    assert stored(registry, name, digest_of(data)) == data


def test_a_client_that_comes_back_need_not_wait_for_its_lost_connection(registry: Client, name: str, ours: None) -> None:
    """A request that hangs in the middle of its body is ended by the next one for the same upload."""
    location = registry.begin(name)
    host, port = registry.host.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as hanging:
        hanging.sendall(f"PATCH {location} HTTP/1.1\r\nHost: {registry.host}\r\nContent-Length: 100\r\n\r\nlost".encode())
        answer = registry.request("PUT", with_query(location, digest=digest_of(b"all")), b"all", OCTETS)
    assert answer.status == 201
    assert stored(registry, name, digest_of(b"all")) == b"all"


def test_identifiers_of_uploads_cannot_be_guessed(registry: Client, name: str) -> None:
    """A location SHOULD hold something unique; whoever knows it can write."""
    locations = {registry.begin(name) for _ in range(5)}
    assert len(locations) == 5
    assert all(re.search(r"[0-9a-f]{8}-?[0-9a-f]{4}", location) for location in locations)
