"""The daemon's settings: dockerd's names for flags and `daemon.json`, with Knarr's defaults.

Owns parsing and merging (flags over file over defaults); does nothing with the values. A key of dockerd's that this version does not
have is refused by name rather than ignored; a key that nobody knows is an error as in dockerd.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from engine.errors import InvalidParameter, NotImplementedYet
from engine.spec.units import memory_bytes

DEFAULT_DATA_ROOT = "/var/lib/knarr"
DEFAULT_EXEC_ROOT = "/run/knarr"
DEFAULT_SOCKET = "/run/knarr/knarr.sock"
DEFAULT_CONFIG_FILE = "/etc/knarr/daemon.json"

# Log rotation is on by default: 10 MB, 3 files. Docker's own default lets a log grow until the disk is full.
DEFAULT_LOG_MAX_SIZE = 10_000_000
DEFAULT_LOG_MAX_FILES = 3

DEFAULT_SHM_SIZE = 64 * 1024 * 1024  # Docker's --default-shm-size
DEFAULT_STOP_TIMEOUT = 10  # seconds, Docker's

# dockerd's keys (dockerd reference, "daemon configuration file") that are known and not there yet.
_LATER = frozenset(
    "allow-direct-routing authorization-plugins bip bip6 bridge bridge-accept-fwmark builder cdi-spec-dirs containerd "
    "containerd-namespace containerd-plugin-namespace default-address-pools default-gateway default-gateway-v6 "
    "default-network-opts default-runtime dns dns-opts dns-search experimental features firewall-backend fixed-cidr fixed-cidr-v6 "
    "host-gateway-ip host-gateway-ips http-proxy https-proxy icc init init-path insecure-registries ip ip-forward "
    "ip-forward-no-drop ip-masq ip6tables iptables ipv6 live-restore max-concurrent-downloads max-concurrent-uploads "
    "max-download-attempts metrics-addr mtu no-proxy node-generic-resources oom-score-adjust proxies registry-mirrors runtimes "
    "selinux-enabled shutdown-timeout swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify userland-proxy "
    "userland-proxy-path userns-remap".split()
)


class Settings(msgspec.Struct, rename="kebab", kw_only=True):
    """Everything the daemon can be told. Sizes in bytes, times in seconds; `idle_exit` 0 means never."""

    hosts: list[str] = []
    data_root: str = DEFAULT_DATA_ROOT
    exec_root: str = DEFAULT_EXEC_ROOT
    pidfile: str = ""
    group: str = "docker"
    log_level: str = "info"
    debug: bool = False
    labels: list[str] = []
    log_driver: str = "json-file"
    log_opts: dict[str, str] = {}
    cgroup_parent: str = "knarr"
    default_shm_size: int | str = DEFAULT_SHM_SIZE
    default_ulimits: dict[str, dict[str, int | str]] = {}
    default_cgroupns_mode: str = ""
    seccomp_profile: str = ""
    no_new_privileges: bool = False
    exec_opts: list[str] = []
    storage_driver: str = ""
    storage_opts: list[str] = []
    idle_exit: float = 0.0
    monitors: int = 2  # forked monitors kept waiting

    def endpoints(self) -> list[str]:
        """Addresses to listen on; the default unix socket when none is given."""
        return self.hosts or [f"unix://{DEFAULT_SOCKET}"]


_KNOWN = {field.encode_name for field in msgspec.structs.fields(Settings)}


def load(path: str, *, required: bool) -> dict[str, Any]:
    """The members of a `daemon.json`; an absent file is empty unless `required`. Raises InvalidParameter, NotImplementedYet."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        if required:
            raise InvalidParameter(f"reading the configuration file {path}: no such file")
        return {}
    except OSError as error:
        raise InvalidParameter(f"reading the configuration file {path}: {os.strerror(error.errno or 0)}")
    try:
        members = msgspec.json.decode(raw, type=dict[str, Any]) if raw.strip() else {}
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"reading the configuration file {path}: {error}")
    for key in members:
        if key in _LATER:
            raise NotImplementedYet(f"{key} in {path}", hint="remove the key, this version does not have it")
        if key not in _KNOWN:
            raise InvalidParameter(f"the following directives don't match any configuration option: {key} (in {path})")
    return members


def settings(flags: dict[str, Any], members: dict[str, Any]) -> Settings:
    """Merge flags and file members (both with kebab-case keys). A key in both with different values is an error, as in dockerd."""
    for key in flags.keys() & members.keys():
        if flags[key] != members[key]:
            raise InvalidParameter(
                f"the following directives are specified both as a flag and in the configuration file: {key}: "
                f"(from flag: {flags[key]}, from file: {members[key]})"
            )
    try:
        result = msgspec.convert({**members, **flags}, Settings)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"daemon settings: {error}")
    if isinstance(result.default_shm_size, str):  # daemon.json may say "64m", as dockerd's
        result.default_shm_size = memory_bytes(result.default_shm_size)
    if result.log_driver not in ("json-file", "none"):
        raise NotImplementedYet(f"--log-driver {result.log_driver}")
    if result.storage_driver not in ("", "overlay2", "overlay", "overlayfs"):
        raise NotImplementedYet(f"--storage-driver {result.storage_driver}")
    for option in result.exec_opts:
        if option != "native.cgroupdriver=cgroupfs":
            raise NotImplementedYet(f"--exec-opt {option}")
    if result.storage_opts:
        raise NotImplementedYet(f"--storage-opt {result.storage_opts[0]}")
    return result
