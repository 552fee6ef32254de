"""Dockerfiles built by an engine, and what came out of them as a description that two engines can be compared by.

A case is a folder: `Dockerfile`, `context/`, other files beside it, `case.py` for options and for what git cannot hold, `expected.json`.
`case.py` may define `ARGUMENTS` (options of the build), `BEFORE` (lists of arguments of builds that come first), `OUTPUT = "tar"` (the
result is what `-o type=tar` writes: attributes that `docker save` leaves out), `ALONE` (why another engine cannot build it), `CLASSIC`
(True: the docker CLI's classic build gives the same), `DEBIAN` (True: builds from `knarr-corpus-debian`, with a network), `ONLY`
(beginnings of names that are looked at), `prepare(folder)`, called on a copy of the folder. Builds run in that copy.

`python -m tests.lib.builds NAME...` records the descriptions anew from the engine KNARR_PEER_DOCKER_HOST (buildx: KNARR_PEER_BUILDX).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.lib import busybox, images
from tests.lib.daemon import Engine, Peer, docker_program, knarr_command

CASES = Path(__file__).parent.parent / "compat/builds"
OWN = "knarr-corpus"  # begins the names of images that are built here
DEBIAN = f"{OWN}-debian"
NOW = 1_700_000_000  # times of files in contexts are before it, those of a build after it

Layer = dict[str, str]
"""Names to what is there: type, mode, owner, ... in one line (`_line`)."""


@dataclass(frozen=True)
class Case:
    folder: Path
    arguments: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    output: str = "image"
    alone: str = ""
    classic: bool = False
    debian: bool = False
    only: tuple[str, ...] = ("",)
    prepare: Callable[[Path], None] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def expected(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "expected.json").read_text())
        return found


@dataclass
class Built:
    """What came out: `error` alone when the build failed."""

    error: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[list[Any]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        if self.error:
            return {"error": self.error}
        return {"config": self.config, "history": self.history, "layers": self.layers}


def cases() -> list[Case]:
    """All of them, by name."""
    return [load(folder) for folder in sorted(CASES.iterdir()) if (folder / "Dockerfile").exists()]


def load(folder: Path) -> Case:
    if not (folder / "case.py").exists():
        return Case(folder)
    spec = importlib.util.spec_from_file_location(f"case_{folder.name}", folder / "case.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return Case(
        folder,
        tuple(getattr(module, "ARGUMENTS", ())),
        tuple(tuple(one) for one in getattr(module, "BEFORE", ())),
        getattr(module, "OUTPUT", "image"),
        getattr(module, "ALONE", ""),
        getattr(module, "CLASSIC", False),
        getattr(module, "DEBIAN", False),
        tuple(getattr(module, "ONLY", ("",))),
        getattr(module, "prepare", None),
    )


# -- building


def stage(case: Case, target: Path) -> Path:
    """A copy of the case's folder with modes and times that do not depend on how git wrote it."""
    place = target / case.name
    ignored = shutil.ignore_patterns("case.py", "expected.json", "__pycache__")
    shutil.copytree(case.folder, place, symlinks=True, ignore=ignored)
    (place / "context").mkdir(exist_ok=True)
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode):
                os.chmod(path, 0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644)
    if case.prepare is not None:
        case.prepare(place)
    root = os.fsencode(place)
    for base, folders_, files_ in os.walk(root, topdown=False):
        for name_ in (*folders_, *files_, b"."):
            path_ = os.path.normpath(os.path.join(base, name_))
            if os.lstat(path_).st_mtime >= NOW:
                time = 1_400_000_000 + zlib.crc32(os.path.relpath(path_, root)) % 100_000_000
                os.utime(path_, (time, time), follow_symlinks=False)
    return place


class Builder:
    """How an engine builds: `knarr build`, the classic builder of the docker CLI, or buildx."""

    def __init__(self, engine: Engine, way: str) -> None:
        self.engine = engine
        self.way = way
        self._config = tempfile.TemporaryDirectory(prefix="knarr-corpus-config-")
        if way == "buildx":
            plugins = Path(self._config.name) / "cli-plugins"
            plugins.mkdir()
            (plugins / "docker-buildx").symlink_to(os.environ["KNARR_PEER_BUILDX"])

    def close(self) -> None:
        self._config.cleanup()

    def command(self, *arguments: str) -> list[str]:
        if self.way == "knarr":
            return [*knarr_command(), "build", "--progress=plain", "--no-cache", *arguments]
        if self.way == "classic":
            return [docker_program(), "build", "--no-cache", *arguments]
        return [docker_program(), "buildx", "build", "--progress=plain", "--no-cache", *arguments]

    def environment(self) -> dict[str, str]:
        own = {"DOCKER_CONFIG": self._config.name, "CORPUS_SECRET": "from the environment"}
        return {**self.engine.docker_environment(), **own, "DOCKER_BUILDKIT": "0" if self.way == "classic" else "1"}

    def run(self, place: Path, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*arguments), cwd=place, env=self.environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=900
        )

    def build(self, case: Case, target: Path) -> Built:
        """Build a case in a copy of its folder below `target`. Raises AssertionError when a build that comes first fails."""
        if case.debian:
            load_debian(self.engine)
        place = stage(case, target)
        names = []
        try:
            for arguments in case.before:
                names.append(arguments[arguments.index("-t") + 1])
                first = self.run(place, (*arguments, "context"))
                assert first.returncode == 0, f"{arguments}: {first.stderr.decode(errors='replace')[-2000:]}"
            name = f"{OWN}-{case.name}:{self.way}"
            into = ("-o", "type=tar,dest=result.tar") if case.output == "tar" else ("-t", name)
            given = () if "-f" in case.arguments else ("-f", "Dockerfile")
            done = self.run(place, (*into, *given, *case.arguments, "context"))
            if done.returncode:
                return Built(error=_failure(done.stdout + b"\n" + done.stderr))
            if case.output == "tar":
                return Built(layers=[_plain((place / "result.tar").read_bytes())])
            names.append(name)
            answer = self.engine.api("GET", f"/images/{name}/get", timeout=120)
            assert answer.status == 200, answer.body
            return describe(answer.body, case.only)
        finally:
            for name in reversed(names):
                self.engine.api("DELETE", f"/images/{name}?force=1")


def load_debian(engine: Engine) -> None:
    """Load a minimal Debian unless it is there."""
    if engine.api("GET", f"/images/{DEBIAN}/json").status == 200:
        return
    archive = images.docker_archive([busybox.debian_tar().read_bytes()], [f"{DEBIAN}:latest"])
    answer = engine.api("POST", "/images/load?quiet=1", archive, {"Content-Type": "application/x-tar"}, timeout=120)
    assert answer.status == 200, answer.body


def _failure(output: bytes) -> str:
    """The message of a failed build, without what differs from run to run."""
    text = output.decode(errors="replace")
    found = re.findall(r"^(?:ERROR: |Error: )?(?:.*failed to (?:solve|build): )(.*)$|^(?:ERROR: |knarr: )(.*)$", text, re.MULTILINE)
    assert found, text
    last = found[-1][0] or found[-1][1]
    last = re.sub(r"failed to compute cache key: failed to calculate checksum of ref(?: \S+)?: ", "", last)
    return re.sub(r"/var/lib/docker/(?:tmp/buildkit-mount\d+|overlay2/[a-z0-9]+/merged)|[a-z0-9]{25}::[a-z0-9]{25}", "", last)


# -- reading


def describe(archive: bytes, only: tuple[str, ...] = ("",)) -> Built:
    """The one image of what `docker save` writes, without the layer of its base; of files only those whose names begin so."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer:

        def content(name: str) -> bytes:
            file = outer.extractfile(name)
            assert file is not None, name
            return file.read()

        manifest = json.loads(content("manifest.json"))[0]
        document = json.loads(content(manifest["Config"]))
        history = document.get("history") or []
        base = 1 if history and history[0].get("created_by") == "layer 0" else 0  # as `images.image_config` says
        steps = [one.get("created_by", "") for one in history if not one.get("empty_layer")]
        layers = []
        below: Layer = dict(busybox_tree()) if base else {}
        for name, step in list(zip(manifest["Layers"], steps, strict=True))[base:]:
            layer = _layer(content(name))
            if step.startswith("RUN"):
                layer = {path: line for path, line in layer.items() if not _touched(line, below.get(path, ""))}
            layers.append({path: line for path, line in layer.items() if path.startswith(only)})
            below = merge([layer], below)
    kept = {key: value for key, value in (document.get("config") or {}).items() if value is not None}
    config = {**kept, **{key: document[key] for key in ("architecture", "os", "variant", "author") if document.get(key)}}
    if config.get("architecture") == images.ARCHITECTURE:
        config["architecture"] = "native"
    rows = [[one.get("created_by", ""), one.get("comment", ""), *(["empty"] if one.get("empty_layer") else [])] for one in history[base:]]
    return Built(config=config, history=rows, layers=layers)


def _touched(line: str, before: str) -> bool:
    """Whether a folder is as it was but for its time: what is changed in it brings it up, as do places of mounts that come and go."""
    return line.startswith("d ") and (line == before or (line.endswith(" now") and line[:-4] == before.rsplit(" ", 1)[0]))


@cache
def _program() -> str:
    return hashlib.sha256(Path(images.BUSYBOX).read_bytes()).hexdigest()[:16]


@cache
def busybox_tree() -> Layer:
    return _layer(busybox.layer())


def _plain(archive: bytes) -> Layer:
    """A merged root file system without what busybox has."""
    base = busybox_tree()
    return {name: line for name, line in _layer(archive).items() if base.get(name, "").rsplit(" ", 1)[0] != line.rsplit(" ", 1)[0]}


def _layer(archive: bytes) -> Layer:
    """An uncompressed layer. Of files with several names the first in order is the file, the others name it."""
    lines: Layer = {}
    names: dict[str, list[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        for member in tar:
            name = _clean(member.name)
            if not name:
                continue
            head, slash, tail = name.rpartition("/")
            if tail == ".wh..wh..opq":
                lines[f"{head}{slash}*"] = "opaque"
            elif tail.startswith(".wh."):
                lines[f"{head}{slash}{tail[4:]}"] = "whiteout"
            elif member.islnk():
                names.setdefault(_clean(member.linkname), []).append(name)
            else:
                file = tar.extractfile(member) if member.isreg() else None
                lines[name] = _line(member, file.read() if file is not None else b"")
    for first, others in names.items():
        line = lines.pop(first)
        real, *rest = sorted([first, *others])
        lines[real] = line
        lines.update(dict.fromkeys(rest, f"link {real}"))
    return dict(sorted(lines.items()))


def _clean(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join(parts)


def _line(member: tarfile.TarInfo, content: bytes) -> str:
    kinds = {tarfile.REGTYPE: "f", tarfile.DIRTYPE: "d", tarfile.SYMTYPE: "l", tarfile.FIFOTYPE: "p", tarfile.CHRTYPE: "c"}
    kind = kinds.get(member.type, "f" if member.isreg() else "b")
    words = [kind, f"{member.mode & 0o7777:o}", f"{member.uid}:{member.gid}"]
    if kind == "f":
        digest = hashlib.sha256(content).hexdigest()[:16]
        words += ["busybox"] if digest == _program() else [str(len(content)), digest]
    elif kind == "l":
        words.append(json.dumps(member.linkname))
    elif kind in "cb":
        words.append(f"{member.devmajor}:{member.devminor}")
    prefix = "SCHILY.xattr."
    for key in sorted(member.pax_headers):
        if key.startswith(prefix):
            value = member.pax_headers[key].encode("utf-8", "surrogateescape")
            words.append(f"{key.removeprefix(prefix)}={value.hex()}")
    words.append("now" if member.mtime >= NOW else str(int(member.mtime)))
    return " ".join(words)


def merge(layers: list[Layer], base: Layer | None = None) -> Layer:
    """The root file system that layers make. Names of one file stay `link`s to its first name while that is there."""
    tree: Layer = dict(base or {})
    for layer in layers:
        for name, line in layer.items():
            if line == "opaque":
                _remove(tree, name[:-1])
            elif line == "whiteout":
                tree.pop(name, None)
                _remove(tree, f"{name}/")
        for name, line in layer.items():
            if line in ("opaque", "whiteout"):
                continue
            if not line.startswith("d "):
                _remove(tree, f"{name}/")
            # A name of a file that is hidden now: what it named is still that file.
            tree[name] = line if not line.startswith("link ") else f"{layer[line[5:]]} = {line[5:]}"
    return tree


def _remove(tree: Layer, prefix: str) -> None:
    for name in [name for name in tree if name.startswith(prefix)]:
        del tree[name]


# -- comparing


def differences(expected: dict[str, Any], found: Built) -> Iterator[str]:
    """What is not as expected, a line each: `part: name: what instead of what`. A part that is not expected is not looked at."""
    if found.error or "error" in expected:
        hint = r" \([^()]*\)$"  # may follow
        if re.sub(hint, "", found.error) != re.sub(hint, "", expected.get("error", "")):
            yield f"error: {found.error or 'none'!r} instead of {expected.get('error', 'none')!r}"
        return
    if "config" in expected:
        yield from _between("config", expected["config"], found.config)
    if "history" in expected:
        rows = [dict(enumerate(one)) for one in (expected["history"], found.history)]
        yield from _between("history", rows[0], rows[1])
    if "tree" in expected:
        # Written by hand, without times.
        timeless = {name: re.sub(r" (?:now|-?\d+)$", "", line) for name, line in merge(found.layers).items()}
        yield from _between("tree", expected["tree"], timeless)
        return
    base = busybox_tree()
    yield from _between("tree", merge(expected["layers"], base), merge(found.layers, base))
    if len(found.layers) != len(expected["layers"]):
        yield f"layers: {len(found.layers)} instead of {len(expected['layers'])}"
        return
    for number, (there, here) in enumerate(zip(expected["layers"], found.layers, strict=True)):
        yield from _between(f"layer {number}", there, here)


def _between(part: str, expected: dict[Any, Any], found: dict[Any, Any]) -> Iterator[str]:
    for key in sorted({*expected, *found}, key=str):
        if expected.get(key) != found.get(key):
            yield f"{part}: {key}: {found.get(key, 'nothing')!r} instead of {expected.get(key, 'nothing')!r}"


def dump(document: dict[str, Any]) -> str:
    """A description as it is kept: a line for each file and step."""

    def text(value: Any) -> str:
        return json.dumps(value)

    def block(value: dict[str, Any], indent: str) -> str:
        return "{" + ",".join(f"\n{indent} {text(k)}: {text(v)}" for k, v in value.items()) + "}"

    if "layers" not in document:
        return json.dumps(document, indent=1) + "\n"
    rows = ",".join(f"\n  {text(row)}" for row in document["history"])
    layers = ",".join(f"\n  {block(layer, '   ')}" for layer in document["layers"])
    return f'{{\n "config": {block(document["config"], "  ")},\n "history": [{rows}],\n "layers": [{layers}]\n}}\n'


def record(names: list[str]) -> None:
    """Write `expected.json` of the named cases (all when none are named) from the peer."""
    peer = Peer(os.environ["KNARR_PEER_DOCKER_HOST"])
    busybox.load(peer)
    builder = Builder(peer, "buildx")
    try:
        for case in cases():
            if case.alone or (names and not any(case.name.startswith(name) for name in names)):
                continue
            with tempfile.TemporaryDirectory(prefix="knarr-corpus-") as folder:
                built = builder.build(case, Path(folder))
            (case.folder / "expected.json").write_text(dump(built.document()))
            print(case.name, built.error or f"{len(built.layers)} layers", flush=True)
    finally:
        builder.close()


if __name__ == "__main__":
    record(sys.argv[1:])
