"""The build cache: elsewhere (a registry, a folder, an image), damaged and hostile ones, and what is kept here, how long and how much."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.lib import busybox
from tests.lib.buildwork import wait
from tests.lib.daemon import Daemon, docker_program, knarr_command
from tests.lib.distribution import Served
from tests.lib.registries import OCI_MANIFEST, DockerRegistry

DOCKERFILE = """
FROM busybox AS tools
RUN echo tool > /tool && ln /tool /hard && ln -s x /link && mkdir -m 1777 /open && rm /etc/passwd
RUN head -c 200000 /dev/urandom > /random && cat /proc/sys/kernel/random/uuid > /made
FROM busybox
COPY --from=tools /made /tool /usr/share/
RUN cat /proc/sys/kernel/random/uuid > /own && touch -d @1000000000 /old
COPY data /data/
WORKDIR /work
"""
STEPS = 6
ALL_CACHED = f"0 steps executed, {STEPS} from the cache"


class Host:
    """A daemon, and builds as its user types them in one folder."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_", "BUILDKIT", "SOURCE_DATE"))}
        self.environment = {**kept, "KNARR_HOST": f"unix://{daemon.socket}", "HOME": str(folder.parent)}

    def __call__(self, *words: str, check: bool = True) -> str:
        """What a command says, on both streams."""
        done = subprocess.run(
            [*knarr_command(), *words], env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        text = done.stdout.decode(errors="replace")
        assert not check or done.returncode == 0, f"{words}: {text}\n{self.daemon.log_tail()}"
        return text

    def build(self, *words: str, check: bool = True) -> str:
        return self("build", "--progress=plain", "--network=none", *words, ".", check=check)

    def run(self, image: str, *words: str) -> str:
        return self("run", "--rm", "--network=none", image, *words)

    def forget(self) -> None:
        """Everything but busybox goes, with the cache."""
        for image in self.daemon.api("GET", "/images/json?all=1").json():
            if "busybox:latest" not in (image["RepoTags"] or ()):
                self.daemon.api("DELETE", f"/images/{image['Id']}?force=1")
        assert self.daemon.api("POST", "/build/prune?all=1").status == 200

    def records(self) -> list[dict[str, Any]]:
        """The cache's records, without contexts."""
        answer = self.daemon.api("GET", "/system/df?type=build-cache").json()
        return [one for one in answer["BuildCache"] or () if one["Type"] == "regular"]


def executed(text: str) -> int:
    found = re.search(r"(\d+) steps? executed", text)
    assert found is not None, text
    return int(found[1])


@pytest.fixture(scope="module")
def daemons() -> Iterator[tuple[Daemon, Daemon]]:
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    made = Daemon(), Daemon()
    try:
        for one in made:
            busybox.load(one.start())
        yield made
    finally:
        for one in made:
            one.close()


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "context"
    path.mkdir()
    (path / "Dockerfile").write_text(DOCKERFILE + f"ENV TEST={tmp_path.name}\n")
    (path / "data").write_text(str(tmp_path))
    return path


@pytest.fixture
def here(daemons: tuple[Daemon, Daemon], folder: Path) -> Iterator[Host]:
    """The host that builds first."""
    host = Host(daemons[0], folder)
    yield host
    host.forget()


@pytest.fixture
def there(daemons: tuple[Daemon, Daemon], folder: Path) -> Iterator[Host]:
    """Another one, which has never built."""
    host = Host(daemons[1], folder)
    yield host
    host.forget()


# -- elsewhere


def test_a_cache_in_a_registry_spares_every_step(here: Host, there: Host, registry: DockerRegistry) -> None:
    ref = f"{registry.host}/cache/max"
    blobs = here.daemon.data_root / "content"
    before = {path.name for path in blobs.rglob("*") if len(path.name) == 64}
    first = here.build("-t", "one", "--cache-to", f"type=registry,ref={ref},mode=max")
    assert executed(first) == STEPS
    assert "exporting cache to registry" in first
    # Of what was sent, nothing is kept: only the image's two documents are new.
    assert len({path.name for path in blobs.rglob("*") if len(path.name) == 64} - before) == 2
    second = there.build("-t", "one", "--cache-from", f"type=registry,ref={ref}")
    assert ALL_CACHED in second
    assert f"importing cache manifest from {ref}" in second
    # The very same image, as the layers are.
    ids = {host("images", "-q", "--no-trunc", "one").strip() for host in (here, there)}
    assert len(ids) == 1
    assert there.run("one", "cat", "/own") == here.run("one", "cat", "/own")
    assert there.run("one", "stat", "-c", "%Y", "/old") == "1000000000\n"
    # Found again without the registry, also what lies in between.
    assert ALL_CACHED in there.build()
    (here.folder / "data").write_text("other")
    assert executed(there.build()) == 2


def test_all_stages_of_a_cache_with_mode_max_are_there(here: Host, there: Host, registry: DockerRegistry) -> None:
    ref = f"{registry.host}/cache/stages"
    here.build("--cache-to", f"type=registry,ref={ref},mode=max")
    assert "0 steps executed, 2 from the cache" in there.build("-t", "tools", "--target", "tools", "--cache-from", ref)
    assert there.run("tools", "sh", "-c", "cat /hard; readlink /link; stat -c %a /open; stat -c %h /tool") == "tool\nx\n1777\n2\n"
    assert "passwd" not in there.run("tools", "ls", "/etc")
    there.forget()
    # A last step that changed still finds what is below.
    dockerfile = here.folder / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("WORKDIR /work", "WORKDIR /other"))
    assert executed(there.build("--cache-from", ref)) == 1


def test_a_cache_with_mode_min_has_the_target_alone(here: Host, there: Host, registry: DockerRegistry) -> None:
    ref = f"{registry.host}/cache/min"
    here.build("--cache-to", f"type=registry,ref={ref}")
    assert ALL_CACHED in there.build("--cache-from", ref)
    there.forget()
    assert executed(there.build("--target", "tools", "--cache-from", ref)) == 2


def test_the_cache_of_a_build_that_found_everything_is_whole(here: Host, there: Host, registry: DockerRegistry) -> None:
    ref = f"{registry.host}/cache/again"
    here.build()
    again = here.build("--cache-to", f"type=registry,ref={ref},mode=max,compression=zstd,image-manifest=false,oci-mediatypes=true")
    assert ALL_CACHED in again
    status, headers, _ = registry.request(
        "GET", "/v2/cache/again/manifests/latest", headers={"Accept": "application/vnd.oci.image.index.v1+json"}
    )
    assert (status, headers["content-type"]) == (200, "application/vnd.oci.image.index.v1+json")
    assert "0 steps executed, 2 from the cache" in there.build("--target", "tools", "--cache-from", ref)
    # What the registry has is not packed again, also not after the daemon forgot.
    before = registry.log.count("PATCH") + registry.log.count('"POST')
    assert "writing layer" not in here.build("--cache-to", f"type=registry,ref={ref},mode=max,compression=zstd")
    assert registry.log.count("PATCH") + registry.log.count('"POST') <= before + 1  # the configuration of another manifest


def test_a_cache_in_our_own_registry(here: Host, there: Host) -> None:
    served = Served(here.daemon)
    try:
        ref = f"{urlsplit(served.url).netloc}/cache/own"
        for mode in ("mode=max", "mode=max,image-manifest=false"):
            here.build("--cache-to", f"type=registry,ref={ref},{mode}")
            assert ALL_CACHED in there.build("--cache-from", ref)
            there.forget()
    finally:
        served.end()


def test_a_cache_in_a_folder(here: Host, there: Host, tmp_path: Path) -> None:
    cache = tmp_path / "folder"
    option = f"type=local,dest={cache},mode=max"
    first = here.build("--cache-from", f"type=local,src={cache}", "--cache-to", option)
    assert f"WARNING: local cache import at {cache} not found due to err" in first
    assert executed(first) == STEPS
    index = json.loads((cache / "index.json").read_text())
    assert index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] == "latest"
    assert json.loads((cache / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    # Another cache in the same folder leaves the first one where it is.
    (here.folder / "data").write_text("second")
    here.build("--cache-to", f"{option},tag=second")
    names = [one["annotations"]["org.opencontainers.image.ref.name"] for one in json.loads((cache / "index.json").read_text())["manifests"]]
    assert sorted(names) == ["latest", "second"]
    assert ALL_CACHED in there.build("--cache-from", f"type=local,src={cache},tag=second")
    there.forget()
    assert executed(there.build("--cache-from", f"type=local,src={cache},tag=latest")) == 2
    there.forget()
    digest = next(one["digest"] for one in json.loads((cache / "index.json").read_text())["manifests"])
    assert executed(there.build("--cache-from", f"type=local,src={cache},digest={digest}")) in (0, 2)
    assert "has no tag none" in there.build("--cache-from", f"type=local,src={cache},tag=none")


def test_a_damaged_folder_is_told_of_and_no_failure(here: Host, there: Host, tmp_path: Path) -> None:
    cache = tmp_path / "folder"
    here.build("--cache-to", f"type=local,dest={cache},mode=max")
    for path in (cache / "blobs/sha256").iterdir():
        data = path.read_bytes()
        if not data.startswith(b"{"):
            path.write_bytes(data[:-9] + b"damaged!!")
    text = there.build("--cache-from", f"type=local,src={cache}")
    assert executed(text) == STEPS
    assert "verification failed" in text
    there.forget()
    for path in (cache / "blobs/sha256").iterdir():
        if not path.read_bytes().startswith(b"{"):
            path.unlink()
    text = there.build("--cache-from", f"type=local,src={cache}")
    assert executed(text) == STEPS
    assert "no such file in the OCI layout" in text
    shutil.rmtree(cache / "blobs")
    text = there.build("--no-cache", "--cache-from", f"type=local,src={cache}")
    assert "no such file in the OCI layout" in text


@pytest.mark.parametrize("words", [("--cache-to", "type=inline"), ("--build-arg", "BUILDKIT_INLINE_CACHE=1")])
def test_a_cache_within_an_image(here: Host, there: Host, registry: DockerRegistry, words: tuple[str, str]) -> None:
    ref = f"{registry.host}/inline/{'arg' if 'arg' in words[0] else 'to'}"
    here.build("-t", ref, "--push", *words)
    config = json.loads(here("image", "inspect", ref, "--format", "{{json .}}"))
    assert config["Id"] == here("images", "-q", "--no-trunc", ref).split()[0]
    found = there.build("--cache-from", ref)
    # The steps of the target, and so everything that it needs.
    assert ALL_CACHED in found
    # The same build gives the same image, records and all.
    identity = here("images", "-q", "--no-trunc", ref).split()[0]
    here.build("-t", "again", *words)
    assert here("images", "-q", "--no-trunc", "again").split()[0] == identity


def test_an_image_that_was_loaded_serves_the_classic_builder(here: Host, there: Host) -> None:
    here.build("-t", "carried", "--cache-to", "type=inline")
    there.daemon.docker("load", input=here.daemon.docker("save", "carried").stdout)
    environment = {**there.daemon.docker_environment(), "DOCKER_BUILDKIT": "0"}
    command = [docker_program(), "build", "--network", "none", "--cache-from", "carried", "."]
    done = subprocess.run(command, cwd=there.folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done
    assert "Running in" not in done.stdout
    assert done.stdout.count("Using cache") >= 4


def test_equal_content_is_found_elsewhere_too(here: Host, there: Host, registry: DockerRegistry) -> None:
    """A stage that is made in another way and gives the same files: what is copied of it is what the other host knew."""
    ref = f"{registry.host}/cache/content"
    dockerfile = here.folder / "Dockerfile"
    text = (
        "FROM busybox AS one\nRUN {} > /file\nFROM busybox\nRUN echo below > /below\nCOPY --from=one /file /\nRUN echo $RANDOM > /above\n"
    )
    dockerfile.write_text(text.format("echo a"))
    here.build("--cache-to", f"type=registry,ref={ref},mode=max")
    dockerfile.write_text(text.format("printf 'a\\n'"))
    assert executed(there.build("--cache-from", ref)) == 1


def test_a_cache_is_written_with_credentials(here: Host, there: Host, folder: Path) -> None:
    with DockerRegistry(users={"me": "secret"}) as private:
        ref = f"{private.host}/cache"
        failed = here.build("--cache-to", f"type=registry,ref={ref}", check=False)
        assert "401" in failed or "authorization" in failed.lower() or "no basic auth" in failed
        assert "exporting cache to registry" in here.build("--cache-to", f"type=registry,ref={ref},ignore-error=true")
        auth = base64.b64encode(b"me:secret").decode()
        (folder.parent / ".docker").mkdir()
        (folder.parent / ".docker/config.json").write_text(json.dumps({"auths": {private.host: {"auth": auth}}}))
        here.build("--cache-to", f"type=registry,ref={ref},mode=max")
        assert ALL_CACHED in there.build("--cache-from", ref)


def test_a_cache_that_cannot_be_read_is_no_failure(there: Host, registry: DockerRegistry) -> None:
    text = there.build("--cache-from", f"{registry.host}/never/was", "--cache-from", "127.0.0.1:9/closed")
    assert executed(text) == STEPS
    assert text.count("ERROR") == 2
    assert "never/was" in text
    refused = there.build("--cache-from", "type=gha", check=False)
    assert "not implemented" in refused
    assert "type=gha" in refused


# -- hostile ones


def replaced(registry: DockerRegistry, source: str, target: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    """A cache as `change` makes it, of one that is in the registry."""
    _, _, raw = registry.request("GET", f"/v2/{source}/manifests/latest", headers={"Accept": OCI_MANIFEST})
    manifest = json.loads(raw)
    config = json.loads(registry.request("GET", f"/v2/{source}/blobs/{manifest['config']['digest']}")[2])
    for layer in manifest["layers"]:
        assert registry.put_blob(target, registry.request("GET", f"/v2/{source}/blobs/{layer['digest']}")[2]) == layer["digest"]
    change(manifest, config)
    raw = json.dumps(config).encode()
    manifest["config"] |= {"digest": registry.put_blob(target, raw), "size": len(raw)}
    registry.put_manifest(target, "latest", manifest)
    return f"{registry.host}/{target}"


def in_a_circle(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    config["layers"][0]["parent"] = len(config["layers"]) - 1
    config["layers"][0].pop("base", None)
    config["layers"][-1]["parent"] = 0


def with_other_files(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    for layer in manifest["layers"]:
        layer["annotations"]["containerd.io/uncompressed"] = "sha256:" + "1" * 64


def on_another_base(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    for layer in config["layers"]:
        if layer.get("parent") == -1:
            layer["base"] = "sha256:" + "2" * 64


def on_nothing(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    for layer in config["layers"]:
        layer.pop("base", None)


def of_other_steps(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    """Every key leads to the bottom layer."""
    bottom = next(number for number, layer in enumerate(config["layers"]) if layer.get("parent") == -1)
    for record in config["records"]:
        record["results"][0]["layer"] = bottom


def beyond_the_end(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    config["records"][0]["results"][0]["layer"] = 1000


def too_short(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    for layer in manifest["layers"]:
        layer["size"] -= 1


@pytest.mark.parametrize(
    ("change", "words", "least"),
    [
        (in_a_circle, "in a circle", STEPS),
        (with_other_files, "don't match image configuration", STEPS),
        (on_another_base, "its layers lie on sha256:222", STEPS),
        (on_nothing, "its layers lie on nothing", STEPS),
        (of_other_steps, "its layers lie on", STEPS - 2),  # the bottom layer of a stage is what it is
        (beyond_the_end, "leads to layer 1000", STEPS),
        (too_short, "is not used", STEPS),
    ],
)  # fmt: skip
def test_a_cache_that_lies(
    here: Host, there: Host, registry: DockerRegistry, change: Callable[[dict[str, Any], dict[str, Any]], None], words: str, least: int
) -> None:
    name = f"lies/{change.__name__.replace('_', '-')}"
    here.build("-t", "true", "--cache-to", f"type=registry,ref={registry.host}/{name},mode=max")
    ref = replaced(registry, name, f"{name}-changed", change)
    text = there.build("-t", "false", "--cache-from", ref)
    assert words in text
    assert executed(text) >= least
    assert there.run("false", "sh", "-c", "cat /data/data; cat /usr/share/tool") == f"{(there.folder / 'data').read_text()}tool\n"
    assert there.daemon.api("GET", "/_ping").status == 200
    # The honest one is still taken.
    there.forget()
    assert ALL_CACHED in there.build("--cache-from", f"{registry.host}/{name}")


def test_layers_that_were_changed_in_the_registry(here: Host, there: Host, registry: DockerRegistry) -> None:
    ref = f"{registry.host}/damaged/cache"
    here.build("--cache-to", f"type=registry,ref={ref},mode=max")
    _, _, raw = registry.request("GET", "/v2/damaged/cache/manifests/latest", headers={"Accept": OCI_MANIFEST})
    for layer in json.loads(raw)["layers"]:
        path = registry.blobs / "sha256" / layer["digest"][7:9] / layer["digest"][7:] / "data"
        data = bytearray(path.read_bytes())
        data[-5] ^= 0xFF
        path.write_bytes(data)
    text = there.build("--cache-from", ref)
    assert executed(text) == STEPS
    assert "verification failed for digest" in text


# -- here


def test_the_cache_survives_restarts(own_daemon: Callable[..., Daemon], folder: Path) -> None:
    daemon = own_daemon()
    busybox.load(daemon.start())
    host = Host(daemon, folder)
    assert executed(host.build()) == STEPS
    daemon.restart()  # SIGKILL
    assert ALL_CACHED in host.build()
    daemon.stop()
    daemon.start()
    assert ALL_CACHED in host.build("-t", "one")
    assert len(host.records()) == STEPS


def test_equal_builds_at_once_execute_once(here: Host) -> None:
    dockerfile = here.folder / "Dockerfile"
    dockerfile.write_text(f"FROM busybox\nRUN sleep 0.5; echo {here.folder} > /made\nRUN echo $RANDOM > /more\n")
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(here.build())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(executed, texts)) == 2
    images = {re.findall(r"writing image (sha256:\w+)", text)[-1] for text in texts}
    assert len(images) == 1


def test_without_the_cache(here: Host) -> None:
    here.build("-t", "one")
    before = here.run("one", "cat", "/own")
    assert executed(here.build("-t", "two", "--no-cache")) == STEPS
    assert here.run("two", "cat", "/own") != before
    # A stage by its name alone; what was made anew is what the next build finds.
    text = here.build("-t", "three", "--no-cache-filter", "tools")
    assert 2 <= executed(text) < STEPS + 1
    assert "CACHED" in text or executed(text) == STEPS
    assert ALL_CACHED in here.build("-t", "four")
    assert here.run("four", "cat", "/usr/share/made") == here.run("three", "cat", "/usr/share/made")


def test_an_image_stays_whole_when_the_cache_goes(here: Host, tmp_path: Path) -> None:
    here.build("-t", "one")
    records = here.records()
    assert len(records) == STEPS
    shared = [one for one in records if one["Shared"]]
    assert len(shared) == STEPS - 2  # those of the other stage are in no image
    assert sum(one["Size"] for one in records if not one["Shared"]) >= 200_000
    pruned = here.daemon.api("POST", "/build/prune?all=1").json()
    assert {one["ID"] for one in records} <= set(pruned["CachesDeleted"])
    assert 200_000 <= pruned["SpaceReclaimed"] < 1_000_000
    assert here.records() == []
    assert here.run("one", "cat", "/data/data") == (here.folder / "data").read_text()
    assert here.daemon.docker("save", "-o", str(tmp_path / "one.tar"), "one").returncode == 0
    removed = here.daemon.api("DELETE", "/images/one").json()
    assert len([one for one in removed if "Deleted" in one]) == STEPS - 2 + 1


def test_pruning_what_is_not_shared(here: Host) -> None:
    here.build("-t", "one")
    here("builder", "prune", "-f")
    assert sorted(one["Shared"] for one in here.records()) == [True] * (STEPS - 2)
    text = here.build()
    assert ALL_CACHED in text or executed(text) == 0


def test_pruning_with_filters_and_limits(here: Host) -> None:
    here.build()
    here.forget()
    here.folder.joinpath("Dockerfile").write_text(
        "FROM busybox AS one\nRUN head -c 300000 /dev/zero > /one\nFROM busybox AS two\nRUN head -c 500000 /dev/zero > /two\n"
    )
    for target in ("one", "two"):
        here.build("--target", target, "-o", "type=cacheonly")
    one, two = sorted(here.records(), key=lambda record: int(record["Size"]))
    assert (one["Shared"], two["Shared"]) == (False, False)

    def prune(**parameters: Any) -> set[str]:
        filters = json.dumps({key: [value] for key, value in parameters.pop("filters", {}).items()})
        query = "&".join(f"{key.replace('_', '-')}={value}" for key, value in parameters.items())
        answer = here.daemon.api("POST", f"/build/prune?{query}&filters={filters}")
        assert answer.status == 200, answer.body
        return set(answer.json()["CachesDeleted"] or ()) & {one["ID"], two["ID"]}

    assert prune(filters={"until": "24h"}) == set()
    assert prune(filters={"id": "none"}) == set()
    assert prune(filters={"description": "x"}) == set()
    assert prune(keep_storage=5_000_000) == set()
    assert prune(max_used_space=900_000) == set()
    # The least recently used goes first, and no more than has to.
    assert prune(max_used_space=600_000, filters={"type": "regular"}) == {one["ID"]}
    assert prune(filters={"id": two["ID"]}) == {two["ID"]}
    assert here.records() == []


def test_du_shows_what_there_is(here: Host) -> None:
    here.build("-t", "one")
    lines = here("builder", "du").splitlines()
    rows = {line.split()[0]: line for line in lines if re.match(r"[0-9a-z]{25}\s", line)}
    assert rows.keys() == {one["ID"] for one in here.records()}
    for one in here.records():
        assert ("B*" in rows[one["ID"]]) == one["Shared"]
    usage = here.daemon.api("GET", "/system/df").json()
    images = usage["LayersSize"]
    assert images < 10_000_000 + sum(one["Size"] for one in here.records())
    private = sum(one["Size"] for one in here.records() if not one["Shared"])
    here("builder", "prune", "-a", "-f")
    # What the cache alone had was no part of the images.
    assert private >= 200_000
    assert here.daemon.api("GET", "/system/df").json()["LayersSize"] == images


def test_the_cache_is_kept_within_limits(own_daemon: Callable[..., Daemon], tmp_path: Path, folder: Path) -> None:
    policy = [{"maxUsedSpace": "400KB", "all": True, "filter": ["type=regular"]}]
    config = tmp_path / "daemon.json"
    config.write_text(json.dumps({"builder": {"gc": {"enabled": True, "policy": policy}}}))
    daemon = own_daemon("--config-file", str(config))
    busybox.load(daemon.start())
    host = Host(daemon, folder)
    folder.joinpath("Dockerfile").write_text(
        "FROM busybox\nRUN head -c 350000 /dev/zero > /one\nFROM busybox AS last\nRUN head -c 350000 /dev/zero > /two\nRUN touch /small\n"
    )
    host.build("--target", "0", "-o", "type=cacheonly")
    host.build("--target", "last", "-o", "type=cacheonly")
    wait(lambda: len(host.records()) <= 2, told=lambda: str(host.records()))
    left = {one["Description"].partition("] ")[2] for one in host.records()}
    assert left == {"RUN head -c 350000 /dev/zero > /two", "RUN touch /small"}


def test_what_daemon_json_says_wrongly(own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    config = tmp_path / "daemon.json"
    config.write_text(json.dumps({"builder": {"gc": {"keep": "1GB"}}}))
    daemon = own_daemon("--config-file", str(config))
    with pytest.raises(AssertionError, match=r"builder\.gc\.keep"):
        daemon.start()
