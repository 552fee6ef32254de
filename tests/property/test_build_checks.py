"""Whatever a Dockerfile says, checks, outlines and targets give an answer or an error for the user."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from builder.checks import checkreport, checks, outline
from builder.checks import checkrules as rules
from builder.language.errors import DockerfileError
from builder.language.ignore import Patterns
from builder.language.parser import parse
from engine.errors import InvalidParameter
from engine.spec.platform import Platform

HOST = Platform(architecture="amd64")
_value = st.text("aA$b{}:-+?#%/'\" \\=.[,0é\x1b", max_size=8)
_line = st.one_of(
    st.builds("FROM {} AS {}".format, _value, st.sampled_from("abAB")),
    st.builds(
        "{} {}".format,
        st.sampled_from("FROM ARG ENV LABEL RUN COPY ADD EXPOSE USER WORKDIR VOLUME CMD from Onbuild MAINTAINER".split()),
        _value,
    ),
    st.builds(
        "{} {}={} {}".format, st.sampled_from(["ARG", "ENV", "COPY --from", "RUN --mount", "FROM --platform"]), _value, _value, _value
    ),
    st.builds("COPY {} \\\n\n <<A {}\n{}\nA".format, _value, _value, _value),
    st.builds("# {}".format, _value),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(_line, max_size=8), st.dictionaries(st.sampled_from("abAB"), _value, max_size=2), st.booleans())
def test_any_file(lines: list[str], build_args: dict[str, str], every_stage: bool) -> None:
    text = "\n".join(["FROM scratch AS a", *lines, "FROM a", *lines])
    try:
        dockerfile = parse(text.encode())
    except DockerfileError as error:
        json.dumps(checkreport.unreadable(error).answer)
        return
    found = checks.run(
        dockerfile,
        platform=HOST,
        build_platform=HOST,
        build_args=build_args,
        ignore=Patterns(["*a"]),
        base_env={0: ["b=1"]},
        every_stage=every_stage,
    )
    count = len(text.splitlines())
    assert all(1 <= each.location.line <= each.location.end <= count for each in found)
    report = checkreport.report(dockerfile, found, rules.wanted(dockerfile, build_args))
    json.dumps(report.answer)
    assert report.code == bool(found) and report.text.count("\nWARNING: ") >= len(found) and "\x1b" not in report.text
    json.dumps(outline.targets_answer(dockerfile, outline.targets(dockerfile)))
    stage = outline.outline(dockerfile, platform=HOST, build_platform=HOST, build_args=build_args)
    assert "\x1b" not in outline.outline_text(stage)


@settings(max_examples=200, deadline=None)
@given(st.text("skiperoxal=;, A", max_size=20))
def test_any_check_directive(text: str) -> None:
    with contextlib.suppress(InvalidParameter):
        assert isinstance(rules.read(text), rules.Wanted)
