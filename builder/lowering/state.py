"""What the parts of lowering share: the vertices made so far, and a stage while its instructions are read. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from builder.graph import SCRATCH, ContextSource, CopySource, Op, Step, Vertex
from builder.language import platformargs
from builder.language.goformat import quoted_list
from builder.language.instructions import Instruction
from builder.lowering.evaluate import Evaluator, Fault
from builder.lowering.stages import Needed, Node, Stages
from engine.errors import InvalidParameter
from engine.spec import platform as platforms
from engine.spec.build import MAIN_CONTEXT, Options
from engine.spec.image import ContainerConfig, ImageConfig
from engine.spec.platform import Platform

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")

_LARGEST_ENVIRONMENT = 2 << 20
_LONGEST_HISTORY = 64 << 20  # characters, of all stages together
"""What the kernel gives to a process, arguments and variables together, as systems are set up."""
_LONGEST_NAME = 8192

# What BuildKit keeps of a base image's configuration; the rest belongs to the container that the image was made from.
_KEPT = (
    "user", "exposed_ports", "env", "entrypoint", "cmd", "volumes", "working_dir", "labels", "stop_signal", "args_escaped", "healthcheck",
    "shell",
)  # fmt: skip


# What is collected: how it is read from a configuration, and how it is written into one.
_COLLECTED: dict[str, tuple[Callable[[Any], dict[Any, Any]], Callable[[dict[Any, Any]], Any]]] = {
    "env": (
        lambda env: dict(entry.partition("=")[::2] for entry in env or ()),
        lambda env: tuple([f"{key}={value}" for key, value in env.items()]),
    ),
    "on_build": (lambda triggers: dict(enumerate(triggers or ())), lambda triggers: tuple(triggers.values())),
    **dict.fromkeys(("labels", "exposed_ports", "volumes"), (lambda entries: dict(entries or {}), dict)),
}


class Vertices:
    """The vertices of a graph. Equal ones are one."""

    def __init__(self) -> None:
        self.all: list[Vertex] = []
        self._known: dict[tuple[Op, tuple[int, ...]], int] = {}

    def add(self, op: Op, inputs: tuple[int, ...], name: str, *, line: int = 0, stage: int = -1, no_cache: bool = False) -> int:
        """The index of the vertex: a new one, or that of an equal one, which is not looked up either when this one is not to be."""
        key = (op, inputs)
        index = self._known.get(key)
        if index is None:
            index = self._known[key] = len(self.all)
            self.all.append(Vertex(op=op, inputs=inputs, name=name, line=line, stage=stage, no_cache=no_cache))
            return index
        known = self.all[index]
        if no_cache and not known.no_cache:
            self.all[index] = known = msgspec.structs.replace(known, no_cache=True)
        if stage >= 0 and known.stage < 0:  # better named by a stage than by nobody
            self.all[index] = msgspec.structs.replace(known, name=name, line=line, stage=stage)
        return index

    def context(self, name: str = MAIN_CONTEXT) -> int:
        """The vertex of a folder that the client sends."""
        shown = "[internal] load build context" if name == MAIN_CONTEXT else f"[context {name}] load from client"
        return self.add(ContextSource(name=name), (), shown)


class Inputs:
    """The inputs of one vertex: the root file system first, then each source once."""

    def __init__(self, root: int) -> None:
        self.all = [root]
        self._places: dict[int, int] = {}

    def place(self, vertex: int) -> int:
        """The index of a source among the inputs."""
        if vertex not in self._places:
            self._places[vertex] = len(self.all)
            self.all.append(vertex)
        return self._places[vertex]


class State:
    """A stage as far as it has been lowered.

    `root`: the vertex of its file system; `replacement`: that of the folder that stands for the whole stage, if one does; `base`: the
    configuration of the image at the bottom; `env`: variables in the order in which they were set, arguments included; `args`: declared
    arguments, (name, value or None); `history`: what the image's history gets, over all stages below; `plan`: a step for each instruction
    of this stage.

    What there can be thousands of in a configuration (variables, labels, ports, volumes, triggers) is collected in dictionaries and written
    into `config` when somebody asks for that, so that each instruction costs what it says and not what was said before it.
    """

    def __init__(self, node: Node, platform: Platform, config: ImageConfig, root: int = SCRATCH, base: ImageConfig | None = None) -> None:
        self.node = node
        self.platform = platform
        self._config = config
        self._collected: dict[str, dict[Any, Any]] = {}
        self._written = True  # all that was collected is in `_config`
        self.base = base
        self.root = root
        self.replacement: int | None = None
        self.env: dict[str, str] = {}
        self._entries: dict[str, str] = {}
        self._size = 0
        self._environment: tuple[str, ...] | None = None
        self.args: list[tuple[str, str | None]] = []
        self.history: list[Step] = []
        self.plan: list[Step] = []
        self.number = 0
        self.has_cmd = False
        self.no_cache = False

    def child(self, node: Node) -> State:
        """A stage that begins where this one ended."""
        state = State(node, self.platform, self.config, self.root, self.base)
        state._collected = {name: dict(found) for name, found in self._collected.items() if name != "on_build"}
        state.change(on_build=None)
        state.env = dict(self.env)
        state._entries = dict(self._entries)
        state._size = self._size
        state.history = list(self.history)
        return state

    @property
    def config(self) -> ImageConfig:
        """The image's configuration, so far. Costs as much as was collected since it was asked for last."""
        if not self._written:
            self._written = True
            self._set({name: _COLLECTED[name][1](found) for name, found in self._collected.items()})
        return self._config

    @property
    def defaults(self) -> ContainerConfig:
        """What the image gives to a container, so far, but for what is collected: that is in `config` alone."""
        return self._config.defaults

    def change(self, **fields: Any) -> None:
        """Set fields of `defaults`."""
        for name in fields:
            self._collected.pop(name, None)
        self._set(fields)

    def set_author(self, name: str) -> None:
        """Set who made the image."""
        self._config = msgspec.structs.replace(self._config, author=name)

    def _set(self, fields: Mapping[str, Any]) -> None:
        self._config = msgspec.structs.replace(self._config, config=msgspec.structs.replace(self.defaults, **fields))

    def collect(self, field: str, entries: Mapping[Any, Any]) -> None:
        """Add to what `defaults` has of variables (`env`), `labels`, `exposed_ports`, `volumes`, or triggers (`on_build`, by a number)."""
        found = self._collected.get(field)
        if found is None:
            found = self._collected[field] = _COLLECTED[field][0](getattr(self.defaults, field))
        found.update(entries)
        self._written = False

    def collect_trigger(self, expression: str) -> None:
        """Add an ONBUILD."""
        self.collect("on_build", {len(self._collected.get("on_build") or self.defaults.on_build or ()): expression})

    @property
    def source(self) -> int:
        """The vertex that others copy files from."""
        return self.root if self.replacement is None else self.replacement

    def set_variable(self, name: str, value: str) -> None:
        """Set one for what follows; it becomes the last in order, as BuildKit has it. Raises Fault when all are too large for a process."""
        old = self._entries.pop(name, None)
        self.env.pop(name, None)
        self.env[name] = value
        self._entries[name] = entry = f"{name}={value}"
        self._environment = None
        self._size += len(entry) - (len(old) if old is not None else 0)
        if self._size > _LARGEST_ENVIRONMENT:
            raise Fault(f"the variables of a stage have more than {_LARGEST_ENVIRONMENT} characters", word=name)

    @property
    def environment(self) -> tuple[str, ...]:
        """`env` as "K=V"; the same object as long as nothing was set."""
        if self._environment is None:
            self._environment = tuple(self._entries.values())
        return self._environment

    def with_shell(self, words: Sequence[str]) -> tuple[str, ...]:
        """A command line for the shell, as words."""
        return (*(self.defaults.shell or DEFAULT_SHELL), " ".join(words))


class Lowering:
    """One call of `lower`: what all stages share."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.options: Options = stages.options
        self.arguments: Mapping[str, str] = stages.arguments
        self.evaluator: Evaluator = stages.evaluator
        self.proxies = platformargs.proxies(self.arguments)
        self.hosts = platformargs.hosts(self.options.hosts)
        self.vertices = Vertices()
        self.states: dict[int, State] = {}
        self._written = 0

    def word(self, state: State, text: str) -> str:
        """A value with its variables substituted. Raises SubstitutionError."""
        return self.evaluator.word(text, state.env)

    def named(self, state: State, text: str, *, trigger: bool = False) -> str:
        """The name of a stage's next vertex, `[build 2/5] RUN make`, which is counted by this."""
        text = text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…"
        total = state.node.steps
        if not total:
            return text
        state.number += 1
        prefix = ""
        if self.stages.multi:
            prefix = f"{state.platform}{_cross(state.platform, state.env)} "
        if state.node.shown:
            prefix += f"{state.node.shown} "
        return f"[{prefix}{state.number:{len(str(total))}}/{total}] {'ONBUILD ' if trigger else ''}{text}"

    def vertex(self, state: State, needed: Needed, op: Op, inputs: Sequence[int], name: str) -> int:
        """A vertex for an instruction of a stage."""
        return self.vertices.add(op, tuple(inputs), name, line=needed.location.line, stage=state.node.index, no_cache=state.no_cache)

    def commit(self, state: State, needed: Needed, created_by: str, vertex: int | None = None) -> None:
        """Put an instruction into the history. Raises Fault when the histories of all stages are longer than any image could have."""
        self._written += len(created_by)
        if self._written > _LONGEST_HISTORY:
            raise Fault(f"the history of the stages has more than {_LONGEST_HISTORY} characters")
        step = Step(
            created_by=created_by, vertex=vertex, instruction="" if needed.trigger else needed.instruction.text,
            stage=state.node.index, line=needed.location.line,
        )  # fmt: skip
        state.history.append(step)
        state.plan.append(step)

    def note(self, state: State, instruction: Instruction, vertex: int | None = None) -> None:
        """Put an instruction into the plan alone."""
        line = instruction.location.line
        state.plan.append(Step(created_by="", comment="", vertex=vertex, instruction=instruction.text, stage=state.node.index, line=line))


def empty_image(platform: Platform) -> ImageConfig:
    """The configuration that an image from scratch begins with."""
    return ImageConfig(
        architecture=platform.architecture, variant=platform.variant, os=platform.os, os_version=platform.os_version,
        config=ContainerConfig(env=(f"PATH={DEFAULT_PATH}",), working_dir="/"),
    )  # fmt: skip


def inherited(config: ImageConfig) -> ImageConfig:
    """What an image gets of its base image's configuration: as BuildKit, nothing about a container that once was, and no triggers."""
    defaults = config.defaults
    return ImageConfig(
        author=config.author, architecture=config.architecture, variant=config.variant, os=config.os, os_version=config.os_version,
        config=ContainerConfig(**{name: getattr(defaults, name) for name in _KEPT}),
    )  # fmt: skip


def run_text(args: Sequence[str], declared: Sequence[tuple[str, str | None]], env: Mapping[str, str]) -> str:
    """`RUN |1 A=b /bin/sh -c make` of a history: the number of arguments in scope, and their values."""
    values = [f"{name}={env.get(name, value or '')}" for name, value in declared]
    return " ".join(["RUN", *([f"|{len(values)}", *values] if values else ()), *args])


def command_text(keyword: str, words: Sequence[str]) -> str:
    """`CMD ["a" "b"]` of a history."""
    return f"{keyword} {quoted_list(words)}"


def document_source(name: str, content: str) -> CopySource:
    """A heredoc as a source of files."""
    return CopySource(path=name, content=content.encode("utf-8", "surrogateescape"), literal=True)


def _cross(own: Platform, env: Mapping[str, str]) -> str:
    """`->arm64` in names of a stage that runs on one platform and says that it makes something for another."""
    if "TARGETPLATFORM" in env:
        try:
            other = platforms.parse(env["TARGETPLATFORM"])
        except InvalidParameter:
            return ""
    elif not any(name in env for name in ("TARGETOS", "TARGETARCH", "TARGETVARIANT")):
        return ""
    else:
        other = Platform(
            os=env.get("TARGETOS") or own.os, architecture=env.get("TARGETARCH") or own.architecture, variant=env.get("TARGETVARIANT", "")
        ).normalised()
    if other.os != own.os:
        return f"->{other}"
    if other.architecture == own.architecture:
        return ""
    return f"->{other.architecture}" + (f"/{other.variant}" if other.variant else "")
