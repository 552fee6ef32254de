"""`--network` in both forms, with `--ip`, `--network-alias` and the others that belong to one endpoint, as Docker's clients read them."""

from cli.client import Failure
from cli.values import csv_fields

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_FIELDS = {"ip": "IPv4Address", "ip6": "IPv6Address"}


def network(text: str) -> "dict[str, Any]":
    """`name=NAME,alias=…,ip=…,driver-opt=…`, or a name; a ValueError's text is for the user."""
    if not any(_is_word(text[at - 1:at]) and _is_word(text[at + 1:at + 2]) for at, char in enumerate(text) if char == "="):
        return {"Target": text}
    result: dict[str, Any] = {}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        key, value = key.strip().lower(), value.strip().lower()
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
            if not name or not option:
                raise ValueError("invalid key value pair format in driver options")
            result.setdefault("DriverOpts", {})[name.strip()] = option.strip()
        elif key == "gw-priority":
            try:
                if "_" in value:
                    raise ValueError
                result["GwPriority"] = int(value)
            except ValueError:
                raise ValueError(f"invalid gw-priority ({value}): invalid syntax") from None
        else:
            raise ValueError("invalid field key " + key)
    if not result.get("Target"):
        raise ValueError("network name/id is not specified")
    return result


def _is_word(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "_")


def endpoints(given: "dict[str, Any]", networks: "list[dict[str, Any]]") -> "dict[str, Any]":
    """NetworkingConfig.EndpointsConfig: one entry a network. Raises Failure."""
    result: dict[str, Any] = {}
    user_defined = [one for one in networks if not _special(one["Target"])]
    for index, one in enumerate(networks):
        if not one["Target"]:
            raise Failure("no name set for network", 125)
        if index == 0:
            one = _with_simple_flags(given, dict(one))
        if one["Target"] in result:
            raise Failure(f"network {one['Target']!r} is specified multiple times".replace("'", '"'), 125)
        if one.get("MacAddress") and not is_mac(one["MacAddress"]):
            raise Failure(f"{one['MacAddress']} is not a valid mac address", 125)
        if one.get("Aliases") and _special(one["Target"]):
            raise Failure("network-scoped aliases are only supported for user-defined networks", 125)
        result[one["Target"]] = _endpoint(one)
    if len(networks) > 1 and len(user_defined) not in (0, len(networks)):
        raise Failure("conflicting options: cannot attach both user-defined and non-user-defined network-modes", 125)
    return result


def is_mac(text: str) -> bool:
    """An Ethernet address: `02:42:ac:11:00:02`, `02-42-ac-11-00-02` or `0242.ac11.0002`."""
    for separator, number in ((":", 6), ("-", 6), (".", 3)):
        parts = text.split(separator)
        if len(parts) == number:
            size = 12 // number
            return all(len(part) == size and all(char in "0123456789abcdefABCDEF" for char in part) for part in parts)
    return False


def warn_of_localhost(servers: "list[str]") -> None:
    """A name server on the host's loopback is not the host's in the container, but the container's own."""
    for server in servers:
        if server == "::1" or server.startswith("127."):
            from cli.streams import write_all

            write_all(2, f"WARNING: Localhost DNS ({server}) may fail in containers.\n".encode())
            return


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
