"""The build checks fire where BuildKit's do, with its words."""

from __future__ import annotations

from typing import Any

import pytest

from builder.checks import checkreport, checks
from builder.checks import checkrules as rules
from builder.language.errors import DockerfileError
from builder.language.ignore import Patterns
from builder.language.parser import parse
from engine.errors import InvalidParameter
from engine.spec.platform import Platform

HOST = Platform(architecture="amd64")


class _Anything(dict[int, list[str]]):
    """Every image has a PATH and nothing else."""

    def get(self, key: int, default: Any = None) -> list[str]:
        return super().get(key, ["PATH=/bin"])


def run(text: str, **more: Any) -> list[rules.Violation]:
    more = {"every_stage": True, "base_env": _Anything(), **more}
    return checks.run(parse(text.encode()), platform=HOST, build_platform=HOST, **more)


def found(text: str, **more: Any) -> list[tuple[int, str, str]]:
    return [(each.location.line, each.rule.name, each.message) for each in run(text, **more)]


def only(rule: str, text: str, **more: Any) -> list[tuple[int, str]]:
    return [(line, message) for line, name, message in found(text, **more) if name == rule]


def casing(rows: list[tuple[int, str, str]]) -> list[tuple[int, str]]:
    return [(line, f"Command '{word}' should match the case of the command majority ({which})") for line, word, which in rows]


@pytest.mark.parametrize(("text", "expected"), [
    ("From scratch as base\nFROM scratch AS base2\n", [(1, "From", "uppercase")]),
    ("FROM scratch\ncopy a /\nCOPY a /\n", [(2, "copy", "uppercase")]),
    ("frOM scratch as b\nfrom scratch as c\n", [(1, "frOM", "lowercase")]),
    ("from scratch\nCOPY a /\ncopy a /\n", [(2, "COPY", "lowercase")]), ("from scratch\nCOPY a /\nCOPY a /\n", [(1, "from", "uppercase")]),
    ("FROM scratch\ncopy a /\n", [(2, "copy", "uppercase")]), ("from scratch\ncopy a /\n", []),
    ("FROM scratch\nRUN <<'EOT'\nenv\nEOT\n", []),
    ("arg A=1\nFROM scratch\n", []),
])  # fmt: skip
def test_consistent_instruction_casing(text: str, expected: list[tuple[int, str, str]]) -> None:
    assert only("ConsistentInstructionCasing", text) == casing(expected)


def test_stage_names() -> None:
    text = "FROM scratch AS BadStageName\nFROM scratch as b\nFROM scratch AS scratch\nFROM scratch AS Context\n"
    text += "FROM scratch AS b\nFROM scratch\n"
    assert found(text) == [
        (1, "StageNameCasing", "Stage name 'BadStageName' should be lowercase"),
        (2, "FromAsCasing", "'as' and 'FROM' keywords' casing do not match"),
        (3, "ReservedStageName", 'Stage name should not use the same name as reserved stage "scratch"'),
        (4, "StageNameCasing", "Stage name 'Context' should be lowercase"),
        (4, "ReservedStageName", 'Stage name should not use the same name as reserved stage "context"'),
        (5, "DuplicateStageName", 'Duplicate stage name "b", stage names should be unique'),
    ]
    assert found("from scratch AS a\n") == [(1, "FromAsCasing", "'AS' and 'from' keywords' casing do not match")]
    assert only("FromAsCasing", "From scratch as a\nFROM --platform=$BUILDPLATFORM scratch AS b\n") == []


def test_no_empty_continuation() -> None:
    text = "FROM scratch\n# a comment\nCOPY a \\\n\n.\nCOPY a \\\n.\nCOPY <<A \\\n\n /a\none\n\ntwo\nA\n"
    assert only("NoEmptyContinuation", text) == [(5, "Empty continuation line"), (10, "Empty continuation line")]


def test_json_args_recommended() -> None:
    def message(keyword: str) -> str:
        return f"JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"

    text = "FROM scratch AS a\nCMD a\nENTRYPOINT b\nHEALTHCHECK CMD c\n"
    text += 'FROM scratch AS b\nSHELL ["/s"]\nCMD a\nFROM b\nENTRYPOINT ["x"]\nCMD y\n'
    assert only("JSONArgsRecommended", text) == [(2, message("CMD")), (3, message("ENTRYPOINT"))]
    assert only("JSONArgsRecommended", "FROM windows\nCMD a\n", base_shells={0}) == []


def test_maintainer_deprecated() -> None:
    text = "FROM scratch\nMAINTAINER me@example.org\n"
    assert found(text) == [(2, "MaintainerDeprecated", "Maintainer instruction is deprecated in favor of using label")]


@pytest.mark.parametrize(("text", "expected"), [
    ("ARG base=scratch\nFROM $base\n", []), ("ARG BUILDPLATFORM=linux/amd64\nFROM --platform=$BUILDPLATFORM scratch\n", []),
    ("FROM --platform=$BUILDPLATFORM scratch\n", []), ("ARG DEBUG\nFROM scratch${DEBUG}\n", []),
    ("ARG DEBUG\nFROM scra${DEBUG:-tch}\n", []),
    ('ARG DEBUG=""\nFROM scratch${DEBUG-@bogus}\n', []),
    ("FROM --platform=$BULIDPLATFORM scratch\n", [(1, "FROM argument 'BULIDPLATFORM' is not declared (did you mean BUILDPLATFORM?)")]),
    ("ARG MY_OS=linux\nARG MY_ARCH=amd64\nFROM --platform=linux/${MYARCH} busybox\n",
     [(3, "FROM argument 'MYARCH' is not declared (did you mean MY_ARCH?)")]),
    ("ARG tag=latest\nFROM busybox:${tag}${version} AS b\n", [(2, "FROM argument 'version' is not declared")]),
])  # fmt: skip
def test_undefined_arg_in_from(text: str, expected: list[tuple[int, str]]) -> None:
    assert only("UndefinedArgInFrom", text) == expected


def test_workdir_relative_path() -> None:
    assert found("FROM scratch\nWORKDIR app/\nWORKDIR b\n") == [
        (2, "WorkdirRelativePath", 'Relative workdir "app/" can have unexpected results if the base image changes')
    ]
    assert found("FROM scratch AS a\nWORKDIR /app\nFROM a AS b\nWORKDIR subdir/\n") == []
    assert found("FROM scratch\nARG W=/w\nWORKDIR $W\n") == []


@pytest.mark.parametrize(("text", "expected"), [
    ("FROM scratch\nARG foo\nCOPY Dockerfile${foo} .\n", []), ("FROM alpine AS base\nARG foo=Dockerfile\nFROM base\nCOPY $foo .\n", []),
    ("FROM alpine\nRUN echo $PATH $whatever\n", []), ("FROM alpine\nCOPY $foo .\nARG foo=bar\nRUN echo $foo\n", [(2, "foo")]),
    ("FROM alpine\nARG DIR_BINARIES=b/\nARG DIR_ASSETS=a/\nARG DIR_CONFIG=c/\nCOPY $DIR_ASSET .\n",
     [(5, "DIR_ASSET' (did you mean $DIR_ASSETS?)")]),
    ("FROM alpine\nENV PATH=$PAHT:/tmp/bin\n", [(2, "PAHT' (did you mean $PATH?)")]), ("FROM alpine\nENV A=1 B=$A\n", [(2, "A")]),
    ("FROM scratch AS first\nCOPY $foo .\nFROM scratch AS second\nCOPY $bar .\n", [(2, "foo"), (4, "bar")]),
    ("FROM scratch\nENV A=${B:-x} C=${D+y} E=${F?}\n", []), ("FROM scratch\nENV A=${B#x}\n", [(2, "B")]),
    ("FROM scratch\nARG A=$NO B=$A\nARG C=${A}${B}\n", [(2, "NO")]), ("ARG G=1\nFROM scratch\nCOPY $G /\n", [(3, "G")]),
    ("ARG G=1\nFROM scratch\nARG G\nCOPY $G /\n", []), ("FROM scratch\nCOPY $TARGETARCH /\n", [(2, "TARGETARCH")]),
    ("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /\n", []), ("FROM scratch\nCOPY <<A <<'B' /x/\n$doc\nA\n$doc\nB\n", [(2, "doc")]),
    ("FROM scratch\nRUN --mount=type=cache,target=/$v x\n", [(2, "v")]),
    ("FROM scratch\nUSER $u\nVOLUME $w\nLABEL a=$x\nSTOPSIGNAL $y\nWORKDIR /$z\n",
     [(2, "u"), (3, "w"), (4, "x"), (5, "y"), (6, "z")]),
    ("FROM scratch\nADD --chown=$u --chmod=$m --checksum=$c --exclude=$e a $d\n", [(2, "d"), (2, "u"), (2, "m"), (2, "e"), (2, "c")]),
    ("FROM scratch\nEXPOSE $p\nCMD [\"$x\"]\nHEALTHCHECK CMD $y\nONBUILD COPY $z /\nRUN <<A\n$a\nA\n", []),
    ("FROM scratch\nCOPY \\$foo '$bar' /\n", []),
])  # fmt: skip
def test_undefined_var(text: str, expected: list[tuple[int, str]]) -> None:
    messages = [(line, "Usage of undefined variable '$" + (rest if "'" in rest else rest + "'")) for line, rest in expected]
    assert only("UndefinedVar", text) == messages


def test_variables_of_a_base_image() -> None:
    text = "FROM golang AS a\nENV X=$GOPATH/x Y=$GOPAHT\nFROM a\nENV Z=$GOPATH$X\n"
    assert only("UndefinedVar", text, base_env={0: ["GOPATH=/go"]}) == [
        (2, "Usage of undefined variable '$GOPAHT' (did you mean $GOPATH?)")
    ]
    assert only("UndefinedVar", text, base_env={}) == []  # nobody knows


def test_multiple_instructions_disallowed() -> None:
    def message(keyword: str) -> str:
        return f"Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"

    text = 'FROM scratch AS a\nENTRYPOINT ["a"]\nCMD ["b"]\nHEALTHCHECK NONE\nUSER x\n'
    text += 'ENTRYPOINT ["c"]\nCMD ["d"]\nHEALTHCHECK NONE\nCMD ["e"]\nFROM a\nENTRYPOINT ["f"]\n'
    assert only("MultipleInstructionsDisallowed", text) == [
        (2, message("ENTRYPOINT")), (3, message("CMD")), (4, message("HEALTHCHECK")), (7, message("CMD")),
    ]  # fmt: skip


def test_legacy_key_value_format() -> None:
    text = "FROM scratch\nENV testkey value\nLABEL key value\nENV a=b\nLABEL a=b\n"
    assert found(text) == [
        (2, "LegacyKeyValueFormat", '"ENV key=value" should be used instead of legacy "ENV key value" format'),
        (3, "LegacyKeyValueFormat", '"LABEL key=value" should be used instead of legacy "LABEL key value" format'),
    ]


@pytest.mark.parametrize("written", ["$TARGETPLATFORM", "${TARGETPLATFORM}"])
def test_redundant_target_platform(written: str) -> None:
    message = f"Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
    assert found(f"FROM --platform={written} scratch\n") == [(1, "RedundantTargetPlatform", message)]
    assert found(f"FROM --platform={written}/v2 scratch\n") == []


def test_secrets_used_in_arg_or_env() -> None:
    text = (
        "FROM scratch\nARG SECRET_PASSPHRASE\nENV SUPER_Secret=foo\nENV password=bar secret=baz\n"
        "ARG super_duper_secret_token=foo auth=bar\n"
        "ENV apikey=bar sunflower=foo\nENV git_key=\nENV PUBLIC_KEY=\nARG public_token\nENV TOKEN_FILE=x\nENV monkey=1\n"
    )
    expected = [
        (2, "ARG", "SECRET_PASSPHRASE"), (3, "ENV", "SUPER_Secret"), (4, "ENV", "password"), (4, "ENV", "secret"),
        (5, "ARG", "super_duper_secret_token"), (5, "ARG", "auth"), (6, "ENV", "apikey"), (7, "ENV", "git_key"),
    ]  # fmt: skip
    assert found(text) == [
        (line, "SecretsUsedInArgOrEnv", f'Do not use ARG or ENV instructions for sensitive data ({keyword} "{name}")')
        for line, keyword, name in expected
    ]


@pytest.mark.parametrize(("text", "expected"), [
    ("ARG VERSION\nFROM busybox:$VERSION\n", "busybox:$VERSION"), ("ARG IMAGE\nFROM $IMAGE\n", "$IMAGE"),
    ('ARG SFX="box:"\nFROM busy${SFX}\n', "busy${SFX}"), ('ARG VERSION="latest"\nFROM busybox:${VERSION}\n', ""),
    ("ARG V\nFROM busybox:stable${V}\n", ""), ("FROM scratch AS Base\nFROM Base\n", ""), ("ARG A=debian\nARG B=$A:12\nFROM $B\n", ""),
])  # fmt: skip
def test_invalid_default_arg_in_from(text: str, expected: str) -> None:
    messages = [(2, f"Default value for ARG {expected} results in empty or invalid base image name")] if expected else []
    given = {"VERSION": "latest", "IMAGE": "busybox", "SFX": "box:latest", "V": "-musl"}
    assert only("InvalidDefaultArgInFrom", text, build_args=given) == messages


def test_from_platform_flag_const_disallowed() -> None:
    message = 'FROM --platform flag should not use constant value "linux/amd64"'
    assert found("FROM --platform=linux/amd64 scratch\n") == [(1, "FromPlatformFlagConstDisallowed", message)]
    assert found("FROM --platform=linux/amd64 scratch AS my_amd64_stage\nFROM --platform=linux/amd64 scratch AS linux\n") == []
    assert found("ARG P=linux/amd64\nFROM --platform=$P scratch\nFROM --platform=what?ever scratch\n") == []


def test_copy_ignored_file() -> None:
    text = "FROM scratch AS base\nCOPY Dockerfile .\nADD ./a/../Dockerfile /x\nADD https://e.org/Dockerfile git@e.org:Dockerfile.git /\n"
    text += "COPY . /y\nCOPY --from=base /Dockerfile /z\nCOPY sub/file /sub ok /\nCOPY <<Dockerfile /\nDockerfile\n"
    ignore = Patterns(["Dockerfile", "sub"])
    message = 'Attempting to {} file "{}" that is excluded by .dockerignore'
    assert found(text, ignore=ignore) == [
        (2, "CopyIgnoredFile", message.format("Copy", "Dockerfile")), (3, "CopyIgnoredFile", message.format("Add", "Dockerfile")),
        (7, "CopyIgnoredFile", message.format("Copy", "sub/file")), (7, "CopyIgnoredFile", message.format("Copy", "/sub")),
    ]  # fmt: skip
    assert found(text, ignore=Patterns(["Dockerfile", "!sub/x"])) == []  # an exception may be for what is inside
    assert found("FROM scratch\nCOPY . /\nCOPY a /\n", ignore=Patterns(["*"])) == [
        (2, "CopyIgnoredFile", message.format("Copy", ".")), (3, "CopyIgnoredFile", message.format("Copy", "a")),
    ]  # fmt: skip


def test_invalid_definition_description() -> None:
    text = (
        "# bar this is the bar\nARG foo=bar\n# BasE this is the BasE image\nFROM scratch AS base\n# definitely a bad comment\n"
        "ARG version=latest\n# definitely a bad comment\nARG foo=baz bar=qux baz=quux\n"
    )
    asked = "# check=experimental=InvalidDefinitionDescription\n"
    message = "Comment for {} should follow the format: `# {} <description>`"
    assert found(asked + text) == [
        (3, "InvalidDefinitionDescription", message.format("ARG", "foo")),
        (5, "InvalidDefinitionDescription", message.format("FROM", "base")),
        (7, "InvalidDefinitionDescription", message.format("ARG", "version")),
        (9, "InvalidDefinitionDescription", message.format("ARG", "<arg_key>")),
    ]  # fmt: skip
    assert found(text) == []
    good = "# foo this is the foo\nARG foo=bar\n\n# base this is the base image\nFROM scratch AS base\n"
    good += "# baz this is the baz\nARG foo=baz bar=qux baz=quux\n"
    assert found(asked + good + "# just words\n\nARG bit=bat\n# words\n#\nARG bit=bat\n# words\nCOPY a /\n") == []


def test_expose() -> None:
    assert found("FROM scratch\nARG P=5353\nEXPOSE 80/TCP 53/udp 127.0.0.1:80:80 81:81/Udp $P/tcp\n") == [
        (3, "ExposeProtoCasing", "Defined protocol '80/TCP' in EXPOSE instruction should be lowercase"),
        (3, "ExposeInvalidFormat", "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'"),
        (3, "ExposeProtoCasing", "Defined protocol '81:81/Udp' in EXPOSE instruction should be lowercase"),
        (3, "ExposeInvalidFormat", "EXPOSE instruction should not define an IP address or host-port mapping, found '81:81/Udp'"),
    ]


def test_stages_that_a_build_does_not_need() -> None:
    text = 'FROM scratch AS a\nFROM a AS b\nENV k v\nWORKDIR x\nFROM a AS c\nCMD ["a"]\n'
    assert found(text, every_stage=False) == []
    assert [line for line, _, _ in found(text, every_stage=False, target="b")] == [3, 4]
    text += "FROM scratch\nCOPY --from=1 / /\nRUN --mount=from=c true\n"
    assert [line for line, _, _ in found(text, every_stage=False)] == [3, 4]


TWO = "FROM scratch as base\ncopy Dockerfile .\n"


@pytest.mark.parametrize(("check", "given", "expected"), [
    ("", None, ["FromAsCasing", "ConsistentInstructionCasing"]), ("skip=all", None, []), ("skip=all;error=true", None, []),
    ("skip=ConsistentInstructionCasing, FromAsCasing", None, []), ("skip=ConsistentInstructionCasing", None, ["FromAsCasing"]),
    ("skip=all", "skip=ConsistentInstructionCasing;error=true", ["FromAsCasing"]), ("error=true", "skip=all", []),
    ("skip=all", "", ["FromAsCasing", "ConsistentInstructionCasing"]),
    ("experimental=all", None, ["FromAsCasing", "ConsistentInstructionCasing"]),
])  # fmt: skip
def test_which_checks_are_done(check: str, given: str | None, expected: list[str]) -> None:
    text = (f"# check={check}\n" if check else "") + TWO
    build_args = {} if given is None else {rules.SETTING: given}
    assert [name for _, name, _ in found(text, build_args=build_args)] == expected


@pytest.mark.parametrize(("check", "message"), [
    ("skip", 'invalid check option "skip"'), ("what=all", 'invalid check option "what"'), ("skip=A;", 'invalid check option ""'),
    ("error=maybe", 'failed to parse check option "error=maybe": strconv.ParseBool: parsing "maybe": invalid syntax'),
])  # fmt: skip
def test_a_wrong_check_directive(check: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        run(f"# check={check}\nFROM scratch\n")
    assert raised.value.message == message


def test_every_rule_has_its_page() -> None:
    everything = [each for each in vars(rules).values() if isinstance(each, rules.Rule)]
    assert len(everything) == 21 and [each.name for each in everything if each.experimental] == ["InvalidDefinitionDescription"]
    pages = {each.name: each.url.removeprefix("https://docs.docker.com/go/dockerfile/rule/") for each in everything}
    assert pages["JSONArgsRecommended"] == "json-args-recommended/"
    assert pages["FromPlatformFlagConstDisallowed"] == "from-platform-flag-const-disallowed/"
    assert pages["SecretsUsedInArgOrEnv"] == "secrets-used-in-arg-or-env/" and pages["UndefinedVar"] == "undefined-var/"


def test_as_a_warning_of_a_build() -> None:
    dockerfile = parse(b"FROM scratch\nMAINTAINER \\\n me\n")
    warning = rules.finding(checks.run(dockerfile, platform=HOST, build_platform=HOST)[0], dockerfile, "sha256:x")
    assert warning.short == "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)"
    assert warning.lines == ((2, 2), (3, 3)) and warning.filename == "Dockerfile" and warning.vertex == "sha256:x" and warning.level == 1
    assert warning.detail == ("The MAINTAINER instruction is deprecated, use a label instead to define an image author",)


def report(text: str) -> checkreport.Report:
    dockerfile = parse(text.encode())
    return checkreport.report(dockerfile, run(text), rules.wanted(dockerfile, {}))


def test_report_of_nothing() -> None:
    outcome = report("FROM scratch\n")
    assert (outcome.text, outcome.code, outcome.error) == ("Check complete, no warnings found.\n", 0, "")
    assert outcome.answer["warnings"] == [] and outcome.answer["sources"][0]["data"] == "RlJPTSBzY3JhdGNoCg=="


def test_report() -> None:
    outcome = report("FROM scratch as base\nCOPY Dockerfile .\n")
    assert outcome.code == 1 and outcome.error == ""
    assert outcome.text == (
        "Check complete, 1 warning has been found!\n"
        "\n"
        "WARNING: FromAsCasing - https://docs.docker.com/go/dockerfile/rule/from-as-casing/\n"
        "'as' and 'FROM' keywords' casing do not match\n"
        "Dockerfile:1\n"
        "--------------------\n"
        "   1 | >>> FROM scratch as base\n"
        "   2 |     COPY Dockerfile .\n"
        "   3 |     \n"
        "--------------------\n"
    )
    assert outcome.answer["warnings"] == [{
        "ruleName": "FromAsCasing",
        "description": "The 'as' keyword should match the case of the 'from' keyword",
        "url": "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
        "detail": "'as' and 'FROM' keywords' casing do not match",
        "location": {"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]},
    }]  # fmt: skip


def test_report_of_an_error() -> None:
    outcome = report("# check=error=true\n" + TWO)
    assert outcome.text.startswith("Check complete, 2 warnings have been found!\n") and outcome.code == 1
    message = "lint violation found for rules: ConsistentInstructionCasing, FromAsCasing"
    assert outcome.error.startswith(message + "\nDockerfile:2\n-----") and ">>> FROM scratch as base\n" in outcome.error
    assert outcome.answer["buildError"]["message"] == message


def test_report_of_a_file_that_cannot_be_read() -> None:
    with pytest.raises(DockerfileError) as raised:
        parse(b"FROM scratch\nBADCMD\n")
    outcome = checkreport.unreadable(raised.value)
    assert (
        outcome.code == 1
        and outcome.text == ""
        and outcome.error.startswith("dockerfile parse error on line 2: unknown instruction: BADCMD")
    )
    assert outcome.answer["buildError"]["location"] == {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}


def test_hostile_files_take_no_time() -> None:
    names = "".join(f"ENV NAME_{each}=x\nCOPY $NAMES_{each} /\n" for each in range(3000))
    assert len(only("UndefinedVar", "FROM scratch\n" + names)) == 3000
    doubling = "FROM scratch\nENV a=xxxxxxxxxx\n" + "ENV a=$a$a$a\n" * 200 + "".join(f"ENV b{each}=$a\n" for each in range(2000))
    assert found(doubling) == []
    stages = "FROM scratch AS s0\n" + "".join(f"FROM s{each} AS s{each + 1}\nENV a{each}=1\n" for each in range(500))
    assert found(stages) == []
