"""Containers as `inspect` and `ps` show them. Source: the Engine API reference 1.51 and the answers of dockerd.

Fields that Go marks `omitempty` are left out when empty, the others are always there: docker-py and templates rely on both.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from engine.api.version import Version
from engine.api.views.times import duration, rfc3339
from engine.service import attached
from engine.service.attached import Attachment, Known
from engine.service.networkmode import split_link
from engine.spec.container import ContainerRecord, State
from engine.spec.docker.containers import Config, HostConfig
from engine.spec.health import described
from engine.spec.network import Sandbox

if TYPE_CHECKING:
    from engine.service.containers import Paths
    from engine.spec.mount import MountPoint

Json = dict[str, Any]

_OMIT_CONFIG = ("ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal", "StopTimeout", "Shell")
_OMIT_HOST = ("Annotations", "StorageOpt", "Tmpfs", "Sysctls", "Init", "Mounts")
_NONE = Known()
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%^")


def _absent(value: object) -> bool:
    """Go's omitempty, but for numbers: those are pointers where 0 means something."""
    return value is None or value is False or value in ("", {}, [])


def config(value: Config) -> Json:
    """The `Config` member. In it a command is always a list."""
    shown: Json = msgspec.to_builtins(value, order="deterministic")  # Go sorts the keys of a map
    for name in _OMIT_CONFIG:
        if _absent(shown[name]):
            del shown[name]
    for name in ("Cmd", "Entrypoint"):
        if isinstance(shown[name], str):
            shown[name] = [shown[name]]
    if shown["Labels"] is None:
        shown["Labels"] = {}
    return shown


def host_config(value: HostConfig, name: str = "") -> Json:
    """The `HostConfig` member. `name`: the container's."""
    shown: Json = msgspec.to_builtins(value, order="deterministic")
    if value.links:  # in dockerd's form, `split_link` reads both; in networks with names they are the endpoint's
        legacy = value.network_mode in ("", "default", "bridge")
        shown["Links"] = None if not legacy else [f"/{other}:/{name}/{alias}" for other, alias in map(split_link, value.links)]
    for member in _OMIT_HOST:
        if shown[member] is not False and _absent(shown[member]):
            del shown[member]
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
    """The `State` member; `Health` is in it only for a container that has a health check."""
    status = value.status
    shown: Json = {
        "Status": status,
        "Running": value.running,
        "Paused": status == "paused",
        "Restarting": status == "restarting",
        "OOMKilled": value.oom_killed,
        "Dead": status == "dead",
        "Pid": value.pid if value.alive else 0,
        "ExitCode": value.exit_code,
        "Error": value.error,
        "StartedAt": rfc3339(value.started_at),
        "FinishedAt": rfc3339(value.finished_at),
    }
    if value.health is not None:
        shown["Health"] = {
            "Status": value.health.status,
            "FailingStreak": value.health.failing_streak,
            "Log": [
                {"Start": rfc3339(result.start), "End": rfc3339(result.end), "ExitCode": result.exit_code, "Output": result.output}
                for result in value.health.log
            ],
        }
    return shown


def status_text(value: State, now: float | None = None) -> str:
    """What `docker ps` shows under STATUS. `now`: seconds since the epoch, the clock's when None."""
    now = time.time() if now is None else now
    status = value.status
    if status == "paused":
        return f"Up {duration(now - value.started_at / 1e9)} (Paused)"
    if status == "restarting":
        return f"Restarting ({value.exit_code}) {duration(now - value.finished_at / 1e9)} ago"
    if status == "running":
        return f"Up {duration(now - value.started_at / 1e9)}{described(value.health)}"
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
            **({"Name": point.name} if point.name else {}),
            "Source": point.source,
            "Destination": point.destination,
            **({"Driver": point.driver} if point.driver else {}),
            "Mode": point.mode,
            "RW": point.rw,
            "Propagation": point.propagation,
        }
        for point in points
    ]


def _endpoint(record: ContainerRecord, attachment: Attachment, version: Version, *, brief: bool) -> Json:
    """One member of `Networks`. `brief`: as a list has it, without what only the container's own inspection tells."""
    given, live = attachment.settings, attachment.endpoint
    names = None if brief else _dns_names(record, attachment)
    aliases = None if brief else given.aliases
    if names and version < (1, 45):  # clients of that time looked for the container's id among its aliases
        aliases = [*(given.aliases or ()), *(name for name in names if name != record.name and name not in (given.aliases or ()))]
    ipam = given.ipam_config
    shown: Json = {
        "IPAMConfig": {key: value for key, value in msgspec.to_builtins(ipam).items() if value} if ipam else None,
        "Links": None if brief else given.links,
        "Aliases": aliases,
        "MacAddress": live.mac if live else given.mac_address,
        "DriverOpts": None if brief else given.driver_opts,
    }
    if version >= (1, 48):
        shown["GwPriority"] = live.gw_priority if live else given.gw_priority
    shown |= {
        "NetworkID": attachment.network_id,
        "EndpointID": live.id if live else "",
        "Gateway": live.ipv4_gateway if live else "",
        "IPAddress": live.ipv4 if live else "",
        "IPPrefixLen": live.ipv4_prefix if live else 0,
        "IPv6Gateway": live.ipv6_gateway if live else "",
        "GlobalIPv6Address": live.ipv6 if live else "",
        "GlobalIPv6PrefixLen": live.ipv6_prefix if live else 0,
    }
    if version >= (1, 44):
        shown["DNSNames"] = names
    return shown


def _dns_names(record: ContainerRecord, attachment: Attachment) -> list[str] | None:
    """What others find the container by; None where there are no names, and before the first start."""
    if attachment.endpoint is not None and attachment.endpoint.names:
        return attachment.endpoint.names
    if not attachment.has_names or not record.state.started_at:
        return None
    hostname = record.config.hostname
    return list(dict.fromkeys([record.name, *(attachment.settings.aliases or ()), record.id[:12], *([hostname] if hostname else ())]))


def networks(
    record: ContainerRecord, version: Version, sandbox: Sandbox | None = None, known: Known = _NONE, *, brief: bool = False
) -> Json:
    """Network name -> endpoint; a container has at least the network of its mode, unless it joins another's."""
    found = attached.attachments(record, sandbox, known)
    return {one.name: _endpoint(record, one, version, brief=brief) for one in found}


def port_map(record: ContainerRecord, sandbox: Sandbox | None) -> Json:
    """`NetworkSettings.Ports`: `80/tcp` -> where the host leads to it, null for one that is only exposed."""
    shown: dict[str, list[Json] | None] = {}
    for port in attached.ports(record, sandbox):
        bindings = shown.setdefault(f"{port.private}/{port.protocol}", [] if port.public else None)
        if bindings is not None:
            bindings.append({"HostIp": port.host_ip, "HostPort": str(port.public)})
    return dict(sorted(shown.items()))


def port_list(record: ContainerRecord, sandbox: Sandbox | None) -> list[Json]:
    """`Ports` of a summary: one member for each way in."""
    return [
        {
            **({"IP": port.host_ip} if port.host_ip else {}),
            "PrivatePort": port.private,
            **({"PublicPort": port.public} if port.public else {}),
            "Type": port.protocol,
        }
        for port in attached.ports(record, sandbox)
    ]


_LEGACY = (
    "EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress", "IPPrefixLen", "IPv6Gateway", "MacAddress",
)  # fmt: skip


def _network_settings(record: ContainerRecord, version: Version, sandbox: Sandbox | None, known: Known) -> Json:
    """The `NetworkSettings` member. `SandboxKey` is a path that `nsenter --net=` takes, as Docker's is."""
    found = networks(record, version, sandbox, known)
    running = record.state.running and not record.host_config.network_mode.startswith("container:")
    shown: Json = {
        "Bridge": "",
        "SandboxID": _sandbox_id(record) if running else "",
        "SandboxKey": f"/proc/{record.state.pid}/ns/net" if running and record.state.pid else "",
        "Ports": port_map(record, sandbox),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
    }
    if version < (1, 52):  # the address in the default bridge, from before there were others
        default = found.get("bridge") or {}
        shown |= {name: default.get(name, 0 if name.endswith("Len") else "") for name in _LEGACY}
    shown["Networks"] = found
    return shown


def _sandbox_id(record: ContainerRecord) -> str:
    """64 hexadecimal digits that are others for each start."""
    return hashlib.sha256(f"{record.id}{record.state.started_at}".encode()).hexdigest()


def inspect(
    record: ContainerRecord,
    version: Version,
    *,
    paths: Paths,
    points: Iterable[MountPoint],
    exec_ids: list[str] | None,
    size: tuple[int, int] | None,
    sandbox: Sandbox | None = None,
    known: Known = _NONE,
) -> Json:
    """`GET /containers/{id}/json`. `size`: (bytes written, bytes of everything) when it was asked for; `sandbox`: what it has of the
    network while it runs; `known`: the networks there are."""
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
        "HostConfig": host_config(record.host_config, record.name),
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
    shown["NetworkSettings"] = _network_settings(record, version, sandbox, known)
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
    sandbox: Sandbox | None = None,
    known: Known = _NONE,
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
        "Ports": port_list(record, sandbox),
        "Labels": record.config.labels or {},
        "State": record.state.status,
        "Status": status_text(record.state, now),
        "HostConfig": {"NetworkMode": record.host_config.network_mode},
        "NetworkSettings": {"Networks": networks(record, version, sandbox, known, brief=True)},
        "Mounts": mounts(points),
    }
    if version >= (1, 46) and record.host_config.annotations:
        shown["HostConfig"]["Annotations"] = record.host_config.annotations
    if size is not None:
        if size[0]:
            shown["SizeRw"] = size[0]
        shown["SizeRootFs"] = size[1]
    return shown
