"""From a Dockerfile to the graph of what is to be done. Pure: files, images and networks are for those who execute the graph.

Follows BuildKit's front end. First `wanted`, in rounds, for the base images; with all of them, `lower`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from builder.graph import SCRATCH, GitSource, Graph, HttpSource, ImageSource, Step, Target
from builder.language import platformargs
from builder.language.addresses import filename
from builder.language.instructions import Add, Copy, Dockerfile, Instruction, Run, Workdir
from builder.lowering import lowercopy, lowerrun, metadata
from builder.lowering.namedcontexts import NamedContext
from builder.lowering.stages import Base, Key, Needed, Node, Stages, Wanted
from builder.lowering.state import DEFAULT_PATH, Lowering, State, empty_image, inherited
from engine.errors import InvalidParameter
from engine.spec.build import Options
from engine.spec.image import ImageConfig
from engine.spec.platform import Platform

_FOLDER_COMMENT = "buildkit.exporter.image.v0"


def wanted(
    dockerfile: Dockerfile, options: Options, platform: Platform, build_platform: Platform, known: Mapping[Key, Base]
) -> list[Wanted]:  # fmt: skip
    """The base images that the target needs and that are not `known`, each once. When there are none, `lower` can be called; until then
    ask again with more, because triggers of a base image may want others.

    `platform`: what is built for; `build_platform`: that of the machine. Raises DockerfileError, InvalidParameter.
    """
    return Stages(dockerfile, options, platform, build_platform, known).missing


def lower(
    dockerfile: Dockerfile, options: Options, platform: Platform, build_platform: Platform, bases: Mapping[Key, Base]
) -> Graph:  # fmt: skip
    """The graph of one platform. Raises DockerfileError with the place; InvalidParameter for options; NotImplementedYet."""
    stages = Stages(dockerfile, options, platform, build_platform, bases)
    if stages.missing:
        raise ValueError(f"base images are missing: {[one.reference for one in stages.missing]}")
    lowering = Lowering(stages)
    for node in stages.order:
        lowering.states[node.number] = _stage(lowering, node, bases)
    target = lowering.states[stages.target.number]
    return Graph(
        vertices=tuple(lowering.vertices.all),
        target=Target(
            root=target.root,
            config=_finished(target.config, options, platform),
            platform=target.platform,
            base=target.base,
            steps=tuple(target.history),
        ),
        plan=tuple(_plan(lowering)),
        used=tuple(sorted(stages.used)),
        images=_images(stages, bases),
        epoch=_epoch(lowering),
    )


def _stage(lowering: Lowering, node: Node, bases: Mapping[Key, Base]) -> State:
    try:
        state = _beginning(lowering, node, bases)
    except InvalidParameter as error:
        raise lowering.stages.located(error, node.location) from None
    if node.stage is None or node.replaced:
        return state
    state.replacement = None
    state.no_cache = _not_cached(lowering.options, node.name)
    lowering.note(state, node.stage.base, None if node.base is not None or state.root == SCRATCH else state.root)
    _environment(state)
    for needed in node.needs:
        try:
            _instruction(lowering, state, needed)
        except (InvalidParameter, ValueError) as error:
            raise lowering.stages.located(error, needed.location) from None
    return state


def _beginning(lowering: Lowering, node: Node, bases: Mapping[Key, Base]) -> State:
    """A stage before its first instruction."""
    if node.base is not None:
        return lowering.states[node.base.number].child(node)
    if node.key is not None:
        return _image(lowering, node, bases[node.key])
    platform = (node.platform if node.context is not None else None) or lowering.stages.platform
    state = State(node, platform, empty_image(platform))
    if node.context is None or node.context.kind == "scratch":
        return state
    state.replacement = _sources(lowering, node.context)
    if node.stage is None:
        return state
    op, inputs = lowercopy.whole_tree(state.replacement)
    name = f"[context {node.context.name}] root file system"
    state.root = lowering.vertices.add(op, inputs, name, line=node.location.line, stage=node.index)
    created_by = f"local source for {node.context.name}"
    step = Step(created_by=created_by, comment=_FOLDER_COMMENT, vertex=state.root, stage=node.index, line=node.location.line)
    state.history.append(step)
    return state


def _image(lowering: Lowering, node: Node, base: Base) -> State:
    state = State(node, base.platform, inherited(base.config), base=base.config)
    if not base.chain:
        return state  # an image without layers: nothing to be there
    shown = base.reference
    if node.context is not None:
        name = f"[context {node.context.name}] {shown}"
    else:
        name = lowering.named(state, f"FROM {shown}")
    op = ImageSource(reference=base.reference, image=base.image, chain=base.chain, platform=base.platform)
    state.root = lowering.vertices.add(op, (), name, line=node.location.line, stage=node.index)
    return state


def _sources(lowering: Lowering, context: NamedContext) -> int:
    """The vertex of a named context that is no image."""
    if context.kind == "folder":
        return lowering.vertices.context(context.name)
    name = f"[context {context.name}] {context.value}"
    if context.kind == "git":
        keep = platformargs.is_true(lowering.arguments, platformargs.KEEP_GIT_DIR)
        return lowering.vertices.add(GitSource(url=context.value, keep_git_dir=keep), (), name)
    return lowering.vertices.add(HttpSource(url=context.value, filename=filename(context.value)), (), name)


def _environment(state: State) -> None:
    """Variables of the image, with a PATH in any case. They come after arguments that a stage below has set, and so win."""
    env = state.config.defaults.env or ()
    if not any(entry.partition("=")[0] == "PATH" for entry in env) and state.platform.os != "windows":
        env = (*env, f"PATH={DEFAULT_PATH}")
        state.change(env=env)
    for entry in env:
        name, _, value = entry.partition("=")
        state.set_variable(name, value)


def _not_cached(options: Options, name: str) -> bool:
    return options.no_cache or (bool(name) and any(one.lower() == name for one in options.no_cache_filter))


_FILES: dict[type[Instruction], Callable[[Lowering, State, Needed, Any], None]] = {
    Add: lowercopy.copy,
    Copy: lowercopy.copy,
    Run: lowerrun.run,
    Workdir: lowercopy.workdir,
}


def _instruction(lowering: Lowering, state: State, needed: Needed) -> None:
    if metadata.apply(lowering, state, needed):
        return
    _FILES[type(needed.instruction)](lowering, state, needed, needed.instruction)


def _finished(config: ImageConfig, options: Options, platform: Platform) -> ImageConfig:
    """The configuration with what the build's options say, and names in order."""
    defaults = config.defaults
    labels = {**(defaults.labels or {}), **options.labels}
    config = msgspec.structs.replace(
        config,
        config=msgspec.structs.replace(
            defaults,
            labels=dict(sorted(labels.items())) or None,
            exposed_ports=_sorted(defaults.exposed_ports),
            volumes=_sorted(defaults.volumes),
        ),
    )
    if options.platforms:  # who asks for a platform gets an image that says so
        same = (config.os, config.architecture) == (platform.os, platform.architecture)
        config = msgspec.structs.replace(
            config,
            os=platform.os,
            architecture=platform.architecture,
            variant=platform.variant if platform.variant or not same else config.variant,
            os_version=platform.os_version if platform.os_version or not same else config.os_version,
        )
    return config


def _sorted(names: dict[str, dict[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
    return dict(sorted(names.items())) if names else None


def _plan(lowering: Lowering) -> list[Step]:
    """All steps in the order of the Dockerfile: the global arguments, then each stage that is needed."""
    steps = [Step(created_by="", comment="", instruction=arg.text, line=arg.location.line) for arg in lowering.stages.dockerfile.arguments]
    for node in lowering.stages.order:
        steps += lowering.states[node.number].plan
    return steps


def _images(stages: Stages, bases: Mapping[Key, Base]) -> tuple[tuple[str, str], ...]:
    used = {bases[node.key].reference: bases[node.key].digest for node in stages.order if node.key is not None}
    return tuple(sorted(used.items()))


def _epoch(lowering: Lowering) -> int | None:
    value = lowering.arguments.get(platformargs.EPOCH, lowering.stages.globals.get(platformargs.EPOCH, ""))
    return platformargs.epoch(value)
