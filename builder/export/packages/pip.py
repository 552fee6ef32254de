"""Python's installed distributions: METADATA of `*.dist-info`, PKG-INFO of `*.egg-info`. Pure.

Follows "Core metadata specifications" 2.4; names of package URLs are normalised as there.
"""

from __future__ import annotations

import re

from builder.export.packages.package import Package, clean, purl
from builder.export.packages.paragraphs import paragraphs

_SEPARATORS = re.compile(r"[-_.]+")
_UNKNOWN = frozenset(("", "UNKNOWN"))
_CLASSIFIER = re.compile(r"^Classifier:[ \t]*License :: (?:OSI Approved :: )?([^\n]+)$", re.MULTILINE)


def package(text: str, found: str) -> Package | None:
    """The distribution of a metadata file; None when it names none."""
    head = text.split("\n\n", 1)[0]
    fields = next(paragraphs(head), {})
    name, version = clean(fields.get("name", "")), clean(fields.get("version", ""))
    if name in _UNKNOWN or version in _UNKNOWN:
        return None
    license = clean(fields.get("license-expression", "")) or clean(fields.get("license", "").partition("\n")[0])
    if license in _UNKNOWN:
        license = " AND ".join(sorted({clean(match) for match in _CLASSIFIER.findall(head)} - {"OSI Approved"}))
    author = clean(fields.get("author", "")) or clean(fields.get("author-email", ""))
    return Package(
        kind="pypi",
        name=name,
        version=version,
        purl=purl("pypi", _SEPARATORS.sub("-", name).lower(), version),
        license=license,
        supplier="" if author in _UNKNOWN else author,
        found=found,
    )
