"""A whole daemon and registries: login by the docker CLI and the API, search, what an image is at its registry, what `docker info` says."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib.daemon import Daemon
from tests.lib.registries import OCI_INDEX, OCI_MANIFEST, DockerRegistry, Reply, Request, Scripted, TokenServer, seed

ALICE = {"username": "alice", "password": "correct horse"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon without any image."""
    ours = Daemon()
    try:
        yield ours.start()
    finally:
        ours.close()


def login(daemon: Daemon, registry: DockerRegistry, password: str, config: Path, *, check: bool = True) -> Any:
    """`docker login` with a configuration folder of its own."""
    return daemon.docker(
        "--config", str(config), "login", "-u", "alice", "--password-stdin", registry.host, input=password.encode(), check=check
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config"


def header(members: dict[str, Any]) -> dict[str, str]:
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(members).encode()).decode()}


@pytest.mark.parametrize("kind", ["plain", "htpasswd", "bearer"])
def test_docker_login(daemon: Daemon, config: Path, request: pytest.FixtureRequest, kind: str) -> None:
    registry: DockerRegistry = request.getfixturevalue(kind)
    result = login(daemon, registry, "correct horse", config)
    assert b"Login Succeeded" in result.stdout
    kept = json.loads((config / "config.json").read_text())["auths"][registry.host]
    if kind == "bearer":
        assert kept["identitytoken"] == "refresh-alice"  # the password is not kept where there is something better
    if kind != "plain":
        refused = login(daemon, registry, "wrong", config, check=False)
        assert refused.returncode == 1
        assert (b"401 Unauthorized" if kind == "htpasswd" else b"unauthorized: authentication failed") in refused.stderr


def test_login_by_the_api(daemon: Daemon, htpasswd: DockerRegistry, bearer: DockerRegistry, tokens: TokenServer) -> None:
    def auth(**members: str) -> Any:
        return daemon.api("POST", "/auth", members)

    good = auth(**ALICE, serveraddress=f"http://{htpasswd.host}/v2/")
    assert good.status == 200 and good.json() == {"Status": "Login Succeeded", "IdentityToken": ""}
    refused = auth(username="alice", password="x", serveraddress=htpasswd.host)
    assert refused.status == 401
    assert refused.json()["message"] == f"login attempt to http://{htpasswd.host}/v2/ failed with status: 401 Unauthorized"
    nobody = auth(serveraddress=htpasswd.host)
    assert nobody.status == 401 and nobody.json()["message"].endswith(": no basic auth credentials")
    assert auth(**ALICE, serveraddress=bearer.host).json()["IdentityToken"] == "refresh-alice"
    again = auth(identitytoken="refresh-alice", serveraddress=bearer.host)
    assert again.status == 200 and again.json()["Status"] == "Login Succeeded"
    assert auth(identitytoken="forged", serveraddress=bearer.host).status == 401
    away = auth(**ALICE, serveraddress="127.0.0.1:1")
    assert away.status == 500 and away.json()["message"].endswith("connect: connection refused")
    assert daemon.api("POST", "/auth", b"{", {"Content-Type": "application/json"}).status == 400


def test_the_daemon_never_logs_a_password(daemon: Daemon, htpasswd: DockerRegistry) -> None:
    daemon.api("POST", "/auth", {**ALICE, "password": "hunter2-secret", "serveraddress": htpasswd.host})
    daemon.api("GET", f"/distribution/{htpasswd.host}/x/json", headers=header({"username": "alice", "password": "hunter2-secret"}))
    assert "hunter2" not in daemon.log.read_text()


def test_what_an_image_is_at_its_registry(daemon: Daemon, plain: DockerRegistry, htpasswd: DockerRegistry) -> None:
    image = seed(plain, "dist/app", "v1")
    answer = daemon.api("GET", f"/distribution/{plain.host}/dist/app:v1/json").json()
    assert answer["Descriptor"] == {
        "mediaType": image.manifest["mediaType"],
        "digest": image.digest,
        "size": len(json.dumps(image.manifest)),
    }
    assert answer["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
    assert daemon.api("GET", f"/distribution/{plain.host}/dist/app@{image.digest}/json").json() == answer

    arm = seed(plain, "dist/app", "", architecture="arm", oci=True)
    members = [
        {"mediaType": image.manifest["mediaType"], "digest": image.digest, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
        {"mediaType": OCI_MANIFEST, "digest": arm.digest, "size": 1, "platform": {"os": "linux", "architecture": "arm", "variant": "v6"}},
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": members}
    plain.put_manifest("dist/app", "latest", index)
    answer = daemon.api("GET", f"/distribution/{plain.host}/dist/app/json").json()
    assert answer["Descriptor"]["mediaType"] == OCI_INDEX
    assert answer["Platforms"] == [{"architecture": "amd64", "os": "linux"}, {"architecture": "arm", "os": "linux", "variant": "v6"}]

    seed(htpasswd, "dist/secret")
    target = f"/distribution/{htpasswd.host}/dist/secret/json"
    assert daemon.api("GET", target).status == 401
    assert daemon.api("GET", target, headers=header(ALICE)).status == 200


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("{host}/dist/app:nope", 404, "manifest unknown: manifest unknown"),
        ("UPPER", 400, "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("127.0.0.1:1/x", 404, 'Get "http://127.0.0.1:1/v2/x/manifests/latest": dial tcp 127.0.0.1:1: connect: connection refused'),
    ],
)
def test_what_there_is_not(daemon: Daemon, plain: DockerRegistry, name: str, status: int, message: str) -> None:
    answer = daemon.api("GET", f"/distribution/{name.format(host=plain.host)}/json")
    assert (answer.status, answer.json()["message"]) == (status, message)


def results(request: Request) -> Reply:
    found = [
        {"name": "a/b", "description": "first", "star_count": 30, "is_official": False, "is_automated": True},
        {"name": "c", "description": None, "star_count": 10, "is_official": True},
    ]
    return Reply(200, {}, json.dumps({"results": found}).encode()) if request.path == "/v1/search" else Reply(404)


def test_search(daemon: Daemon) -> None:
    with Scripted(results) as registry:

        def search(more: str = "", **options: Any) -> Any:
            return daemon.api("GET", f"/images/search?term={registry.host}/my%2Fapp{more}", **options)

        both = search(headers=header(ALICE)).json()
        assert both == [
            {"star_count": 30, "is_official": False, "name": "a/b", "is_automated": False, "description": "first"},
            {"star_count": 10, "is_official": True, "name": "c", "is_automated": False, "description": ""},
        ]
        assert registry.requests[-1].target == "/v1/search?q=my%2Fapp&n=25"
        assert registry.requests[-1].headers["authorization"].startswith("Basic ")
        assert [one["name"] for one in search("&filters=" + json.dumps({"stars": ["20"]})).json()] == ["a/b"]
        assert [one["name"] for one in search("&filters=" + json.dumps({"is-official": ["true"]})).json()] == ["c"]
        assert search("&filters=" + json.dumps({"is-automated": ["true"]})).json() == []
        assert len(search("&limit=1").json()) == 1
        out = daemon.out("search", "--format", "{{.Name}} {{.StarCount}} {{.IsOfficial}}", f"{registry.host}/x")
        assert out.split("\n") == ["a/b 30 ", "c 10 [OK]"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=101", "limit 101 is outside the range of [1, 100]"),
        ("limit=abc", 'invalid limit specified: strconv.Atoi: parsing "abc": invalid syntax'),
        ('filters={"foo":["a"]}', "invalid filter 'foo'"),
        ('filters={"stars":["a"]}', "invalid filter 'stars=a': strconv.Atoi: parsing \"a\": invalid syntax"),
        ('filters={"is-official":["a"]}', "invalid filter 'is-official=[a]'"),
    ],
)
def test_bad_searches(daemon: Daemon, query: str, message: str) -> None:
    answer = daemon.api("GET", f"/images/search?term=x&{query}")
    assert (answer.status, answer.json()["message"]) == (400, message)


def test_a_registry_that_cannot_search(daemon: Daemon, plain: DockerRegistry) -> None:
    answer = daemon.api("GET", f"/images/search?term={plain.host}/x")
    assert answer.status == 500 and answer.json()["message"].startswith("Unexpected status code 404")
    gone = daemon.api("GET", "/images/search?term=127.0.0.1:1/x")
    assert gone.status == 400 and gone.json()["message"].startswith(
        'invalid registry endpoint "http://127.0.0.1:1/v1/". HTTPS attempt: Get'
    )


def test_info_tells_how_registries_are_reached(own_daemon: Callable[..., Daemon]) -> None:
    one = own_daemon(
        "--registry-mirror", "https://mirror.example", "--insecure-registry", "10.0.0.0/8", "--insecure-registry", "lab:5000",
        "--http-proxy", "http://user:secret@proxy:3128", "--no-proxy", "lan", "--max-concurrent-downloads", "7", "--limit-rate", "500k",
    ).start()  # fmt: skip
    info = one.api("GET", "/info").json()
    found = info["RegistryConfig"]
    assert found["Mirrors"] == ["https://mirror.example/"]
    assert found["InsecureRegistryCIDRs"] == ["::1/128", "127.0.0.0/8", "10.0.0.0/8"]
    assert found["IndexConfigs"]["docker.io"] == {
        "Name": "docker.io",
        "Mirrors": ["https://mirror.example/"],
        "Secure": True,
        "Official": True,
    }
    assert found["IndexConfigs"]["lab:5000"] == {"Name": "lab:5000", "Mirrors": [], "Secure": False, "Official": False}
    assert info["HttpProxy"] == "http://xxxxx:xxxxx@proxy:3128" and info["NoProxy"] == "lan"
