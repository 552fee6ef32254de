"""`--publish` and `--expose` as Docker's clients read them (go-connections' nat package), and `knarr port`."""

from cli.client import Client, Failure, quote
from cli.flags import Command, parse
from cli.streams import output
from cli.values import csv_fields, is_address

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_PROTOCOLS = ("tcp", "udp", "sctp")
PORT = Command("port", "CONTAINER [PRIVATE_PORT[/PROTO]]", {}, {}, 1, 2)
CHANGE = Command("port", "add|rm CONTAINER PORT [PORT...]", {}, {}, 3)


def port(client: Client, name: str, argv: "list[str]") -> int:
    """`port CONTAINER [PORT]`, and with more words `port add|rm CONTAINER PORT…`, which Docker would refuse for their number: so a
    container that is called `add` is still one."""
    if argv[:1] in (["add"], ["rm"]) and len(argv) > 2:
        return _change(client, argv)
    _, arguments = parse(PORT.named(name), argv)
    found = client.get(f"/containers/{quote(arguments[0])}/json")["NetworkSettings"]["Ports"] or {}
    if len(arguments) == 1 or not arguments[1]:
        lines = [f"{port} -> {_address(one)}\n" for port, bindings in found.items() for one in bindings or ()]
        output("".join(sorted(lines, key=_order)))
        return 0
    number, _, protocol = arguments[1].partition("/")
    try:
        wanted = f"{_port(number)}/{protocol or 'tcp'}"
    except ValueError as error:
        raise Failure(f"Error: invalid port ({number}): {error}") from None
    if not found.get(wanted):
        raise Failure(f"Error: No public port '{arguments[1]}' published for {arguments[0]}")
    output("".join(sorted(_address(one) + "\n" for one in found[wanted])))
    return 0


def _address(binding: "dict[str, str]") -> str:
    host = binding["HostIp"]
    return (f"[{host}]" if ":" in host else host) + ":" + binding["HostPort"]


def _order(line: str) -> "tuple[int, str]":
    return int(line.partition("/")[0]), line


def _change(client: Client, argv: "list[str]") -> int:
    """Publish ports of a running container, or stop that; prints those that lead to it then."""
    from cli.codec import loads

    _, (action, container, *specs) = parse(CHANGE, argv)
    bindings: dict[str, Any] = {}
    for text in specs:
        _publish(_short(text) if "=" in text else text, {}, bindings)
    answer = loads(client.post(f"/containers/{quote(container)}/ports/{action}", {"PortBindings": bindings}))
    lines = [f"{port} -> {_address(one)}\n" for port, ways in (answer.get("Ports") or {}).items() for one in ways or ()]
    output("".join(sorted(lines, key=_order)))
    return 0


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
            raise Failure(f"invalid publish opts format (should be name=value but got '{field}')", 125)
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
    protocol = (protocol.partition("/")[0] or "tcp").lower()
    rest, _, port = body.rpartition(":")
    if not rest and ":" not in body:
        return "", "", port, protocol
    if ":" not in rest:
        return "", rest, port, protocol
    address, _, host_port = rest.rpartition(":")
    plain = address[1:-1] if address[:1] == "[" and address[-1:] == "]" else address
    if plain and not is_address(plain):
        raise Failure("invalid IP address: " + plain, 125)
    return plain, host_port, port, protocol
