"""Provenance of a build: SLSA predicates that say what was asked, what it was made of and, with mode=max, by which steps. Pure.

Follows SLSA provenance v0.2 and v1 with BuildKit's build type (slsa-provenance.md, slsa-definitions.md). Values of secrets are not known
here; with mode=min those of build arguments and labels are left out, as in BuildKit.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from builder.graph import ContextSource, GitSource, Graph, HttpSource, ImageSource, Run
from engine.errors import InvalidParameter
from engine.spec import reference
from engine.spec.build import MAIN_CONTEXT, Options
from engine.spec.platform import Platform

V02 = "https://slsa.dev/provenance/v0.2"
V1 = "https://slsa.dev/provenance/v1"
FILENAME = "provenance.json"

_TYPE_V02 = "https://mobyproject.org/buildkit@v1"
_TYPE_V1 = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
_METADATA = "https://mobyproject.org/buildkit@v1#metadata"
_HIDDEN = ("build-arg:", "label:")
_FALSE, _TRUE = ("0", "false"), ("1", "true")

Json = dict[str, Any]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes of `--provenance`. `inline_only`: only where an output has an index, not as a file of its own."""

    max: bool = False
    builder_id: str = ""
    reproducible: bool = False
    inline_only: bool = False
    version: str = "v0.2"
    filename: str = FILENAME

    @property
    def predicate_type(self) -> str:
        """The type of the predicate."""
        return V1 if self.version == "v1" else V02


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What happened. `graph` that was solved; `resolved`: vertex -> what a source turned out to be ("sha256:…", or a commit);
    `dockerfile` its text; `started`, `finished` RFC 3339; `builder`: the platform of this host; `invocation` names the build, "" to have it
    follow from the content (a build with SOURCE_DATE_EPOCH is to be the same every time)."""

    options: Options
    graph: Graph
    dockerfile: str
    platform: Platform
    builder: Platform
    started: str
    finished: str
    resolved: Mapping[int, str] = {}
    invocation: str = ""


def settings(attributes: Mapping[str, str]) -> Settings:
    """The attributes of an attestation of type provenance. Raises InvalidParameter."""
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        match name:
            case "mode":
                if value not in ("min", "max"):
                    raise InvalidParameter(f'invalid mode "{value}" of the attestation provenance', hint="min or max")
                found["max"] = value == "max"
            case "builder-id":
                found["builder_id"] = value
            case "version":
                if value not in ("v0.2", "v1"):
                    raise InvalidParameter(f'invalid version "{value}" of the attestation provenance', hint="v0.2 or v1")
                found["version"] = value
            case "reproducible" | "inline-only":
                if value.lower() not in (*_TRUE, *_FALSE):
                    raise InvalidParameter(f'invalid value "{value}" for {name} of the attestation provenance', hint="true or false")
                found[name.replace("-", "_")] = value.lower() in _TRUE
            case "filename":
                if not value or "/" in value:
                    raise InvalidParameter(f'invalid filename "{value}" of the attestation provenance')
                found["filename"] = value
            case "disabled":
                pass
            case _:
                hint = "it has: mode, builder-id, version, reproducible, inline-only, filename, disabled"
                raise InvalidParameter(f'invalid attribute "{name}" of the attestation provenance', hint=hint)
    return Settings(**found)


def predicate(facts: Facts, wanted: Settings) -> Json:
    """The predicate of `wanted.predicate_type`."""
    found = _v1(facts, wanted) if wanted.version == "v1" else _v02(facts, wanted)
    if not facts.invocation:
        name = hashlib.sha256(msgspec.json.encode(found, order="sorted")).hexdigest()[:25]
        if wanted.version == "v1":
            found["runDetails"]["metadata"]["invocationId"] = name
        else:
            found["metadata"]["buildInvocationID"] = name
    return found


def _v02(facts: Facts, wanted: Settings) -> Json:
    source, parameters, whole = _asked(facts, wanted)
    found: Json = {
        "builder": {"id": wanted.builder_id},
        "buildType": _TYPE_V02,
        "materials": materials(facts),
        "invocation": {
            "configSource": {("entryPoint" if key == "path" else key): value for key, value in source.items()},
            "parameters": parameters,
            "environment": {"platform": str(facts.builder)},
        },
    }
    if wanted.max:
        steps, mapping = _steps(facts.graph)
        found["buildConfig"] = {"llbDefinition": steps, "digestMapping": mapping}
    found["metadata"] = {
        "buildInvocationID": facts.invocation,
        "buildStartedOn": facts.started,
        "buildFinishedOn": facts.finished,
        "completeness": {"parameters": whole, "environment": True, "materials": _complete(facts)},
        "reproducible": wanted.reproducible,
    }
    if not _uses_network(facts.graph):
        found["metadata"]["https://mobyproject.org/buildkit@v1#hermetic"] = True
    if extra := _extra(facts, wanted):
        found["metadata"][_METADATA] = extra
    return found


def _v1(facts: Facts, wanted: Settings) -> Json:
    source, parameters, whole = _asked(facts, wanted)
    internal: Json = {"builderPlatform": str(facts.builder)}
    if wanted.max:
        steps, mapping = _steps(facts.graph)
        internal["buildConfig"] = {"llbDefinition": steps, "digestMapping": mapping}
    return {
        "buildDefinition": {
            "buildType": _TYPE_V1,
            "externalParameters": {"configSource": source, "request": parameters},
            "internalParameters": internal,
            "resolvedDependencies": materials(facts),
        },
        "runDetails": {
            "builder": {"id": wanted.builder_id},
            "metadata": {
                "invocationId": facts.invocation,
                "startedOn": facts.started,
                "finishedOn": facts.finished,
                "buildkit_metadata": _extra(facts, wanted),
                "buildkit_hermetic": not _uses_network(facts.graph),
                "buildkit_completeness": {"request": whole, "resolvedDependencies": _complete(facts)},
                "buildkit_reproducible": wanted.reproducible,
            },
        },
    }


def _asked(facts: Facts, wanted: Settings) -> tuple[Json, Json, bool]:
    """Where the Dockerfile is from, what was asked, and whether that is said in full."""
    options = facts.options
    source: Json = {"path": options.dockerfile}
    if options.remote:
        source["uri"] = options.remote
        commit = next(
            (facts.resolved[i] for i, v in enumerate(facts.graph.vertices) if isinstance(v.op, GitSource) and i in facts.resolved
             and v.op.url == options.remote), "",
        )  # fmt: skip
        if commit:
            source["digest"] = _digest(commit)
    arguments = _arguments(options)
    shown = arguments if wanted.max else {key: value for key, value in arguments.items() if not key.startswith(_HIDDEN)}
    parameters: Json = {"frontend": "dockerfile.v0", "args": shown}
    whole = len(shown) == len(arguments)
    if wanted.max:
        if options.secrets:
            parameters["secrets"] = [{"id": id} for id in options.secrets]
        if options.ssh:
            parameters["ssh"] = [{"id": id} for id in options.ssh]
    else:
        whole = whole and not options.secrets and not options.ssh
    locals_ = [] if options.remote else [{"name": MAIN_CONTEXT}]
    locals_ += [{"name": "dockerfile"}] if options.dockerfile_sent or not options.remote else []
    locals_ += [{"name": name} for name, value in sorted(options.contexts.items()) if value.startswith("sent:")]
    if locals_:
        parameters["locals"] = locals_
    return source, parameters, whole


def _arguments(options: Options) -> dict[str, str]:
    """The options as arguments of BuildKit's frontend."""
    found = {f"build-arg:{name}": value for name, value in options.build_args.items() if value is not None}
    found |= {f"label:{name}": value for name, value in options.labels.items()}
    found |= {f"context:{name}": value for name, value in options.contexts.items() if not value.startswith("sent:")}
    texts = {
        "target": options.target,
        "cgroup-parent": options.cgroup_parent,
        "add-hosts": ",".join(options.hosts),
        "ulimit": ",".join(options.ulimits),
        "no-cache": ",".join(options.no_cache_filter),
        "platform": ",".join(options.platforms),
        "force-network-mode": options.network if options.network != "default" else "",
        "shm-size": str(options.shm_size) if options.shm_size else "",
        "image-resolve-mode": "pull" if options.pull else "",
    }
    found |= {name: value for name, value in texts.items() if value}
    if options.no_cache:
        found["no-cache"] = ""
    return dict(sorted(found.items()))


def materials(facts: Facts) -> list[Json]:
    """What came from elsewhere, each once: images, files from addresses, checkouts."""
    found: dict[str, Json] = {}
    for name, digest in facts.graph.images:
        try:
            parsed = reference.parse(name).with_default_tag()
        except InvalidParameter:
            continue  # scratch, or an image that has no name
        uri = image_purl(parsed, facts.platform)
        found[uri] = {"uri": uri, "digest": _digest(digest)} if digest else {"uri": uri}
    for index, vertex in enumerate(facts.graph.vertices):
        if isinstance(vertex.op, HttpSource | GitSource):
            digest = facts.resolved.get(index, "") or vertex.op.checksum
            found[vertex.op.url] = {"uri": vertex.op.url, "digest": _digest(digest)} if digest else {"uri": vertex.op.url}
    return list(found.values())


def image_purl(name: reference.Reference, platform: Platform | None = None) -> str:
    """The package URL of an image: `pkg:docker/busybox@latest?platform=linux%2Famd64`."""
    qualifiers = []
    if name.digest:
        qualifiers.append(f"digest={quote(name.digest, safe=':')}")
    if platform is not None:
        qualifiers.append(f"platform={quote(str(platform), safe='')}")
    version = f"@{quote(name.tag, safe='')}" if name.tag else ""
    return f"pkg:docker/{quote(name.familiar_name, safe='/:')}{version}" + (f"?{'&'.join(qualifiers)}" if qualifiers else "")


def _digest(text: str) -> dict[str, str]:
    """`sha256:…` or a commit."""
    algorithm, colon, encoded = text.partition(":")
    if colon:
        return {algorithm: encoded}
    return {"sha256" if len(text) == 64 else "sha1": text}


def _complete(facts: Facts) -> bool:
    """Whether `materials` is everything: what a client sent, and what a RUN may have fetched, is not in it."""
    sent = any(isinstance(vertex.op, ContextSource) for vertex in facts.graph.vertices)
    return not sent and not _uses_network(facts.graph)


def _uses_network(graph: Graph) -> bool:
    return any(isinstance(vertex.op, Run) and vertex.op.network != "none" for vertex in graph.vertices)


def _extra(facts: Facts, wanted: Settings) -> Json:
    if not wanted.max:
        return {}
    data = base64.b64encode(facts.dockerfile.encode("utf-8", "surrogateescape")).decode()
    lines = {
        f"step{index}": {"locations": [{"ranges": [{"start": {"line": vertex.line}, "end": {"line": vertex.line}}]}]}
        for index, vertex in enumerate(facts.graph.vertices)
        if vertex.line
    }
    return {"source": {"locations": lines, "infos": [{"filename": facts.options.dockerfile, "language": "Dockerfile", "data": data}]}}


def _steps(graph: Graph) -> tuple[list[Json], dict[str, str]]:
    """The steps with their inputs, and digest -> step. Proxies' variables may hold passwords and are no part of a step."""
    steps: list[Json] = []
    mapping: dict[str, str] = {}
    for index, vertex in enumerate(graph.vertices):
        op: Json = msgspec.to_builtins(vertex.op)
        op.pop("proxies", None)
        inputs = [f"step{one}:0" for one in vertex.inputs if one >= 0]
        digest = hashlib.sha256(msgspec.json.encode([op, [steps[one]["digest"] for one in vertex.inputs if one >= 0]], order="sorted"))
        step: Json = {"id": f"step{index}", "op": op, "name": vertex.name, "digest": f"sha256:{digest.hexdigest()}"}
        if isinstance(vertex.op, ImageSource):
            op["identifier"] = f"docker-image://{quote(vertex.op.reference, safe='/:@')}"
        if inputs:
            step["inputs"] = inputs
        steps.append(step)
        mapping.setdefault(step["digest"], step["id"])
    return [{key: value for key, value in step.items() if key != "digest"} for step in steps], mapping
