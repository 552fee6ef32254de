"""`--device`, `--gpus` and `--security-opt` as Docker's clients read them."""

from cli.client import Failure
from cli.values import csv_fields

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any


def devices(given: "dict[str, Any]", host: "dict[str, Any]") -> None:
    """Fill HostConfig.Devices and DeviceRequests. Raises Failure."""
    mappings, cdi = [], []
    for text in given.get("device", ()):
        if is_cdi(text):
            cdi.append(text)
        else:
            mappings.append(_mapping(text))
    if mappings:
        host["Devices"] = mappings
    requests = list(given.get("gpus", ()))
    if cdi:
        requests.append({"Driver": "cdi", "DeviceIDs": cdi})
    if requests:
        host["DeviceRequests"] = requests


def is_cdi(text: str) -> bool:
    """Whether this is a qualified CDI name, `vendor/class=name`."""
    kind, equals, name = text.partition("=")
    vendor, slash, group = kind.partition("/")
    return bool(equals and name and slash and vendor and group and vendor[0].isalpha() and "/" not in group)


def _mapping(text: str) -> "dict[str, Any]":
    parts = text.split(":")
    source, target, permissions = parts[0], "", "rwm"
    if len(parts) == 3:
        target, permissions = parts[1], parts[2]
    elif len(parts) == 2:
        if _is_mode(parts[1]):
            permissions = parts[1]
        else:
            target = parts[1]
    elif len(parts) > 3:
        raise Failure("bad format for path: " + text, 125)
    if not source:
        raise Failure("bad format for path: " + text, 125)
    target = target or source
    if target[:1] != "/":
        raise Failure(f"{target or text} is not an absolute path", 125)
    if not _is_mode(permissions):
        raise Failure("bad mode specified: " + permissions, 125)
    return {"PathOnHost": source, "PathInContainer": target, "CgroupPermissions": permissions}


def _is_mode(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def gpus(text: str) -> "dict[str, Any]":
    """One `--gpus`: a count, `all`, or `driver=…,count=…,device=…,capabilities=…,options=…`."""
    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
    seen = set()
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if not equals:
            key, value = ("count", key)
        if key in seen:
            raise ValueError(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if key == "driver":
            request["Driver"] = value
        elif key == "count":
            request["Count"] = _count(value)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [list(dict.fromkeys(value.split(",") + ["gpu"]))]
        elif key == "options":
            request["Options"] = dict(option.partition("=")[::2] for option in csv_fields(value))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and not request["DeviceIDs"]:
        request["Count"] = 1
    return request


def _count(text: str) -> int:
    if text == "all":
        return -1
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"invalid count ({text}): value must be either \"all\" or an integer: invalid syntax") from None


def security(texts: "list[str]", host: "dict[str, Any]") -> None:
    """Fill HostConfig.SecurityOpt; a seccomp profile is sent by content, `systempaths=unconfined` becomes empty path lists."""
    options = []
    for text in texts:
        key, separator, value = text.partition("=") if "=" in text else text.partition(":")
        if not value and (separator or key != "no-new-privileges"):
            raise Failure(f'Invalid --security-opt: "{text}"', 125)
        if key == "seccomp" and value not in ("unconfined", "builtin"):
            text = "seccomp=" + _profile(value)
        if text == "systempaths=unconfined":
            host["MaskedPaths"] = host["ReadonlyPaths"] = []
            continue
        options.append(text)
    if options:
        host["SecurityOpt"] = options


def _profile(path: str) -> str:
    from cli.codec import dumps, loads

    try:
        with open(path, encoding="utf-8") as file:
            return dumps(loads(file.read()))
    except OSError as error:
        raise Failure(f"opening seccomp profile ({path}) failed: open {path}: {(error.strerror or '').lower()}", 125) from None
    except ValueError as error:
        raise Failure(f"compacting json for seccomp profile ({path}) failed: {error}", 125) from None
