"""Packages of dpkg: `/var/lib/dpkg/status`, and `status.d` of images that were made without dpkg. Pure but for what it is given.

Follows dpkg's status file (deb-control(5)); licences are the `License:` fields of machine-readable copyright files (DEP 5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from builder.export.packages.package import Distribution, Package, clean, purl
from builder.export.packages.paragraphs import paragraphs

STATUS = "var/lib/dpkg/status"
FOLDER = "var/lib/dpkg/status.d"

_LICENSE = re.compile(r"^License:[ \t]*([^\n]+)$", re.MULTILINE)
_MOST_LICENSES = 50


def packages(text: str, found: str, distribution: Distribution, copyright: Callable[[str], str]) -> Iterator[Package]:
    """The installed packages of a status file. `copyright`: a package's name -> the text of its copyright file, "" for none."""
    for fields in paragraphs(text):
        name, version = clean(fields.get("package", "")), clean(fields.get("version", ""))
        state = fields.get("status", "install ok installed").split()
        if not name or not version or state[-1:] != ["installed"]:
            continue
        source, _, rest = fields.get("source", "").partition("(")
        upstream = clean(source) + (f"@{clean(rest.rstrip(') '))}" if rest else "")
        qualifiers = {"arch": clean(fields.get("architecture", "")), "distro": distribution.qualifier, "upstream": upstream}
        yield Package(
            kind="deb",
            name=name,
            version=version,
            purl=purl("deb", name, version, distribution.id or "debian", qualifiers),
            license=licenses(copyright(name)),
            supplier=clean(fields.get("maintainer", "")),
            found=found,
        )


def licenses(text: str) -> str:
    """The licences of a copyright file as one expression, "" when it is not a machine-readable one."""
    if not text.lstrip().startswith("Format:"):
        return ""
    names = sorted({clean(match) for match in _LICENSE.findall(text)} - {""})[:_MOST_LICENSES]
    return " AND ".join(f"({name})" if " " in name else name for name in names)
