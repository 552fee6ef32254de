"""`/volumes/...`: parse, call `engine.volumes`, render. Engine API reference 1.51, "Volume"."""

from __future__ import annotations

from engine.api import later
from engine.api.bodies import Body
from engine.api.call import Call
from engine.api.views import volumes as views
from engine.spec.docker.volumes import VolumeCreateRequest

_CREATE = Body(VolumeCreateRequest)


async def listing(call: Call) -> None:
    """GET /volumes"""
    volumes = call.engine.volumes
    found = volumes.list(call.query.filters())
    await call.json({"Volumes": [views.volume(record, volumes.path(record.name)) for record in found], "Warnings": None})


async def create(call: Call) -> None:
    """POST /volumes/create; without a body it makes an anonymous one."""
    request = await call.body(_CREATE, optional=True) or VolumeCreateRequest()
    if request.cluster_volume_spec is not None:
        await later.no_swarm(call)
    volumes = call.engine.volumes
    record = await volumes.create(request.name, request.driver, request.driver_opts, request.labels)
    await call.json(views.volume(record, volumes.path(record.name)), 201)


async def inspect(call: Call) -> None:
    """GET /volumes/{name}"""
    volumes = call.engine.volumes
    record = volumes.get(call.name)
    await call.json(views.volume(record, volumes.path(record.name)))


async def remove(call: Call) -> None:
    """DELETE /volumes/{name}"""
    await call.engine.volumes.remove(call.name, force=call.query.flag("force"))
    await call.done()


async def prune(call: Call) -> None:
    """POST /volumes/prune; before 1.42 it took named volumes, too."""
    names, size = await call.engine.pruner.volumes(call.query.filters(), everything=call.version < (1, 42))
    await call.json(views.pruned(names, size))
