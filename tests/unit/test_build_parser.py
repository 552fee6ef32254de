"""The text of a Dockerfile made into instructions. The tables were read off BuildKit."""

from __future__ import annotations

import pytest

from builder.language.errors import DockerfileError
from builder.language.instructions import (
    Add,
    Arg,
    Cmd,
    Command,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Heredoc,
    Instruction,
    Label,
    Location,
    Maintainer,
    OnBuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from builder.language.parser import description, parse, parse_trigger


def one(text: str) -> Instruction:
    (instruction,) = parse(b"FROM scratch\n" + text.encode()).stages[0].instructions
    return instruction


def fault(text: str) -> DockerfileError:
    with pytest.raises(DockerfileError) as caught:
        parse(text.encode())
    return caught.value


def test_every_instruction() -> None:
    file = parse(
        b"""ARG tag=1 other
FROM --platform=linux/arm64 busybox:$tag AS Base
ARG a b= c="d e"
ENV K=v "two words"=x\\ y
LABEL one 1  2
RUN --network=none --mount=type=cache,target=/c --mount=target=/x --security=insecure --device=a/b=c make   all
CMD ["top", "-b"]
ENTRYPOINT exec top
COPY --from=base --chown=1:2 --chmod=u=rwX --link --parents=false --exclude=*.o --exclude=x a b /c/
ADD --checksum=sha256:00 --keep-git-dir=true --unpack=false --link=FALSE http://x/y /z
EXPOSE 80 81-82/udp
VOLUME ["/a b", "/c"]
VOLUME /d  /e
USER 1:$group
WORKDIR a b
ONBUILD COPY a b
STOPSIGNAL $signal
HEALTHCHECK --interval=1m30s --timeout=.5s --start-period=0s --start-interval=2s --retries=3 CMD curl -f x
HEALTHCHECK NONE
SHELL ["/bin/bash", "-c"]
MAINTAINER me <me@example.org>
"""
    )
    assert [argument.arguments for argument in file.arguments] == [(("tag", "1"), ("other", None))]
    (stage,) = file.stages
    assert (stage.index, stage.name, stage.base.image, stage.base.platform) == (0, "base", "busybox:$tag", "linux/arm64")
    where = iter(range(3, 30))

    def common(text: str) -> dict[str, object]:
        line = next(where)
        return {"location": Location(line, line), "text": text, "keyword": text.split()[0]}

    lines = file.text.split("\n")[2:]
    made = iter(lines)
    assert stage.instructions == (
        Arg(arguments=(("a", None), ("b", ""), ("c", '"d e"')), **common(next(made))),
        Env(pairs=(("K", "v"), ('"two words"', "x\\ y")), **common(next(made))),
        Label(pairs=(("one", "1  2"),), legacy=True, **common(next(made))),
        Run(
            command=Command(("make   all",), shell=True),
            mounts=("type=cache,target=/c", "target=/x"),
            network="none",
            security="insecure",
            devices=("a/b=c",),
            **common(next(made)),
        ),
        Cmd(command=Command(("top", "-b"), shell=False), **common(next(made))),
        Entrypoint(command=Command(("exec top",), shell=True), **common(next(made))),
        Copy(
            sources=("a", "b"),
            destination="/c/",
            from_="base",
            chown="1:2",
            chmod="u=rwX",
            link=True,
            exclude=("*.o", "x"),
            **common(next(made)),
        ),
        Add(
            sources=("http://x/y",),
            destination="/z",
            checksum="sha256:00",
            keep_git_dir=True,
            unpack=False,
            **common(next(made)),
        ),
        Expose(ports=("80", "81-82/udp"), **common(next(made))),
        Volume(paths=("/a b", "/c"), **common(next(made))),
        Volume(paths=("/d", "/e"), **common(next(made))),
        User(user="1:$group", **common(next(made))),
        Workdir(path="a b", **common(next(made))),
        OnBuild(expression="COPY a b", **common(next(made))),
        StopSignal(signal="$signal", **common(next(made))),
        Healthcheck(
            command=Command(("curl -f x",), shell=True),
            interval="1m30s",
            timeout=".5s",
            start_period="0s",
            start_interval="2s",
            retries="3",
            **common(next(made)),
        ),
        Healthcheck(command=None, **common(next(made))),
        Shell(words=("/bin/bash", "-c"), **common(next(made))),
        Maintainer(name="me <me@example.org>", **common(next(made))),
    )


@pytest.mark.parametrize(
    ("written", "shown", "end"),
    [
        ("COPY f \\\n\n\n   /a", "COPY f    /a", 5),
        ("COPY f \\   \n   /a", "COPY f    /a", 3),
        ("   copy   f    /a   ", "copy   f    /a", 2),
        ("COPY f \\\n# c\n  # d \\\n /a", "COPY f  /a", 5),
        ("ADD f\\\n /a", "ADD f /a", 3),
        ("COPY f /a \\", "COPY f /a", 2),
        ("COPY f\t/a\r", "COPY f\t/a", 2),
        ("CO\\\nPY f /a", "COPY f /a", 3),
        ("COPY f \\\\", "COPY f \\\\", 2),
        ("COPY f /a # no comment", "COPY f /a # no comment", 2),
    ],
)
def test_lines_are_joined_as_progress_shows_them(written: str, shown: str, end: int) -> None:
    instruction = one(written)
    assert instruction.text == shown
    assert instruction.location == Location(2, end)


def test_empty_lines_within_an_instruction_are_noted() -> None:
    assert parse(b"FROM scratch\nCOPY f \\\n\n# c\n  \n /a\n\n").empty_continuations == (3, 5)


def test_comments_belong_to_what_is_directly_below() -> None:
    file = parse(b"# syntax=x\n# far\n\n# a what it is\nARG a\n# no\n#\n# base is this\nFROM scratch AS base\n# x\n  # y \nARG z\n")
    assert file.arguments[0].comments == ("a what it is",)
    assert description(file.arguments[0].comments, "a") == "what it is"
    assert file.stages[0].comment == "is this"
    assert file.stages[0].instructions[0].comments == ("x", "y")


@pytest.mark.parametrize(
    ("head", "escape", "directives"),
    [
        ("# escape=`\n", "`", {"escape": ("`", 1)}),
        ("  #ESCAPE  =  ` \n", "`", {"escape": ("`", 1)}),
        ("\ufeff# escape=`\n", "`", {"escape": ("`", 1)}),
        ("# syntax=a/b:c d\n# Check = skip=all;error=true\n", "\\", {"syntax": ("a/b:c d", 1), "check": ("skip=all;error=true", 2)}),
        ("\n# escape=`\n", "\\", {}),
        ("# foo=bar\n# escape=`\n", "\\", {}),
        ("# a comment\n# escape=`\n", "\\", {}),
        ("#!/usr/bin/env x\n# syntax=y\n# escape=`\n# check=skip=all\n", "\\", {"syntax": ("y", 2), "check": ("skip=all", 4)}),
    ],
)  # fmt: skip
def test_directives(head: str, escape: str, directives: dict[str, tuple[str, int]]) -> None:
    file = parse(f"{head}FROM scratch\n".encode())
    assert (file.escape, file.directives) == (escape, directives)


def test_the_escape_character_continues_lines() -> None:
    file = parse(b'# escape=`\nFROM scratch\nCOPY f `\n C:\\\nENV a=`"b\n')
    copy, env = file.stages[0].instructions
    assert isinstance(copy, Copy) and copy.destination == "C:\\"
    assert isinstance(env, Env) and env.pairs == (("a", '`"b'),)


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("RUN <<EOF\necho $x\nEOF\n", (Heredoc("EOF", "echo $x\n"),)),
        ("RUN <<EOF\nEOF", (Heredoc("EOF", ""),)),
        ("RUN cat <<'A' 3<<-\"B C\" >/x\n1\nA\n\t\t2\n\tB C\n", (Heredoc("A", "1\n", False), Heredoc("B C", "2\n", False, 3, True))),
        ("RUN <<E\\OF\n1\nEOF\n", (Heredoc("EOF", "1\n"),)),
        ("RUN <<EOF\r\n1\r\nEOF\r\n", (Heredoc("EOF", "1\r\n"),)),
        ("RUN <<EOF\n# no comment\n\n  \\\nEOF \nEOF", (Heredoc("EOF", "# no comment\n\n  \\\nEOF \n"),)),
        ("RUN <<$x\n1\n$x\n", (Heredoc("$x", "1\n"),)),
        ("COPY <<a <<b f /d/\n1\na\n2\nb\n", (Heredoc("a", "1\n"), Heredoc("b", "2\n"))),
        ("ADD <<E'O'F \\\n /d\n1\nEOF\n", (Heredoc("EOF", "1\n", False),)),
        ('RUN ["<<EOF"]', ()),
        ("RUN echo '<<EOF'", ()),
        ("RUN cat<<EOF", ()),
        ("RUN << EOF", ()),
        ("RUN a <<<b", ()),
        ('RUN a " <<EOF', ()),
    ],
)
def test_documents(text: str, documents: tuple[Heredoc, ...]) -> None:
    instruction = one(text)
    assert isinstance(instruction, Run | Copy)
    assert instruction.heredocs == documents
    assert "\n" not in instruction.text


def test_other_instructions_have_no_documents() -> None:
    cmd, env = parse(b"FROM scratch\nCMD <<EOF\nENV EOF=1").stages[0].instructions
    assert isinstance(cmd, Cmd) and cmd.command.words == ("<<EOF",)
    assert isinstance(env, Env)


@pytest.mark.parametrize(
    ("rest", "command"),
    [
        ('["a", "b"]', Command(("a", "b"), shell=False)),
        ('  [ "a\\u00e9\\n" ]  ', Command(("aé\n",), shell=False)),
        ('["\\ud800"]', Command(("\ufffd",), shell=False)),
        ("[]", Command((), shell=False)),
        ("['a']", Command(("['a']",), shell=True)),
        ('["a",]', Command(('["a",]',), shell=True)),
        ('["a"] b', Command(('["a"] b',), shell=True)),
        ("[NaN]", Command(("[NaN]",), shell=True)),
        ("", Command(("",), shell=True)),
        ("a  'b' \"c\" $d", Command(("a  'b' \"c\" $d",), shell=True)),
    ],
)
def test_lists_fall_back_to_the_shell(rest: str, command: Command) -> None:
    instruction = one("CMD " + rest)
    assert isinstance(instruction, Cmd)
    assert instruction.command == command


def test_flags_end_where_words_begin() -> None:
    copy = one("COPY --chown=\"1\":'2' --chmod=a\\ b -- --link /x")
    assert isinstance(copy, Copy)
    assert (copy.chown, copy.chmod, copy.sources, copy.link) == ("1:2", "a b", ("--link",), False)


def test_triggers_carry_their_documents() -> None:
    onbuild = one("ONBUILD  RUN cat <<A <<-B \\\n # c\n x\n1\nA\n\t2\nB\n")
    assert isinstance(onbuild, OnBuild)
    assert onbuild.expression == "RUN cat <<A <<-B  x\n1\nA\n2\nB"
    run = parse_trigger(onbuild.expression)
    assert isinstance(run, Run)
    assert [(document.name, document.content) for document in run.heredocs] == [("A", "1\n"), ("B", "2\n")]
    with pytest.raises(DockerfileError, match="onbuild trigger should be a single expression"):
        parse_trigger("RUN a\nRUN b")
    with pytest.raises(DockerfileError, match="FROM isn't allowed as an ONBUILD trigger"):
        parse_trigger("FROM a")


def test_stages_and_their_names() -> None:
    file = parse(b"FROM a as B.c-d_1\nRUN x\nFROM $b\nfrom c\n")
    assert [(stage.index, stage.name, stage.base.image, len(stage.instructions)) for stage in file.stages] == [
        (0, "b.c-d_1", "a", 1),
        (1, "", "$b", 0),
        (2, "", "c", 0),
    ]


def test_bytes_that_are_no_text() -> None:
    env = parse(b"FROM scratch\n# \xff\nENV a=\xe9\n").stages[0].instructions[0]
    assert isinstance(env, Env) and env.pairs == (("a", "\ufffd"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RUNN foo", "unknown instruction: RUNN (did you mean RUN?)"),
        ("lable a", "unknown instruction: lable (did you mean label?)"),
        ("\\", "unknown instruction: "),
        ("COPY --frm=1 a b", "unknown flag: frm (did you mean from?)"),
        ("CMD --foo", "unknown flag: foo"),
        ("COPY --from a b c", "missing a value on flag: from"),
        ("COPY --link= a b", "missing a value on flag: link"),
        ("COPY --link=foo a b", "expecting boolean value for flag link, not: foo"),
        ("COPY --from=a --from=b a b", "duplicate flag specified: from"),
        ("COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("ADD", "ADD requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("COPY a <<EOF\nEOF", "COPY cannot accept a heredoc as a destination"),
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b c", "FROM requires either one or three arguments"),
        ("FROM a AS 1b", 'invalid name for build stage: "1b", name can\'t start with a number or contain symbols'),
        ("ENV", "ENV requires at least one argument"),
        ("ENV =b", "ENV names can not be blank"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD from x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD MAINTAINER x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK foo", 'Unknown type "FOO" in HEALTHCHECK (try CMD)'),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK CMD []", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK --interval=x CMD a", 'time: invalid duration "x"'),
        ("HEALTHCHECK --interval=3 CMD a", 'time: missing unit in duration "3"'),
        ("HEALTHCHECK --timeout=3d CMD a", 'time: unknown unit "d" in duration "3d"'),
        ("HEALTHCHECK --interval=1us CMD a", 'Interval "interval" cannot be less than 1ms'),
        ("HEALTHCHECK --retries=x CMD a", 'strconv.ParseInt: parsing "x": invalid syntax'),
        ("HEALTHCHECK --retries=9999999999 CMD a", 'strconv.ParseInt: parsing "9999999999": value out of range'),
        ("HEALTHCHECK --retries=-1 CMD a", "--retries cannot be negative (-1)"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ('VOLUME [""]', "VOLUME specified can not be an empty string"),
        ("USER", "USER requires exactly one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("SHELL foo", "SHELL requires the arguments to be in JSON form"),
        ("RUN --network=foo x", 'invalid network mode "foo"'),
        ("RUN --security=foo x", 'security "foo" is not valid'),
        ("RUN --mount=from=$x,target=/x x", "'from' doesn't support variable expansion, define alias stage instead"),
        ('RUN --mount=\\"x x', 'failed to parse csv mounts: parse error on line 1, column 3: extraneous or missing " in quoted-field'),
        ("ONBUILD COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be determined"),
    ],
)
def test_mistakes_in_an_instruction(text: str, message: str) -> None:
    error = fault("FROM scratch\n" + text)
    assert str(error) == f"dockerfile parse error on line 2: {message}"
    assert (error.line, error.status) == (2, 400)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "the Dockerfile cannot be empty", 0),
        ("\n# foo\n", "file with no instructions", 2),
        ("ARG a\nRUN foo", "no build stage in current context", 2),
        ("FROM scratch\nRUN <<EOF\nfoo\n", "unterminated heredoc", 2),
        ("FROM scratch\nENV a=b c", 'Syntax error - can\'t find = in "c". Must be of the form: name=value', 2),
        ("FROM scratch\nLABEL a", "LABEL must have two arguments", 2),
        ("FROM scratch\nCMD [1]", "when using JSON array syntax, arrays must be comprised of strings only", 2),
        ("# escape=x\nFROM scratch", "invalid escape token 'x' does not match ` or \\", 1),
        ("# escape=`\n# escape=`\nFROM scratch", "only one escape parser directive can be used", 2),
        ("FROM scratch\nNOPE\nENV a", "ENV must have two arguments", 3),
    ],
)
def test_mistakes_in_the_text(text: str, message: str, line: int) -> None:
    error = fault(text)
    assert (str(error), error.line) == (message, line)


def test_an_excerpt_points_at_the_word() -> None:
    text = "FROM scratch\n\tCOPY --from=a \\\n\t --frm=b c d\n\nRUN x\nRUN y\n"
    assert fault(text).excerpt().split("\n") == [
        "Dockerfile:2",
        "--------------------",
        "   1 |     FROM scratch",
        "   2 | >>> \tCOPY --from=a \\",
        "   3 | >>> \t --frm=b c d",
        "     |     \t ^^^^^",
        "   4 |     ",
        "--------------------",
    ]


@pytest.mark.parametrize(
    ("line", "shown"),
    [(1, [1, 2, 3]), (2, [1, 2, 3, 4]), (3, [1, 2, 3, 4, 5]), (5, [3, 4, 5, 6, 7]), (7, [5, 6, 7]), (8, [])],
)
def test_an_excerpt_has_buildkits_lines(line: int, shown: list[int]) -> None:
    error = DockerfileError("x", line=line, text="1\n2\n3\n4\n5\n6\n7")
    assert [int(row[:4]) for row in error.excerpt().split("\n") if " | " in row] == shown


def test_an_excerpt_is_bounded_and_harmless() -> None:
    error = DockerfileError("x", line=1, end=1000, text="\x1b[31m" + "a" * 10000 + "\nb" * 2000, word="a" * 9000)
    shown = error.excerpt()
    assert len(shown) < 3000
    assert "\x1b" not in shown


def test_files_are_not_mixed_up() -> None:
    file = parse(b"FROM scratch", "sub/other.Dockerfile")
    assert isinstance(file, Dockerfile)
    assert file.path == "sub/other.Dockerfile"
    with pytest.raises(DockerfileError) as caught:
        parse(b"FROM scratch\nX", "sub/other.Dockerfile")
    assert caught.value.excerpt().startswith("sub/other.Dockerfile:2\n")
