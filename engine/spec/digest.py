"""Digests: `algorithm:hex`, their check, and the chain identifier of a stack of layers. Pure; reads no files.

Follows OCI image specification, descriptor.md "Digests" and config.md "Layer ChainID".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from engine.errors import InvalidParameter

# descriptor.md, "Digests": registered algorithms and the length of their hexadecimal form.
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_GRAMMAR = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX = re.compile(r"[0-9a-f]+")


def is_digest(text: str) -> bool:
    """Whether `text` is a digest of a registered algorithm with the right number of lower-case hexadecimal digits."""
    algorithm, _, encoded = text.partition(":")
    return len(encoded) == _LENGTHS.get(algorithm, -1) and _HEX.fullmatch(encoded) is not None


def check_digest(text: str) -> str:
    """Return `text` when it is a valid digest; raises InvalidParameter with the wording of Docker's digest library."""
    if is_digest(text):
        return text
    if _GRAMMAR.fullmatch(text) is None:
        raise InvalidParameter(f"invalid checksum digest format: {text!r}")
    if text.partition(":")[0] not in _LENGTHS:
        raise InvalidParameter(f"unsupported digest algorithm: {text!r}")
    raise InvalidParameter(f"invalid checksum digest length: {text!r}")


def sha256(data: bytes) -> str:
    """The digest of bytes, `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def short(digest: str) -> str:
    """The twelve characters that Docker shows of an identifier."""
    return digest.partition(":")[2][:12] if ":" in digest else digest[:12]


def chain_ids(diff_ids: Iterable[str]) -> tuple[str, ...]:
    """The identifier of each stack of layers from the bottom: ChainID(L0) = L0, ChainID(L0|…|Ln) = digest(chain + " " + Ln)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(chain_of(chain[-1] if chain else "", diff_id))
    return tuple(chain)


def chain_of(below: str, diff_id: str) -> str:
    """The identifier of a layer that lies on the chain `below`, "" for nothing."""
    return sha256(f"{below} {diff_id}".encode()) if below else diff_id
