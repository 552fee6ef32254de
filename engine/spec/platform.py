"""Platforms: `os/architecture[/variant]`, normalised as Docker does, and the choice among several. Pure.

Follows OCI image-index.md (platform) and the Go names of architectures that it refers to.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.errors import InvalidParameter

# uname's machine names and common spellings -> Go's architecture and variant (image-index.md, "variant").
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "386": ("386", ""),
    "x86": ("386", ""),
    "aarch64": ("arm64", ""),
    "arm64": ("arm64", ""),
    "armv8l": ("arm", "v7"),
    "armv8": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "arm": ("arm", ""),
    "armv7l": ("arm", "v7"),
    "armv7": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv6": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "armv5l": ("arm", "v5"),
    "armv5": ("arm", "v5"),
    "ppc64le": ("ppc64le", ""),
    "ppc64": ("ppc64", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "mips64": ("mips64", ""),
    "mips64le": ("mips64le", ""),
    "loongarch64": ("loong64", ""),
    "loong64": ("loong64", ""),
}
# Go's names of the systems that images are made for (containerd's platforms package knows these and more).
_SYSTEMS = frozenset("aix android darwin dragonfly freebsd illumos ios js linux nacl netbsd openbsd plan9 solaris windows".split())
_SHOWN = 100
_DEFAULT_VARIANT = {"arm": "v7", "arm64": "v8"}


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image is for, as in an index or a configuration. `variant` is "" when it does not matter."""

    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: tuple[str, ...] = msgspec.field(name="os.features", default=())

    def __str__(self) -> str:
        text = "/".join(part for part in (self.os, self.architecture, self.variant) if part)
        # It may come from a registry, and is shown on terminals.
        return text if text.isprintable() and len(text) <= _SHOWN else "".join(filter(str.isprintable, text))[:_SHOWN]

    def normalised(self) -> Platform:
        """The same with Go's architecture name; arm64/v8 and amd64/v1 lose their variant, a bare arm gets v7."""
        name, implied = _ARCHITECTURES.get(self.architecture.lower(), (self.architecture.lower(), ""))
        variant = self.variant.lower() or implied
        if variant and variant[0].isdigit():
            variant = "v" + variant
        if (name, variant) in (("arm64", "v8"), ("amd64", "v1")):
            variant = ""
        if name == "arm" and not variant:
            variant = _DEFAULT_VARIANT["arm"]
        return Platform(architecture=name, os=self.os.lower() or "linux", variant=variant)


def parse(text: str, host: Platform | None = None) -> Platform:
    """Parse `linux/arm/v7`, `linux/amd64`, `arm64` (of Linux) or `linux` (on the architecture of `host`). Raises InvalidParameter."""
    parts = text.lower().split("/")
    if not 1 <= len(parts) <= 3 or not all(part and part.replace("_", "").replace("-", "").replace(".", "").isalnum() for part in parts):
        raise InvalidParameter(f'"{text}": cannot parse platform specifier, expected os[/architecture[/variant]]')
    if len(parts) == 1:
        if parts[0] in _ARCHITECTURES:
            parts.insert(0, "linux")
        elif parts[0] in _SYSTEMS:
            parts.append(host.architecture if host is not None else "")
        else:
            raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) > 2 else "").normalised()


def from_machine(machine: str) -> Platform:
    """The platform of a host whose uname gives `machine`."""
    return Platform(architecture=machine).normalised()


def choices(wanted: Platform) -> tuple[Platform, ...]:
    """What a host of platform `wanted` can run, best first: its variant, then lower ones, then the 32-bit sibling."""
    wanted = wanted.normalised()
    if wanted.architecture == "arm":
        top = int(wanted.variant[1:]) if wanted.variant[1:].isdigit() else 7
        return tuple(Platform("arm", wanted.os, f"v{level}") for level in range(top, 4, -1))
    if wanted.architecture == "amd64":
        top = int(wanted.variant[1:]) if wanted.variant[1:].isdigit() else 1
        exact = tuple(Platform("amd64", wanted.os, f"v{level}" if level > 1 else "") for level in range(top, 0, -1))
        return (*exact, Platform("386", wanted.os))
    if wanted.architecture == "arm64":
        own = (wanted, Platform("arm64", wanted.os)) if wanted.variant else (wanted,)
        return (*own, *(Platform("arm", wanted.os, f"v{level}") for level in (8, 7, 6, 5)))
    return (wanted,)


def rank(candidate: Platform, wanted: Platform) -> int:
    """How well a host of platform `wanted` runs `candidate`: 0 is best, -1 is not at all."""
    order = choices(wanted)
    candidate = candidate.normalised()
    return order.index(candidate) if candidate in order else -1


def best(candidates: Iterable[Platform | None], wanted: Platform) -> int | None:
    """The index of the best candidate for `wanted`, or None. A candidate without platform is taken when nothing better is there."""
    found: tuple[int, int] | None = None
    for index, candidate in enumerate(candidates):
        place = 1000 if candidate is None else rank(candidate, wanted)
        if place >= 0 and (found is None or place < found[0]):
            found = (place, index)
    return None if found is None else found[1]
