"""Base images: what a name in a Dockerfile stands for here, pulled where it is missing or `--pull` says so. Owns no store.

As dockerd's BuildKit: an image that is here is taken without asking its registry, unless the build says `--pull`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from builder.progress import Reporter, stamp
from engine.errors import KnarrError, NotFound
from engine.service.context import Context
from engine.service.pull import Options as PullOptions
from engine.spec import reference as references
from engine.spec.digest import sha256
from engine.spec.docker.registry import Credentials, host_of
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.images import ImageRecord


class Bases:
    """Finds images for one build. What was found is pinned by the caller."""

    def __init__(self, context: Context, auths: Mapping[str, Credentials], reporter: Reporter, *, pull: bool) -> None:
        self._context = context
        self._auths = auths
        self._reporter = reporter
        self._pull = pull
        self._pulled: set[tuple[str, str]] = set()

    async def find(self, name: str, platform: Platform, vertex: str) -> ImageRecord:
        """The image that a name or identifier stands for; `vertex` is what is told of it. Raises NotFound, InvalidParameter, KnarrError."""
        asked = str(platform)
        digest = sha256(f"{vertex} {asked}".encode())
        self._reporter.begin(digest, vertex)
        try:
            image = await self._find(name, asked, digest)
        except KnarrError as error:
            self._reporter.end(digest, error=str(error), counts=False)
            raise
        self._reporter.end(digest, counts=False)
        return image

    async def _find(self, name: str, platform: str, vertex: str) -> ImageRecord:
        images = self._context.images
        if not self._pull or (name, platform) in self._pulled:
            try:
                return images.get(name, platform)
            except NotFound:
                if (name, platform) in self._pulled:
                    raise
        reference = references.parse(name).with_default_tag()
        credentials = credentials_for(self._auths, reference)
        started: dict[str, str] = {}
        try:
            async for raw in self._context.pulls.pull(reference, PullOptions(platform=platform, credentials=credentials)):
                self._tell(vertex, raw, started)
        except KnarrError as error:
            error.message = f"failed to resolve source metadata for {reference}: {error.message}"  # BuildKit's words
            error.hint = error.hint or self._other(name, platform)
            raise
        self._pulled.add((name, platform))
        return images.get(name, platform)

    def _other(self, name: str, platform: str) -> str:
        """A hint when an image is here, but not for a platform; "" otherwise."""
        try:
            image = self._context.images.get(name)
        except KnarrError:
            return ""
        found = str(image.config.platform)
        return f"what is here is for {found}, not for {platform}" if found != platform else ""

    def _tell(self, vertex: str, raw: bytes, started: dict[str, str]) -> None:
        """A line of a pull as a bar of the vertex."""
        line = json.loads(raw)
        detail = line.get("progressDetail")
        if not line.get("id") or not isinstance(detail, dict):
            return
        began = started.setdefault(line["id"], stamp())
        done = str(line.get("status", "")).endswith("complete")
        if detail or done:
            self._reporter.status(
                vertex,
                f"{line.get('status', '')} {line['id']}",
                detail.get("current", 0),
                detail.get("total", 0),
                started=began,
                completed=done,
            )


def credentials_for(auths: Mapping[str, Credentials], reference: Reference) -> Credentials | None:
    """Those for a registry, by whatever form of its address they were stored under."""
    for address, found in auths.items():
        if host_of(address) == host_of(reference.domain):
            return found
    return None
