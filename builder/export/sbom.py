"""A software bill of materials of an image: an SPDX document of the packages that were found in it. Pure.

Follows SPDX 2.3 (JSON). Packages are named with their versions, licences as declared, and package URLs; files are not listed.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Any

import msgspec

from builder.export.packages.image import Found
from builder.export.packages.package import Package
from engine.spec.version import VERSION

PREDICATE = "https://spdx.dev/Document"
FILENAME = "sbom.spdx.json"

_NAMESPACE = uuid.UUID("6f1ad35c-7a0c-5cb1-9d3c-0b1c6cf6c2b5")
_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_ID = re.compile(r"[A-Za-z0-9.+-]+")
_NOT_ID = re.compile(r"[^A-Za-z0-9.-]+")
_OPERATORS = frozenset(("AND", "OR", "WITH"))
_EXPRESSION_MAX = 400
# Of SPDX's list of licences, those that packages declare most; others become LicenseRef-…, which every reader understands as well.
_LICENSES = frozenset(
    """0BSD AFL-2.1 AFL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-1.0-Perl Artistic-2.0 BSD-1-Clause
    BSD-2-Clause BSD-3-Clause BSD-4-Clause BSD-4-Clause-UC BSL-1.0 BlueOak-1.0.0 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0
    CDDL-1.0 CPL-1.0 EPL-1.0 EPL-2.0 EUPL-1.2 FTL GFDL-1.2-only GFDL-1.2-or-later GFDL-1.3-only GFDL-1.3-or-later GPL-1.0-only
    GPL-1.0-or-later GPL-2.0 GPL-2.0+ GPL-2.0-only GPL-2.0-or-later GPL-3.0 GPL-3.0+ GPL-3.0-only GPL-3.0-or-later HPND ICU IJG ISC
    JSON LGPL-2.0-only LGPL-2.0-or-later LGPL-2.1 LGPL-2.1+ LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0 LGPL-3.0+ LGPL-3.0-only
    LGPL-3.0-or-later LPPL-1.3c Libpng MIT MIT-0 MIT-CMU MPL-1.1 MPL-2.0 MS-PL NCSA OFL-1.1 OLDAP-2.8 OpenSSL PSF-2.0 PostgreSQL
    Python-2.0 Python-2.0.1 Ruby SSH-OpenSSH Sleepycat TCL Unicode-3.0 Unicode-DFS-2016 Unlicense Vim W3C WTFPL X11 ZPL-2.1 Zlib
    bzip2-1.0.6 curl libtiff zlib-acknowledgement""".split()
)
_EXCEPTIONS = frozenset(
    """Autoconf-exception-2.0 Autoconf-exception-3.0 Bison-exception-2.2 Classpath-exception-2.0 GCC-exception-2.0 GCC-exception-3.1
    GPL-CC-1.0 LLVM-exception Linux-syscall-note OpenSSL-exception""".split()
)
# Debian's and Fedora's short names of the same licences.
_NAMES = {one.lower(): one for one in _LICENSES} | {
    "expat": "MIT", "gpl-1+": "GPL-1.0-or-later", "gpl-2": "GPL-2.0-only", "gpl-2+": "GPL-2.0-or-later", "gpl-3": "GPL-3.0-only",
    "gpl-3+": "GPL-3.0-or-later", "lgpl-2": "LGPL-2.0-only", "lgpl-2+": "LGPL-2.0-or-later", "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-2.1+": "LGPL-2.1-or-later", "lgpl-3": "LGPL-3.0-only", "lgpl-3+": "LGPL-3.0-or-later", "gplv2": "GPL-2.0-only",
    "gplv2+": "GPL-2.0-or-later", "gplv3": "GPL-3.0-only", "gplv3+": "GPL-3.0-or-later", "lgplv2+": "LGPL-2.0-or-later",
    "lgplv2.1+": "LGPL-2.1-or-later", "lgplv3+": "LGPL-3.0-or-later", "asl-2.0": "Apache-2.0",
}  # fmt: skip

Json = dict[str, Any]


def document(found: Found, name: str, created: str) -> Json:
    """The document of an image `name`. `created`: RFC 3339, whole seconds. Equal input gives an equal document."""
    identity = hashlib.sha256(msgspec.json.encode([name, created, [one.purl for one in found.packages], found.unread])).hexdigest()
    licenses = _Licenses()
    packages = [_package(one, licenses) for one in found.packages]
    root = {
        "name": name,
        "SPDXID": "SPDXRef-DocumentRoot-Image",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "primaryPackagePurpose": "CONTAINER",
    }
    made: Json = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://spdx.org/spdxdocs/knarr-{uuid.uuid5(_NAMESPACE, identity)}",
        "creationInfo": {"creators": [f"Tool: knarr-{VERSION}"], "created": created},
        "packages": [root, *packages],
        "relationships": [
            {"spdxElementId": "SPDXRef-DOCUMENT", "relatedSpdxElement": root["SPDXID"], "relationshipType": "DESCRIBES"},
            *({"spdxElementId": root["SPDXID"], "relatedSpdxElement": one["SPDXID"], "relationshipType": "CONTAINS"} for one in packages),
        ],
    }
    if found.unread:
        made["comment"] = "Not read: " + "; ".join(found.unread)
    if licenses.others:
        made["hasExtractedLicensingInfos"] = [
            {"licenseId": id, "name": text, "extractedText": text} for id, text in sorted(licenses.others.items())
        ]
    return made


def _package(one: Package, licenses: _Licenses) -> Json:
    made: Json = {
        "name": one.name,
        "SPDXID": f"SPDXRef-Package-{one.kind}-{_NOT_ID.sub('-', one.name)[:100]}-{hashlib.sha256(one.purl.encode()).hexdigest()[:16]}",
        "versionInfo": one.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": licenses.expression(one.license),
        "copyrightText": "NOASSERTION",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": one.purl}],
    }
    if one.found:
        made["sourceInfo"] = f"acquired package info from {one.found}"
    if one.supplier:
        made["supplier"] = f"{'Organization' if one.kind in ('deb', 'rpm', 'apk') else 'Person'}: {one.supplier}"
    return made


class _Licenses:
    """Turns what packages declare into SPDX expressions. `others`: LicenseRef-… -> the text that it stands for."""

    def __init__(self) -> None:
        self.others: dict[str, str] = {}

    def expression(self, text: str) -> str:
        """A valid expression; NOASSERTION when nothing is declared."""
        text = text.strip()
        if not text:
            return "NOASSERTION"
        if len(text) <= _EXPRESSION_MAX:
            parsed = self._parse(_TOKEN.findall(text))
            if parsed is not None:
                return parsed
        return self._other(text)

    def _parse(self, tokens: list[str]) -> str | None:
        """`tokens` as an expression when they have the form of one; identifiers that SPDX does not know become references."""
        made: list[str] = []
        licenses: list[int] = []
        depth, operand = 0, True
        previous = ""
        for token in tokens:
            upper = token.upper()
            if token == "(" and operand and previous != "WITH":
                depth += 1
            elif token == ")" and not operand and depth:
                depth -= 1
            elif upper in _OPERATORS and not operand:
                operand = True
                token = upper
            elif operand and _ID.fullmatch(token) and upper not in _OPERATORS:
                if previous == "WITH":
                    if token not in _EXCEPTIONS:
                        return None
                else:
                    licenses.append(len(made))
                operand = False
            else:
                return None
            made.append(token)
            previous = token
        if operand or depth:
            return None
        for place in licenses:
            made[place] = _NAMES.get(made[place].lower()) or self._other(made[place])
        return " ".join(made).replace("( ", "(").replace(" )", ")")

    def _other(self, text: str) -> str:
        id = f"LicenseRef-{_NOT_ID.sub('-', text).strip('-')[:60] or 'other'}"
        if self.others.setdefault(id, text) != text:
            id += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
            self.others[id] = text
        return id
