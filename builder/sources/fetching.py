"""Sources from elsewhere for a build: files of web servers and Git repositories, held as long as the build runs.

Owns `<data root>/build/sources`; how each is fetched is `remote`'s and `git`'s business.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Collection, Iterator

from builder.graph import GitSource, HttpSource, Mount
from builder.language.addresses import is_git
from builder.language.giturl import parse
from builder.secrets import Gifts
from builder.sources.git import Checkouts
from builder.sources.gitrun import end_strays
from builder.sources.kept import Kept
from builder.sources.remote import Downloads
from builder.sources.sshagent import agent_socket
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.errors import InvalidParameter
from engine.registry.transport import Transport
from engine.spec.buildcache import CacheRecord

_AGENT = "default"
"""The ssh agent that BuildKit uses for git."""


class Fetcher:
    """What one build fetches."""

    def __init__(self, sources: Sources, gifts: Gifts) -> None:
        self._sources = sources
        self._gifts = gifts
        self._used: list[str] = []

    async def fetch(self, op: HttpSource | GitSource) -> Tree:
        """A source of the graph. Raises KnarrError."""
        with self._sources.kept.fetching():
            if isinstance(op, HttpSource):
                return self._hold(*await self._sources.downloads.fetch(op, self._gifts.secrets))
            agent = parse(op.url).remote
            if _AGENT in self._gifts.agents and (agent.startswith("ssh://") or "://" not in agent):
                async with self._sources.agent(self._gifts) as path:
                    return self._hold(*await self._sources.checkouts.fetch(op, self._gifts.secrets, path))
            return self._hold(*await self._sources.checkouts.fetch(op, self._gifts.secrets))

    async def context(self, address: str, dockerfile: str, *, strict: bool = False) -> Tree:
        """The main context at an address: a repository, an archive, or a Dockerfile, which gets the name `dockerfile`. `strict`: content
        types as the classic builder takes them. Raises InvalidParameter, KnarrError."""
        if is_git(address) or address.startswith("github.com/"):
            return await self.fetch(GitSource(url=address))
        if not address.startswith(("http://", "https://")):
            raise InvalidParameter(f"unable to prepare context: {address!r} is no address of a Git repository or a web server")
        with self._sources.kept.fetching():
            return self._hold(*await self._sources.downloads.context(address, dockerfile, strict=strict, secrets=self._gifts.secrets))

    def _hold(self, id: str, tree: Tree) -> Tree:
        self._sources.kept.use(id)
        self._used.append(id)
        return tree

    def release(self) -> None:
        """The build is over."""
        for id in self._used:
            self._sources.kept.release(id)
        self._used.clear()


class Sources:
    """All that a daemon fetched. `volatile`: a folder on no disk, for sockets."""

    def __init__(self, root: str, volatile: str, transport: Transport) -> None:
        self.kept = Kept(root)
        self.downloads = Downloads(self.kept, transport)
        self.checkouts = Checkouts(self.kept, transport)
        self._volatile = volatile

    @contextlib.contextmanager
    def opened(self, gifts: Gifts) -> Iterator[Fetcher]:
        """For one build: what it fetches stays while the block runs."""
        fetcher = Fetcher(self, gifts)
        try:
            yield fetcher
        finally:
            fetcher.release()

    @contextlib.asynccontextmanager
    async def agent(self, gifts: Gifts) -> AsyncIterator[str]:
        """A socket that leads to the client's ssh agent."""
        folder = f"{self._volatile}/agent-{secrets.token_hex(8)}"
        os.makedirs(folder, 0o700)
        try:
            async with agent_socket(folder, Mount(kind="ssh", id=_AGENT, mode=0o600), gifts) as path:
                yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/agent.sock")
            os.rmdir(folder)

    async def usage(self) -> list[CacheRecord]:
        """What is kept."""
        return await blocking("disk", self.kept.records)

    async def remove(self, ids: Collection[str]) -> int:
        """Remove what no build uses; the bytes that were freed."""
        return await self.kept.remove(ids)

    async def sweep(self) -> None:
        """Remove what a crash or an earlier boot left."""
        await blocking("kernel", end_strays, self.kept.root)
        await self.kept.sweep()
