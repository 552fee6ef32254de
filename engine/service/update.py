"""`POST /containers/{id}/update`: other limits and another restart policy for a container, while it runs or not.

What may change together follows dockerd, whose words the errors have. A member of the request that is zero changes nothing.
"""

from __future__ import annotations

import msgspec

from engine.aio.blocking import blocking
from engine.errors import Conflict, InvalidParameter, KnarrError
from engine.service import admission, create, specgen
from engine.service.container import Container
from engine.service.context import Context
from engine.spec import restart
from engine.spec.docker.containers import HostConfig
from engine.spec.runtime import Pids, Resources

_MEMORY = ("memory", "memory_swap", "memory_reservation")
_CPU = ("nano_cpus", "cpu_period", "cpu_quota", "cpu_shares", "cpuset_cpus", "cpuset_mems")
_BLOCK = ("blkio_weight",)
_FIELDS = (*_MEMORY, *_CPU, *_BLOCK, "pids_limit")
# Limits that dockerd takes in this request and leaves as they are.
_FIXED = (
    "cgroup_parent", "blkio_weight_device", "blkio_device_read_bps", "blkio_device_write_bps", "blkio_device_read_iops",
    "blkio_device_write_iops",
    "cpu_realtime_period", "cpu_realtime_runtime", "devices", "device_cgroup_rules", "device_requests", "memory_swappiness",
    "oom_kill_disable", "init", "ulimits",
)  # fmt: skip


def updated(now: HostConfig, asked: HostConfig) -> HostConfig:
    """The configuration after an update. Raises InvalidParameter, Conflict."""
    for field in _FIXED:
        if getattr(asked, field):
            raise InvalidParameter(f"{field.replace('_', '-')} cannot be changed by an update")
    restart.validate(asked.restart_policy)
    admission.resources(msgspec.structs.replace(asked, memory_swap=asked.memory_swap if asked.memory else 0))
    for field, what, other, already in (
        ("nano_cpus", "Nano CPUs", "cpu_period", "CPU Period"),
        ("nano_cpus", "Nano CPUs", "cpu_quota", "CPU Quota"),
        ("cpu_period", "CPU Period", "nano_cpus", "NanoCPUs"),
        ("cpu_quota", "CPU Quota", "nano_cpus", "NanoCPUs"),
    ):
        if getattr(asked, field) > 0 and getattr(now, other) > 0:
            raise Conflict(f"Conflicting options: {what} cannot be updated as {already} has already been set")
    swap = now.memory_swap or 2 * now.memory
    if asked.memory and not asked.memory_swap and swap >= 0 and asked.memory > swap:
        raise Conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
    changes = {field: getattr(asked, field) for field in _FIELDS if getattr(asked, field) not in (0, "", None)}
    if "memory" in changes and "memory_swap" not in changes and swap:
        changes["memory_swap"] = swap  # else it would follow the new limit
    if asked.restart_policy is not None and asked.restart_policy.name:
        if now.auto_remove and not restart.is_none(asked.restart_policy):
            raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
        changes["restart_policy"] = asked.restart_policy
    merged = msgspec.structs.replace(now, **changes)
    admission.resources(merged)
    return merged


def resources(before: HostConfig, after: HostConfig) -> Resources:
    """What of the limits is to be written; nothing for what did not change."""
    changed = {field for field in _FIELDS if getattr(before, field) != getattr(after, field)}
    everything = specgen.resources(after, block_io=create.block_io(after) if changed.intersection(_BLOCK) else None)
    return Resources(
        memory=everything.memory if changed.intersection(_MEMORY) else None,
        cpu=everything.cpu if changed.intersection(_CPU) else None,
        pids=Pids(limit=after.pids_limit or -1) if "pids_limit" in changed else None,
        block_io=everything.block_io,
    )


async def update(context: Context, container: Container, asked: HostConfig) -> list[str]:
    """Change a container; warnings. On return it is durable. Raises InvalidParameter, Conflict, KnarrError; then nothing has changed."""
    async with container.lock:
        record = container.record
        if record.state.status in ("removing", "dead") or container.gone.is_set():
            raise _cannot(container, Conflict('Container is marked for removal and cannot be "update".'))
        before = record.host_config
        try:
            after = updated(before, asked)
            limits = resources(before, after)
            if limits != Resources() and record.state.alive:
                await blocking("kernel", context.cgroups.update, container.cgroup, limits)
        except Conflict as error:
            raise _cannot(container, error) from error
        if limits != Resources() and not record.state.alive:
            container.plan = container.placement = None  # made again, with the new limits, by the next start
        record.host_config = after
        container.save_now()
    await context.durability.reached()
    container.publish("update")
    return context.cgroups.warnings(limits)


def _cannot(container: Container, error: KnarrError) -> KnarrError:
    return type(error)(f"Cannot update container {container.id}: {error.message}", hint=error.hint)
