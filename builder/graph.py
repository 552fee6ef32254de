"""The graph that a Dockerfile is lowered to: what is to be done, on what, and what images come out. Data only.

A vertex names its inputs by their index in `Graph.vertices`, always lower than its own. Two vertices that are equal are one. What a vertex
gives is a *tree*: layers of a root file system, or a folder of sources. Values here are substituted, checked and complete; whoever executes
them decides nothing. Which fields do not take part in the cache key, `cachekey.definition` says.
"""

from __future__ import annotations

import msgspec

from engine.spec.image import ImageConfig
from engine.spec.platform import Platform

SCRATCH = -1
"""The index that stands for an empty root file system."""


class Op(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a vertex does."""


class ImageSource(Op, frozen=True, kw_only=True):
    """The root file system of an image that is here or is pulled when needed. `chain`: its chain identifier ("" for no layers)."""

    reference: str
    image: str
    chain: str
    platform: Platform


class ContextSource(Op, frozen=True, kw_only=True):
    """A folder of sources that a client sent: `name` is "context" for the main one, else that of a named context."""

    name: str


class HttpSource(Op, frozen=True, kw_only=True):
    """A file from an address, as the only entry `filename` of a folder, with mode 0600. `checksum`: "sha256:…" or ""."""

    url: str
    filename: str
    checksum: str = ""


class GitSource(Op, frozen=True, kw_only=True):
    """A checkout. `url` is as written, with fragment or query (`#ref:subdir`); `checksum`: the commit, or the beginning of it, or ""."""

    url: str
    keep_git_dir: bool = False
    checksum: str = ""


class CopySource(msgspec.Struct, frozen=True, kw_only=True):
    """Where files come from: `input`, an index into the vertex's `inputs`, and cleaned absolute `path` in it, in which `*?[]` match unless
    `literal`. Or a document: `content` under the name `path`. `unpack`: archives are unpacked (ADD), None: not asked."""

    input: int = -1
    path: str
    content: bytes | None = None
    unpack: bool = False
    literal: bool = False


class Copy(Op, frozen=True, kw_only=True):
    """COPY and ADD: `inputs[0]` is the root file system to change (SCRATCH with `link`: the layer does not depend on what is below).

    `destination` is absolute; a folder when it ends with "/" or there are several sources. `chown`: "user[:group]" as substituted, "" keeps
    what the source says; `chmod`: octal or symbolic, "" keeps. `patterns` of `exclude` are .dockerignore's. `follow`: a symbolic link named
    as a source itself is followed inside its tree (BuildKit's rule for COPY). `link`: a destination's links are not followed.
    """

    sources: tuple[CopySource, ...]
    destination: str
    chown: str = ""
    chmod: str = ""
    exclude: tuple[str, ...] = ()
    parents: bool = False
    link: bool = False


class Stack(Op, frozen=True, kw_only=True):
    """The layer of `inputs[1]` (made with `link` on nothing) on the tree of `inputs[0]`."""


class MakeFolder(Op, frozen=True, kw_only=True):
    """WORKDIR: make the absolute `path` in `inputs[0]`, with what is missing above it, mode 0755. All of it is owned by `user`, which is
    what USER said: "user[:group]", "" for root (BuildKit)."""

    path: str
    user: str = ""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One `RUN --mount`, substituted and complete. `kind`: bind, cache, tmpfs, secret, ssh. `target` is absolute ("" for a secret that is
    only a variable). `input`: an index into the vertex's `inputs` for `from` (-1: nothing, an empty folder); `source` is absolute in it.
    `sharing`: shared, private, locked. `size` in bytes, 0 for no limit. `mode` permission bits."""

    kind: str
    target: str = ""
    input: int = -1
    source: str = "/"
    readonly: bool = False
    id: str = ""
    sharing: str = "shared"
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    required: bool = False
    env: str = ""


class Run(Op, frozen=True, kw_only=True):
    """RUN: a process in `inputs[0]`; other inputs are those of mounts. `args`: the program with its shell in front; `env`: "K=V" in order;
    `proxies`: variables for the process that are no part of the key; `user` as in USER; `network`: default, none, host, or the name of a
    network; `hosts`: "name:address". `files`: absolute path -> content of files (mode 0755) that only this process sees: scripts from
    heredocs."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str = ""
    mounts: tuple[Mount, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    hosts: tuple[str, ...] = ()
    hostname: str = ""
    proxies: tuple[str, ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()


class Vertex(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is what progress shows: `[build 2/5] RUN make`; `line`: of the Dockerfile, 0 for none; `stage`: the stage's index;
    `no_cache`: its result is not looked up."""

    op: Op
    inputs: tuple[int, ...] = ()
    name: str
    line: int = 0
    stage: int = -1
    no_cache: bool = False


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of an image's history: `created_by` and `comment` as BuildKit writes them; `vertex`: which made the layer, None for none.
    `instruction`: the text of the instruction, for the classic builder's output; `stage` and `line` of the Dockerfile."""

    created_by: str
    comment: str = "buildkit.dockerfile.v0"
    vertex: int | None = None
    author: str = ""
    instruction: str = ""
    stage: int = -1
    line: int = 0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An image to be. `root`: the vertex of its file system or SCRATCH; `config`: complete but for `rootfs`, `history` and `created`;
    `base`: the base image's configuration, whose layers and history come first (None from scratch); `steps`: what this build adds, over
    all stages from the base up; `platform`."""

    root: int
    config: ImageConfig
    platform: Platform
    base: ImageConfig | None = None
    steps: tuple[Step, ...] = ()


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a build may need; only what `target` leads to is solved.

    `plan`: all steps of all reachable stages in the order of the Dockerfile, for output that is in order; `used`: names of build arguments
    that something consumed; `images`: references of base images with their digests; `epoch`: SOURCE_DATE_EPOCH, Unix seconds.
    """

    vertices: tuple[Vertex, ...]
    target: Target
    plan: tuple[Step, ...] = ()
    used: tuple[str, ...] = ()
    images: tuple[tuple[str, str], ...] = ()
    epoch: int | None = None
