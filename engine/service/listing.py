"""Which containers `docker ps` shows: Docker's filters and the all/last rules. Pure but for the image lookup it is given."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import InvalidParameter, NotFound
from engine.spec.container import ContainerRecord
from engine.spec.filters import Filters

KEYS = frozenset(
    "ancestor before exited expose health id is-task isolation label name network publish since status volume".split()
)  # Engine API, ContainerList
_STATUSES = frozenset("created restarting running removing paused exited dead".split())


def select(
    records: list[ContainerRecord],
    filters: Filters,
    *,
    show_all: bool,
    limit: int,
    find: Callable[[str], ContainerRecord],
    ancestors: Callable[[str], set[str]],
) -> list[ContainerRecord]:
    """Records (newest first) that pass. `find` resolves before/since (raises NotFound); `ancestors(ref)`: images that `ref` means."""
    filters.check(KEYS)
    statuses = set(filters.get("status"))
    for status in statuses - _STATUSES:
        raise InvalidParameter(f"invalid value for status: {status}")
    exited = {_exit_code(value) for value in filters.get("exited")}
    images = set().union(*(ancestors(ref) for ref in filters.get("ancestor"))) if filters.get("ancestor") else None
    before = [find(ref).created_at for ref in filters.get("before")]
    since = [find(ref).created_at for ref in filters.get("since")]
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
        if _matches(record, filters):
            found.append(record)
    return found[:limit] if limit > 0 else found


def _matches(record: ContainerRecord, filters: Filters) -> bool:
    config, hc = record.config, record.host_config
    mounts = [target.partition(":")[0] for target in hc.binds or ()] + [target.split(":")[1] for target in hc.binds or () if ":" in target]
    return (
        filters.match_names("name", record.name)
        and filters.match_prefix("id", record.id)
        and filters.match_labels("label", config.labels or {})
        and filters.match_any("network", (hc.network_mode,))
        and filters.match_any("volume", mounts)
        and filters.match_any("health", ("none",))
        and filters.match_any("is-task", ("false", "False", "0"))
        and filters.match_any("isolation", ("default", ""))
        and filters.match_any("expose", _ports(config.exposed_ports or {}))
        and filters.match_any("publish", ())
    )


def _ports(exposed: dict[str, dict[str, object]]) -> list[str]:
    return [name for port in exposed for name in (port, port.partition("/")[0])]


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
