"""From a graph to results: what is needed, once, in parallel, and not at all where the cache has it.

Owns the order of the work and what is looked up under which key; knows digests and outcomes, never files: a `Worker` does everything that
touches the host. A vertex is first looked for by its definition, for which nothing has to be executed; then, with its inputs solved, by
what they turned out to be; then it is executed. What was finished is in the cache at once, whatever becomes of the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
import trio

from builder.faults import first_error, placed
from builder.graph import SCRATCH, ContextSource, Copy, GitSource, Graph, HttpSource, ImageSource, MakeFolder, Run, Stack, Vertex
from builder.progress import Reporter
from builder.solving import cachekey
from builder.tree import Tree
from engine.aio.locks import KeyedLocks
from engine.errors import KnarrError
from engine.store.buildcache import BuildCache, CachedResult
from engine.store.snapshots import Snapshot

SOURCES = (ContextSource, HttpSource, GitSource)
"""Ops that give a folder of sources and no root file system."""


class Outcome(msgspec.Struct, frozen=True):
    """What a vertex gave: layers up to `row` (None: an empty root file system), or `tree` for a source. `content` is equal only for equal
    outcomes."""

    row: Snapshot | None = None
    tree: Tree | None = None
    content: str = ""


class Worker(Protocol):
    """Does the work. All may raise KnarrError, BuildFault, OSError."""

    async def source(self, op: ContextSource | HttpSource | GitSource, vertex: str) -> Tree:
        """Open or fetch sources."""

    async def image(self, op: ImageSource, vertex: str) -> Snapshot | None:
        """The layers of an image, unpacked."""

    def tree(self, row: Snapshot | None) -> Tree:
        """A root file system as a tree."""

    async def selection(self, op: Copy, trees: Sequence[Tree]) -> str:
        """The digest of what a COPY would copy."""

    async def content(self, tree: Tree, path: str) -> str:
        """The digest of what is at a path of a tree."""

    async def execute(self, op: Run | Copy | MakeFolder | Stack, inputs: Sequence[Outcome], vertex: str) -> Snapshot:
        """Do it, on the root file system `inputs[0]`."""


class Remote(Protocol):
    """Results elsewhere: `--cache-from`."""

    async def find(self, keys: Sequence[str], vertex: str) -> tuple[Snapshot, Sequence[str]] | None:
        """The result under one of the keys, brought here, and all its keys."""


class Solver:
    """Solves one graph. `locks` are shared by all builds of a daemon, so that equal work is done once; `extra` is in keys of RUNs;
    `finished` is told of every step that was executed, and must not block."""

    def __init__(
        self, graph: Graph, worker: Worker, cache: BuildCache, locks: KeyedLocks, reporter: Reporter, *,
        remotes: Sequence[Remote] = (), extra: str = "", finished: Callable[[int, Snapshot], None] = lambda index, row: None,
    ) -> None:  # fmt: skip
        self._graph = graph
        self._worker = worker
        self._cache = cache
        self._locks = locks
        self._reporter = reporter
        self._remotes = remotes
        self._extra = extra
        self._finished = finished
        self.digests = cachekey.display(graph)
        self._solving: dict[int, trio.Event] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._keys: dict[int, str] = {}
        self._key_locks = KeyedLocks()
        self._tainted: dict[int, bool] = {}
        self.used: dict[int, CachedResult] = {}

    async def solve(self, index: int) -> Outcome:
        """The outcome of a vertex. Raises BuildFault, KnarrError; other work of this build is cancelled then."""
        try:
            return await self._solve(index)
        except BaseExceptionGroup as group:
            failure = first_error(group)
            if failure is None:
                raise
            raise failure from None

    async def _solve(self, index: int) -> Outcome:
        if index == SCRATCH:
            return Outcome(content="scratch")
        if index in self._outcomes:
            return self._outcomes[index]
        if index in self._solving:
            await self._solving[index].wait()
            return self._outcomes[index]  # who solves it raises when it fails, and that cancels us
        done = self._solving[index] = trio.Event()
        self._outcomes[index] = await self._fresh(index)
        done.set()
        return self._outcomes[index]

    async def _all(self, indexes: Sequence[int]) -> list[Outcome]:
        missing = [one for one in indexes if one != SCRATCH and one not in self._outcomes]
        if len(missing) == 1:
            await self._solve(missing[0])
        elif missing:
            async with trio.open_nursery() as nursery:
                for one in missing:
                    nursery.start_soon(self._solve, one)
        return [await self._solve(one) for one in indexes]

    async def _fresh(self, index: int) -> Outcome:
        vertex, digest = self._graph.vertices[index], self.digests[index]
        op = vertex.op
        if isinstance(op, SOURCES):
            return await self._told(index, self._open_source(op, digest))
        if isinstance(op, ImageSource):
            return await self._told(index, self._open_image(op, digest))
        assert isinstance(op, Run | Copy | MakeFolder | Stack)
        key = await self._key(index)
        if not self._is_tainted(index):
            found = self._cache.find(key)
            if found is not None:
                return self._hit(index, found)
            if self._remotes and (brought := await self._elsewhere([key], index)) is not None:
                return self._hit(index, brought)
        inputs = await self._all(vertex.inputs)
        try:
            by_content = await self._content_key(vertex, inputs)
        except (KnarrError, OSError) as error:
            raise self._failed(index, error) from error
        async with self._locks.hold(by_content):
            if not vertex.no_cache:
                found = self._cache.find(by_content)
                if found is None and self._remotes:
                    found = await self._elsewhere([by_content], index)
                if found is not None:
                    self._cache.alias([key], found)
                    return self._hit(index, found)
            self._begin(index)
            try:
                row = await self._worker.execute(op, inputs, digest)
                found = self._cache.put([key, by_content], row, _description(vertex))
            except (KnarrError, OSError) as error:
                self._reporter.end(digest, error=str(error))
                raise placed(error, vertex.line) from error
            except BaseException:
                self._reporter.end(digest, error="context canceled")
                raise
        self._reporter.end(digest)
        self.used[index] = found
        self._finished(index, row)
        return Outcome(row=row, content=found.id)

    async def _told(self, index: int, work: Awaitable[Outcome]) -> Outcome:
        """A source: told of around its work."""
        vertex, digest = self._graph.vertices[index], self.digests[index]
        self._begin(index)
        try:
            outcome = await work
        except (KnarrError, OSError) as error:
            self._reporter.end(digest, error=str(error))
            raise placed(error, vertex.line) from error
        except BaseException:
            self._reporter.end(digest, error="context canceled")
            raise
        self._reporter.end(digest, counts=False)
        return outcome

    async def _open_source(self, op: ContextSource | HttpSource | GitSource, digest: str) -> Outcome:
        tree = await self._worker.source(op, digest)
        return Outcome(tree=tree, content=tree.identity)

    async def _open_image(self, op: ImageSource, digest: str) -> Outcome:
        return Outcome(row=await self._worker.image(op, digest), content=f"image {op.chain}")

    def _failed(self, index: int, error: KnarrError | OSError) -> KnarrError:
        """The error of a vertex that cannot be what it is to be, such as a copy of a file that is not there. It never began, and is told of
        all the same; errors of what it stands on are told of there."""
        found = placed(error, self._graph.vertices[index].line)
        if found is not error and not self._reporter.told(self.digests[index]):
            self._begin(index)
            self._reporter.end(self.digests[index], error=str(error))
        return found

    def _begin(self, index: int) -> None:
        vertex = self._graph.vertices[index]
        self._reporter.begin(self.digests[index], vertex.name, [self.digests[one] for one in vertex.inputs if one != SCRATCH])

    def _hit(self, index: int, found: CachedResult) -> Outcome:
        self._cache.touch(found)
        self.used[index] = found
        self._tell_cached(index)
        return Outcome(row=found.row, content=found.id)

    def _tell_cached(self, index: int) -> None:
        """This vertex and those it stands on were not worked on."""
        pending, seen = [index], set()
        order: list[int] = []
        while pending:
            one = pending.pop()
            if one == SCRATCH or one in seen or self._reporter.told(self.digests[one]):
                continue
            seen.add(one)
            order.append(one)
            pending += self._graph.vertices[one].inputs
        for one in sorted(order):
            self._begin(one)
            counts = not isinstance(self._graph.vertices[one].op, (*SOURCES, ImageSource))
            self._reporter.end(self.digests[one], cached=True, counts=counts)

    async def _elsewhere(self, keys: list[str], index: int) -> CachedResult | None:
        for remote in self._remotes:
            found = await remote.find(keys, self.digests[index])
            if found is not None:
                return self._cache.put([*keys, *found[1]], found[0], _description(self._graph.vertices[index]))
        return None

    def key_of(self, index: int) -> str:
        """The key by definition of a vertex, "" while it is not known."""
        return self._keys.get(index, "")

    def results(self) -> dict[int, CachedResult]:
        """The result of every vertex that the target stands on, also of those that nobody had to look at; those that are not here are left
        out."""
        found: dict[int, CachedResult] = {}
        pending, seen = [self._graph.target.root], set()
        while pending:
            index = pending.pop()
            if index == SCRATCH or index in seen:
                continue
            seen.add(index)
            pending += self._graph.vertices[index].inputs
            result = self.used.get(index) or self._cache.find(self._keys.get(index, ""))
            if result is not None:
                found[index] = result
        return found

    def resolved(self) -> dict[int, str]:
        """What sources from elsewhere turned out to be: "sha256:…" of a file, a commit."""
        found: dict[int, str] = {}
        for index, outcome in self._outcomes.items():
            op = self._graph.vertices[index].op if index != SCRATCH else None
            if isinstance(op, HttpSource) and outcome.tree is not None:
                found.update((index, f"sha256:{digest}") for digest in outcome.tree.digests.values())
            elif isinstance(op, GitSource) and outcome.tree is not None and outcome.tree.commit:
                found[index] = outcome.tree.commit
        return found

    # -- keys

    def _is_tainted(self, index: int) -> bool:
        """Whether a vertex, or one it stands on, is to be done anew: then its definition does not say what it stands on."""
        if index == SCRATCH:
            return False
        found = self._tainted.get(index)
        if found is None:
            vertex = self._graph.vertices[index]
            found = self._tainted[index] = vertex.no_cache or any(self._is_tainted(one) for one in vertex.inputs)
        return found

    async def _key(self, index: int) -> str:
        """The key by definition. Sources are opened for it, since theirs is their content."""
        if index == SCRATCH:
            return "scratch"
        async with self._key_locks.hold(index):
            if index not in self._keys:
                vertex = self._graph.vertices[index]
                try:
                    self._keys[index] = await self._define(vertex)
                except (KnarrError, OSError) as error:
                    raise self._failed(index, error) from error
        return self._keys[index]

    async def _define(self, vertex: Vertex) -> str:
        op, inputs = vertex.op, vertex.inputs
        if isinstance(op, ImageSource):
            return cachekey.key(op, ())
        if isinstance(op, Copy):
            return cachekey.key(op, [await self._key(inputs[0]), *await self._define_sources(op, inputs)])
        if isinstance(op, Run):
            return cachekey.key(op, [await self._key(inputs[0]), *await self._define_mounts(op, inputs)], self._extra)
        return cachekey.key(op, [await self._key(one) for one in inputs])

    def _is_source(self, index: int) -> bool:
        return index != SCRATCH and isinstance(self._graph.vertices[index].op, SOURCES)

    async def _define_sources(self, op: Copy, inputs: Sequence[int]) -> list[str]:
        local = tuple(one for one in op.sources if one.input < 0 or self._is_source(inputs[one.input]))
        keys = []
        if local:
            trees: list[Tree] = [Tree()] * len(inputs)
            for one in local:
                if one.input >= 0:
                    trees[one.input] = (await self._solve(inputs[one.input])).tree or Tree()
            keys.append(await self._worker.selection(msgspec.structs.replace(op, sources=local), trees))
        for one in op.sources:
            if one not in local:
                keys.append(await self._key(inputs[one.input]))
        return keys

    async def _define_mounts(self, op: Run, inputs: Sequence[int]) -> list[str]:
        keys = []
        for mount in op.mounts:
            if mount.input < 0:
                continue
            index = inputs[mount.input]
            if self._is_source(index):
                keys.append(await self._worker.content((await self._solve(index)).tree or Tree(), mount.source))
            else:
                keys.append(await self._key(index))
        return keys

    async def _content_key(self, vertex: Vertex, inputs: Sequence[Outcome]) -> str:
        op = vertex.op
        extra = ""
        if isinstance(op, Copy):
            parts = [inputs[0].content, await self._worker.selection(op, [self._tree(one) for one in inputs])]
        elif isinstance(op, Run):
            parts, extra = [inputs[0].content], self._extra
            for mount in op.mounts:
                if mount.input >= 0:
                    parts.append(await self._worker.content(self._tree(inputs[mount.input]), mount.source))
        else:
            parts = [one.content for one in inputs]
        return cachekey.key(op, ["content", *parts], extra)

    def _tree(self, outcome: Outcome) -> Tree:
        return outcome.tree if outcome.tree is not None else self._worker.tree(outcome.row)


def _description(vertex: Vertex) -> str:
    return vertex.name
