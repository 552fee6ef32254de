"""`--network` in both forms, with `--ip`, `--network-alias` and the others that belong to one endpoint, as Docker's clients read them."""

from cli.client import Failure
from cli.values import csv_fields, integer

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_FIELDS = {"ip": "IPv4Address", "ip6": "IPv6Address"}


def network(text: str) -> "dict[str, Any]":
    """`name=NAME,alias=…,ip=…,driver-opt=…`; a ValueError's text is for the user."""
    result: dict[str, Any] = {}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        key, value = key.strip().lower(), value.strip()
        if not equals or not key:
            raise ValueError(f"invalid field {field}")
        if key == "name":
            result["Target"] = value
        elif key == "alias":
            result.setdefault("Aliases", []).append(value)
        elif key in _FIELDS:
            result[_FIELDS[key]] = value
        elif key == "mac-address":
            result["MacAddress"] = value
        elif key == "link-local-ip":
            result.setdefault("LinkLocalIPs", []).append(value)
        elif key == "driver-opt":
            name, _, option = value.partition("=")
            result.setdefault("DriverOpts", {})[name.strip().lower()] = option.strip()
        elif key == "gw-priority":
            try:
                result["GwPriority"] = integer(value)
            except ValueError:
                raise ValueError(f"invalid gw-priority ({value}): invalid syntax") from None
        else:
            raise ValueError("invalid field key " + key)
    if not result.get("Target"):
        raise ValueError("network name/id is not specified")
    return result


def endpoints(given: "dict[str, Any]", networks: "list[dict[str, Any]]") -> "dict[str, Any]":
    """NetworkingConfig.EndpointsConfig: one entry a network. Raises Failure."""
    result: dict[str, Any] = {}
    user_defined = [one for one in networks if not _special(one["Target"])]
    for index, one in enumerate(networks):
        if not one["Target"]:
            raise Failure("no name set for network", 125)
        if index == 0:
            one = _with_simple_flags(given, dict(one))
        if len(networks) > 1 and (one["Target"] in ("host", "none") or one["Target"].startswith("container:")):
            raise Failure("conflicting options: cannot attach both user-defined and non-user-defined network-modes", 125)
        if one["Target"] in result:
            raise Failure(f"network {one['Target']!r} is specified multiple times".replace("'", '"'), 125)
        if one.get("Aliases") and _special(one["Target"]):
            raise Failure("network-scoped aliases are only supported for user-defined networks", 125)
        result[one["Target"]] = _endpoint(one)
    if len(networks) > 1 and len(user_defined) not in (0, len(networks)):
        raise Failure("conflicting options: cannot attach both user-defined and non-user-defined network-modes", 125)
    return result


def _special(name: str) -> bool:
    return name in ("default", "bridge", "host", "none") or name.startswith("container:")


def _with_simple_flags(given: "dict[str, Any]", one: "dict[str, Any]") -> "dict[str, Any]":
    """The first network also takes the flags that came before networks had options."""
    for flag, field in (("network-alias", "Aliases"), ("link", "Links"), ("ip", "IPv4Address"), ("ip6", "IPv6Address"),
                        ("mac-address", "MacAddress"), ("link-local-ip", "LinkLocalIPs")):
        if flag not in given or (flag == "link" and _special(one["Target"])):
            continue
        if field in one:
            raise Failure(f"conflicting options: cannot specify both --{flag} and per-network {_words(flag)}", 125)
        one[field] = given[flag]
    return one


def _words(flag: str) -> str:
    return {"network-alias": "alias", "link": "links", "ip": "IPv4 address", "ip6": "IPv6 address", "mac-address": "MAC address",
            "link-local-ip": "link-local IP addresses"}[flag]


def _endpoint(one: "dict[str, Any]") -> "dict[str, Any]":
    endpoint: dict[str, Any] = {field: one[field] for field in ("Aliases", "Links", "MacAddress", "DriverOpts",
        "GwPriority") if one.get(field)}
    addresses = {field: one[field] for field in ("IPv4Address", "IPv6Address", "LinkLocalIPs") if one.get(field)}
    if addresses:
        endpoint["IPAMConfig"] = addresses
    return endpoint
