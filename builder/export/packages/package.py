"""A package that was found in an image, and its package URL. Pure.

Package URLs follow the purl specification (types deb, apk, rpm, pypi, npm).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import msgspec

TEXT_MAX = 1000
"""Characters of a field that are taken: databases are hostile."""


class Package(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """`kind`: the purl's type. `license` as the package declares it, "" for not at all. `found`: the file in the image that names it;
    `supplier`: who made the package, as written."""

    kind: str
    name: str
    version: str
    purl: str
    license: str = ""
    supplier: str = ""
    found: str = ""


class Distribution(msgspec.Struct, frozen=True):
    """`/etc/os-release`: ID and VERSION_ID, "" where it does not say."""

    id: str = ""
    version: str = ""

    @property
    def qualifier(self) -> str:
        """The purl's `distro`: debian-12."""
        return f"{self.id}-{self.version}" if self.id and self.version else self.id


def purl(kind: str, name: str, version: str, namespace: str = "", qualifiers: Mapping[str, str] | None = None) -> str:
    """A package URL; qualifiers with empty values are left out."""
    path = "/".join(quote(part, safe="") for part in (*namespace.split("/"), *((name,) if kind != "npm" else name.split("/"))) if part)
    text = f"pkg:{kind}/{path}"
    if version:
        text += "@" + quote(version, safe=":~")
    given = sorted((key, value) for key, value in (qualifiers or {}).items() if value)
    return text + ("?" + "&".join(f"{key}={quote(value, safe=':~')}" for key, value in given) if given else "")


def clean(text: str) -> str:
    """A field as one short printable line."""
    return "".join(c if c.isprintable() else " " for c in text[:TEXT_MAX]).strip()


def distribution(text: str) -> Distribution:
    """From the text of os-release(5)."""
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals:
            values[name] = clean(value.strip("\"'"))
    return Distribution(values.get("ID", ""), values.get("VERSION_ID", ""))
