"""`knarr daemon`: the composition root. Reads flags and daemon.json, opens the engine, serves the API until told to stop.

Flag names are dockerd's. One daemon per exec root, by a lock file. Containers are left alone when it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
from typing import Any

from engine import config
from engine.config import Settings
from engine.errors import InvalidParameter, KnarrError, NotImplementedYet

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR, "fatal": logging.CRITICAL}

# dockerd's flags, by the key of daemon.json that they set: (flag, key, kind, help)
_FLAGS: tuple[tuple[str, str, str, str], ...] = (
    (
        "-H --host",
        "hosts",
        "list",
        "Daemon socket to connect to: unix:///path, tcp://host:port, fd:// (default unix:///run/knarr/knarr.sock)",
    ),
    ("--data-root", "data-root", "text", "Root of persistent state (default /var/lib/knarr)"),
    ("--exec-root", "exec-root", "text", "Root of volatile state (default /run/knarr)"),
    ("-p --pidfile", "pidfile", "text", "File for the daemon's process id"),
    ("-G --group", "group", "text", "Group for the unix socket (default docker)"),
    ("-l --log-level", "log-level", "text", "debug, info, warn, error or fatal (default info)"),
    ("-D --debug", "debug", "flag", "Debug mode"),
    ("--label", "labels", "list", "key=value label of the daemon"),
    ("--log-driver", "log-driver", "text", "Default log driver: json-file or none"),
    ("--log-opt", "log-opts", "map", "Default log option: max-size=10m, max-file=3, ..."),
    ("--cgroup-parent", "cgroup-parent", "text", "Parent control group of containers (default knarr)"),
    ("--default-shm-size", "default-shm-size", "bytes", "Size of /dev/shm (default 64MiB)"),
    ("--default-ulimit", "default-ulimits", "ulimit", "Default ulimit: nofile=1024:4096"),
    ("--default-cgroupns-mode", "default-cgroupns-mode", "text", "private or host"),
    ("--seccomp-profile", "seccomp-profile", "text", "Seccomp profile: a file, or unconfined"),
    ("--no-new-privileges", "no-new-privileges", "flag", "Set no-new-privileges for every container"),
    ("--exec-opt", "exec-opts", "list", "native.cgroupdriver=cgroupfs"),
    ("-s --storage-driver", "storage-driver", "text", "overlay2"),
    ("--storage-opt", "storage-opts", "list", "Storage option"),
    ("--idle-exit", "idle-exit", "duration", "End after this long without a client and without a running container, e.g. 5m"),
    ("--registry-mirror", "registry-mirrors", "list", "Mirror of Docker Hub: https://HOST"),
    ("--insecure-registry", "insecure-registries", "list", "Registry without TLS or with an unknown certificate: HOST[:PORT] or a CIDR"),
    ("--registry-config-dir", "registry-config-dirs", "list", "Folder of HOST/hosts.toml (default /etc/{containerd,docker}/certs.d)"),
    ("--max-concurrent-downloads", "max-concurrent-downloads", "integer", "Layers downloaded at a time in each pull (default 3)"),
    ("--max-concurrent-uploads", "max-concurrent-uploads", "integer", "Layers uploaded at a time in each push (default 5)"),
    ("--max-download-attempts", "max-download-attempts", "integer", "Attempts for each download (default 5)"),
    ("--limit-rate", "limit-rate", "bytes", "Bytes per second for all downloads together: 500k, 2m (default no limit)"),
    ("--http-proxy", "http-proxy", "text", "Proxy for HTTP (default the environment's)"),
    ("--https-proxy", "https-proxy", "text", "Proxy for HTTPS (default the environment's)"),
    ("--no-proxy", "no-proxy", "text", "Hosts that are reached without a proxy, comma-separated"),
    ("--gc-high-watermark", "gc-high-watermark", "integer", "Remove images, least recently used first, when the disk is so full, percent"),
    ("--gc-low-watermark", "gc-low-watermark", "integer", "... until it is only so full, percent (default the high watermark)"),
    ("--gc-keep", "gc-keep", "integer", "Tags of each repository to keep, newest first; others are removed (default all)"),
    ("--gc-unused-for", "gc-unused-for", "text", "Remove images that were not used for so long: 30d"),
    ("--gc-pin", "gc-pins", "list", "Images never to be removed by these: docker.io/library/*"),
    ("--bip", "bip", "text", "Address of the predefined bridge: 192.168.5.1/24"),
    ("--bip6", "bip6", "text", "IPv6 address of the predefined bridge"),
    ("-b --bridge", "bridge", "text", "Bridge of the host's for the predefined network, none for no such network"),
    ("--default-address-pool", "default-address-pools", "pool", "Pool that subnets are chosen from: base=10.0.0.0/8,size=24"),
    ("--default-network-opt", "default-network-opts", "mapmap", "Option for new networks of a driver: bridge=KEY=VALUE"),
    ("--fixed-cidr", "fixed-cidr", "text", "Part of the predefined bridge's network that addresses are given from"),
    ("--fixed-cidr-v6", "fixed-cidr-v6", "text", "IPv6 subnet of the predefined bridge"),
    ("--default-gateway", "default-gateway", "text", "Default gateway of containers on the predefined bridge"),
    ("--default-gateway-v6", "default-gateway-v6", "text", "IPv6 default gateway of containers on the predefined bridge"),
    ("--icc", "icc", "flag", "Whether containers on the predefined bridge reach each other (default true)"),
    ("--ip", "ip", "text", "Host address for published ports of the predefined bridge (default 0.0.0.0)"),
    ("--ipv6", "ipv6", "flag", "IPv6 on the predefined bridge"),
    ("--ip-forward", "ip-forward", "flag", "Switch on forwarding when a network needs it (default true)"),
    ("--ip-forward-no-drop", "ip-forward-no-drop", "flag", "Forward packets of others too where forwarding was switched on by us"),
    ("--ip-masq", "ip-masq", "flag", "Masquerade packets of the predefined bridge (default true)"),
    ("--iptables", "iptables", "flag", "Whether firewall rules are made (default true)"),
    ("--ip6tables", "ip6tables", "flag", "Whether IPv6 firewall rules are made (default true)"),
    ("--firewall-backend", "firewall-backend", "text", "nftables"),
    ("--allow-direct-routing", "allow-direct-routing", "flag", "Let other hosts reach published ports at containers' addresses"),
    ("--mtu", "mtu", "integer", "MTU of the predefined bridge (default 1500)"),
    ("--dns", "dns", "list", "Name server for containers that name none"),
    ("--dns-opt", "dns-opts", "list", "Option of resolv.conf for containers that name none"),
    ("--dns-search", "dns-search", "list", "Search domain for containers that name none"),
    ("--host-gateway-ip", "host-gateway-ips", "list", "Address that host-gateway stands for in --add-host"),
    ("--userland-proxy", "userland-proxy", "flag", "Accepted: no proxy is ever started for a port"),
    ("--live-restore", "live-restore", "flag", "Accepted: containers always outlive the daemon"),
    ("--monitors", "monitors", "integer", "Forked monitors kept waiting for the next start (default 2)"),
)


def usage() -> str:
    """The help text."""
    lines = [
        "Usage:  knarr daemon [OPTIONS]",
        "",
        "Run the Knarr daemon. Flags have dockerd's names; daemon.json may hold the same settings.",
        "",
        "Options:",
    ]
    lines.append("      --config-file string".ljust(42) + "Daemon configuration file (default /etc/knarr/daemon.json)")
    for names, key, kind, text in _FLAGS:
        short, _, long = names.rpartition(" ")
        left = (f"  {short}, " if short else "      ") + long + ("" if kind == "flag" else f" {kind}")
        plural = "" if key == long[2:] else f" (daemon.json: {key})"
        lines.append((left + " ").ljust(42) + text + plural)
    lines += ["", "Examples:", "  knarr daemon", "  knarr daemon -H unix:///tmp/k.sock --data-root /tmp/k/data --exec-root /tmp/k/run"]
    return "\n".join(lines)


def parse(argv: list[str]) -> tuple[dict[str, Any], str | None]:
    """Flags as members of daemon.json, and the --config-file if one was given. Raises InvalidParameter, NotImplementedYet."""
    table = {name: (key, kind) for names, key, kind, _ in _FLAGS for name in names.split()}
    found: dict[str, Any] = {}
    config_file = None
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name == "--config-file":
            config_file = value if equals else _next(words, name)
            continue
        if name not in table and name[:2] in table and len(word) > 2 and not word.startswith("--"):
            name, value, equals = word[:2], word[2:].removeprefix("="), "="
        if name not in table:
            if name.startswith("--") and name[2:] in config._LATER:
                raise NotImplementedYet(name)
            raise InvalidParameter(f"unknown flag: {name}" if name.startswith("-") else f"unexpected argument: {name}")
        key, kind = table[name]
        if kind == "flag":
            found[key] = _truth(name, value) if equals else True
            continue
        _store(found, key, kind, value if equals else _next(words, name))
    return found, config_file


def _next(words: list[str], name: str) -> str:
    if not words:
        raise InvalidParameter(f"flag needs an argument: {name}")
    return words.pop(0)


def _truth(name: str, value: str) -> bool:
    from engine.spec.networkoptions import parse_bool

    try:
        return parse_bool(value)
    except InvalidParameter as error:
        raise InvalidParameter(f'invalid argument "{value}" for "{name}" flag: {error.message}')


def _store(found: dict[str, Any], key: str, kind: str, value: str) -> None:
    from engine.spec.units import memory_bytes

    if kind == "list":
        found.setdefault(key, []).append(value)
    elif kind == "map":
        name, equals, text = value.partition("=")
        if not equals:
            raise InvalidParameter(f"invalid value {value!r} for {key}: want KEY=VALUE")
        found.setdefault(key, {})[name] = text
    elif kind == "mapmap":
        driver, _, option = value.partition("=")
        name, equals, text = option.partition("=")
        if not (driver and name and equals):
            raise InvalidParameter(f'invalid value "{value}" for map option, should be root-key=key=value')
        found.setdefault(key, {}).setdefault(driver, {})[name] = text
    elif kind == "pool":
        from engine.spec.networksettings import parse_pool

        pool = parse_pool(value)
        found.setdefault(key, []).append({"base": pool.base, "size": pool.size})
    elif kind == "ulimit":
        name, _, limits = value.partition("=")
        soft, _, hard = limits.partition(":")
        if not soft.lstrip("-").isdigit() or not (hard or soft).lstrip("-").isdigit():
            raise InvalidParameter(f"invalid ulimit argument: {value}")
        found.setdefault(key, {})[name] = {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
    elif kind == "bytes":
        found[key] = memory_bytes(value)
    elif kind == "integer":
        if not value.isdigit():
            raise InvalidParameter(f"invalid argument {value!r} for {key}")
        found[key] = int(value)
    elif kind == "duration":
        found[key] = duration(value)
    else:
        found[key] = value


def duration(text: str) -> float:
    """`5m`, `1m30s`, `500ms`, `0` -> seconds. Raises InvalidParameter."""
    import re

    if re.fullmatch(r"\d+", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text)
    if "".join(number + unit for number, unit in parts) != text or not parts:
        raise InvalidParameter(f"invalid duration {text!r}", hint="for example 90s, 5m or 1h30m")
    return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


def main(argv: list[str]) -> int:
    """Run the daemon; its exit status: 0 after SIGTERM, SIGINT or --idle-exit, 1 when it cannot start, 125 for bad flags."""
    if {"-h", "--help"} & set(argv):
        print(usage())
        return 0
    try:
        flags, file = parse(argv)
        members = config.load(file or config.DEFAULT_CONFIG_FILE, required=file is not None)
        settings = config.settings(flags, members)
        if settings.log_level not in _LEVELS:
            raise InvalidParameter(f"unable to parse logging level: {settings.log_level}")
    except KnarrError as error:
        print(f"knarr daemon: {error}\nSee 'knarr daemon --help'.", file=sys.stderr)
        return 125
    level = logging.DEBUG if settings.debug else _LEVELS[settings.log_level]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for library in ("httpx2", "httpcore2"):  # in their debug messages are the headers of registries' answers
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        return _run(settings)
    except (KnarrError, OSError) as error:
        logging.getLogger("knarr").error("%s", error)
        return 1


def _run(settings: Settings) -> int:
    if os.geteuid() != 0:
        raise KnarrError("the daemon needs root", hint="run it with sudo; clients need only the socket's group")
    os.umask(0o022)
    os.makedirs(settings.exec_root, 0o711, exist_ok=True)
    lock = _lock(f"{settings.exec_root}/daemon.lock")
    try:
        _write_pid(settings.pidfile)
        import trio

        trio.run(_serve, settings, restrict_keyboard_interrupt_to_checkpoints=True)
        return 0
    finally:
        if settings.pidfile:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(settings.pidfile)
        os.close(lock)


def _lock(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise KnarrError(f"another daemon holds {path}", hint="stop it, or give this one its own --exec-root and --data-root")
    return fd


def _write_pid(path: str) -> None:
    if path:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")


async def _serve(settings: Settings) -> None:
    import trio

    from engine.api.server import server
    from engine.http.listeners import open_listeners
    from engine.service.engine import open_engine

    log = logging.getLogger("knarr")
    # Listen first: clients that come while containers are found again wait instead of failing.
    listeners = open_listeners(settings.endpoints(), group=settings.group)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as arrived:
        async with open_engine(settings) as engine, trio.open_nursery() as nursery:
            engine.make_builder = _builder
            api = server(engine)
            await nursery.start(api.run, listeners)
            gc.collect()
            gc.freeze()
            log.info("API listens on %s", ", ".join(listener.address for listener in listeners))
            if settings.idle_exit:
                nursery.start_soon(_idle, settings.idle_exit, api, engine, nursery.cancel_scope)
            nursery.start_soon(_signals, arrived, nursery.cancel_scope)
    log.info("stopped; running containers go on")


def _builder(engine: Any) -> Any:
    """The builder, imported when the first build comes."""
    from builder.service import BuildService

    return BuildService(engine.context)


async def _signals(arrived: Any, scope: Any) -> None:
    async for number in arrived:
        if number == signal.SIGHUP:
            logging.getLogger("knarr").warning("SIGHUP: reloading daemon.json is not implemented")
            continue
        scope.cancel()


async def _idle(seconds: float, api: Any, engine: Any, scope: Any) -> None:
    """End when nobody was connected and nothing ran for `seconds`."""
    import trio

    while True:
        moments = [connection.idle_since for connection in api.connections if connection.idle_since is not None]
        idle_for = trio.current_time() - max([api.last_activity, *moments])
        if api.busy or engine.registry.open or engine.containers.running():
            await trio.sleep(seconds)
        elif idle_for >= seconds:
            logging.getLogger("knarr").info("idle for %.0f s, ending", idle_for)
            scope.cancel()
            return
        else:
            await trio.sleep(seconds - idle_for)
