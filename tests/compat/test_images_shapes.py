"""Images through the docker CLI and the API: words, exit codes, JSON members and events, as dockerd 26 gives them.

Every expectation was taken from it; KNARR_PEER_DOCKER_HOST names one to try them on, KNARR_PEER_NETNS its network namespace.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib import images
from tests.lib.daemon import Engine
from tests.lib.registries import DockerRegistry, beside_engine
from tests.lib.registryimages import put_image

FROM = "Error response from daemon: "
ID = "a" * 64
DIGEST = "sha256:" + ID
CONFIG = {"Labels": {"team": "red"}, "Env": ["A=b"], "Cmd": ["sh"]}
NAMES = ("shapes:1", "shapes:2", "shapes/other:1")


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with beside_engine() as made:
        layer = images.tar([images.entry("hello", data=b"hello\n")])
        for tag in ("1", "2"):
            put_image(made, "shapes/app", tag, [layer, images.tar([images.entry(tag, data=tag.encode() * 100)])], config=CONFIG)
        yield made


@pytest.fixture
def named(engine: Engine) -> Iterator[Engine]:
    """The engine with an image that has three names."""
    archive = images.docker_archive([images.tar([images.entry("shape", data=b"o" * 1000)])], [*NAMES], CONFIG)
    engine.docker("load", input=archive)
    yield engine
    engine.docker("rmi", "-f", *NAMES, check=False)


@pytest.fixture
def tidy(engine: Engine, registry: DockerRegistry) -> Iterator[Engine]:
    """The engine, afterwards without images of the registry."""
    yield engine
    for image in engine.api("GET", "/images/json").json():
        if any(registry.host in name for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ()))):
            engine.api("DELETE", f"/images/{image['Id']}?force=1")


def failure(engine: Engine, *arguments: str) -> str:
    """What the docker CLI says when it ends with status 1, without the name of whose error it is."""
    result = engine.docker(*arguments, check=False)
    assert result.returncode == 1, result
    return result.stderr.decode().strip().removeprefix(FROM)


# -- words


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pull UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("pull scratch", "'scratch' is a reserved name"),
        ("pull 127.0.0.1:1/x@sha256:aaaa", "invalid reference format"),
        (f"pull {ID}", f"invalid repository name ({ID}), cannot specify 64-byte hexadecimal strings"),
        ("pull --platform nonsense 127.0.0.1:1/x", '"nonsense": unknown operating system or architecture: invalid argument'),
        ("pull -a 127.0.0.1:1/x:1", "tag can't be used with --all-tags/-a"),
        ("tag shapes:none x", "No such image: shapes:none"),
        ("tag shapes:1 sha256:x", "refusing to create an ambiguous tag using digest algorithm as name"),
        (f"tag shapes:1 shapes@{DIGEST}", "refusing to create a tag with a digest reference"),
        ("image inspect shapes:none", "No such image: shapes:none"),
        (f"image inspect shapes:1@{DIGEST}", f"No such image: shapes:1@{DIGEST}"),
        ("history shapes:none", "No such image: shapes:none"),
        ("rmi shapes:none", "No such image: shapes:none"),
        ("save shapes-none", "No such image: shapes-none"),
        ("images [", "syntax error in pattern"),
        ("images --filter bogus=1", "invalid filter 'bogus'"),
        ("images --filter dangling=maybe", "invalid filter 'dangling=[maybe]'"),
        ("images --filter until=nonsense", 'failed to parse value as time or duration: "nonsense"'),
        ("images --filter before=shapes:none", "No such image: shapes:none"),
        ("image prune -f --filter bogus=1", "invalid filter 'bogus'"),
        ("network prune -f --filter bogus=1", "invalid filter 'bogus'"),
        ("network prune -f --filter until=junk", 'failed to parse value as time or duration: "junk"'),
        ("volume prune -f --filter bogus=1", "invalid filter 'bogus'"),
        ("import - UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("search --filter bogus=1 x", "invalid filter 'bogus'"),
    ],
)
def test_words(named: Engine, command: str, message: str) -> None:
    assert failure(named, *command.split(" ")) == message


def test_pull_of_another_platform(tidy: Engine, registry: DockerRegistry) -> None:
    name = f"{registry.host}/shapes/app:1"
    result = tidy.docker("pull", "--platform", "linux/s390x", name, check=False)
    wanted = f"image with reference {name} was found but does not match the specified platform: wanted linux/s390x, actual: linux/"
    assert (result.returncode, wanted in result.stderr.decode()) == (1, True), result
    tidy.docker("pull", "--platform", "linux", name)  # on this host's architecture


def test_pull_never_of_another_platform(named: Engine) -> None:
    result = named.docker("create", "--pull", "never", "--platform", "linux/s390x", "--network", "none", "shapes:1", check=False)
    wanted = "image with reference shapes:1 was found but does not match the specified platform: wanted linux/s390x, actual: linux/"
    assert (result.returncode, wanted in result.stderr.decode()) == (1, True), result


def test_push_of_a_tag_that_the_repository_lacks(tidy: Engine, registry: DockerRegistry) -> None:
    tidy.docker("pull", "-q", f"{registry.host}/shapes/app:1")
    said = tidy.docker("push", f"{registry.host}/shapes/app", check=False)
    assert (said.returncode, said.stderr.decode().strip()) == (1, f"tag does not exist: {registry.host}/shapes/app:latest")
    said = tidy.docker("push", f"{registry.host}/shapes/none:1", check=False)
    assert said.stderr.decode().strip() == f"An image does not exist locally with the tag: {registry.host}/shapes/none"


# -- names


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        ("shapes", {"shapes:1", "shapes:2"}), ("shapes:*", {"shapes:1", "shapes:2"}), ("shap*", {"shapes:1", "shapes:2"}),
        ("shapes:[^2]", {"shapes:1"}), ("sh?pes:1", {"shapes:1"}), ("shapes/*", {"shapes/other:1"}), ("s*r:1", set()),
        ("shape\\s:1", {"shapes:1"}), ("*/other", {"shapes/other:1"}),
    ],
)  # fmt: skip
def test_patterns(named: Engine, pattern: str, shown: set[str]) -> None:
    lines = named.out("images", "--filter", f"reference={pattern}", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    assert {line for line in lines if line.startswith("shapes")} == shown


def test_rmi(named: Engine) -> None:
    id = named.out("image", "inspect", "-f", "{{.Id}}", "shapes:1")
    short = id[7:19]
    conflict = f"conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
    assert failure(named, "rmi", short) == conflict
    assert named.out("rmi", "shapes:1") == "Untagged: shapes:1"
    mixed = named.docker("rmi", "shapes:2", "shapes:none", check=False)
    assert (mixed.returncode, mixed.stdout, mixed.stderr) == (
        1, b"Untagged: shapes:2\n", b"Error response from daemon: No such image: shapes:none\n",
    )  # fmt: skip
    forced = named.docker("rmi", "-f", "shapes:none", check=False)
    assert (forced.returncode, forced.stderr) == (0, b"Error response from daemon: No such image: shapes:none\n")
    assert named.out("rmi", short).splitlines()[:2] == ["Untagged: shapes/other:1", f"Deleted: {id}"]


def test_an_image_that_a_container_uses(named: Engine) -> None:
    container = named.out("create", "--name", "shapes-user", "--network", "none", "shapes/other:1", "x")
    try:
        named.docker("rmi", "shapes:1", "shapes:2")
        id = named.out("image", "inspect", "-f", "{{.Id}}", "shapes/other:1")
        message = (
            'conflict: unable to remove repository reference "shapes/other:1" (must force) - container '
            f"{container[:12]} is using its referenced image {id[7:19]}"
        )
        assert failure(named, "rmi", "shapes/other:1") == message
        assert named.out("rmi", "-f", "shapes/other:1").splitlines() == ["Untagged: shapes/other:1", f"Deleted: {id}"]
        # Its name stands for nothing any more, so `ps` shows the image's identifier.
        assert named.out("ps", "-a", "--no-trunc", "--filter", "name=shapes-user", "--format", "{{.Image}}") == id
        assert named.out("inspect", "-f", "{{.Config.Image}}", "shapes-user") == "shapes/other:1"
    finally:
        named.docker("rm", "-f", "shapes-user")


def test_digests(tidy: Engine, registry: DockerRegistry) -> None:
    name = f"{registry.host}/shapes/app"
    tidy.docker("pull", "-q", f"{name}:1")
    (digest,) = json.loads(tidy.out("image", "inspect", "-f", "{{json .RepoDigests}}", f"{name}:1"))
    id = tidy.out("image", "inspect", "-f", "{{.Id}}", f"{name}:1")
    # The tag beside a digest is not looked at.
    for asked in (digest, f"{name}:2@{digest.partition('@')[2]}", id, id[7:19], id[:19]):
        assert tidy.out("image", "inspect", "-f", "{{.Id}}", asked) == id
    assert tidy.out("images", "--digests", "--format", "{{.Tag}} {{.Digest}}", name) == f"1 {digest.partition('@')[2]}"
    assert tidy.out("rmi", digest) == f"Untagged: {digest}"
    assert tidy.out("image", "inspect", "-f", "{{json .RepoDigests}}", f"{name}:1") == "[]"


# -- JSON

_INSPECT = {
    "Id", "RepoTags", "RepoDigests", "Parent", "Comment", "Created", "DockerVersion", "Author", "Config", "Architecture", "Os", "Size",
    "GraphDriver", "RootFS", "Metadata",
}  # fmt: skip
_SUMMARY = {"Containers", "Created", "Id", "Labels", "ParentId", "RepoDigests", "RepoTags", "SharedSize", "Size"}
_ZERO = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False, "Tty": False,
    "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None, "Image": "", "Volumes": None, "WorkingDir": "", "Entrypoint": None,
    "OnBuild": None, "Labels": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "inspect", "summary"),
    [
        ("1.24", {"ContainerConfig", "VirtualSize"}, {"VirtualSize"}), ("1.41", {"ContainerConfig", "VirtualSize"}, {"VirtualSize"}),
        ("1.43", {"ContainerConfig", "VirtualSize"}, {"VirtualSize"}), ("1.44", {"ContainerConfig"}, set()), ("1.45", set(), set()),
    ],
)  # fmt: skip
def test_members_by_version(named: Engine, version: str, inspect: set[str], summary: set[str]) -> None:
    one = named.api("GET", f"/v{version}/images/shapes:1/json").json()
    assert one.keys() == _INSPECT | inspect
    assert one.get("ContainerConfig", _ZERO) == _ZERO
    assert one["Config"] == {**_ZERO, **CONFIG}
    assert sorted(one["RepoTags"]) == sorted(NAMES)
    (listed,) = [found for found in named.api("GET", f"/v{version}/images/json").json() if "shapes:1" in found["RepoTags"]]
    assert listed.keys() == _SUMMARY | summary
    assert (listed["Id"], listed["Size"], listed["SharedSize"], listed["Containers"]) == (one["Id"], one["Size"], -1, -1)


def test_history(named: Engine) -> None:
    (row,) = named.api("GET", "/v1.45/images/shapes:1/history").json()
    assert {key: row[key] for key in ("Comment", "CreatedBy", "Size")} == {"Comment": "", "CreatedBy": "layer 0", "Size": 1000}
    assert set(row["Tags"]) == set(NAMES)


@pytest.mark.parametrize("kind", ["image", "container", "volume", "build-cache", ""])
def test_disk_usage_of_one_kind(named: Engine, kind: str) -> None:
    usage = named.api("GET", f"/v1.45/system/df?type={kind}" if kind else "/v1.45/system/df").json()
    members = {"Images": "image", "Containers": "container", "Volumes": "volume", "BuildCache": "build-cache"}
    assert usage.keys() == {"LayersSize", *members}
    assert {member for member in members if usage[member] is not None} == {m for m, one in members.items() if kind in ("", one)}
    assert named.api("GET", "/v1.45/system/df?type=bogus").status == 400


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("/networks/prune", {"NetworksDeleted": None}), ("/volumes/prune", {"VolumesDeleted": [], "SpaceReclaimed": 0}),
        ("/containers/prune", {"ContainersDeleted": None, "SpaceReclaimed": 0}),
        ("/images/prune", {"ImagesDeleted": None, "SpaceReclaimed": 0}),
    ],
)  # fmt: skip
def test_nothing_to_prune(named: Engine, target: str, answer: dict[str, Any]) -> None:
    filters = urllib.parse.quote(json.dumps({"label": ["nothing has this label"]}))
    assert named.api("POST", f"/v1.45{target}?filters={filters}").json() == answer


def test_system_prune(named: Engine) -> None:
    pruned = named.out("system", "prune", "-af", "--volumes", "--filter", "label=nothing has this label")
    assert pruned == "Total reclaimed space: 0B"


def test_the_head_line_of_a_pull_is_no_step(tidy: Engine, registry: DockerRegistry) -> None:
    answer = tidy.api("POST", f"/v1.45/images/create?fromImage={registry.host}/shapes/app&tag=1")
    head, *lines = [json.loads(line) for line in answer.body.splitlines()]
    assert head == {"status": "Pulling from shapes/app", "id": "1"}
    assert {"progressDetail" in line for line in lines if "id" in line} == {True}
    assert [list(line) for line in lines[-2:]] == [["status"], ["status"]]


# -- archives


def test_save_and_load(named: Engine, tmp_path: Path) -> None:
    id = named.out("image", "inspect", "-f", "{{.Id}}", "shapes:1")
    named.docker("save", "-o", str(tmp_path / "names.tar"), "shapes", "shapes/other:1", "shapes:1")
    named.docker("save", "-o", str(tmp_path / "id.tar"), id)
    named.docker("rmi", *NAMES)
    assert named.out("load", "-i", str(tmp_path / "id.tar")) == f"Loaded image ID: {id}"
    assert sorted(named.out("load", "-q", "-i", str(tmp_path / "names.tar")).splitlines()) == [f"Loaded image: {n}" for n in sorted(NAMES)]
    assert sorted(json.loads(named.out("image", "inspect", "-f", "{{json .RepoTags}}", id))) == sorted(NAMES)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\0" * 20000], ids=["nothing", "garbage", "empty tar"])
def test_what_is_no_archive(engine: Engine, data: bytes) -> None:
    result = engine.docker("load", input=data, check=False)
    assert (result.returncode, result.stdout, result.stderr != b"") == (1, b"", True)


def test_import(engine: Engine) -> None:
    changes = ("-c", 'CMD ["/x"]', "-c", "ENV A=b", "-c", "LABEL a=b", "-m", "said so", "--platform", "linux/arm64")
    id = engine.out("import", *changes, "-", "shapes/imported:1", input=images.tar([images.entry("x", data=b"x")]))
    try:
        found = engine.api("GET", f"/v1.45/images/{id}/json").json()
        shown = {name: found[name] for name in ("RepoTags", "RepoDigests", "Comment", "Architecture", "Os", "Size")}
        assert shown == {
            "RepoTags": ["shapes/imported:1"], "RepoDigests": [], "Comment": "said so", "Architecture": "arm64", "Os": "linux", "Size": 1,
        }  # fmt: skip
        assert found["Config"] == {**_ZERO, "Cmd": ["/x"], "Env": ["A=b"], "Labels": {"a": "b"}}
    finally:
        engine.docker("rmi", id)


# -- events


def test_events(tidy: Engine, registry: DockerRegistry, tmp_path: Path) -> None:
    """Which events there are, about what, with the image's labels for as long as it is there."""
    name, archive = f"{registry.host}/shapes/app", str(tmp_path / "events.tar")
    began = time.time()
    tidy.docker("pull", "-q", f"{name}:2")
    id = tidy.out("image", "inspect", "-f", "{{.Id}}", f"{name}:2")
    tidy.docker("tag", f"{name}:2", f"{registry.host}/shapes/events:1")
    tidy.docker("push", "-q", f"{registry.host}/shapes/events:1")
    tidy.docker("save", "-o", archive, f"{name}:2")
    tidy.docker("rmi", f"{registry.host}/shapes/events:1")
    tidy.docker("rmi", f"{name}:2")
    tidy.docker("load", "-i", archive)
    tidy.docker("tag", f"{name}:2", f"{registry.host}/shapes/events:2")
    tidy.docker("rmi", "-f", id)
    imported = tidy.out("import", "-", f"{registry.host}/shapes/imported:1", input=images.tar([images.entry("x", data=b"x")]))
    tidy.docker("rmi", imported)
    times = ("--since", f"{began:.6f}", "--until", f"{time.time():.6f}")
    found = [json.loads(line) for line in tidy.out("events", *times, "--filter", "type=image", "--format", "{{json .}}").splitlines()]
    events = [event for event in found if registry.host in str(event) or event["id"] in (id, imported)]
    red = {"team": "red"}
    assert [(event["Action"], event["Actor"]["ID"], event["Actor"]["Attributes"]) for event in events] == [
        ("pull", f"{name}:2", {"name": name, **red}),
        ("tag", id, {"name": f"{registry.host}/shapes/events:1", **red}),
        ("push", f"{registry.host}/shapes/events:1", {"name": f"{registry.host}/shapes/events", **red}),
        ("save", id, {"name": id, **red}),
        ("untag", id, {"name": id, **red}),
        ("untag", id, {"name": id, **red}),
        ("delete", id, {"name": id}),
        ("load", id, {"name": id, **red}),
        ("tag", id, {"name": f"{registry.host}/shapes/events:2", **red}),
        ("untag", id, {"name": id, **red}),
        ("untag", id, {"name": id, **red}),
        ("delete", id, {"name": id}),
        ("tag", imported, {"name": f"{registry.host}/shapes/imported:1"}),
        ("import", imported, {"name": imported}),
        ("untag", imported, {"name": imported}),
        ("delete", imported, {"name": imported}),
    ]
    assert [(event["status"], event["id"]) for event in events] == [(event["Action"], event["Actor"]["ID"]) for event in events]
