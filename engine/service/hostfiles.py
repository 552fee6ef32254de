"""What /etc/hosts and /etc/resolv.conf of a container say. Pure but for reading the host's files.

Contents follow Docker's documentation ("docker container run", networking and DNS): containers on the default bridge get the host's name
servers, those on other networks the embedded one, those with the host's network the host's own files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from engine.errors import InvalidParameter
from engine.spec.container import ContainerRecord
from engine.spec.docker.containers import HostConfig
from engine.spec.network import Sandbox

HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
HOST_GATEWAY = "host-gateway"

RESOLV_CONF = "/etc/resolv.conf"
_kept: dict[str, tuple[int, str]] = {}  # of the host's files: modification time in ns, text


def host_resolv_conf(path: str = RESOLV_CONF) -> str:
    """The host's resolv.conf, read again when it has changed; "" when there is none."""
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        return ""
    kept = _kept.get(path)
    if kept is None or kept[0] != changed:
        kept = _kept[path] = changed, read(path)
    return kept[1]


def read(path: str) -> str:
    """The text of a file of the host, "" when there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def split_extra_host(entry: str) -> tuple[str, str]:
    """Name and address of an --add-host. Raises InvalidParameter for a malformed one."""
    name, separator, address = entry.partition(":")
    if not separator or not name or not address or any(character in entry for character in "\n\r\0"):
        raise InvalidParameter(f"bad format for add-host: '{entry}'")
    return name, address


def hosts(
    record: ContainerRecord,
    made: Sandbox | None = None,
    gateways: Iterable[str] = (),
    linked: Iterable[tuple[str, str]] = (),
) -> str:
    """Text of /etc/hosts. `gateways`: what `host-gateway` means; `linked`: (address, names) of the containers of --link.

    Raises InvalidParameter for a malformed --add-host."""
    hc = record.host_config
    lines = [read("/etc/hosts") if hc.network_mode == "host" else HOSTS]
    for entry in hc.extra_hosts or ():
        name, address = split_extra_host(entry)
        if address != HOST_GATEWAY:
            lines.append(f"{address}\t{name}\n")
            continue
        if not gateways:
            raise InvalidParameter("unable to derive the IP value for host-gateway")
        lines += [f"{gateway}\t{name}\n" for gateway in gateways]
    lines += [f"{address}\t{names}\n" for address, names in linked]
    config = record.config
    own = f"{config.hostname}.{config.domainname}" if config.domainname else config.hostname
    short, dot, _ = own.partition(".")
    if dot:
        own = f"{own} {short}"
    for endpoint in made.endpoints if made is not None else ():
        lines += [f"{address}\t{own}\n" for address in (endpoint.ipv4, endpoint.ipv6) if address]
    return "".join(lines)


def needs_gateway(hc: HostConfig) -> bool:
    """Whether an --add-host asks for the host's address."""
    return any(entry.endswith(f":{HOST_GATEWAY}") for entry in hc.extra_hosts or ())
