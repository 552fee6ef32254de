"""Lowering of generated Dockerfiles: only our errors, inputs below, equal work once, what is not needed is not there."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from builder.graph import SCRATCH, Copy, Graph, Run, Stack
from builder.language.errors import DockerfileError
from builder.language.instructions import Dockerfile
from builder.language.parser import parse
from builder.lowering.lower import lower, wanted
from builder.lowering.stages import Base, Key
from engine.errors import KnarrError
from engine.spec.build import Options
from engine.spec.image import ContainerConfig, ImageConfig, RootFS
from engine.spec.platform import Platform

HOST = Platform("amd64")
_NAMES = st.sampled_from(["a", "b", "c", "A", "scratch", "0", "1", "x:latest", "nope"])
_WORDS = st.sampled_from(
    [
        "a", "/", ".", "..", "/x/", "$A", "${B:-x}", "${A", "'q q'", '"$B"', "x=1", "A=$A$A", "80", "1-3/udp", "https://h/f", "g@h:r.git",
        "\\", "", "é\x01",
    ]
)  # fmt: skip
_FLAGS = st.sampled_from(
    [
        "", "--from=a", "--from=1", "--from=b", "--chown=$A", "--chmod=755", "--chmod=u+x", "--link", "--parents", "--exclude=*",
        "--checksum=x",
        "--mount=type=cache,target=/c", "--mount=from=b,target=t", "--mount=type=secret,id=$A", "--mount=type=ssh",
        "--network=none", "--network=host", "--mount=target=$A", "--keep-git-dir", "--unpack", "--platform=$TARGETPLATFORM",
        "--interval=1s",
    ]
)  # fmt: skip
_KEYWORDS = st.sampled_from(
    "RUN COPY ADD ENV ARG WORKDIR USER CMD ENTRYPOINT LABEL EXPOSE VOLUME STOPSIGNAL HEALTHCHECK SHELL ONBUILD MAINTAINER".split()
)
_LINES = st.builds(
    lambda keyword, flag, words: " ".join([keyword, *([flag] if flag else ()), *words]),
    _KEYWORDS,
    _FLAGS,
    st.lists(_WORDS, min_size=1, max_size=4),
)
_GOOD = st.sampled_from(
    [
        "RUN a", "RUN b", "COPY a /", "COPY --from=a / /", "COPY --link a /", "ENV A=1", "ARG B", "WORKDIR w",
        "RUN --mount=from=b,target=/t a", "USER 1",
    ]
)  # fmt: skip
_FROM = st.builds(lambda image, name: f"FROM {image}" + (f" AS {name}" if name else ""), _NAMES, st.sampled_from(["", "a", "b", "c"]))
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "target": st.sampled_from(["", "a", "1", "nope"]),
        "build_args": st.dictionaries(st.sampled_from(["A", "B", "TARGETARCH", "http_proxy"]), st.none() | st.text(max_size=5), max_size=3),
        "contexts": st.dictionaries(
            st.sampled_from(["a", "x", "b::linux/amd64"]), st.sampled_from(["sent:", "docker-image://y", "u@h:r"]), max_size=2
        ),
        "no_cache": st.booleans(),
        "platforms": st.sampled_from([(), ("linux/amd64",), ("linux/arm64", "linux/amd64")]),
    },
)


def _stages(lines: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(_FROM, st.lists(lines, max_size=6)), min_size=1, max_size=4).map(
        lambda stages: "\n".join(line for head, body in stages for line in (head, *body)) + "\n"
    )


def _parsed(text: str) -> Dockerfile:
    try:
        return parse(text.encode("utf-8", "surrogatepass"))
    except DockerfileError:
        assume(False)
        raise


def _lowered(dockerfile: Dockerfile, options: Options, triggers: tuple[str, ...] = ()) -> Graph:
    known: dict[Key, Base] = {}
    while missing := wanted(dockerfile, options, HOST, HOST, known):
        for one in missing:
            assert one.key not in known
            config = ImageConfig(architecture="amd64", config=ContainerConfig(on_build=triggers), rootfs=RootFS(diff_ids=("sha256:1",)))
            known[one.key] = Base(reference=one.reference, image="i", chain=one.reference, config=config, platform=one.platform)
    return lower(dockerfile, options, HOST, HOST, known)


@settings(max_examples=150, deadline=None)
@given(_stages(st.one_of(_LINES, _GOOD)), _OPTIONS, st.lists(_LINES, max_size=2))
def test_only_our_errors_whatever_can_be_parsed(text: str, options: dict[str, Any], triggers: list[str]) -> None:
    dockerfile = _parsed(text)
    errors: list[KnarrError] = []
    try:
        _lowered(dockerfile, Options(**options), tuple(triggers))
    except KnarrError as error:
        errors.append(error)
    assert all(error.message for error in errors)
    assert all(error.line <= text.count("\n") for error in errors if isinstance(error, DockerfileError))


@settings(max_examples=150, deadline=None)
@given(_stages(_GOOD), _OPTIONS)
def test_a_graph_is_in_order_and_says_nothing_twice(text: str, options: dict[str, Any]) -> None:
    dockerfile = _parsed(text)
    try:
        graph = _lowered(dockerfile, Options(**options))
    except KnarrError:
        return
    for index, vertex in enumerate(graph.vertices):
        assert all(SCRATCH <= one < index for one in vertex.inputs)
        if isinstance(vertex.op, Copy):
            assert all(1 <= source.input < len(vertex.inputs) for source in vertex.op.sources if source.content is None)
        if isinstance(vertex.op, Run):
            assert all(mount.input < len(vertex.inputs) for mount in vertex.op.mounts)
            assert len({entry.partition("=")[0] for entry in vertex.op.env}) == len(vertex.op.env)
        if isinstance(vertex.op, Stack):
            assert len(vertex.inputs) == 2
    assert len({(vertex.op, vertex.inputs) for vertex in graph.vertices}) == len(graph.vertices)
    assert SCRATCH <= graph.target.root < len(graph.vertices)
    # The layers of the history are the file system, one on another.
    layers = [step.vertex for step in graph.target.steps if step.vertex is not None]
    below = graph.target.root
    for layer in reversed(layers):
        assert layer == below
        below = graph.vertices[layer].inputs[0]


@settings(max_examples=60, deadline=None)
@given(_stages(_GOOD), _OPTIONS)
def test_what_a_target_does_not_need_changes_nothing(text: str, options: dict[str, Any]) -> None:
    options["target"] = "last"
    whole = text + "FROM x AS last\nRUN a\nCOPY b /\n"
    try:
        graph = _lowered(_parsed(whole), Options(**options))
    except KnarrError:
        return
    alone = _lowered(_parsed("FROM x AS last\nRUN a\nCOPY b /\n"), Options(**options))
    assert [(vertex.op, vertex.inputs) for vertex in graph.vertices] == [(vertex.op, vertex.inputs) for vertex in alone.vertices]
    assert graph.target.config == alone.target.config
