"""The caches elsewhere that one build reads and writes. What does that is loaded by builds that want it alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from builder.caches import cacheconfig
from builder.graph import Graph
from builder.progress import Reporter
from builder.tree import Tree
from engine.spec.build import Options
from engine.spec.docker.registry import Credentials
from engine.store.buildcache import CachedResult

if TYPE_CHECKING:
    from builder.caches.cacheexport import Result, Send
    from builder.caches.cacheimport import Bound, CacheImports
    from builder.export.images import Added
    from builder.service import BuildService
    from builder.solving.solver import Solver


class Caching:
    """Those of one build. Raises InvalidParameter, NotImplementedYet for options that make no sense."""

    def __init__(
        self, service: BuildService, options: Options, auths: Mapping[str, Credentials], reporter: Reporter, send: Send | None
    ) -> None:
        self._service = service
        self._auths = auths
        self._reporter = reporter
        self._send = send
        self._from = cacheconfig.imports(options)
        self._to = cacheconfig.exports(options)
        self._inline = cacheconfig.wants_inline(options) and not options.squash
        self._imports: CacheImports | None = None
        self._results: dict[int, Result] = {}

    @contextlib.asynccontextmanager
    async def reading(self, contexts: Callable[[str], Awaitable[Tree]]) -> AsyncIterator[None]:
        """Read the caches beside what is done in the block."""
        if not self._from:
            yield
            return
        from builder.caches.cacheimport import CacheImports

        service = self._service
        self._imports = CacheImports(service.context, service.cache, self._reporter, self._auths, contexts)
        async with self._imports.reading(self._from):
            yield

    def remotes(self, graph: Graph) -> list[Bound]:
        """For the solver of a graph; `bind` each to it."""
        return self._imports.of(graph) if self._imports is not None else []

    def solved(self, graph: Graph, solver: Solver) -> list[CachedResult]:
        """A graph has been solved; the results that must be kept until `write` has ended."""
        if not self._to:
            return []
        from builder.caches import cacheexport

        return cacheexport.gather(self._service.context, self._service.cache, graph, solver, self._results)

    def within(self, graph: Graph, solver: Solver, added: list[Added]) -> dict[str, msgspec.Raw]:
        """What the image's configuration says of its layers."""
        if not self._inline:
            return {}
        from builder.caches import cacheexport

        with self._reporter.vertex("preparing layers for inline cache"):
            records = cacheexport.inline_records(graph, solver, [one.created for one in added])
        return {} if records is None else {cacheconfig.INLINE: records}

    async def write(self) -> None:
        """Write all of them. Raises InvalidParameter, KnarrError, OSError."""
        if not self._to:
            return
        from builder.caches import cacheexport

        around = cacheexport.Surroundings(reporter=self._reporter, packed=self._service.packed, auths=self._auths, send=self._send)
        for to in self._to:
            await cacheexport.export(self._service.context, to, self._results, around)
