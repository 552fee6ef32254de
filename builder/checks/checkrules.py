"""The build checks: their names, what they say, and which of them are asked for. Pure; the words are BuildKit's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from builder.language.errors import quoted
from builder.language.instructions import Dockerfile, Location
from engine.errors import InvalidParameter
from engine.spec.build import Finding

SETTING = "BUILDKIT_DOCKERFILE_CHECK"
"""The build argument that says which checks are done. It replaces the file's own `# check=`."""

_PAGES = "https://docs.docker.com/go/dockerfile/rule/"
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


class Rule(msgspec.Struct, frozen=True):
    """A check. `experimental`: done only where it is asked for by name or with all such."""

    name: str
    description: str
    experimental: bool = False

    @property
    def url(self) -> str:
        """Its page in Docker's documentation."""
        return _PAGES + re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", self.name).lower() + "/"


STAGE_NAME_CASING = Rule("StageNameCasing", "Stage names should be lowercase")
FROM_AS_CASING = Rule("FromAsCasing", "The 'as' keyword should match the case of the 'from' keyword")
NO_EMPTY_CONTINUATION = Rule("NoEmptyContinuation", "Empty continuation lines will become errors in a future release")
CONSISTENT_INSTRUCTION_CASING = Rule(
    "ConsistentInstructionCasing", "All commands within the Dockerfile should use the same casing (either upper or lower)"
)
DUPLICATE_STAGE_NAME = Rule("DuplicateStageName", "Stage names should be unique")
RESERVED_STAGE_NAME = Rule("ReservedStageName", "Reserved words should not be used as stage names")
JSON_ARGS_RECOMMENDED = Rule(
    "JSONArgsRecommended", "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
)
MAINTAINER_DEPRECATED = Rule(
    "MaintainerDeprecated", "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
)
UNDEFINED_ARG_IN_FROM = Rule("UndefinedArgInFrom", "FROM command must use declared ARGs")
WORKDIR_RELATIVE_PATH = Rule(
    "WorkdirRelativePath",
    "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
)
UNDEFINED_VAR = Rule("UndefinedVar", "Variables should be defined before their use")
MULTIPLE_INSTRUCTIONS_DISALLOWED = Rule(
    "MultipleInstructionsDisallowed", "Multiple instructions of the same type should not be used in the same stage"
)
LEGACY_KEY_VALUE_FORMAT = Rule("LegacyKeyValueFormat", "Legacy key/value format with whitespace separator should not be used")
REDUNDANT_TARGET_PLATFORM = Rule(
    "RedundantTargetPlatform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
)
SECRETS_USED_IN_ARG_OR_ENV = Rule("SecretsUsedInArgOrEnv", "Sensitive data should not be used in the ARG or ENV commands")
INVALID_DEFAULT_ARG_IN_FROM = Rule("InvalidDefaultArgInFrom", "Default value for global ARG results in an empty or invalid base image name")
FROM_PLATFORM_FLAG_CONST_DISALLOWED = Rule("FromPlatformFlagConstDisallowed", "FROM --platform flag should not use a constant value")
COPY_IGNORED_FILE = Rule("CopyIgnoredFile", "Attempting to Copy file that is excluded by .dockerignore")
INVALID_DEFINITION_DESCRIPTION = Rule(
    "InvalidDefinitionDescription",
    "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a "
    "description comment, add an empty line or comment between the instruction and the comment.",
    experimental=True,
)
EXPOSE_PROTO_CASING = Rule("ExposeProtoCasing", "Protocol in EXPOSE instruction should be lowercase")
EXPOSE_INVALID_FORMAT = Rule(
    "ExposeInvalidFormat",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
)


class Violation(msgspec.Struct, frozen=True):
    """A check that fired: `message` says of what, `location` where."""

    rule: Rule
    message: str
    location: Location


class Wanted(msgspec.Struct, frozen=True):
    """Which checks are done. `skip` and `experimental` are names; `error`: a check that fires fails the build."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    experimental: frozenset[str] = frozenset()
    experimental_all: bool = False
    error: bool = False

    def includes(self, rule: Rule) -> bool:
        """Whether a rule is to be checked."""
        if rule.experimental:
            return self.experimental_all or rule.name in self.experimental
        return not self.skip_all and rule.name not in self.skip


def wanted(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> Wanted:
    """What the build argument, or else the file, wants checked. Raises InvalidParameter in BuildKit's words."""
    given = build_args.get(SETTING)
    return read(given if given is not None else dockerfile.directives.get("check", ("", 0))[0])


def read(text: str) -> Wanted:
    """The value of `# check=`: `skip=A,B;error=true;experimental=all`. Raises InvalidParameter in BuildKit's words."""
    if not text.strip():
        return Wanted()
    names: dict[str, frozenset[str]] = {}
    error = False
    for option in text.strip().split(";", 2):
        key, equals, value = option.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            raise InvalidParameter(f"invalid check option {quoted(option)}")
        if key in ("skip", "experimental"):
            names[key] = frozenset(name.strip() for name in value.split(","))
        elif key == "error":
            if value not in _TRUE + _FALSE:
                raise InvalidParameter(
                    f"failed to parse check option {quoted(option)}: strconv.ParseBool: parsing {quoted(value)}: invalid syntax"
                )
            error = value in _TRUE
        else:
            raise InvalidParameter(f"invalid check option {quoted(key)}")
    skip, experimental = names.get("skip", frozenset()), names.get("experimental", frozenset())
    everything = frozenset({"all"})
    return Wanted(skip, skip == everything, experimental, experimental == everything, error)


def finding(violation: Violation, dockerfile: Dockerfile, vertex: str = "") -> Finding:
    """The warning of a build's progress. `vertex`: what it belongs to there."""
    lines = range(violation.location.line, violation.location.end + 1)
    return Finding(
        vertex=vertex,
        short=f"{violation.rule.name}: {violation.message} (line {violation.location.line})",
        detail=(violation.rule.description,),
        url=violation.rule.url,
        filename=dockerfile.path,
        lines=tuple((line, line) for line in lines),
    )


def failure(violations: list[Violation], settings: Wanted) -> str:
    """What fails the build, "" when nothing does."""
    if not settings.error or not violations:
        return ""
    return "lint violation found for rules: " + ", ".join(sorted({violation.rule.name for violation in violations}))
