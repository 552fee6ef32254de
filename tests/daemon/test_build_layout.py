"""`--build-context NAME=oci-layout://…`: images in OCI layouts of the client's as bases of builds, whole, several, damaged and hostile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.wire import buildframes as frames
from tests.daemon.test_build_client import QUIET, Site
from tests.daemon.test_build_security import OWN, Liar, folder, manifest
from tests.lib.daemon import Daemon

BASE = "FROM busybox\nARG TARGETARCH\nENV FROM_BASE=yes\nLABEL own=1\nRUN echo base > /base\nCOPY data /data\n"


@pytest.fixture
def site(daemon: Daemon, tmp_path: Path) -> Iterator[Site]:
    site = Site(daemon, tmp_path)
    site.write("base/Dockerfile", BASE)
    site.write("base/data", str(tmp_path))
    site.write("Dockerfile", "FROM base\nLABEL own=1\nRUN cat /base > /made && echo $FROM_BASE >> /made\n")
    yield site
    daemon.remove_all()
    site("image", "prune", "-a", "-f", "--filter", "label=own")
    site("builder", "prune", "-a", "-f")


def layout(site: Site, *words: str, name: str = "one:1") -> Path:
    """A layout of the base, which the daemon forgets."""
    site("build", *QUIET, "--output", f"type=oci,dest=layout,tar=false,name={name}", *words, "base")
    site("builder", "prune", "-a", "-f")
    return site.folder / "layout"


def index_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return found


def blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "/")


def images(site: Site) -> set[str]:
    return set(site("images", "-a", "-q", "--no-trunc").stdout.split())


@pytest.mark.parametrize("how", ["", ":1", "@digest", ":1@digest"])
def test_an_image_in_a_layout_is_a_base(site: Site, how: str) -> None:
    place = layout(site)
    digest = index_of(place)["manifests"][0]["digest"]
    before = images(site)
    words = ("--build-context", f"base=oci-layout://layout{how.replace('digest', digest)}", "-t", "app", "--provenance=mode=max")
    built = site("build", *QUIET, *words, ".")
    assert site.run("app", "cat", "/made", "/base", "/data") == f"base\nyes\nbase\n{site.folder}"
    assert len(images(site) - before) == 1  # the base is no image here
    again = site("build", *QUIET, *words, ".")
    assert "0 steps executed, 1 from the cache" in again.stderr and "1 step executed" in built.stderr
    site("rmi", "app")
    assert "0 steps executed, 1 from the cache" in site("build", *QUIET, *words, ".").stderr
    assert site.run("app", "cat", "/made") == "base\nyes\n"
    site("save", "-o", "app.tar", "app")


def test_files_come_from_a_layout(site: Site) -> None:
    layout(site)
    site.write("Dockerfile", "FROM scratch\nLABEL own=1\nCOPY --from=other /base /data /\n")
    site("build", *QUIET, "--build-context", "other=oci-layout://layout", "--output", "out", ".")
    assert (site.folder / "out/base").read_text() == "base\n"
    assert (site.folder / "out/data").read_text() == str(site.folder)


def test_a_layout_of_several_platforms(site: Site) -> None:
    site.write("base/Dockerfile", "FROM scratch\nARG TARGETARCH\nENV ARCH=$TARGETARCH\nLABEL own=1\nCOPY data /data-$TARGETARCH\n")
    place = layout(site, "--platform=linux/amd64,linux/arm64")
    site.write("Dockerfile", "FROM base\nLABEL own=1\nCOPY --from=base . /copy\n")
    words = ("--build-context", "base=oci-layout://layout:1", "--output", "out")
    site("build", *QUIET, "--platform=linux/arm64", *words, ".")
    assert (site.folder / "out/data-arm64").is_file() and (site.folder / "out/copy/data-arm64").is_file()
    missing = site("build", *QUIET, "--platform=linux/s390x", *words, ".", check=False)
    assert missing.returncode == 1 and "no matching manifest for linux/s390x" in missing.stderr
    # A blob of a platform that is not built may be missing.
    for one in json.loads(blob(place, index_of(place)["manifests"][0]["digest"]).read_text())["manifests"]:
        if one["platform"]["architecture"] == "amd64":
            blob(place, one["digest"]).unlink()
    site("build", *QUIET, "--no-cache", "--platform=linux/arm64", *words, ".")


def test_layouts_that_are_not_there(site: Site) -> None:
    def refused(value: str) -> str:
        failed = site("build", *QUIET, "--build-context", f"base=oci-layout://{value}", ".", check=False)
        assert failed.returncode == 1
        return failed.stderr

    assert 'oci-layout reference "oci-layout://nowhere" could not be resolved' in refused("nowhere")
    place = layout(site)
    index = index_of(place)
    (place / "index.json").write_text(json.dumps(index | {"manifests": index["manifests"] * 2}))
    assert "its index has no tag 3" in refused("layout:3")
    assert "it has no blob sha256:00" in refused("layout@sha256:" + "0" * 64)
    assert "invalid digest" in refused("layout@../../etc/passwd")


def test_damaged_layouts_are_refused(site: Site) -> None:
    place = layout(site)
    digest = index_of(place)["manifests"][0]["digest"]
    document = json.loads(blob(place, digest).read_text())
    before = images(site)
    words = ("--build-context", "base=oci-layout://layout", "-t", "app", ".")
    for one, told in ((document["layers"][-1]["digest"], "sha256:"), (document["config"]["digest"], "of the OCI layout is")):
        path = blob(place, one)
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        failed = site("build", *QUIET, *words, check=False)
        assert failed.returncode == 1 and told in failed.stderr, failed.stderr
        path.unlink()
        failed = site("build", *QUIET, *words, check=False)
        assert failed.returncode == 1 and "no such file in the OCI layout" in failed.stderr
        path.write_bytes(kept)
    assert images(site) == before
    site("build", *QUIET, *words)


def test_an_address_without_its_context_is_refused(site: Site, daemon: Daemon) -> None:
    for address, told in (("oci-layout://0", "expected the digest"), ("oci-layout://0@sha256:" + "1" * 64, "there is no build context")):
        with Liar(daemon, {"contexts": {"busybox": address}}) as client:
            client.send(frames.MANIFEST, manifest(address, folder(b"", OWN)))
            found = client.end(b"FROM busybox\nRUN true\n")
        assert told in found["message"]
