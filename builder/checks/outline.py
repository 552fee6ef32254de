"""What a Dockerfile offers: its targets, and what one of them takes (arguments, secrets, SSH agents), for `--call`. Pure.

Forms of text and JSON are BuildKit's. A stage takes the arguments that it declares, and those global ones that its FROM uses or that it
declares without a default; a target takes what all stages take that it needs. The declaration nearest to the target counts.
"""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from builder.checks.checkreport import location
from builder.checks.relations import Argument, Relations, mounts
from builder.language.instructions import Arg, Dockerfile, Env, Location, Run
from builder.language.parser import description
from engine.spec.platform import Platform


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A stage as a target. `base` and `platform` as written."""

    name: str
    description: str
    default: bool
    base: str
    platform: str
    location: Location


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A secret or an SSH agent that a target takes."""

    name: str
    required: bool
    location: Location


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """What a target takes, in the order of the file. `name` is "" for a stage without one."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    secrets: tuple[Taken, ...]
    ssh: tuple[Taken, ...]


def targets(dockerfile: Dockerfile) -> list[Target]:
    """All stages, in the order of the file."""
    last = len(dockerfile.stages) - 1
    return [
        Target(
            name=stage.name,
            description=stage.comment,
            default=stage.index == last,
            base=stage.base.image,
            platform=stage.base.platform,
            location=stage.base.location,
        )
        for stage in dockerfile.stages
    ]


def outline(
    dockerfile: Dockerfile, *, platform: Platform, build_platform: Platform, target: str = "", build_args: Mapping[str, str] | None = None
) -> Outline:
    """What a target takes. Raises InvalidParameter for one that is not there."""
    given = build_args or {}
    relations = Relations(dockerfile, target=target, build_args=given, platform=platform, build_platform=build_platform)
    arguments: dict[str, Argument] = {}
    secrets: dict[str, Taken] = {}
    ssh: dict[str, Taken] = {}
    known = _Stages(relations, given)
    for index in _nearest_first(relations):
        for argument in known.taken(index):
            arguments.setdefault(argument.name, argument)
        for kind, found in (("secret", secrets), ("ssh", ssh)):
            for each in _taken(dockerfile, index, kind):
                found.setdefault(each.name, each)
    stage = dockerfile.stages[relations.target]
    return Outline(
        name=stage.name,
        description=stage.comment,
        arguments=tuple(sorted(arguments.values(), key=lambda argument: argument.location.line)),
        secrets=_in_order(secrets.values()),
        ssh=_in_order(ssh.values()),
    )


class _Stages:
    """The arguments of stages, with the values that they have there."""

    def __init__(self, relations: Relations, given: Mapping[str, str]) -> None:
        self._taken: list[list[Argument]] = []
        values: list[dict[str, str]] = []
        outer = relations.globals
        for related in relations.stages:
            scope = dict(values[related.base]) if related.base is not None else {}
            inner: dict[str, Argument] = {}
            used = {*related.image.used, *related.platform.used}
            for instruction in related.stage.instructions:
                if isinstance(instruction, Env):
                    pairs = [(relations.expand(name, scope).text, relations.expand(value, scope).text) for name, value in instruction.pairs]
                    scope.update(pairs)
                if not isinstance(instruction, Arg):
                    continue
                for argument in relations.declare(instruction, scope, given):
                    used |= {argument.name, *argument.uses}
                    value = argument.value
                    if value is None and (argument.name in outer.values or argument.name in outer.declared):
                        value = outer.values.get(argument.name)  # the global one counts, which may be automatic and then nobody's
                    else:
                        inner[argument.name] = argument
                    if value is not None:
                        scope[argument.name] = value
            values.append(scope)
            self._taken.append(list({**_with_uses(used, outer.declared), **inner}.values()))

    def taken(self, index: int) -> list[Argument]:
        """What a stage takes itself."""
        return self._taken[index]


def _with_uses(names: Iterable[str], declared: Mapping[str, Argument]) -> dict[str, Argument]:
    """The global arguments of these names, and those that their defaults use."""
    found: dict[str, Argument] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in declared and name not in found:
            found[name] = declared[name]
            waiting += declared[name].uses
    return found


def _nearest_first(relations: Relations) -> Iterator[int]:
    """The target, then what it stands on, then what it copies from, and so on."""
    seen: set[int] = set()
    waiting = [relations.target]
    while waiting:
        at = waiting.pop()
        if at not in seen:
            seen.add(at)
            yield at
            related = relations.stages[at]
            waiting += [*reversed(related.needs), *(() if related.base is None else (related.base,))]


def _taken(dockerfile: Dockerfile, index: int, kind: str) -> Iterator[Taken]:
    for instruction in dockerfile.stages[index].instructions:
        for mount in mounts(instruction) if isinstance(instruction, Run) else ():
            if mount.type == kind:
                name = mount.id or ("default" if kind == "ssh" else posixpath.basename(mount.target or mount.source))
                yield Taken(name=name, required=mount.required, location=instruction.location)


def _in_order(taken: Iterable[Taken]) -> tuple[Taken, ...]:
    return tuple(sorted(taken, key=lambda each: each.location.line))


# -- text and JSON


def targets_text(found: Sequence[Target]) -> str:
    """The table of targets."""
    rows = [
        (f"{each.name} (default)" if each.default and each.name else each.name or ("(default)" if each.default else ""), each.description)
        for each in found
    ]
    return _table([("TARGET", "DESCRIPTION"), *rows], 1)


def targets_answer(dockerfile: Dockerfile, found: Sequence[Target]) -> dict[str, Any]:
    """The targets for JSON."""
    listed = [
        _without_nothing(name=each.name, default=each.default, description=each.description, base=each.base, platform=each.platform)
        | {"location": location(each.location)}
        for each in found
    ]
    return {"targets": listed, "sources": [_data(dockerfile)]}


def outline_text(found: Outline) -> str:
    """The tables of an outline, each with an empty line behind it."""
    text = ""
    if found.name or found.description:
        rows = [("TARGET:", found.name or "(default)")]
        if found.description:
            rows.append(("DESCRIPTION:", found.description))
        text += _table(rows, 1) + "\n"
    if found.arguments:
        described = [(each.name, each.value or "", description(each.comments, each.name)) for each in found.arguments]
        text += _table([("BUILD ARG", "VALUE", "DESCRIPTION"), *described], 3) + "\n"
    for title, taken in (("SECRET", found.secrets), ("SSH", found.ssh)):
        if taken:
            text += _table([(title, "REQUIRED"), *((each.name, "true" if each.required else "") for each in taken)], 3) + "\n"
    return text


def outline_answer(dockerfile: Dockerfile, found: Outline) -> dict[str, Any]:
    """An outline for JSON."""
    arguments = [
        {"name": each.name}
        | _without_nothing(description=description(each.comments, each.name), value=each.value or "")
        | {"location": location(each.location)}
        for each in found.arguments
    ]
    secrets, ssh = (
        [{"name": each.name} | _without_nothing(required=each.required) | {"location": location(each.location)} for each in taken]
        for taken in (found.secrets, found.ssh)
    )
    return _without_nothing(
        name=found.name, description=found.description, args=arguments, secrets=secrets, ssh=ssh, sources=[_data(dockerfile)]
    )


def _data(dockerfile: Dockerfile) -> str:
    return base64.b64encode(dockerfile.text.encode()).decode()


def _without_nothing(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def _table(rows: Sequence[tuple[str, ...]], gap: int) -> str:
    """Columns as wide as their longest value and `gap` spaces, but for the last one."""
    shown = [tuple(_visible(value) for value in row) for row in rows]
    widths = [max(len(row[column]) for row in shown) + gap for column in range(len(shown[0]) - 1)]
    return "".join("".join(value.ljust(width) for value, width in zip(row, widths, strict=False)) + row[-1] + "\n" for row in shown)


def _visible(text: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in text)
