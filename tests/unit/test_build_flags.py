"""What the flags of `knarr build` ask for, and how those are refused that cannot be: no daemon."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import buildflags, buildsecrets, manual
from cli.buildflags import BUILD, Plan, Sink
from cli.client import Client, Failure
from cli.flags import parse
from engine.spec.build import Options


def plan_of(*words: str) -> Plan:
    given, _ = parse(BUILD, [*words, "."])
    return buildflags.plan(given)


def refused(*words: str) -> str:
    with pytest.raises(Failure) as caught:
        plan_of(*words)
    return caught.value.text.splitlines()[0]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own; `posix.environ` is a copy that the client reads."""
    import posix

    for name in ("SOURCE_DATE_EPOCH", "DOCKER_DEFAULT_PLATFORM", "BUILDKIT_PROGRESS", "BUILDX_BUILDER", "SSH_AUTH_SOCK", "token"):
        monkeypatch.delitem(posix.environ, name.encode(), raising=False)


def setenv(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    import posix

    monkeypatch.setitem(posix.environ, name.encode(), value.encode())


def test_no_flags_ask_for_nothing() -> None:
    plan = plan_of()
    assert plan.options == {}
    assert (plan.sinks, plan.secrets, plan.ssh, plan.progress, plan.quiet) == ({}, {}, {}, "auto", False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-t", "a", "-t", "r.example:5000/b:c"], {"tags": ["a", "r.example:5000/b:c"]}),
        (["--build-arg", "A=b=c", "--build-arg", "B="], {"buildArgs": {"A": "b=c", "B": ""}}),
        (["--build-arg", "SURELY_NOT_SET"], {"buildArgs": {"SURELY_NOT_SET": None}}),
        (["--label", "a=b", "--label", "c"], {"labels": {"a": "b", "c": ""}}),
        (["--platform", "linux/amd64,arm64", "--platform", "linux/arm/v7"], {"platforms": ["linux/amd64", "linux/arm64", "linux/arm/v7"]}),
        (["--network", "none"], {"network": "none"}),
        (["--network", "backend"], {"network": "backend"}),
        (["--network", "host"], {"network": "host", "allow": ["network.host"]}),
        (["--network", "bridge"], {}),
        (["--allow", "security.insecure"], {"allow": ["security.insecure"]}),
        (["--add-host", "a:1.2.3.4", "--add-host", "b=host-gateway,c=[::1]"], {"hosts": ["a:1.2.3.4", "b:host-gateway", "c:::1"]}),
        (["--ulimit", "nofile=10:20", "--ulimit", "core=0"], {"ulimits": ["nofile=10:20", "core=0:0"]}),
        (["--shm-size", "64m", "-m", "1g", "--memory-swap", "-1"], {"shmSize": 64 << 20, "memory": 1 << 30, "memorySwap": -1}),
        (["--cpus", "1.5"], {"cpuPeriod": 100000, "cpuQuota": 150000}),
        (["--cpu-period", "5000", "--cpu-quota", "2500", "-c", "7"], {"cpuPeriod": 5000, "cpuQuota": 2500, "cpuShares": 7}),
        (["--cpuset-cpus", "0-1", "--cpuset-mems", "0"], {"cpusetCpus": "0-1", "cpusetMems": "0"}),
        (["--resource", "memory=2g", "--resource", "cpuset-cpus=0", "--resource", "memory-swap=-1"],
         {"memory": 2 << 30, "cpusetCpus": "0", "memorySwap": -1}),
        (["--cgroup-parent", "/x", "--target", "t", "--no-cache", "--pull", "--squash"],
         {"cgroupParent": "/x", "target": "t", "noCache": True, "pull": True, "squash": True}),
        (["--no-cache-filter", "a,b", "--no-cache-filter", "c"], {"noCacheFilter": ["a", "b", "c"]}),
        (["--security-opt", "a,b"], {"securityOpt": ["a", "b"]}),
        (["--cache-from", "user/app,other:1"], {"cacheFrom": [{"type": "registry", "attributes": {"ref": "user/app"}},
            {"type": "registry", "attributes": {"ref": "other:1"}}]}),
        (["--cache-to", 'type=registry,ref=a:b,mode=max,"x=1,2"'],
         {"cacheTo": [{"type": "registry", "attributes": {"ref": "a:b", "mode": "max", "x": "1,2"}}]}),
        (["--cache-to", "type=local,dest=/c"], {"cacheTo": [{"type": "local", "attributes": {"dest": "/c"}}]}),
        (["--annotation", "a=b", "--annotation", "index,manifest[linux/amd64]:c=d"],
         {"annotations": ["a=b", "index,manifest[linux/amd64]:c=d"]}),
        (["--attest", "type=sbom,generator=x"], {"attest": {"sbom": {"generator": "x"}}}),
        (["--sbom=true", "--provenance", "mode=max"], {"attest": {"sbom": {}, "provenance": {"mode": "max"}}}),
        (["--sbom=false", "--provenance=false"], {}),
        (["--check"], {"call": "check"}),
        (["--call", "outline,format=json"], {"call": "outline"}),
        (["--call", "lint"], {"call": "check"}),
        (["--build-context", "alpine:latest=docker-image://debian:12", "--build-context", "src=https://git.example/x.git"],
         {"contexts": {"alpine": "docker-image://debian:12", "src": "https://git.example/x.git"}}),
        (["--rm=false", "--force-rm", "--compress", "--isolation", "default", "--builder", "default"], {}),
    ],
)  # fmt: skip
def test_flags_become_options_that_the_daemon_can_read(words: list[str], expected: dict[str, Any]) -> None:
    options = plan_of(*words).options
    assert options == expected
    read = msgspec.convert(json.loads(json.dumps(options)), Options)
    assert json.loads(msgspec.json.encode(read)) == expected


@pytest.mark.parametrize(
    ("words", "error"),
    [  # buildx 0.13 says these, where it has the flag
        (["--nope"], "unknown flag: --nope"),
        (["--ulimit", "foo"], 'invalid argument "foo" for "--ulimit" flag: invalid ulimit argument: foo'),
        (["--shm-size", "foo"], 'invalid argument "foo" for "--shm-size" flag: invalid size: \'foo\''),
        (["--progress", "foo"], "ERROR: invalid progress mode foo"),
        (["-q", "--progress", "plain"], "ERROR: progress=plain and quiet cannot be used together"),
        (["-t", "Foo:BAR"], 'ERROR: invalid tag "Foo:BAR": repository name must be lowercase'),
        (["--build-arg", "=x"], 'ERROR: invalid key-value pair "=x": empty key'),
        (["--label", ""], 'ERROR: invalid key-value pair "": empty key'),
        (["--platform", "foo"], 'ERROR: "foo": unknown operating system or architecture: invalid argument'),
        (["--add-host", "foo"], "ERROR: invalid host foo"),
        (["--add-host", "foo:bar"], "ERROR: invalid host foo:bar"),
        (["--allow", "foo"], "ERROR: unknown entitlement foo"),
        (["--annotation", "foo"], 'ERROR: invalid annotation "foo", expected key=value'),
        (["--annotation", "nope:a=b"], 'ERROR: unknown annotation type "nope"'),
        (["--attest", "foo"], "ERROR: invalid value foo"),
        (["--sbom", "maybe"], "ERROR: invalid value maybe"),
        (["--attest", "type=sbom", "--sbom", "true"], "ERROR: duplicate attestation field sbom"),
        (["--attest", "type=sbom,disabled=maybe"], "ERROR: invalid value disabled=maybe of the attestation sbom: expected true or false"),
        (["--build-context", "foo"], "ERROR: invalid context value: foo, expected key=value"),
        (["--build-context", "foo=/nope"], "ERROR: failed to get build context foo: stat /nope: no such file or directory"),
        (["--build-context", "a b=/"], "ERROR: invalid context name a b"),
        (["--cache-from", "foo=bar"], 'ERROR: type required form> "foo=bar"'),
        (["--no-cache", "--no-cache-filter", "a"], "ERROR: --no-cache and --no-cache-filter cannot currently be used together"),
        (["-o", "type=local"], "ERROR: dest is required for local exporter"),
        (["-o", "type=local,dest=-"], "ERROR: dest cannot be stdout for local exporter"),
        (["-o", "type=local,dest"], "ERROR: invalid value dest"),
        (["-o", "dest=x,name=y"], "ERROR: type is required for output"),
        (["-o", '"type=local,dest=x'], 'ERROR: parse error on line 1, column 18: extraneous or missing " in quoted-field'),
        (["-o", "type=tar,dest=/"], "ERROR: destination file / is a directory"),
        (["-o", "-", "-o", "type=oci,dest=-"], "ERROR: multiple outputs cannot all be written to stdout"),
        (["--push"], "ERROR: tag is needed when pushing to registry"),
        (["-o", "type=registry"], "ERROR: tag is needed when pushing to registry"),
        (["--secret", "foo"], "ERROR: invalid field 'foo' must be a key=value pair"),
        (["--secret", "src=/nope"], "ERROR: secret missing ID"),
        (["--secret", "id=foo,bar=x"], "ERROR: unexpected key 'bar' in 'bar=x'"),
        (["--secret", "id=foo,type=x"], 'ERROR: unsupported secret type "x"'),
        (["--builder", "foo"], 'ERROR: no builder "foo" found'),
        (["--isolation", "hyperv"], 'ERROR: invalid isolation "hyperv": on Linux it can only be "default"'),
        (["--policy", "x"], "not implemented: --policy"),
        (["--call", "foo"], 'ERROR: invalid call "foo": expected one of build, check, outline, targets'),
        (["--call", "check,format=yaml"], "ERROR: invalid value format=yaml"),
        (["--cpus", "1", "--cpu-quota", "5"], "ERROR: conflicting options: --cpus and --cpu-period or --cpu-quota cannot both be set"),
        (["--resource", "disk=1"],
         'ERROR: invalid resource "disk=1": expected KEY=VALUE with one of memory, memory-swap, cpu-shares, cpu-period, cpu-quota, '
         "cpuset-cpus, cpuset-mems"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_words(words: list[str], error: str) -> None:
    assert refused(*words) == error


@pytest.mark.parametrize(
    ("text", "kind", "attributes", "sink"),
    [
        ("out", "local", {}, ("out", True, False)),
        ("-", "tar", {}, ("-", False, False)),
        ("type=local,dest=a/b,mode=delete", "local", {}, ("a/b", True, True)),
        ('type=tar,"dest=a,b"', "tar", {}, ("a,b", False, False)),
        ("type=oci,dest=x.tar,compression=zstd", "oci", {"compression": "zstd"}, ("x.tar", False, False)),
        ("type=oci,tar=false,dest=x", "oci", {"tar": "false"}, ("x", True, False)),
        ("type=docker,dest=x.tar", "docker", {}, ("x.tar", False, False)),
        ("type=docker,name=a", "image", {"name": "a"}, None),
        ("type=image,name=a,push=true", "image", {"name": "a", "push": "true"}, None),
        ("type=registry,name=a", "image", {"name": "a", "push": "true"}, None),
        ("type=cacheonly", "cacheonly", {}, None),
    ],
)
def test_outputs(text: str, kind: str, attributes: dict[str, str], sink: tuple[str, bool, bool] | None) -> None:
    found = buildflags.output_of(text)
    assert found[:2] == (kind, attributes)
    target = found[2]
    assert (None if target is None else (target.path, target.unpack, target.delete)) == sink


def test_push_and_load_are_outputs_of_images() -> None:
    assert plan_of("--push", "-t", "a").options["outputs"] == [{"type": "image", "attributes": {"push": "true"}}]
    assert "outputs" not in plan_of("--load").options  # the store is where images go anyway
    plan = plan_of("--load", "-o", "out")
    assert [one["type"] for one in plan.options["outputs"]] == ["local", "image"]
    assert list(plan.sinks) == [0]
    plan = plan_of("-o", "type=image,name=x", "--push", "-o", "out")
    assert plan.options["outputs"][0] == {"type": "image", "attributes": {"name": "x", "push": "true"}}
    assert list(plan.sinks) == [1]
    assert isinstance(plan.sinks[1], Sink)


def test_the_environment_gives_values(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, "SOURCE_DATE_EPOCH", "12")
    setenv(monkeypatch, "DOCKER_DEFAULT_PLATFORM", "linux/arm64")
    setenv(monkeypatch, "BUILDKIT_PROGRESS", "plain")
    setenv(monkeypatch, "FROM_ENV", "it")
    plan = plan_of("--build-arg", "FROM_ENV")
    assert plan.options == {"buildArgs": {"FROM_ENV": "it", "SOURCE_DATE_EPOCH": "12"}, "platforms": ["linux/arm64"]}
    assert plan.progress == "plain"
    plan = plan_of("--build-arg", "SOURCE_DATE_EPOCH=7", "--platform", "amd64", "--progress", "rawjson")
    assert plan.options == {"buildArgs": {"SOURCE_DATE_EPOCH": "7"}, "platforms": ["linux/amd64"]}
    assert plan.progress == "rawjson"
    assert plan_of("-q").progress == "quiet"


def test_named_folders_are_sent(tmp_path: Path) -> None:
    plan = plan_of("--build-context", f"src={tmp_path}")
    assert plan.options == {"contexts": {"src": "sent:"}}
    assert plan.named == {"src": str(tmp_path)}


def test_secrets_come_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"in\0file")
    setenv(monkeypatch, "VAR", "in variable")
    setenv(monkeypatch, "token", "by name")
    plan = plan_of("--secret", f"id=a,src={tmp_path}/file", "--secret", "id=b,env=VAR", "--secret", "id=c,env=NOT_THERE", "--secret",
                   "id=token", "--secret", "type=env,id=d,src=VAR")  # fmt: skip
    found = {name: base64.b64decode(value) for name, value in buildsecrets.secrets(plan).items()}
    assert found == {"a": b"in\0file", "b": b"in variable", "token": b"by name", "d": b"in variable"}
    assert "in variable" not in json.dumps(plan.options)


def test_secrets_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for words, error in (
        ("id=a,src=/nope", "ERROR: failed to stat /nope: stat /nope: no such file or directory"),
        ("id=nope", "ERROR: failed to stat nope: stat nope: no such file or directory"),
        (f"id=a,src={tmp_path}", f"ERROR: secret source {tmp_path} is a directory"),
    ):
        with pytest.raises(Failure) as caught:
            buildsecrets.secrets(plan_of("--secret", words))
        assert caught.value.text == error
    (tmp_path / "big").write_bytes(bytes(buildsecrets.MOST_SECRET + 1))
    with pytest.raises(Failure, match=r"too big\. max size 500KB"):
        buildsecrets.secrets(plan_of("--secret", f"id=a,src={tmp_path}/big"))


def test_ssh_agents_are_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match="make sure SSH_AUTH_SOCK is set"):
        buildsecrets.agents(plan_of("--ssh", "default"))
    with pytest.raises(Failure, match="ERROR: stat /nope: no such file or directory"):
        buildsecrets.agents(plan_of("--ssh", "default=/nope"))
    path = str(tmp_path / "agent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        setenv(monkeypatch, "SSH_AUTH_SOCK", path)
        plan = plan_of("--ssh", "default", "--ssh", f"other={path}")
        assert plan.options == {"ssh": ["default", "other"]}
        agents = buildsecrets.agents(plan)
        assert agents.paths == {"default": path, "other": path}
        agents.connect("other").close()
        with pytest.raises(KeyError):
            agents.connect("third")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None or shutil.which("ssh-agent") is None, reason="needs OpenSSH's client")
def test_ssh_keys_get_an_agent_for_the_build(tmp_path: Path) -> None:
    import subprocess

    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    agents = buildsecrets.agents(plan_of("--ssh", f"deploy={key}"))
    try:
        path = agents.paths["deploy"]
        listed = subprocess.run(["ssh-add", "-L"], env={**os.environ, "SSH_AUTH_SOCK": path}, capture_output=True, text=True, check=True)
        assert key.with_suffix(".pub").read_text().split()[1] in listed.stdout
    finally:
        agents.close()
    assert not os.path.exists(os.path.dirname(path))


def configured(tmp_path: Path, config: dict[str, Any], dockerfile: bytes | None, options: dict[str, Any] | None = None) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return buildsecrets.configured(Client("unix:///nope", folder=str(tmp_path)), {} if options is None else options, dockerfile)


def test_logins_of_the_file_are_sent(tmp_path: Path) -> None:
    auths = {"r.example": {"auth": base64.b64encode(b"me:pw").decode()}, "https://index.docker.io/v1/": {}}
    assert configured(tmp_path, {"auths": auths}, b"FROM x") == {
        "r.example": {"username": "me", "password": "pw", "serveraddress": "r.example"}
    }
    assert configured(tmp_path, {"psFormat": "x"}, b"FROM x") == {}


def test_a_credential_helper_is_asked_for_registries_that_are_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-fake"
    helper.write_text(
        f"#!/bin/sh\nread server\necho $server >> {tmp_path}/asked\n"
        'echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"u\\",\\"Secret\\":\\"s\\"}"\n'
    )
    helper.chmod(0o755)
    setenv(monkeypatch, "PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = {"credsStore": "fake", "auths": {"a.example": {}, "b.example": {}, "c.example": {}}}
    found = configured(tmp_path, config, b"FROM a.example/x AS y\nCOPY --from=y / /\n", {"tags": ["b.example/z"]})
    assert set(found) == {"a.example", "b.example"}
    assert (tmp_path / "asked").read_text().split() == ["a.example", "b.example"]
    assert set(configured(tmp_path, config, b"ARG R\nFROM $R/x\n")) == {"a.example", "b.example", "c.example"}


def test_proxies_become_build_arguments(tmp_path: Path) -> None:
    options: dict[str, Any] = {"buildArgs": {"http_proxy": "mine"}}
    config = {"proxies": {"default": {"httpProxy": "http://p", "noProxy": "n"}, "tcp://other": {"httpProxy": "http://q"}}}
    configured(tmp_path, config, b"", options)
    assert options["buildArgs"] == {"http_proxy": "mine", "HTTP_PROXY": "http://p", "NO_PROXY": "n", "no_proxy": "n"}


@pytest.mark.parametrize(
    ("text", "remote"),
    [("https://x/y", True), ("git@github.com:a/b.git", True), ("github.com/a/b", True), ("ssh://h/x", True), ("git://h/x", True),
     ("folder", False), ("./a@b:c", False), ("a:b", False), ("/x", False), ("@:", False)],
)  # fmt: skip
def test_remote_contexts(text: str, remote: bool) -> None:
    assert buildflags.is_remote(text) is remote


def test_every_flag_is_explained() -> None:
    from cli.builder import DU, PRUNE

    for command in (BUILD, DU, PRUNE):
        assert {flag for _, flags in manual.FLAGS[command.name] for flag in flags} == set(command.flags)
        assert set(command.shorts.values()) <= set(command.flags)


@given(st.sampled_from(["output", "secret", "cache-from", "attest", "annotation", "call", "platform", "build-context", "add-host",
    "resource", "tag", "ssh", "label"]), st.text(alphabet='typedst=local,"src/:-[]i. é', max_size=24))  # fmt: skip
def test_any_value_is_taken_or_refused(flag: str, text: str) -> None:
    with contextlib.suppress(Failure):
        plan_of(f"--{flag}={text}")
