"""The stages of a Dockerfile and what they need of each other: targets, base images, ONBUILD, named contexts. Pure.

A *node* is a stage, or an image that a COPY or a mount names without a stage for it. Which base images a target needs cannot be known at
once: a base image may have ONBUILD triggers that name others. So `resolve` says what is missing, and is asked again with that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from builder.language import platformargs
from builder.language.errors import DockerfileError
from builder.language.instructions import Add, Copy, Dockerfile, Instruction, Location, OnBuild, Run, Stage, Workdir
from builder.language.parser import parse_trigger
from builder.language.runmount import fields
from builder.language.suggest import hint
from builder.lowering.evaluate import Evaluator, Fault
from builder.lowering.namedcontexts import SCRATCH_IMAGE, NamedContext, NamedContexts
from engine.errors import InvalidParameter
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.build import Options
from engine.spec.image import ImageConfig
from engine.spec.platform import Platform

Key = tuple[str, Platform]
"""A base image: its reference, in full and with a tag, or the address of an OCI layout; and the platform that it is wanted for."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A base image to be found. `origin`: as the Dockerfile names it; `name`: of the vertex that shows this; `location` of who wants it."""

    reference: str
    platform: Platform
    origin: str
    name: str
    location: Location

    @property
    def key(self) -> Key:
        """What it is known by in `known` and `bases`."""
        return self.reference, self.platform


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base image that was found. `reference`: what is shown, with its digest where it has one; `image`: its identifier; `chain`: its
    chain identifier, "" without layers; `digest`: of its manifest, "" when unknown; `platform`: what it is for."""

    reference: str
    image: str
    chain: str
    digest: str = ""
    config: ImageConfig
    platform: Platform


class Needed(msgspec.Struct, frozen=True):
    """An instruction of a node. `sources`: nodes it takes files from: one for COPY, one for each mount of a RUN (None: the main context, or
    nothing). `trigger`: it comes from an ONBUILD."""

    instruction: Instruction
    location: Location
    sources: tuple[Node | None, ...] = ()
    trigger: bool = False


class Node:
    """A stage, or an image that has none (`stage` None). Filled in as more becomes known.

    `number`: its place among all nodes; `shown`: the stage's name for progress; `steps`: how many vertices have it in their names;
    `replaced`: a named context stands for the whole stage, so that nothing of it is done; `triggered`: ONBUILDs of its base are in `needs`.
    """

    def __init__(self, number: int, image: str, location: Location, *, stage: Stage | None = None) -> None:
        self.number = number
        self.stage = stage
        self.image = image
        self.location = location
        self.name = stage.name if stage is not None else ""
        self.shown = self.name
        self.platform: Platform | None = None
        self.base: Node | None = None
        self.context: NamedContext | None = None
        self.key: Key | None = None
        self.needs: list[Needed] = []
        self.steps = 0
        self.replaced = False
        self.triggered = stage is None

    @property
    def index(self) -> int:
        """Of the stage, -1 without one."""
        return self.stage.index if self.stage is not None else -1

    def below(self) -> Iterator[tuple[Node, Location]]:
        """The nodes that this one needs, and what needs them."""
        if self.base is not None:
            yield self.base, self.location
        for needed in self.needs:
            for source in needed.sources:
                if source is not None:
                    yield source, needed.location


class Stages:
    """All nodes of one build. After `resolve`: `order`, those the target needs, in the order in which they are done; `missing` images."""

    def __init__(
        self, dockerfile: Dockerfile, options: Options, platform: Platform, build_platform: Platform, known: Mapping[Key, Base]
    ) -> None:  # fmt: skip
        """Raises DockerfileError, InvalidParameter."""
        self.dockerfile = dockerfile
        self.options = options
        self.platform = platform
        self.known = known
        self.evaluator = Evaluator(dockerfile.escape)
        self.arguments = platformargs.given(options)
        self.used: set[str] = set()
        self.contexts = NamedContexts(options.contexts)
        self.globals = self._globals(build_platform)
        self.nodes: list[Node] = []
        self._by_name: dict[str, Node] = {}
        self.missing: list[Wanted] = []
        self.order: list[Node] = []
        for stage in dockerfile.stages:
            self._add_stage(stage)
        if not self.nodes:
            raise self.error("dockerfile contains no stages to build", Location(0, 0))
        self.target = self._find_target()
        for node in tuple(self.nodes):
            if node.stage is not None:
                node.needs = [self._needed(one, one.location) for one in node.stage.instructions]
        self._check_circles()
        if len(self.nodes) == 1:
            self.nodes[0].shown = ""
        self._resolve()

    def error(self, message: str, at: Location, *, word: str = "", hint: str = "") -> DockerfileError:
        """An error at a place of the file."""
        return DockerfileError(
            message, path=self.dockerfile.path, line=at.line, end=at.end, text=self.dockerfile.text, word=word, hint=hint
        )

    def located(self, error: Exception, at: Location) -> DockerfileError:
        """What went wrong with an instruction, with its place."""
        if isinstance(error, DockerfileError) and error.path == self.dockerfile.path:
            return error
        if isinstance(error, InvalidParameter):
            return self.error(error.message, at, word=getattr(error, "word", ""), hint=error.hint)
        return self.error(str(error), at)

    # -- the global scope

    def _globals(self, build_platform: Platform) -> dict[str, str]:
        stage = self.options.target or (self.dockerfile.stages[-1].name if self.dockerfile.stages else "")
        values = platformargs.automatic(build_platform, self.platform, stage, self.arguments)
        for arg in self.dockerfile.arguments:
            for name, default in arg.arguments:
                self.used.add(name)
                if name in self.arguments:
                    values[name] = self.arguments[name]
                elif default is not None:
                    values[name] = self._global(default, values, arg.location)
        return values

    def _global(self, text: str, values: Mapping[str, str], at: Location) -> str:
        try:
            expansion = self.evaluator.expand(text, values)
        except ValueError as error:
            raise self.error(str(error), at, word=text) from None
        self.used |= expansion.used
        return expansion.text

    # -- stages

    def _add_stage(self, stage: Stage) -> None:
        at = stage.base.location
        image = self._global(stage.base.image, self.globals, at)
        if not image:
            raise self.error(f"base name ({stage.base.image}) should not be blank", at, word=stage.base.image)
        node = Node(len(self.nodes), image, at, stage=stage)
        if stage.base.platform:
            node.platform = self._platform(stage)
        if stage.name:
            node.context = self._context(stage.name, node.platform, at)
            if node.context is not None:
                if node.context.kind == "image":
                    node.key = (node.context.value, node.platform or self.platform)
                node.replaced = node.triggered = True
                self._register(node)
                return
        else:
            node.shown = f"stage-{stage.index}"
        node.base = self._by_name.get(image)
        if node.base is None:
            self._name_image(node)
        node.steps = int(image != SCRATCH_IMAGE and node.base is None) + sum(map(_is_step, stage.instructions))
        self._register(node)

    def _register(self, node: Node) -> None:
        self.nodes.append(node)
        if node.name:
            self._by_name[node.name] = node

    def _platform(self, stage: Stage) -> Platform:
        written, at = stage.base.platform, stage.base.location
        text = self._global(written, self.globals, at)
        if not text:
            unset = self.evaluator.expand(written, self.globals).unset
            advice = next((found for name in sorted(unset) if (found := hint(name, self.globals, fold=True))), "")
            raise self.error(f"empty platform value from expression {written}", at, word=written, hint=advice)
        try:
            return platforms.parse(text, self.platform)
        except InvalidParameter as error:
            raise self.error(f"failed to parse platform {text}: {error.message}", at, word=written, hint=error.hint) from None

    def _context(self, name: str, platform: Platform | None, at: Location) -> NamedContext | None:
        try:
            return self.contexts.find(name, platform or self.platform)
        except InvalidParameter as error:
            raise self.located(error, at) from None

    def _name_image(self, node: Node) -> None:
        """What the image of a node is: a named context, or one to be found."""
        if node.image == SCRATCH_IMAGE:
            return
        try:
            reference = str(references.parse(node.image).with_default_tag())
        except InvalidParameter as error:
            advice = hint(node.image, self._by_name, fold=True)
            lower = node.image.lower()
            if not advice and lower != node.image and lower in self._by_name:
                advice = f"names of stages are in lower case: {lower}"
            message = f'failed to parse stage name "{node.image}": {error.message}'
            raise self.error(message, node.location, word=node.image, hint=advice or error.hint) from None
        node.context = self._context(reference, node.platform, node.location)
        if node.context is None:
            node.key = (reference, node.platform or self.platform)
        elif node.context.kind == "image":
            node.key = (node.context.value, node.platform or self.platform)

    def _find_target(self) -> Node:
        name = self.options.target
        if not name:
            return self.nodes[-1]
        found = self._by_name.get(name.lower())
        if found is None and re.fullmatch(r"[0-9]{1,6}", name) and int(name) < len(self.nodes):
            found = self.nodes[int(name)]  # BuildKit refuses it, the classic builder does not
        if found is None:
            raise InvalidParameter(f'target stage "{name}" could not be found', hint=hint(name, self._by_name, fold=True))
        return found

    # -- what instructions need

    def _needed(self, instruction: Instruction, at: Location, trigger: bool = False) -> Needed:
        sources: tuple[Node | None, ...] = ()
        if isinstance(instruction, Copy) and instruction.from_:
            sources = (self._source(instruction.from_, at),)
        elif isinstance(instruction, Run) and instruction.mounts:
            sources = tuple(self._mount_source(mount, at) for mount in instruction.mounts)
        return Needed(instruction, at, sources, trigger)

    def _source(self, name: str, at: Location) -> Node:
        if re.fullmatch(r"[+-]?[0-9]{1,9}", name):
            stages = len(self.dockerfile.stages)
            if not 0 <= int(name) < stages:
                raise self.error(f"invalid stage index {int(name)}", at, word=name)
            return self.nodes[int(name)]
        try:
            plain = self.evaluator.expand(name, {}).text == name
        except ValueError as error:
            raise self.error(str(error), at, word=name) from None
        if not plain:
            advice = "define a new stage with FROM using ARG from global scope as a workaround"
            raise self.error(f"variable expansion is not supported for --from, {advice}", at, word=name)
        return self._by_name.get(name.lower()) or self._image_node(name, at)

    def _image_node(self, name: str, at: Location) -> Node:
        node = Node(len(self.nodes), name, at)
        self._name_image(node)
        self.nodes.append(node)
        return node

    def _mount_source(self, text: str, at: Location) -> Node | None:
        try:
            values = dict(field.partition("=")[::2] for field in fields(text, "mounts"))
        except ValueError as error:
            raise self.error(str(error), at) from None
        name = values.get("from", "")
        if not name or values.get("type", "bind").lower() not in ("bind", "cache"):
            return None
        return self._by_name.get(name.lower()) or self._image_node(name, at)

    def _check_circles(self) -> None:
        """Raises DockerfileError for the first node that needs itself."""
        done: set[int] = set()
        for first in self.nodes:
            if first.number in done:
                continue
            open_nodes = {first.number}
            path = [(first, first.below())]
            while path:
                node, rest = path[-1]
                step = next(rest, None)
                if step is None:
                    path.pop()
                    open_nodes.discard(node.number)
                    done.add(node.number)
                    continue
                below, at = step
                if below.number in open_nodes:
                    raise self.error(f"circular dependency detected on stage: {below.shown}", at)
                if below.number not in done:
                    open_nodes.add(below.number)
                    path.append((below, below.below()))

    # -- reachability and triggers

    def _resolve(self) -> None:
        while True:
            reachable = self._reachable()
            more = False
            for node in reachable:
                if not node.triggered and (triggers := self._triggers(node)) is not None:
                    node.triggered = True
                    more |= self._pull_triggers(node, triggers)
            if not more:
                break
            self._check_circles()
        self.order = reachable
        found: dict[Key, Wanted] = {}
        for node in reachable:
            if node.key is not None and node.key not in self.known and node.key not in found:
                found[node.key] = self._wanted(node, node.key)
        self.missing = list(found.values())

    def _reachable(self) -> list[Node]:
        seen = {self.target.number: self.target}
        pending = [self.target]
        while pending:
            for below, _ in pending.pop().below():
                if below.number not in seen:
                    seen[below.number] = below
                    pending.append(below)
        # Images come first: a stage may need one that was numbered after it.
        return sorted(seen.values(), key=lambda node: (node.stage is not None, node.number))

    def _triggers(self, node: Node) -> list[str] | None:
        """Texts of the triggers that run in a node; None when its base image is not known yet."""
        if node.base is not None:
            below = () if node.base.replaced else node.base.needs
            return [one.instruction.expression for one in below if isinstance(one.instruction, OnBuild)]
        if node.key is None:
            return []
        base = self.known.get(node.key)
        return None if base is None else list(base.config.defaults.on_build or ())

    def _pull_triggers(self, node: Node, triggers: Iterable[str]) -> bool:
        """Put triggers in front of the node's instructions; whether they need nodes."""
        at = node.location
        made: list[Needed] = []
        for text in triggers:
            try:
                instruction = parse_trigger(text)
            except DockerfileError as error:
                raise self.error(f"ONBUILD {text}: {error.message}", at, hint=error.hint) from None
            made.append(self._needed(instruction, at, trigger=True))
        node.needs[:0] = made
        node.steps += sum(_is_step(one.instruction) for one in made)
        return any(one.sources for one in made)

    def _wanted(self, node: Node, key: Key) -> Wanted:
        reference, platform = key
        name = f"{self.prefix(platform)}internal] load metadata for {reference}"
        if node.context is not None:
            name = f"[context {node.context.name}] load metadata for {reference}"
        return Wanted(reference=reference, platform=platform, origin=node.image, name=name, location=node.location)

    @property
    def multi(self) -> bool:
        """Whether several platforms are built, so that names must say which."""
        return len(self.options.platforms) > 1 or platformargs.is_true(self.arguments, platformargs.MULTI_PLATFORM)

    def prefix(self, platform: Platform) -> str:
        """How a name in brackets begins."""
        return f"[{platform} " if self.multi else "["


def _is_step(instruction: Instruction) -> bool:
    return isinstance(instruction, Run | Copy | Add | Workdir)


def check_dependency(node: Node, source: Node, message: str) -> None:
    """Raises Fault unless `source` is done before `node`."""
    if source.stage is not None and source.number >= node.number:
        raise Fault(message)
