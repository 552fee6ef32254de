"""Every endpoint in one table, and the way from a request's method and path to its handler.

A pattern is a path in which one `{name}` stands for one segment, or `{name:.*}` for several (images' names have slashes). The table is
compiled once: literal paths into a dict, the others into regular expressions by method, first and last segment: a request tries one or two.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec

from engine.api import auth, build, containers, distribution, events, execs, images, later, networks, registry, system, volumes
from engine.api.call import Call

Handler = Callable[[Call], Awaitable[None]]


class Route(msgspec.Struct, frozen=True):
    """One endpoint."""

    method: str
    pattern: str
    handler: Handler


ROUTES: tuple[Route, ...] = (
    Route("GET", "/_ping", system.ping),
    Route("HEAD", "/_ping", system.ping),
    Route("GET", "/version", system.version),
    Route("GET", "/info", system.info),
    Route("GET", "/events", events.stream),
    Route("GET", "/system/df", system.disk_usage),
    Route("GET", "/system/check", system.check),
    Route("POST", "/system/gc", system.collect),
    Route("POST", "/auth", auth.login),
    Route("GET", "/distribution/{name:.*}/json", distribution.inspect),
    Route("GET", "/distribution/{name:.*}/manifest", distribution.manifest),
    Route("PUT", "/distribution/{name:.*}/manifest", distribution.put_manifest),
    Route("POST", "/registry/serve", registry.serve),
    Route("GET", "/containers/json", containers.listing),
    Route("GET", "/containers/ps", containers.listing),
    Route("POST", "/containers/create", containers.create),
    Route("POST", "/containers/prune", containers.prune),
    Route("GET", "/containers/{name}/json", containers.inspect),
    Route("GET", "/containers/{name}/top", containers.top),
    Route("GET", "/containers/{name}/logs", containers.logs),
    Route("GET", "/containers/{name}/trace", containers.trace),
    Route("POST", "/containers/{name}/start", containers.start),
    Route("POST", "/containers/{name}/stop", containers.stop),
    Route("POST", "/containers/{name}/restart", containers.restart),
    Route("POST", "/containers/{name}/kill", containers.kill),
    Route("POST", "/containers/{name}/resize", containers.resize),
    Route("POST", "/containers/{name}/rename", containers.rename),
    Route("POST", "/containers/{name}/update", containers.update),
    Route("POST", "/containers/{name}/attach", containers.attach),
    Route("POST", "/containers/{name}/wait", containers.wait),
    Route("DELETE", "/containers/{name}", containers.remove),
    Route("POST", "/containers/{name}/exec", execs.create),
    Route("POST", "/exec/{name}/start", execs.start),
    Route("POST", "/exec/{name}/resize", execs.resize),
    Route("GET", "/exec/{name}/json", execs.inspect),
    Route("GET", "/images/json", images.listing),
    Route("POST", "/images/create", images.create),
    Route("POST", "/images/load", images.load),
    Route("POST", "/images/prune", images.prune),
    Route("GET", "/images/get", images.save),
    Route("GET", "/images/{name:.*}/get", images.save),
    Route("POST", "/images/fromhost", images.from_host),
    Route("GET", "/images/search", distribution.search),
    Route("GET", "/images/{name:.*}/json", images.inspect),
    Route("GET", "/images/{name:.*}/history", images.history),
    Route("POST", "/images/{name:.*}/tag", images.tag),
    Route("POST", "/images/{name:.*}/push", images.push),
    Route("DELETE", "/images/{name:.*}", images.remove),
    Route("POST", "/build", build.build),
    Route("POST", "/build/prune", build.prune),
    Route("POST", "/build/cancel", build.cancel),
    Route("POST", "/build/knarr", build.client),
    Route("POST", "/grpc", build.grpc),
    Route("POST", "/session", build.session),
    Route("GET", "/networks", networks.listing),
    Route("GET", "/networks/", networks.listing),
    Route("POST", "/networks/create", networks.create),
    Route("POST", "/networks/prune", networks.prune),
    Route("GET", "/networks/{name:.*}", networks.inspect),
    Route("DELETE", "/networks/{name:.*}", networks.remove),
    Route("POST", "/networks/{name:.*}/connect", networks.connect),
    Route("POST", "/networks/{name:.*}/disconnect", networks.disconnect),
    Route("POST", "/containers/{name}/ports/add", networks.add_ports),
    Route("POST", "/containers/{name}/ports/rm", networks.remove_ports),
    Route("GET", "/volumes", volumes.listing),
    Route("POST", "/volumes/create", volumes.create),
    Route("POST", "/volumes/prune", volumes.prune),
    Route("GET", "/volumes/{name}", volumes.inspect),
    Route("DELETE", "/volumes/{name}", volumes.remove),
    Route("GET", "/plugins/{name:.*}/json", later.no_plugin),
    *(Route(method, pattern, later.missing) for method, pattern in later.MISSING),
    *(Route(method, pattern, later.no_swarm) for method, pattern in later.SWARM),
)

_LITERAL = {(route.method, route.pattern): route.handler for route in ROUTES if "{" not in route.pattern}


def _compile() -> dict[tuple[str, str, str], list[tuple[re.Pattern[str], Handler]]]:
    table: dict[tuple[str, str, str], list[tuple[re.Pattern[str], Handler]]] = {}
    for route in ROUTES:
        if "{" in route.pattern:
            before, _, rest = route.pattern.partition("{")
            name, _, after = rest.partition("}")
            segment = ".+" if name.endswith(".*") else "[^/]+"
            pattern = re.compile(f"{re.escape(before)}({segment}){re.escape(after)}", re.DOTALL)
            last = route.pattern.rpartition("/")[2]
            table.setdefault((route.method, before.split("/")[1], "" if "{" in last else last), []).append((pattern, route.handler))
    return table


_PATTERNS = _compile()


def find(method: str, path: str) -> tuple[Handler, str] | None:
    """The handler of a path (without its version) and the name in it; None when there is no such endpoint."""
    handler = _LITERAL.get((method, path))
    if handler is not None:
        return handler, ""
    parts = path.split("/", 2)
    if len(parts) < 3:
        return None
    first = parts[1]
    for last in (path.rpartition("/")[2], ""):
        for pattern, found in _PATTERNS.get((method, first, last), ()):
            match = pattern.fullmatch(path)
            if match is not None:
                return found, match[1]
    return None
