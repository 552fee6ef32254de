"""The same calls to Knarr and to a real dockerd; their answers must have the same members with the same kinds of values.

Needs another engine: KNARR_PEER_DOCKER_HOST=unix:///path of its socket. Skipped without one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lib import busybox
from tests.lib.daemon import Daemon, Engine, Peer

PEER = os.environ.get("KNARR_PEER_DOCKER_HOST")
pytestmark = pytest.mark.skipif(PEER is None, reason="KNARR_PEER_DOCKER_HOST names no other engine")

# What may be missing or more in Knarr's answer, with the reason.
ALLOWED: dict[str, str] = {
    "GET /version.Components[].Details": "details of components that Knarr is not made of",
    "GET /info.Runtimes": "other runtimes",
    "GET /info.RegistryConfig.IndexConfigs": "no registries yet",
    "GET /info.KernelMemoryTCP": "gone from kernels",
    "GET /info.Plugins": "other drivers",
    "GET /info.ProductLicense": "newer than 26",
    "GET /info.Containerd": "there is none",
    ".GraphDriver.Data": "folders of the driver",
    ".NetworkSettings.Networks.*.GwPriority": "newer than 26",
    ".HostConfig.LogConfig.Config": "rotation is on by default",
}
VERSION = "/v1.45"  # both speak it


def kind(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "empty"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return type(value).__name__


def allowed(path: str) -> bool:
    return any(path.startswith(known) if not known.startswith(".") else known.replace("*", "none") in path for known in ALLOWED)


def differences(path: str, ours: Any, theirs: Any) -> Iterator[str]:
    """Where two JSON values differ in shape; an empty list, map or null fits every list, map or null."""
    if allowed(path):
        return
    mine, other = kind(ours), kind(theirs)
    if "empty" in (mine, other):
        if {mine, other} - {"empty", "list", "dict"}:
            yield f"{path}: {ours!r} instead of {theirs!r}"
        return
    if mine != other:
        yield f"{path}: {ours!r} instead of {theirs!r}"
    elif isinstance(theirs, dict):
        names = path.endswith(("Labels", "Networks", "Tmpfs"))
        for name in sorted(ours.keys() | theirs.keys()):
            where = f"{path}.{name}"
            if name not in theirs:
                if not names and not allowed(where):
                    yield f"{where}: {ours[name]!r} is not in the other engine's answer"
            elif name not in ours:
                if not allowed(where):
                    yield f"{where}: missing, the other engine has {theirs[name]!r}"
            else:
                yield from differences(where, ours[name], theirs[name])
    elif isinstance(theirs, list):
        for left, right in zip(ours, theirs, strict=False):
            yield from differences(f"{path}[]", left, right)


@pytest.fixture(scope="module")
def both(daemon: Daemon) -> tuple[Daemon, Peer]:
    assert PEER is not None
    peer = Peer(PEER)
    busybox.load(peer)
    return daemon, peer


Call = Callable[[Engine], Any]
BODY = {
    "Image": busybox.NAME,
    "Cmd": ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"],
    "Env": ["A=b"],
    "Labels": {"x": "y"},
    "HostConfig": {"NetworkMode": "none", "Binds": ["/tmp:/mnt:ro"], "Tmpfs": {"/t": "size=1m"}, "Memory": 64 << 20},
}


def same(both: tuple[Engine, Engine], name: str, call: Call) -> tuple[Any, Any]:
    """Make a call to both, compare status and shape; their answers."""
    answers = [call(engine) for engine in both]
    assert answers[0].status == answers[1].status, (name, answers[0].body, answers[1].body)
    found = list(differences(name, answers[0].json(), answers[1].json()))
    assert not found, "\n".join(found)
    return answers[0].json(), answers[1].json()


@pytest.mark.parametrize("target", ["/version", "/info", "/images/json", f"/images/{busybox.NAME}/json", f"/images/{busybox.NAME}/history"])
def test_reads(both: tuple[Engine, Engine], target: str) -> None:
    same(both, f"GET {target}", lambda engine: engine.api("GET", VERSION + target))


def test_life(both: tuple[Engine, Engine]) -> None:
    name = "knarr-shapes"

    def get(target: str) -> Call:
        return lambda engine: engine.api("GET", VERSION + target)

    def post(target: str, body: Any = None) -> Call:
        return lambda engine: engine.api("POST", VERSION + target, body)

    try:
        same(both, "create", post(f"/containers/create?name={name}", BODY))
        same(both, "inspect created", get(f"/containers/{name}/json"))
        same(both, "start", post(f"/containers/{name}/start"))
        same(both, "start again", post(f"/containers/{name}/start"))
        same(both, "inspect running", get(f"/containers/{name}/json?size=1"))
        ours, theirs = same(both, "list", get('/containers/json?size=1&filters={"name":["knarr-shapes"]}'))
        assert ours[0]["Command"] == theirs[0]["Command"]
        assert ours[0]["Status"].startswith("Up ")
        same(both, "top", get(f"/containers/{name}/top"))
        ours, theirs = same(both, "exec", post(f"/containers/{name}/exec", {"Cmd": ["sleep", "1000"], "Env": ["X=y"]}))
        for engine, made in zip(both, (ours, theirs), strict=True):
            assert engine.api("POST", f"{VERSION}/exec/{made['Id']}/start", {"Detach": True}).status == 200
        shown = [engine.api("GET", f"{VERSION}/exec/{made['Id']}/json").json() for engine, made in zip(both, (ours, theirs), strict=True)]
        assert not list(differences("exec inspect", *shown))
        same(both, "inspect with exec", get(f"/containers/{name}/json"))
        same(both, "kill", post(f"/containers/{name}/kill"))
        same(both, "wait", post(f"/containers/{name}/wait"))
        same(both, "stop when ended", post(f"/containers/{name}/stop"))
        same(both, "inspect ended", get(f"/containers/{name}/json"))
        same(both, "list ended", get('/containers/json?all=1&filters={"name":["knarr-shapes"]}'))
    finally:
        for engine in both:
            engine.api("DELETE", f"/containers/{name}?force=1")


ERRORS: list[tuple[str, str, Any]] = [
    ("GET", "/containers/nope/json", None),
    ("POST", "/containers/nope/start", None),
    ("POST", "/containers/nope/wait", None),
    ("GET", "/containers/nope/logs?stdout=1", None),
    ("POST", "/containers/create", {}),
    ("POST", "/containers/create", {"Image": "nosuch"}),
    ("POST", "/containers/create?name=x", {"Image": busybox.NAME, "Cmd": ["true"]}),
    ("POST", "/containers/create?name=b@d", {"Image": busybox.NAME, "Cmd": ["true"]}),
    ("GET", "/images/nope/json", None),
    ("GET", "/images/nope/history", None),
    ("DELETE", "/images/nope", None),
    ("POST", "/images/nope/tag?repo=x", None),
    ("POST", "/exec/nope/start", {}),
    ("GET", "/exec/nope/json", None),
    ("GET", "/containers/json?filters=zz", None),
    ("GET", '/containers/json?filters={"wild":["a"]}', None),
    ("GET", "/swarm", None),
    ("GET", "/nodes", None),
    ("POST", "/swarm/leave", None),
    ("GET", "/nowhere", None),
]


@pytest.mark.parametrize(("method", "target", "body"), ERRORS, ids=[f"{method} {target}" for method, target, _ in ERRORS])
def test_errors_have_the_same_words(both: tuple[Engine, Engine], method: str, target: str, body: Any) -> None:
    ours, theirs = [engine.api(method, target, body) for engine in both]
    assert (ours.status, ours.message) == (theirs.status, theirs.message)


@pytest.mark.parametrize("command", [["nosuchcmd"], ["/nosuch"], ["/etc"]])
def test_programs_that_cannot_be_started(both: tuple[Engine, Engine], command: list[str]) -> None:
    """Statuses, exit codes and the words by which the CLI chooses 126 or 127."""
    found = []
    for engine in both:
        body = {"Image": busybox.NAME, "Cmd": command, "HostConfig": {"NetworkMode": "none"}}
        made = engine.api("POST", "/containers/create", body).json()
        try:
            started = engine.api("POST", f"/containers/{made['Id']}/start")
            state = engine.api("GET", f"/containers/{made['Id']}/json").json()["State"]
            words = ("executable file not found in $PATH", "no such file or directory", "permission denied", "is a directory")
            said = [word for word in words if word in started.message and word != "is a directory"]
            found.append((started.status, state["Status"], state["ExitCode"], said))
        finally:
            engine.api("DELETE", f"/containers/{made['Id']}?force=1")
    assert found[0] == found[1]
