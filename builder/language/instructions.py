"""The instructions of a Dockerfile as data: what `parser` makes of the text, before any variable is substituted.

Owns the words and flags of each of the 18 instructions (Dockerfile reference, syntax 1.20). Values are as written, with quotes and `$`;
`lower` substitutes. An instruction knows where it stands, for messages, and its text, for the history and progress.
"""

from __future__ import annotations

import msgspec


class Location(msgspec.Struct, frozen=True):
    """Lines of a Dockerfile, counted from 1, the last one included."""

    line: int
    end: int


class Heredoc(msgspec.Struct, frozen=True):
    """A document that stands below its instruction. `expand`: its delimiter was not quoted; `content` has tabs stripped already where
    it was opened with `<<-`, and ends with a line feed unless it is empty. `descriptor`: the number before `<<`, 0 without one."""

    name: str
    content: str
    expand: bool = True
    descriptor: int = 0
    strip: bool = False


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """What all have: `location`, `text` (the logical line as written: keyword and rest, continuation lines joined, comments removed),
    `keyword` as written, and `comments`: lines of comment directly above."""

    location: Location = Location(0, 0)
    text: str = ""
    keyword: str = ""
    comments: tuple[str, ...] = ()


class Command(msgspec.Struct, frozen=True):
    """RUN, CMD, ENTRYPOINT and HEALTHCHECK CMD: a list (exec form), or one line for the shell (`shell`), as its only word."""

    words: tuple[str, ...]
    shell: bool


class From(Instruction, frozen=True, kw_only=True):
    """`FROM [--platform=P] IMAGE [AS NAME]`."""

    image: str
    name: str = ""
    platform: str = ""


class Arg(Instruction, frozen=True, kw_only=True):
    """`ARG NAME[=DEFAULT] ...`: (name, default or None)."""

    arguments: tuple[tuple[str, str | None], ...]


class Env(Instruction, frozen=True, kw_only=True):
    """`ENV K=V ...`; `legacy` for `ENV K V`."""

    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False


class Label(Instruction, frozen=True, kw_only=True):
    """`LABEL K=V ...`; `legacy` for `LABEL K V`."""

    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False


class Run(Instruction, frozen=True, kw_only=True):
    """`RUN`. With heredocs in the shell form `command` is the line with `<<NAME` in it. `mounts` are the values of `--mount` as written
    (parsed by `runmount`), `devices` those of `--device`."""

    command: Command
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[str, ...] = ()
    network: str = ""
    security: str = ""
    devices: tuple[str, ...] = ()


class Cmd(Instruction, frozen=True, kw_only=True):
    """`CMD`."""

    command: Command


class Entrypoint(Instruction, frozen=True, kw_only=True):
    """`ENTRYPOINT`."""

    command: Command


class Copy(Instruction, frozen=True, kw_only=True):
    """`COPY`, and what ADD has in common with it. `sources` are words in order (paths, URLs, Git addresses); a heredoc's source stands in
    `heredocs` and its name is the file's."""

    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    from_: str = ""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()


class Add(Copy, frozen=True, kw_only=True):
    """`ADD`. `unpack` None: archives from the context are unpacked and those from elsewhere are not."""

    checksum: str = ""
    keep_git_dir: bool | None = None
    unpack: bool | None = None


class Expose(Instruction, frozen=True, kw_only=True):
    """`EXPOSE PORT[-PORT][/PROTOCOL] ...`."""

    ports: tuple[str, ...]


class Volume(Instruction, frozen=True, kw_only=True):
    """`VOLUME`."""

    paths: tuple[str, ...]


class User(Instruction, frozen=True, kw_only=True):
    """`USER NAME|UID[:GROUP|GID]`."""

    user: str


class Workdir(Instruction, frozen=True, kw_only=True):
    """`WORKDIR PATH`."""

    path: str


class OnBuild(Instruction, frozen=True, kw_only=True):
    """`ONBUILD INSTRUCTION`: the text of the trigger, heredocs included."""

    expression: str


class StopSignal(Instruction, frozen=True, kw_only=True):
    """`STOPSIGNAL NAME|NUMBER`."""

    signal: str


class Healthcheck(Instruction, frozen=True, kw_only=True):
    """`HEALTHCHECK`. `command` None: NONE. Durations as written ("" when not given), `retries` as written."""

    command: Command | None
    interval: str = ""
    timeout: str = ""
    start_period: str = ""
    start_interval: str = ""
    retries: str = ""


class Shell(Instruction, frozen=True, kw_only=True):
    """`SHELL ["PROGRAM", "ARGUMENT"]`."""

    words: tuple[str, ...]


class Maintainer(Instruction, frozen=True, kw_only=True):
    """`MAINTAINER NAME`."""

    name: str


class Stage(msgspec.Struct, frozen=True):
    """A FROM and what follows it up to the next one. `index` counts from 0; `name` is lower case, "" without AS."""

    index: int
    name: str
    base: From
    instructions: tuple[Instruction, ...]
    comment: str = ""


class Dockerfile(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file. `arguments`: the ARGs before the first FROM; `directives`: syntax, escape, check, with their lines;
    `empty_continuations`: empty lines among continuation lines."""

    path: str
    text: str
    arguments: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    directives: dict[str, tuple[str, int]] = {}
    escape: str = "\\"
    empty_continuations: tuple[int, ...] = ()
