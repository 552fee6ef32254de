"""`/build...`: parse, call `engine.builder`, stream. Engine API reference 1.51, "Image"; `POST /build/knarr` is an extension.

Errors before the first line are statuses, with dockerd's words; later ones are the last line of the stream.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import msgspec
import trio

from engine.api.bodies import Body
from engine.api.call import Call, closing
from engine.api.query import number
from engine.errors import InvalidParameter, KnarrError, NotImplementedYet
from engine.http.errors import ClientGone
from engine.http.exchange import Exchange
from engine.service.build import Builder, ClassicBuild, Send
from engine.service.hostfiles import split_extra_host
from engine.service.imagefilter import moment
from engine.spec import buildcache, platform, reference
from engine.spec.build import Endpoint, Options
from engine.spec.docker.registry import credentials_by_host
from engine.wire import grpcrefusal, jsonstream

PROTOCOL = b"knarr-build"
"""What a client of `POST /build/knarr` upgrades to."""

_SESSION = "client-session"
_TO_CLIENT = ("local", "tar", "oci", "docker")
"""Outputs that go to the client. dockerd sends them over BuildKit's session, which is not there."""
_INT64 = 2**63
_DECIMAL = re.compile(r"[+-]?[0-9]{1,40}")

T = TypeVar("T")


class _Ulimit(msgspec.Struct):
    """An element of `ulimits`."""

    name: str = msgspec.field(name="Name", default="")
    soft: int = msgspec.field(name="Soft", default=0)
    hard: int = msgspec.field(name="Hard", default=0)


class _Output(msgspec.Struct):
    """An element of `outputs`."""

    type: str = msgspec.field(name="Type", default="")
    attributes: dict[str, str | None] = msgspec.field(name="Attrs", default={})


_ULIMITS, _OUTPUTS = Body(list[_Ulimit]), Body(list[_Output])
_BUILD_ARGS, _TEXTS = Body(dict[str, str | None]), Body(list[str])


def _no_buildkit() -> NotImplementedYet:
    return NotImplementedYet("BuildKit's protocol", hint="set DOCKER_BUILDKIT=0, or use knarr build")


async def build(call: Call) -> None:
    """POST /build"""
    wanted = parse(call)
    exchange = call.exchange
    builder = call.engine.builder
    context = None
    if wanted.options.remote:
        await exchange.body()  # clients send an empty one
    else:
        context = exchange.chunks()

    async def send(data: bytes) -> None:
        if not exchange.started:
            await exchange.stream()
        await exchange.write(data)

    try:
        await _watched(exchange, context, functools.partial(_classic, builder, wanted, send))
    except KnarrError as error:
        if not exchange.started:
            raise
        await exchange.write(jsonstream.error(str(error)))
    if not exchange.started:
        await exchange.stream()
    await exchange.end()


async def _classic(builder: Builder, wanted: ClassicBuild, send: Send, context: AsyncIterator[bytes] | None) -> None:
    await builder.classic(wanted, context, send)


async def _watched(
    exchange: Exchange, body: AsyncIterator[bytes] | None, work: Callable[[AsyncIterator[bytes] | None], Awaitable[None]]
) -> None:
    """Run `work`, which reads `body`, and cancel it when the client closes its connection. Raises ClientGone then.

    While the body arrives, reading it finds out; from its end on a task does.
    """
    read = trio.Event()
    gone = False
    failure: Exception | None = None

    async def pieces(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async with closing(source):
            async for piece in source:
                yield piece
        read.set()

    async def watch() -> None:
        nonlocal gone
        if body is not None:
            await read.wait()
        try:
            async with exchange.while_connected():
                await trio.sleep_forever()
        except ClientGone:
            gone = True
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            if body is None:
                await work(None)
            else:
                given = pieces(body)
                async with closing(given):
                    await work(given)
        except Exception as error:  # raised below, so that it does not arrive wrapped in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if gone:
        raise ClientGone


def parse(call: Call) -> ClassicBuild:
    """The parameters of `POST /build`. Raises InvalidParameter in dockerd's words, NotImplementedYet for BuildKit's protocol."""
    query = call.query
    version, remote = query.text("version"), query.text("remote")
    if version not in ("", "1", "2"):
        raise InvalidParameter(f'invalid version "{version}"')
    if version == "2" or remote == _SESSION:
        raise _no_buildkit()
    if query.texts("securityopt"):  # whatever it says
        raise InvalidParameter("security options are not supported on linux")
    if query.text("isolation") not in ("", "default"):
        raise InvalidParameter(f'unsupported isolation: "{query.text("isolation")}"')
    caches = _json(call, "cachefrom", _TEXTS, "error reading cache-from") or ()
    options = Options(
        remote=remote,
        dockerfile=query.text("dockerfile") or "Dockerfile",
        tags=tags(query.texts("t")),
        build_args=_json(call, "buildargs", _BUILD_ARGS, "error reading build args") or {},
        labels={key: value or "" for key, value in (_json(call, "labels", _BUILD_ARGS, "error reading labels") or {}).items()},
        target=query.text("target"),
        platforms=_platforms(query.text("platform")),
        no_cache=query.flag("nocache"),
        pull=query.flag("pull"),
        network=query.text("networkmode") or "default",
        hosts=_hosts(query.texts("extrahosts")),
        ulimits=_ulimits(call),
        shm_size=_int64(call, "shmsize"),
        cgroup_parent=query.text("cgroupparent"),
        memory=_int64(call, "memory"),
        memory_swap=_int64(call, "memswap"),
        cpu_shares=_int64(call, "cpushares"),
        cpu_period=_int64(call, "cpuperiod"),
        cpu_quota=_int64(call, "cpuquota"),
        cpuset_cpus=query.text("cpusetcpus"),
        cpuset_mems=query.text("cpusetmems"),
        cache_from=tuple(Endpoint(type="registry", attributes={"ref": name}) for name in caches),
        outputs=_outputs(call),
        squash=query.flag("squash"),
    )
    return ClassicBuild(
        options=options,
        auths=credentials_by_host(call.exchange.headers.get(b"x-registry-config", b"").decode("latin-1")),
        quiet=query.flag("q"),
        remove=query.flag("forcerm") or not query.text("rm") or query.flag("rm"),
        force_remove=query.flag("forcerm"),
        id=query.text("buildid"),
        version=call.version,
    )


def _json(call: Call, name: str, kind: Body[T], wrong: str) -> T | None:
    """A parameter that is a JSON document; None when it is absent or null. Raises InvalidParameter."""
    text = call.query.text(name)
    if text in ("", "null"):
        return None
    try:
        return kind.parse(text.encode())
    except InvalidParameter as error:
        raise InvalidParameter(f"{wrong}: {error.message.removeprefix('invalid JSON: ')}")


def _int64(call: Call, name: str) -> int:
    """A number, 0 when it is absent. Raises InvalidParameter."""
    text = call.query.text(name)
    if not text:
        return 0
    if _DECIMAL.fullmatch(text) is None:
        raise InvalidParameter(f'{name}: strconv.ParseInt: parsing "{text}": invalid syntax')
    if not -_INT64 <= (value := int(text)) < _INT64:
        raise InvalidParameter(f'{name}: strconv.ParseInt: parsing "{text}": value out of range')
    return value


def tags(names: list[str]) -> tuple[str, ...]:
    """Names of an image to be, each once and with its tag. Raises InvalidParameter."""
    found: dict[str, None] = {}
    for name in names:
        if name:
            parsed = reference.parse(name)
            if parsed.digest:
                raise InvalidParameter("build tag cannot contain a digest")
            found[parsed.with_default_tag().familiar] = None
    return tuple(found)


def _platforms(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    platform.parse(text)
    return (text,)


def _hosts(entries: list[str]) -> tuple[str, ...]:
    for entry in entries:
        split_extra_host(entry)
    return tuple(entries)


def _ulimits(call: Call) -> tuple[str, ...]:
    limits = _json(call, "ulimits", _ULIMITS, "error reading ulimit settings") or ()
    return tuple(f"{limit.name}={limit.soft}:{limit.hard}" for limit in limits)


def _outputs(call: Call) -> tuple[Endpoint, ...]:
    """`outputs`, which dockerd's classic builder does not look at: what its BuildKit makes of them. Raises InvalidParameter,
    NotImplementedYet for those that go to the client."""
    found = _json(call, "outputs", _OUTPUTS, "invalid outputs specified") or ()
    for one in found:
        if one.type in _TO_CLIENT:
            hint = f"use knarr build --output type={one.type},dest=PATH; POST /build has image, registry and cacheonly"
            raise NotImplementedYet(f"an output of type {one.type} in POST /build", hint=hint)
    return tuple(
        Endpoint(type="image" if one.type == "moby" else one.type, attributes={key: value or "" for key, value in one.attributes.items()})
        for one in found
    )


async def client(call: Call) -> None:
    """POST /build/knarr, an extension: the connection becomes one of `engine.wire.buildframes`."""
    exchange = call.exchange
    if exchange.headers.get(b"upgrade", b"").lower() != PROTOCOL:
        raise InvalidParameter(f"POST /build/knarr needs the header Upgrade: {PROTOCOL.decode()}")
    builder = call.engine.builder
    await exchange.body()
    connection = await exchange.hijack(f"application/vnd.{PROTOCOL.decode()}")
    try:
        await builder.session(connection)
    except OSError as error:
        raise ClientGone from error
    finally:
        connection.close()


async def grpc(call: Call) -> None:
    """POST /grpc: BuildKit's protocol, of which every call is refused in words that say what to do instead.

    buildx asks for this connection first; were it not to be had, buildx would start a BuildKit of its own in a container, whose images are
    not the daemon's.
    """
    exchange = call.exchange
    await exchange.body()
    connection = await exchange.hijack("application/grpc")
    refusal = grpcrefusal.Refusal(str(_no_buildkit()))
    try:
        while not refusal.closed and (data := await connection.receive()):
            await connection.send(refusal.feed(data))
    except grpcrefusal.Malformed:
        pass  # nobody who could read an answer
    except OSError as error:
        raise ClientGone from error
    finally:
        connection.close()


async def session(call: Call) -> None:
    """POST /session: the other half of BuildKit's protocol."""
    raise _no_buildkit()


async def cancel(call: Call) -> None:
    """POST /build/cancel"""
    id = call.query.text("id")
    if not id:
        raise InvalidParameter("build ID not provided")
    call.engine.builder.cancel(id)
    await call.done(200)


async def prune(call: Call) -> None:
    """POST /build/prune"""
    wanted = wanted_prune(call)
    removed, freed = await call.engine.builder.prune(wanted) if call.engine.make_builder else ((), 0)
    await call.json({"CachesDeleted": list(removed) or None, "SpaceReclaimed": freed})


def wanted_prune(call: Call) -> buildcache.Prune:
    """The parameters of `POST /build/prune`; `keep-storage` is the older name of `reserved-space`. Raises InvalidParameter."""
    query = call.query
    filters = query.filters()
    fields = buildcache.fields_of(filters)
    until = filters.get("until")
    try:
        unused_for = max(0, time.time_ns() - int(moment(until[0]) * 1e9)) if until else 0
    except InvalidParameter as error:
        raise InvalidParameter(
            f"failed to prune build cache: \"until\" filter expects a duration (e.g., '24h') or a timestamp: {error.message}"
        )
    return buildcache.Prune(
        all=query.flag("all"),
        unused_for=unused_for,
        fields=fields,
        reserved=_space(call, "reserved-space") or _space(call, "keep-storage"),
        most_used=_space(call, "max-used-space"),
        least_free=_space(call, "min-free-space"),
    )


def _space(call: Call, name: str) -> int:
    text = call.query.text(name)
    try:
        return number(text) if text else 0
    except InvalidParameter as error:
        raise InvalidParameter(f"{name} is in bytes and expects an integer, got {text}: {error.message}")
