"""The API over a real socket with a pretended engine: routing, headers, versions, errors, streams."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from engine.api import routes, server
from engine.errors import Conflict, NotFound, NotModified
from engine.http.listeners import open_listeners
from engine.spec.container import Trace
from tests.lib.http import Response, raw, request


class Waiter:
    def __init__(self, gate: trio.Event) -> None:
        self.gate = gate

    @property
    def done(self) -> bool:
        return self.gate.is_set()

    async def result(self) -> tuple[int, str]:
        await self.gate.wait()
        return 3, ""


class Containers:
    """Answers by name: what the reference says is what happens."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.seen: list[Any] = []

    async def start(self, ref: str, detach_keys: str = "") -> None:
        self.seen.append((ref, detach_keys))
        if ref == "gone":
            raise NotFound(f"No such container: {ref}")
        if ref == "running":
            raise NotModified("already running")
        if ref == "broken":
            raise ZeroDivisionError("a defect")

    async def create(self, name: str | None, request: Any, platform: str) -> tuple[str, list[str]]:
        self.seen.append((name, request, platform))
        if name == "taken":
            raise Conflict("Conflict.", hint="choose another")
        return "abc", ["careful"]

    def wait(self, ref: str, condition: str) -> Waiter:
        self.seen.append((ref, condition))
        return Waiter(self.gate)

    def get(self, ref: str) -> Any:
        return SimpleNamespace(id=ref, config=SimpleNamespace(tty=ref == "tty"))

    async def logs(self, ref: str, options: Any) -> AsyncIterator[bytes]:
        self.seen.append(options)
        yield b"one\n"
        await self.gate.wait()
        yield b"two\n"

    def attach(self, ref: str, options: Any) -> Any:
        self.seen.append(options)

        async def run(connection: Any) -> None:
            await connection.send(b"<" + await connection.receive() + b">")

        return SimpleNamespace(run=run)

    def trace(self, ref: str) -> list[Trace]:
        return [Trace("mount", 5)]

    async def resize(self, ref: str, height: int, width: int) -> None:
        self.seen.append((height, width))


class Fixture:
    def __init__(self, path: Path) -> None:
        self.path = str(path / "api.sock")
        self.containers = Containers()
        self.engine: Any = SimpleNamespace(containers=self.containers)

    async def ask(self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None) -> Response:
        return await trio.to_thread.run_sync(lambda: request(self.path, method, target, body, headers))

    async def raw(self, data: bytes) -> bytes:
        return await trio.to_thread.run_sync(lambda: raw(self.path, data))


def run(path: Path, test: Callable[[Fixture], Awaitable[None]]) -> None:
    async def main() -> None:
        fixture = Fixture(path)
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await nursery.start(functools.partial(server.serve, fixture.engine, open_listeners([f"unix://{fixture.path}"])))
                await test(fixture)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_ping(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        for target in ("/_ping", "/v1.24/_ping", "/v1.51/_ping"):
            reply = await api.ask("GET", target)
            assert (reply.status, reply.body) == (200, b"OK")
            assert reply.headers["api-version"] == "1.51"
            assert reply.headers["ostype"] == "linux"
            assert reply.headers["docker-experimental"] == "false"
            assert reply.headers["swarm"] == "inactive"
            assert reply.headers["cache-control"] == "no-cache, no-store, must-revalidate"
            assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        assert (await api.ask("HEAD", "/_ping")).status == 200

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("method", "target", "status", "message"),
    [
        ("GET", "/v1.99/_ping", 400, "client version 1.99 is too new. Maximum supported API version is 1.51"),
        ("GET", "/v1.10/info", 400, "client version 1.10 is too old. Minimum supported API version is 1.24"),
        ("GET", "/v1.45x/info", 404, "page not found"),
        ("GET", "/nope", 404, "page not found"),
        ("PUT", "/_ping", 404, "page not found"),
        ("GET", "/", 404, "page not found"),
        ("GET", "/containers/a/b/c/d", 404, "page not found"),
        ("GET", "/swarm", 503, "This node is not a swarm manager."),
        ("POST", "/swarm/leave", 503, "This node is not part of a swarm"),
        ("POST", "/services/x/update", 503, "This node is not a swarm manager."),
        ("GET", "/v1.40/plugins", 501, "not implemented: GET /plugins"),
        ("GET", "/containers/x/stats", 501, "not implemented: GET /containers/x/stats"),
        ("GET", "/containers/x/attach/ws", 501, "not implemented: GET /containers/x/attach/ws"),
        ("GET", "/containers/a/export", 501, "not implemented: GET /containers/a/export"),
        ("POST", "/containers/gone/start", 404, "No such container: gone"),
        ("POST", "/containers/a%00b/start", 400, "NUL"),
        ("POST", "/containers/%ff/start", 400, "UTF-8"),
        ("POST", "/containers/x/resize?h=a&w=1", 400, 'strconv.Atoi: parsing "a": invalid syntax'),
        ("POST", "/containers/x/resize?h=70000&w=1", 400, "invalid terminal size"),
        ("GET", "/containers/x/logs?stdout=1&since=yesterday", 400, "strconv.ParseInt"),
    ],
)
def test_refusals(tmp_path: Path, method: str, target: str, status: int, message: str) -> None:
    async def check(api: Fixture) -> None:
        data = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        head, _, body = (await api.raw(data)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert message in json.loads(body)["message"]

    run(tmp_path, check)


def test_start(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        reply = await api.ask("POST", "/v1.41/containers/c/start?detachKeys=ctrl-a")
        assert (reply.status, reply.body) == (204, b"")
        assert "content-length" not in reply.headers
        assert api.containers.seen == [("c", "ctrl-a")]
        reply = await api.ask("POST", "/containers/running/start")
        assert (reply.status, reply.body) == (304, b"")

    run(tmp_path, check)


def test_a_defect_is_told_logged_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def check(api: Fixture) -> None:
        two = b"POST /containers/broken/start HTTP/1.1\r\nHost: x\r\n\r\nGET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        reply = await api.raw(two)
        assert b"HTTP/1.1 500 " in reply
        assert b"ZeroDivisionError: a defect" in reply
        assert b"Traceback" not in reply
        assert reply.endswith(b"OK")

    run(tmp_path, check)
    assert "Traceback" in caplog.text


def test_create(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        reply = await api.ask("POST", "/containers/create?name=n&platform=linux/amd64", {"Image": "i", "Cmd": None})
        assert (reply.status, reply.json()) == (201, {"Id": "abc", "Warnings": ["careful"]})
        name, body, platform = api.containers.seen[0]
        assert (name, body.image, platform) == ("n", "i", "linux/amd64")
        assert (await api.ask("POST", "/containers/create?name=taken", {"Image": "i"})).message == "Conflict. (choose another)"
        for bad in (b"", b"null", b"{}", b"[]", b"{"):
            reply = await api.ask("POST", "/containers/create", bad, {"Content-Type": "application/json"})
            assert reply.status == 400, bad
            assert reply.message
        reply = await api.ask("POST", "/containers/create", b"{}", {"Content-Type": "text/plain"})
        assert reply.message == "unsupported Content-Type header (text/plain): must be 'application/json'"

    run(tmp_path, check)


def test_wait_sends_its_head_first(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        stream = await trio.open_unix_socket(api.path)
        await stream.send_all(b"POST /v1.43/containers/c/wait?condition=removed HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await stream.receive_some(4096)
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert head.endswith(b"\r\n\r\n")
        api.containers.gate.set()
        assert await stream.receive_some(4096) == b'11\r\n{"StatusCode":3}\n\r\n0\r\n\r\n'
        assert api.containers.seen == [("c", "removed")]

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [("c", "1.51", "multiplexed-stream"), ("tty", "1.51", "raw-stream"), ("c", "1.41", "raw-stream")],
)
def test_logs_stream(tmp_path: Path, name: str, version: str, kind: str) -> None:
    async def check(api: Fixture) -> None:
        stream = await trio.open_unix_socket(api.path)
        target = f"/v{version}/containers/{name}/logs?follow=1&stdout=true&tail=5&since=1.5"
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = b""
        while b"one\n" not in data:
            data += await stream.receive_some(4096)
        assert f"Content-Type: application/vnd.docker.{kind}\r\n".encode() in data
        options = api.containers.seen[0]
        assert (options.follow, options.stdout, options.stderr, options.tail, options.since) == (True, True, False, 5, 1_500_000_000)
        api.containers.gate.set()
        while not data.endswith(b"0\r\n\r\n"):
            data += await stream.receive_some(4096)
        assert b"4\r\ntwo\n\r\n" in data

    run(tmp_path, check)


def test_attach_takes_the_connection(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        stream = await trio.open_unix_socket(api.path)
        await stream.send_all(
            b"POST /v1.51/containers/c/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n"
            b"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\nhello"
        )
        data = b""
        while not data.endswith(b"<hello>"):
            data += await stream.receive_some(4096)
        assert data.startswith(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n")
        assert b"Content-Type: application/vnd.docker.multiplexed-stream\r\n" in data
        assert await stream.receive_some(1) == b""

    run(tmp_path, check)


def test_trace(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        assert (await api.ask("GET", "/containers/c/trace")).json() == [{"name": "mount", "at": 5}]

    run(tmp_path, check)


def test_every_route_is_found_by_its_own_pattern() -> None:
    for route in routes.ROUTES:
        path = route.pattern.replace("{name:.*}", "some/where:1").replace("{name}", "thing")
        found = routes.find(route.method, path)
        assert found is not None, route
        assert found[0] is route.handler, route


def test_no_route_is_there_twice() -> None:
    keys = [(route.method, route.pattern) for route in routes.ROUTES]
    assert len(set(keys)) == len(keys)
