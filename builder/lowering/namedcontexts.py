"""Named contexts of a build: which names they replace, and what they are. Pure.

A name is compared as Docker shows image names: `busybox`, `docker.io/library/busybox` and `busybox:latest` are one. `NAME::PLATFORM` is for
that platform alone, and goes before `NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from builder.language import giturl
from builder.language.addresses import is_git, is_web
from builder.language.suggest import hint
from engine.errors import InvalidParameter
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.build import MAIN_CONTEXT
from engine.spec.platform import Platform

SCRATCH_IMAGE = "scratch"
_IMAGE = "docker-image://"
_LAYOUT = "oci-layout://"
_SENT = "sent:"
_TYPES = ("docker-image", "oci-layout", "http", "https", "git", "ssh", "sent")


class NamedContext(msgspec.Struct, frozen=True):
    """What stands for a name. `kind`: folder (the client sends it), image (`value` is a reference or an address of an OCI layout), scratch,
    git or web (`value` is the address). `name` as it was given."""

    name: str
    kind: str
    value: str


class NamedContexts:
    """Those of one build."""

    def __init__(self, contexts: Mapping[str, str]) -> None:
        """`contexts`: name -> value, as in the options. Raises InvalidParameter."""
        self._contexts = {_normal_with_platform(name): NamedContext(name, *_kind(name, value)) for name, value in contexts.items()}

    def find(self, name: str, platform: Platform) -> NamedContext | None:
        """The context that stands for the name of a stage or image. Raises InvalidParameter."""
        if not self._contexts or name.lower() in (SCRATCH_IMAGE, MAIN_CONTEXT):
            return None
        normal = _normal(name)
        return self._contexts.get(f"{normal}::{platform.normalised()}") or self._contexts.get(normal)


def _normal(name: str) -> str:
    try:
        return references.parse(name).familiar.removesuffix(":latest")
    except InvalidParameter as error:
        raise InvalidParameter(f"invalid context name {name}: {error}") from None


def _normal_with_platform(name: str) -> str:
    name, mark, platform = name.partition("::")
    return _normal(name) + (f"::{platforms.parse(platform)}" if mark else "")


def _kind(name: str, value: str) -> tuple[str, str]:
    if value.startswith(_SENT):
        return "folder", ""
    if value.startswith(_IMAGE):
        image = value.removeprefix(_IMAGE)
        return ("scratch", "") if image == SCRATCH_IMAGE else ("image", str(references.parse(image).with_default_tag()))
    if value.startswith(_LAYOUT):
        return "image", value
    if is_git(value):
        giturl.parse(value)
        return "git", value
    if is_web(value):
        return "web", value
    kind = value.partition(":")[0]
    advice = "only bake can give it" if kind in ("target", "input") else hint(kind, _TYPES)
    raise InvalidParameter(f"unsupported context source {kind} for {name}", hint=advice)
