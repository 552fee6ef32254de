"""The parser against any bytes; words and patterns against simple models."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builder.language.arguments import NAMES, words
from builder.language.durations import nanoseconds
from builder.language.errors import DockerfileError
from builder.language.glob import Pattern
from builder.language.instructions import Copy, Dockerfile, Env, OnBuild, Run
from builder.language.parser import parse, parse_trigger
from builder.language.runmount import fields, parse_device, parse_mount
from builder.language.shell import Expansion, SubstitutionError, Words
from builder.language.suggest import nearest

_PIECES = st.sampled_from(
    [
        *(f"{name} " for name in NAMES),
        *("# escape=`\n", "# syntax=x\n", "FROM scratch\n", "\n", "\\\n", "`\n", "\r\n", " ", "\t", "#", "a", "b=c", "AS x"),
        *("<<E", "<<-E", "<<'E'", "\nE\n", "--from=x ", "--mount=", "--link ", "--interval=1s ", "CMD", "NONE", '["a", "b"]'),
        *("[", "]", '"', "'", "$", "${", "}", ":-", "//", "\\", "--", "=", ",", "{", "\x00", "é", "\ufeff", "\x1b", "\u2028"),
    ]
)


_Result = TypeVar("_Result")


def outcome(kind: type[Exception], read: Callable[[], _Result]) -> _Result | Exception:
    try:
        return read()
    except kind as error:
        return error


def refused_or_read(text: bytes) -> None:
    file = outcome(DockerfileError, lambda: parse(text))
    if isinstance(file, DockerfileError):
        assert file.message
        assert "\x1b" not in file.excerpt()
        return
    assert isinstance(file, Dockerfile)
    for stage in file.stages:
        for instruction in stage.instructions:
            assert 0 < instruction.location.line <= instruction.location.end <= file.text.count("\n") + 1
            if isinstance(instruction, OnBuild):
                parse_again(instruction)


def parse_again(trigger: OnBuild) -> None:
    """A trigger that was accepted is one instruction wherever its base is used, except that its escape character is the default then."""
    try:
        parse_trigger(trigger.expression)
    except DockerfileError:
        assert "`" in trigger.expression or "\\" in trigger.expression or "#" in trigger.expression


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(text: bytes) -> None:
    refused_or_read(text)


@settings(max_examples=400, deadline=None)
@given(st.lists(_PIECES, max_size=40))
def test_any_mixture_of_the_languages_pieces_is_refused_or_read(pieces: list[str]) -> None:
    refused_or_read("".join(["FROM scratch\n", *pieces]).encode())


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES, max_size=30), st.dictionaries(st.sampled_from("abx"), st.text(max_size=5)), st.booleans(), st.booleans())
def test_any_word_is_refused_or_expanded(pieces: list[str], env: dict[str, str], keep: bool, plain: bool) -> None:
    how = Words(keep_quotes=keep, keep_unset=keep, plain_quotes=plain)
    found = outcome(SubstitutionError, lambda: how.expand("".join(pieces), env))
    if not isinstance(found, Expansion):
        assert str(found)
        return
    assert found.used <= env.keys()
    assert not found.unset & env.keys()
    assert found.defaulted <= found.unset


_PLAIN = st.text(st.characters(exclude_characters="$\\'\"", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(_PLAIN)
def test_a_word_without_signs_is_itself(text: str) -> None:
    found = Words().expand(text, {})
    assert found.text == text
    assert "".join(found.words) == re.sub("[\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]", "", text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_quoting_is_undone(text: str) -> None:
    escaped = re.sub(r'([\\"$])', r"\\\1", text)
    assert Words().word(f'"{escaped}"', {}) == text
    assert Words().word("$v", {"v": text}) == text
    assert Words().word("${v:-x}", {"v": text or "x"}) == (text or "x")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab c\\'\"$\t"), max_size=8), max_size=5))
def test_words_with_quotes_and_escapes_come_back(values: list[str]) -> None:
    quoted = ['"' + re.sub(r'([\\"$])', r"\\\1", value) + '"' for value in values]
    split = words("  ".join(quoted), "\\")
    assert [Words().word(word, {}) for word in split] == values


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), st.text("xyz=. '\"$#\\é", max_size=8)), min_size=1, max_size=5))
def test_an_environment_comes_back(pairs: list[tuple[str, str]]) -> None:
    line = "ENV " + " ".join(f'{key}="' + re.sub(r'([\\"$])', r"\\\1", value) + '"' for key, value in pairs)
    env = parse(f"FROM scratch\n{line}\n".encode()).stages[0].instructions[0]
    assert isinstance(env, Env)
    assert [(key, Words().word(value, {})) for key, value in env.pairs] == pairs


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=10), max_size=6), st.booleans())
def test_documents_come_back_as_they_are(rows: list[str], trigger: bool) -> None:
    content = "".join(row + "\n" for row in rows if row.rstrip("\r") != "EOF")
    prefix = "ONBUILD " if trigger else ""
    instruction = parse(f"FROM scratch\n{prefix}COPY <<EOF /x\n{content}EOF\nUSER a\n".encode()).stages[0].instructions[0]
    if isinstance(instruction, OnBuild):
        instruction = parse_trigger(instruction.expression)
    assert isinstance(instruction, Copy)
    assert instruction.heredocs[0].content == content


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab -='\"", max_size=6), min_size=1, max_size=5), st.lists(st.sampled_from(["", "# c", "  # c"]), max_size=3))
def test_continuation_lines_make_one_line(parts: list[str], between: list[str]) -> None:
    glue = "\\\n" + "".join(row + "\n" for row in between)
    broken = parse(("FROM scratch\nRUN x" + glue.join(["", *("y" + part for part in parts)])).encode()).stages[0].instructions[0]
    whole = parse(("FROM scratch\nRUN x" + "".join("y" + part for part in parts)).encode()).stages[0].instructions[0]
    assert isinstance(broken, Run) and isinstance(whole, Run)
    assert broken.text == whole.text
    assert broken.command == whole.command


def regular(pattern: str, *, longest: bool) -> str:
    star = "[^\n]*" if longest else "[^\n]*?"
    return "".join(star if char == "*" else "[^\n]" if char == "?" else re.escape(char) for char in pattern)


@settings(max_examples=500, deadline=None)
@given(st.text("ab*?\n", max_size=6), st.text("ab\n", max_size=12), st.booleans())
@example("*a\n*b", "aa\n\nab", True)
def test_patterns_match_what_a_regular_expression_does(pattern: str, value: str, longest: bool) -> None:
    match = re.match(regular(pattern, longest=longest), value)
    assert Pattern(pattern).without_prefix(value, longest=longest) == (value[match.end() :] if match else value)
    mirrored = re.match(regular(pattern[::-1], longest=longest), value[::-1])
    assert Pattern(pattern).without_suffix(value, longest=longest) == (value[::-1][mirrored.end() :][::-1] if mirrored else value)
    first = re.sub(regular(pattern, longest=True), "<>", value, count=1)
    assert Pattern(pattern).replaced(value, "<>", every=False) == first


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab,\"'= é", max_size=6), min_size=1, max_size=5).filter(lambda parts: parts != [""]))
def test_fields_come_back(parts: list[str]) -> None:
    assert fields(",".join('"' + part.replace('"', '""') + '"' for part in parts), "x") == parts


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["type=", "bind", "cache", "secret", ",", "size=", "9", "k", '"', "id=", "env=", "required", "=", "x", "mode="]),
        max_size=12,
    )
)
def test_any_mount_is_refused_or_read(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert str(outcome(ValueError, lambda: parse_mount(text)))
    assert str(outcome(ValueError, lambda: parse_device(text)))


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    total = ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds
    assert nanoseconds(f"{hours}h{minutes}m{seconds}.{milliseconds:03}s") == total * 10**6
    assert nanoseconds(f"-{total}ms") == -total * 10**6


@given(st.text(max_size=12))
def test_any_duration_is_refused_or_read(text: str) -> None:
    found = outcome(ValueError, lambda: nanoseconds(text))
    assert isinstance(found, int) or str(found).startswith("time: ")


@given(st.sampled_from(NAMES), st.integers(0, 20), st.sampled_from("XQ"))
def test_a_slip_is_understood(name: str, place: int, char: str) -> None:
    slip = name[: place % len(name)] + char + name[place % len(name) :]
    assert nearest(slip, [name]) == name
    assert nearest(slip.lower(), [name], fold=True) == name.lower()
    assert nearest(name, NAMES) == ""


@pytest.mark.parametrize(
    "text",
    [
        b"RUN " + b"[" * 500_000,
        b"ENV a=" + b"'\"" * 300_000,
        b"ENV a=" + b" " * 500_000 + b"x",
        b"RUN a" + b" \\\n b" * 100_000,
        b"RUN a \\\n" + b"\n" * 200_000 + b"b",
        b"RUN " + b"<<a " * 20_000 + b"\n" + b"a\n" * 20_000,
        b"RUN <<E " + b"$" * 200_000 + b"\nE\n",
        b"RUN " + b"--mount=a " * 50_000,
        b"ONBUILD " * 100_000,
        b"R" * 1_000_000,
        b"CMD [" + b"9" * 500_000 + b"]",
        b"HEALTHCHECK --interval=" + b"1" * 500_000 + b" CMD x",
        b"\xff" * 500_000,
    ],
    ids=lambda text: text[:8].decode("latin-1").strip(),
)
def test_long_files_end(text: bytes) -> None:
    refused_or_read(b"FROM scratch\n" + text)
