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
    "list[].SizeRw": "left out when it is zero",
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
    ("POST", "/containers/nope/kill", None),
    ("POST", "/containers/nope/stop", None),
    ("POST", "/containers/nope/resize?h=1&w=1", None),
    ("POST", "/containers/nope/rename?name=xx", None),
    ("POST", "/containers/nope/exec", {"Cmd": ["a"]}),
    ("GET", "/containers/nope/top", None),
    ("DELETE", "/containers/nope", None),
    ("GET", '/containers/json?all=1&filters={"before":["nope"]}', None),
    ("GET", '/images/json?filters={"wild":["a"]}', None),
    ("GET", "/events?since=2000000000&until=1000000000", None),
    ("POST", f"/images/{busybox.NAME}/tag?repo=UPPER", None),
    ("POST", "/images/create?fromImage=BAD&tag=latest", None),
    ("GET", "/networks/nope", None),
    ("GET", "/volumes/nope", None),
    ("GET", "/plugins/nope/json", None),
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


def made(engine: Engine, body: dict[str, Any], name: str = "") -> str:
    answer = engine.api("POST", f"{VERSION}/containers/create" + (f"?name={name}" if name else ""), {"Image": busybox.NAME, **body})
    assert answer.status == 201, answer.body
    return str(answer.json()["Id"])


NONE = {"NetworkMode": "none"}
ON_A_RUNNING_ONE: list[tuple[str, str, Any]] = [
    ("DELETE", "/containers/{}", None),
    ("POST", "/containers/{}/kill?signal=FOO", None),
    ("POST", "/containers/{}/wait?condition=foo", None),
    ("POST", "/containers/{}/rename", None),
    ("POST", "/containers/{}/rename?name=knarr-same", None),
    ("POST", "/containers/{}/resize?h=a&w=20", None),
    ("POST", "/containers/{}/resize", None),
    ("POST", "/containers/{}/exec", {}),
    ("GET", "/containers/{}/logs", None),
]
ON_AN_ENDED_ONE: list[tuple[str, str, Any]] = [
    ("POST", "/containers/{}/kill", None),
    ("POST", "/containers/{}/resize?h=1&w=1", None),
    ("POST", "/containers/{}/exec", {"Cmd": ["true"]}),
    ("GET", "/containers/{}/top", None),
]


def test_refusals_have_the_same_words(both: tuple[Engine, Engine]) -> None:
    found: list[list[tuple[str, int, str]]] = []
    for engine in both:
        said = []
        id = made(engine, {"Cmd": ["sleep", "1000"], "HostConfig": NONE}, "knarr-same")
        try:
            engine.api("POST", f"/containers/{id}/start")
            for ended, calls in ((False, ON_A_RUNNING_ONE), (True, ON_AN_ENDED_ONE)):
                if ended:
                    assert engine.api("POST", f"/containers/{id}/kill").status == 204
                    engine.api("POST", f"/containers/{id}/wait")
                for method, target, body in calls:
                    answer = engine.api(method, VERSION + target.format("knarr-same"), body)
                    said.append((f"{method} {target}", answer.status, answer.message.replace(id, "ID")))
        finally:
            engine.api("DELETE", f"/containers/{id}?force=1")
        found.append(said)
    assert found[0] == found[1]


def test_logs_are_the_same_bytes(both: tuple[Engine, Engine]) -> None:
    found = []
    for engine in both:
        script = "echo one; echo two >&2; sleep 0.2; printf three; printf 'four\\n\\n' >&2"
        id = made(engine, {"Cmd": ["sh", "-c", script], "HostConfig": NONE})
        try:
            engine.api("POST", f"/containers/{id}/start")
            engine.api("POST", f"/containers/{id}/wait")
            replies = []
            for query in ("stdout=1", "stderr=1", "stdout=1&tail=1", "stderr=1&tail=0", "stdout=1&stderr=1&until=1", "stdout=1&follow=1"):
                answer = engine.api("GET", f"{VERSION}/containers/{id}/logs?{query}")
                replies.append((query, answer.status, answer.headers["content-type"], answer.body))
            found.append(replies)
        finally:
            engine.api("DELETE", f"/containers/{id}?force=1")
    assert found[0] == found[1]


def test_events_tell_the_same_story(both: tuple[Engine, Engine]) -> None:
    import json
    import time

    found = []
    for engine in both:
        since = time.time()
        id = made(engine, {"Cmd": ["sleep", "1000"], "Labels": {"l": "v"}, "HostConfig": NONE})
        engine.api("POST", f"/containers/{id}/start")
        engine.api("POST", f"/containers/{id}/rename?name=knarr-events")
        engine.api("POST", f"/containers/{id}/kill?signal=TERM")
        engine.api("POST", f"/containers/{id}/kill")
        engine.api("POST", f"/containers/{id}/wait")
        engine.api("DELETE", f"/containers/{id}")
        time.sleep(0.1)
        filters = json.dumps({"container": [id], "type": ["container"]})
        answer = engine.api("GET", f"{VERSION}/events?since={since:.9f}&until={time.time():.9f}&filters={filters}")
        events = [json.loads(line) for line in answer.body.splitlines()]
        found.append([(sorted(e), e["Action"], e["status"], e["from"], e["scope"], sorted(e["Actor"]["Attributes"])) for e in events])
    assert found[0] == found[1]


def test_docker_client_sees_exec_failures_alike(both: tuple[Engine, Engine]) -> None:
    found = []
    for engine in both:
        id = made(engine, {"Cmd": ["sleep", "1000"], "HostConfig": NONE})
        try:
            engine.api("POST", f"/containers/{id}/start")
            codes = []
            for command in (["true"], ["sh", "-c", "exit 7"], ["nosuchcmd"], ["/etc"]):
                result = engine.docker("exec", id, *command, check=False)
                unknown = b"executable file not found" in result.stdout + result.stderr
                # dockerd 26 says 126 for a program that is not there, later ones 127, as for `run`
                codes.append((command, 127 if unknown and result.returncode == 126 else result.returncode, unknown))
            found.append(codes)
        finally:
            engine.api("DELETE", f"/containers/{id}?force=1")
    assert found[0] == found[1]
