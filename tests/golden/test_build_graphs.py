"""Graphs of Dockerfiles, word for word, and what becomes of images against what the real BuildKit made of the same Dockerfiles.

`build_images.json` is recorded from the docker CLI on PATH with BuildKit (of Docker 26.1) and an image `busybox` when KNARR_RECORD is set;
`build_graphs.txt` is written anew then. The tests need no docker.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builder.graph import Graph
from builder.language.parser import parse
from builder.lowering.lower import lower, wanted
from builder.lowering.stages import Base, Key
from engine.spec import platform as platforms
from engine.spec.build import Options
from engine.spec.image import ImageConfig, encode
from engine.spec.platform import Platform
from tests.golden.build_cases import BASE, OWN, REAL
from tests.golden.test_cli_requests import HERE, RECORD, recorded
from tests.lib.daemon import docker_program

IMAGES, GRAPHS = "build_images.json", HERE / "build_graphs.txt"
HOST = Platform("amd64")
LIBRARY = "docker.io/library/"


def graph_of(text: str, options: dict[str, Any], bases: dict[str, ImageConfig]) -> Graph:
    """Lower with base images that all have layers; images that are not in `bases` are like busybox."""
    asked, dockerfile = Options(**options), parse(text.encode())
    platform = platforms.parse(asked.platforms[0]) if asked.platforms else HOST
    known: dict[Key, Base] = {}
    while missing := wanted(dockerfile, asked, platform, HOST, known):
        for one in missing:
            config = bases.get(one.reference.removeprefix(LIBRARY).removesuffix(":latest"), bases["busybox"])
            chain = f"chain of {one.reference.removeprefix(LIBRARY)} {one.platform}"
            known[one.key] = Base(reference=one.reference, image="id", chain=chain, digest="digest", config=config, platform=one.platform)
    return lower(dockerfile, asked, platform, HOST, known)


def compact(graph: Graph) -> list[str]:
    """One line for each vertex: what differs from defaults."""
    return [f"{index} {shown(vertex.op)} {list(vertex.inputs)}{' new' if vertex.no_cache else ''} | {vertex.name}"
            for index, vertex in enumerate(graph.vertices)]  # fmt: skip


def shown(value: Any) -> str:
    if isinstance(value, Platform):
        return str(value)
    if isinstance(value, tuple):
        return f"({' '.join(shown(one) for one in value)})"
    if not isinstance(value, msgspec.Struct):
        return repr(value)
    parts = [f"{field.name}={shown(found)}" for field in msgspec.structs.fields(value)
             if (found := getattr(value, field.name)) != field.default]  # fmt: skip
    return " ".join([type(value).__name__, *parts]) if parts else type(value).__name__


def configs() -> dict[str, ImageConfig]:
    return {name: msgspec.convert(config, ImageConfig) for name, config in recorded(IMAGES)["bases"].items()}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if RECORD:
        record(tmp_path_factory.mktemp("context"))
    return recorded(IMAGES)


@pytest.mark.parametrize("name", REAL)
def test_images_are_buildkits(golden: dict[str, Any], name: str) -> None:
    options, text = REAL[name]
    graph = graph_of(text, options, configs())
    theirs = golden["images"][name]
    ours = json.loads(encode(graph.target.config))
    assert {"os": "linux", **ours} == theirs["config"]
    assert [[step.created_by, step.vertex is not None] for step in graph.target.steps] == theirs["history"]
    if theirs["names"]:
        assert sorted({vertex.name for vertex in graph.vertices if plain(vertex.name)}) == theirs["names"]


def plain(name: str) -> bool:
    """Whether all versions of BuildKit give it that name: contexts, links, triggers and images that several stages have apart."""
    return not re.search(r"^\[internal|LINK|ONBUILD|FROM", name)


def test_graphs_word_for_word(golden: dict[str, Any]) -> None:
    found = []
    for name, (options, text) in {**REAL, **OWN}.items():
        graph = graph_of(text, options, configs())
        rest = [f"images {' '.join(' '.join(one) for one in graph.images)}"] if graph.images else []
        rest += [f"epoch {graph.epoch}"] if graph.epoch is not None else []
        found.append("\n".join([f"# {name}", *compact(graph), *rest, f"target {graph.target.root} {graph.target.platform}"]))
    whole = "\n\n".join(found) + "\n"
    if RECORD:
        GRAPHS.write_text(whole)
    assert whole == GRAPHS.read_text()


# -- the record


def record(context: Path) -> None:
    (context / "sub").mkdir()
    for name in ("a", "b", "sub/c"):
        (context / name).write_text(name)
    build(context, "knarr-golden-base", {}, BASE)
    bases = {name: saved(name)[0] for name in ("busybox", "knarr-golden-base")}
    images = {}
    for name, (options, text) in REAL.items():
        tag = "knarr-golden-" + name.replace(" ", "-")
        progress = build(context, tag, options, text)
        config, history = saved(tag)
        below = len(saved("knarr-golden-base" if "FROM knarr-golden-base" in text else "busybox")[1])
        own = history if text.startswith("FROM scratch") or "\nFROM scratch" in text else history[below:]
        names = sorted({one for one in re.findall(r"^#\d+ (\[.*)$", progress, re.M) if plain(one)})
        images[name] = {"config": config, "history": own, "names": [] if "ONBUILD" in text + BASE * ("golden-base" in text) else names}
    golden = {"bases": bases, "images": images}
    (HERE / IMAGES).write_text(json.dumps(golden, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def build(context: Path, tag: str, options: dict[str, Any], text: str) -> str:
    given = [name if value is None else f"{name}={value}" for name, value in options.get("build_args", {}).items()]
    flags = [flag for one in given for flag in ("--build-arg", one)]
    flags += [flag for name, value in options.get("labels", {}).items() for flag in ("--label", f"{name}={value}")]
    flags += ["--target", options["target"]] if "target" in options else []
    flags += ["--platform", *options["platforms"]] if "platforms" in options else []
    words = [docker_program(), "build", "--progress=plain", "--provenance=false", "-t", tag, "-f-", *flags, str(context)]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=True, timeout=120).stderr


def saved(tag: str) -> tuple[dict[str, Any], list[list[Any]]]:
    """The configuration of an image, without what is not the Dockerfile's, and its history."""
    archive = subprocess.run([docker_program(), "save", tag], capture_output=True, check=True, timeout=60).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(tar.extractfile(manifest[0]["Config"]))  # type: ignore[arg-type]
    history = [[entry.get("created_by", ""), not entry.get("empty_layer", False)] for entry in config.get("history", ())]
    return {key: value for key, value in config.items() if key not in ("created", "history", "rootfs")}, history
