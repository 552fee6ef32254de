"""From the flags of `run` and `create` to the body of POST /containers/create (Engine API 1.51), as Docker's client makes it.

Zero values are left out: the daemon's defaults are the same. Whatever the daemon cannot do it refuses itself. Less common flags are
handled in modules that are imported when they are used: ports, mounts, networks, devices.
"""

from posix import getcwd

from cli.client import Failure

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FLAGS = {
    "add-host": "list:host", "annotation": "map", "attach": "list:stream", "blkio-weight": "uint16", "blkio-weight-device": "list:weight",
    "cap-add": "list", "cap-drop": "list", "cgroup-parent": "string", "cgroupns": "string", "cidfile": "string", "cpu-count": "int64",
    "cpu-percent": "int64", "cpu-period": "int64", "cpu-quota": "int64", "cpu-rt-period": "int64", "cpu-rt-runtime": "int64",
    "cpu-shares": "int64", "cpus": "decimal", "cpuset-cpus": "string", "cpuset-mems": "string", "device": "list",
    "device-cgroup-rule": "list:rule", "device-read-bps": "list:bps", "device-read-iops": "list:iops", "device-write-bps": "list:bps",
    "device-write-iops": "list:iops", "disable-content-trust": "bool", "dns": "list:ip", "dns-option": "list", "dns-search": "list:search",
    "domainname": "string", "entrypoint": "string", "env": "list:env", "env-file": "list", "expose": "list", "gpus": "gpu-request",
    "group-add": "list", "health-cmd": "string", "health-interval": "duration", "health-on-failure": "string", "health-retries": "int",
    "health-start-interval": "duration", "health-start-period": "duration", "health-timeout": "duration", "hostname": "string",
    "init": "bool", "interactive": "bool", "io-maxbandwidth": "bytes", "io-maxiops": "uint64", "ip": "string", "ip6": "string",
    "ipc": "string", "isolation": "string", "kernel-memory": "bytes", "label": "list:label", "label-file": "list", "link": "list:link",
    "link-local-ip": "list", "log-driver": "string", "log-opt": "list", "mac-address": "string", "memory": "bytes",
    "memory-reservation": "bytes", "memory-swap": "bytes:swap", "memory-swappiness": "int64", "mount": "mount", "name": "string",
    "network": "network", "network-alias": "list", "no-healthcheck": "bool", "oom-kill-disable": "bool", "oom-score-adj": "int",
    "pid": "string", "pids-limit": "int64", "platform": "string", "privileged": "bool", "publish": "list", "publish-all": "bool",
    "pull": "string", "quiet": "bool", "read-only": "bool", "restart": "string", "rm": "bool", "runtime": "string", "security-opt": "list",
    "shm-size": "bytes", "stop-signal": "string", "stop-timeout": "int", "storage-opt": "list", "sysctl": "map:sysctl", "tmpfs": "list",
    "tty": "bool", "ulimit": "ulimit", "use-api-socket": "bool", "user": "string", "userns": "string", "uts": "string", "volume": "list",
    "volume-driver": "string", "volumes-from": "list", "workdir": "string",
}
SHORTS = {
    "a": "attach", "c": "cpu-shares", "e": "env", "h": "hostname", "i": "interactive", "l": "label", "m": "memory", "P": "publish-all",
    "p": "publish", "q": "quiet", "t": "tty", "u": "user", "v": "volume", "w": "workdir",
}
HIDDEN = {"net": "network", "net-alias": "network-alias", "dns-opt": "dns-option"}

# flag → field of HostConfig, where the value goes over as it is
_HOST = {
    "blkio-weight": "BlkioWeight", "blkio-weight-device": "BlkioWeightDevice", "cgroup-parent": "CgroupParent", "cgroupns": "CgroupnsMode",
    "cidfile": "ContainerIDFile", "cpu-period": "CpuPeriod", "cpu-quota": "CpuQuota", "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime", "cpu-shares": "CpuShares", "cpus": "NanoCpus", "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems", "device-cgroup-rule": "DeviceCgroupRules", "device-read-bps": "BlkioDeviceReadBps",
    "device-read-iops": "BlkioDeviceReadIOps", "device-write-bps": "BlkioDeviceWriteBps", "device-write-iops": "BlkioDeviceWriteIOps",
    "dns": "Dns", "dns-option": "DnsOptions", "dns-search": "DnsSearch", "add-host": "ExtraHosts", "group-add": "GroupAdd", "init": "Init",
    "ipc": "IpcMode", "isolation": "Isolation", "link": "Links", "memory": "Memory", "memory-reservation": "MemoryReservation",
    "memory-swap": "MemorySwap", "memory-swappiness": "MemorySwappiness", "mount": "Mounts", "oom-kill-disable": "OomKillDisable",
    "oom-score-adj": "OomScoreAdj", "pid": "PidMode", "pids-limit": "PidsLimit", "privileged": "Privileged",
    "publish-all": "PublishAllPorts", "read-only": "ReadonlyRootfs", "rm": "AutoRemove", "runtime": "Runtime", "shm-size": "ShmSize",
    "userns": "UsernsMode", "uts": "UTSMode", "volume-driver": "VolumeDriver", "volumes-from": "VolumesFrom",
}
# flag → field of the portable Config
_CONFIG = {
    "domainname": "Domainname", "hostname": "Hostname", "interactive": "OpenStdin", "stop-signal": "StopSignal",
    "stop-timeout": "StopTimeout", "tty": "Tty", "user": "User", "workdir": "WorkingDir",
}


def body(given: "dict[str, Any]", arguments: "list[str]") -> "dict[str, Any]":
    """The request for `IMAGE [COMMAND …]` with these flags. Raises Failure."""
    config: dict[str, Any] = {"Image": arguments[0]}
    host: dict[str, Any] = {}
    if len(arguments) > 1:
        config["Cmd"] = arguments[1:]
    streams = given.get("attach") or ["stdout", "stderr"]
    for name in ("stdin", "stdout", "stderr"):
        if name in streams or (name == "stdin" and given.get("interactive")):
            config["Attach" + name.capitalize()] = True
    for flag, value in given.items():
        if flag in _HOST:
            host[_HOST[flag]] = value
        elif flag in _CONFIG:
            config[_CONFIG[flag]] = value
    if config.get("OpenStdin") and config.get("AttachStdin"):
        config["StdinOnce"] = True
    if "entrypoint" in given:
        config["Entrypoint"] = [given["entrypoint"]]
    _environment(given, config)
    _checks(given, host)
    _less_common(given, config, host)
    config["HostConfig"] = host
    config["NetworkingConfig"] = _networking(given, host)
    return config


def _environment(given: "dict[str, Any]", config: "dict[str, Any]") -> None:
    if "env" in given or "env-file" in given:
        # a name given twice keeps its first place and gets its last value
        lines = list({line.partition("=")[0]: line for line in given.get("env", ())}.values())
        if "env-file" in given:
            from cli.values import environment

            lines = [line for path in given["env-file"] for line in file_lines(path, environment)] + lines
        config["Env"] = lines
    if "label" in given or "label-file" in given:
        lines = [line for path in given.get("label-file", ()) for line in file_lines(path, None)] + given.get("label", [])
        config["Labels"] = {name: value for name, _, value in (line.partition("=") for line in lines)}


def file_lines(path: str, empty: "Callable[[str], str] | None") -> "list[str]":
    """`NAME=VALUE` lines of an env or label file; `empty` turns a line without `=` into one (or leaves it out when it has no value)."""
    try:
        with open(path, encoding="utf-8-sig", errors="strict") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise Failure(f"open {path}: {(error.strerror or '').lower()}", 125) from None
    except UnicodeDecodeError:
        raise Failure(f"{path}: invalid utf8 bytes", 125) from None
    result = []
    for line in lines:
        line = line.rstrip("\r").lstrip()
        if not line or line[0] == "#":
            continue
        name, equals, _ = line.partition("=")
        if not name:
            raise Failure(f"invalid env file ({path}): no variable name on line '{line}'", 125)
        if any(char.isspace() for char in name):
            raise Failure(f"invalid env file ({path}): variable '{name}' contains whitespaces", 125)
        if not equals and empty is not None:
            line = empty(name)
            if "=" not in line:
                continue
        result.append(line)
    return result


def _checks(given: "dict[str, Any]", host: "dict[str, Any]") -> None:
    swappiness = given.get("memory-swappiness", -1)
    if swappiness != -1 and not 0 <= swappiness <= 100:
        raise Failure(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100", 125)
    if given.get("pull", "missing") not in ("always", "missing", "never", ""):
        raise Failure(f"invalid pull option: '{given['pull']}': must be one of \"always\", \"missing\" or \"never\"", 125)
    for flag, what, valid in (
        ("pid", "PID", lambda mode: mode in ("", "host") or (mode.startswith("container:") and len(mode) > 10)),
        ("uts", "UTS", lambda mode: mode in ("", "host")),
        ("userns", "USER", lambda mode: mode in ("", "host")),
        ("cgroupns", "CGROUP", lambda mode: mode in ("", "host", "private")),
    ):
        if flag in given and not valid(given[flag]):
            raise Failure(f"--{flag}: invalid {what} mode", 125)
    if "restart" in given:
        host["RestartPolicy"] = restart_policy(given["restart"])
        if given.get("rm") and host["RestartPolicy"]["Name"] not in ("", "no"):
            raise Failure("conflicting options: cannot specify both --restart and --rm", 125)


def restart_policy(text: str) -> "dict[str, Any]":
    """`no`, `always`, `unless-stopped`, `on-failure[:N]`; the daemon checks the name."""
    if not text:
        return {"Name": ""}
    name, colon, number = text.partition(":")
    if colon and not name:
        raise Failure("invalid restart policy format: no policy provided before colon", 125)
    policy: dict[str, Any] = {"Name": name}
    if number:
        if not number.lstrip("-").isdigit():
            raise Failure("invalid restart policy format: maximum retry count must be an integer", 125)
        policy["MaximumRetryCount"] = int(number)
    return policy


_WINDOWS = ("cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops")


def capabilities(names: "list[str]") -> "list[str]":
    """As the API has them: upper case, with `CAP_`, sorted; ALL as it is."""
    upper = {name.upper() for name in names}
    return sorted({name if name == "ALL" or name.startswith("CAP_") else "CAP_" + name for name in upper})


def _less_common(given: "dict[str, Any]", config: "dict[str, Any]", host: "dict[str, Any]") -> None:
    for flag, field in (("cap-add", "CapAdd"), ("cap-drop", "CapDrop")):
        if flag in given:
            host[field] = capabilities(given[flag])
    if "ulimit" in given:
        by_name = {limit["Name"]: limit for limit in given["ulimit"]}
        host["Ulimits"] = [by_name[name] for name in sorted(by_name)]
    for flag in _WINDOWS:
        if flag in given:
            raise Failure(f'"--{flag}" is only supported on a daemon running on windows, but this daemon is running on linux', 1)
    if given.get("disable-content-trust") is False:
        raise Failure("not implemented: --disable-content-trust=false (there is no content trust)", 1)
    if "kernel-memory" in given:
        raise Failure("not implemented: --kernel-memory (kernels no longer have this limit; use --memory)", 1)
    if "volume" in given:
        from cli.mounts import volumes

        volumes(given["volume"], config, host)
    if "tmpfs" in given:
        host["Tmpfs"] = {path: options for path, _, options in (text.partition(":") for text in given["tmpfs"])}
    if "publish" in given or "expose" in given:
        from cli.ports import ports

        ports(given, config, host)
    for flag, field in (("sysctl", "Sysctls"), ("annotation", "Annotations")):
        if flag in given:
            host[field] = dict(given[flag])
    if "log-driver" in given or "log-opt" in given:
        options = [text.partition("=") for text in given.get("log-opt", ())]
        if given.get("log-driver") == "none" and options:
            raise Failure("invalid logging opts for driver none", 125)
        host["LogConfig"] = {"Type": given.get("log-driver", ""), "Config": {name: value for name, _, value in options}}
    if "storage-opt" in given:
        host["StorageOpt"] = _pairs(given["storage-opt"], "storage option")
    if "security-opt" in given:
        from cli.devices import security

        security(given["security-opt"], host)
    if "device" in given or "gpus" in given:
        from cli.devices import devices

        devices(given, host)
    if "no-healthcheck" in given or any(flag.startswith("health-") for flag in given):
        _health(given, config, host)
    if "dns" in given:
        from cli.endpoints import warn_of_localhost

        warn_of_localhost(given["dns"])


def _pairs(texts: "list[str]", what: str) -> "dict[str, Any]":
    result = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failure(f"invalid {what}", 125)
        result[name] = value
    return result


def _health(given: "dict[str, Any]", config: "dict[str, Any]", host: "dict[str, Any]") -> None:
    settings = {flag: given[flag] for flag in given if flag.startswith("health-") and given[flag]}
    action = settings.pop("health-on-failure", "")
    if action not in ("", "none", "kill", "restart", "stop"):
        raise Failure(f"invalid value for --health-on-failure: '{action}'; use one of 'none', 'kill', 'restart' or 'stop'", 125)
    if action:  # the API has no member for it
        host.setdefault("Annotations", {})["io.knarr.health-on-failure"] = action
    if given.get("no-healthcheck"):
        if settings:
            raise Failure("--no-healthcheck conflicts with --health-* options", 125)
        config["Healthcheck"] = {"Test": ["NONE"]}
        return
    if not settings:
        return
    health: dict[str, Any] = {}
    if settings.get("health-cmd"):
        health["Test"] = ["CMD-SHELL", settings["health-cmd"]]
    for flag, field in (("health-interval", "Interval"), ("health-timeout", "Timeout"), ("health-retries", "Retries"),
                        ("health-start-period", "StartPeriod"), ("health-start-interval", "StartInterval")):
        if flag in settings:
            if settings[flag] < 0:
                raise Failure(f"--{flag} cannot be negative", 125)
            health[field] = settings[flag]
    config["Healthcheck"] = health


_SIMPLE_NETWORK = ("ip", "ip6", "link-local-ip", "network-alias", "link", "mac-address")


def _networking(given: "dict[str, Any]", host: "dict[str, Any]") -> "dict[str, Any]":
    networks = given.get("network", ())
    mode = networks[0]["Target"] if networks else "default"
    if not mode:
        raise Failure("no name set for network", 125)
    host["NetworkMode"] = mode
    if len(networks) < 2 and not any(flag in given for flag in _SIMPLE_NETWORK) and (not networks or networks[0].keys() == {"Target"}):
        return {"EndpointsConfig": {}}
    from cli.endpoints import endpoints

    return {"EndpointsConfig": endpoints(given, list(networks) or [{"Target": "default"}])}


def absolute(path: str) -> str:
    """A relative path made absolute, `.` and `..` taken out by name as Go's filepath.Abs does."""
    if path[:1] != "/":
        path = getcwd() + "/" + path
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)
