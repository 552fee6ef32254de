"""`knarr network …`: networks of the daemon, and which containers are in them. Requests and words follow Docker's client 28."""

from cli.client import Client, DaemonError, Failure, query, quote
from cli.containers import filters
from cli.flags import Command, parse
from cli.listing import Row
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

CREATE = Command("network create", "[OPTIONS] NETWORK", {
    "attachable": "bool", "aux-address": "map", "config-from": "string", "config-only": "bool", "driver": "string", "gateway": "strings",
    "ingress": "bool", "internal": "bool", "ip-range": "strings", "ipam-driver": "string", "ipam-opt": "map", "ipv4": "bool",
    "ipv6": "bool", "label": "list:label", "opt": "map", "scope": "string", "subnet": "strings",
}, {"d": "driver", "o": "opt"}, 1, 1)
LS = Command("network ls", "[OPTIONS]", {"filter": "filter", "format": "string", "no-trunc": "bool", "quiet": "bool"},
             {"f": "filter", "q": "quiet"}, 0, 0)
RM = Command("network rm", "NETWORK [NETWORK...]", {"force": "bool"}, {"f": "force"}, 1)
CONNECT = Command("network connect", "[OPTIONS] NETWORK CONTAINER", {
    "alias": "strings", "driver-opt": "strings", "gw-priority": "int", "ip": "string", "ip6": "string", "link": "list:link",
    "link-local-ip": "strings",
}, {}, 2, 2)
DISCONNECT = Command("network disconnect", "[OPTIONS] NETWORK CONTAINER", {"force": "bool"}, {"f": "force"}, 2, 2)


class Network(Row):
    type = "*network.networkContext"
    headers = {
        "ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6", "Internal": "INTERNAL",
        "Labels": "LABELS", "CreatedAt": "CREATED AT",
    }
    default = ("ID", "Name", "Driver", "Scope")
    raw = "network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n"

    def ID(self) -> str:
        return str(self.data["Id"]) if self.view.full else str(self.data["Id"])[:12]

    def Name(self) -> str:
        return str(self.data["Name"])

    def Driver(self) -> str:
        return str(self.data["Driver"])

    def Scope(self) -> str:
        return str(self.data["Scope"])

    def IPv4(self) -> str:
        return "true" if self.data.get("EnableIPv4") else "false"

    def IPv6(self) -> str:
        return "true" if self.data.get("EnableIPv6") else "false"

    def Internal(self) -> str:
        return "true" if self.data.get("Internal") else "false"

    def Labels(self) -> str:
        return ",".join(f"{key}={value}" for key, value in sorted((self.data.get("Labels") or {}).items()))

    def Label(self, name: str) -> str:
        return str((self.data.get("Labels") or {}).get(name, ""))

    def CreatedAt(self) -> str:
        day, _, rest = str(self.data.get("Created") or "0001-01-01T00:00:00Z").partition("T")
        return f"{day} {rest.removesuffix('Z')} +0000 UTC"  # as Go prints a time


def natural(text: str) -> "list[tuple[int, int, int]]":
    """Sorts `n2` before `n02` before `n10`: a run of digits counts as a number."""
    parts: list[tuple[int, int, int]] = []
    at = 0
    while at < len(text):
        end = at + 1
        if "0" <= text[at] <= "9":
            while end < len(text) and "0" <= text[end] <= "9":
                end += 1
            parts.append((ord("0"), int(text[at:end]), end - at))
        else:
            parts.append((ord(text[at]), 0, 0))
        at = end
    return parts


def ls(client: Client, name: str, argv: "list[str]") -> int:
    from cli.listing import show
    from cli.views import View

    given, _ = parse(LS.named(name), argv)
    rows = client.get(query("/networks", filters=filters(given)))
    rows.sort(key=lambda row: natural(row["Name"]))
    view = View(given.get("no-trunc", False))
    form = given.get("format", "")
    try:
        # a template of one's own counts more than --quiet
        show(Network, [Network(row, view) for row in rows], form, given.get("quiet", False) and form in ("", "table", "raw"))
    except Failure as failure:
        raise Failure("template parsing error: template: " + failure.text.partition(": template: ")[2]) from None
    return 0


def create(client: Client, name: str, argv: "list[str]") -> int:
    given, (network,) = parse(CREATE, argv)
    body: dict[str, Any] = {"Name": network, "Driver": given.get("driver", "bridge")}
    for flag, field in (("scope", "Scope"), ("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6"), ("internal", "Internal"),
                        ("attachable", "Attachable"), ("ingress", "Ingress"), ("config-only", "ConfigOnly")):
        if flag in given:
            body[field] = given[flag]
    if given.get("config-from"):
        body["ConfigFrom"] = {"Network": given["config-from"]}
    body["Options"] = dict(given.get("opt", ()))
    body["Labels"] = {label: value for label, _, value in (text.partition("=") for text in given.get("label", ()))}
    body["IPAM"] = {
        "Driver": given.get("ipam-driver", "default"), "Options": dict(given.get("ipam-opt", ())), "Config": pools(given),
    }
    from cli.codec import loads

    answer = loads(client.post("/networks/create", body))
    if answer.get("Warning"):
        from cli.streams import write_all

        write_all(2, f"WARNING: {answer['Warning']}\n".encode())
    output(f"{answer['Id']}\n")
    return 0


def pools(given: "dict[str, Any]") -> "list[dict[str, Any]]":
    """`IPAM.Config`: each range, gateway and reserved address at the subnet that has it. Raises Failure."""
    subnets, ranges, gateways = (given.get(flag, []) for flag in ("subnet", "ip-range", "gateway"))
    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise Failure("every ip-range or gateway must have a corresponding subnet")
    result: dict[str, dict[str, Any]] = {}
    for subnet in subnets:
        for other in result:
            if _contains(subnet, other) or _contains(other, subnet):
                raise Failure("multiple overlapping subnet configuration is not supported")
        result[subnet] = {"Subnet": subnet}
    for field, values, many, none in (
        ("IPRange", ranges, "cannot configure multiple ranges ({}, {}) on the same subnet ({})", "range"),
        ("Gateway", gateways, "cannot configure multiple gateways ({}, {}) for the same subnet ({})", "gateway"),
    ):
        for value in values:
            found = [pool for subnet, pool in result.items() if _contains(subnet, value, field == "IPRange")]
            for pool in found:
                if field in pool:
                    raise Failure(many.format(value, pool[field], pool["Subnet"]))
                pool[field] = value
            if not found:
                raise Failure(f"no matching subnet for {none} {value}")
    for host, address in dict(given.get("aux-address", ())).items():
        found = [pool for subnet, pool in result.items() if _contains(subnet, address)]
        for pool in found:
            pool.setdefault("AuxiliaryAddresses", {})[host] = address
        if not found:
            raise Failure(f"no matching subnet for aux-address {address}")
    return list(result.values())


def _contains(subnet: str, text: str, cidr: bool = False) -> bool:
    """Whether an address, or the first of another subnet (which `cidr` demands), is in the subnet. Raises Failure."""
    network, length = _cidr(subnet, "invalid subnet: ")
    address, _ = _cidr(text, "") if cidr or "/" in text else (_packed(text), 0)
    if address is None or network is None or len(address) != len(network):
        return False
    shift = len(network) * 8 - length
    return int.from_bytes(address, "big") >> shift == int.from_bytes(network, "big") >> shift


def _cidr(text: str, before: str) -> "tuple[bytes | None, int]":
    address, slash, length = text.partition("/")
    packed = _packed(address)
    if not slash or packed is None or not (length.isascii() and length.isdecimal()) or int(length) > len(packed) * 8:
        raise Failure(f"{before}invalid CIDR address: {text}")
    return packed, int(length)


def _packed(text: str) -> "bytes | None":
    from _socket import AF_INET, AF_INET6, inet_pton

    for family in (AF_INET, AF_INET6):
        try:
            return inet_pton(family, text)
        except (OSError, ValueError):
            continue
    return None


def rm(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(RM.named(name), argv)
    errors, code = [], 0
    for ref in names:
        try:
            client.delete(f"/networks/{quote(ref)}")
        except DaemonError as error:
            if error.status == 404 and given.get("force"):
                continue
            errors.append(error.text)
            code = 1
        else:
            output(ref + "\n")
    if errors:
        raise Failure("\n".join(errors), code)
    return 0


def connect(client: Client, name: str, argv: "list[str]") -> int:
    given, (network, container) = parse(CONNECT, argv)
    settings: dict[str, Any] = {}
    addresses = {field: given[flag] for flag, field in (("ip", "IPv4Address"), ("ip6", "IPv6Address"), ("link-local-ip", "LinkLocalIPs"))
                 if given.get(flag)}
    if addresses:
        settings["IPAMConfig"] = addresses
    for flag, field in (("link", "Links"), ("alias", "Aliases"), ("gw-priority", "GwPriority")):
        if given.get(flag):
            settings[field] = given[flag]
    if given.get("driver-opt"):
        settings["DriverOpts"] = {}
        for text in given["driver-opt"]:
            option, equals, value = text.partition("=")
            if not equals or not option:
                raise Failure("invalid key/value pair format in driver options")
            settings["DriverOpts"][option] = value
    client.post(f"/networks/{quote(network)}/connect", {"Container": container, "EndpointConfig": settings})
    return 0


def disconnect(client: Client, name: str, argv: "list[str]") -> int:
    given, (network, container) = parse(DISCONNECT, argv)
    client.post(f"/networks/{quote(network)}/disconnect", {"Container": container, "Force": bool(given.get("force"))})
    return 0
