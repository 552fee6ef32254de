"""Which words are addresses: of a Git repository, of a file on a web server, or neither. Pure; follows BuildKit."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"[a-zA-Z0-9]+://")
_SCP = re.compile(r"[a-zA-Z0-9_-]+@[a-zA-Z0-9.-]+:[^#]*(?:#.*)?", re.DOTALL)
_UNNAMED = "__unnamed__"


def is_git(word: str) -> bool:
    """Whether a word is the address of a Git repository: `git://` and `ssh://`, `user@host:path`, and a path with `.git` at the end of
    `http://` and `https://`; a fragment or query names what is wanted of it."""
    if word.startswith(("./", "../")):
        return False
    if _SCHEME.match(word) is None:
        return _SCP.fullmatch(word) is not None
    scheme = word.partition("://")[0].lower()
    if scheme in ("git", "ssh"):
        return True
    return scheme in ("http", "https") and _path(word).endswith(".git")


def is_web(word: str) -> bool:
    """Whether a word is the address of a file on a web server."""
    return word.startswith(("http://", "https://")) and not is_git(word)


def filename(url: str) -> str:
    """The name that a file from a web server gets: the last part of the path, or `__unnamed__`."""
    name = posixpath.basename(posixpath.normpath(unquote(_path(url)).replace("\0", "")))
    return name if name not in ("", ".", "..", "/") else _UNNAMED


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:  # brackets that do not match
        return ""
