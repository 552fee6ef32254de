"""What a vertex gives, for those that use it: layers of folders on this host, read through `engine.store.view.View` alone."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """`layers`: host folders, topmost first, () for an empty tree. They do not change while a build uses them.

    `digests`: sha256 (hexadecimal) of regular files by path without a leading slash, as far as it is known without reading them;
    `linkable`: files may be hard-linked into layers, because nobody ever writes to them (what one would change is replaced by a new file).
    `attributes`: the paths of files and folders that have extended attributes, None when that is not known.
    `identity`: a short text that is equal only for trees with equal content (a context's digest), "" when there is none.
    `commit`: of a checkout.
    """

    layers: tuple[str, ...] = ()
    digests: Mapping[bytes, str] = {}
    linkable: bool = True
    attributes: frozenset[bytes] | None = None
    identity: str = ""
    commit: str = ""
