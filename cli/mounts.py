"""`--volume` and `--mount` as Docker's clients read them."""

from cli.client import Failure
from cli.create import absolute
from cli.values import boolean, csv_fields, size

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any


def volumes(texts: "list[str]", config: "dict[str, Any]", host: "dict[str, Any]") -> None:
    """Split `-v` into binds (HostConfig.Binds) and anonymous volumes (Config.Volumes)."""
    binds = []
    for text in dict.fromkeys(texts):
        source, target = _split(text)
        if not source:
            config.setdefault("Volumes", {})[target] = {}
            continue
        if source[0] == ".":
            text = absolute(source) + text[len(source):]
        binds.append(text)
    if binds:
        host["Binds"] = binds


def _split(text: str) -> "tuple[str, str]":
    """Source ("" for an anonymous volume) and target."""
    if not text:
        raise Failure("invalid empty volume spec", 125)
    parts = text.split(":")
    if len(parts) == 1:
        return "", text
    if not parts[0] or not parts[-1]:
        raise Failure(f"invalid spec: {text}: empty section between colons", 125)
    return parts[0], parts[1]


def _octal(value: str) -> int:
    try:
        return int(value, 8)
    except ValueError:
        raise ValueError(f"invalid value for tmpfs-mode: {value}") from None


def mount(text: str) -> "dict[str, Any]":
    """One `--mount type=…,source=…,target=…`; a ValueError's text is for the user."""
    result: dict[str, Any] = {"Type": "volume"}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals and key not in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src", "idmap"):
            raise ValueError(f"invalid field '{field}' must be a key=value pair")
        _mount_field(result, field, key, value if equals else None)
    if not result.get("Type"):
        raise ValueError("type is required")
    if not result.get("Target"):
        raise ValueError("target is required")
    _mount_checks(result)
    return result


def _flag(key: str, value: "str | None") -> bool:
    if value is None:
        return True
    try:
        return boolean(value)
    except ValueError:
        raise ValueError(f"invalid value for {key}: {value}") from None


def _mount_field(result: "dict[str, Any]", field: str, key: str, value: "str | None") -> None:
    text = value or ""
    if key == "type":
        result["Type"] = text.lower()
    elif key in ("source", "src"):
        result["Source"] = absolute(text) if text == "." or text.startswith(("./", "../")) or text == ".." else text
    elif key in ("target", "dst", "destination"):
        result["Target"] = text
    elif key in ("readonly", "ro"):
        result["ReadOnly"] = _flag(key, value)
    elif key == "consistency":
        result["Consistency"] = text.lower()
    elif key.startswith("bind-"):
        _bind_field(result.setdefault("BindOptions", {}), result, field, key, value)
    elif key.startswith("volume-"):
        _volume_field(result.setdefault("VolumeOptions", {}), field, key, value)
    elif key == "idmap":
        result.update(_idmap(text))
    elif key == "image-subpath":
        result.setdefault("ImageOptions", {})["Subpath"] = text
    elif key == "tmpfs-size":
        try:
            result.setdefault("TmpfsOptions", {})["SizeBytes"] = size(text)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {text}") from None
    elif key == "tmpfs-mode":
        result.setdefault("TmpfsOptions", {})["Mode"] = _octal(text)
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _idmap(text: str) -> "dict[str, Any]":
    """`uids=0-1000-1#5-1005-10;gids=…` as podman writes it, or `u:0:1000:1 g:… b:…` as mount(8) does: owner of the files, owner that is
    shown, how many."""
    if text == "false":
        return {}
    if text.strip() in ("", "true"):
        raise ValueError(
            "idmap without ids means those of the container's user namespace, and it has none: write idmap=uids=FILES-SHOWN-COUNT;gids=…"
        )
    found: dict[str, list[dict[str, int]]] = {}
    for kind, numbers in _ranges(text):
        names = {"uids": ("UIDMappings",), "gids": ("GIDMappings",), "both": ("UIDMappings", "GIDMappings")}.get(kind)
        if names is None or len(numbers) != 3 or not all(n.isascii() and n.isdigit() and len(n) <= 10 for n in numbers):
            raise ValueError(f"invalid value for idmap: {text} (write uids=FILES-SHOWN-COUNT#…;gids=…)")
        for name in names:
            found.setdefault(name, []).append(dict(zip(("ContainerID", "HostID", "Size"), map(int, numbers), strict=True)))
    return dict(found)


def _ranges(text: str) -> "list[tuple[str, list[str]]]":
    """Kind of id and numbers of each range, unchecked."""
    if "=" in text:
        parts = [part.partition("=") for part in text.split(";")]
        # "@": relative to the container's user namespace, whose ids are the host's.
        return [(kind, one.removeprefix("@").split("-")) for kind, _, ranges in parts for one in ranges.split("#")]
    found = []
    for one in text.split():
        kind, *numbers = one.split(":")
        if kind.isdigit():  # no kind: both
            kind, numbers = "b", [kind, *numbers]
        found.append(({"u": "uids", "g": "gids", "b": "both"}.get(kind, kind), numbers))
    return found


def _bind_field(options: "dict[str, Any]", result: "dict[str, Any]", field: str, key: str, value: "str | None") -> None:
    text = value or ""
    if key == "bind-propagation":
        options["Propagation"] = text.lower()
    elif key == "bind-nonrecursive":
        options["NonRecursive"] = _flag(key, value)
    elif key == "bind-create-src":
        options["CreateMountpoint"] = _flag(key, value)
    elif key == "bind-recursive":
        if text == "disabled":
            options["NonRecursive"] = True
        elif text == "writable":
            options["ReadOnlyNonRecursive"] = True
        elif text == "readonly":
            options["ReadOnlyForceRecursive"] = True
        elif text != "enabled":
            raise ValueError(f"invalid value for {key}: {text} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")")
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _volume_field(options: "dict[str, Any]", field: str, key: str, value: "str | None") -> None:
    text = value or ""
    if key == "volume-subpath":
        options["Subpath"] = text
    elif key == "volume-nocopy":
        options["NoCopy"] = _flag(key, value)
    elif key in ("volume-label", "volume-opt"):
        name, _, rest = text.partition("=")
        if key == "volume-label":
            options.setdefault("Labels", {})[name] = rest
        else:
            options.setdefault("DriverConfig", {}).setdefault("Options", {})[name] = rest
    elif key == "volume-driver":
        options.setdefault("DriverConfig", {})["Name"] = text
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _mount_checks(result: "dict[str, Any]") -> None:
    kind = result["Type"]
    for field, owner in (("VolumeOptions", "volume"), ("ImageOptions", "image"), ("BindOptions", "bind"), ("TmpfsOptions", "tmpfs")):
        if field in result and kind != owner:
            raise ValueError(f"cannot mix '{owner}-*' options with mount type '{kind}'")
    if ("UIDMappings" in result or "GIDMappings" in result) and kind not in ("bind", "volume", "image"):
        raise ValueError(f"cannot use 'idmap' with mount type '{kind}'")
    bind = result.get("BindOptions", {})
    if "ReadOnlyNonRecursive" in bind and not result.get("ReadOnly"):
        raise ValueError("option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction")
    if "ReadOnlyForceRecursive" in bind:
        if not result.get("ReadOnly"):
            raise ValueError("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction")
        if bind.get("Propagation") != "rprivate":
            raise ValueError("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
