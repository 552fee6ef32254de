"""One build from a Dockerfile's text to its outputs: read, check, find base images, lower, solve, export. Each step is another module's.

Tells of what it does itself as BuildKit does: vertices with names that begin with `[internal]`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import trio

from builder import calls
from builder.caching import Caching
from builder.export.images import Added, Part
from builder.export.outcome import Built, Outcomes, check_outputs
from builder.faults import BuildFault, first_error, placed
from builder.graph import GitSource, Graph, HttpSource
from builder.language import ignore, suggest
from builder.language.ignore import Patterns
from builder.language.instructions import Dockerfile
from builder.language.parser import parse
from builder.lowering.lower import lower, wanted
from builder.lowering.stages import Base, Key, Wanted
from builder.progress import Reporter, stamp
from builder.secrets import Gifts
from builder.solving.limits import limits_of
from builder.solving.run import check_limits
from builder.solving.solver import Outcome, Solver
from builder.solving.worker import BuildWorker, limits_key
from builder.sources import contextfiles
from builder.sources.bases import Bases
from builder.sources.fetching import Fetcher
from builder.sources.layouts import SCHEME, Layouts
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded, ungrouped
from engine.errors import DiskFull, InvalidParameter, KnarrError
from engine.spec import platform as platforms
from engine.spec.build import MAIN_CONTEXT, Options, Progress, Result
from engine.spec.docker.registry import Credentials
from engine.spec.platform import Platform
from engine.store.buildcache import CachedResult
from engine.store.db import DatabaseError, is_full
from engine.store.images import ImageRecord
from engine.store.snapshots import Snapshot

if TYPE_CHECKING:
    from builder.service import BuildService

log = logging.getLogger("knarr.build")

_LARGE = 1 << 20  # bytes of a layer that is packed beside the next step; smaller ones take less than that
_CLEANUP_SECONDS = 60.0
_ROUNDS = 100  # of triggers that name further images; a chain of base images is never so long


class Request(msgspec.Struct, kw_only=True):
    """What a client asks and what it can give. `outputs` sends an output to it, None for a client that takes none. `strict`: content types
    of a context at an address are taken as the classic builder does."""

    options: Options
    auths: Mapping[str, Credentials]
    gifts: Gifts
    contexts: Callable[[str], Awaitable[Tree]]
    outputs: Callable[[int, AsyncIterator[bytes]], Awaitable[None]] | None = None
    strict: bool = False


class Hooks:
    """What a front of the builder hears of a build, in this order but for `told`."""

    def told(self, progress: Progress) -> None:
        """Something happened."""

    async def room(self) -> bool:
        """Wait until there is room for more to be told; False when nobody listens any more."""
        return True

    def parsed(self, dockerfile: Dockerfile) -> None:
        """The Dockerfile could be read."""

    def planned(self, graph: Graph, digests: list[str]) -> None:
        """What is going to be done."""


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def _refuse_nul(document: bytes, what: str) -> None:
    """Refuse a JSON document with a NUL in a string: no path, variable or argument can have one. Raises InvalidParameter."""
    if b"\\u0000" in document and _NUL.search(document):
        raise InvalidParameter(f"{what} contains a NUL byte")


def _patterns(text: bytes) -> Patterns:
    return Patterns(ignore.read(text))


def _planned(
    dockerfile: Dockerfile, options: Options, platform: Platform, host: Platform, known: Mapping[Key, Base]
) -> tuple[Sequence[Wanted], Graph | None]:  # fmt: skip
    """The base images that are still to be found, or, with none, the graph. A hostile Dockerfile may take long: for a worker thread."""
    missing = wanted(dockerfile, options, platform, host, known)
    return missing, None if missing else lower(dockerfile, options, platform, host, known)


async def build(service: BuildService, request: Request, hooks: Hooks) -> Result:
    """Build. Raises DockerfileError, BuildFault, KnarrError, OSError; what was finished stays in the cache."""
    async with service.building(request.gifts) as fetcher:
        try:
            with ungrouped():
                return await _Build(service, request, hooks, fetcher).run()
        except (KnarrError, OSError):
            raise
        except DatabaseError as error:
            if is_full(error):
                raise DiskFull(f"no space left on device: storing what the build made: {error}") from error
            raise KnarrError(f"storing what the build made: {error}") from error
        except Exception as error:  # a defect, of which the client hears too
            log.exception("a build")
            raise KnarrError(f"internal error: {type(error).__name__}: {error}") from error


class _Build:
    def __init__(self, service: BuildService, request: Request, hooks: Hooks, fetcher: Fetcher) -> None:
        self._service = service
        self._context = service.context
        self._request = request
        self._options = request.options
        self._hooks = hooks
        self._fetcher = fetcher
        self._reporter = Reporter(hooks.told, hooks.room)
        self._seconds: dict[str, float] = {}
        self._main = Tree()
        self._layouts = Layouts(self._context, self._reporter, request.contexts)
        self._bases: dict[str, ImageRecord] = {}  # by identifier; their names may be removed meanwhile
        self._dockerfile: Dockerfile | None = None

    async def run(self) -> Result:
        try:
            return await self._run()
        except BaseExceptionGroup as group:
            failure = first_error(group)
            if failure is None:
                raise
            self._excerpt(failure)
            raise failure from None
        except BuildFault as fault:
            self._excerpt(fault)
            raise

    def _excerpt(self, failure: Exception) -> None:
        """Add the lines of the Dockerfile that an error is about."""
        if isinstance(failure, BuildFault) and failure.line and self._dockerfile is not None and not failure.excerpt:
            from builder.language.errors import excerpt

            dockerfile = self._dockerfile
            ends = [one.location.end for stage in dockerfile.stages for one in stage.instructions if one.location.line == failure.line]
            failure.excerpt = excerpt(dockerfile.text, failure.line, max(ends, default=failure.line), path=dockerfile.path)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began

    async def _run(self) -> Result:
        options = self._options
        _refuse_nul(msgspec.json.encode(options), "an option of the build")
        with self._phase("context"):
            dockerfile = self._dockerfile = await self._read()
        self._hooks.parsed(dockerfile)
        host = self._context.images.host
        wanted_platforms = [platforms.parse(text, host).normalised() for text in options.platforms] or [host]
        if options.call != "build":
            return await self._answer(dockerfile, wanted_platforms[0])
        check_outputs(options)
        check_limits(self._context, limits_of(options))
        caching = Caching(self._service, options, self._request.auths, self._reporter, self._request.outputs)
        try:
            async with caching.reading(self._request.contexts):
                result = await self._built(dockerfile, wanted_platforms, caching)
        finally:
            if self._layouts.brought:
                with shielded(_CLEANUP_SECONDS):
                    await self._context.images.release(self._layouts.brought)
        return msgspec.structs.replace(
            result,
            executed=self._reporter.executed,
            cached=self._reporter.cached,
            seconds={key: round(value, 4) for key, value in self._seconds.items()},
        )

    async def _built(self, dockerfile: Dockerfile, wanted_platforms: Sequence[Platform], caching: Caching) -> Result:
        """Solve for every platform, and give the results to where they are to go."""
        used: dict[int, CachedResult] = {}
        with self._service.using(used), self._context.images.pins() as pin:
            try:
                built = []
                for number, platform in enumerate(wanted_platforms):
                    with self._phase("bases"):
                        graph = await self._graph(dockerfile, platform, pin)
                    with self._phase("solve"):
                        built.append(await self._solve(graph, used, number, caching))
                with self._phase("export"):
                    outcomes = Outcomes(
                        self._context, self._options, dockerfile.text, built, self._reporter, self._request.auths, self._request.outputs
                    )
                    result = await outcomes.carry_out()
                    await caching.write()
                    return result
            finally:
                self._service.keep(list(used.values()))

    # -- the Dockerfile

    async def _read(self) -> Dockerfile:
        options = self._options
        with self._reporter.vertex(f"[internal] load build definition from {options.dockerfile.rpartition('/')[2] or 'Dockerfile'}"):
            if options.remote:
                self._main = await self._fetcher.context(options.remote, options.dockerfile, strict=self._request.strict)
            tree = await self._tree("dockerfile" if options.dockerfile_sent else MAIN_CONTEXT)
            text = await contextfiles.dockerfile(tree, options.dockerfile)
            return await blocking("build", parse, text, options.dockerfile)

    async def _fetch(self, op: HttpSource | GitSource, vertex: str) -> Tree:
        return await self._fetcher.fetch(op)

    async def _tree(self, name: str) -> Tree:
        if name == MAIN_CONTEXT and self._options.remote:
            return self._main
        return await self._request.contexts(name)

    async def _answer(self, dockerfile: Dockerfile, platform: Platform) -> Result:
        """`--call` other than build."""
        ignore = await self._ignored()
        return await blocking("build", calls.answer, dockerfile, self._options, platform, self._context.images, ignore)

    async def _check(self, dockerfile: Dockerfile, platform: Platform, bases: Mapping[Key, Base]) -> None:
        """Warn of what the build checks find. Raises DockerfileError where they are to fail the build."""
        ignore = await self._ignored()
        host = self._context.images.host
        for finding in await blocking("build", calls.checked, dockerfile, self._options, platform, host, bases, ignore):
            self._reporter.warn(finding)

    async def _ignored(self) -> Patterns | None:
        """The .dockerignore of the main context, which the client has sent along; None without one, or when it cannot be read."""
        options = self._options
        if options.dockerfile_sent:
            return None
        tree = await self._tree(MAIN_CONTEXT)
        for name in ignore.candidates(options.dockerfile):
            text = await contextfiles.ignored(tree, name)
            if text is not None:
                try:
                    return await blocking("build", _patterns, text)
                except InvalidParameter:
                    return None
        return None

    # -- images

    async def _graph(self, dockerfile: Dockerfile, platform: Platform, pin: Callable[[Iterable[str]], object]) -> Graph:
        """The graph of one platform, with its base images found and kept."""
        host = self._context.images.host
        bases = Bases(self._context, self._request.auths, self._reporter, pull=self._options.pull)
        known: dict[Key, Base] = {}
        for _ in range(_ROUNDS):
            missing, graph = await blocking("build", _planned, dockerfile, self._options, platform, host, known)
            if graph is not None:
                await self._check(dockerfile, platform, known)
                return graph
            async with trio.open_nursery() as nursery:
                for one in missing:
                    nursery.start_soon(self._base, bases, one, known, pin, [stage.name for stage in dockerfile.stages])
        raise InvalidParameter("the base images' triggers name one image after another without end")

    async def _base(
        self, bases: Bases, one: Wanted, known: dict[Key, Base], pin: Callable[[Iterable[str]], object], stages: list[str]
    ) -> None:
        try:
            source = self._layouts if one.reference.startswith(SCHEME) else bases
            image = await source.find(one.reference, one.platform, one.name)
        except KnarrError as error:
            error.hint = error.hint or suggest.hint(one.origin, filter(None, stages))
            raise placed(error, one.location.line) from error
        _refuse_nul(msgspec.json.encode(image.config), f"the configuration of {one.name}")
        pin([*image.chain_ids, *image.blobs])
        self._bases[image.id] = image
        known[one.key] = Base(
            reference=one.reference, image=image.id, chain=image.chain_id or "", digest=image.manifest, config=image.config,
            platform=image.config.platform,
        )  # fmt: skip

    # -- solving

    async def _solve(self, graph: Graph, used: dict[int, CachedResult], number: int, caching: Caching) -> Built:
        """A graph's target: the layers that it adds to its base image."""
        service, limits, began = self._service, limits_of(self._options), stamp()
        with service.scratch() as scratch:
            worker = BuildWorker(
                self._context, self._reporter, contexts=self._tree, fetch=self._fetch, gifts=self._request.gifts, mounts=service.mounts,
                limits=limits, scratch=scratch, bases=self._bases,
            )  # fmt: skip
            async with trio.open_nursery() as packing:
                wanted_layers = self._exported_layers(graph)

                def finished(index: int, row: Snapshot) -> None:
                    if index in wanted_layers and row.size >= _LARGE:
                        packing.start_soon(self._pack, row)

                remotes = caching.remotes(graph)
                solver = Solver(
                    graph, worker, service.cache, service.locks, self._reporter, remotes=remotes, extra=limits_key(limits),
                    finished=finished,
                )  # fmt: skip
                for remote in remotes:
                    remote.bind(solver)
                self._hooks.planned(graph, solver.digests)
                try:
                    with service.using(solver.used):
                        outcome = await solver.solve(graph.target.root)
                finally:
                    used.update({(number << 32) + index: found for index, found in solver.used.items()})
        used.update({-1 - one.row.number: one for one in caching.solved(graph, solver)})
        added = self._added(graph, outcome)
        part = Part(graph.target, added, caching.within(graph, solver, added), list(self._bases.values()))
        return Built(graph=graph, part=part, resolved=solver.resolved(), began=began)

    def _exported_layers(self, graph: Graph) -> set[int]:
        """The vertices whose layers an export is going to pack for their digests."""
        if self._options.attest or any(one.type != "image" or "compression" in one.attributes for one in self._options.outputs):
            return set()
        return {step.vertex for step in graph.target.steps if step.vertex is not None}

    async def _pack(self, row: Snapshot) -> None:
        """Begin what the export would do later, beside the next step. What goes wrong is for the export to say."""
        with contextlib.suppress(KnarrError, OSError):
            await self._context.images.layer_blobs.pack(row)

    def _added(self, graph: Graph, outcome: Outcome) -> list[Added]:
        """One for each step that makes a layer: the result and what it lies on."""
        added: list[Added] = []
        row = outcome.row
        for _ in range(sum(step.vertex is not None for step in graph.target.steps)):
            if row is None:
                raise KnarrError("the result of the build has fewer layers than steps that make one")
            found = self._service.cache.of(row)
            added.append(Added(row, found.created if found is not None else row.at * 1_000_000_000))
            row = self._context.snapshots.get(row.parent) if row.parent else None
        return added[::-1]
