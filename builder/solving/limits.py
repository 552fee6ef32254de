"""What a build's options say of each RUN's process: limits, hosts, security. Pure. Raises InvalidParameter in Docker's words."""

from __future__ import annotations

from builder.solving.run import Limits
from engine.errors import InvalidParameter
from engine.spec.build import Options
from engine.spec.docker.containers import HostConfig, Ulimit

_MOST = 1 << 63


def limits_of(options: Options) -> Limits:
    """The host configuration that every RUN begins with."""
    return Limits(
        host_config=HostConfig(
            memory=options.memory,
            memory_swap=options.memory_swap,
            cpu_shares=options.cpu_shares,
            cpu_period=options.cpu_period,
            cpu_quota=options.cpu_quota,
            cpuset_cpus=options.cpuset_cpus,
            cpuset_mems=options.cpuset_mems,
            shm_size=options.shm_size,
            cgroup_parent=options.cgroup_parent.strip("/"),
            security_opt=list(options.security_opt) or None,
            ulimits=[_ulimit(text) for text in options.ulimits] or None,
        )
    )


def _ulimit(text: str) -> Ulimit:
    name, equals, value = text.partition("=")
    soft, colon, hard = value.partition(":")
    try:
        limit = Ulimit(name=name, soft=int(soft), hard=int(hard if colon else soft))
    except ValueError:
        raise InvalidParameter(f"invalid ulimit argument: {text}") from None
    if not equals or not name:
        raise InvalidParameter(f"invalid ulimit argument: {text}")
    if not all(-1 <= value < _MOST for value in (limit.soft, limit.hard)):
        raise InvalidParameter(f"invalid ulimit argument: {text}")
    if limit.hard != -1 and limit.soft > limit.hard:
        raise InvalidParameter(f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}")
    return limit
