"""`/_ping`, `/version`, `/info`, `/system/...`. Engine API reference 1.51, "System"; `/system/check` and `/system/gc` are extensions."""

from __future__ import annotations

from engine.api.call import Call
from engine.api.version import PING_HEADERS
from engine.api.views import system as views
from engine.errors import InvalidParameter


async def ping(call: Call) -> None:
    """GET and HEAD /_ping"""
    head = call.exchange.method == "HEAD"
    await call.exchange.reply(200, b"" if head else b"OK", "text/plain; charset=utf-8", PING_HEADERS)


async def version(call: Call) -> None:
    """GET /version"""
    await call.json(views.version(call.engine.system.version()))


async def info(call: Call) -> None:
    """GET /info"""
    await call.json(views.info(call.engine.system.info(), call.version))


_USES = ("container", "image", "volume", "build-cache")


async def disk_usage(call: Call) -> None:
    """GET /system/df; `type` since 1.42."""
    asked = call.query.texts("type") if call.version >= (1, 42) else []
    for kind in asked:
        if kind not in _USES:
            raise InvalidParameter(f"unknown object type: {kind}")
    from engine.api.views import df as df_views
    from engine.service import df

    engine, wanted = call.engine, set(asked or _USES)
    images = df.of_images(engine.images, engine.containers) if "image" in wanted else None
    containers = await df.of_containers(engine.containers) if "container" in wanted else None
    layers = df.layers_size(engine.images) if "image" in wanted else 0
    volumes = df_views.volumes(await engine.volumes.usage(), engine.volumes.path) if "volume" in wanted else None
    cache = (await engine.builder.usage() if engine.make_builder else ()) if "build-cache" in wanted else None
    await call.json(df_views.disk_usage(call.version, layers, images, containers, engine.containers.mount_points, volumes, cache))


async def check(call: Call) -> None:
    """GET /system/check, an extension: JSON lines, a finding each, at the end a summary."""
    from engine.service.check import Options

    query = call.query
    options = Options(repair=query.flag("repair"), everything=query.flag("all"), quick=query.flag("quick"))
    async with call.exchange.while_connected():
        await call.lines(call.engine.checks.run(options))


async def collect(call: Call) -> None:
    """POST /system/gc, an extension: run the rules of `gc` at once, or with `dry-run` say what they would remove."""
    from engine.api.views import df as df_views

    dry_run = call.query.flag("dry-run")
    await call.json(df_views.collected(await call.engine.collector.collect(dry_run=dry_run), dry_run))
