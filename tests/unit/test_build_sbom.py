"""Packages of an image and the SPDX document of them: real files in real folders, as distributions write them, and hostile ones."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.export import sbom
from builder.export.packages import rpm, sqlite
from builder.export.packages.image import Found, scan
from builder.export.packages.package import Distribution, Package, purl
from builder.export.packages.pieces import Unreadable
from tests.lib import rpmdatabases
from tests.lib.rpmdatabases import header

CREATED = "2026-01-01T00:00:00Z"

STATUS = """\
Package: libc6
Status: install ok installed
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Architecture: amd64
Source: glibc (2.36-9)
Version: 2.36-9+deb12u8
Description: a library
 with more
 .
 text

Package: gone
Status: deinstall ok config-files
Version: 1

Package: tzdata
Status: install ok installed
Architecture: all
Version: 1:2024a-0
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
License: LGPL-2.1+

License: GPL-2+ or Artistic
 text
"""
APK = """\
C:Q1abc=
P:musl
V:1.2.4-r2
A:x86_64
L:MIT
o:musl
m:Timo <t@a>
F:lib
R:ld-musl.so

P:busybox
V:1.36.1-r5
L:GPL-2.0-only
"""


def write(root: Path, files: dict[str, str | bytes]) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    root.mkdir(exist_ok=True)
    return str(root)


def purls(*layers: str) -> list[str]:
    return [one.purl for one in scan(layers).packages]


def test_dpkg(tmp_path: Path) -> None:
    layer = write(
        tmp_path / "l",
        {
            "var/lib/dpkg/status": STATUS,
            "usr/lib/os-release": 'ID=debian\nVERSION_ID="12"\n',
            "usr/share/doc/libc6/copyright": COPYRIGHT,
        },
    )
    os.symlink("../usr/lib/os-release", write(tmp_path / "l/etc", {}) + "/os-release")
    libc, tzdata = scan([layer]).packages
    assert libc.purl == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u8?arch=amd64&distro=debian-12&upstream=glibc%402.36-9"
    assert libc.license == "(GPL-2+ or Artistic) AND LGPL-2.1+" and libc.supplier.startswith("GNU Libc")
    assert (tzdata.version, tzdata.purl) == ("1:2024a-0", "pkg:deb/debian/tzdata@1:2024a-0?arch=all&distro=debian-12")


def test_status_of_an_image_without_dpkg(tmp_path: Path) -> None:
    layer = write(
        tmp_path / "l",
        {
            "var/lib/dpkg/status.d/tzdata": "Package: tzdata\nVersion: 2024a\nArchitecture: all\n",
            "var/lib/dpkg/status.d/tzdata.md5sums": "Package: wrong\nVersion: 1\n",
        },
    )
    assert purls(layer) == ["pkg:deb/debian/tzdata@2024a?arch=all"]


def test_apk(tmp_path: Path) -> None:
    layer = write(tmp_path / "l", {"lib/apk/db/installed": APK, "etc/os-release": "ID=alpine\nVERSION_ID=3.19.1\n"})
    assert purls(layer) == [
        "pkg:apk/alpine/busybox@1.36.1-r5?distro=alpine-3.19.1",
        "pkg:apk/alpine/musl@1.2.4-r2?arch=x86_64&distro=alpine-3.19.1&upstream=musl",
    ]


def test_a_database_above_hides_the_one_below(tmp_path: Path) -> None:
    below = write(tmp_path / "a", {"lib/apk/db/installed": APK, "app/node_modules/x/package.json": '{"name":"x","version":"1"}'})
    above = write(
        tmp_path / "b", {"lib/apk/db/installed": "P:only\nV:1\n", "app/node_modules/y/package.json": '{"name":"y","version":"2"}'}
    )
    assert purls(above, below) == ["pkg:apk/alpine/only@1", "pkg:npm/x@1", "pkg:npm/y@2"]


def test_python(tmp_path: Path) -> None:
    site = "usr/lib/python3/dist-packages"
    layer = write(
        tmp_path / "l",
        {
            f"{site}/Foo_Bar-1.0.dist-info/METADATA": "Name: Foo.Bar\nVersion: 1.0\nLicense-Expression: MIT\n\nName: no\n",
            f"{site}/old-2.egg-info/PKG-INFO": "Name: old\nVersion: 2\nLicense: UNKNOWN\n"
            "Classifier: License :: OSI Approved :: MIT License\n",
            f"{site}/flat-3.egg-info": "Name: flat\nVersion: 3\nAuthor: A\n",
            f"{site}/nameless.dist-info/METADATA": "Version: 1\n",
        },
    )
    found = scan([layer]).packages
    assert [(one.purl, one.license) for one in found] == [
        ("pkg:pypi/foo-bar@1.0", "MIT"), ("pkg:pypi/flat@3", ""), ("pkg:pypi/old@2", "MIT License"),
    ]  # fmt: skip


def test_node(tmp_path: Path) -> None:
    lock = {
        "lockfileVersion": 3,
        "packages": {
            "": {"name": "app", "version": "0"},
            "node_modules/@s/a": {"version": "1.0.0", "license": "MIT"},
            "node_modules/b/node_modules/c": {"version": "2.0.0"},
            "node_modules/linked": {"resolved": "x", "link": True, "version": "9"},
        },
    }
    layer = write(
        tmp_path / "l",
        {
            "app/package.json": '{"name": "app", "version": "0"}',
            "app/node_modules/.package-lock.json": json.dumps(lock),
            "app/node_modules/@s/a/package.json": '{"name": "@s/a", "version": "1.0.0", "license": {"type": "MIT"}}',
            "app/node_modules/d/package.json": '{"name": "d", "version": "3", "licenses": [{"type": "MIT"}, {"type": "ISC"}]}',
            "app/node_modules/d/test/package.json": '{"name": "fixture", "version": "1"}',
            "app/node_modules/broken/package.json": '{"name": ["x"]',
        },
    )
    found = scan([layer]).packages
    assert [one.purl for one in found] == ["pkg:npm/%40s/a@1.0.0", "pkg:npm/c@2.0.0", "pkg:npm/d@3"]
    assert found[2].license == "MIT OR ISC"


def test_rpm(tmp_path: Path) -> None:
    blobs = [
        header(name="bash", version="5.2", release="1.fc41", epoch=0, license="GPLv3+", arch="x86_64", source="bash.src.rpm", vendor="F"),
        header(name="gpg-pubkey", version="1", release="2"),
        header(name="zlib", version="1.3"),
    ]
    data = rpmdatabases.sqlite(blobs)
    layer = write(tmp_path / "l", {"usr/lib/sysimage/rpm/rpmdb.sqlite": data, "etc/os-release": "ID=fedora\nVERSION_ID=41\n"})
    found = scan([layer])
    assert [(one.name, one.version) for one in found.packages] == [("bash", "0:5.2-1.fc41"), ("zlib", "1.3")]
    assert found.packages[0].purl == "pkg:rpm/fedora/bash@5.2-1.fc41?arch=x86_64&distro=fedora-41&epoch=0&upstream=bash.src.rpm"
    assert found.unread == ()


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    data = rpmdatabases.sqlite([header(name="a", version="1")])
    found = scan([write(tmp_path / "l", {"var/lib/rpm/rpmdb.sqlite": data[:4096]})])
    assert found.packages == () and found.unread[0].startswith("/var/lib/rpm/rpmdb.sqlite: it names page")
    assert sbom.document(found, "x", CREATED)["comment"].startswith("Not read: /var")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9000), max_size=12), st.sampled_from([512, 1024, 4096, 65536]))
def test_every_row_is_read(blobs: list[bytes], page: int) -> None:
    data = rpmdatabases.sqlite(blobs, page)
    assert [row[1] for row in sqlite.rows(io.BytesIO(data), "Packages")] == blobs


@settings(deadline=None)
@given(st.integers(0, 2**31), st.binary(min_size=1, max_size=40), st.integers(0, 2**31))
def test_no_damage_hangs_or_breaks(place: int, junk: bytes, cut: int) -> None:
    data = bytearray(SAMPLE)
    place %= len(data)
    data[place : place + len(junk)] = junk
    kept = cut % len(data) + 1 if cut % 3 == 0 else len(data)
    with contextlib.suppress(Unreadable):
        list(rpm.packages(rpm.READERS[b"rpmdb.sqlite"](io.BytesIO(data[:kept])), "x", Distribution(), []))


SAMPLE = rpmdatabases.sqlite([header(name=f"n{i}", version="1") * (i % 9 + 1) for i in range(80)], 512)


@given(st.binary(max_size=200))
def test_any_header_is_read_or_left(blob: bytes) -> None:
    rpm.header(blob)


def test_hostile_trees_stay_inside(tmp_path: Path) -> None:
    secret = write(tmp_path / "host", {"status": STATUS, "m/METADATA": "Name: s\nVersion: 1\n", "apk": APK})
    layer = write(tmp_path / "l", {"usr/x/y.dist-info/other": "", "loop/a": ""})
    os.makedirs(f"{layer}/var/lib/dpkg/status.d")
    os.makedirs(f"{layer}/lib/apk/db")
    os.symlink(f"{secret}/status", f"{layer}/var/lib/dpkg/status")
    os.symlink("../../../../../../../.." + secret + "/apk", f"{layer}/lib/apk/db/installed")
    os.symlink(f"{secret}/m", f"{layer}/usr/evil.dist-info")
    os.symlink(f"{secret}/m/METADATA", f"{layer}/usr/x/y.dist-info/METADATA")
    os.symlink("..", f"{layer}/loop/up")
    os.mkfifo(f"{layer}/var/lib/dpkg/status.d/pipe")
    os.symlink("os-release", f"{write(tmp_path / 'l/etc', {})}/os-release")
    assert scan([layer]) == Found(())


def test_an_empty_image() -> None:
    assert scan(()) == Found(())


# the document


def package(name: str = "n", license: str = "", **more: Any) -> Package:
    return Package(kind="npm", name=name, version="1", purl=purl("npm", name, "1"), license=license, **more)


def test_the_document() -> None:
    found = Found((package("@s/a", "MIT", supplier="Me", found="/app/package.json"), package("b")))
    made = sbom.document(found, "app:1", CREATED)
    assert (made["spdxVersion"], made["dataLicense"], made["SPDXID"], made["name"]) == ("SPDX-2.3", "CC0-1.0", "SPDXRef-DOCUMENT", "app:1")
    root, first, second = made["packages"]
    assert first["externalRefs"] == [
        {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": "pkg:npm/%40s/a@1"}
    ]
    assert (first["licenseDeclared"], first["supplier"], second["licenseDeclared"]) == ("MIT", "Person: Me", "NOASSERTION")
    assert first["sourceInfo"] == "acquired package info from /app/package.json"
    related = {(one["spdxElementId"], one["relationshipType"], one["relatedSpdxElement"]) for one in made["relationships"]}
    assert related == {
        ("SPDXRef-DOCUMENT", "DESCRIBES", root["SPDXID"]),
        (root["SPDXID"], "CONTAINS", first["SPDXID"]),
        (root["SPDXID"], "CONTAINS", second["SPDXID"]),
    }
    ids = [one["SPDXID"] for one in made["packages"]]
    assert len(set(ids)) == 3 and all(id.replace("SPDXRef-", "").replace("-", "").replace(".", "").isalnum() for id in ids)
    assert sbom.document(found, "app:1", CREATED) == made
    assert sbom.document(Found(()), "app:1", CREATED)["documentNamespace"] != made["documentNamespace"]


@pytest.mark.parametrize(
    ("declared", "expression"),
    [
        ("", "NOASSERTION"),
        ("MIT", "MIT"),
        ("mit", "MIT"),
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPLv2+ and MIT", "GPL-2.0-or-later AND MIT"),
        ("(MIT or Apache-2.0) AND ISC", "(MIT OR Apache-2.0) AND ISC"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("Custom", "LicenseRef-Custom"),
        ("MIT License", "LicenseRef-MIT-License"),
        ("(MIT", "LicenseRef-MIT"),
        ("MIT AND", "LicenseRef-MIT-AND"),
        ("GPL-2.0-only WITH Mine", "LicenseRef-GPL-2.0-only-WITH-Mine"),
    ],
)
def test_licences_become_valid_expressions(declared: str, expression: str) -> None:
    made = sbom.document(Found((package(license=declared),)), "x", CREATED)
    assert made["packages"][1]["licenseDeclared"] == expression
    texts = {one["licenseId"]: one["extractedText"] for one in made.get("hasExtractedLicensingInfos", ())}
    assert texts == ({expression: declared} if "LicenseRef" in expression else {})


def test_two_texts_never_share_a_reference() -> None:
    made = sbom.document(Found((package("a", "My License"), package("b", "My-License!"))), "x", CREATED)
    first, second = (one["licenseDeclared"] for one in made["packages"][1:])
    assert first != second and len(made["hasExtractedLicensingInfos"]) == 2
