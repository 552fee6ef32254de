"""What a build answers without building: checks, outline, targets; and the checks as warnings of a build.

Base images are looked at where they are here; nothing is pulled for an answer.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from builder.checks import checkreport, checkrules, checks, outline
from builder.language.errors import DockerfileError
from builder.language.ignore import Patterns
from builder.language.instructions import Dockerfile
from builder.lowering.stages import Base, Key, Stages
from engine.errors import InvalidParameter, KnarrError
from engine.service.images import Images
from engine.spec.build import Finding, Options, Result
from engine.spec.platform import Platform

_encode = msgspec.json.Encoder().encode


def answer(dockerfile: Dockerfile, options: Options, platform: Platform, images: Images, ignored: Patterns | None) -> Result:
    """The answer to `options.call`. Raises InvalidParameter."""
    host = images.host
    given = _given(options)
    match options.call:
        case "check":
            bases = _local(dockerfile, options, platform, images)
            env, shells = _environments(dockerfile, options, platform, host, bases)
            found = checks.run(
                dockerfile, platform=platform, build_platform=host, target=options.target, build_args=given, ignore=ignored, base_env=env,
                base_shells=shells, every_stage=True,
            )  # fmt: skip
            report = checkreport.report(dockerfile, found, checkrules.wanted(dockerfile, given))
            return Result(text=report.text, answer=msgspec.Raw(_encode(report.answer)), code=report.code, error=report.error)
        case "outline":
            shown = outline.outline(dockerfile, platform=platform, build_platform=host, target=options.target, build_args=given)
            return Result(text=outline.outline_text(shown), answer=msgspec.Raw(_encode(outline.outline_answer(dockerfile, shown))))
        case "targets":
            listed = outline.targets(dockerfile)
            return Result(text=outline.targets_text(listed), answer=msgspec.Raw(_encode(outline.targets_answer(dockerfile, listed))))
    raise InvalidParameter(f"invalid --call={options.call}: build, check, outline or targets")


def checked(
    dockerfile: Dockerfile, options: Options, platform: Platform, host: Platform, bases: Mapping[Key, Base], ignored: Patterns | None
) -> list[Finding]:  # fmt: skip
    """The checks of the stages that a build needs. Raises DockerfileError where they are to fail it."""
    given = _given(options)
    env, shells = _environments(dockerfile, options, platform, host, bases)
    found = checks.run(
        dockerfile, platform=platform, build_platform=host, target=options.target, build_args=given, ignore=ignored, base_env=env,
        base_shells=shells,
    )  # fmt: skip
    failure = checkrules.failure(found, checkrules.wanted(dockerfile, given))
    if failure:
        at = found[0].location
        raise DockerfileError(failure, path=dockerfile.path, line=at.line, end=at.end, text=dockerfile.text)
    return [checkrules.finding(one, dockerfile) for one in found]


def _given(options: Options) -> dict[str, str]:
    return {name: value for name, value in options.build_args.items() if value is not None}


def _local(dockerfile: Dockerfile, options: Options, platform: Platform, images: Images) -> dict[Key, Base]:
    """The base images that are here."""
    known: dict[Key, Base] = {}
    try:
        missing = Stages(dockerfile, options, platform, images.host, known).missing
    except InvalidParameter:
        return known  # a mistake that the checks are not about
    for one in missing:
        try:
            image = images.get(one.reference, str(one.platform))
        except KnarrError:
            continue
        known[one.key] = Base(
            reference=one.reference, image=image.id, chain=image.chain_id or "", config=image.config, platform=image.config.platform
        )
    return known


def _environments(
    dockerfile: Dockerfile, options: Options, platform: Platform, host: Platform, bases: Mapping[Key, Base]
) -> tuple[dict[int, tuple[str, ...]], list[int]]:
    """By stage: the environment of its base image; and the stages whose image has a SHELL of its own."""
    env: dict[int, tuple[str, ...]] = {}
    shells: list[int] = []
    try:
        nodes = Stages(dockerfile, options, platform, host, bases).order
    except InvalidParameter:
        return env, shells
    for node in nodes:
        if node.stage is None:
            continue
        if node.key is not None and node.key in bases:
            defaults = bases[node.key].config.defaults
            env[node.index] = defaults.env or ()
            if defaults.shell:
                shells.append(node.index)
        elif node.key is None and node.base is None:
            env[node.index] = ()
    return env, shells
