"""Credentials, challenges and errors of registries: the pure parts."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import Forbidden, InvalidParameter, KnarrError, NotFound, Unauthorized
from engine.registry import retry
from engine.registry.auth import challenges, merged
from engine.registry.errors import NotThisWay, ServerError, TooManyRequests, failure
from engine.registry.search import split
from engine.spec import image, manifest
from engine.spec.docker.registry import Credentials, credentials, credentials_by_host, host_of
from engine.spec.reference import parse


def header(value: object, *, encode: object = base64.urlsafe_b64encode) -> str:
    return encode(json.dumps(value).encode()).decode()  # type: ignore[operator]


def test_x_registry_auth_in_its_forms() -> None:
    members = {"username": "u", "password": "p?>~ÿ", "serveraddress": "https://r.example/v2/"}
    wanted = Credentials("u", "p?>~ÿ", server_address="https://r.example/v2/")
    assert credentials(header(members)) == wanted
    assert credentials(header(members).rstrip("=")) == wanted
    assert credentials(header(members, encode=base64.b64encode)) == wanted
    assert credentials(header({"Username": "u", "PassWord": "p?>~ÿ", "serverAddress": "https://r.example/v2/", "email": None})) == wanted
    assert credentials(header({"auth": base64.b64encode(b"u:p:q").decode()})) == Credentials("u", "p:q")
    assert credentials(header({"identitytoken": "t"})).identity_token == "t"


@pytest.mark.parametrize(
    "text", ["", "!!", "e30", header([1]), header(None), header({"username": 1}), header("x"), "[" * 100000, "A" * 300000]
)
def test_nonsense_is_no_credentials(text: str) -> None:
    assert not credentials(text)
    assert credentials_by_host(text) == {}


def test_x_registry_config_has_several() -> None:
    found = credentials_by_host(
        header({"https://index.docker.io/v1/": {"username": "a", "password": "b"}, "r:5000": {"auth": "!"}, "x": 1})
    )
    assert found == {"https://index.docker.io/v1/": Credentials("a", "b", server_address="https://index.docker.io/v1/")}


def test_secrets_are_never_shown() -> None:
    shown = f"{Credentials('u', 'secret1', 'secret2', 'secret3', 'r')!r} {Credentials('u', 'secret1')} {[Credentials('', 'secret1')]}"
    assert "secret" not in shown
    assert Credentials("a", "b").identity != Credentials("a", "c").identity


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("http://127.0.0.1:5000/v2/", "127.0.0.1:5000"),
        ("quay.io", "quay.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_hosts_of_server_addresses(address: str, host: str) -> None:
    assert host_of(address) == host


def test_challenges() -> None:
    found = challenges('Bearer realm="https://a.example/token?x=1,2",service="s \\"q\\"", scope="repository:a/b:pull,push", Basic realm=x')
    assert [c.scheme for c in found] == ["bearer", "basic"]
    assert found[0].parameters == {"realm": "https://a.example/token?x=1,2", "service": 's "q"', "scope": "repository:a/b:pull,push"}
    assert [c.scheme for c in challenges("Negotiate, Basic")] == ["negotiate", "basic"]
    assert challenges("") == []
    assert challenges('Basic realm="unfinished')[0].parameters == {}


@pytest.mark.parametrize("text", ["," * 10000, "Bearer " + 'a="b",' * 3000, '"' * 9000, "Bearer realm=" + "\\" * 9000, "Basic " * 5000])
def test_hostile_challenges_end(text: str) -> None:
    assert len(challenges(text)) < 5000


def test_scopes_are_merged() -> None:
    assert merged(["repository:b:pull", "repository:a:push,pull", "repository:b:push", "junk"]) == (
        "repository:a:pull,push",
        "repository:b:pull,push",
    )


def test_retry_after_seconds_and_dates() -> None:
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert retry.retry_after("120") == 120
    assert retry.retry_after("Fri, 02 Jan 2026 03:04:35 GMT", now) == 30
    assert retry.retry_after("Fri, 02 Jan 2026 03:00:00 GMT", now) == 0
    assert retry.retry_after("soon") == retry.retry_after("") == retry.retry_after("-5") == 0
    assert retry.retry_after("9" * 50) == 999999999


def test_delays_grow_and_stay_bounded() -> None:
    assert retry.delay(1) < retry.delay(3) < retry.delay(50) <= retry.LONGEST_DELAY * 1.25
    assert retry.delay(1, asked=7) == 7


def body(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message, "detail": {"x": 1}}]}).encode()


@pytest.mark.parametrize(
    ("status", "raw", "kind", "text"),
    [
        (
            404,
            body("MANIFEST_UNKNOWN", "manifest unknown"),
            NotFound,
            "manifest for busybox:9 not found: manifest unknown: manifest unknown",
        ),
        (404, body("NAME_UNKNOWN", "who"), NotFound, "repository busybox not found: name unknown: who"),
        (
            401,
            body("DENIED", "requested access to the resource is denied"),
            NotFound,
            "pull access denied for busybox, repository does not exist or may require 'docker login': "
            "denied: requested access to the resource is denied",
        ),
        (401, body("UNAUTHORIZED", "authentication required"), Unauthorized, "unauthorized: authentication required"),
        (429, body("TOOMANYREQUESTS", "limit"), TooManyRequests, "toomanyrequests: limit"),
        (401, b"", Unauthorized, "unauthorized: authentication required"),
        (403, b"<html>", NotFound, "pull access denied for busybox"),
        (404, b"{}", NotFound, "manifest for busybox:9 not found"),
        (500, b"<html>", ServerError, "received unexpected HTTP status: 500 from https://r/x"),
        (405, body("UNSUPPORTED", "no"), NotThisWay, "unsupported: no"),
        (418, b'{"message": "tea\\u001b[31m"}', InvalidParameter, "418 from https://r/x: tea [31m"),
        (400, b"[" * 50000, KnarrError, "400"),
    ],
)
def test_answers_as_docker_words_them(status: int, raw: bytes, kind: type[KnarrError], text: str) -> None:
    error = failure(status, raw, name="busybox", reference="busybox:9", url="https://r/x")
    assert isinstance(error, kind) and text in str(error), error
    assert "\x1b" not in str(error)


def test_a_push_is_not_told_to_pull() -> None:
    error = failure(401, body("DENIED", "requested access to the resource is denied"), name="a", push=True)
    assert isinstance(error, Forbidden) and str(error) == "denied: requested access to the resource is denied"


HERE = parse("r.example/a:1")
INDEX = {"schemaVersion": 2, "mediaType": image.MEDIA_INDEX, "manifests": []}
MANIFEST = {"schemaVersion": 2, "mediaType": image.MEDIA_MANIFEST, "config": {}, "layers": []}


def test_kinds_of_manifests() -> None:
    def kind(document: dict[str, object], told: str) -> str:
        return manifest.kind(json.dumps(document).encode(), told, HERE.familiar)

    assert kind(INDEX, image.MEDIA_INDEX) == kind(INDEX, "text/plain") == image.MEDIA_INDEX
    assert kind({"schemaVersion": 2, "manifests": []}, "") == image.MEDIA_INDEX
    assert kind({"schemaVersion": 2, "config": {}, "layers": []}, "application/json") == image.MEDIA_MANIFEST


@pytest.mark.parametrize(
    ("document", "told", "text"),
    [
        ({**MANIFEST, "manifests": []}, image.MEDIA_MANIFEST, "both an index and a manifest"),
        (MANIFEST, image.DOCKER_MANIFEST, "was sent as"),
        ({**INDEX, "mediaType": image.MEDIA_MANIFEST}, "", "not of its media type"),
        ({**MANIFEST, "mediaType": image.MEDIA_INDEX, "config": None}, "", "not of its media type"),
        ({"schemaVersion": 1, "fsLayers": []}, "", "schema 1"),
        (MANIFEST, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        ([], "", "is not one"),
    ],
)
def test_confusing_manifests_are_refused(document: object, told: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        manifest.kind(json.dumps(document).encode(), told, HERE.familiar)


def test_search_terms() -> None:
    assert split("busybox") == ("docker.io", "busybox")
    assert split("user/app") == ("docker.io", "user/app")
    assert split("localhost/app") == ("localhost", "app")
    assert split("r.example:5000/a/b") == ("r.example:5000", "a/b")
    assert split("index.docker.io/library/x") == ("docker.io", "library/x")


def test_an_idle_daemon_has_no_http_client() -> None:
    program = (
        "import sys; import cli.daemon, engine.api.server, engine.service.engine, engine.service.registries\n"
        "print([m for m in ('httpx2', 'httpcore2', 'engine.registry.client') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert run.stdout == "[]\n"
