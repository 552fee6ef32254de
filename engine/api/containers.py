"""`/containers/...`: parse, call `engine.containers`, render. Engine API reference 1.51, "Container"."""

from __future__ import annotations

import functools

from engine.aio.blocking import blocking
from engine.api.bodies import Body
from engine.api.call import Call, closing
from engine.api.views import containers as views
from engine.errors import Conflict, InvalidParameter, KnarrError, NotFound
from engine.http import bridge
from engine.spec.docker.containers import CreateRequest, HostConfig
from engine.spec.docker.streams import AttachOptions, LogsOptions

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"

_CREATE = Body(CreateRequest)
_UPDATE = Body(HostConfig)  # of which the request has the resources and the restart policy


def content_type(call: Call, tty: bool) -> str:
    """Of a stream of output: framed streams have a name of their own since 1.42."""
    return RAW if tty or call.version < (1, 42) else MULTIPLEXED


async def listing(call: Call) -> None:
    """GET /containers/json"""
    query, containers = call.query, call.engine.containers
    with_size = query.flag("size")
    records = containers.list(all=query.flag("all"), limit=query.integer("limit") or 0, filters=query.filters(), size=with_size)
    shown, ids = [], functools.cache(call.engine.images.ids)
    networks = call.engine.networks
    known = networks.known()
    for record in records:
        try:
            size = await blocking("disk", containers.size, record.id) if with_size else None
            points = containers.mount_points(record.id)
        except (NotFound, FileNotFoundError):
            continue  # removed meanwhile
        named, sandbox = record.image_id in ids(record.image), networks.sandbox(record.id)
        shown.append(views.summary(record, call.version, points=points, size=size, named=named, sandbox=sandbox, known=known))
    await call.json(shown)


async def create(call: Call) -> None:
    """POST /containers/create"""
    request = await call.body(_CREATE)
    if request is None or request == _EMPTY:
        raise InvalidParameter("config cannot be empty in order to create a container")
    query = call.query
    id, warnings = await call.engine.containers.create(query.text("name") or None, request, query.text("platform"))
    await call.json({"Id": id, "Warnings": warnings}, 201)


_EMPTY = CreateRequest()


async def inspect(call: Call) -> None:
    """GET /containers/{name}/json"""
    containers = call.engine.containers
    record = containers.get(call.name)
    size = await blocking("disk", containers.size, record.id) if call.query.flag("size") else None
    await call.json(
        views.inspect(
            record,
            call.version,
            paths=containers.paths(record.id),
            points=containers.mount_points(record.id),
            exec_ids=call.engine.execs.running(record.id),
            size=size,
            sandbox=call.engine.networks.sandbox(record.id),
            known=call.engine.networks.known(),
        )
    )


async def start(call: Call) -> None:
    """POST /containers/{name}/start"""
    if call.query.text("checkpoint"):
        raise KnarrError("checkpoint not supported")
    await call.engine.containers.start(call.name, call.query.text("detachKeys"))
    await call.done()


async def stop(call: Call) -> None:
    """POST /containers/{name}/stop"""
    await call.engine.containers.stop(call.name, call.query.text("signal"), call.query.integer("t"))
    await call.done()


async def restart(call: Call) -> None:
    """POST /containers/{name}/restart"""
    await call.engine.containers.restart(call.name, call.query.text("signal"), call.query.integer("t"))
    await call.done()


async def kill(call: Call) -> None:
    """POST /containers/{name}/kill"""
    try:
        await call.engine.containers.kill(call.name, call.query.text("signal"))
    except (Conflict, InvalidParameter, NotFound) as error:
        before = f"cannot kill container: {call.name}: "  # clients have matched on these words for years
        if error.message.startswith(before):
            raise
        raise type(error)(before + error.message, hint=error.hint)
    await call.done()


async def update(call: Call) -> None:
    """POST /containers/{name}/update"""
    asked = await call.body(_UPDATE)
    assert asked is not None
    await call.json({"Warnings": await call.engine.containers.update(call.name, asked) or None})


async def resize(call: Call) -> None:
    """POST /containers/{name}/resize"""
    await call.engine.containers.resize(call.name, *window(call))
    await call.done(200)


def window(call: Call) -> tuple[int, int]:
    """(height, width) of a resize. Raises InvalidParameter."""
    height, width = call.query.required_integer("h"), call.query.required_integer("w")
    for value in (height, width):
        if not 0 <= value <= 65535:  # struct winsize
            raise InvalidParameter(f"invalid terminal size {height}x{width}: both must be between 0 and 65535")
    return height, width


async def rename(call: Call) -> None:
    """POST /containers/{name}/rename"""
    await call.engine.containers.rename(call.name, call.query.text("name"))
    await call.done()


async def remove(call: Call) -> None:
    """DELETE /containers/{name}"""
    query = call.query
    await call.engine.containers.remove(call.name, force=query.flag("force"), volumes=query.flag("v"), link=query.flag("link"))
    await call.done()


async def wait(call: Call) -> None:
    """POST /containers/{name}/wait: the head goes out before the wait, `docker run` starts the container only after it."""
    condition = call.query.text("condition") if call.version >= (1, 30) else ""
    waiter = call.engine.containers.wait(call.name, condition)
    exchange = call.exchange
    await exchange.stream()
    if waiter.done:
        code, error = await waiter.result()
    else:
        async with exchange.while_connected():
            code, error = await waiter.result()
    result: dict[str, object] = {"StatusCode": code}
    if error:
        result["Error"] = {"Message": error}
    await exchange.finish(call.encode(result) + b"\n")


async def top(call: Call) -> None:
    """GET /containers/{name}/top"""
    titles, rows = await call.engine.containers.top(call.name, call.query.text("ps_args"))
    await call.json({"Processes": rows, "Titles": titles})


async def trace(call: Call) -> None:
    """GET /containers/{name}/trace, an extension: the waterfall of the last start, times in nanoseconds of CLOCK_MONOTONIC."""
    await call.json([{"name": step.name, "at": step.at} for step in call.engine.containers.trace(call.name)])


def _tail(text: str) -> int:
    """A number of lines; all of them for "all", and for what is no number, as in Docker."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1


async def logs(call: Call) -> None:
    """GET /containers/{name}/logs"""
    query, containers, exchange = call.query, call.engine.containers, call.exchange
    options = LogsOptions(
        follow=query.flag("follow"),
        stdout=query.flag("stdout"),
        stderr=query.flag("stderr"),
        since=query.nanoseconds("since"),
        until=query.nanoseconds("until"),
        timestamps=query.flag("timestamps"),
        tail=_tail(query.text("tail")),
        details=query.flag("details"),
    )
    record = containers.get(call.name)
    chunks = containers.logs(record.id, options)
    await exchange.stream(content_type=content_type(call, record.config.tty))
    async with closing(chunks), exchange.while_connected():
        async for chunk in chunks:
            await exchange.write(chunk)
    await exchange.end()


async def attach(call: Call) -> None:
    """POST /containers/{name}/attach"""
    query, exchange = call.query, call.exchange
    await exchange.body()
    record = call.engine.containers.get(call.name)
    attachment = call.engine.containers.attach(
        record.id,
        AttachOptions(
            stream=query.flag("stream"),
            stdin=query.flag("stdin"),
            stdout=query.flag("stdout"),
            stderr=query.flag("stderr"),
            logs=query.flag("logs"),
            detach_keys=query.text("detachKeys"),
        ),
    )
    connection = await exchange.hijack(upgraded_type(call, record.config.tty))
    await bridge.served(connection, attachment.run)


def upgraded_type(call: Call, tty: bool) -> str:
    """Of a connection taken over: clients that do not ask for an upgrade are older than the name of framed streams."""
    return content_type(call, tty) if b"upgrade" in call.exchange.headers else RAW


async def prune(call: Call) -> None:
    """POST /containers/prune"""
    from engine.api.views import df

    await call.json(df.pruned_containers(await call.engine.pruner.containers(call.query.filters())))
