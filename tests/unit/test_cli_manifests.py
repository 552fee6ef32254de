"""`knarr manifest`: lists put together here and what is sent for them, against a daemon that only remembers.

The digest of a pushed list and the layout of the files are those of the docker CLI 28 for the same two manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden.cli_fake import FakeDaemon
from tests.lib.daemon import knarr_command

LAYER = "sha256:9a43f4c038c6b0a95ccf172c6bb871be79e763b6dbc8521f7ead13b5a1f451bb"
DOCKER = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.'
    b'container.image.v1+json","size":374,"digest":"sha256:11f99d581651694a9bd17b06915c094879b053ae2777860447bc80c7d14c8a07"},"layers":[{"med'
    b'iaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":1087716,"digest":"' + LAYER.encode() + b'"}]}'
)
OCI = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+'
    b'json","digest":"sha256:944331762e4047bf59f67811a7d296e0b556723b3d29f698f319395422e74c2a","size":354},"layers":[{"mediaType":"applicatio'
    b'n/vnd.oci.image.layer.v1.tar+gzip","digest":"' + LAYER.encode() + b'","size":1087716}]}'
)
R = "127.0.0.1:5077/cliwork"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Host:
    """A home, a daemon, and the registry behind it: what was put can be got."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifests = {f"{R}/bb:1": DOCKER, f"{R}/bb:oci": OCI}
        self.fake = FakeDaemon(folder / "s", {
            "GET /distribution/.*/manifest": self.get, "PUT /distribution/.*/manifest": self.put,
            "GET /distribution/.*/json": (200, {"Descriptor": {}, "Platforms": [{"architecture": "amd64", "os": "linux"}]}),
        })  # fmt: skip

    def get(self, request: dict[str, Any]) -> tuple[int, object, dict[str, str]]:
        data = self.manifests.get(self.name(request))
        if data is None:
            return 404, {"message": "manifest unknown"}, {}
        return 200, data, {"Content-Type": json.loads(data)["mediaType"], "Docker-Content-Digest": digest(data)}

    def put(self, request: dict[str, Any]) -> tuple[int, object, dict[str, str]]:
        data = request["raw"]
        name = self.name(request)
        self.manifests[name] = data
        self.manifests[name.partition("@")[0].rpartition(":")[0] + "@" + digest(data)] = data
        return 201, None, {"Docker-Content-Digest": digest(data)}

    @staticmethod
    def name(request: dict[str, Any]) -> str:
        name, _, digest = urllib.parse.unquote(request["path"]).removeprefix("/distribution/").removesuffix("/manifest").partition("@")
        return f"{name.rpartition(':')[0] if ':' in name.rpartition('/')[2] else name}@{digest}" if digest else name

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        environment = {**kept, "KNARR_HOST": f"unix://{self.fake.path}", "HOME": str(self.folder)}
        result = subprocess.run([*knarr_command(), "manifest", *arguments], env=environment, capture_output=True, text=True, timeout=120)
        return result.returncode, result.stdout, result.stderr

    def files(self) -> list[str]:
        base = self.folder / ".docker/manifests"
        return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as folder:
        made = Host(Path(folder))
        yield made
        made.fake.close()


def test_a_list_from_start_to_end(host: Host) -> None:
    assert host("create", f"{R}/list:1", f"{R}/bb:1") == (0, f"Created manifest list {R}/list:1\n", "")
    assert host.files() == ["127.0.0.1-5077_cliwork_list-1/127.0.0.1-5077_cliwork_bb-1"]
    assert host("create", f"{R}/list:1", f"{R}/bb:1")[2] == "refusing to amend an existing manifest list with no --amend flag\n"
    annotate = ("annotate", "--arch", "arm64", "--variant", "v8", "--os-features", "a,b", "--os-version", "10")
    assert host(*annotate, f"{R}/list:1", f"{R}/bb:1") == (0, "", "")
    assert host("create", "--amend", f"{R}/list:1", f"{R}/bb:oci")[0] == 0
    code, out, _ = host("inspect", f"{R}/list:1")
    assert (code, [one["platform"]["architecture"] for one in json.loads(out)["manifests"]]) == (0, ["arm64", "amd64"])
    code, out, error = host("push", "--purge", f"{R}/list:1")
    whole = "sha256:2457fd702d9a98c3bcb4fc8bdd59a645add72386f72e679cdf861690c71364ce"
    lines = [f"Pushed ref {R}/list@{digest(raw)} with digest: {digest(raw)}" for raw in (DOCKER, OCI)]
    assert (code, out.splitlines(), error) == (0, [*lines, whole], "")
    assert host.files() == []
    puts = [one for one in host.fake.requests if one["method"] == "PUT"]
    assert [one["query"] for one in puts] == [{"from": f"{R}/bb"}, {"from": f"{R}/bb"}, {}]
    assert host("inspect", f"{R}/list:1")[1] == host.manifests[f"{R}/list:1"].decode() + "\n"
    verbose = json.loads(host("inspect", "-v", f"{R}/list:1")[1])
    assert [one["Ref"] for one in verbose] == [f"{R}/list:1@{digest(raw)}" for raw in (DOCKER, OCI)]


def test_one_manifest(host: Host) -> None:
    code, out, _ = host("inspect", "--insecure", f"{R}/bb:oci")
    assert (code, out) == (0, json.dumps(json.loads(OCI), indent="\t") + "\n")
    assert all(one["query"] == {"insecure": "1"} for one in host.fake.requests if one["path"] != "/_ping")
    entry = json.loads(host("inspect", "-v", f"{R}/bb:1")[1])
    assert list(entry) == ["Ref", "Descriptor", "Raw", "SchemaV2Manifest"]
    assert entry["Descriptor"] == {
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": digest(DOCKER), "size": len(DOCKER),
        "platform": {"architecture": "amd64", "os": "linux"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nope"), "no such manifest: docker.io/library/nope:latest"),
        (("inspect", "a", "b"), "No such manifest: docker.io/library/b:latest"),
        (("create", "a:", "y"), "error parsing name for manifest list a:: invalid reference format"),
        (("create", "x", "nope"), "no such manifest: docker.io/library/nope:latest"),
        (("annotate", "x", "y"), "manifest for image y does not exist in x"),
        (("push", "x"), "No such manifest: docker.io/library/x:latest"),
        (("rm", "x", "y"), "No such manifest: docker.io/library/x:latest\nNo such manifest: docker.io/library/y:latest"),
    ],
)  # fmt: skip
def test_errors(host: Host, arguments: tuple[str, ...], message: str) -> None:
    assert host(*arguments) == (1, "", message + "\n")


def test_half_a_list_is_never_left(host: Host) -> None:
    assert host("create", f"{R}/list:1", f"{R}/bb:1", f"{R}/nope:1")[0] == 1
    assert host.files() == []


def test_a_list_stays_in_its_registry_and_has_known_platforms(host: Host) -> None:
    assert host("create", "other.example/list", f"{R}/bb:1")[0] == 0
    assert "different registry than the target image: 127.0.0.1:5077 != other.example" in host("push", "other.example/list")[2]
    assert "unsupported os/arch combination: /foo" in host("annotate", "--arch", "foo", "other.example/list", f"{R}/bb:1")[2]
    assert host("rm", "other.example/list") == (0, "", "")


@pytest.mark.parametrize("raw", [b"[]", b"no json", b"[" * 100_000, b"\xff\xfe"])
def test_what_a_registry_calls_a_manifest(host: Host, raw: bytes) -> None:
    host.fake.table = {"GET /distribution/.*": (200, raw, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"})}
    code, out, error = host("inspect", "x")
    assert (code, out) == (1, "")
    assert error.endswith("the registry's manifest is no JSON object\n")
