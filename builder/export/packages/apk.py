"""Packages of apk: its database of what is installed. Pure.

Follows Alpine's apk-package(5) index fields: `P:` name, `V:` version, `A:` architecture, `L:` licence, `o:` origin, `m:` maintainer.
"""

from __future__ import annotations

from collections.abc import Iterator

from builder.export.packages.package import Distribution, Package, clean, purl

DATABASES = ("lib/apk/db/installed", "usr/lib/apk/db/installed")


def packages(text: str, found: str, distribution: Distribution) -> Iterator[Package]:
    """The packages of a database."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            if line[1:2] == ":":
                fields.setdefault(line[0], clean(line[2:]))
        name, version = fields.get("P", ""), fields.get("V", "")
        if name and version:
            qualifiers = {"arch": fields.get("A", ""), "distro": distribution.qualifier, "upstream": fields.get("o", "")}
            yield Package(
                kind="apk",
                name=name,
                version=version,
                purl=purl("apk", name, version, distribution.id or "alpine", qualifiers),
                license=fields.get("L", ""),
                supplier=fields.get("m", ""),
                found=found,
            )
