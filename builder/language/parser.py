"""A Dockerfile's text made into instructions (Dockerfile reference, syntax 1.20; the words of the errors are BuildKit's). Pure.

First the whole text becomes logical lines (`lines`), then each becomes an instruction. Nothing is substituted here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from builder.language.arguments import NAMES, Arguments, SyntaxFault, arguments
from builder.language.durations import nanoseconds
from builder.language.errors import DockerfileError, quoted, shortened
from builder.language.flags import FlagError, Flags
from builder.language.instructions import (
    Add,
    Arg,
    Cmd,
    Command,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Heredoc,
    Instruction,
    Label,
    Location,
    Maintainer,
    OnBuild,
    Run,
    Shell,
    Stage,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from builder.language.lines import Line, heredoc, read, split, trigger
from builder.language.runmount import check_mount, parse_device
from builder.language.shell import SPACES
from builder.language.suggest import hint

_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
_MILLISECOND = 1_000_000
_NOT_TRIGGERS = ("MAINTAINER", "FROM")


class _Fault(ValueError):
    """What is wrong with one instruction. `word`: what to point at."""

    def __init__(self, message: str, *, word: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.word = word
        self.hint = hint


def parse(text: bytes, path: str = "Dockerfile") -> Dockerfile:
    """Read a whole file. Bytes that are no UTF-8 become U+FFFD. Raises DockerfileError, and nothing else whatever the bytes are."""
    content = text.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    if not content:
        raise DockerfileError("the Dockerfile cannot be empty", path=path)
    _refuse_nul(content, path)
    read_lines = read(content, path)
    escape = read_lines.escape
    found = [_guarded(line, content, path, lambda line: arguments(line.keyword, line.rest, escape)) for line in read_lines.lines]
    early: list[Arg] = []
    stages: list[tuple[From, list[Instruction]]] = []
    for line, words in zip(read_lines.lines, found, strict=True):
        instruction = _guarded(line, content, path, _Maker(words, escape))
        if isinstance(instruction, From):
            stages.append((instruction, []))
        elif stages:
            stages[-1][1].append(instruction)
        elif isinstance(instruction, Arg):
            early.append(instruction)
        else:
            message = "no build stage in current context"
            raise DockerfileError(message, path=path, line=line.line, end=line.end, text=content, word=line.keyword)
    return Dockerfile(
        path=path,
        text=content,
        arguments=tuple(early),
        stages=tuple(_stage(index, base, tuple(body)) for index, (base, body) in enumerate(stages)),
        directives=read_lines.directives,
        escape=escape,
        empty_continuations=tuple(read_lines.empty_continuations),
    )


def parse_trigger(expression: str) -> Instruction:
    """The instruction of an ONBUILD trigger, as the base image's configuration has it. Raises DockerfileError."""
    _refuse_nul(expression, "ONBUILD")
    lines = read(expression, "ONBUILD").lines
    if len(lines) != 1:
        raise DockerfileError("onbuild trigger should be a single expression", path="ONBUILD", line=1, text=expression)
    line = lines[0]

    def made(line: Line) -> Instruction:
        _check_trigger(line.keyword)
        return _Maker(arguments(line.keyword, line.rest, "\\"), "\\")(line)

    return _guarded(line, expression, "ONBUILD", made)


def _refuse_nul(text: str, path: str) -> None:
    """No path, variable or argument can have one, so none of the system calls that are to come. Raises DockerfileError."""
    place = text.find("\0")
    if place >= 0:
        line = text.count("\n", 0, place) + 1
        raise DockerfileError("a NUL character in the Dockerfile", path=path, line=line, text=text, hint="it has to be UTF-8")


def _stage(index: int, base: From, body: tuple[Instruction, ...]) -> Stage:
    return Stage(index=index, name=base.name, base=base, instructions=body, comment=description(base.comments, base.name))


def description(comments: tuple[str, ...], name: str) -> str:
    """What the comments above a stage or an argument say about it: `# NAME TEXT`. "" when nothing."""
    return next((line[len(name) + 1 :] for line in comments if name and line.startswith(name + " ")), "")


_Made = TypeVar("_Made")


def _guarded(line: Line, text: str, path: str, make: Callable[[Line], _Made]) -> _Made:
    try:
        return make(line)
    except SyntaxFault as fault:
        raise DockerfileError(fault.message, path=path, line=line.line, end=line.end, text=text, word=fault.word) from None
    except _Fault as fault:
        message = f"dockerfile parse error on line {line.line}: {fault.message}"
        raise DockerfileError(message, path=path, line=line.line, end=line.end, text=text, word=fault.word, hint=fault.hint) from None


class _Maker:
    """Makes the instruction of a line from its arguments. Raises _Fault."""

    def __init__(self, arguments: Arguments, escape: str) -> None:
        self.words = arguments.words
        self.arguments = arguments
        self.escape = escape

    def __call__(self, line: Line) -> Instruction:
        self.line = line
        self.keyword = line.keyword.upper()
        make = _MAKERS.get(self.keyword)
        if make is None:
            raise _Fault(f"unknown instruction: {shortened(line.keyword)}", word=line.keyword, hint=hint(line.keyword, NAMES, fold=True))
        self.common: dict[str, Any] = {
            "location": Location(line.line, line.end),
            "text": line.text,
            "keyword": line.keyword,
            "comments": line.comments,
        }
        return make(self)

    def flags(self, *, text: tuple[str, ...] = (), many: tuple[str, ...] = (), switches: tuple[str, ...] = ()) -> Flags:
        try:
            return Flags(self.line.flags, text=text, many=many, switches=switches)
        except FlagError as error:
            raise _Fault(str(error), word=error.word, hint=error.hint) from None

    def some(self) -> tuple[str, ...]:
        if not self.words:
            raise _Fault(f"{self.keyword} requires at least one argument")
        return self.words

    def one(self) -> str:
        if len(self.words) != 1:
            raise _Fault(f"{self.keyword} requires exactly one argument")
        return self.words[0]

    def command(self) -> Command:
        return Command(self.words if self.arguments.json else (" ".join(self.words),), shell=not self.arguments.json)

    def pairs(self) -> tuple[tuple[str, str], ...]:
        self.flags()
        flat = self.some()
        found = tuple(zip(flat[::2], flat[1::2], strict=True))
        if not all(key for key, _ in found):
            raise _Fault(f"{self.keyword} names can not be blank")
        return found

    def from_(self) -> From:
        words, name = self.words, ""
        if len(words) == 3 and words[1].lower() == "as":
            name = words[2].lower()
            if _STAGE_NAME.fullmatch(name) is None:
                message = f"invalid name for build stage: {quoted(words[2])}, name can't start with a number or contain symbols"
                raise _Fault(message, word=words[2])
        elif len(words) != 1:
            raise _Fault("FROM requires either one or three arguments")
        return From(image=words[0], name=name, platform=self.flags(text=("platform",)).text("platform"), **self.common)

    def arg(self) -> Arg:
        found: list[tuple[str, str | None]] = []
        for word in self.some():
            name, equals, value = word.partition("=")
            if not name:
                raise _Fault("ARG names can not be blank", word=word)
            found.append((name, value if equals else None))
        return Arg(arguments=tuple(found), **self.common)

    def env(self) -> Env:
        return Env(pairs=self.pairs(), legacy=self.arguments.legacy, **self.common)

    def label(self) -> Label:
        return Label(pairs=self.pairs(), legacy=self.arguments.legacy, **self.common)

    def run(self) -> Run:
        flags = self.flags(text=("network", "security"), many=("mount", "device"))
        network, security = flags.text("network"), flags.text("security")
        if network not in ("", "default", "none", "host"):
            raise _Fault(f"invalid network mode {quoted(network)}", word=network)
        if security not in ("", "sandbox", "insecure"):
            raise _Fault(f"security {quoted(security)} is not valid", word=security)
        try:
            for mount in flags.many("mount"):
                check_mount(mount)
            for device in flags.many("device"):
                parse_device(device)
        except ValueError as error:
            raise _Fault(str(error)) from None
        return Run(
            command=self.command(),
            heredocs=self.line.heredocs,
            mounts=flags.many("mount"),
            network=network,
            security=security,
            devices=flags.many("device"),
            **self.common,
        )

    def cmd(self) -> Cmd:
        self.flags()
        return Cmd(command=self.command(), **self.common)

    def entrypoint(self) -> Entrypoint:
        self.flags()
        return Entrypoint(command=self.command(), **self.common)

    def files(self) -> dict[str, Any]:
        """The sources, documents and destination of COPY and ADD."""
        *sources, destination = self.words
        if heredoc(destination) is not None:
            raise _Fault(f"{self.keyword} cannot accept a heredoc as a destination", word=destination)
        contents: dict[str, list[Heredoc]] = {}
        for document in self.line.heredocs:
            contents.setdefault(document.name, []).append(document)
        plain: list[str] = []
        documents: list[Heredoc] = []
        for source in sources:
            opening = heredoc(source)
            if opening is None:
                plain.append(source)
            else:
                documents.append(contents[opening.name].pop(0) if contents.get(opening.name) else opening)
        return {"sources": tuple(plain), "destination": destination, "heredocs": tuple(documents), **self.common}

    def two(self) -> None:
        if len(self.words) < 2:
            message = "requires at least two arguments, but only one was provided. Destination could not be determined"
            raise _Fault(f"{self.keyword} {message}")

    def copy(self) -> Copy:
        self.two()
        flags = self.flags(text=("from", "chown", "chmod"), many=("exclude",), switches=("link", "parents"))
        return Copy(
            from_=flags.text("from"),
            chown=flags.text("chown"),
            chmod=flags.text("chmod"),
            link=flags.switch("link") or False,
            parents=flags.switch("parents") or False,
            exclude=flags.many("exclude"),
            **self.files(),
        )

    def add(self) -> Add:
        self.two()
        flags = self.flags(text=("chown", "chmod", "checksum"), many=("exclude",), switches=("link", "keep-git-dir", "unpack"))
        return Add(
            chown=flags.text("chown"),
            chmod=flags.text("chmod"),
            link=flags.switch("link") or False,
            exclude=flags.many("exclude"),
            checksum=flags.text("checksum"),
            keep_git_dir=flags.switch("keep-git-dir"),
            unpack=flags.switch("unpack"),
            **self.files(),
        )

    def expose(self) -> Expose:
        ports = self.some()
        self.flags()
        return Expose(ports=ports, **self.common)

    def volume(self) -> Volume:
        paths = tuple(path.strip(SPACES) for path in self.some())
        self.flags()
        if not all(paths):
            raise _Fault("VOLUME specified can not be an empty string")
        return Volume(paths=paths, **self.common)

    def user(self) -> User:
        user = self.one()
        self.flags()
        return User(user=user, **self.common)

    def workdir(self) -> Workdir:
        path = self.one()
        self.flags()
        return Workdir(path=path, **self.common)

    def onbuild(self) -> OnBuild:
        self.some()
        self.flags()
        line = self.line
        expression = trigger(line.text)
        keyword, flags, rest = split(expression)
        _check_trigger(keyword)
        inner = Line(
            text=expression, line=line.line, end=line.end, comments=(), heredocs=line.heredocs, keyword=keyword, flags=flags, rest=rest
        )
        _Maker(arguments(keyword, rest, self.escape), self.escape)(inner)
        return OnBuild(expression="\n".join([expression, *(document.content + document.name for document in line.heredocs)]), **self.common)

    def stopsignal(self) -> StopSignal:
        return StopSignal(signal=self.one(), **self.common)

    def healthcheck(self) -> Healthcheck:
        kind, *command = self.some()
        if kind.upper() == "NONE":
            if command:
                raise _Fault("HEALTHCHECK NONE takes no arguments", word=command[0])
            return Healthcheck(command=None, **self.common)
        flags = self.flags(text=(*_INTERVALS, "retries"))
        if kind.upper() != "CMD":
            raise _Fault(f"Unknown type {quoted(kind.upper())} in HEALTHCHECK (try CMD)", word=kind)
        if not command:
            raise _Fault("Missing command after HEALTHCHECK CMD", word=kind)
        for name in _INTERVALS:
            self.interval(name, flags.text(name))
        self.retries(flags.text("retries"))
        return Healthcheck(
            command=Command(tuple(command), shell=not self.arguments.json),
            interval=flags.text("interval"),
            timeout=flags.text("timeout"),
            start_period=flags.text("start-period"),
            start_interval=flags.text("start-interval"),
            retries=flags.text("retries"),
            **self.common,
        )

    def interval(self, name: str, text: str) -> None:
        try:
            value = nanoseconds(text) if text else 0
        except ValueError as error:
            raise _Fault(str(error), word=text) from None
        if value and value < _MILLISECOND:
            raise _Fault(f'Interval "{name}" cannot be less than 1ms', word=text)

    def retries(self, text: str) -> None:
        if not text:
            return
        if re.fullmatch(r"[+-]?[0-9]+", text) is None:
            raise _Fault(f"strconv.ParseInt: parsing {quoted(text)}: invalid syntax", word=text)
        if len(text) > 20 or not -(1 << 31) <= int(text) < 1 << 31:
            raise _Fault(f"strconv.ParseInt: parsing {quoted(text)}: value out of range", word=text)
        if int(text) < 0:
            raise _Fault(f"--retries cannot be negative ({int(text)})", word=text)

    def shell(self) -> Shell:
        self.flags()
        words = self.some()
        if not self.arguments.json:
            raise _Fault("SHELL requires the arguments to be in JSON form")
        return Shell(words=words, **self.common)

    def maintainer(self) -> Maintainer:
        name = self.one()
        self.flags()
        return Maintainer(name=name, **self.common)


_INTERVALS = ("interval", "timeout", "start-period", "start-interval")


def _check_trigger(keyword: str) -> None:
    if keyword.upper() == "ONBUILD":
        raise _Fault("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", word=keyword)
    if keyword.upper() in _NOT_TRIGGERS:
        raise _Fault(f"{keyword.upper()} isn't allowed as an ONBUILD trigger", word=keyword)


_MAKERS: dict[str, Callable[[_Maker], Instruction]] = {
    name: getattr(_Maker, "from_" if name == "FROM" else name.lower()) for name in NAMES
}  # fmt: skip
