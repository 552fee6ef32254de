"""Driver options of one container's place in a network: Docker's names and texts. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from engine.errors import InvalidParameter

_DOCKER = "com.docker.network."
IFNAME = _DOCKER + "endpoint.ifname"
SYSCTLS = _DOCKER + "endpoint.sysctls"

_PLACE = "IFNAME"  # what stands for the name of the link; Docker's client makes lower case of it
_NAME = re.compile(r"net\.(ipv4|ipv6|mpls)\.([a-z0-9_]+)\.(?:IFNAME|ifname)\.([a-z0-9_]+)")
_VALUE_MAX = 256
_NO_IPV6 = "net.ipv6.conf.IFNAME.disable_ipv6"


def unknown(options: Mapping[str, str]) -> Iterator[str]:
    """Docker's options that nothing here reads. Others' names (`org.example.x`) are labels."""
    return (name for name in options if name.startswith(_DOCKER) and name not in (IFNAME, SYSCTLS))


def sysctls(text: str) -> dict[str, str]:
    """The value of SYSCTLS, `net.ipv4.conf.IFNAME.log_martians=1,…`: names, with IFNAME for the link, and values, in their order.

    Raises InvalidParameter with what is wrong, one line for each.
    """
    found: dict[str, str] = {}
    problems = []
    for item in text.split(","):
        name, _, value = item.partition("=")
        match = _NAME.fullmatch(name)
        if match is None:
            problems.append(
                f"unrecognised network interface sysctl '{item}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', "
                "'X' must be 'ipv4', 'ipv6' or 'mpls'"
            )
        elif not value or not value.isprintable() or len(value) > _VALUE_MAX:
            problems.append(f"expected sysctl '{item}' to have format name=value")
        else:
            found[".".join(("net", match[1], match[2], _PLACE, match[3]))] = value
    if problems:
        raise InvalidParameter("\n".join(problems))
    return found


def path(name: str, ifname: str) -> str:
    """Where the kernel has a sysctl of `sysctls` for the link `ifname`. A link's name may have dots, and has no '/'."""
    return "/proc/sys/" + "/".join(ifname if part == _PLACE else part for part in name.split("."))


def without_ipv6(found: Mapping[str, str]) -> bool:
    """Whether sysctls switch IPv6 off on the link, so that it can have no addresses of it."""
    return found.get(_NO_IPV6, "0").strip() not in ("", "0")
