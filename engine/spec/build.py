"""What a client asks of a build: the flags of `docker build` and `docker buildx build` as data, for the API, the builder and the client.

Names follow the flags; defaults are Docker's. JSON names are camel case. Sizes in bytes, CPU times in microseconds.
"""

from __future__ import annotations

import msgspec

MAIN_CONTEXT = "context"
"""The name of the main context among those that a client sends."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One `--output`, `--cache-from` or `--cache-to`: its type, and the attributes as written."""

    type: str
    attributes: dict[str, str] = {}


class Options(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One build.

    `remote`: address of the main context (Git or HTTP), "" when it is sent. `dockerfile`: a path in the main context, or, with
    `dockerfile_sent`, in the context named "dockerfile". `contexts`: named contexts; a value "sent:" stands for one that the client sends
    under that name. `build_args`: None as a value for one that the client's environment does not have. `outputs`: none is the image store.
    `call`: build, check, outline, targets. `secrets` and `ssh`: identifiers that the client can give. `ulimits`: "name=soft[:hard]".
    `allow`: entitlements. `attest`: type -> attributes. `cpu_period`, `cpu_quota` as dockerd's.
    """

    remote: str = ""
    dockerfile: str = "Dockerfile"
    dockerfile_sent: bool = False
    tags: tuple[str, ...] = ()
    build_args: dict[str, str | None] = {}
    labels: dict[str, str] = {}
    target: str = ""
    platforms: tuple[str, ...] = ()
    contexts: dict[str, str] = {}
    no_cache: bool = False
    no_cache_filter: tuple[str, ...] = ()
    pull: bool = False
    network: str = "default"
    hosts: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()
    shm_size: int = 0
    cgroup_parent: str = ""
    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    security_opt: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    cache_from: tuple[Endpoint, ...] = ()
    cache_to: tuple[Endpoint, ...] = ()
    outputs: tuple[Endpoint, ...] = ()
    attest: dict[str, dict[str, str]] = {}
    annotations: tuple[str, ...] = ()
    squash: bool = False
    call: str = "build"
    secrets: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()


class VertexStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """BuildKit's Vertex as `--progress=rawjson` shows it: `digest` names it; `started`, `completed` are RFC 3339 or None."""

    digest: str
    name: str = ""
    inputs: tuple[str, ...] = ()
    started: str | None = None
    completed: str | None = None
    cached: bool = False
    error: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """BuildKit's VertexStatus: a bar below a vertex. `current` and `total` in bytes, or files."""

    id: str
    vertex: str
    name: str = ""
    current: int = 0
    total: int = 0
    timestamp: str = ""
    started: str | None = None
    completed: str | None = None


class Log(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Output of a vertex: `stream` 1 or 2, `data` base64 in JSON."""

    vertex: str
    stream: int = 1
    data: bytes = b""
    timestamp: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A build check that fired: `short` one line, `detail` more, `url` of its documentation, lines of the Dockerfile as (start, end)."""

    vertex: str = ""
    level: int = 1
    short: str = ""
    detail: tuple[str, ...] = ()
    url: str = ""
    filename: str = ""
    lines: tuple[tuple[int, int], ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a build's progress, BuildKit's SolveStatus: a line of `--progress=rawjson`."""

    vertexes: tuple[VertexStatus, ...] = ()
    statuses: tuple[Status, ...] = ()
    logs: tuple[Log, ...] = ()
    warnings: tuple[Finding, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How a build ended. `image`: the image's identifier, "" without one; `digest`: of its manifest or index; `text`: what a `call` other
    than build prints; `answer`: the same as JSON; `code`: exit status for `--check`, and `error` what is said about it. `executed` and
    `cached` count steps; `seconds`: wall time by phase (context, bases, solve, export)."""

    image: str = ""
    digest: str = ""
    metadata: dict[str, msgspec.Raw] = {}
    text: str = ""
    answer: msgspec.Raw = msgspec.Raw(b"null")
    code: int = 0
    error: str = ""
    executed: int = 0
    cached: int = 0
    seconds: dict[str, float] = {}
