"""`knarr inspect`, and `inspect` of `container`, `image`, `network` and `volume`: the daemon's JSON as it is, or through a template."""

from cli.client import Client, DaemonError, Failure, quote
from cli.codec import indent, loads, ordered_dumps
from cli.flags import Command, parse
from cli.images import image_path
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FLAGS = {"format": "string", "size": "bool"}
INSPECT = Command("inspect", "[OPTIONS] NAME|ID [NAME|ID...]", _FLAGS | {"type": "string"}, {"f": "format", "s": "size"}, 1)
CONTAINERS = Command("container inspect", "[OPTIONS] CONTAINER [CONTAINER...]", _FLAGS, {"f": "format", "s": "size"}, 1)
IMAGES = Command("image inspect", "[OPTIONS] IMAGE [IMAGE...]", {"format": "string", "platform": "string"}, {"f": "format"}, 1)
NETWORKS = Command("network inspect", "[OPTIONS] NETWORK [NETWORK...]", {"format": "string", "verbose": "bool"},
                   {"f": "format", "v": "verbose"}, 1)
VOLUMES = Command("volume inspect", "[OPTIONS] VOLUME [VOLUME...]", {"format": "string"}, {"f": "format"}, 1)
TYPES = ("container", "image", "network", "volume")


def _path(kind: str, name: str, given: "dict[str, Any]") -> str:
    if kind == "image":
        chosen = ""
        if given.get("platform"):
            from cli.platforms import query_value

            chosen = query_value(given["platform"], "")
        return image_path(name) + "/json" + (f"?platform={quote(chosen)}" if chosen else "")
    if kind == "container":
        return f"/containers/{quote(name)}/json" + ("?size=1" if given.get("size") else "")
    return f"/{kind}s/{quote(name)}"


def inspect(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(INSPECT, argv)
    kind = given.get("type", "")
    if kind and kind not in TYPES:
        raise Failure(f'unknown type: "{kind}": must be one of "container", "image", "network", "volume"')

    def find(ref: str) -> bytes:
        for one in (kind,) if kind else TYPES:
            try:
                return client.call("GET", _path(one, ref, given)).read()
            except DaemonError as error:
                # a daemon without networks or volumes says so for every name; the object is then just not there
                if error.status not in (404, 501) or kind:
                    raise
        raise Failure("Error: No such object: " + ref)

    return _print(names, find, given)


def inspect_containers(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(CONTAINERS, argv)
    return _print(names, lambda ref: client.call("GET", _path("container", ref, given)).read(), given)


def inspect_images(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(IMAGES, argv)
    _path("image", names[0], given)  # a platform that is none is refused before anything is printed
    if given.get("platform"):
        client.require("platform", "1.49")
    return _print(names, lambda ref: client.call("GET", _path("image", ref, given)).read(), given)


def inspect_networks(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(NETWORKS, argv)
    verbose = "?verbose=true" if given.get("verbose") else ""
    return _print(names, lambda ref: client.call("GET", f"/networks/{quote(ref)}{verbose}").read(), given)


def inspect_volumes(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(VOLUMES, argv)
    return _print(names, lambda ref: client.call("GET", f"/volumes/{quote(ref)}").read(), given)


def _complete(data: "Any") -> "Any":
    """What a template may ask for though the daemon leaves it out where it is empty, as Docker's client knows it from its types."""
    from cli.evaluate import Partial

    if not isinstance(data, dict):
        return data
    if "HostConfig" in data:
        for member, absent in _ABSENT.items():
            if isinstance(data.get(member), dict):
                data[member] = Partial(data[member], absent)
        data["Mounts"] = [Partial(mount, {"Name": "", "Driver": ""}) for mount in data.get("Mounts") or ()]
        return Partial(data, {"SizeRw": None, "SizeRootFs": None})
    pools = (data.get("IPAM") or {}).get("Config")
    if pools:
        data["IPAM"]["Config"] = [Partial(pool, {"Subnet": "", "IPRange": "", "Gateway": "", "AuxiliaryAddresses": {}}) for pool in pools]
    return data


_ABSENT: "dict[str, dict[str, Any]]" = {
    "State": {"Health": None},
    "HostConfig": dict.fromkeys(("Annotations", "Init", "Mounts", "StorageOpt", "Sysctls", "Tmpfs")),
    "Config": {**dict.fromkeys(("ExposedPorts", "Healthcheck", "Shell", "StopTimeout")), "MacAddress": "", "StopSignal": ""},
}  # of the members of a container


def _print(names: "list[str]", find: "Callable[[str], bytes]", given: "dict[str, Any]") -> int:
    """Print what was found, then the errors of what was not."""
    form = given.get("format", "")
    template = None
    if form not in ("", "json"):
        from cli.evaluate import Template
        from cli.template import TemplateError

        try:
            template = Template(form)
        except TemplateError as error:
            raise Failure("template parsing error: " + error.text, 64) from None
    found, errors = [], []
    for name in names:
        try:
            text = find(name)
            found.append(template.run(_complete(loads(text))) if template else text.decode("utf-8", "replace").strip())
        except Failure as failure:
            errors.append(("template parsing error: " if failure.text.startswith("template: ") else "") + failure.text)
    if template is not None:
        output("".join(text + "\n" for text in found) or "\n")
    elif form == "json":
        output(ordered_dumps([loads(text) for text in found]) + "\n")
    else:
        output(indent("[" + ",".join(found) + "]") + "\n")
    if errors:
        raise Failure("\n".join(errors))
    return 0
