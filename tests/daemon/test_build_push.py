"""Images of builds that go to a registry: by tag and by digest, stored here and not, with and without TLS. Debian's registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.test_build_client import QUIET, Site
from tests.lib.daemon import Daemon
from tests.lib.registries import OCI_INDEX, OCI_MANIFEST, DockerRegistry

ACCEPT = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"}


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as made:
        yield made


@pytest.fixture
def site(daemon: Daemon, tmp_path: Path) -> Iterator[Site]:
    site = Site(daemon, tmp_path)
    site.write("Dockerfile", "FROM scratch\nLABEL own=1\nCOPY data /\n")
    site.write("data", str(tmp_path))
    yield site
    site("image", "prune", "-a", "-f", "--filter", "label=own")
    site("builder", "prune", "-a", "-f")


def built(site: Site, *words: str) -> dict[str, str]:
    """What `--metadata-file` has."""
    site("build", *QUIET, "--metadata-file", "meta.json", *words, ".")
    found: dict[str, str] = json.loads((site.folder / "meta.json").read_text())
    return found


def names(site: Site) -> str:
    return site("images", "-a", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}").stdout


@pytest.mark.parametrize("stored", ["true", "false"])
@pytest.mark.parametrize("words", [("--platform=linux/amd64",), ("--platform=linux/amd64,linux/arm64",), ("--provenance=true",)])
def test_a_push_by_digest(site: Site, registry: DockerRegistry, words: tuple[str, ...], stored: str) -> None:
    repository = f"by/digest{len(words[0])}{stored}"
    name = f"{registry.host}/{repository}"
    found = built(site, *words, "--output", f"type=image,name={name},push-by-digest=true,name-canonical=true,push=true,store={stored}")
    digest = found["containerimage.digest"]
    assert found["image.name"] == name
    status, headers, raw = registry.request("GET", f"/v2/{repository}/manifests/{digest}", headers=ACCEPT)
    assert status == 200 and headers["docker-content-digest"] == digest
    assert ("manifests" in json.loads(raw)) == ("arm64" in words[0] or "prov" in words[0])
    tags = registry.request("GET", f"/v2/{repository}/tags/list")
    assert tags[0] == 404 or json.loads(tags[2])["tags"] is None
    assert (f"{name} <none> {digest}" in names(site)) == (stored == "true")
    assert f"{name} latest" not in names(site)
    # Another step of a pipeline puts the pieces together by their digests.
    site("manifest", "create", f"{name}:all", f"{name}@{digest}") if "manifests" not in json.loads(raw) else None
    site("pull", "-q", f"{name}@{digest}")


def test_names_without_tags_from_the_flag(site: Site, registry: DockerRegistry) -> None:
    name = f"{registry.host}/by/flag"
    digest = built(site, "-t", name, "--output", "type=image,push-by-digest=true,push=true")["containerimage.digest"]
    assert registry.request("HEAD", f"/v2/by/flag/manifests/{digest}", headers=ACCEPT)[0] == 200
    failed = site("build", *QUIET, "-t", f"{name}:1", "--output", "type=image,push-by-digest=true,push=true", ".", check=False)
    assert failed.returncode == 1 and f"can't push tagged ref {name}:1 by digest" in failed.stderr


def test_a_push_of_what_is_not_stored(site: Site, registry: DockerRegistry) -> None:
    name = f"{registry.host}/not/stored:1"
    before = names(site)
    digest = built(site, "--output", f"type=registry,name={name},store=false")["containerimage.digest"]
    assert names(site) == before
    assert registry.request("GET", "/v2/not/stored/manifests/1", headers=ACCEPT)[1]["docker-content-digest"] == digest
    # The same image, here already as its layers alone, is pushed as what was built.
    stored = built(site, "-t", "kept")["containerimage.config.digest"]
    again = built(site, "--output", f"type=registry,name={name}2,store=false")
    assert again["containerimage.config.digest"] == stored and again["containerimage.digest"] == digest
    assert registry.request("HEAD", f"/v2/not/stored/manifests/{digest}", headers=ACCEPT)[0] == 200


def test_a_registry_without_tls_must_be_called_insecure(site: Site) -> None:
    registry = DockerRegistry()
    registry.config["http"]["addr"] = f"0.0.0.0:{registry.port}"
    with registry:
        name = f"0.0.0.0:{registry.port}/plain"  # the loopback, by an address that is not known for it
        refused = site("build", *QUIET, "--output", f"type=registry,name={name}", ".", check=False)
        assert refused.returncode == 1 and "registry" in refused.stderr
        digest = built(site, "--output", f"type=registry,name={name},registry.insecure=true")["containerimage.digest"]
        assert registry.request("GET", "/v2/plain/manifests/latest", headers=ACCEPT)[1]["docker-content-digest"] == digest
