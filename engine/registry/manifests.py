"""Whether bytes are what was asked for. Pure; what a manifest may be is the business of `spec.manifest`."""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from engine.errors import Damaged, KnarrError
from engine.spec import image
from engine.spec.digest import is_digest
from engine.spec.image import Descriptor


def digest_like(raw: bytes, like: str) -> str:
    """The digest of bytes, with the algorithm of the digest `like`, else sha256."""
    algorithm = like.partition(":")[0] if is_digest(like) else "sha256"
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


def check(raw: bytes, digest: str, what: str) -> None:
    """Raise Damaged when the bytes of `what` are not those of `digest`."""
    if not hmac.compare_digest(digest_like(raw, digest), digest):
        raise Damaged(
            f"{what}: manifest verification failed for digest {digest}" if "manifest" in what else f"{what}: not the bytes of {digest}"
        )


def index(raw: bytes, what: str) -> list[Descriptor]:
    """The members of an index. Raises KnarrError when it is none."""
    try:
        return list(image.decode_index(raw).manifests or ())
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise KnarrError(f"reading {what}: not an index: {error}")
