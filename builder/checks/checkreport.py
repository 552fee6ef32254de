"""What `--check` prints: the warnings as text and as JSON, and the exit status. Pure; the form is buildx's."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import msgspec

from builder.checks.checkrules import Violation, Wanted, failure
from builder.language.errors import DockerfileError, excerpt
from builder.language.instructions import Dockerfile, Location


class Report(msgspec.Struct, frozen=True):
    """`text` goes to standard output, `answer` is the same for JSON, `error` is what the client says at the end ("" for nothing), `code`
    its exit status."""

    text: str
    answer: dict[str, Any]
    code: int
    error: str = ""


def report(dockerfile: Dockerfile, violations: list[Violation], settings: Wanted) -> Report:
    """The outcome of the checks of a file that can be read."""
    count = len(violations)
    found = f"{count} warning{'s have' if count > 1 else ' has'} been found!" if count else "no warnings found."
    text = f"Check complete, {found}\n"
    for each in violations:
        text += f"\nWARNING: {each.rule.name} - {each.rule.url}\n{each.message}\n"
        text += excerpt(dockerfile.text, each.location.line, each.location.end, path=dockerfile.path) + "\n"
    answer: dict[str, Any] = {
        "warnings": [
            {
                "ruleName": each.rule.name,
                "description": each.rule.description,
                "url": each.rule.url,
                "detail": each.message,
                "location": location(each.location),
            }
            for each in violations
        ],
        "sources": [source(dockerfile.path, dockerfile.text)],
    }
    error = failure(violations, settings)
    if error:
        at = violations[0].location
        answer["buildError"] = {"message": error, "location": location(at)}
        error += "\n" + excerpt(dockerfile.text, at.line, at.end, path=dockerfile.path)
        text += "\n"
    return Report(text, answer, 1 if count else 0, error)


def unreadable(error: DockerfileError) -> Report:
    """The outcome for a file that cannot be read."""
    answer: dict[str, Any] = {
        "warnings": [],
        "sources": [source(error.path, error.text)],
        "buildError": {"message": str(error), "location": location(Location(error.line, error.end)) if error.line else {}},
    }
    return Report("", answer, 1, "\n".join(filter(None, [str(error), error.excerpt()])))


def location(at: Location) -> dict[str, Any]:
    """A place as BuildKit's JSON has it: a range for each line."""
    return {"ranges": [_range(line) for line in _lines(at)]}


def _lines(at: Location) -> Iterable[int]:
    return range(at.line, max(at.line, at.end) + 1)


def _range(line: int) -> dict[str, Any]:
    return {"start": {"line": line}, "end": {"line": line}}


def source(path: str, text: str) -> dict[str, Any]:
    """A file as BuildKit's JSON has it."""
    return {"filename": path, "language": "Dockerfile", "data": base64.b64encode(text.encode()).decode()}
