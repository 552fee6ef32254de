"""Build arguments that nobody declares: those of platforms, of proxies, and those that BuildKit itself obeys. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from engine.errors import InvalidParameter
from engine.spec.build import Options
from engine.spec.platform import Platform

EPOCH = "SOURCE_DATE_EPOCH"
CACHE_NAMESPACE = "BUILDKIT_CACHE_MOUNT_NS"
HOSTNAME = "BUILDKIT_SANDBOX_HOSTNAME"
KEEP_GIT_DIR = "BUILDKIT_CONTEXT_KEEP_GIT_DIR"
INLINE_CACHE = "BUILDKIT_INLINE_CACHE"
MULTI_PLATFORM = "BUILDKIT_MULTI_PLATFORM"
NOT_IN_ENVIRONMENT = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})
"""Arguments that are no variables of a RUN although they are declared."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_DEFAULT_STAGE = "default"


def given(options: Options) -> dict[str, str]:
    """The build arguments that have a value."""
    return {name: value for name, value in options.build_args.items() if value is not None}


def automatic(build: Platform, target: Platform, stage: str, arguments: Mapping[str, str]) -> dict[str, str]:
    """The arguments of the global scope that are there without ARG. `stage`: the name of the target, "" without one. What was given as
    a build argument wins."""
    values: dict[str, str] = {}
    for prefix, platform in (("BUILD", build), ("TARGET", target)):
        values[f"{prefix}PLATFORM"] = str(platform)
        values[f"{prefix}OS"] = platform.os
        values[f"{prefix}OSVERSION"] = platform.os_version
        values[f"{prefix}ARCH"] = platform.architecture
        values[f"{prefix}VARIANT"] = platform.variant
    values["TARGETSTAGE"] = stage or _DEFAULT_STAGE
    return {name: arguments.get(name, value) for name, value in values.items()}


def proxies(arguments: Mapping[str, str]) -> tuple[str, ...]:
    """The variables of every RUN that the predefined proxy arguments make, in BuildKit's order: `K=V`, each in capitals and small."""
    found: dict[str, str] = {}
    for name in sorted(arguments):
        if name.upper() in _PROXIES:
            found[name.upper()] = arguments[name]
    return tuple(f"{name}={found[proxy]}" for proxy in _PROXIES if found.get(proxy) for name in (proxy, proxy.lower()))


def is_true(arguments: Mapping[str, str], name: str) -> bool:
    """Whether an argument is set to something that Go's strconv.ParseBool takes for true."""
    return arguments.get(name, "") in _TRUE


def epoch(value: str) -> int | None:
    """SOURCE_DATE_EPOCH in Unix seconds, None for "". Raises InvalidParameter."""
    if not value:
        return None
    if re.fullmatch(r"[+-]?[0-9]{1,18}", value) is None:
        raise InvalidParameter(f"invalid SOURCE_DATE_EPOCH: {value}", hint="seconds since 1970 as a whole number")
    return int(value)


def hosts(entries: Iterable[str]) -> tuple[str, ...]:
    """`--add-host`, `NAME:ADDRESS` or `NAME=ADDRESS`, as "name:address". Raises InvalidParameter."""
    found: list[str] = []
    for entry in entries:
        name, _, address = entry.partition("=" if "=" in entry else ":")
        if not name or not address:
            raise InvalidParameter(f'bad format for add-host: "{entry}"', hint="it is host:ip")
        found.append(f"{name}:{address.removeprefix('[').removesuffix(']')}")
    return tuple(found)
