"""Node's packages: `package.json` of each folder in `node_modules`, and the lock that npm leaves there (`.package-lock.json`). Pure.

Follows npm's package-json(5) and package-lock-json(5), lockfile versions 1 to 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from builder.export.packages.package import Package, clean, purl

LOCK = b".package-lock.json"
_FOLDER = "node_modules/"


def package(text: bytes, found: str) -> Package | None:
    """The package of a `package.json`; None when it names none."""
    document = _object(text)
    name, version = _text(document.get("name")), _text(document.get("version"))
    return _made(name, version, document, found) if name and version else None


def locked(text: bytes, found: str) -> Iterator[Package]:
    """The packages that a lock lists."""
    document = _object(text)
    listed = document.get("packages")
    if isinstance(listed, dict):
        for path, entry in listed.items():
            if isinstance(entry, dict) and _FOLDER in path and not entry.get("link"):
                name = _text(entry.get("name")) or clean(path.rpartition(_FOLDER)[2])
                version = _text(entry.get("version"))
                if name and version:
                    yield _made(name, version, entry, found)
        return
    pending = [document.get("dependencies")]
    while pending:
        one = pending.pop()
        for name, entry in one.items() if isinstance(one, dict) else ():
            if isinstance(entry, dict):
                version = _text(entry.get("version"))
                if version and ":" not in version:  # an address stands where the version of a package from elsewhere would
                    yield _made(clean(name), version, entry, found)
                pending.append(entry.get("dependencies"))


def _made(name: str, version: str, document: dict[str, Any], found: str) -> Package:
    author = document.get("author")
    return Package(
        kind="npm",
        name=name,
        version=version,
        purl=purl("npm", name, version),
        license=_license(document),
        supplier=_text(author.get("name") if isinstance(author, dict) else author),
        found=found,
    )


def _license(document: dict[str, Any]) -> str:
    """`license` is a text, or in old packages an object or a list of such."""
    given = document.get("license", document.get("licenses"))
    entries = given if isinstance(given, list) else [given]
    names = [_text(one.get("type") if isinstance(one, dict) else one) for one in entries[:20]]
    return " OR ".join(name for name in names if name)


def _text(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
