"""Targets and outlines of Dockerfiles are those that BuildKit prints."""

from __future__ import annotations

import base64

import pytest

from builder.checks import outline
from builder.language.parser import parse
from engine.errors import InvalidParameter
from engine.spec.platform import Platform

HOST = Platform(architecture="amd64")
FILE = b"""# version of the base
ARG VERSION=scratch
# NAME a name for it
ARG NAME
ARG UNUSED=x
# build makes it
FROM ${VERSION} AS build
# MODE how to make
ARG MODE=fast
ARG NAME
ARG TARGETARCH
RUN --mount=type=secret,id=tok,required=true --mount=type=cache,target=/c --mount=type=ssh echo $MODE $NAME
FROM scratch AS other
ARG Q=1
COPY --from=build /bin/sh /sh
# final the last
FROM build AS final
RUN --mount=type=secret,id=two --mount=type=cache,id=zz,target=/d --mount=type=ssh,id=k,required=true true
COPY --from=other /sh /
FROM scratch
# LATE comes late
ARG LATE
ARG DEP=$LATE-x
ARG NAME=inner
ENV A=$DEP
ARG UN1=1 UN2=2
COPY --from=final / $A
"""


def of(target: str = "", text: bytes = FILE, **build_args: str) -> outline.Outline:
    return outline.outline(parse(text), platform=HOST, build_platform=HOST, target=target, build_args=build_args)


def test_targets() -> None:
    dockerfile = parse(FILE)
    found = outline.targets(dockerfile)
    assert outline.targets_text(found) == (
        "TARGET    DESCRIPTION\n"
        "build     makes it\n"
        "other     \n"
        "final     the last\n"
        "(default) \n"
    )  # fmt: skip
    answer = outline.targets_answer(dockerfile, found)
    assert answer["sources"] == [base64.b64encode(FILE).decode()]
    place = {"ranges": [{"start": {"line": 7}, "end": {"line": 7}}]}
    assert answer["targets"][0] == {"name": "build", "description": "makes it", "base": "${VERSION}", "location": place}
    assert [sorted(each) for each in answer["targets"][1:]] == [
        ["base", "location", "name"],
        ["base", "description", "location", "name"],
        ["base", "default", "location"],
    ]


def test_a_named_default_target() -> None:
    dockerfile = parse(b"# x y\nFROM scratch AS x\nFROM scratch\n# z zz\nFROM --platform=$BUILDPLATFORM scratch AS z\n")
    found = outline.targets(dockerfile)
    assert outline.targets_text(found) == "TARGET      DESCRIPTION\nx           y\n            \nz (default) zz\n"
    last = outline.targets_answer(dockerfile, found)["targets"][2]
    assert last["name"] == "z" and last["default"] is True and last["platform"] == "$BUILDPLATFORM"


def test_outline_of_the_default_target() -> None:
    assert outline.outline_text(of()) == (
        "BUILD ARG   VALUE     DESCRIPTION\n"
        "VERSION     scratch   \n"
        "MODE        fast      how to make\n"
        "Q           1         \n"
        "LATE                  comes late\n"
        "DEP         -x        \n"
        "NAME        inner     \n"
        "UN1         1         \n"
        "UN2         2         \n"
        "\n"
        "SECRET   REQUIRED\n"
        "tok      true\n"
        "two      \n"
        "\n"
        "SSH       REQUIRED\n"
        "default   \n"
        "k         true\n"
        "\n"
    )


@pytest.mark.parametrize(("target", "build_args", "head", "arguments", "secrets"), [
    ("build", {}, "TARGET:      build\nDESCRIPTION: makes it\n\n", {"VERSION": 2, "NAME": 4, "MODE": 9}, ["tok"]),
    ("other", {}, "TARGET: other\n\n", {"VERSION": 2, "NAME": 4, "MODE": 9, "Q": 14}, ["tok"]),
    ("final", {}, "TARGET:      final\nDESCRIPTION: the last\n\n", {"VERSION": 2, "NAME": 4, "MODE": 9, "Q": 14}, ["tok", "two"]),
    ("Final", {"NAME": "given"}, "TARGET:      final\n", {"VERSION": 2, "MODE": 9, "NAME": 10, "Q": 14}, ["tok", "two"]),
])  # fmt: skip
def test_outline_of_a_target(target: str, build_args: dict[str, str], head: str, arguments: dict[str, int], secrets: list[str]) -> None:
    found = of(target, **build_args)
    assert outline.outline_text(found).startswith(head)
    assert {each.name: each.location.line for each in found.arguments} == arguments
    assert [each.name for each in found.secrets] == secrets
    assert next(each.value for each in found.arguments if each.name == "NAME") == build_args.get("NAME")


def test_outline_as_json() -> None:
    dockerfile = parse(FILE)
    answer = outline.outline_answer(dockerfile, of("build"))
    twelve = {"ranges": [{"start": {"line": 12}, "end": {"line": 12}}]}
    assert list(answer) == ["name", "description", "args", "secrets", "ssh", "sources"]
    assert answer["args"][1] == {
        "name": "NAME", "description": "a name for it", "location": {"ranges": [{"start": {"line": 4}, "end": {"line": 4}}]},
    }  # fmt: skip
    assert answer["secrets"] == [{"name": "tok", "required": True, "location": twelve}]
    assert answer["ssh"] == [{"name": "default", "location": twelve}]


def test_arguments_that_defaults_of_others_use() -> None:
    found = of(text=b"ARG A=1\nARG B=x$A\nARG C=$B\nFROM scratch$D AS s\nFROM img:$C AS t\nFROM scratch\nCOPY --from=1 / /\n")
    assert [(each.name, each.value) for each in found.arguments] == [("A", "1"), ("B", "x1"), ("C", "x1")]


def test_an_outline_with_nothing() -> None:
    assert outline.outline_text(of(text=b"FROM scratch\n")) == ""


def test_no_such_target() -> None:
    with pytest.raises(InvalidParameter, match=r'target stage "finel" could not be found \(did you mean final\?\)'):
        of("finel")


def test_values_do_not_write_to_the_terminal() -> None:
    text = outline.outline_text(of(text=b"FROM scratch\nARG A=\x1b[2J\n# B \x1b]0;x\x07\nARG B=1\n"))
    assert "\x1b" not in text and "\x07" not in text
