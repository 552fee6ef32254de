"""Dockerfile instructions that change an image's configuration: what `import --change` and `commit --change` take. Pure.

Follows the Dockerfile reference; the words of the errors are Docker's. Instructions that run or copy something are refused.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from engine.errors import InvalidParameter
from engine.spec.image import ContainerConfig, Healthcheck

_DEFAULT_SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1000, "µs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def apply(config: ContainerConfig, changes: Iterable[str]) -> ContainerConfig:
    """The configuration after each instruction. Raises InvalidParameter naming the instruction."""
    for line in changes:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        word, _, rest = text.partition(" ")
        handler = _HANDLERS.get(word.upper())
        if handler is None:
            raise InvalidParameter(f"{word.upper()} is not a valid change command")
        config = handler(config, rest.strip())
    return config


def words(text: str) -> list[str]:
    """Split as the Dockerfile does: quotes group, a backslash takes the next character as it is."""
    found: list[str] = []
    current: str | None = None
    quote = ""
    characters = iter(text)
    for char in characters:
        if char == "\\" and quote != "'":
            following = next(characters, "")
            current = (current or "") + (following if following in "\"'\\ $" or not quote else "\\" + following)
        elif quote:
            current, quote = (current, "") if char == quote else ((current or "") + char, quote)
        elif char in "\"'":
            current, quote = current or "", char
        elif char.isspace():
            if current is not None:
                found.append(current)
            current = None
        else:
            current = (current or "") + char
    if quote:
        raise InvalidParameter(f"unexpected end of statement while looking for matching {'double' if quote == chr(34) else 'single'}-quote")
    return found if current is None else [*found, current]


def pairs(instruction: str, text: str) -> list[tuple[str, str]]:
    """The `key=value …` of ENV and LABEL, or the old `key value`."""
    if not text:
        raise InvalidParameter(f"{instruction} requires at least one argument")
    first, _, rest = text.partition(" ")
    if "=" not in first:
        if not rest.strip():
            raise InvalidParameter(f"{instruction} must have two arguments")
        return [(first, rest.strip())]
    found: list[tuple[str, str]] = []
    for word in words(text):
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidParameter(f"Syntax error - can't find = in {word!r}. Must be of the form: name=value")
        if not key:
            raise InvalidParameter(f"{instruction} names can not be blank")
        found.append((key, value))
    return found


def _json(text: str) -> tuple[str, ...] | None:
    """The JSON form of an instruction, or None for the other form."""
    if not text.startswith("["):
        return None
    try:
        return msgspec.json.decode(text, type=tuple[str, ...])
    except msgspec.MsgspecError:
        return None


def _command(config: ContainerConfig, text: str) -> tuple[str, ...]:
    listed = _json(text)
    return listed if listed is not None else (*(config.shell or _DEFAULT_SHELL), text)


def _with(config: ContainerConfig, **members: Any) -> ContainerConfig:
    return msgspec.structs.replace(config, **members)


def _required(instruction: str, text: str) -> str:
    if not text:
        raise InvalidParameter(f"{instruction} requires at least one argument")
    return text


def _one(instruction: str, text: str) -> str:
    if len(words(text)) != 1:
        raise InvalidParameter(f"{instruction} requires exactly one argument")
    return words(text)[0]


def _cmd(config: ContainerConfig, text: str) -> ContainerConfig:
    return _with(config, cmd=_command(config, _required("CMD", text)), args_escaped=False)


def _entrypoint(config: ContainerConfig, text: str) -> ContainerConfig:
    return _with(config, entrypoint=_command(config, text) if text and text != "[]" else None)


def _env(config: ContainerConfig, text: str) -> ContainerConfig:
    found = dict(item.partition("=")[::2] for item in config.env or ())
    found.update(pairs("ENV", text))
    return _with(config, env=tuple(f"{key}={value}" for key, value in found.items()))


def _label(config: ContainerConfig, text: str) -> ContainerConfig:
    return _with(config, labels={**(config.labels or {}), **dict(pairs("LABEL", text))})


def _expose(config: ContainerConfig, text: str) -> ContainerConfig:
    ports = dict(config.exposed_ports or {})
    for word in words(_required("EXPOSE", text)):
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 0 < first <= last <= 65535:
            raise InvalidParameter(f"invalid containerPort: {word}")
        ports.update({f"{port}/{(match[3] or 'tcp').lower()}": {} for port in range(first, last + 1)})
    return _with(config, exposed_ports=ports)


def _user(config: ContainerConfig, text: str) -> ContainerConfig:
    return _with(config, user=_one("USER", text))


def _volume(config: ContainerConfig, text: str) -> ContainerConfig:
    listed = _json(_required("VOLUME", text))
    folders = listed if listed is not None else tuple(words(text))
    if not all(folder.strip() for folder in folders):
        raise InvalidParameter("VOLUME specified can not be an empty string")
    return _with(config, volumes={**(config.volumes or {}), **{folder: {} for folder in folders}})


def _workdir(config: ContainerConfig, text: str) -> ContainerConfig:
    folder = posixpath.normpath(posixpath.join("/", config.working_dir, _required("WORKDIR", text)))
    return _with(config, working_dir="/" + folder.lstrip("/"))


def _stopsignal(config: ContainerConfig, text: str) -> ContainerConfig:
    return _with(config, stop_signal=_one("STOPSIGNAL", text))


def _onbuild(config: ContainerConfig, text: str) -> ContainerConfig:
    trigger = _required("ONBUILD", text).partition(" ")[0].upper()
    if trigger == "ONBUILD":
        raise InvalidParameter("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise InvalidParameter(f"{trigger} isn't allowed as an ONBUILD trigger")
    return _with(config, on_build=(*(config.on_build or ()), text))


def _shell(config: ContainerConfig, text: str) -> ContainerConfig:
    listed = _json(_required("SHELL", text))
    if not listed:
        raise InvalidParameter("SHELL requires the arguments to be in JSON form")
    return _with(config, shell=listed)


def _healthcheck(config: ContainerConfig, text: str) -> ContainerConfig:
    options: dict[str, int] = {}
    while text.startswith("--"):
        flag, _, text = text.partition(" ")
        name, equals, value = flag[2:].partition("=")
        if name not in ("interval", "timeout", "start-period", "start-interval", "retries") or not equals:
            raise InvalidParameter(f"unknown flag: {name}")
        options[name.replace("-", "_")] = _retries(value) if name == "retries" else _duration(name, value)
        text = text.strip()
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE":
        if rest.strip():
            raise InvalidParameter("HEALTHCHECK NONE takes no arguments")
        return _with(config, healthcheck=Healthcheck(test=("NONE",)))
    if kind.upper() != "CMD" or not rest.strip():
        known = kind.upper() == "CMD"
        raise InvalidParameter("Missing command after HEALTHCHECK CMD" if known else f'Unknown type "{kind}" in HEALTHCHECK (try CMD)')
    listed = _json(rest.strip())
    return _with(config, healthcheck=Healthcheck(test=("CMD", *listed) if listed else ("CMD-SHELL", rest.strip()), **options))


def _retries(text: str) -> int:
    if not text.isdecimal():
        raise InvalidParameter(f"--retries must be a number, not {text!r}")
    return int(text)


def _duration(name: str, text: str) -> int:
    """Go's durations, in nanoseconds: 1m30s, 500ms."""
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise InvalidParameter(f'invalid duration "{text}" for --{name}')
    return int(sum(float(number) * _UNITS[unit] for number, unit in found))


_HANDLERS: dict[str, Callable[[ContainerConfig, str], ContainerConfig]] = {
    "CMD": _cmd, "ENTRYPOINT": _entrypoint, "ENV": _env, "EXPOSE": _expose, "HEALTHCHECK": _healthcheck, "LABEL": _label,
    "ONBUILD": _onbuild, "SHELL": _shell, "STOPSIGNAL": _stopsignal, "USER": _user, "VOLUME": _volume, "WORKDIR": _workdir,
}  # fmt: skip
