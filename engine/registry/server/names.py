"""From a request's address to what it names: end point, repository, reference. Pure; everything here is hostile input.

Follows the OCI distribution specification, "Endpoints" and the grammar of names and tags in "Pulling manifests". No name ever becomes a
path on the disk.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import msgspec

from engine.registry.server.errors import RegistryError
from engine.spec.digest import is_digest

NAME_MAX = 255  # the specification's advice, and the limit of Docker's registry
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_SESSION = re.compile(r"[0-9a-f]{32}")

# What stands behind the last of these words is the rest of the address; a repository may be called anything, these words too.
_ROUTES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("tags", re.compile(r"(?P<name>.+)/tags/list/?(?P<reference>)")),
    ("upload", re.compile(r"(?P<name>.+)/blobs/uploads(?:/(?P<reference>[^/]*))?")),
    ("blob", re.compile(r"(?P<name>.+)/blobs/(?P<reference>[^/]+)")),
    ("manifest", re.compile(r"(?P<name>.+)/manifests/(?P<reference>[^/]+)")),
    ("referrers", re.compile(r"(?P<name>.+)/referrers/(?P<reference>[^/]+)")),
)


class Address(msgspec.Struct, frozen=True):
    """What a request is about. `kind`: base, catalog, tags, upload, blob, manifest, referrers. `reference` is "" where there is none."""

    kind: str
    name: str = ""
    reference: str = ""


def unescape(text: str) -> str:
    """Undo percent-encoding. Raises RegistryError for what is no UTF-8."""
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise RegistryError("NAME_INVALID", message="the request's address is not valid UTF-8")


def split(path: str) -> Address | None:
    """The parts of a path, none of them checked yet but for the grammar of paths; None for what is no address of this API."""
    if path in ("/v2", "/v2/"):
        return Address("base")
    if not path.startswith("/v2/") or len(path) > 2048:
        return None
    rest = path[4:]
    if rest in ("_catalog", "_catalog/"):
        return Address("catalog")
    for kind, pattern in _ROUTES:
        match = pattern.fullmatch(rest)
        if match is not None:
            return Address(kind, match["name"], match["reference"] or "")
    return None


def parameters(query: str) -> dict[str, list[str]]:
    """`a=1&b=2&a=3` -> {"a": ["1", "3"], "b": ["2"]}. Raises RegistryError."""
    found: dict[str, list[str]] = {}
    for part in query.split("&"):
        if part:
            key, _, value = part.partition("=")
            found.setdefault(unescape(key.replace("+", " ")), []).append(unescape(value.replace("+", " ")))
    return found


def is_name(text: str) -> bool:
    """Whether `text` is a repository's name."""
    return len(text) <= NAME_MAX and _NAME.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether `text` is a tag."""
    return _TAG.fullmatch(text) is not None


def is_session(text: str) -> bool:
    """Whether `text` can be the identifier of an upload."""
    return _SESSION.fullmatch(text) is not None


def digest(text: str) -> str:
    """A digest that can be served. Raises RegistryError."""
    if not is_digest(text):
        raise RegistryError("DIGEST_INVALID", {"digest": text[:200]}, message="invalid or unsupported digest")
    return text


def fallback_tag(digest: str) -> str:
    """The tag under which clients keep the referrers of a digest where there is no referrers API ("Referrers Tag Schema")."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def count(text: str, limit: int) -> int:
    """The `n` of a list: results wanted, `limit` at most. Raises RegistryError."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise RegistryError("PAGINATION_NUMBER_INVALID", {"n": text[:50]})
    return min(int(text), limit)


def content_range(text: str) -> tuple[int, int] | None:
    """The Content-Range of a chunk, `first-last`; `bytes first-last/total` is understood too. None when it is malformed."""
    match = re.fullmatch(r"(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:[0-9]{1,18}|\*))?", text)
    if match is None or int(match[1]) > int(match[2]):
        return None
    return int(match[1]), int(match[2])


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """The one range of a Range header as (offset, bytes) within `size`; None to send everything: no range of bytes, or several.

    RFC 9110 section 14. Raises RegistryError (416) when nothing of it lies within the blob.
    """
    match = re.fullmatch(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", text)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        wanted = min(int(match[2]), size)
        if wanted:
            return size - wanted, wanted
    elif match[2] and int(match[2]) < int(match[1]):
        return None
    elif int(match[1]) < size:
        first = int(match[1])
        return first, min(int(match[2]) if match[2] else size - 1, size - 1) - first + 1
    raise RegistryError("RANGE_INVALID", message="the range lies outside of the blob", fields=b"Content-Range: bytes */%d\r\n" % size)
