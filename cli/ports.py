"""`--publish` and `--expose` as Docker's clients read them (go-connections' nat package)."""

from cli.client import Failure
from cli.values import csv_fields, is_address

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_PROTOCOLS = ("tcp", "udp", "sctp")


def ports(given: "dict[str, Any]", config: "dict[str, Any]", host: "dict[str, Any]") -> None:
    """Fill Config.ExposedPorts and HostConfig.PortBindings. Raises Failure."""
    exposed: dict[str, Any] = {}
    bindings: dict[str, Any] = {}
    for text in given.get("publish", ()):
        _publish(_short(text) if "=" in text else text, exposed, bindings)
    for text in given.get("expose", ()):
        if ":" in text:
            raise Failure(f"invalid port format for --expose: {text}", 125)
        number, _, protocol = text.partition("/")
        try:
            first, last = _range(number)
        except ValueError as error:
            raise Failure(f"invalid range format for --expose: {text}, error: {error}", 125) from None
        for port in range(first, last + 1):
            exposed[f"{port}/{(protocol or 'tcp').lower()}"] = {}
    if exposed:
        config["ExposedPorts"] = exposed
    if bindings:
        host["PortBindings"] = bindings


def _range(text: str) -> "tuple[int, int]":
    if not text:
        raise ValueError("empty string specified for ports")
    low, dash, high = text.partition("-")
    first, last = _port(low), _port(high) if dash else 0
    if not dash:
        return first, first
    if last < first:
        raise ValueError("invalid range specified for port: " + text)
    return first, last


def _port(text: str) -> int:
    if not text.isdigit() or not text.isascii():
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) > 65535:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def _short(text: str) -> str:
    """`published=8080,target=80,protocol=udp,mode=…` as `8080:80/udp`."""
    fields = {}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if not equals:
            raise Failure(f"invalid simple port format '{text}'", 125)
        fields[key.lower()] = value.lower()
    for key in fields:
        if key not in ("published", "target", "protocol", "mode"):
            raise Failure(f"invalid field key {key}", 125)
    if not fields.get("target"):
        raise Failure("missing mandatory field 'target'", 125)
    published = fields.get("published")
    return (f"{published}:" if published else "") + fields["target"] + "/" + fields.get("protocol", "tcp")


def _publish(text: str, exposed: "dict[str, Any]", bindings: "dict[str, Any]") -> None:
    address, host_port, port, protocol = _parts(text)
    if not port:
        raise Failure(f"no port specified: {text}<empty>", 125)
    if protocol not in _PROTOCOLS:
        raise Failure("invalid proto: " + protocol, 125)
    try:
        first, last = _range(port)
    except ValueError:
        raise Failure("invalid containerPort: " + port, 125) from None
    start = end = 0
    if host_port:
        try:
            start, end = _range(host_port)
        except ValueError:
            raise Failure("invalid hostPort: " + host_port, 125) from None
        # one container port may take any of a range of host ports
        if last - first != end - start and last != first:
            raise Failure(f"invalid ranges specified for container and host Ports: {port} and {host_port}", 125)
    for offset in range(last - first + 1):
        name = f"{first + offset}/{protocol}"
        chosen = ""
        if host_port:
            chosen = f"{start + offset}" if last != first or start == end else f"{start}-{end}"
        exposed[name] = {}
        bindings.setdefault(name, []).append({"HostIp": address, "HostPort": chosen})


def _parts(text: str) -> "tuple[str, str, str, str]":
    """Address, host port, container port, protocol."""
    body, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    rest, _, port = body.rpartition(":")
    if not rest and ":" not in body:
        return "", "", port, protocol
    if ":" not in rest:
        return "", rest, port, protocol
    address, _, host_port = rest.rpartition(":")
    plain = address[1:-1] if address[:1] == "[" and address[-1:] == "]" else address
    if plain and not is_address(plain):
        raise Failure("invalid IP address: " + address, 125)
    return plain, host_port, port, protocol
