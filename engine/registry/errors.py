"""What a registry can answer or fail to answer, as errors with the Engine API's statuses and Docker's words.

Follows the distribution specification, "Error Codes", and what dockerd makes of them. Turns bytes into errors; sends nothing.
"""

from __future__ import annotations

import re

import msgspec

from engine.errors import Conflict, Forbidden, InvalidParameter, KnarrError, NotFound, Unauthorized

_LONGEST = 500  # characters of a registry's text that are shown
_UNPRINTABLE = re.compile(r"\0+")


class Unreachable(KnarrError):
    """No answer: the connection could not be made, or ended before the answer. `tls` tells that it failed in the handshake;
    `final` that trying again is useless (an unknown name, a certificate)."""

    def __init__(self, message: str, *, hint: str = "", tls: bool = False, final: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.tls = tls
        self.final = final


class ImageUnreachable(Unreachable, NotFound):
    """The same for an image that is looked up: 404, so that a client goes on as for an image that does not exist."""

    status = 404


class Interrupted(KnarrError):
    """A body ended before its time, or stalled; what was received is good, and the rest can be asked for."""


class ServerError(KnarrError):
    """The registry failed (5xx). `code` is its HTTP status."""

    def __init__(self, message: str, *, code: int = 500, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class TooManyRequests(KnarrError):
    """The registry limits how often it may be asked: 429. `after` are the seconds that it wants to wait, 0 when it does not say."""

    status = 429

    def __init__(self, message: str, *, after: float = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.after = after


class AccessDenied(NotFound):
    """The repository does not exist, or is not for this user: registries do not tell which, and Docker's status is 404."""


class NotThisWay(KnarrError):
    """The registry does not do what was asked for in this form (404 or 405 of an optional endpoint, 413, 416). `code` is its status."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class Problem(msgspec.Struct, frozen=True):
    """One member of `errors` in an answer."""

    code: str = "UNKNOWN"
    message: str = ""

    def __str__(self) -> str:
        """`manifest unknown: manifest unknown`, as Go's distribution library shows it."""
        name = self.code.lower().replace("_", " ")
        return f"{name}: {self.message}" if self.message else name


class _Problems(msgspec.Struct, frozen=True):
    errors: tuple[Problem, ...] = ()


class _Details(msgspec.Struct, frozen=True):
    """What token servers and old registries answer instead."""

    details: str = ""
    message: str = ""
    error: str = ""
    error_description: str = ""


def clean(text: str) -> str:
    """A registry's text without control characters and without what changes the direction of writing, and not too long."""
    kept = "".join(char if char.isprintable() else "\0" for char in text[: 4 * _LONGEST])
    return _UNPRINTABLE.sub(" ", kept).strip()[:_LONGEST]


def problems(body: bytes) -> tuple[Problem, ...]:
    """The errors that an answer's body lists; none when it is not of that form."""
    try:
        found = msgspec.json.decode(body, type=_Problems).errors
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ()
    return tuple(Problem(clean(problem.code), clean(problem.message)) for problem in found[:10])


def detail(body: bytes) -> str:
    """The human words in the body of an answer that lists no errors; "" for none."""
    try:
        found = msgspec.json.decode(body, type=_Details)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""
    return clean(found.details or found.message or found.error_description or found.error)


def failure(status: int, body: bytes, *, name: str, reference: str = "", url: str = "", after: float = 0, push: bool = False) -> KnarrError:
    """The error for an answer.

    `name` is the repository and `reference` the whole image as Docker shows them, `after` what Retry-After asked for in seconds.
    """
    listed = problems(body)
    if not listed:
        listed = _told_otherwise(status, body)
    if not listed:
        words = detail(body)
        return _by_status(status, f"received unexpected HTTP status: {status} from {url}" + (f": {words}" if words else ""))
    first = listed[0]
    text = str(first) if len(listed) == 1 else "errors:\n" + "".join(f"{problem}\n" for problem in listed)
    if first.code == "MANIFEST_UNKNOWN":
        return NotFound(f"manifest for {reference or name} not found: {text}")
    if first.code == "NAME_UNKNOWN":
        return NotFound(f"repository {name} not found: {text}")
    if first.code == "DENIED":
        return refused(name, text, push=push)
    if first.code == "UNAUTHORIZED" or status == 401:
        return Unauthorized(text)
    if first.code == "TOOMANYREQUESTS" or status == 429:
        return TooManyRequests(text, after=after)
    return _by_status(status, text)


def refused(name: str, cause: str = "denied: requested access to the resource is denied", *, push: bool = False) -> KnarrError:
    """Docker's words for a repository that is not there or not for us."""
    if push:
        return Forbidden(cause)
    return AccessDenied(f"pull access denied for {name}, repository does not exist or may require 'docker login': {cause}")


def _told_otherwise(status: int, body: bytes) -> tuple[Problem, ...]:
    """For answers without a list of errors, as proxies and half of the registries send them: what the status means."""
    words = detail(body)
    if status == 401:
        return (Problem("UNAUTHORIZED", words or "authentication required"),)
    if status == 403:
        return (Problem("DENIED", words or "requested access to the resource is denied"),)
    if status == 404:
        return (Problem("MANIFEST_UNKNOWN", words or "manifest unknown"),)
    if status == 429:
        return (Problem("TOOMANYREQUESTS", words or "too many requests"),)
    return ()


def _by_status(status: int, text: str) -> KnarrError:
    if status >= 500:
        return ServerError(text, code=status)
    if status in (403,):
        return Forbidden(text)
    if status in (404,):
        return NotFound(text)
    if status == 409:
        return Conflict(text)
    if status in (405, 413, 416):
        return NotThisWay(text, code=status)
    return InvalidParameter(text)
