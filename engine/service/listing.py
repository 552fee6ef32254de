"""Which containers `docker ps` shows: Docker's filters and the all/last rules. Pure but for the image lookup it is given."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import InvalidParameter, NotFound
from engine.service import attached
from engine.service.attached import Known
from engine.spec import health
from engine.spec.container import ContainerRecord
from engine.spec.filters import Filters
from engine.spec.network import Sandbox

KEYS = frozenset(
    "ancestor before exited expose health id is-task isolation label name network publish since status volume".split()
)  # Engine API, ContainerList
_Range = tuple[int, int, str]  # first and last port, protocol
_STATUSES = frozenset("created restarting running removing paused exited dead".split())


def select(
    records: list[ContainerRecord],
    filters: Filters,
    *,
    show_all: bool,
    limit: int,
    find: Callable[[str], ContainerRecord],
    ancestors: Callable[[str], set[str]],
    sandbox: Callable[[str], Sandbox | None] = lambda container_id: None,
    known: Callable[[], Known] = Known,
) -> list[ContainerRecord]:
    """Records (newest first) that pass. `find` resolves before/since (raises NotFound); `ancestors(ref)`: images that `ref` means;
    `sandbox(id)`: what a running container has of the network; `known()`: the networks there are."""
    filters.check(KEYS)
    statuses = set(filters.get("status"))
    for status in statuses - _STATUSES:
        raise InvalidParameter(f"invalid value for status: {status}")
    for value in filters.get("health"):
        if value not in health.STATUSES:
            raise InvalidParameter(f"unrecognized filter value for health: {value}")
    exited = {_exit_code(value) for value in filters.get("exited")}
    images = set().union(*(ancestors(ref) for ref in filters.get("ancestor"))) if filters.get("ancestor") else None
    before = [find(ref).created_at for ref in filters.get("before")]
    since = [find(ref).created_at for ref in filters.get("since")]
    networks = known() if filters.get("network") else None
    published = [_port_range("publish", value) for value in filters.get("publish")]
    exposed = [_port_range("expose", value) for value in filters.get("expose")]
    everything = show_all or limit > 0 or bool(statuses) or bool(exited)
    found = []
    for record in records:
        state = record.state
        if not everything and not state.running:
            continue
        if statuses and state.status not in statuses:
            continue
        if exited and (state.status != "exited" or state.exit_code not in exited):
            continue
        if images is not None and record.image_id not in images:
            continue
        if any(record.created_at >= moment for moment in before) or any(record.created_at <= moment for moment in since):
            continue
        if networks is not None and not _in_network(record, sandbox(record.id), networks, filters.get("network")):
            continue
        if (published or exposed) and not _has_port(record, sandbox(record.id), published, exposed):
            continue
        if _matches(record, filters):
            found.append(record)
    return found[:limit] if limit > 0 else found


def _matches(record: ContainerRecord, filters: Filters) -> bool:
    config = record.config
    mounts = [place for point in record.mount_points for place in (point.name or point.source, point.destination)]
    return (
        filters.match_names("name", record.name)
        and filters.match_prefix("id", record.id)
        and filters.match_labels("label", config.labels or {})
        and filters.match_any("volume", mounts)
        and filters.match_any("health", (record.state.health.status if record.state.health else "none",))
        and filters.match_any("is-task", ("false", "False", "0"))
        and filters.match_any("isolation", ("default", ""))
    )


def _in_network(record: ContainerRecord, sandbox: Sandbox | None, known: Known, wanted: list[str]) -> bool:
    """Whether it belongs to one of the networks, each a name or the beginning of an id."""
    found = attached.attachments(record, sandbox, known)
    return any(one.name == ref or (ref and one.network_id.startswith(ref)) for one in found for ref in wanted)


def _has_port(record: ContainerRecord, sandbox: Sandbox | None, published: list[_Range], exposed: list[_Range]) -> bool:
    """Whether it runs and a port of the host leads to it that is in `published`, or it exposes one that is in `exposed`."""
    return any(
        any(first <= port.public <= last and protocol == port.protocol for first, last, protocol in published)
        or any(first <= port.private <= last and protocol == port.protocol for first, last, protocol in exposed)
        for port in attached.ports(record, sandbox)
    )


def _port_range(key: str, text: str) -> _Range:
    """`80`, `80/udp`, `80-90/tcp`. Raises InvalidParameter in Docker's words."""
    span, _, protocol = text.partition("/")
    low, dash, high = span.partition("-")
    try:
        if not span:
            raise ValueError("Empty string specified for ports.")
        first = _port(low)
        last = _port(high) if dash else first
        if last < first:
            raise ValueError(f"Invalid range specified for the Port: {span}")
    except ValueError as error:
        raise InvalidParameter(f"error while looking up for {key} {text}: {error}")
    return first, last, (protocol or "tcp").lower()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if len(text) > 5 or int(text) > 65535:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def _exit_code(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InvalidParameter(f"invalid exit code filter: {value}")


def same_image(find: Callable[[str], str]) -> Callable[[str], set[str]]:
    """`ancestors` for `select` from a lookup of an image's id; an unknown image has no descendants."""

    def ancestors(ref: str) -> set[str]:
        try:
            return {find(ref)}
        except NotFound:
            return set()

    return ancestors
