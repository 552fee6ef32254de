"""`/networks/...` and, as an extension, `/containers/{name}/ports/...`. Engine API reference 1.51, "Network"."""

from __future__ import annotations

from engine.api.bodies import Body
from engine.api.call import Call
from engine.api.views import networks as views
from engine.errors import InvalidParameter, NotFound
from engine.service import networkfilter
from engine.service.networkfilter import SCOPE
from engine.spec.docker.containers import EndpointSettings
from engine.spec.docker.networks import NetworkConnect, NetworkCreate, NetworkDisconnect, PortsRequest

_CREATE = Body(NetworkCreate)
_CONNECT = Body(NetworkConnect)
_DISCONNECT = Body(NetworkDisconnect)
_PORTS = Body(PortsRequest)
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


async def listing(call: Call) -> None:
    """GET /networks"""
    networks = call.engine.networks
    found = networkfilter.select(networks.everything(), call.query.filters(), lambda id: bool(networks.members(id)))
    await call.json([views.network(record, call.version) for record in found])


async def inspect(call: Call) -> None:
    """GET /networks/{name}. `verbose` adds what only Swarm has; `scope` other than local finds nothing."""
    verbose = call.query.text("verbose")
    if verbose and verbose not in _BOOLEANS:
        raise InvalidParameter(f'invalid value for verbose: {verbose}: strconv.ParseBool: parsing "{verbose}": invalid syntax')
    networks = call.engine.networks
    record = networks.find(call.name)
    if call.query.text("scope") not in ("", SCOPE):
        raise NotFound(f"network {call.name} not found")
    await call.json(views.network(record, call.version, networks.members(record.id)))


async def create(call: Call) -> None:
    """POST /networks/create"""
    request = await call.body(_CREATE)
    assert request is not None
    if call.version < (1, 48):  # a client that does not know the member cannot mean it
        request.enable_ipv4 = None
    id, warning = await call.engine.networks.create(request)
    await call.json({"Id": id, "Warning": warning}, 201)


async def remove(call: Call) -> None:
    """DELETE /networks/{name}"""
    await call.engine.networks.remove(call.name)
    await call.done()


async def connect(call: Call) -> None:
    """POST /networks/{name}/connect"""
    request = await call.body(_CONNECT)
    assert request is not None
    if not request.container:
        raise InvalidParameter('invalid name or ID supplied: ""')
    settings = request.endpoint_config or EndpointSettings()
    if call.version < (1, 48):
        settings.gw_priority = 0
    await call.engine.networks.connect(call.name, request.container, settings)
    await call.done(200)


async def disconnect(call: Call) -> None:
    """POST /networks/{name}/disconnect"""
    request = await call.body(_DISCONNECT)
    assert request is not None
    if not request.container:
        raise InvalidParameter('invalid name or ID supplied: ""')
    await call.engine.networks.disconnect(call.name, request.container, request.force)
    await call.done(200)


async def prune(call: Call) -> None:
    """POST /networks/prune"""
    await call.json({"NetworksDeleted": await call.engine.networks.prune(call.query.filters()) or None})


async def add_ports(call: Call) -> None:
    """POST /containers/{name}/ports/add, an extension: publish ports of a running container. Answers with all its ports."""
    request = await call.body(_PORTS)
    assert request is not None
    await call.engine.networks.publish_ports(call.name, request.port_bindings or {})
    await _ports(call)


async def remove_ports(call: Call) -> None:
    """POST /containers/{name}/ports/rm, an extension: the opposite of `add_ports`."""
    request = await call.body(_PORTS)
    assert request is not None
    await call.engine.networks.unpublish_ports(call.name, request.port_bindings or {})
    await _ports(call)


async def _ports(call: Call) -> None:
    from engine.api.views.containers import port_map

    record = call.engine.containers.get(call.name)
    await call.json({"Ports": port_map(record, call.engine.networks.sandbox(record.id))})
