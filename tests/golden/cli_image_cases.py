"""Command lines about images, registries and the disk that knarr must take as the docker CLI does, and the answers they get. Data only.

A line may end with `<<< TEXT`, which is its standard input; `\\n` in it is a line's end.
"""
# ruff: noqa: E501

from __future__ import annotations

import base64
import json
import time
from typing import Any

from tests.golden.cli_cases import DAY, IMAGES, NOW
from tests.golden.cli_fake import CONTAINER_ID

# Ages are shown in whole years: they must not depend on when the tests run.
LONG_AGO = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - 900 * DAY))

HUB = "https://index.docker.io/v1/"
DIGEST = "sha256:" + "ab" * 32


def stream(*values: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\r\n" for value in values)


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


# what ~/.docker/config.json says before each command; the helper `knarrtest` is tests/golden/cli_helper.py
CONFIGS: dict[str, dict[str, Any]] = {
    "auths": {
        "auths": {HUB: {"auth": basic("hub", "hubpass")}, "localhost:5000": {"auth": basic("me", "secret:with:colons")}, "https://old.example/v1/": {"auth": basic("old", "o")},
                  "token.example": {"auth": basic("t", "x"), "identitytoken": "idtoken"}},
        "HttpHeaders": {"X-Meta": "v 1"}, "unknownMember": {"b": [1, 2.5, None], "a": "<&>"},
    },
    "store": {"auths": {"localhost:5000": {}}, "credsStore": "knarrtest"},
    "helpers": {"credHelpers": {"localhost:5000": "knarrtest", "gone.example": "nosuchhelper"}, "auths": {HUB: {"auth": basic("hub", "hubpass")}}},
    "bad": {"auths": {"localhost:5000": {"auth": "%%%"}}},
}

PULL = r"""
pull x
pull x:1
pull x:1@{digest}
pull -q x
pull -q x:1
pull --quiet x@{digest}
pull -a x
pull -a -q x
pull -a x:1
pull --all-tags x@{digest}
pull x@{digest}
pull x@sha256:abc
pull --platform linux/arm64/v8 x
pull --platform foo/bar/baz/qux x
pull localhost:5000/a/b:1
pull localhost:5000/a/b
pull docker.io/a/b
pull docker.io/library/x
pull index.docker.io/x
pull old.example/a
pull token.example/a
pull quay.io/a
pull X
pull x:
pull ''
pull x/:y
pull abababababababababababababababababababababababababababababababab
pull fail
pull nope
pull
pull a b
pull --disable-content-trust x
pull --nope x
image pull x
image pull --nope x
push x
push x:1
push -a x
push --all-tags x:1
push -a x:1
push -q x
push -q localhost:5000/a/b:1
push -a -q x
push --platform linux/arm64 x
push --platform linux/arm/v7 x
push --platform foo/bar/baz/qux x
push x@{digest}
push localhost:5000/a/b
push fail
push noted
push lacking
push nope
push X
push
push a b
image push x
run --pull always -d pulled
run --pull never -d missing
run --pull missing -d missing
run --pull missing -q -d missing
run -d missing:1
run -d --platform linux/arm64 localhost:5000/missing
create missing
create --pull always pulled
create -q --pull always pulled
run --pull always -d fail
""".strip().format(digest=DIGEST).splitlines()

LOGIN = r"""
login -u me -p pw
login -u me -p pw localhost:5000
login -u me -p pw https://localhost:5000/v2/
login -u me --password-stdin localhost:5000 <<< pw\n
login -u me --password-stdin localhost:5000 <<< pw\nmore\n
login -u me --password-stdin localhost:5000 <<<
login --password-stdin localhost:5000 <<< pw
login -u me -p pw --password-stdin localhost:5000 <<< pw
login -p pw localhost:5000
login -u '' -p pw new.example
login -u me localhost:5000
login new.example
login localhost:5000
login
login -u wrong -p pw localhost:5000
login -u id -p pw new.example
login token.example
login -u me -p pw docker.io
login -u me -p pw registry-1.docker.io
login a b
login --nope
logout
logout localhost:5000
logout https://localhost:5000/v2/
logout docker.io
logout nowhere.example
logout token.example
logout old.example
logout a b
""".strip().splitlines()

OTHER = r"""
search deb
search --no-trunc deb
search --limit 5 deb
search --filter is-official=true --filter stars=3 deb
search -f nope deb
search --format json deb
search --format '{{.Name}}: {{.StarCount}} {{.IsOfficial}} {{.IsAutomated}}' deb
search --format 'table {{.Name}}\t{{.StarCount}}' deb
search --format '{{.Nope}}' deb
search --format '{{json .}}' deb
search localhost:5000/deb
search
search a b
search ''
save x
save x y:1
save -o out.tar x
save --platform linux/arm64 x
save --platform linux/arm64,linux/amd64 x
save -o none/out.tar x
save -o . x
save -o /dev/null x
save nope
save -o out.tar nope
save
image save x
load -i in.tar
load --platform linux/arm64 -i in.tar
load --platform foo/bar/baz/qux -i in.tar
load --platform 'linux/a b' -i in.tar
load -q -i in.tar
load -i none.tar
load x
image prune -f
image prune -a -f
image prune --all --force --filter until=24h --filter label=a=b
image prune --filter until=24h --filter label!=c -f
image prune
image prune <<< y\n
image prune <<< n\n
image prune -a <<< Y\n
image prune --filter label=x <<< y
image prune x
image prune --filter nope -f
system df
system df -v
system df --format json
system df --format '{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}'
system df --format 'table {{.Type}}\t{{.Size}}'
system df --format '{{json .}}'
system df -v --format json
system df -v --format '{{json .}}'
system df -v --format '{{range .Images}}{{.Repository}} {{.SharedSize}} {{end}}'
system df x
system prune -f
system prune -a -f
system prune -a -f --volumes
system prune --volumes -f --filter label=x
system prune -f --filter until=24h
system prune -f --volumes --filter until=24h
system prune <<< y\n
system prune <<< n\n
system prune -a --volumes --filter label=a <<< n\n
system prune
system prune x
images --tree
images --tree x
images --tree -a
images --tree -q
images --tree --digests
images --tree --no-trunc
images --tree --format json
images --tree --filter dangling=true
images --digests
images --no-trunc --digests
images a b
image inspect --platform linux/arm64 i
image inspect --platform foo/bar/baz/qux i
image rm --platform linux/arm64 a:b
image rm --platform linux/arm64,linux/amd64 a:b
rmi --platform linux/arm64 --platform linux/amd64 -f a:b
history --platform linux/arm64 x
manifest inspect
manifest create a
manifest annotate a
manifest push
manifest rm
manifest foo
image foo
system foo
login --help=x
""".strip().splitlines()

_LAYER = "8d3ac3489996"
_PULLED = stream(
    {"status": "Pulling from library/x", "id": "1"}, {"status": "Pulling fs layer", "progressDetail": {}, "id": _LAYER},
    {"status": "Downloading", "progressDetail": {"current": 100, "total": 1000}, "progress": "[=====>      ]  100B/1kB", "id": _LAYER},
    {"status": "Downloading", "progressDetail": {"current": 1000, "total": 1000}, "progress": "[==========>]  1kB/1kB", "id": _LAYER},
    {"status": "Verifying Checksum", "progressDetail": {}, "id": _LAYER}, {"status": "Download complete", "progressDetail": {}, "id": _LAYER},
    {"status": "Extracting", "progressDetail": {"current": 1000, "total": 1000}, "progress": "[==========>]  1kB/1kB", "id": _LAYER},
    {"status": "Pull complete", "progressDetail": {}, "id": _LAYER}, {"status": "Already exists", "progressDetail": {}, "id": "aaaaaaaaaaaa"},
    {"status": "Digest: " + DIGEST}, {"status": "Status: Downloaded newer image for x:1"},
)
_PUSHED = stream(
    {"status": "The push refers to repository [docker.io/library/x]"}, {"status": "Preparing", "progressDetail": {}, "id": _LAYER},
    {"status": "Pushing", "progressDetail": {"current": 100, "total": 1000}, "progress": "[=====>      ]  100B/1kB", "id": _LAYER},
    {"status": "Layer already exists", "progressDetail": {}, "id": "aaaaaaaaaaaa"}, {"status": "Pushed", "progressDetail": {}, "id": _LAYER},
    {"status": f"1: digest: {DIGEST} size: 528"}, {"progressDetail": {}, "aux": {"Tag": "1", "Digest": DIGEST, "Size": 528}},
)
_NOTED = stream(
    {"status": "The push refers to repository [docker.io/library/noted]"},
    {"progressDetail": {}, "aux": {"manifestPushedInsteadOfIndex": True, "originalIndex": {"digest": DIGEST, "size": 1}, "selectedManifest": {"digest": DIGEST, "size": 2}}},
)
_LACKING = stream(
    {"status": "The push refers to repository [docker.io/library/lacking]"},
    {"progressDetail": {}, "aux": {"contentMissing": True, "desc": {"digest": DIGEST, "size": 1, "mediaType": "x"}}},
)
_FAILED = stream({"status": "Pulling from library/fail", "id": "latest"}, {"errorDetail": {"message": "toomanyrequests: slow down", "code": 429}, "error": "toomanyrequests: slow down"})
_FOUND = [
    {"star_count": 4900, "is_official": True, "name": "debian", "is_automated": False, "description": "Debian is a Linux distribution that's composed entirely of free and open-source software."},
    {"star_count": 0, "is_official": False, "name": "some/debian-ü", "is_automated": True, "description": "two\nlines"},
    {"star_count": 12, "is_official": False, "name": "a/deb", "is_automated": False, "description": ""},
]
_DELETED = {"ImagesDeleted": [{"Untagged": "x@" + DIGEST}, {"Deleted": DIGEST}], "SpaceReclaimed": 123456789}
_USAGE = {
    "LayersSize": 5000000000,
    "Images": [
        {"Id": "sha256:" + "cd" * 32, "RepoTags": ["debian:bookworm", "debian:12"], "RepoDigests": ["debian@" + DIGEST], "Created": NOW - 1170 * DAY, "Size": 123456789, "SharedSize": 23456789, "Labels": None, "Containers": 1},
        {"Id": "sha256:" + "ce" * 32, "RepoTags": [], "RepoDigests": [], "Created": NOW - 65 * DAY, "Size": 3000000, "SharedSize": 0, "Labels": None, "Containers": 0},
    ],
    "Containers": [
        {"Id": "4f" * 32, "Names": ["/web"], "Image": "debian:bookworm", "ImageID": "sha256:" + "cd" * 32, "Command": "sleep 1", "Created": NOW - 9 * DAY, "State": "running", "Status": "Up 3 minutes", "SizeRw": 1234, "SizeRootFs": 5, "Mounts": [{"Type": "volume", "Name": "data", "Driver": "local"}], "Labels": {}, "Ports": [], "NetworkSettings": None, "HostConfig": {}},
        {"Id": "5f" * 32, "Names": ["/old"], "Image": "debian:bookworm", "ImageID": "sha256:" + "cd" * 32, "Command": "true", "Created": NOW - 9 * DAY, "State": "exited", "Status": "Exited (0) 9 days ago", "SizeRw": 4000000, "SizeRootFs": 5, "Mounts": None, "Labels": {}, "Ports": [], "NetworkSettings": None, "HostConfig": {}},
    ],
    "Volumes": [
        {"Name": "data", "Driver": "local", "Mountpoint": "/x", "Scope": "local", "Labels": {"a": "b"}, "Options": None, "UsageData": {"Size": 2500, "RefCount": 1}},
        {"Name": "idle", "Driver": "local", "Mountpoint": "/y", "Scope": "local", "Labels": None, "Options": None, "UsageData": {"Size": 700000, "RefCount": 0}},
    ],
    "BuildCache": [
        {"ID": "k1", "Type": "regular", "Description": "run", "InUse": False, "Shared": True, "Size": 1000, "CreatedAt": LONG_AGO, "LastUsedAt": LONG_AGO, "UsageCount": 3, "Parents": ["k0"]},
        {"ID": "k2", "Type": "source.local", "Description": "context", "InUse": True, "Shared": False, "Size": 2000, "CreatedAt": LONG_AGO, "LastUsedAt": None, "UsageCount": 1},
    ],
}


def _manifest(digest: str, kind: str, platform: dict[str, str] | None, available: bool, size: int, containers: list[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"ID": digest, "Descriptor": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 528}, "Available": available, "Kind": kind, "Size": {"Content": size, "Total": size * 3}}
    if kind == "image":
        entry["ImageData"] = {"Platform": platform, "Containers": containers, "Size": {"Unpacked": size * 2}}
    elif kind == "attestation":
        entry["AttestationData"] = {"For": "sha256:" + "a1" * 32}
    return entry


_TREE = [
    {**IMAGES[0], "Manifests": [
        _manifest("sha256:" + "a1" * 32, "image", {"os": "linux", "architecture": "amd64"}, True, 25000000, ["4f" * 32]),
        _manifest("sha256:" + "a2" * 32, "image", {"os": "linux", "architecture": "arm64", "variant": "v8"}, False, 24000000, []),
        _manifest("sha256:" + "a3" * 32, "attestation", None, True, 100, []),
    ]},
    {**IMAGES[2], "Manifests": [_manifest("sha256:" + "b1" * 32, "image", {"os": "linux", "architecture": "amd64"}, True, 1000, [])]},
    {**IMAGES[1], "Manifests": [_manifest("sha256:" + "b2" * 32, "image", {"os": "linux", "architecture": "amd64"}, True, 1000, [])]},
    {**IMAGES[2], "Id": "sha256:" + "d1" * 32, "RepoTags": ["no/manifests:1", "a-very/long/name/that/does/not/fit/anywhere/at/all/in/eighty/columns:tag"]},
]


def _images(request: dict[str, Any]) -> tuple[int, object]:
    return 200, _TREE if request["query"].get("manifests") else IMAGES


class Store:
    """An image whose name holds `missing` is there once it has been pulled."""

    def __init__(self) -> None:
        self.pulled: set[str] = set()

    def create(self, request: dict[str, Any]) -> tuple[int, object]:
        name = request["body"]["Image"]
        if "missing" in name and name.partition("@")[0] not in self.pulled:
            return 404, {"message": f"No such image: {name}"}
        return 201, {"Id": CONTAINER_ID, "Warnings": []}

    def pull(self, request: dict[str, Any]) -> tuple[int, object]:
        name, tag = request["query"].get("fromImage", ""), request["query"].get("tag", "")
        if "fail" in name:
            return 200, _FAILED
        if name.endswith("nope"):
            return 404, {"message": "pull access denied for nope, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"}
        short = name.removeprefix("docker.io/library/")
        self.pulled.update((short, f"{short}:{tag}"))
        return 200, _PULLED


def _login(request: dict[str, Any]) -> tuple[int, object]:
    body = request["body"]
    if body.get("username") == "wrong":
        return 401, {"message": "Get \"http://localhost:5000/v2/\": unauthorized: authentication required"}
    if body.get("username") == "id" or body.get("identitytoken"):
        return 200, {"Status": "Login Succeeded", "IdentityToken": "granted"}
    return 200, {"Status": "Login Succeeded", "IdentityToken": ""}


def table() -> dict[str, Any]:
    store = Store()
    return {
        "POST /images/create": store.pull, "POST /images/.*fail/push": (200, _FAILED), "POST /images/.*noted/push": (200, _NOTED), "POST /images/.*lacking/push": (200, _LACKING),
        "POST /images/.*nope/push": (404, {"message": "An image does not exist locally with the tag: nope"}), "POST /images/.*/push": (200, _PUSHED),
        "POST /containers/create": store.create, "POST /auth": _login, "GET /images/search": (200, _FOUND),
        "GET /images/get": (200, b"both archives"), "GET /images/.*nope/get": (404, {"message": "reference does not exist"}), "GET /images/.*/get": (200, b"an archive"),
        "POST /images/load": (200, stream({"stream": "Loaded image: x:latest\n"})),
        "POST /images/prune": (200, _DELETED), "POST /containers/prune": (200, {"ContainersDeleted": ["4f" * 32, "5f" * 32], "SpaceReclaimed": 1000}),
        "POST /networks/prune": (200, {"NetworksDeleted": ["net1"]}), "POST /volumes/prune": (200, {"VolumesDeleted": ["vol1"], "SpaceReclaimed": 2000}),
        "POST /build/prune": (200, {"CachesDeleted": ["k1", "k2"], "SpaceReclaimed": 3000}), "GET /system/df": (200, _USAGE), "GET /images/json": _images,
        "GET /images/i/json": (200, {"Id": "sha256:1", "RepoTags": ["a:b"]}), "DELETE /images/a:b": (200, [{"Untagged": "a:b"}, {"Deleted": DIGEST}]),
        "GET /images/x/history": (200, [{"Id": "<missing>", "Created": NOW - 1170 * DAY, "CreatedBy": "x", "Tags": None, "Size": 1, "Comment": ""}]),
    }
