"""Lowering: what is refused and where, names, arguments, triggers, targets, contexts; values in Go's formats.

What images become is in the golden tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from builder.graph import SCRATCH, ContextSource, Copy, Graph, ImageSource, Run
from builder.language import goformat, platformargs
from builder.language.addresses import filename, is_git, is_web
from builder.language.errors import DockerfileError
from builder.language.parser import parse
from builder.lowering.evaluate import below, destination, exposed
from builder.lowering.lower import lower, wanted
from builder.lowering.stages import Base, Key, Wanted
from engine.errors import InvalidParameter, KnarrError, NotImplementedYet
from engine.spec.build import Options
from engine.spec.image import ContainerConfig, Healthcheck, ImageConfig, RootFS
from engine.spec.platform import Platform

HOST = Platform("amd64")
CONFIG = ImageConfig(architecture="amd64", config=ContainerConfig(env=("PATH=/bin",)), rootfs=RootFS(diff_ids=("sha256:1",)))


def image(one: Wanted, on_build: tuple[str, ...] = (), **changes: Any) -> Base:
    config = ImageConfig(architecture="amd64", config=ContainerConfig(env=("PATH=/bin",), on_build=on_build), rootfs=CONFIG.rootfs)
    given = {"reference": one.reference, "image": "id", "chain": one.reference, "config": config, "platform": one.platform}
    return Base(**{**given, **changes})


def lowered(text: str, on_build: dict[str, tuple[str, ...]] | None = None, platform: Platform = HOST, **options: Any) -> Graph:
    dockerfile, asked, known = parse(text.encode()), Options(**options), dict[Key, Base]()
    while missing := wanted(dockerfile, asked, platform, HOST, known):
        for one in missing:
            known[one.key] = image(one, (on_build or {}).get(one.origin, ()))
    return lower(dockerfile, asked, platform, HOST, known)


def names(graph: Graph) -> list[str]:
    return [vertex.name for vertex in graph.vertices]


def history(graph: Graph) -> list[str]:
    return [step.created_by for step in graph.target.steps]


def runs(graph: Graph) -> list[Run]:
    return [vertex.op for vertex in graph.vertices if isinstance(vertex.op, Run)]


# What it says, the line that is marked, and the word below which the caret stands. BuildKit's words where it says something.
REFUSED = [
    ("FROM b\nEXPOSE 80-70", "invalid containerPort: 80-70", 2, "80-70"),
    ("FROM b\nEXPOSE 8080:80 80/foo", "invalid proto: foo", 2, "80/foo"),
    ("FROM b\nSTOPSIGNAL FOO", "invalid signal: FOO", 2, ""),
    ("FROM b\nARG V\nVOLUME $V", "VOLUME specified can not be an empty string", 3, ""),
    ("FROM b\nCOPY --chmod=9999 a /", "invalid chmod parameter: '9999'. it should be octal string and between 0 and 07777", 2, ""),
    ("FROM b\nCOPY --from=5 a /", "invalid stage index 5", 2, "5"),
    ("FROM b AS x\nCOPY --from=x a /", "circular dependency detected on stage: x", 2, ""),
    ("FROM b AS x\nCOPY --from=y a /\nFROM x AS y", "circular dependency detected on stage: x", 3, ""),
    ("FROM b\nCOPY --from=y a /\nFROM b AS y\nFROM stage-0", "", 0, ""),
    ("ARG Q\nFROM $Q", "base name ($Q) should not be blank", 2, "$Q"),
    ("FROM --platform=a/b/c/d b", "failed to parse platform a/b/c/d", 1, "a/b/c/d"),
    ("FROM --platform=$NOPE b", "empty platform value from expression $NOPE", 1, "$NOPE"),
    ("FROM b\nCOPY https://h/r.git /x", "source can't be a git ref for COPY", 2, "https://h/r.git"),
    ("FROM b\nCOPY https://h/f /x", "source can't be a URL for COPY", 2, "https://h/f"),
    ("FROM b\nADD --checksum=sha256:" + "a" * 64 + " a /x", "checksum requires HTTP(S) or Git sources", 2, "sha256:" + "a" * 64),
    ("FROM b\nADD --checksum=foo http://h/x /x", "invalid checksum digest format", 2, "foo"),
    ("FROM b\nADD --checksum=foo http://h/x http://h/y /x/", "checksum can't be specified for multiple sources", 2, ""),
    ("FROM b\nADD --keep-git-dir=false https://h/r.git?keep-git-dir=true /x", "inconsistent keep-git-dir configuration", 2, ""),
    ("FROM b\nRUN --mount=target=/ ls", 'invalid mount target "/"', 2, "target=/"),
    ("FROM b\nRUN --mount=type=cache ls", 'invalid mount target "/"', 2, "type=cache"),
    ("FROM b\nRUN --mount=type=ssh,source=/x ls", "ssh does not support source", 2, "/x"),
    ("FROM b\nRUN --network=host ls", "network.host is not allowed", 2, "host"),
    ("FROM b\nRUN --security=insecure ls", "security.insecure is not allowed", 2, "insecure"),
    ("FROM b\nRUN --device=vendor/x=y ls", "device is not allowed", 2, "vendor/x=y"),
    ("FROM b\nARG X=b\nCOPY --from=$X a /", "variable expansion is not supported for --from", 3, "$X"),
    ("FROM b\nENV A=${B?nope}", 'failed to process "${B?nope}": B: nope', 2, ""),
    ("ARG A=${B?nope}\nFROM b", 'failed to process "${B?nope}": B: nope', 1, "${B?nope}"),
    ("FROM b AS Build\nFROM Build", 'failed to parse stage name "Build": invalid reference format: repository name', 2, "Build"),
    ("FROM b::x", 'failed to parse stage name "b::x": invalid reference format', 1, "b::x"),
    ("FROM b\nENV $X=1", "ENV names can not be blank", 2, ""),
    ("FROM b\nRUN []", "RUN needs a command to execute", 2, ""),
    ("FROM b AS x\nRUN --mount=from=y,target=/x ls\nFROM b AS y\nFROM b\nCOPY --from=x / /", "cannot mount from stage", 2, ""),
]


@pytest.mark.parametrize(("text", "message", "line", "word"), REFUSED)
def test_refused(text: str, message: str, line: int, word: str) -> None:
    if not message:
        assert lowered(text)
        return
    with pytest.raises(DockerfileError) as caught:
        lowered(text)
    assert message in caught.value.message
    assert caught.value.line == line
    if word:
        assert caught.value.word == word and "^" in caught.value.excerpt()


def test_a_later_stage_cannot_be_copied_from() -> None:
    with pytest.raises(DockerfileError, match='cannot copy from stage "y", it needs to be defined before current stage "x"'):
        lowered("FROM b AS x\nCOPY --from=y a /\nFROM b AS y", target="x")
    assert lowered("FROM b AS x\nCOPY --from=y a /\nFROM b AS y")  # x is not needed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "nope"}, 'target stage "nope" could not be found'),
        ({"build_args": {"SOURCE_DATE_EPOCH": "then"}}, "invalid SOURCE_DATE_EPOCH: then"),
        ({"hosts": ("nonsense",)}, 'bad format for add-host: "nonsense"'),
        ({"contexts": {"foo": "ftp://x"}}, "unsupported context source ftp for foo"),
        ({"contexts": {"foo": "target:x"}}, "unsupported context source target for foo"),
        ({"contexts": {"F oo": "sent:"}}, "invalid context name F oo"),
    ],
)
def test_options_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        lowered("FROM b AS st\nRUN true", **options)


def test_target_has_a_suggestion() -> None:
    with pytest.raises(InvalidParameter, match="did you mean build"):
        lowered("FROM b AS build", target="biuld")


def test_not_there() -> None:
    with pytest.raises(NotImplementedYet, match="RUN --device"):
        lowered("FROM b\nRUN --device=gpu x", allow=("device",))
    with pytest.raises(NotImplementedYet, match="--network container of a build"):
        lowered("FROM b\nRUN x", network="container:x")
    assert runs(lowered("FROM b\nRUN x", network="mine"))[0].network == "mine"


@pytest.mark.parametrize(
    ("target", "expected"), [("", ["b", "d"]), ("ONE", ["b"]), ("1", ["c"]), ("two", ["c"]), ("three", ["b", "d"])]
)  # fmt: skip
def test_only_what_the_target_needs_is_wanted(target: str, expected: list[str]) -> None:
    text = "FROM b AS one\nFROM c AS two\nRUN x\nFROM one AS three\nCOPY --from=d / /\nCOPY --from=d:latest / /\n"
    missing = wanted(parse(text.encode()), Options(target=target), HOST, HOST, {})
    assert sorted(one.origin for one in missing) == expected


def test_what_is_said_of_a_wanted_image() -> None:
    text = "FROM b\nCOPY --from=quay.io/x/y@sha256:" + "a" * 64 + " / /\n"
    first, second = sorted(wanted(parse(text.encode()), Options(), HOST, HOST, {}), key=lambda one: one.location.line)
    assert (first.reference, first.name) == ("docker.io/library/b:latest", "[internal] load metadata for docker.io/library/b:latest")
    assert second.reference == "quay.io/x/y@sha256:" + "a" * 64 and second.location.line == 2
    (both,) = wanted(parse(b"FROM b"), Options(platforms=("linux/amd64", "linux/arm64")), Platform("arm64"), HOST, {})
    assert both.name == "[linux/arm64 internal] load metadata for docker.io/library/b:latest" and both.key[1] == Platform("arm64")


def test_images_that_are_missing_cannot_be_lowered() -> None:
    with pytest.raises(ValueError, match="base images are missing"):
        lower(parse(b"FROM b"), Options(), HOST, HOST, {})


def test_triggers_of_a_base_image_may_want_other_images() -> None:
    triggers = {"b": ("COPY --from=c /x /y", "RUN --mount=from=d,target=/d echo $A", "ENV A=1"), "c": ("RUN never",)}
    graph = lowered("FROM b\nRUN echo $A", triggers)
    assert [vertex.op.reference for vertex in graph.vertices if isinstance(vertex.op, ImageSource)] == [
        f"docker.io/library/{name}:latest" for name in "cdb"
    ]
    assert names(graph)[3:] == [
        "[2/4] ONBUILD COPY --from=c /x /y", "[3/4] ONBUILD RUN --mount=from=d,target=/d echo $A", "[4/4] RUN echo 1",
    ]  # fmt: skip
    assert graph.target.config.defaults.on_build is None
    assert [step.instruction for step in graph.plan] == ["FROM b", "", "", "", "RUN echo $A"]


@pytest.mark.parametrize("trigger", ["FROM x", "ONBUILD RUN x", "RUN --mount=type=x y", "NONSENSE", "COPY --from=7 a b", "RUN a\nRUN b"])
def test_a_trigger_that_is_wrong_is_said_of_the_from(trigger: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        lowered("# c\nFROM b\nRUN y", {"b": (trigger,)})
    assert caught.value.line == 2


def test_triggers_of_a_stage_run_in_the_next_one_alone() -> None:
    graph = lowered("FROM b AS one\nONBUILD RUN trigger\nFROM one AS two\nFROM two\nRUN last")
    assert [run.args[-1] for run in runs(graph)] == ["trigger", "last"]
    with pytest.raises(DockerfileError, match="circular dependency"):
        lowered("FROM b AS one\nONBUILD COPY --from=two / /\nFROM one AS two\nFROM two")


def test_environment_beats_arguments_of_stages_below() -> None:
    graph = lowered("FROM b AS one\nENV A=env\nARG A=arg\nRUN first\nFROM one\nRUN second", build_args={})
    first, second = runs(graph)
    assert first.env == ("PATH=/bin", "A=arg")  # as BuildKit: the last one that was declared
    assert second.env == ("PATH=/bin", "A=env")


def test_one_instruction_sees_the_variables_before_it_and_arguments_each_other() -> None:
    graph = lowered("FROM b\nENV A=1\nENV A=2 B=$A\nARG X=1 Y=${X}2\nRUN echo")
    assert runs(graph)[0].env == ("PATH=/bin", "A=2", "B=1", "X=1", "Y=12")


def test_arguments_without_a_value() -> None:
    graph = lowered("ARG G=1\nFROM b\nARG G\nARG NOT\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN echo", build_args={"NOT": None})
    assert runs(graph)[0].env == ("PATH=/bin", "G=1")
    assert history(graph)[-1] == "RUN |3 G=1 NOT= BUILDKIT_SBOM_SCAN_STAGE=true /bin/sh -c echo # buildkit"
    assert {"G", "NOT"} <= set(graph.used)


def test_platform_arguments() -> None:
    found = platformargs.automatic(HOST, Platform("arm", "linux", "v7"), "", {"TARGETOS": "mine"})
    assert found["BUILDPLATFORM"] == "linux/amd64" and found["BUILDVARIANT"] == "" and found["TARGETPLATFORM"] == "linux/arm/v7"
    assert (found["TARGETOS"], found["TARGETARCH"], found["TARGETVARIANT"], found["TARGETSTAGE"]) == ("mine", "arm", "v7", "default")


def test_proxies_are_no_part_of_the_key_unless_declared() -> None:
    options = {"build_args": {"http_proxy": "p", "NO_PROXY": "n", "ALL_PROXY": ""}}
    plain, declared = lowered("FROM b\nRUN a", **options), lowered("FROM b\nARG http_proxy\nRUN a", **options)
    assert runs(plain)[0].proxies == ("HTTP_PROXY=p", "http_proxy=p", "NO_PROXY=n", "no_proxy=n")
    assert history(plain) == ["RUN /bin/sh -c a # buildkit"]
    assert runs(declared)[0].env[-1] == "http_proxy=p" and runs(declared)[0].proxies[0] == "HTTP_PROXY=p"
    assert "http_proxy=p" not in runs(declared)[0].proxies


def test_an_environment_that_no_process_can_have() -> None:
    doubled = "\n".join(f"ENV A{n}=$A{n - 1}$A{n - 1}" for n in range(1, 30))
    with pytest.raises(KnarrError, match=r"the variables of a stage have more than|larger"):
        lowered(f"FROM b\nENV A0={'x' * 64}\n{doubled}")


def test_network_and_entitlements() -> None:
    allowed = lowered("FROM b\nRUN --network=host a\nRUN --security=insecure b", allow=("network.host", "security.insecure"))
    assert [(run.network, run.security) for run in runs(allowed)] == [("host", "sandbox"), ("default", "insecure")]
    assert [run.network for run in runs(lowered("FROM b\nRUN a\nRUN --network=none b\nRUN --network=host c", network="host"))] == [
        "host", "none", "host",
    ]  # fmt: skip
    assert runs(lowered("FROM b\nRUN --network=default a", network="none"))[0].network == "default"


def test_names_of_crossing_stages() -> None:
    text = "FROM --platform=$BUILDPLATFORM b AS x\nARG {}\nRUN a\nFROM b\nCOPY --from=x / /"
    for arguments, shown in (
        ("TARGETPLATFORM", "[linux/amd64->arm64 x 2/2] RUN a"),
        ("TARGETOS", "[linux/amd64 x 2/2] RUN a"),
        ("NOTHING", "[linux/amd64 x 2/2] RUN a"),
        ("TARGETOS=windows", "[linux/amd64->windows/amd64 x 2/2] RUN a"),
    ):
        graph = lowered(text.format(arguments), platform=Platform("arm64"), platforms=("linux/arm64", "linux/amd64"))
        assert shown in names(graph)


def test_an_image_without_layers_is_scratch() -> None:
    key = wanted(parse(b"FROM b"), Options(), HOST, HOST, {})[0]
    graph = lower(parse(b"FROM b\nCOPY a /"), Options(), HOST, HOST, {key.key: image(key, chain="")})
    assert graph.vertices[graph.target.root].inputs[0] == SCRATCH and names(graph)[-1] == "[1/2] COPY a /"


def test_what_is_inherited_of_a_configuration() -> None:
    defaults = ContainerConfig(
        hostname="h", user="u", env=("A=1",), image="sha256:x", on_build=(), tty=True, stop_timeout=5, labels={"l": "1"}, mac_address="m"
    )
    config = ImageConfig(architecture="arm", variant="v6", os="linux", config=defaults, docker_version="1", comment="c", author="me")
    key = wanted(parse(b"FROM b"), Options(), HOST, HOST, {})[0]
    made = lower(parse(b"FROM b"), Options(), HOST, HOST, {key.key: image(key, config=config)}).target.config
    assert made.config == ContainerConfig(user="u", env=("A=1", "PATH=" + platform_path()), labels={"l": "1"})
    assert (made.architecture, made.variant, made.author, made.docker_version, made.comment) == ("arm", "v6", "me", "", "")


def platform_path() -> str:
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_the_platform_that_was_asked_for_is_that_of_the_image() -> None:
    made = lowered("FROM b", platform=Platform("arm", "linux", "v7"), platforms=("linux/arm/v7",)).target.config
    assert str(made.platform) == "linux/arm/v7"


def test_contexts_by_platform_and_by_any_name_of_an_image() -> None:
    contexts = {"docker.io/library/b:latest": "docker-image://c", "b::linux/arm64": "docker-image://d"}
    for platform, name in ((HOST, "c"), (Platform("arm64"), "d")):
        (one,) = wanted(parse(b"FROM b"), Options(contexts=contexts), platform, HOST, {})
        assert one.reference == f"docker.io/library/{name}:latest"
        assert one.name.startswith("[context ")
    (layout,) = wanted(parse(b"FROM b"), Options(contexts={"b": "oci-layout://x@sha256:1"}), HOST, HOST, {})
    assert layout.reference == "oci-layout://x@sha256:1"


def test_a_context_for_a_stage_takes_its_place() -> None:
    graph = lowered("FROM never AS st\nRUN never\nFROM b\nCOPY --from=st a /a", contexts={"st": "sent:"})
    assert [type(vertex.op) for vertex in graph.vertices if not isinstance(vertex.op, ImageSource)] == [ContextSource, Copy, Copy]
    assert graph.vertices[graph.target.root].inputs[1] == 0  # straight from the folder


def test_no_cache_is_for_the_stages_that_are_named() -> None:
    text = "FROM b AS one\nRUN a\nFROM one AS two\nRUN c\nWORKDIR /x"
    assert [vertex.no_cache for vertex in lowered(text, no_cache_filter=("Two",)).vertices] == [False, False, True, True]
    assert [vertex.no_cache for vertex in lowered(text, no_cache=True).vertices] == [False, True, True, True]


def test_equal_work_that_one_stage_wants_anew_is_done_anew() -> None:
    graph = lowered("FROM b AS one\nRUN a\nFROM b AS two\nRUN a\nFROM one\nCOPY --from=two / /", no_cache_filter=("two",))
    (vertex,) = [vertex for vertex in graph.vertices if isinstance(vertex.op, Run)]
    assert vertex.no_cache


def test_an_image_is_named_by_the_stage_that_begins_with_it() -> None:
    assert names(lowered("FROM b AS st\nCOPY --from=b / /"))[0] == "[st 1/2] FROM docker.io/library/b:latest"


def test_epoch_from_the_file() -> None:
    assert lowered("ARG SOURCE_DATE_EPOCH=5\nFROM scratch").epoch == 5
    assert lowered("FROM scratch", build_args={"SOURCE_DATE_EPOCH": ""}).epoch is None


def test_very_many_stages() -> None:
    text = "FROM b AS s0\n" + "".join(f"FROM s{n} AS s{n + 1}\nRUN {n}\n" for n in range(2000))
    assert len(lowered(text).vertices) == 2001


@pytest.mark.parametrize(
    ("words", "ports"),
    [
        (["80"], ["80/tcp"]), (["80-82/UDP"], ["80/udp", "81/udp", "82/udp"]), (["1.2.3.4:8080:80/sctp", "::80"], ["80/sctp", "80/tcp"]),
        (["[::1]:1-2:3"], ["3/tcp"]), (["0"], ["0/tcp"]),
    ],
)  # fmt: skip
def test_ports(words: list[str], ports: list[str]) -> None:
    assert exposed(words) == ports


@pytest.mark.parametrize("word", ["", "/tcp", "65536", "1-", "1-2-3", "x:1", "1.2.3:1:1", "1-2:1-3", "¹", "-1", "9" * 40])
def test_no_ports(word: str) -> None:
    with pytest.raises(InvalidParameter):
        exposed([word])


@pytest.mark.parametrize(
    ("folder", "path", "expected"),
    [
        ("/w", "a", "/w/a"), ("/w", "a/", "/w/a/"), ("/w", ".", "/w/"), ("/w", "", "/w/"), ("/w", "..", "/"), ("", "../../x", "/x"),
        ("/w", "//x//y", "/x/y"), ("/w", "a/.", "/w/a/"), ("/w", "/", "/"),
    ],
)  # fmt: skip
def test_destinations(folder: str, path: str, expected: str) -> None:
    assert destination(folder, path) == expected
    assert below(folder, path) == (expected.rstrip("/") or "/")


def test_addresses() -> None:
    git = ["https://h/r.git", "http://h/r.git#x:y", "https://h/r.git?branch=x", "git://h/r", "ssh://git@h/r", "git@h:r.git", "u@h:x"]
    web = ["http://h/f", "https://h/r.git/x", "https://h/f?a.git", "https://[x/f"]
    neither = ["a", "./git@h:r", "ftp://h/f", "github.com/a/b", "a@b", "/x"]
    assert [word for word in (*git, *web, *neither) if is_git(word)] == git
    assert [word for word in (*git, *web, *neither) if is_web(word)] == web
    assert [filename(f"http://h/{rest}") for rest in ("a/b?c", "", "a/..", "a/%2e%2e", "%2fetc/x", "?q")] == [
        "b", "__unnamed__", "__unnamed__", "__unnamed__", "x", "__unnamed__",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0s"), (1, "1ns"), (1500, "1.5µs"), (3_000_000, "3ms"), (1_500_000_000, "1.5s"), (90_000_000_000, "1m30s"),
        (7_200_000_000_000, "2h0m0s"), (-1_000_000_000, "-1s"), (3_661_000_000_005, "1h1m1.000000005s"),
    ],
)  # fmt: skip
def test_durations_as_go_writes_them(value: int, text: str) -> None:
    assert goformat.duration(value) == text


def test_go_quotes() -> None:
    assert goformat.quoted('a"b\\\n\x01\x7fé\u200b\U000e0001\t') == '"a\\"b\\\\\\n\\x01\\x7fé\\u200b\\U000e0001\\t"'
    assert goformat.healthcheck(Healthcheck(test=("NONE",), retries=39)) == '&{["NONE"] "0s" "0s" "0s" "0s" \'\\\'\'}'
    assert goformat.plain_set({"b", "a"}) == "map[a:{} b:{}]"


def test_thousands_of_instructions_that_only_change_the_configuration() -> None:
    count = 2000
    kinds = ("ENV V{0}=$V{1}.", "LABEL l{0}=x", "EXPOSE {0}", "VOLUME /v{0}", "ARG A{0}=$V0", "ONBUILD LABEL t{0}=x")
    text = "FROM b\nENV V0=v\n" + "".join(f"{kinds[i % 6].format(i, i - 6 if i > 6 else 0)}\n" for i in range(6, count))
    config = lowered(text).target.config.defaults
    each = [[i for i in range(6, count) if i % 6 == kind] for kind in range(6)]
    assert config.env is not None and config.env[:3] == ("PATH=/bin", "V0=v", "V6=v.") and len(config.env) == len(each[0]) + 2
    assert config.env[-1] == f"V{each[0][-1]}=v{'.' * len(each[0])}"
    assert config.labels == {f"l{i}": "x" for i in each[1]}
    assert set(config.exposed_ports or ()) == {f"{i}/tcp" for i in each[2]}
    assert set(config.volumes or ()) == {f"/v{i}" for i in each[3]}
    assert config.on_build == tuple(f"LABEL t{i}=x" for i in each[5])


def test_stages_on_one_stage_do_not_see_each_others_configuration() -> None:
    text = (
        "FROM b AS base\nENV A=1\nLABEL a=1\nEXPOSE 1\nVOLUME /1\nONBUILD LABEL t=1\nMAINTAINER me\nRUN one\n"
        "FROM base AS left\nENV A=2 L=1\nLABEL l=1\nEXPOSE 2\nVOLUME /2\nONBUILD LABEL t=2\nRUN two\nENV M=1\nRUN three\n"
        "FROM base AS right\nENV R=1\nLABEL r=1\nCOPY --from=left / /\nRUN four\n"
    )
    left, right = (lowered(text, target=name).target.config for name in ("left", "right"))
    assert (left.author, left.defaults.env) == ("me", ("PATH=/bin", "A=2", "L=1", "M=1"))
    assert (left.defaults.labels, right.defaults.labels) == ({"a": "1", "l": "1", "t": "1"}, {"a": "1", "r": "1", "t": "1"})
    assert (list(left.defaults.exposed_ports or ()), list(right.defaults.exposed_ports or ())) == (["1/tcp", "2/tcp"], ["1/tcp"])
    assert (list(left.defaults.volumes or ()), list(right.defaults.volumes or ())) == (["/1", "/2"], ["/1"])
    assert (left.defaults.on_build, right.defaults.on_build) == (("LABEL t=2",), None)
    assert right.defaults.env == ("PATH=/bin", "A=1", "R=1")
    envs = {run.args[-1]: run.env for run in runs(lowered(text, target="right"))}
    assert envs == {
        "one": ("PATH=/bin", "A=1"),
        "two": ("PATH=/bin", "A=2", "L=1"),
        "three": ("PATH=/bin", "A=2", "L=1", "M=1"),
        "four": ("PATH=/bin", "A=1", "R=1"),
    }
