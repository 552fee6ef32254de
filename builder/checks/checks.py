"""Build checks: what is dubious about a Dockerfile, found in its text. Pure.

`run` is for a build and for `--check` alike. Where BuildKit looks at an instruction when its turn comes (what depends on variables, and
on what a base stage hands down) only stages that are needed are checked, or all of them with `every_stage`.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator, Mapping

from builder.checks import checkrules as rules
from builder.checks.checkrules import Rule, Violation
from builder.checks.relations import LONGEST, Related, Relations
from builder.language import addresses, platformargs
from builder.language.errors import quoted
from builder.language.ignore import Patterns, clean
from builder.language.instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Location,
    Maintainer,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from builder.language.lines import split
from builder.language.shell import SubstitutionError, document
from builder.language.suggest import nearest
from engine.errors import InvalidParameter
from engine.spec import platform as platforms
from engine.spec import reference
from engine.spec.platform import Platform

_RESERVED = ("context", "scratch")
_SECRET = re.compile(r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE)
_NO_SECRET = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)
_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WHOLE_CONTEXT = ("*", "**", "**/*")
_LONGEST_MESSAGE = 1000
_MANY = 100
"""Undefined variables of one word that are told."""
_LOOKS = 20_000
"""Names that are compared to find what was meant."""


def run(
    dockerfile: Dockerfile,
    *,
    platform: Platform,
    build_platform: Platform,
    target: str = "",
    build_args: Mapping[str, str] | None = None,
    ignore: Patterns | None = None,
    base_env: Mapping[int, Iterable[str]] | None = None,
    base_shells: Collection[int] = (),
    every_stage: bool = False,
) -> list[Violation]:
    """The checks that fire, in the order of the file. Raises InvalidParameter for a wrong `# check=` or target.

    `base_env`: by the index of a stage, the environment ("K=V") of the image it stands on. Where that is not known, undefined variables are
    not looked for. `base_shells`: stages whose image has a SHELL of its own. `ignore`: what the context leaves out, None for nothing.
    """
    arguments = build_args or {}
    settings = rules.wanted(dockerfile, arguments)
    relations = Relations(dockerfile, target=target, build_args=arguments, platform=platform, build_platform=build_platform)
    check = _Check(relations, arguments, ignore, base_env if base_env is not None else {}, base_shells)
    check.text()
    check.froms()
    needed = range(len(dockerfile.stages)) if every_stage else relations.reachable(relations.target)
    for related in relations.stages:
        check.stage(related, related.stage.index in needed)
    found = [violation for violation in check.found if settings.includes(violation.rule)]
    return sorted(found, key=lambda violation: violation.location.line)


class _Check:
    def __init__(
        self,
        relations: Relations,
        build_args: Mapping[str, str],
        ignore: Patterns | None,
        base_env: Mapping[int, Iterable[str]],
        base_shells: Collection[int],
    ) -> None:
        self.dockerfile = relations.dockerfile
        self.relations = relations
        self.build_args = build_args
        self.ignore = ignore if ignore is not None and not any(ignore.exceptions) else None
        self.base_env = base_env
        self.base_shells = base_shells
        self.found: list[Violation] = []
        self.done: dict[int, _Scope] = {}
        self.looked = 0

    def report(self, rule: Rule, location: Location, message: str) -> None:
        # The file may be hostile, and this is shown on terminals.
        shown = "".join(char if char.isprintable() else "�" for char in message[:_LONGEST_MESSAGE])
        self.found.append(Violation(rule, shown, location))

    def near(self, name: str, options: Collection[str]) -> str:
        """What a name may have meant. A file can have thousands of each, so at some point nobody looks any more."""
        self.looked += len(options)
        return nearest(name, options) if self.looked < _LOOKS else ""

    # -- the text of the whole file

    def text(self) -> None:
        for instruction in self.every():
            self.comments(instruction)
            self.continuation(instruction)
            if isinstance(instruction, Maintainer):
                self.report(
                    rules.MAINTAINER_DEPRECATED, instruction.location, "Maintainer instruction is deprecated in favor of using label"
                )
        self.casing()
        self.names()

    def every(self) -> Iterator[Instruction]:
        yield from self.dockerfile.arguments
        for stage in self.dockerfile.stages:
            yield stage.base
            yield from stage.instructions

    def comments(self, instruction: Instruction) -> None:
        if isinstance(instruction, From):
            names = [instruction.name] if instruction.name else []
        elif isinstance(instruction, Arg):
            names = [name for name, _ in instruction.arguments]
        else:
            return
        if names and instruction.comments and instruction.comments[-1].split(" ", 1)[0] not in names:
            kind = "FROM" if isinstance(instruction, From) else "ARG"
            name = names[0] if len(names) == 1 else "<arg_key>"
            message = f"Comment for {kind} should follow the format: `# {name} <description>`"
            self.report(rules.INVALID_DEFINITION_DESCRIPTION, instruction.location, message)

    def continuation(self, instruction: Instruction) -> None:
        location = instruction.location
        if any(location.line <= line <= location.end for line in self.dockerfile.empty_continuations):
            documents = instruction.heredocs if isinstance(instruction, Copy | Run) else ()
            end = location.end - sum(each.content.count("\n") + 1 for each in documents)
            self.report(rules.NO_EMPTY_CONTINUATION, Location(end, end), "Empty continuation line")

    def casing(self) -> None:
        instructions = [each for stage in self.dockerfile.stages for each in (stage.base, *stage.instructions)]
        lower = sum(each.keyword == each.keyword.lower() for each in instructions)
        upper = sum(each.keyword == each.keyword.upper() for each in instructions)
        name, convert = ("lowercase", str.lower) if lower > upper else ("uppercase", str.upper)
        for each in instructions:
            if convert(each.keyword) != each.keyword:
                message = f"Command '{each.keyword}' should match the case of the command majority ({name})"
                self.report(rules.CONSISTENT_INSTRUCTION_CASING, each.location, message)

    def names(self) -> None:
        seen: set[str] = set()
        for stage in self.dockerfile.stages:
            if not stage.name:
                continue
            location, keyword = stage.base.location, stage.base.keyword
            *_, written_as, written = split(stage.base.text)[2].split()
            if written != written.lower():
                self.report(rules.STAGE_NAME_CASING, location, f"Stage name '{written}' should be lowercase")
            if (keyword == keyword.lower() and written_as != written_as.lower()) or (
                keyword == keyword.upper() and written_as != written_as.upper()
            ):
                self.report(rules.FROM_AS_CASING, location, f"'{written_as}' and '{keyword}' keywords' casing do not match")
            if stage.name in _RESERVED:
                message = f"Stage name should not use the same name as reserved stage {quoted(stage.name)}"
                self.report(rules.RESERVED_STAGE_NAME, location, message)
            if stage.name in seen:
                message = f"Duplicate stage name {quoted(stage.name)}, stage names should be unique"
                self.report(rules.DUPLICATE_STAGE_NAME, location, message)
            seen.add(stage.name)

    # -- FROM

    def froms(self) -> None:
        defaults = self.relations.scope({})
        names = self.relations.globals.names
        for related in self.relations.stages:
            base = related.stage.base
            plain = self.relations.expand(base.image, defaults.values)
            if (plain.used or plain.unset) and not _is_image(plain.text):
                message = f"Default value for ARG {base.image} results in empty or invalid base image name"
                self.report(rules.INVALID_DEFAULT_ARG_IN_FROM, base.location, message)
            for expansion in (related.image, related.platform):
                for name in sorted(expansion.unset - expansion.defaulted - set(names)):
                    near = self.near(name, names)
                    message = f"FROM argument '{name}' is not declared" + (f" (did you mean {near}?)" if near else "")
                    self.report(rules.UNDEFINED_ARG_IN_FROM, base.location, message)
            if base.platform:
                self.platform(related)

    def platform(self, related: Related) -> None:
        base, value = related.stage.base, related.platform
        if value.used == {"TARGETPLATFORM"} and not value.unset:
            if value.text == self.relations.globals.values.get("TARGETPLATFORM"):
                message = f"Setting platform to predefined {base.platform} in FROM is redundant as this is the default behavior"
                self.report(rules.REDUNDANT_TARGET_PLATFORM, base.location, message)
        elif not value.used and not value.unset:
            try:
                parsed = platforms.parse(value.text)
            except InvalidParameter:
                return  # the build says so
            if not any(word and word in base.name for word in (parsed.os, parsed.architecture)):
                message = f"FROM --platform flag should not use constant value {quoted(value.text)}"
                self.report(rules.FROM_PLATFORM_FLAG_CONST_DISALLOWED, base.location, message)

    # -- what stands in a stage

    def stage(self, related: Related, needed: bool) -> None:
        """Go through a stage. What it hands down to others is noted even where it is not checked itself."""
        index = related.stage.index
        if related.base is not None:
            scope = self.done[related.base].copy()
        else:
            given = [_DEFAULT_PATH] if related.image.text == "scratch" else self.base_env.get(index)
            scope = _Scope(given, shell=index in self.base_shells)
        self.done[index] = scope
        before = len(self.found)
        last: dict[type[Instruction], Location] = {}
        for instruction in related.stage.instructions:
            self.variables(instruction, scope)
            match instruction:
                case Arg():
                    self.arg(instruction, scope)
                case Env():
                    for name, _ in instruction.pairs:
                        self.secret("ENV", name, instruction.location)
                    self.legacy(instruction)
                    pairs = [(scope.word(self, name), scope.word(self, value)[:LONGEST]) for name, value in instruction.pairs]
                    scope.env.update(pairs)
                case Label():
                    self.legacy(instruction)
                case Shell():
                    scope.shell = True
                case Cmd() | Entrypoint() | Healthcheck():
                    kind = type(instruction)
                    if kind in last:
                        message = (
                            f"Multiple {instruction.keyword} instructions should not be used in the same stage because only the last one "
                            "will be used"
                        )
                        self.report(rules.MULTIPLE_INSTRUCTIONS_DISALLOWED, last[kind], message)
                    last[kind] = instruction.location
                    if not isinstance(instruction, Healthcheck) and instruction.command.shell and not scope.shell:
                        message = (
                            f"JSON arguments recommended for {instruction.keyword} to prevent unintended behavior related to OS signals"
                        )
                        self.report(rules.JSON_ARGS_RECOMMENDED, instruction.location, message)
                case Workdir():
                    path = scope.word(self, instruction.path)
                    if not scope.workdir and not path.startswith("/"):
                        message = f"Relative workdir {quoted(path)} can have unexpected results if the base image changes"
                        self.report(rules.WORKDIR_RELATIVE_PATH, instruction.location, message)
                    scope.workdir = True
                case Expose():
                    self.expose(instruction, scope)
                case Copy():
                    self.ignored(instruction, scope)
        if not needed:
            del self.found[before:]

    def arg(self, instruction: Arg, scope: _Scope) -> None:
        for argument in self.relations.declare(instruction, scope.env, self.build_args):
            self.secret("ARG", argument.name, instruction.location)
            value = argument.value if argument.value is not None else self.relations.globals.values.get(argument.name)
            scope.arguments.add(argument.name)
            if value is not None and argument.name not in platformargs.NOT_IN_ENVIRONMENT:
                scope.env[argument.name] = value

    def secret(self, keyword: str, name: str, location: Location) -> None:
        if _SECRET.search(name) and not _NO_SECRET.search(name):
            message = f"Do not use ARG or ENV instructions for sensitive data ({keyword} {quoted(name)})"
            self.report(rules.SECRETS_USED_IN_ARG_OR_ENV, location, message)

    def legacy(self, instruction: Env | Label) -> None:
        if instruction.legacy:
            word = instruction.keyword
            message = f'"{word} key=value" should be used instead of legacy "{word} key value" format'
            self.report(rules.LEGACY_KEY_VALUE_FORMAT, instruction.location, message)

    def expose(self, instruction: Expose, scope: _Scope) -> None:
        for text in instruction.ports:
            for word in self.relations.expand(text, scope.env).words:
                *host, container = word.rsplit(":", 2)
                protocol = container.partition("/")[2]
                if protocol != protocol.lower():
                    message = f"Defined protocol '{word}' in EXPOSE instruction should be lowercase"
                    self.report(rules.EXPOSE_PROTO_CASING, instruction.location, message)
                if any(host):
                    message = f"EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
                    self.report(rules.EXPOSE_INVALID_FORMAT, instruction.location, message)

    def ignored(self, instruction: Copy, scope: _Scope) -> None:
        if self.ignore is None or instruction.from_:
            return
        command = "Add" if isinstance(instruction, Add) else "Copy"
        for text in instruction.sources:
            word = scope.word(self, text)
            if isinstance(instruction, Add) and (addresses.is_git(word) or addresses.is_web(word)):
                continue
            path = clean(word)
            below = clean("/" + path)[1:]
            if self.ignore.excluded(below) if below else any(pattern in _WHOLE_CONTEXT for pattern in self.ignore.patterns):
                message = f"Attempting to {command} file {quoted(path)} that is excluded by .dockerignore"
                self.report(rules.COPY_IGNORED_FILE, instruction.location, message)

    # -- variables

    def variables(self, instruction: Instruction, scope: _Scope) -> None:
        if scope.unknown:
            return
        if isinstance(instruction, Arg):
            self.defaults(instruction, scope)
            return
        for text in _words(instruction):
            expansion = self.relations.expand(text, scope.env)
            self.undefined(expansion.unset - expansion.defaulted, instruction, scope)
        for each in instruction.heredocs if isinstance(instruction, Copy) else ():
            if each.expand:
                try:
                    expansion = document(each.content, scope.env)
                except SubstitutionError:
                    continue  # the build says so
                self.undefined(expansion.unset - expansion.defaulted, instruction, scope)

    def defaults(self, instruction: Arg, scope: _Scope) -> None:
        """The defaults of an ARG may use those before them."""
        env: ChainMap[str, str] = ChainMap({}, scope.env)  # no copy: there may be thousands of ARGs
        declared: set[str] = set()
        for name, default in instruction.arguments:
            if default is not None and name not in self.build_args:
                expansion = self.relations.expand(default, env)
                self.undefined(expansion.unset - expansion.defaulted - declared, instruction, scope)
                env[name] = expansion.text
            declared.add(name)

    def undefined(self, names: Collection[str], instruction: Instruction, scope: _Scope) -> None:
        for name in sorted(names)[:_MANY]:
            if name not in scope.arguments and name not in platformargs.NOT_IN_ENVIRONMENT:
                near = self.near(name, scope.env)
                message = f"Usage of undefined variable '${name}'" + (f" (did you mean ${near}?)" if near else "")
                self.report(rules.UNDEFINED_VAR, instruction.location, message)


class _Scope:
    """What is known at a place in a stage: variables, arguments with or without a value, whether there was a SHELL or WORKDIR."""

    def __init__(self, environment: Iterable[str] | None, *, shell: bool) -> None:
        self.unknown = environment is None
        self.env: dict[str, str] = {}
        for pair in environment or ():
            name, _, value = pair.partition("=")
            self.env[name] = value
        self.arguments: set[str] = set()
        self.shell = shell
        self.workdir = False

    def copy(self) -> _Scope:
        other = _Scope((), shell=self.shell)
        other.unknown, other.workdir = self.unknown, self.workdir
        other.env, other.arguments = dict(self.env), set(self.arguments)
        return other

    def word(self, check: _Check, text: str) -> str:
        return check.relations.expand(text, self.env).text


def _words(instruction: Instruction) -> Iterator[str]:
    """The words of an instruction in which variables are substituted."""
    match instruction:
        case Copy():
            yield from (*instruction.sources, instruction.destination, instruction.chown, instruction.chmod, *instruction.exclude)
            if isinstance(instruction, Add):
                yield instruction.checksum
        case Env() | Label():
            for pair in instruction.pairs:
                yield from pair
        case Run():
            yield from instruction.mounts
        case Volume():
            yield from instruction.paths
        case User():
            yield instruction.user
        case Workdir():
            yield instruction.path
        case StopSignal():
            yield instruction.signal


def _is_image(text: str) -> bool:
    try:
        reference.parse(text)
    except InvalidParameter:
        return False
    return True
