"""Is this create request one that can be carried out? Merges it with the image's configuration and checks every field.

Pure. Raises InvalidParameter with Docker's words for bad values and NotImplementedYet for what this version does not have; nothing is
ignored in silence: what is harmless to leave out comes back as a warning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import msgspec

from engine.config import Settings
from engine.errors import InvalidParameter, NotImplementedYet
from engine.linux.signals import signal_number
from engine.service import networkmode
from engine.service.specgen import merge_env
from engine.spec import health, restart
from engine.spec.docker.containers import Config, CreateRequest, HostConfig, LogConfig, NetworkingConfig
from engine.spec.units import decimal_bytes

NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")  # Docker's names.RestrictedNameChars
_MIN_MEMORY = 6 * 1024 * 1024  # Docker's linuxMinMemory
_LABEL_OPTIONS = ("label", "apparmor", "systempaths")
_SYSCTL_PREFIXES = ("fs.mqueue.", "net.")
_SYSCTLS = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni kernel.shm_rmid_forced".split()
)
ULIMITS = frozenset("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split())

# Fields that only mean something once a later part exists; any value but the empty one is refused by flag name.
_LATER: Mapping[str, str] = {
    "storage_opt": "--storage-opt",
    "cpu_realtime_period": "--cpu-rt-period",
    "cpu_realtime_runtime": "--cpu-rt-runtime",
    "device_requests": "--gpus",
    "init": "--init",
    "oom_kill_disable": "--oom-kill-disable",
}


def merge(config: CreateRequest, image: Config) -> Config:
    """The container's own configuration: the request over the image's, by Docker's rules."""
    entrypoint, cmd = _words(config.entrypoint), _words(config.cmd)
    if not entrypoint:
        cmd = cmd or _words(image.cmd)
        if entrypoint is None:
            entrypoint = _words(image.entrypoint)
    if entrypoint == [""]:
        entrypoint = None  # `--entrypoint ""` takes the image's away
    if not entrypoint and not cmd:
        raise InvalidParameter("no command specified")
    return Config(
        hostname=config.hostname,
        domainname=config.domainname,
        user=config.user or image.user,
        attach_stdin=config.attach_stdin,
        attach_stdout=config.attach_stdout,
        attach_stderr=config.attach_stderr,
        exposed_ports={**(image.exposed_ports or {}), **(config.exposed_ports or {})} or None,
        tty=config.tty,
        open_stdin=config.open_stdin,
        stdin_once=config.stdin_once,
        env=merge_env(image.env or (), [entry for entry in config.env or () if "=" in entry]),
        cmd=cmd,
        healthcheck=health.merge(config.healthcheck, image.healthcheck),
        image=config.image,
        volumes={**(image.volumes or {}), **(config.volumes or {})} or None,
        working_dir=config.working_dir or image.working_dir,
        entrypoint=entrypoint,
        network_disabled=config.network_disabled,
        mac_address=config.mac_address,
        on_build=None,
        labels={**(image.labels or {}), **(config.labels or {})},
        stop_signal=config.stop_signal or image.stop_signal,
        stop_timeout=config.stop_timeout,
        shell=config.shell or image.shell,
    )


def _words(value: list[str] | str | None) -> list[str] | None:
    return [value] if isinstance(value, str) else value


def check_name(name: str) -> str:
    """A container name without its leading slash. Raises InvalidParameter in Docker's words."""
    if not NAME.fullmatch(name):
        raise InvalidParameter(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return name.removeprefix("/")


def check(request: CreateRequest, hc: HostConfig, image: Config, settings: Settings) -> tuple[HostConfig, NetworkingConfig, list[str]]:
    """Check a request against what this host and version can do; the host's and the networks' configuration with defaults filled in, and
    warnings."""
    warnings: list[str] = []
    for field, flag in _LATER.items():
        if getattr(hc, field):
            raise NotImplementedYet(flag)
    _strings(request)
    _modes(hc)
    network, networking = networkmode.choose(hc, request, settings)
    if network == "host" and (hc.port_bindings or hc.publish_all_ports):
        warnings.append("Published ports are discarded when using host network mode")
    _health_and_restart(request, hc, image, warnings)
    resources(hc)
    _sysctls(hc.sysctls or {}, network)
    _security(hc.security_opt or [])
    _ulimits(hc)
    log_config = log_settings(hc.log_config, settings)
    filled = msgspec.structs.replace(
        hc,
        network_mode=network,
        log_config=log_config,
        ipc_mode=hc.ipc_mode or "private",
        cgroup_parent=hc.cgroup_parent or settings.cgroup_parent,
        shm_size=hc.shm_size or int(settings.default_shm_size),
        runtime=hc.runtime or "knarr",
        cgroupns_mode=hc.cgroupns_mode or settings.default_cgroupns_mode,
    )
    return filled, networking, warnings


def _strings(request: CreateRequest) -> None:
    for entry in request.env or ():
        if entry.startswith("=") or "\0" in entry:
            raise InvalidParameter(f"invalid environment variable: {entry!r}")
    for word in [*(_words(request.cmd) or ()), *(_words(request.entrypoint) or ())]:
        if "\0" in word:
            raise InvalidParameter(f"invalid argument: {word!r} contains a NUL byte")
    for name, value in (("hostname", request.hostname), ("domainname", request.domainname)):
        if len(value) > 64 or not value.isprintable() or "/" in value or " " in value:  # it is a word in /etc/hosts, also in others'
            raise InvalidParameter(f"invalid {name}: {value!r} (at most 64 characters)")
    if request.stop_signal:
        signal_number(request.stop_signal)
    if request.working_dir and not request.working_dir.startswith("/"):
        raise InvalidParameter(f"the working directory '{request.working_dir}' is invalid, it needs to be an absolute path")


def _modes(hc: HostConfig) -> None:
    if hc.runtime not in ("", "knarr", "runc"):
        raise InvalidParameter(f"unknown or invalid runtime name: {hc.runtime}")
    if hc.isolation not in ("", "default"):
        raise InvalidParameter(f"invalid isolation mode: {hc.isolation}")
    if hc.userns_mode not in ("", "host"):
        raise InvalidParameter(f"invalid USER mode: {hc.userns_mode}")
    if hc.uts_mode not in ("", "host"):
        raise InvalidParameter(f"invalid UTS mode: {hc.uts_mode}")
    if hc.pid_mode not in ("", "host") and not re.fullmatch(r"container:.+", hc.pid_mode):
        raise InvalidParameter(f"invalid PID mode: {hc.pid_mode}")
    if hc.ipc_mode not in ("", "private", "none", "host", "shareable") and not re.fullmatch(r"container:.+", hc.ipc_mode):
        raise InvalidParameter(f"invalid IPC mode: {hc.ipc_mode}")
    if hc.cgroupns_mode not in ("", "private", "host"):
        raise InvalidParameter(f"invalid CGROUP mode: {hc.cgroupns_mode}")
    if hc.cgroup:
        raise NotImplementedYet(f"HostConfig.Cgroup {hc.cgroup}")
    if not -1000 <= hc.oom_score_adj <= 1000:
        raise InvalidParameter(f"invalid value {hc.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if hc.cgroup_parent and (".." in hc.cgroup_parent.split("/") or "\0" in hc.cgroup_parent):
        raise InvalidParameter(f"invalid cgroup parent: {hc.cgroup_parent!r}")


def _health_and_restart(request: CreateRequest, hc: HostConfig, image: Config, warnings: list[str]) -> None:
    restart.validate(hc.restart_policy)
    if hc.auto_remove and not restart.is_none(hc.restart_policy):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    action = health.action(hc.annotations or {}, {**(image.labels or {}), **(request.labels or {})})
    if request.healthcheck is not None:
        health.validate(request.healthcheck)
        warnings += health.warnings(health.merge(request.healthcheck, image.healthcheck))
    if action != "none" and request.healthcheck is None and image.healthcheck is None:
        warnings.append(f"{health.ON_FAILURE} is {action}, but there is no health check that could fail")


def resources(hc: HostConfig) -> None:
    """Limits that make no sense anywhere. Raises InvalidParameter."""
    if hc.memory and hc.memory < _MIN_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if hc.memory_swap > 0 and not hc.memory:
        raise InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    if hc.memory > 0 and 0 < hc.memory_swap < hc.memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if hc.memory_swappiness is not None and not -1 <= hc.memory_swappiness <= 100:
        raise InvalidParameter(f"Invalid value: {hc.memory_swappiness}, valid memory swappiness range is 0-100")
    if hc.memory_reservation and hc.memory and hc.memory_reservation > hc.memory:
        raise InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    if hc.memory < 0 or hc.memory_reservation < 0 or hc.memory_swap < -1:
        raise InvalidParameter("memory limits must not be negative")
    if hc.nano_cpus and (hc.cpu_quota or hc.cpu_period):
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period or CPU Quota cannot both be set")
    cpus = os.cpu_count() or 1
    if hc.nano_cpus > cpus * 1_000_000_000:
        raise InvalidParameter(f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")
    if hc.nano_cpus < 0:
        raise InvalidParameter(f"NanoCPUs cannot be negative: {hc.nano_cpus}")
    if hc.cpu_period and not 1000 <= hc.cpu_period <= 1_000_000:
        raise InvalidParameter("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < hc.cpu_quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if hc.cpu_shares < 0:
        raise InvalidParameter(f"invalid CPU shares ({hc.cpu_shares}): value must be a positive integer")
    if hc.blkio_weight and not 10 <= hc.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    if hc.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    for name, value in (("cpuset cpus", hc.cpuset_cpus), ("cpuset mems", hc.cpuset_mems)):
        if value and not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value):
            raise InvalidParameter(f"Invalid value {value} for {name}")
    if hc.cpu_count or hc.cpu_percent or hc.io_maximum_iops or hc.io_maximum_bandwidth:
        raise InvalidParameter("--cpu-count, --cpu-percent, --io-maxiops and --io-maxbandwidth exist on Windows only")


def _sysctls(sysctls: dict[str, str], network: str) -> None:
    for name in sysctls:
        if "/" in name or ".." in name:
            raise InvalidParameter(f"invalid sysctl name '{name}'")
        if name.startswith("net.") and network == "host":
            raise InvalidParameter(f"sysctl '{name}' is not allowed with host network mode")
        if name not in _SYSCTLS and not name.startswith(_SYSCTL_PREFIXES):
            raise InvalidParameter(f"sysctl '{name}' is not whitelisted: only namespaced kernel parameters can be set for a container")


def _security(options: list[str]) -> None:
    for option in options:
        if option in ("no-new-privileges", "disable"):
            continue
        key, separator, value = option.replace(":", "=", 1).partition("=")
        if not separator:
            raise InvalidParameter(f"invalid --security-opt 1: {option!r}")
        if key == "apparmor" and value not in ("unconfined", ""):
            raise NotImplementedYet(f"--security-opt {option}")
        if key == "label" and value != "disable":
            raise NotImplementedYet(f"--security-opt {option}")
        if key == "no-new-privileges" and value.lower() not in ("true", "false", "1", "0", "t", "f"):
            raise InvalidParameter(f"invalid --security-opt 2: {option!r}")
        if key not in ("seccomp", "no-new-privileges", *_LABEL_OPTIONS):
            raise InvalidParameter(f"invalid --security-opt 2: {option!r}")


def _ulimits(hc: HostConfig) -> None:
    for limit in hc.ulimits or ():
        if limit.name not in ULIMITS:
            raise InvalidParameter(f"invalid ulimit type: {limit.name}")
        if limit.hard != -1 and (limit.soft > limit.hard or limit.soft == -1):
            raise InvalidParameter(f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}")


def log_settings(asked: LogConfig | None, settings: Settings) -> LogConfig:
    """The logging driver with its options, the daemon's filled in. Raises InvalidParameter, NotImplementedYet."""
    driver = (asked.type if asked else "") or settings.log_driver
    options = dict((asked.config if asked else None) or {})
    if driver not in ("json-file", "none"):
        raise NotImplementedYet(f"--log-driver {driver}", hint="this version has json-file and none")
    if driver == settings.log_driver:
        options = {**settings.log_opts, **options}
    for key, value in options.items():
        if driver == "none" or key not in _LOG_OPTIONS:
            if key in _LOG_OPTIONS_LATER:
                raise NotImplementedYet(f"--log-opt {key}")
            raise InvalidParameter(f"unknown log opt '{key}' for {driver} log driver")
        _check_log_option(key, value)
    return LogConfig(type=driver, config=options)


_LOG_OPTIONS = frozenset(["max-size", "max-file", "labels", "env", "tag", "mode"])
_LOG_OPTIONS_LATER = frozenset(["compress", "labels-regex", "env-regex", "max-buffer-size"])


def _check_log_option(key: str, value: str) -> None:
    if key == "max-size" and value != "-1" and decimal_bytes(value) <= 0:
        raise InvalidParameter(f"invalid value for max-size: {value}")
    if key == "max-file" and (not value.isdigit() or int(value) < 1):
        raise InvalidParameter("max-file cannot be less than 1")
    if key == "mode" and value != "blocking":
        raise NotImplementedYet(f"--log-opt mode={value}")
