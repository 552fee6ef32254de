"""Which networks `docker network ls` shows. Pure."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import InvalidParameter
from engine.spec.filters import Filters
from engine.spec.network import NetworkRecord

KEYS = frozenset("dangling driver id label name scope type".split())  # Engine API, NetworkList
SCOPE = "local"


def select(records: list[NetworkRecord], filters: Filters, in_use: Callable[[str], bool]) -> list[NetworkRecord]:
    """Records that pass, in their order. `in_use(id)`: whether a container is in the network. Raises InvalidParameter in Docker's words."""
    filters.check(KEYS)
    dangling = _dangling(filters)
    kinds = set(filters.get("type"))
    for kind in kinds - {"builtin", "custom"}:
        raise InvalidParameter(f"invalid filter: 'type'='{kind}'")
    return [
        record
        for record in records
        if filters.match_any("driver", (shown_driver(record),))
        and filters.match_pattern("name", record.name)
        and filters.match_pattern("id", record.id)
        and filters.match_labels("label", record.labels)
        and filters.match_any("scope", (SCOPE,))
        and (not kinds or ("builtin" if record.predefined else "custom") in kinds)
        and (dangling is None or dangling == (not record.predefined and not in_use(record.id)))
    ]


def _dangling(filters: Filters) -> bool | None:
    values = filters.get("dangling")
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter('got more than one value for filter key "dangling"')
    if values[0] not in ("1", "true", "0", "false"):
        raise InvalidParameter('invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")')
    return values[0] in ("1", "true")


def shown_driver(record: NetworkRecord) -> str:
    """A configuration that other networks are made from has no driver of its own: Docker calls that null."""
    return "null" if record.config_only else record.driver
