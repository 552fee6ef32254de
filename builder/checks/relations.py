"""Which stages of a Dockerfile stand on which, and the values of its global arguments, from its text and what was asked for alone. Pure.

What is said about a Dockerfile without building it (checks, outline, targets) works with this. Nothing is an error here: an expression that
cannot be substituted has the value "", and a name that is no stage is an image; who builds complains.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping

import msgspec

from builder.language import platformargs
from builder.language.instructions import Arg, Copy, Dockerfile, Location, Run, Stage
from builder.language.runmount import RunMount, parse_mount
from builder.language.shell import Expansion, SubstitutionError, Words
from builder.language.suggest import hint
from engine.errors import InvalidParameter
from engine.spec.platform import Platform

LONGEST = 8192
"""Characters of a value that are kept: nobody looks at more, and `$a$a` in one after the other makes a small file's values huge."""

_NOTHING = Expansion("", (), frozenset(), frozenset())


class Argument(msgspec.Struct, frozen=True):
    """An argument as one ARG declares it. `value` None: it has none; `uses`: other arguments in its default."""

    name: str
    value: str | None
    location: Location
    comments: tuple[str, ...] = ()
    uses: frozenset[str] = frozenset()


class Globals(msgspec.Struct, frozen=True):
    """The scope of FROM. `values`: all that have one, automatic ones too; `declared`: those of the file's ARGs."""

    values: Mapping[str, str]
    declared: Mapping[str, Argument]

    @property
    def names(self) -> list[str]:
        """All that a FROM may use."""
        return [*self.declared, *(name for name in self.values if name not in self.declared)]


class Related(msgspec.Struct, frozen=True):
    """A stage: `image` and `platform` as they come out of substitution; `base`: the stage that FROM names, None for an image; `needs`:
    those that files are copied or mounted from."""

    stage: Stage
    image: Expansion
    platform: Expansion
    base: int | None
    needs: tuple[int, ...]


class Relations:
    """A Dockerfile's stages, for a build for `platform` on `build_platform` with `build_args`."""

    def __init__(
        self, dockerfile: Dockerfile, *, target: str, build_args: Mapping[str, str], platform: Platform, build_platform: Platform
    ) -> None:
        """Raises InvalidParameter for a target that is not there."""
        self.dockerfile = dockerfile
        self.words = Words(dockerfile.escape)
        self.target = _target(dockerfile, target)
        stage = target or dockerfile.stages[-1].name
        self.automatic = platformargs.automatic(build_platform, platform, stage, build_args)
        self.globals = self.scope(build_args)
        self.stages: list[Related] = []
        self._named: dict[str, list[int]] = {}  # the stages of a name, in order
        for each in dockerfile.stages:
            if each.name:
                self._named.setdefault(each.name, []).append(each.index)
        for each in dockerfile.stages:
            image = self.expand(each.base.image, self.globals.values)
            self.stages.append(
                Related(
                    stage=each,
                    image=image,
                    platform=self.expand(each.base.platform, self.globals.values),
                    base=self._by_name(image.text, each.index),
                    needs=tuple(self._needs(each)),
                )
            )

    def expand(self, text: str, values: Mapping[str, str]) -> Expansion:
        """`text` with its variables; nothing where that is an error."""
        try:
            return self.words.expand(text, values)
        except SubstitutionError:
            return _NOTHING

    def scope(self, build_args: Mapping[str, str]) -> Globals:
        """The global arguments when these are given."""
        values = dict(self.automatic)
        declared: dict[str, Argument] = {}
        for instruction in self.dockerfile.arguments:
            for argument in self.declare(instruction, values, build_args):
                declared[argument.name] = argument
                if argument.value is not None:
                    values[argument.name] = argument.value
        return Globals(values, declared)

    def declare(self, instruction: Arg, values: Mapping[str, str], build_args: Mapping[str, str]) -> Iterator[Argument]:
        """The arguments of an ARG, its defaults substituted with `values` as they are when it is that one's turn."""
        for name, default in instruction.arguments:
            value, uses = build_args.get(name), frozenset[str]()
            if value is None and default is not None:
                expansion = self.expand(default, values)
                value, uses = expansion.text[:LONGEST], expansion.used
            yield Argument(name, value, instruction.location, instruction.comments, uses)

    def reachable(self, index: int) -> list[int]:
        """The stages that a target needs, itself included, in the order of the file."""
        found: set[int] = set()
        waiting = [index]
        while waiting:
            at = waiting.pop()
            if at not in found:
                found.add(at)
                related = self.stages[at]
                waiting += [*related.needs, *(() if related.base is None else (related.base,))]
        return sorted(found)

    def _by_name(self, name: str, before: int) -> int | None:
        """The last stage of that name among the first `before` ones."""
        found = self._named.get(name.lower(), [])
        place = bisect_left(found, before)
        return found[place - 1] if place else None

    def _needs(self, stage: Stage) -> Iterator[int]:
        for instruction in stage.instructions:
            names: list[str] = []
            if isinstance(instruction, Copy) and instruction.from_:
                names = [instruction.from_]
            elif isinstance(instruction, Run):
                names = [mount.from_ for mount in mounts(instruction) if mount.from_]
            for name in names:
                if re.fullmatch(r"[0-9]{1,9}", name):
                    if int(name) < len(self.dockerfile.stages):
                        yield int(name)
                elif (found := self._by_name(name, len(self.dockerfile.stages))) is not None:
                    yield found


def mounts(run: Run) -> list[RunMount]:
    """The mounts of a RUN that can be read, without substitution."""
    found = []
    for text in run.mounts:
        try:
            found.append(parse_mount(text))
        except ValueError:
            continue
    return found


def _target(dockerfile: Dockerfile, name: str) -> int:
    if not dockerfile.stages:
        raise InvalidParameter("dockerfile contains no stages to build")
    if not name:
        return len(dockerfile.stages) - 1
    names = {stage.name: stage.index for stage in dockerfile.stages if stage.name}
    found = names.get(name.lower())
    if found is None and re.fullmatch(r"[0-9]{1,6}", name) and int(name) < len(dockerfile.stages):
        found = int(name)
    if found is None:
        raise InvalidParameter(f'target stage "{name}" could not be found', hint=hint(name, names, fold=True))
    return found
