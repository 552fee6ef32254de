"""`/containers/{id}/exec` and `/exec/...`: parse, call `engine.execs`, render. Engine API reference 1.51, "Exec"."""

from __future__ import annotations

import contextlib
import os

from engine.api.bodies import Body
from engine.api.call import Call
from engine.api.containers import upgraded_type, window
from engine.api.views import execs as views
from engine.errors import InvalidParameter, KnarrError
from engine.http import bridge
from engine.http.exchange import Hijacked
from engine.spec.docker.containers import ExecRequest, ExecStartRequest

_CREATE = Body(ExecRequest)
_START = Body(ExecStartRequest)


async def create(call: Call) -> None:
    """POST /containers/{name}/exec"""
    request = await call.body(_CREATE)
    if request is None or not request.cmd:
        raise InvalidParameter("No exec command specified")
    await call.json({"Id": await call.engine.execs.create(call.name, request)}, 201)


async def start(call: Call) -> None:
    """POST /exec/{name}/start. Of an exec whose program cannot be started, an attached client reads so in the stream, as with dockerd:
    the CLI takes the exit code (126, 127) from inspect and would show a failed request as its own error."""
    request = await call.body(_START, optional=True) or ExecStartRequest()
    execs = call.engine.execs
    if request.detach:
        await execs.start(call.name, request)
        await call.done(200)
        return
    record = execs.get(call.name)
    attachment = execs.prepare(record.id, request)
    connection = await call.exchange.hijack(upgraded_type(call, record.tty))

    async def run(client: Hijacked) -> None:
        spare = os.dup(client.plain_fd() or -1)  # run gives the connection away before it knows whether the program starts
        try:
            await attachment.run(client)
        except Exception as error:
            text = f"{error}\r\n".encode()
            with contextlib.suppress(OSError):
                os.write(spare, text if record.tty else b"\x01\0\0\0" + len(text).to_bytes(4, "big") + text)
            if not isinstance(error, KnarrError):
                raise
        finally:
            os.close(spare)

    await bridge.served(connection, run)


async def resize(call: Call) -> None:
    """POST /exec/{name}/resize"""
    await call.engine.execs.resize(call.name, *window(call))
    await call.done(200)


async def inspect(call: Call) -> None:
    """GET /exec/{name}/json"""
    await call.json(views.inspect(call.engine.execs.get(call.name)))
