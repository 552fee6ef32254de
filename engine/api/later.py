"""Endpoints of the Engine API on what this version does not have: a clear 501, and 503 for Swarm's.

Source: the API reference, 1.51.
"""

from __future__ import annotations

from engine.api.call import Call
from engine.errors import NotFound, NotImplementedYet, Unavailable

MISSING: tuple[tuple[str, str], ...] = tuple(
    (method, pattern)
    for line in """
    GET /containers/{name}/changes
    GET /containers/{name}/export
    GET /containers/{name}/stats
    POST /containers/{name}/pause
    POST /containers/{name}/unpause
    GET /containers/{name}/attach/ws
    HEAD /containers/{name}/archive
    GET /containers/{name}/archive
    PUT /containers/{name}/archive
    POST /containers/{name}/copy
    GET /containers/{name}/checkpoints
    POST /containers/{name}/checkpoints
    POST /commit
    GET /plugins
    GET /plugins/privileges
    POST /plugins/pull
    DELETE /plugins/{name:.*}
    POST /plugins/{name:.*}/enable
    POST /plugins/{name:.*}/disable
    POST /plugins/{name:.*}/upgrade
    POST /plugins/create
    POST /plugins/{name:.*}/push
    POST /plugins/{name:.*}/set
    """.splitlines()
    if line.strip()
    for method, pattern in (line.split(),)
)

SWARM: tuple[tuple[str, str], ...] = (
    ("GET", "/swarm"),
    ("POST", "/swarm/init"),
    ("POST", "/swarm/join"),
    ("POST", "/swarm/leave"),
    ("POST", "/swarm/update"),
    ("GET", "/swarm/unlockkey"),
    ("POST", "/swarm/unlock"),
    ("PUT", "/volumes/{name}"),
    *(("GET", f"/{noun}") for noun in ("nodes", "services", "tasks", "secrets", "configs")),
    *(("GET", f"/{noun}/{{name}}") for noun in ("nodes", "services", "tasks", "secrets", "configs")),
    *(("GET", f"/{noun}/{{name}}/logs") for noun in ("services", "tasks")),
    *(("POST", f"/{noun}/create") for noun in ("services", "secrets", "configs")),
    *(("POST", f"/{noun}/{{name}}/update") for noun in ("nodes", "services", "secrets", "configs")),
    *(("DELETE", f"/{noun}/{{name}}") for noun in ("nodes", "services", "secrets", "configs")),
)

_NO_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
)


async def no_plugin(call: Call) -> None:
    """404: `docker inspect NAME` asks for every kind of object in turn and goes on only after a 404."""
    raise NotFound(f'plugin "{call.name}" not found')


async def missing(call: Call) -> None:
    """501."""
    raise NotImplementedYet(f"{call.exchange.method} {call.path}")


async def no_swarm(call: Call) -> None:
    """503 in dockerd's words: tools tell by them that there is no Swarm here. Joining one is what does not exist."""
    if call.path == "/swarm/leave":
        raise Unavailable("This node is not part of a swarm")
    if call.path in ("/swarm/init", "/swarm/join"):
        raise NotImplementedYet(f"{call.exchange.method} {call.path}")
    raise Unavailable(_NO_MANAGER)
