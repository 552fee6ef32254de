"""Containers as `inspect` and `ps` show them. Source: the Engine API reference 1.51 and the answers of dockerd.

Fields that Go marks `omitempty` are left out when empty, the others are always there: docker-py and templates rely on both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from engine.api.version import Version
from engine.api.views.times import duration, rfc3339
from engine.spec.container import ContainerRecord, State
from engine.spec.docker.containers import Config, EndpointSettings, HostConfig

if TYPE_CHECKING:
    from engine.service.containers import Paths
    from engine.service.mounts import MountPoint

Json = dict[str, Any]

_OMIT_CONFIG = ("ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal", "StopTimeout", "Shell")
_OMIT_HOST = ("Annotations", "StorageOpt", "Tmpfs", "Sysctls", "Init", "Mounts")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%^")


def _absent(value: object) -> bool:
    """Go's omitempty, but for numbers: those are pointers where 0 means something."""
    return value is None or value is False or value in ("", {}, [])


def config(value: Config) -> Json:
    """The `Config` member. In it a command is always a list."""
    shown: Json = msgspec.to_builtins(value)
    for name in _OMIT_CONFIG:
        if _absent(shown[name]):
            del shown[name]
    for name in ("Cmd", "Entrypoint"):
        if isinstance(shown[name], str):
            shown[name] = [shown[name]]
    if shown["Labels"] is None:
        shown["Labels"] = {}
    return shown


def host_config(value: HostConfig) -> Json:
    """The `HostConfig` member."""
    shown: Json = msgspec.to_builtins(value)
    for name in _OMIT_HOST:
        if shown[name] is not False and _absent(shown[name]):
            del shown[name]
    shown["ConsoleSize"] = shown["ConsoleSize"] or (0, 0)
    shown["OomKillDisable"] = bool(value.oom_kill_disable)
    shown["RestartPolicy"] = {
        "Name": value.restart_policy.name or "no" if value.restart_policy else "no",
        "MaximumRetryCount": value.restart_policy.maximum_retry_count if value.restart_policy else 0,
    }
    log = value.log_config
    shown["LogConfig"] = {"Type": log.type if log else "json-file", "Config": (log.config if log else None) or {}}
    return shown


def state(value: State) -> Json:
    """The `State` member."""
    status = value.status
    return {
        "Status": status,
        "Running": value.running,
        "Paused": status == "paused",
        "Restarting": status == "restarting",
        "OOMKilled": value.oom_killed,
        "Dead": status == "dead",
        "Pid": value.pid if value.running else 0,
        "ExitCode": value.exit_code,
        "Error": value.error,
        "StartedAt": rfc3339(value.started_at),
        "FinishedAt": rfc3339(value.finished_at),
    }


def status_text(value: State, now: float | None = None) -> str:
    """What `docker ps` shows under STATUS. `now`: seconds since the epoch, the clock's when None."""
    now = time.time() if now is None else now
    status = value.status
    if status == "paused":
        return f"Up {duration(now - value.started_at / 1e9)} (Paused)"
    if status == "restarting":
        return f"Restarting ({value.exit_code}) {duration(now - value.finished_at / 1e9)} ago"
    if status == "running":
        return f"Up {duration(now - value.started_at / 1e9)}"
    if status == "removing":
        return "Removal In Progress"
    if status == "dead":
        return "Dead"
    if not value.started_at:
        return "Created"
    if not value.finished_at:
        return ""
    return f"Exited ({value.exit_code}) {duration(now - value.finished_at / 1e9)} ago"


def mounts(points: Iterable[MountPoint]) -> list[Json]:
    """The `Mounts` member; a --tmpfs is not listed there (a `--mount type=tmpfs` is)."""
    return [
        {
            "Type": point.type,
            "Source": point.source,
            "Destination": point.destination,
            "Mode": point.mode,
            "RW": point.rw,
            "Propagation": point.propagation,
        }
        for point in points
    ]


def _endpoint(settings: EndpointSettings | None, version: Version, names: list[str] | None) -> Json:
    given = settings or EndpointSettings()
    shown: Json = {
        "IPAMConfig": msgspec.to_builtins(given.ipam_config) if given.ipam_config else None,
        "Links": given.links,
        "Aliases": given.aliases,
        "MacAddress": given.mac_address,
        "NetworkID": given.network_id,
        "EndpointID": given.endpoint_id,
        "Gateway": given.gateway,
        "IPAddress": given.ip_address,
        "IPPrefixLen": given.ip_prefix_len,
        "IPv6Gateway": given.ipv6_gateway,
        "GlobalIPv6Address": given.global_ipv6_address,
        "GlobalIPv6PrefixLen": given.global_ipv6_prefix_len,
        "DriverOpts": given.driver_opts,
    }
    if version >= (1, 48):
        shown["GwPriority"] = given.gw_priority
    if version >= (1, 44):
        shown["DNSNames"] = names
    return shown


def networks(record: ContainerRecord, version: Version) -> Json:
    """Network name -> endpoint; a container has at least the network of its mode, unless it joins another's."""
    mode = record.host_config.network_mode or "none"
    endpoints: Mapping[str, EndpointSettings | None] = record.networking.endpoints_config or {}
    if mode.startswith("container:"):
        return {}
    names = [record.name, record.id[:12]] if record.state.started_at else None
    found = {name: value for name, value in endpoints.items() if name not in ("default", mode)}
    found[mode] = endpoints.get(mode) or endpoints.get("default")
    return {name: _endpoint(value, version, names) for name, value in found.items()}


def _network_settings(record: ContainerRecord, version: Version) -> Json:
    return {
        "Bridge": "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": {},
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": "",
        "Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "MacAddress": "",
        "Networks": networks(record, version),
    }


def inspect(
    record: ContainerRecord,
    version: Version,
    *,
    paths: Paths,
    points: Iterable[MountPoint],
    exec_ids: list[str] | None,
    size: tuple[int, int] | None,
) -> Json:
    """`GET /containers/{id}/json`. `size`: (bytes written, bytes of everything) when it was asked for."""
    shown: Json = {
        "Id": record.id,
        "Created": rfc3339(record.created_at),
        "Path": record.path,
        "Args": record.args,
        "State": state(record.state),
        "Image": record.image_id,
        "ResolvConfPath": paths.resolv_conf,
        "HostnamePath": paths.hostname,
        "HostsPath": paths.hosts,
        "LogPath": paths.log,
        "Name": f"/{record.name}",
        "RestartCount": record.state.restart_count,
        "Driver": record.driver,
        "Platform": record.platform,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": exec_ids or None,
        "HostConfig": host_config(record.host_config),
        "GraphDriver": {
            "Data": {
                "ID": record.id,
                "LowerDir": ":".join(paths.lowers),
                "MergedDir": paths.merged,
                "UpperDir": paths.upper,
                "WorkDir": paths.work,
            },
            "Name": record.driver,
        },
    }
    if size is not None:
        shown["SizeRw"], shown["SizeRootFs"] = size
    shown["Mounts"] = mounts(points)
    shown["Config"] = config(record.config)
    shown["NetworkSettings"] = _network_settings(record, version)
    return shown


def command_line(path: str, args: Iterable[str]) -> str:
    """`Command` of a summary: the words as a shell would need them, quoted only where it would."""
    return " ".join([path, *map(_quoted, args)])


def _quoted(word: str) -> str:
    if word and _PLAIN.issuperset(word):
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def summary(
    record: ContainerRecord,
    version: Version,
    *,
    points: Iterable[MountPoint],
    size: tuple[int, int] | None,
    named: bool = True,
    now: float | None = None,
) -> Json:
    """One member of `GET /containers/json`. `named`: what the container was made of still stands for its image."""
    shown: Json = {
        "Id": record.id,
        "Names": [f"/{record.name}"],
        "Image": record.image if named else record.image_id,
        "ImageID": record.image_id,
        "Command": command_line(record.path, record.args),
        "Created": record.created_at // 1_000_000_000,
        "Ports": [],
        "Labels": record.config.labels or {},
        "State": record.state.status,
        "Status": status_text(record.state, now),
        "HostConfig": {"NetworkMode": record.host_config.network_mode},
        "NetworkSettings": {"Networks": networks(record, version)},
        "Mounts": mounts(points),
    }
    if version >= (1, 46) and record.host_config.annotations:
        shown["HostConfig"]["Annotations"] = record.host_config.annotations
    if size is not None:
        if size[0]:
            shown["SizeRw"] = size[0]
        shown["SizeRootFs"] = size[1]
    return shown
