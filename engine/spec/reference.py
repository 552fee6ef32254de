"""Names of images: parse, normalise, show. Pure.

Follows the grammar of the distribution project's reference package, with the defaults of the Docker client: the domain
`docker.io`, the path prefix `library/`, the tag `latest`. The words of the errors are Docker's, since scripts look for them.
"""

from __future__ import annotations

import re

import msgspec

from engine.errors import InvalidParameter
from engine.spec.digest import is_digest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
# Limit of the distribution project: the path without its domain.
_NAME_MAX = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_REFERENCE = re.compile(rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_PATH})(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?")
_TAG_ONLY = re.compile(_TAG)
_ID = re.compile(r"[a-f0-9]{64}")


class Reference(msgspec.Struct, frozen=True):
    """A normalised name: `domain/path[:tag][@digest]`. `tag` and `digest` are "" when absent."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository in full, without tag and digest: `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as Docker shows it: `busybox`, `user/app`, `host:5000/app`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        return self.path.removeprefix(_OFFICIAL) if self.path.count("/") == 1 else self.path

    @property
    def familiar(self) -> str:
        """The whole reference as Docker shows it."""
        return self.familiar_name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.name + self._suffix()

    def with_default_tag(self) -> Reference:
        """The same with the tag `latest` when it has neither tag nor digest."""
        return self if self.tag or self.digest else self.with_tag(DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """The same repository with a tag; raises InvalidParameter for a malformed tag."""
        if _TAG_ONLY.fullmatch(tag) is None:
            raise InvalidParameter("invalid tag format")
        return Reference(self.domain, self.path, tag)

    def with_digest(self, digest: str) -> Reference:
        """The same repository with a digest and without a tag."""
        return Reference(self.domain, self.path, "", digest)


def parse(text: str) -> Reference:
    """Parse what a user types as an image name (not an image id). Raises InvalidParameter with Docker's wording."""
    if _ID.fullmatch(text):
        raise InvalidParameter(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, remainder = _split_domain(text)
    repository = remainder.partition("@")[0].partition(":")[0] if "@" in remainder else remainder.partition(":")[0]
    if repository.lower() != repository:
        raise InvalidParameter(f"invalid reference format: repository name ({repository}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
    if match is None or not match["domain"]:
        raise InvalidParameter("invalid reference format")
    return _checked(match)


def _checked(match: re.Match[str]) -> Reference:
    path, tag, digest = match["path"], match["tag"] or "", match["digest"] or ""
    if len(path) > _NAME_MAX:
        raise InvalidParameter(f"invalid reference format: repository name must not be more than {_NAME_MAX} characters")
    if digest and not is_digest(digest):
        raise InvalidParameter("invalid reference format")
    return Reference(match["domain"], path, tag, digest)


def _split_domain(text: str) -> tuple[str, str]:
    head, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, _OFFICIAL + text
    if head == _LEGACY_DOMAIN:
        head = DEFAULT_DOMAIN
    elif head != "localhost" and not any(mark in head for mark in ".:") and head == head.lower():
        head, rest = DEFAULT_DOMAIN, text
    if head == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return head, rest
