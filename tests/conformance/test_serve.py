"""`knarr registry serve`: who may do what, what is served, restarts and power cuts of the daemon, other clients. Ours alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib import busybox, images
from tests.lib import http as api
from tests.lib.daemon import Daemon, knarr_command
from tests.lib.distribution import ACCEPT, Client, Served, basic, digest_of, with_query
from tests.lib.registries import free_port
from tests.lib.tokens import TokenSigner

OCTETS = {"Content-Type": "application/octet-stream"}
Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    ours = Daemon()
    try:
        yield ours.start()
    finally:
        ours.close()


@pytest.fixture
def serve(daemon: Daemon) -> Iterator[Serve]:
    """Serves with options; ended after the test."""
    started: list[Served] = []

    def start(*options: str, **more: object) -> Served:
        started.append(Served(daemon, *options, **more))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.end()


# the command


def test_every_request_is_shown(serve: Serve, name: str) -> None:
    served = serve()
    client = Client(served.url)
    client.push_image(name, "latest")
    assert client.get(f"/v2/{name}/manifests/nothing").status == 404
    served.wait_said(f"GET /v2/{name}/manifests/nothing 404 ")
    line = next(line for line in served.said().splitlines() if f"PUT /v2/{name}/manifests/latest" in line)
    assert " 201 " in line
    assert "127.0.0.1:" in line


def test_a_registry_for_everybody_is_warned_of(serve: Serve, tmp_path: Path) -> None:
    assert "WARNING" not in serve().said()
    assert "can push and delete" in serve(addr="0.0.0.0:0").wait_said("WARNING: ")
    # A port alone is every address, as in Docker's registry.
    assert "can push and delete" in serve(addr=":0").wait_said("WARNING: ")
    assert "WARNING" not in serve("--read-only", addr="0.0.0.0:0").said()


def test_a_damaged_blob_is_repaired_by_the_next_push(serve: Serve, name: str, daemon: Daemon) -> None:
    """Of another length: noticed when it is asked for, so that a client pushes it. Bits flipped: replaced when it is pushed."""
    client = Client(serve().url)
    for damage in (b"short", b"wrong " + b"y" * 1000):
        data = b"right " + os.urandom(5).hex().encode() + b"x" * 990
        digest = client.push_blob(name, data)
        file = daemon.data_root / "content/blobs/sha256" / digest.partition(":")[2]
        file.write_bytes(damage)
        if len(damage) != len(data):
            assert client.head(f"/v2/{name}/blobs/{digest}").status == 404
        client.push_blob(name, data)
        assert client.get(f"/v2/{name}/blobs/{digest}").body == data


def test_quiet_shows_no_request(serve: Serve) -> None:
    served = serve("--quiet")
    Client(served.url).get("/v2/")
    assert served.end() == 0
    assert "GET" not in served.said()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_listener_goes_with_the_command(serve: Serve, number: int) -> None:
    port = free_port()
    served = serve(addr=f"127.0.0.1:{port}")
    assert served.end(number) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_the_listener_goes_when_the_command_is_killed(serve: Serve) -> None:
    port = free_port()
    served = serve(addr=f"127.0.0.1:{port}")
    served.process.kill()
    served.process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    raise AssertionError("the listener is still there")


def test_what_is_under_way_ends_cleanly(serve: Serve, name: str) -> None:
    """A blob that is being pulled when the command is told to stop arrives whole."""
    served = serve()
    data = os.urandom(30_000_000)
    digest = Client(served.url).push_blob(name, data)
    connection = Client(served.url).connect()
    connection.request("GET", f"/v2/{name}/blobs/{digest}")
    answer = connection.getresponse()
    head = answer.read(1000)
    served.process.send_signal(signal.SIGTERM)
    served.wait_said("stopping")
    assert served.process.poll() is None
    assert digest_of(head + answer.read()) == digest
    connection.close()
    assert served.process.wait(60) == 0


def test_an_address_in_use(serve: Serve, daemon: Daemon) -> None:
    served = serve()
    port = served.url.rpartition(":")[2]
    with pytest.raises(AssertionError, match="Address already in use"):
        Served(daemon, addr=f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert", "/nowhere"], "belong together"),
        (["--htpasswd", "/nowhere"], "No such file"),
        (["--anonymous-pull"], "needs --htpasswd"),
        (["--token-realm", "http://x"], "belong together"),
        (["--name", "UPPER"], "invalid repository name"),
        (["--proxy", "ftp://x"], "not the URL of a registry"),
        (["--proxy", "http://registry.example"], "plain HTTP is not allowed"),
        (["--proxy-username", "x"], "belong together"),
        (["extra"], "accepts no arguments"),
    ],
)
def test_settings_that_make_no_sense(daemon: Daemon, options: list[str], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        Served(daemon, *options)


# what is served


def test_read_only(serve: Serve, name: str) -> None:
    digest, _ = Client(serve().url).push_image(name, "latest")
    client = Client(serve("--read-only").url)
    assert client.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).status == 200
    for method, path in (
        ("POST", f"/v2/{name}/blobs/uploads/"), ("PUT", f"/v2/{name}/manifests/latest"), ("DELETE", f"/v2/{name}/manifests/{digest}"),
        ("PATCH", f"/v2/{name}/blobs/uploads/{'0' * 32}"),
    ):  # fmt: skip
        answer = client.request(method, path, b"")
        assert (answer.status, answer.code) == (405, "UNSUPPORTED"), method


def test_no_delete(serve: Serve, name: str) -> None:
    client = Client(serve("--no-delete").url)
    digest, _ = client.push_image(name, "latest")
    for path in (f"manifests/{digest}", "manifests/latest", f"blobs/{digest_of(b'x')}"):
        assert client.request("DELETE", f"/v2/{name}/{path}").code == "UNSUPPORTED"
    assert client.request("DELETE", client.begin(name)).status == 204  # cancelling an upload is no deletion


def test_only_named_repositories(serve: Serve, name: str) -> None:
    everything = Client(serve().url)
    for repository in (f"{name}/a", f"{name}/team/b", f"{name}/secret"):
        everything.push_image(repository, "latest")
    blob = everything.push_blob(f"{name}/secret", b"secret of " + name.encode())
    client = Client(serve("--name", f"{name}/a", "--name", f"{name}/team/*").url)
    assert client.get(f"/v2/{name}/a/manifests/latest", Accept=ACCEPT).status == 200
    assert client.get(f"/v2/{name}/team/b/manifests/latest", Accept=ACCEPT).status == 200
    assert client.get(f"/v2/{name}/secret/manifests/latest", Accept=ACCEPT).code == "NAME_UNKNOWN"
    assert client.request("POST", f"/v2/{name}/secret/blobs/uploads/", b"").code == "DENIED"
    assert client.get("/v2/_catalog?n=1000").json()["repositories"] == [f"{name}/a", f"{name}/team/b"]
    # nor by a mount
    for query in (f"mount={blob}&from={name}/secret", f"mount={blob}"):
        assert client.request("POST", f"/v2/{name}/a/blobs/uploads/?{query}", b"").status == 202


# who may do what


@pytest.fixture
def htpasswd(tmp_path: Path) -> Path:
    file = tmp_path / "htpasswd"
    subprocess.run(["htpasswd", "-cbB", "-C", "4", str(file), "alice", "secret"], check=True, capture_output=True)
    subprocess.run(["htpasswd", "-bm", str(file), "weak", "secret"], check=True, capture_output=True)  # MD5
    return file


def test_htpasswd(serve: Serve, name: str, htpasswd: Path) -> None:
    served = serve("--htpasswd", str(htpasswd), "--realm", "edge")
    for authorization in (
        "", basic("alice", "wrong"), basic("bob", "secret"), basic("alice", ""), basic("weak", "secret"), "Basic !!!", "Bearer abc",
        basic("alice", "secret\0x"),
    ):  # fmt: skip
        answer = Client(served.url, authorization=authorization).get("/v2/")
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), authorization
        assert answer.headers["www-authenticate"] == 'Basic realm="edge"'
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
    client = Client(served.url, authorization=basic("alice", "secret"))
    digest, raw = client.push_image(name, "latest")
    assert client.get(f"/v2/{name}/manifests/{digest}", Accept=ACCEPT).body == raw
    assert Client(served.url).get(f"/v2/{name}/manifests/{digest}").status == 401
    served.wait_said(" alice PUT ")
    assert "secret" not in served.said()


def test_htpasswd_is_read_again(serve: Serve, htpasswd: Path) -> None:
    served = serve("--htpasswd", str(htpasswd))
    alice = Client(served.url, authorization=basic("alice", "secret"))
    assert alice.get("/v2/").status == 200
    subprocess.run(["htpasswd", "-cbB", "-C", "4", str(htpasswd), "bob", "other"], check=True, capture_output=True)
    assert Client(served.url, authorization=basic("bob", "other")).get("/v2/").status == 200
    assert alice.get("/v2/").status == 401


def test_anonymous_pull(serve: Serve, name: str, htpasswd: Path) -> None:
    served = serve("--htpasswd", str(htpasswd), "--anonymous-pull")
    Client(served.url, authorization=basic("alice", "secret")).push_image(name, "latest")
    anybody = Client(served.url)
    assert anybody.get("/v2/").status == 200
    assert anybody.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).status == 200
    for method, path in (("POST", "blobs/uploads/"), ("DELETE", "manifests/latest"), ("PUT", "manifests/latest")):
        assert anybody.request(method, f"/v2/{name}/{path}", b"").status == 401
    assert anybody.get("/v2/_catalog").status == 401
    assert Client(served.url, authorization=basic("alice", "wrong")).get(f"/v2/{name}/manifests/latest").status == 401


def test_tls(serve: Serve, name: str, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2", *subject]
    subprocess.run(command, check=True, capture_output=True)
    served = serve("--tls-cert", str(cert), "--tls-key", str(key))
    assert served.url.startswith("https://127.0.0.1:")
    client = Client(served.url, ca=str(cert))
    data = os.urandom(3_000_000)
    digest = client.push_blob(name, data)
    assert client.get(f"/v2/{name}/blobs/{digest}").body == data
    assert client.get(f"/v2/{name}/blobs/{digest}", Range="bytes=2999990-").body == data[2999990:]


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> TokenSigner:
    return TokenSigner(tmp_path_factory.mktemp("tokens"))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_tokens(serve: Serve, name: str, signer: TokenSigner, algorithm: str) -> None:
    served = serve(*signer.options(algorithm))
    answer = Client(served.url).request("POST", f"/v2/{name}/blobs/uploads/", b"")
    challenge = f'Bearer realm="{signer.url}/token",service="registry",scope="repository:{name}:pull,push"'
    assert (answer.status, answer.headers["www-authenticate"]) == (401, challenge)

    def client(*access: str, **claims: object) -> Client:
        return Client(served.url, authorization="Bearer " + signer.token(access, algorithm=algorithm, **claims))

    full, reader = client(f"repository:{name}:pull,push"), client(f"repository:{name}:pull")
    digest, raw = full.push_image(name, "latest")
    assert reader.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).body == raw
    assert client().get("/v2/").status == 200
    refused = [
        reader.request("POST", f"/v2/{name}/blobs/uploads/", b""),
        full.request("DELETE", f"/v2/{name}/manifests/{digest}"),
        client(f"repository:{name}/other:pull").get(f"/v2/{name}/manifests/latest"),
        full.get("/v2/_catalog"),
    ]
    for answer in refused:
        assert answer.status == 401
        assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert client(f"repository:{name}:delete").request("DELETE", f"/v2/{name}/manifests/{digest}").status == 202
    assert client("registry:catalog:*").get("/v2/_catalog").status == 200


def test_tokens_that_are_not_believed(serve: Serve, name: str, signer: TokenSigner) -> None:
    served = serve(*signer.options("RS256"))
    scope = (f"repository:{name}:pull",)
    now = time.time()
    good = signer.token(scope)
    header, payload, signature = good.split(".")
    wrong = {
        "expired": signer.token(scope, exp=now - 120),
        "not yet": signer.token(scope, nbf=now + 600),
        "issuer": signer.token(scope, iss="somebody else"),
        "audience": signer.token(scope, aud="another registry"),
        "other key": signer.token(scope, algorithm="ES256"),
        "no algorithm": signer.token(scope, algorithm="none"),
        "hmac with the public key": signer.token(scope, algorithm="HS256"),
        "changed": f"{header}.{payload[:-4]}AAAA.{signature}",
        "cut": f"{header}.{payload}.{signature[:-8]}",
        "rubbish": "a.b.c",
        "long": "a" * 40_000,
    }
    for why, token in wrong.items():
        answer = Client(served.url, authorization=f"Bearer {token}").get("/v2/")
        assert answer.status == 401, why
        assert 'error="invalid_token"' in answer.headers["www-authenticate"], why
    assert Client(served.url, authorization=f"Bearer {good}").get("/v2/").status == 200


def test_a_mount_needs_the_right_to_read_its_source(serve: Serve, name: str, signer: TokenSigner) -> None:
    served = serve(*signer.options("RS256"))

    def client(*access: str) -> Client:
        return Client(served.url, authorization="Bearer " + signer.token(access))

    secret, target = f"repository:{name}/secret:pull,push", f"repository:{name}/target:pull,push"
    digest = client(secret).push_blob(f"{name}/secret", b"secret " + name.encode())
    path = f"/v2/{name}/target/blobs/uploads/?mount={digest}"
    answer = client(target).request("POST", f"{path}&from={name}/secret", b"")
    assert answer.status == 401
    assert f"repository:{name}/secret:pull" in answer.headers["www-authenticate"]
    assert client(target).request("POST", path, b"").status == 202
    assert client(target, secret).request("POST", f"{path}&from={name}/secret", b"").status == 201


# a daemon that ends


def test_an_upload_survives_the_daemon(own_daemon: Callable[..., Daemon], name: str) -> None:
    """SIGKILL in the middle of an upload: the command opens the registry again, and the upload goes on where it was."""
    daemon = own_daemon().start()
    served = Served(daemon, addr=f"127.0.0.1:{free_port()}")
    data = os.urandom(2_500_000)
    client = Client(served.url)
    location = client.request("PATCH", client.begin(name), data[:1_200_000], OCTETS).headers["location"]
    daemon.restart()
    deadline = time.monotonic() + 30
    while True:
        try:
            status = client.get(location)
            break
        except OSError:
            assert time.monotonic() < deadline, served.said()
            time.sleep(0.02)
    assert (status.status, status.headers["range"]) == (204, "0-1199999")
    answer = client.request("PUT", with_query(location, digest=digest_of(data)), data[1_200_000:], OCTETS)
    assert answer.status == 201
    assert client.get(f"/v2/{name}/blobs/{digest_of(data)}").body == data
    assert served.end() == 0


def test_what_was_acknowledged_survives_kills(own_daemon: Callable[..., Daemon], name: str) -> None:
    """While clients push, the daemon is killed again and again; every image whose manifest was acknowledged is whole afterwards."""
    daemon = own_daemon().start()
    served = Served(daemon, addr=f"127.0.0.1:{free_port()}")
    done: dict[str, bytes] = {}
    stop = threading.Event()

    def push(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                digest, raw = Client(served.url).push_image(f"{name}/{worker}", f"v{number}")
                done[f"{name}/{worker}/manifests/{digest}"] = raw
            except (OSError, AssertionError, api.http.client.HTTPException):
                stop.wait(0.05)

    workers = [threading.Thread(target=push, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for kill in range(4):
        time.sleep(0.2 + 0.13 * kill)
        daemon.restart()
        before, deadline = len(done), time.monotonic() + 60
        while len(done) == before:
            assert time.monotonic() < deadline, served.said()
            time.sleep(0.02)
    stop.set()
    for worker in workers:
        worker.join()
    daemon.restart()
    assert served.end() == 0
    served = Served(daemon)
    client = Client(served.url)
    assert len(done) >= 4
    for path, raw in done.items():
        answer = client.get(f"/v2/{path}", Accept=ACCEPT)
        assert (answer.status, answer.body) == (200, raw), path
        repository = path.partition("/manifests/")[0]
        for blob in (json.loads(raw)["config"], *json.loads(raw)["layers"]):
            assert digest_of(client.get(f"/v2/{repository}/blobs/{blob['digest']}").body) == blob["digest"]
    served.end()


def test_the_registry_of_daemon_json(own_daemon: Callable[..., Daemon], tmp_path: Path, name: str) -> None:
    """A permanent registry: the member `registry` of daemon.json opens it at the start."""
    port = free_port()
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"registry": {"addr": f"127.0.0.1:{port}", "no-delete": True}}))
    daemon = own_daemon("--config-file", str(file)).start()
    client = Client(f"http://127.0.0.1:{port}")
    digest, raw = client.push_image(name, "latest")
    daemon.restart()
    assert client.get(f"/v2/{name}/manifests/{digest}", Accept=ACCEPT).body == raw
    assert client.request("DELETE", f"/v2/{name}/manifests/{digest}").code == "UNSUPPORTED"


def test_a_wrong_registry_in_daemon_json(tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"registry": {"address": "127.0.0.1:5000"}}))
    roots = ["--data-root", str(tmp_path / "data"), "--exec-root", str(tmp_path / "exec"), "-H", f"unix://{tmp_path / 'socket'}"]
    result = subprocess.run([*knarr_command(), "daemon", "--config-file", str(file), *roots], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "registry in daemon.json: Object contains unknown field `address`" in result.stderr


# one store


def test_images_and_repositories_share_blobs_and_keep_them_for_each_other(own_daemon: Callable[..., Daemon], name: str) -> None:
    """Removing an image leaves what a repository has of it, at once and after a restart; deleting from the repository leaves the image."""
    daemon = own_daemon().start()
    busybox.load(daemon)
    digests = [f"sha256:{file.name}" for file in (daemon.data_root / "content/blobs/sha256").iterdir()]
    contents = {digest: (daemon.data_root / "content/blobs/sha256" / digest.partition(":")[2]).read_bytes() for digest in digests}
    client = Client(Served(daemon, addr=f"127.0.0.1:{free_port()}").url)
    for data in contents.values():
        client.push_blob(name, data)
    for digest in digests[:1]:
        assert client.request("DELETE", f"/v2/{name}/blobs/{digest}").status == 202
        client.push_blob(name, contents[digest])
    assert daemon.api("DELETE", "/images/busybox:latest").status == 200
    for _ in range(2):
        for digest, data in contents.items():
            assert client.get(f"/v2/{name}/blobs/{digest}").body == data
        daemon.restart()
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                client.get("/v2/")
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_images_go_while_the_same_blobs_are_pushed(own_daemon: Callable[..., Daemon], name: str) -> None:
    """An image is loaded and removed again and again, while clients push and delete its layers: what was acknowledged is there."""
    daemon = own_daemon().start()
    busybox.load(daemon)
    contents = [file.read_bytes() for file in (daemon.data_root / "content/blobs/sha256").iterdir()]
    url = Served(daemon).url
    stop = threading.Event()
    failures: list[str] = []

    def churn(repository: str) -> None:
        client = Client(url)
        while not stop.is_set():
            for data in contents:
                digest = client.push_blob(repository, data)
                if digest_of(client.get(f"/v2/{repository}/blobs/{digest}").body) != digest:
                    failures.append(digest)
                client.request("DELETE", f"/v2/{repository}/blobs/{digest}")

    workers = [threading.Thread(target=churn, args=(f"{name}/{number}",)) for number in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(8):
        assert daemon.api("DELETE", "/images/busybox:latest").status == 200
        busybox.load(daemon)
    stop.set()
    for worker in workers:
        worker.join()
    assert not failures
    assert daemon.api("DELETE", "/images/busybox:latest").status == 200


def test_a_full_disk_is_told_and_costs_nothing(tmp_path: Path, name: str) -> None:
    """An upload that does not fit is 507, its space is free again, and what fits still goes in."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    daemon = Daemon(directory=place)
    try:
        daemon.start()
        client = Client(Served(daemon).url)
        small = client.push_blob(name, b"x" * 1000)
        for _ in range(3):
            answer = client.request("PATCH", client.begin(name), b"y" * 26_000_000, OCTETS)
            assert answer.status == 507, answer
            assert os.listdir(daemon.data_root / "content/uploads") == []
        client.push_image(name, "latest")
        assert client.get(f"/v2/{name}/blobs/{small}").body == b"x" * 1000
    finally:
        daemon.close()
        if os.path.ismount(place):
            subprocess.run(["umount", "-l", str(place)], check=True)


# other clients


def layout(directory: Path) -> Path:
    archive = images.busybox_archive(directory / "busybox.tar")
    target = directory / "layout"
    subprocess.run(["skopeo", "copy", f"docker-archive:{archive}", f"oci:{target}:latest"], check=True, capture_output=True)
    return target


def test_skopeo_pushes_and_pulls(serve: Serve, name: str, tmp_path: Path, htpasswd: Path) -> None:
    """skopeo copies an image in, inspects it, copies it between repositories (by mounts) and out again, with a password."""
    served = serve("--htpasswd", str(htpasswd))
    registry = served.url.removeprefix("http://")
    source = layout(tmp_path)

    def skopeo(*arguments: str) -> bytes:
        result = subprocess.run(["skopeo", *arguments], capture_output=True)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout

    login = ["--dest-tls-verify=false", "--dest-creds", "alice:secret"]
    skopeo("copy", *login, f"oci:{source}:latest", f"docker://{registry}/{name}:v1")
    shown = json.loads(skopeo("inspect", "--tls-verify=false", "--creds", "alice:secret", f"docker://{registry}/{name}:v1"))
    assert shown["RepoTags"] == ["v1"]
    both = ["--src-tls-verify=false", "--src-creds", "alice:secret"]
    skopeo("copy", *both, *login, f"docker://{registry}/{name}:v1", f"docker://{registry}/{name}/copy:v2")
    back = tmp_path / "back"
    skopeo("copy", *both, f"docker://{registry}/{name}/copy:v2", f"oci:{back}:latest")
    blobs = {file.name for file in (source / "blobs/sha256").iterdir()}
    assert blobs <= {file.name for file in (back / "blobs/sha256").iterdir()}
    skopeo("delete", "--tls-verify=false", "--creds", "alice:secret", f"docker://{registry}/{name}/copy:v2")
    result = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", "--creds", "alice:secret", f"docker://{registry}/{name}/copy:v2"], capture_output=True
    )
    assert result.returncode != 0


def test_umoci_unpacks_what_was_pulled(serve: Serve, name: str, tmp_path: Path) -> None:
    """An image that went through the registry is one that another OCI tool unpacks."""
    registry = serve().url.removeprefix("http://")
    commands = [
        ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout(tmp_path)}:latest", f"docker://{registry}/{name}:latest"],
        ["skopeo", "copy", "--src-tls-verify=false", f"docker://{registry}/{name}:latest", f"oci:{tmp_path / 'back'}:latest"],
        ["umoci", "unpack", "--image", f"{tmp_path / 'back'}:latest", str(tmp_path / "bundle")],
    ]
    for command in commands:
        result = subprocess.run(command, capture_output=True)
        assert result.returncode == 0, result.stderr.decode()
    assert (tmp_path / "bundle/rootfs/bin/busybox").stat().st_size == os.stat(shutil.which("busybox") or "/bin/busybox").st_size
