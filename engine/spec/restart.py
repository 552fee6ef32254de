"""Restart policies as pure functions: is a container started again, when, and in which order after the daemon's start.

Source: Docker's documentation, "Start containers automatically"; dockerd's answers; the label that compose writes for `depends_on`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from engine.errors import InvalidParameter
from engine.spec.container import ContainerRecord, State
from engine.spec.docker.containers import RestartPolicy

SECOND = 1_000_000_000
FIRST_DELAY = SECOND // 10
LONGEST_DELAY = 60 * SECOND
STEADY = 10 * SECOND  # a run this long means that the container works: the next delay is the first one again

POLICIES = ("no", "always", "unless-stopped", "on-failure")

Condition = Literal["service_started", "service_healthy", "service_completed_successfully"]
_PROJECT, _SERVICE = "com.docker.compose.project", "com.docker.compose.service"
_DEPENDS_ON, _ONE_OFF = "com.docker.compose.depends_on", "com.docker.compose.oneoff"


class Needs(msgspec.Struct, frozen=True):
    """A container waits for another one, named by its id."""

    id: str
    condition: Condition = "service_started"


def validate(policy: RestartPolicy | None) -> None:
    """Raise InvalidParameter in Docker's words."""
    if policy is None:
        return
    if policy.name not in ("", *POLICIES):
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.name != "on-failure" and policy.maximum_retry_count:
        raise InvalidParameter("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if policy.maximum_retry_count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")


def is_none(policy: RestartPolicy | None) -> bool:
    """Whether a container is never started again by itself."""
    return policy is None or policy.name in ("", "no")


def wanted(policy: RestartPolicy | None, *, exit_code: int, count: int, stopped: bool) -> bool:
    """Whether a run that ended is followed by another one. `count`: restarts since somebody started it; `stopped`: somebody stopped it."""
    if policy is None or stopped:
        return False
    if policy.name == "on-failure":
        return exit_code != 0 and (policy.maximum_retry_count == 0 or count < policy.maximum_retry_count)
    return policy.name in ("always", "unless-stopped")


def wanted_at_boot(policy: RestartPolicy | None, state: State, *, ended_meanwhile: bool) -> bool:
    """Whether the daemon starts a container when it starts itself. `ended_meanwhile`: it ran when the last daemon was there.

    `always` also brings back what somebody stopped. What never ran is not started, and `on-failure` looks only at runs whose end nobody
    has looked at yet: an older failure has used up its tries, or was stopped.
    """
    if policy is None or state.status not in ("exited", "restarting") or not state.started_at:
        return False
    if policy.name == "always":
        return True
    if state.status == "exited" and policy.name == "on-failure" and not ended_meanwhile:
        return False
    return wanted(policy, exit_code=state.exit_code, count=0, stopped=state.manually_stopped)


def backoff(before: int, ran: int) -> int:
    """The delay before a restart, in nanoseconds. `before`: the last one, 0 for none; `ran`: how long the run lasted."""
    if not before or ran >= STEADY:
        return FIRST_DELAY
    return min(before * 2, LONGEST_DELAY)


def depends_on(label: str) -> list[tuple[str, Condition]]:
    """(service, condition) of compose's label `service:condition:restart,…`; what cannot be read is taken for service_started."""
    found: list[tuple[str, Condition]] = []
    for entry in filter(None, (part.strip() for part in label.split(","))):
        service, _, rest = entry.partition(":")
        match rest.partition(":")[0]:
            case "service_healthy":
                found.append((service, "service_healthy"))
            case "service_completed_successfully":
                found.append((service, "service_completed_successfully"))
            case _:
                found.append((service, "service_started"))
    return found


def needs(record: ContainerRecord, names: Mapping[str, str], services: Mapping[tuple[str, str], list[str]]) -> list[Needs]:
    """What a container must not be started before. `names`: names and ids to ids; `services`: (project, service) to ids."""
    found: dict[str, Needs] = {}
    hc, labels = record.host_config, record.config.labels or {}
    shared = [mode.partition(":")[2] for mode in (hc.network_mode, hc.pid_mode, hc.ipc_mode) if mode.startswith("container:")]
    for ref in (*shared, *(item.split(":")[0] for item in hc.volumes_from or ()), *(item.split(":")[0] for item in hc.links or ())):
        other = names.get(ref.removeprefix("/"))
        if other is not None and other != record.id:
            found[other] = Needs(other)
    project = labels.get(_PROJECT, "")
    for service, condition in depends_on(labels.get(_DEPENDS_ON, "")) if project else ():
        for other in services.get((project, service), ()):
            if other != record.id:
                found[other] = Needs(other, condition)
    return list(found.values())


def graph(records: Iterable[ContainerRecord]) -> dict[str, list[Needs]]:
    """`needs` of each container among all of them."""
    known = list(records)
    names = {key: record.id for record in known for key in (record.id, record.name)}
    services: dict[tuple[str, str], list[str]] = {}
    for record in known:
        labels = record.config.labels or {}
        if labels.get(_SERVICE) and labels.get(_ONE_OFF, "False").lower() != "true":
            services.setdefault((labels.get(_PROJECT, ""), labels[_SERVICE]), []).append(record.id)
    return {record.id: needs(record, names, services) for record in known}


def without_circles(edges: Mapping[str, list[Needs]]) -> tuple[dict[str, list[Needs]], list[tuple[str, str]]]:
    """The same edges without those that lead back to where the walk came from, and those: a circle must not keep everyone waiting."""
    kept: dict[str, list[Needs]] = {}
    cut: list[tuple[str, str]] = []
    finished: set[str] = set()
    for root in sorted(edges):
        if root in finished:
            continue
        path, under_way = [(root, iter(edges[root]))], {root}
        kept.setdefault(root, [])
        while path:
            node, rest = path[-1]
            for edge in rest:
                if edge.id in under_way:
                    cut.append((node, edge.id))
                    continue
                kept[node].append(edge)
                if edge.id in edges and edge.id not in finished:
                    kept.setdefault(edge.id, [])
                    under_way.add(edge.id)
                    path.append((edge.id, iter(edges[edge.id])))
                    break
            else:
                path.pop()
                under_way.discard(node)
                finished.add(node)
    return kept, cut
