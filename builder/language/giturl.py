"""Addresses of Git repositories as builds write them: what is to be fetched, and what of it is wanted. Pure; follows BuildKit.

`https://host/path.git#ref:subdir`, `git://`, `ssh://`, `user@host:path#ref:subdir`, and instead of the fragment a query: `?ref=`, `tag=`,
`branch=`, `commit=` or `checksum=`, `subdir=`, `keep-git-dir=`, `submodules=`.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import msgspec

from engine.errors import InvalidParameter

COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SCP = re.compile(r"([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):([^#?]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_SCHEMES = ("https", "http", "git", "ssh")
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_GITHUB = "github.com/"


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """What an address says. `remote`: what git is given; `ref`: a branch, tag, full ref or commit, "" for the default branch; `subdir`
    relative and cleaned, "" for all; `checksum`: the beginning of the commit, or ""."""

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    submodules: bool = True

    @property
    def shown(self) -> str:
        """The remote without a password."""
        parts = urlsplit(self.remote) if "://" in self.remote else None
        if parts is None or "@" not in parts.netloc:
            return self.remote
        user, _, host = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=(f"{user.partition(':')[0]}:xxxxx@{host}" if ":" in user else f"{user}@{host}")))


def parse(url: str) -> Repository:
    """An address. Raises InvalidParameter."""
    if any(ord(char) < 32 or ord(char) == 127 for char in url):
        raise InvalidParameter(f"the address of a Git repository has control characters: {url!r:.200}")
    if url.startswith(_GITHUB):
        url = f"https://{url}"
    if "://" in url:
        remote, query, fragment = _split(url)
    else:
        found = _SCP.fullmatch(url)
        if found is None:
            raise InvalidParameter(f"{url:.200} is no address of a Git repository")
        user, host, path, query, fragment = (part or "" for part in found.groups())
        if host.startswith("-") or path.startswith("-") or user.startswith("-"):
            raise InvalidParameter(f"{url:.200}: a strange host or path in the address of a Git repository")
        remote = f"{user}@{host}:{path}"
    ref, _, subdir = fragment.partition(":")
    values = _query(query)
    return _combine(remote, ref, subdir, values)


def _split(url: str) -> tuple[str, str, str]:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise InvalidParameter(f"{url:.200} is no address of a Git repository: {error}") from error
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES or not host:
        raise InvalidParameter(f"{url:.200} is no address of a Git repository")
    if host.startswith("-") or parts.path.startswith("/-") or parts.netloc.startswith("-"):
        raise InvalidParameter(f"{url:.200}: a strange host or path in the address of a Git repository")  # an option to git's helpers
    return urlunsplit(parts._replace(scheme=scheme, query="", fragment="")), parts.query, unquote(parts.fragment)


def _query(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in values:
            raise InvalidParameter(f'query "{key}" has multiple values')
        if not value and key not in ("submodules", "keep-git-dir"):
            raise InvalidParameter(f'query "{key}" has no value')
        values[key] = value
    known = {"ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules"}
    for key in values:
        if key not in known:
            raise InvalidParameter(f'unexpected query "{key}"')
    return values


def _combine(remote: str, ref: str, subdir: str, values: dict[str, str]) -> Repository:
    for key, prefix in (("ref", ""), ("tag", "refs/tags/"), ("branch", "refs/heads/")):
        value = values.get(key, "")
        if not value:
            continue
        if key == "branch" and "tag" in values:
            raise InvalidParameter("branch conflicts with tag")
        wanted = value if value.startswith(prefix) else prefix + value
        if ref and ref != wanted:
            raise InvalidParameter(f'ref conflicts: "{ref}" vs "{wanted}"')
        ref = wanted
    if values.get("subdir"):
        if subdir and subdir != values["subdir"]:
            raise InvalidParameter(f'subdir conflicts: "{subdir}" vs "{values["subdir"]}"')
        subdir = values["subdir"]
    checksum = values.get("checksum") or values.get("commit") or ""
    if checksum and not re.fullmatch(r"[0-9a-f]{7,64}", checksum):
        raise InvalidParameter(f'invalid checksum "{checksum}": it is the beginning of a commit in hexadecimal digits')
    if not ref and COMMIT.fullmatch(checksum):
        ref = checksum
    if ref.startswith("-") or ".." in ref or any(char in " ~^:?*[\\" for char in ref):
        raise InvalidParameter(f'invalid ref "{ref}" of a Git repository')
    inside = posixpath.normpath("/" + subdir)[1:] if subdir else ""
    keep = _boolean(values, "keep-git-dir") if "keep-git-dir" in values else None
    submodules = _boolean(values, "submodules") if "submodules" in values else True
    return Repository(remote=remote, ref=ref, subdir=inside.lstrip("/"), checksum=checksum, keep_git_dir=keep, submodules=submodules)


def _boolean(values: dict[str, str], key: str) -> bool:
    value = values[key]
    if not value or value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidParameter(f'invalid {key} value: "{value}"')
