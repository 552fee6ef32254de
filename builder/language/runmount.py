"""The value of `RUN --mount` and of `RUN --device`: comma-separated options, with the errors of BuildKit. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

import msgspec

from builder.language.errors import quoted, shortened
from builder.language.suggest import hint
from engine.errors import InvalidParameter
from engine.spec.units import memory_bytes

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
_KEYS = (
    *("type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid", "gid", "env"),
    *("src", "dst", "destination", "ro", "rw", "readwrite"),
)
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_DEFAULTED_READ_WRITE = ("cache", "tmpfs")
_OWNED = ("secret", "ssh", "cache")
_SAME = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}


class RunMount(msgspec.Struct, frozen=True, kw_only=True):
    """One `--mount`. `type`: bind, cache, tmpfs, secret, ssh. `id`, `from_`, `source`, `target`, `sharing` are "" when not given, `mode`,
    `uid`, `gid` None. `size` in bytes, 0 for no limit. `env`: the variable that a secret goes to."""

    type: str = "bind"
    target: str = ""
    source: str = ""
    from_: str = ""
    readonly: bool = True
    id: str = ""
    sharing: str = ""
    required: bool = False
    size: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str = ""


def check_mount(text: str) -> None:
    """What is checked before anything is substituted: the commas and quotes, and that `from` has no variable. Raises ValueError."""
    for field in fields(text, "mounts"):
        key, equals, value = field.partition("=")
        if equals and key.lower() == "from" and re.search(r"\$.", value):
            raise ValueError("'from' doesn't support variable expansion, define alias stage instead")


def parse_mount(text: str, expand: Callable[[str], str] = str) -> RunMount:
    """Read the value of a `--mount`, each option's value put through `expand` first. Raises ValueError, and what `expand` raises.

    Options that only some types have are refused with the others, whatever their order, as far as the type is known by then.
    """
    values: dict[str, object] = {}
    kind, readonly, named = "bind", None, False
    for field in fields(text, "mounts"):
        written, equals, value = field.partition("=")
        written = written.lower()
        key = _SAME.get(written, written)
        if not equals and key not in ("readonly", "readwrite", "required"):
            raise ValueError(f"invalid field '{shortened(field)}' must be a key=value pair")
        value = expand(value) if equals else "true"
        if key == "type":
            kind = _one_of(value, TYPES, "unsupported mount type")
        elif key == "readonly":
            readonly = _boolean(written, value)
        elif key == "readwrite":
            readonly = not _boolean(written, value)
        elif key == "required":
            _only(kind, ("secret", "ssh"), written)
            values["required"] = _boolean(written, value)
        elif key == "size":
            _only(kind, ("tmpfs",), written)
            values["size"] = _size(value)
        elif key == "env":
            values["env"], named = value, True
        elif key == "sharing":
            values["sharing"] = _one_of(value, SHARING, "unsupported sharing value")
        elif key in ("mode", "uid", "gid"):
            values[key] = _unsigned(key, value)
        elif key in ("from", "source", "target", "id"):
            values["from_" if key == "from" else key] = value
        else:
            raise ValueError(_suggested(f"unexpected key '{shortened(written)}' in '{shortened(field)}'", written, _KEYS))
    values["readonly"] = kind not in _DEFAULTED_READ_WRITE if readonly is None else readonly
    mount = RunMount(type=kind, **values)  # type: ignore[arg-type]
    if named and kind != "secret":
        raise ValueError(f"env not allowed for {quoted(kind)} type mounts")
    _check(mount)
    if named and not mount.env:
        return msgspec.structs.replace(mount, env=mount.id or mount.source or posixpath.basename(mount.target))
    return mount


def _check(mount: RunMount) -> None:
    for key in ("mode", "uid", "gid"):
        if getattr(mount, key) is not None and mount.type not in _OWNED:
            raise ValueError(f"{key} not allowed for {quoted(mount.type)} type mounts")
    if mount.type == "secret":
        if mount.from_:
            raise ValueError("secret mount should not have a from")
        if mount.sharing:
            raise ValueError("secret mount should not define sharing")
        if not (mount.source or mount.target or mount.id):
            raise ValueError("invalid secret mount. one of source, target required")
        if mount.source and mount.id:
            raise ValueError("both source and id can't be set")
    if mount.sharing and mount.type != "cache":
        raise ValueError(f"invalid cache sharing set for {mount.type} mount")


def parse_device(text: str) -> tuple[str, bool]:
    """The value of a `--device`: its name ("vendor/class=name", "class") and whether it must be there. Raises ValueError."""
    name, required = "", False
    for field in fields(text, "devices"):
        key, equals, value = field.partition("=")
        key = key.lower()
        if key == "required":
            required = _boolean(key, value) if equals else True
        elif equals and key == "name":
            if name:
                raise ValueError(f"device name already set to {shortened(name)}")
            name = value
        elif not name:
            name = field
        elif equals:
            raise ValueError(_suggested(f"unexpected key '{shortened(key)}' in '{shortened(field)}'", key, ("name", "required")))
        else:
            raise ValueError(f"invalid field '{shortened(field)}' must be a key=value pair")
    return name, required


def fields(text: str, what: str) -> list[str]:
    """The fields of one line of comma-separated values (RFC 4180). Raises ValueError as Go's encoding/csv says it."""
    failed = f"failed to parse csv {what}: "
    line = text.split("\n", 1)[0].removesuffix("\r")
    if not line:
        raise ValueError(failed + "EOF")
    found: list[str] = []
    place = 0
    while True:
        if line.startswith('"', place):
            parts: list[str] = []
            place += 1
            while True:
                end = line.find('"', place)
                if end < 0:
                    raise ValueError(f'{failed}parse error on line 1, column {len(line) + 1}: extraneous or missing " in quoted-field')
                parts.append(line[place:end])
                place = end + 1
                if not line.startswith('"', place):
                    break
                parts.append('"')
                place += 1
            if place < len(line) and line[place] != ",":
                raise ValueError(f'{failed}parse error on line 1, column {place}: extraneous or missing " in quoted-field')
            found.append("".join(parts))
        else:
            end = line.find(",", place)
            field = line[place:] if end < 0 else line[place:end]
            if '"' in field:
                raise ValueError(f'{failed}parse error on line 1, column {place + field.index(chr(34)) + 1}: bare " in non-quoted field')
            found.append(field)
            place += len(field)
        if place >= len(line):
            return found
        place += 1


def _suggested(message: str, word: str, options: tuple[str, ...]) -> str:
    found = hint(word, options)
    return f"{message} ({found})" if found else message


def _one_of(value: str, options: tuple[str, ...], message: str) -> str:
    if value.lower() not in options:
        raise ValueError(_suggested(f"{message} {quoted(value)}", value, options))
    return value.lower()


def _only(kind: str, kinds: tuple[str, ...], key: str) -> None:
    if kind not in kinds:
        raise ValueError(f"unexpected key '{key}' for mount type '{kind}'")


def _boolean(key: str, value: str) -> bool:
    if value not in _TRUE and value not in _FALSE:
        raise ValueError(f"invalid value for {key}: {shortened(value)}")
    return value in _TRUE


def _unsigned(key: str, value: str) -> int:
    """A number of 32 bits: octal for a mode."""
    pattern, base = (r"[0-7]+", 8) if key == "mode" else (r"[0-9]+", 10)
    if re.fullmatch(pattern, value) is None or len(value.lstrip("0")) > 11 or int(value, base) >= 1 << 32:
        raise ValueError(f"invalid value {shortened(value)} for {key}")
    return int(value, base)


def _size(value: str) -> int:
    try:
        return memory_bytes(value)
    except (InvalidParameter, OverflowError):
        raise ValueError(f"invalid value for size: {shortened(value)}") from None
