"""The daemon's settings: dockerd's names for flags and `daemon.json`, with Knarr's defaults.

Owns parsing and merging (flags over file over defaults); does nothing with the values. A key of dockerd's that this version does not
have is refused by name rather than ignored; a key that nobody knows is an error as in dockerd.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.errors import InvalidParameter, NotImplementedYet
from engine.spec import buildcache, networksettings
from engine.spec.networksettings import NetworkSettings
from engine.spec.units import memory_bytes, seconds

DEFAULT_DATA_ROOT = "/var/lib/knarr"
DEFAULT_EXEC_ROOT = "/run/knarr"
DEFAULT_SOCKET = "/run/knarr/knarr.sock"
DEFAULT_CONFIG_FILE = "/etc/knarr/daemon.json"

# Log rotation is on by default: 10 MB, 3 files. Docker's own default lets a log grow until the disk is full.
DEFAULT_LOG_MAX_SIZE = 10_000_000
DEFAULT_LOG_MAX_FILES = 3

DEFAULT_SHM_SIZE = 64 * 1024 * 1024  # Docker's --default-shm-size
DEFAULT_STOP_TIMEOUT = 10  # seconds, Docker's

DEFAULT_DOWNLOADS = 3  # layers of one pull at a time, dockerd's --max-concurrent-downloads
DEFAULT_UPLOADS = 5  # dockerd's --max-concurrent-uploads
DEFAULT_DOWNLOAD_ATTEMPTS = 5  # dockerd's --max-download-attempts

# dockerd's keys (dockerd reference, "daemon configuration file") that are known and not there yet.
_LATER = frozenset(
    "authorization-plugins bridge-accept-fwmark cdi-spec-dirs containerd containerd-namespace containerd-plugin-namespace "
    "default-runtime experimental features init init-path metrics-addr node-generic-resources oom-score-adjust runtimes "
    "selinux-enabled shutdown-timeout swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify userland-proxy-path "
    "userns-remap".split()
)


class Settings(NetworkSettings, rename="kebab", kw_only=True):
    """Everything the daemon can be told; what concerns networks is inherited. Sizes in bytes, times in seconds; `idle_exit` 0 means never.

    `limit_rate` is bytes per second for all downloads together, 0 for no limit. `proxies` is dockerd's member of daemon.json; after
    `settings` its values are in `http_proxy`, `https_proxy` and `no_proxy`. `gc` likewise may hold `high-watermark`, `low-watermark`
    (percent of the file system of the data root), `keep` (tags of each repository), `unused-for` (a duration) and `pins` (patterns of
    names); 0 turns a rule off. `builder` is dockerd's: its member `gc` is about the build cache, see `engine.spec.buildcache.rules`.
    """

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
    registry: dict[str, Any] = {}  # a registry served by this daemon, see engine/registry/server/settings.py
    registry_mirrors: list[str] = []
    insecure_registries: list[str] = []
    registry_config_dirs: list[str] = []
    max_concurrent_downloads: int = DEFAULT_DOWNLOADS
    max_concurrent_uploads: int = DEFAULT_UPLOADS
    max_download_attempts: int = DEFAULT_DOWNLOAD_ATTEMPTS
    limit_rate: int | str = 0
    proxies: dict[str, str] = {}
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    gc: dict[str, Any] = {}
    gc_high_watermark: int = 0
    gc_low_watermark: int = 0
    gc_keep: int = 0
    gc_unused_for: float | str = 0.0
    gc_pins: list[str] = []
    builder: dict[str, Any] = {}

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
    _registries(result)
    _collection(result)
    _builder(result)
    networksettings.check(result)
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


def _registries(result: Settings) -> None:
    """Check what concerns registries, and bring it into one form. Raises InvalidParameter in dockerd's words."""
    for name, least in (("max_concurrent_downloads", 0), ("max_concurrent_uploads", 0), ("max_download_attempts", 1)):
        if (value := getattr(result, name)) < least:
            raise InvalidParameter(f"invalid {name.replace('_', ' ')}: {value}")
    for mirror in result.registry_mirrors:
        _check_mirror(mirror)
    for registry in result.insecure_registries:
        if "://" in registry:
            raise InvalidParameter(f"insecure registry {registry} should not contain '://'")
    if isinstance(result.limit_rate, str):
        result.limit_rate = memory_bytes(result.limit_rate)
    if result.limit_rate < 0:
        raise InvalidParameter(f"invalid limit-rate: {result.limit_rate}")
    for key, value in result.proxies.items():
        if key not in ("http-proxy", "https-proxy", "no-proxy"):
            raise InvalidParameter(f"the following directives don't match any configuration option: proxies.{key}")
        name = key.replace("-", "_")
        if getattr(result, name) not in ("", value):
            raise InvalidParameter(f"the following directives are specified both as a flag and in the configuration file: {key}")
        setattr(result, name, value)


_GC = {"high-watermark": int, "low-watermark": int, "keep": int, "unused-for": str, "pins": list[str]}


def _collection(result: Settings) -> None:
    """Check what is said of garbage collection, and bring it into one form. Raises InvalidParameter."""
    for key, value in result.gc.items():
        if key not in _GC:
            raise InvalidParameter(f"the following directives don't match any configuration option: gc.{key}")
        name = "gc_" + key.replace("-", "_")
        if getattr(result, name):
            raise InvalidParameter(f"the following directives are specified both as a flag and in the configuration file: gc-{key}")
        try:
            setattr(result, name, msgspec.convert(value, _GC[key]))
        except msgspec.ValidationError as error:
            raise InvalidParameter(f"daemon settings: gc.{key}: {error}")
    if isinstance(result.gc_unused_for, str):
        result.gc_unused_for = seconds(result.gc_unused_for)
    for name in ("gc_high_watermark", "gc_low_watermark"):
        if not 0 <= getattr(result, name) <= 100:
            raise InvalidParameter(f"invalid {name.replace('_', '-')}: {getattr(result, name)}: want a percentage from 0 to 100")
    if result.gc_low_watermark > result.gc_high_watermark:
        raise InvalidParameter(
            f"invalid gc-low-watermark: {result.gc_low_watermark} is more than gc-high-watermark, {result.gc_high_watermark}"
        )
    if result.gc_keep < 0 or result.gc_unused_for < 0:
        raise InvalidParameter("invalid gc-keep or gc-unused-for: less than 0")


def _builder(result: Settings) -> None:
    """Check what is said of builds. Raises InvalidParameter, NotImplementedYet."""
    for key, value in result.builder.items():
        if key in ("entitlements", "history"):
            raise NotImplementedYet(f"builder.{key} in the configuration file", hint="remove the key, this version does not have it")
        if key != "gc":
            raise InvalidParameter(f"the following directives don't match any configuration option: builder.{key}")
        if not isinstance(value, dict):
            raise InvalidParameter("daemon settings: builder.gc: expected an object")
        buildcache.rules(value, 0)


def _check_mirror(mirror: str) -> None:
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidParameter(f'invalid mirror: "{mirror}" is not a valid URI', hint="write https://HOST or http://HOST")
    if parts.query or parts.fragment:
        raise InvalidParameter(f'invalid mirror: query or fragment at end of the URI "{mirror}"')
    if parts.username or parts.password:
        raise InvalidParameter(f'invalid mirror: username/password not allowed in URI "{parts.scheme}://xxxxx@{parts.hostname}"')
