"""Builds in the API, with a pretended builder: parameters, errors before and in the stream, clients that go, the cache's records."""

from __future__ import annotations

import base64
import functools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.api import server
from engine.errors import InvalidParameter
from engine.http.exchange import Hijacked
from engine.http.listeners import open_listeners
from engine.service.build import ClassicBuild, Send
from engine.spec.build import Endpoint
from engine.spec.buildcache import CACHE_MOUNT, INTERNAL, CacheRecord, Prune
from tests.lib.http import Response, request

S = 1_000_000_000


class Builder:
    """Does as `target` says; remembers what it was asked."""

    def __init__(self) -> None:
        self.build = ClassicBuild(options=None)  # type: ignore[arg-type]
        self.context = b""
        self.wanted = Prune()
        self.cancelled: list[str] = []
        self.began, self.ended = trio.Event(), trio.Event()

    async def classic(self, build: ClassicBuild, context: AsyncIterator[bytes] | None, send: Send) -> None:
        self.build = build
        target = build.options.target
        if target == "early":
            raise InvalidParameter("dockerfile parse error on line 1")
        if context is not None:
            async for piece in context:
                self.context += piece
        self.began.set()
        try:
            if target == "nothing":
                return
            if target == "silent":
                await trio.sleep_forever()
            await send(b'{"stream":"Step 1/1"}\r\n')
            if target == "forever":
                await trio.sleep_forever()
            if target == "late":
                raise InvalidParameter("it broke")
        finally:
            self.ended.set()

    async def session(self, connection: Hijacked) -> None:
        while data := await connection.receive():
            await connection.send(data.upper())

    async def prune(self, wanted: Prune) -> tuple[Sequence[str], int]:
        self.wanted = wanted
        return ["a", "b"], 5

    async def usage(self) -> Sequence[CacheRecord]:
        return [
            CacheRecord(id="x", type=CACHE_MOUNT, description="d", parents=("p",), in_use=True, size=3, created_at=S, last_used_at=2 * S),
            CacheRecord(id="p", shared=True, usage_count=2, created_at=S),
        ]

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)


class Fixture:
    def __init__(self, path: Path) -> None:
        self.path = str(path / "k.sock")
        self.builder = Builder()
        self.engine: Any = SimpleNamespace(builder=self.builder, make_builder=lambda engine: self.builder, containers=None)
        self.engine.containers = SimpleNamespace(mount_points=lambda id: ())

    async def ask(self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None) -> Response:
        return await trio.to_thread.run_sync(functools.partial(request, self.path, method, target, body, headers))

    async def build(self, **parameters: Any) -> Response:
        headers = parameters.pop("headers", {})
        words = [
            f"{key}={quote(one if isinstance(one, str) else json.dumps(one))}"
            for key, value in parameters.items()
            for one in (value if isinstance(value, tuple) else (value,))
        ]
        return await trio.to_thread.run_sync(
            functools.partial(
                raw_request, self.path, f"/build?{'&'.join(words)}", b"tar" * 100, {"Content-Type": "application/x-tar", **headers}
            )
        )


def raw_request(path: str, target: str, body: bytes, headers: dict[str, str]) -> Response:
    from tests.lib.http import UnixConnection

    connection = UnixConnection(path)
    try:
        connection.request("POST", target, body=body, headers=headers)
        answer = connection.getresponse()
        return Response(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def run(path: Path, test: Callable[[Fixture], Awaitable[None]]) -> None:
    async def main() -> None:
        fixture = Fixture(path)
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await nursery.start(functools.partial(server.serve, fixture.engine, open_listeners([f"unix://{fixture.path}"])))
                await test(fixture)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_every_parameter_arrives(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        config = base64.b64encode(json.dumps({"https://index.docker.io/v1/": {"username": "u", "password": "p"}}).encode()).decode()
        answer = await api.build(
            dockerfile="sub/Dockerfile.x", t=("app", "host:5000/app:1", "app:latest", ""), extrahosts=("a:1.2.3.4", "b:host-gateway"),
            q="1", nocache="true", cachefrom=["one", "two:1"], pull="1", rm="0", forcerm="1", memory="10485760", memswap="-1",
            cpushares="5", cpusetcpus="0-1", cpusetmems="0", cpuperiod="1000", cpuquota="2000", buildargs={"A": "1", "B": None},
            shmsize="65536", squash="1", labels={"l": "v", "n": None}, networkmode="host", platform="linux/arm64", target="nothing",
            ulimits=[{"Name": "nofile", "Soft": 5, "Hard": 10}], cgroupparent="/x", buildid="id1", session="s", version="1",
            headers={"X-Registry-Config": config},
        )  # fmt: skip
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"
        build, options = api.builder.build, api.builder.build.options
        assert options.dockerfile == "sub/Dockerfile.x"
        assert options.tags == ("app:latest", "host:5000/app:1")
        assert options.hosts == ("a:1.2.3.4", "b:host-gateway")
        assert build.quiet and options.no_cache and options.pull and options.squash and build.remove and build.force_remove
        assert options.cache_from == tuple(Endpoint(type="registry", attributes={"ref": ref}) for ref in ("one", "two:1"))
        assert (options.memory, options.memory_swap, options.cpu_shares) == (10485760, -1, 5)
        assert (options.cpuset_cpus, options.cpuset_mems, options.cpu_period, options.cpu_quota) == ("0-1", "0", 1000, 2000)
        assert options.build_args == {"A": "1", "B": None} and options.labels == {"l": "v", "n": ""}
        assert (options.shm_size, options.network, options.platforms, options.target) == (65536, "host", ("linux/arm64",), "nothing")
        assert (options.ulimits, options.cgroup_parent, build.id) == (("nofile=5:10",), "/x", "id1")
        assert build.auths["https://index.docker.io/v1/"].username == "u"
        assert api.builder.context == b"tar" * 100

    run(tmp_path, check)


def test_what_is_not_said_is_dockers_default(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        await api.build()
        build, options = api.builder.build, api.builder.build.options
        assert build.remove and not build.force_remove and not build.quiet
        assert (options.dockerfile, options.network, options.tags, options.platforms) == ("Dockerfile", "default", (), ())
        await api.build(rm="0")
        assert not api.builder.build.remove

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("said", "outputs"),
    [
        ("", ()),
        ("null", ()),
        ("[]", ()),
        ([{"Type": "moby"}], (Endpoint(type="image"),)),
        ([{"type": "image", "attrs": {"name": "a,b", "push": None}}], (Endpoint(type="image", attributes={"name": "a,b", "push": ""}),)),
        ([{"Type": "registry", "Attrs": None}, {}], (Endpoint(type="registry"), Endpoint(type=""))),
    ],
)
def test_outputs_arrive(tmp_path: Path, said: Any, outputs: tuple[Endpoint, ...]) -> None:
    async def check(api: Fixture) -> None:
        assert (await api.build(target="nothing", outputs=said)).status == 200
        assert api.builder.build.options.outputs == outputs

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("parameters", "status", "message"),
    [
        ({"buildargs": "x"}, 400, "error reading build args: "),
        ({"buildargs": "[]"}, 400, "error reading build args: "),
        ({"buildargs": {"A": 1}}, 400, "error reading build args: "),
        ({"labels": "x"}, 400, "error reading labels: "),
        ({"cachefrom": "{}"}, 400, "error reading cache-from: "),
        ({"ulimits": "x"}, 400, "error reading ulimit settings: "),
        ({"outputs": "x"}, 400, "invalid outputs specified: "),
        ({"outputs": {"Type": "local"}}, 400, "invalid outputs specified: "),
        ({"outputs": [{"Type": 5}]}, 400, "invalid outputs specified: "),
        *(({"outputs": [{"Type": kind}]}, 501, f"not implemented: an output of type {kind}") for kind in ("local", "tar", "oci", "docker")),
        ({"t": "UPPER"}, 400, "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ({"t": "a@sha256:" + "0" * 64}, 400, "build tag cannot contain a digest"),
        ({"version": "3"}, 400, 'invalid version "3"'),
        ({"version": "2"}, 501, "not implemented: BuildKit"),
        ({"remote": "client-session"}, 501, "not implemented: BuildKit"),
        *(({"securityopt": text}, 400, "security options are not supported on linux") for text in ("", "null", "[]", '["seccomp=x"]')),
        ({"isolation": "hyperv"}, 400, 'unsupported isolation: "hyperv"'),
        ({"platform": "x/y/z/w"}, 400, '"x/y/z/w": cannot parse platform specifier'),
        ({"platform": "foo"}, 400, '"foo": unknown operating system or architecture: invalid argument'),
        ({"shmsize": "x"}, 400, 'strconv.ParseInt: parsing "x": invalid syntax'),
        ({"memory": "9" * 30}, 400, "value out of range"),
        ({"extrahosts": "x"}, 400, "bad format for add-host: 'x'"),
        ({"target": "early"}, 400, "dockerfile parse error on line 1"),
    ],
)
def test_what_cannot_be_is_a_status(tmp_path: Path, parameters: dict[str, Any], status: int, message: str) -> None:
    async def check(api: Fixture) -> None:
        answer = await api.build(**parameters)
        assert answer.status == status and message in answer.message, answer

    run(tmp_path, check)


def test_an_error_after_the_first_line_is_the_last_line(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        answer = await api.build(target="late")
        assert answer.status == 200
        first, last = answer.body.splitlines()
        assert json.loads(first) == {"stream": "Step 1/1"}
        assert json.loads(last) == {"errorDetail": {"message": "it broke"}, "error": "it broke"}

    run(tmp_path, check)


def test_a_remote_context_has_no_archive(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        assert (await api.ask("POST", "/build?remote=https://h/x.git%23main")).status == 200
        assert api.builder.build.options.remote == "https://h/x.git#main" and api.builder.context == b""

    run(tmp_path, check)


@pytest.mark.parametrize("target", ["silent", "forever"])
@pytest.mark.parametrize("body", [b"Content-Length: 3\r\n\r\ntar", b"Transfer-Encoding: chunked\r\n\r\n3\r\ntar\r\n0\r\n\r\n"])
def test_a_client_that_goes_ends_its_build(tmp_path: Path, target: str, body: bytes) -> None:
    async def check(api: Fixture) -> None:
        stream = await trio.open_unix_socket(api.path)
        await stream.send_all(f"POST /build?target={target} HTTP/1.1\r\nHost: h\r\n".encode() + body)
        await api.builder.began.wait()
        await trio.sleep(0.02)
        assert not api.builder.ended.is_set()
        await stream.aclose()
        await api.builder.ended.wait()
        assert api.builder.context == b"tar"

    run(tmp_path, check)


def test_a_connection_that_is_kept_serves_the_next_request(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        stream = await trio.open_unix_socket(api.path)
        await stream.send_all(b"POST /build HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\ntar")
        answer = b""
        while b"0\r\n\r\n" not in answer:
            answer += await stream.receive_some()
        await stream.send_all(b"POST /build/cancel?id=x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        assert api.builder.cancelled == ["x"]

    run(tmp_path, check)


def test_the_clients_protocol_takes_the_connection(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        def talk() -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(api.path)
                sock.sendall(b"POST /build/knarr HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: knarr-build\r\n\r\nhello")
                sock.shutdown(socket.SHUT_WR)
                found = b""
                while data := sock.recv(1000):
                    found += data
                return found

        answer = await trio.to_thread.run_sync(talk)
        assert answer.startswith(b"HTTP/1.1 101 ") and b"\r\nUpgrade: knarr-build\r\n" in answer and answer.endswith(b"\r\n\r\nHELLO")
        assert (await api.ask("POST", "/build/knarr")).status == 400

    run(tmp_path, check)


def test_cancel_needs_an_identifier(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        answer = await api.ask("POST", "/build/cancel")
        assert (answer.status, answer.message) == (400, "build ID not provided")

    run(tmp_path, check)


def test_prune(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        target = (
            '/build/prune?all=1&keep-storage=5&max-used-space=7&min-free-space=8&filters={"until":["24h"],"type":["regular"],"private":[]}'
        )
        answer = await api.ask("POST", target)
        assert answer.json() == {"CachesDeleted": ["a", "b"], "SpaceReclaimed": 5}
        wanted = api.builder.wanted
        assert (wanted.all, wanted.reserved, wanted.most_used, wanted.least_free) == (True, 5, 7, 8)
        assert wanted.fields == (("type", "regular"),) and abs(wanted.unused_for - 86400 * S) < 60 * S

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("filters=x", "invalid filter"),
        ('filters={"until":["x"]}', "failed to prune build cache: \"until\" filter expects a duration (e.g., '24h') or a timestamp: "
         'failed to parse value as time or duration: "x"'),
        ('filters={"id":["a","b"]}', "failed to prune build cache: filters expect only one value"),
        ('filters={"until":["1h","2h"]}', "failed to prune build cache: filters expect only one value"),
        ('filters={"nosuch":["a"]}', "failed to prune build cache: invalid filter 'nosuch'"),
        ("keep-storage=x", 'keep-storage is in bytes and expects an integer, got x: strconv.Atoi: parsing "x": invalid syntax'),
    ],
)  # fmt: skip
def test_prunes_that_dockerd_refuses(tmp_path: Path, query: str, message: str) -> None:
    async def check(api: Fixture) -> None:
        answer = await api.ask("POST", f"/build/prune?{query}")
        assert (answer.status, answer.message) == (400, message)

    run(tmp_path, check)


def test_a_daemon_without_a_builder(tmp_path: Path) -> None:
    """`system prune` and `system df` go through all kinds."""

    async def check(api: Fixture) -> None:
        api.engine.make_builder = None
        assert (await api.ask("POST", "/build/prune")).json() == {"CachesDeleted": None, "SpaceReclaimed": 0}
        assert (await api.ask("GET", "/system/df?type=build-cache")).json()["BuildCache"] == []

    run(tmp_path, check)


def test_records_of_the_cache(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        answer = (await api.ask("GET", "/system/df?type=build-cache")).json()
        assert answer["Images"] is None
        assert answer["BuildCache"] == [
            {
                "ID": "x", " Parents": ["p"], "Type": "exec.cachemount", "Description": "d", "InUse": True, "Shared": False, "Size": 3,
                "CreatedAt": "1970-01-01T00:00:01Z", "LastUsedAt": "1970-01-01T00:00:02Z", "UsageCount": 0,
            },
            {
                "ID": "p", "Type": "regular", "Description": "", "InUse": False, "Shared": True, "Size": 0,
                "CreatedAt": "1970-01-01T00:00:01Z", "LastUsedAt": None, "UsageCount": 2,
            },
        ]  # fmt: skip

    run(tmp_path, check)


# what a prune takes


def record(id: str, *parents: str, used: int = 0, **more: Any) -> CacheRecord:
    return CacheRecord(id=id, parents=parents, created_at=1, last_used_at=used, **{"size": 10, **more})


def chosen(wanted: Prune, *records: CacheRecord, free: int = 0) -> list[str]:
    return [one.id for one in wanted.choose(records, free, 1000)]


def test_a_prune_takes_the_oldest_first_and_children_before_parents() -> None:
    records = [record("root", used=1), record("mid", "root", used=9), record("leaf", "mid", used=5), record("other", used=3)]
    assert chosen(Prune(), *records) == ["other", "leaf", "mid", "root"]


def test_who_is_kept_keeps_what_it_lies_on() -> None:
    assert chosen(Prune(all=True), record("root"), record("leaf", "root", in_use=True)) == []


def test_what_images_share_and_builds_need_goes_with_all_alone() -> None:
    records = [record("shared", shared=True), record("internal", type=INTERNAL), record("plain")]
    assert chosen(Prune(), *records) == ["plain"]
    assert set(chosen(Prune(all=True), *records)) == {"shared", "internal", "plain"}


def test_limits_of_a_prune() -> None:
    records = [record(str(age), used=age) for age in range(1, 6)]
    assert chosen(Prune(reserved=25), *records) == ["1", "2", "3"]
    assert chosen(Prune(most_used=30), *records) == ["1", "2"]
    assert chosen(Prune(least_free=25), *records, free=10) == ["1", "2"]
    assert chosen(Prune(least_free=1000, reserved=40), *records) == ["1"]
    assert chosen(Prune(unused_for=998), *records) == ["1", "2"]
    assert chosen(Prune(fields=(("id", "3"),)), *records) == ["3"]
    assert chosen(Prune(fields=(("label", "x"),)), *records) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.lists(st.integers(0, 9), max_size=2)), max_size=10), st.integers(0, 100))
def test_no_prune_leaves_a_child_without_its_parent(shape: list[tuple[int, bool, list[int]]], reserved: int) -> None:
    records = [
        record(str(index), *{str(parent) for parent in parents if parent < index}, used=used, in_use=busy)
        for index, (used, busy, parents) in enumerate(shape)
    ]
    gone = set(chosen(Prune(all=True, reserved=reserved), *records))
    kept = [one for one in records if one.id not in gone]
    assert not any(parent in gone for one in kept for parent in one.parents)
    assert not any(one.in_use for one in records if one.id in gone)
    if not any(one.in_use for one in records):
        assert sum(one.size for one in kept) <= reserved
