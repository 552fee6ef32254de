"""The solver's hands for one build: opens sources, unpacks base images, runs, copies, commits layers. Owns what a build holds meanwhile.

Decides nothing about order or cache. What a vertex gives is a committed snapshot with a provisional name that is not synced yet: the export
syncs what an image needs, and the end of a build the rest.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import msgspec
import trio

from builder.faults import BuildFault
from builder.files import checksum, copying, layering
from builder.graph import ContextSource, Copy, CopySource, GitSource, HttpSource, ImageSource, MakeFolder, Mount, Run, Stack
from builder.progress import Reporter
from builder.secrets import Gifts
from builder.solving import mounting
from builder.solving.cachemounts import CacheMount, CacheMounts
from builder.solving.run import Limits, clear_away, run
from builder.solving.solver import Outcome
from builder.sources.contextfolder import remove_below
from builder.sources.sshagent import agent_socket
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.errors import InvalidParameter, KnarrError
from engine.service.context import Context
from engine.spec.mount import Mount as SpecMount
from engine.store.images import ImageRecord
from engine.store.snapshots import PROVISIONAL, Snapshot
from engine.store.trees import usage

_SECRET_MAX = 512 * 1024  # BuildKit's limit, 500 KiB and a little

_SNAPSHOT = "snapshot "

Fetch = Callable[[HttpSource | GitSource, str], Awaitable[Tree]]
"""Fetches sources from elsewhere; the second argument is the vertex that is told of it."""


class BuildWorker:
    """Works for one build. `contexts` waits for what the client sends; `scratch`: a folder of its own on the layers' file system; `bases`:
    the images that it stands on, by identifier, all kept from collection."""

    def __init__(
        self, context: Context, reporter: Reporter, *, contexts: Callable[[str], Awaitable[Tree]], fetch: Fetch, gifts: Gifts,
        mounts: CacheMounts, limits: Limits, scratch: str, bases: Mapping[str, ImageRecord] | None = None,
    ) -> None:  # fmt: skip
        self._context = context
        self._reporter = reporter
        self._contexts = contexts
        self._fetch = fetch
        self._gifts = gifts
        self._mounts = mounts
        self._limits = limits
        self._scratch = scratch
        self._bases = bases or {}
        self._numbers = 0
        self._selections: dict[tuple[Copy, tuple[str, ...]], str] = {}

    # -- sources

    async def source(self, op: ContextSource | HttpSource | GitSource, vertex: str) -> Tree:
        """Open or fetch sources. Raises KnarrError."""
        if isinstance(op, ContextSource):
            return await self._contexts(op.name)
        return await self._fetch(op, vertex)

    async def image(self, op: ImageSource, vertex: str) -> Snapshot | None:
        """The layers of an image, unpacked. Raises KnarrError."""
        if not op.chain:
            return None
        snapshots = self._context.snapshots
        if not snapshots.whole(op.chain):
            image = self._context.images.store.get(op.image) or self._bases.get(op.image)
            if image is None:
                raise KnarrError(f"the image {op.reference} was removed while it was built on")
            await self._context.pulls.unpack(image)
        return snapshots.get(op.chain)

    def tree(self, row: Snapshot | None) -> Tree:
        """A root file system as a tree."""
        if row is None:
            return Tree()
        return Tree(layers=self._context.snapshots.lowers(row.name), identity=f"{_SNAPSHOT}{row.number}")

    async def selection(self, op: Copy, trees: Sequence[Tree]) -> str:
        """The digest of what a COPY would copy."""
        whole = [trees[one.input] for one in op.sources if one.input >= 0 and one.path == "/"]
        if len(whole) == len(op.sources) and not op.exclude and not op.parents and all(_is_content(tree.identity) for tree in whole):
            return "whole " + " ".join(tree.identity for tree in whole)  # nothing needs to be looked at for it
        if not all(tree.identity or not tree.layers for tree in trees):
            return await blocking("hashing", checksum.key, op, trees, stopping)
        known = (op, tuple(tree.identity for tree in trees))
        found = self._selections.get(known)
        if found is None:
            found = self._selections[known] = await blocking("hashing", checksum.key, op, trees, stopping)
        return found

    async def content(self, tree: Tree, path: str) -> str:
        """The digest of what is at a path of a tree."""
        if path == "/" and _is_content(tree.identity):
            return tree.identity
        whole = Copy(sources=(CopySource(input=0, path=path, literal=True),), destination="/")
        return await self.selection(whole, [tree])

    # -- layers

    async def execute(self, op: Run | Copy | MakeFolder | Stack, inputs: Sequence[Outcome], vertex: str) -> Snapshot:
        """Do it; the result is committed under a provisional name. Raises BuildFault, KnarrError, OSError."""
        if isinstance(op, Run):
            return await self._run(op, inputs, vertex)
        below = inputs[0].row
        lowers = self._context.snapshots.lowers(below.name) if below is not None else ()
        match op:
            case Copy():
                trees = [self._tree_of(one) for one in inputs]
                work: Callable[[str, Callable[[], bool]], None] = lambda upper, stop: copying.apply(  # noqa: E731
                    op, lowers, upper, trees, stop=stop
                )
            case MakeFolder():
                work = lambda upper, stop: layering.make_folder(op, lowers, upper)  # noqa: E731
            case Stack():
                layer = inputs[1].row
                assert layer is not None
                folder = self._context.snapshots.upper(layer.name)
                work = lambda upper, stop: layering.stack(folder, lowers, upper, stop=stop)  # noqa: E731
        return await self._layer(below, work)

    async def _layer(self, below: Snapshot | None, work: Callable[[str, Callable[[], bool]], None]) -> Snapshot:
        """A new layer on `below`, filled by `work(its folder, whether to stop)` in a worker thread."""
        snapshots = self._context.snapshots
        path = snapshots.begin()

        def fill() -> tuple[int, int]:
            work(f"{path}/fs", stopping)
            return usage(f"{path}/fs", stopping)

        try:
            size, inodes = await blocking("build", fill)
            name = PROVISIONAL + os.urandom(8).hex()
            return snapshots.commit(path, name, below.name if below is not None else "", size, inodes, synced=False)
        except BaseException:
            await clear_away(self._context, path, snapshots.discard)
            raise

    # -- RUN

    async def _run(self, op: Run, inputs: Sequence[Outcome], vertex: str) -> Snapshot:
        below = inputs[0].row
        row: Snapshot | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                mounts, env = await self._mounted(op, inputs, stack)
                row = await run(
                    self._context, op, below.name if below is not None else None, mounts, env, self._limits, _Told(self._reporter, vertex)
                )  # fmt: skip
            return row
        except BaseException:
            if row is not None:
                row.cached = False  # cancelled after it was committed: nobody will ever look for it, so the next collection may have it
            raise

    async def _mounted(self, op: Run, inputs: Sequence[Outcome], stack: contextlib.AsyncExitStack) -> tuple[list[SpecMount], list[str]]:
        made: list[SpecMount] = []
        env: list[str] = []
        caches = await self._caches(op, inputs, stack)
        for mount in sorted(op.mounts, key=lambda mount: mount.target.count("/")):
            tree = None
            if mount.input >= 0:
                tree = self._tree_of(inputs[mount.input])
            match mount.kind:
                case "bind":
                    folder = await stack.enter_async_context(self._folder())
                    made.append(await blocking("disk", mounting.bind, mount, tree, folder, stopping))
                case "cache":
                    made.append(mounting.folder(mount, caches[_cache_key(mount, tree)].data))
                case "tmpfs":
                    made.append(mounting.tmpfs(mount))
                case "secret":
                    secret = self._secret(mount)
                    if secret is not None and mount.env:
                        env.append(f"{mount.env}={secret.decode('utf-8', 'surrogateescape')}")
                    if secret is not None and mount.target:
                        made.append(await stack.enter_async_context(self._secret_file(mount, secret)))
                case "ssh":
                    if mount.id in self._gifts.agents:
                        folder = await stack.enter_async_context(self._folder(volatile=True))
                        path = await stack.enter_async_context(agent_socket(folder, mount, self._gifts))
                        made.append(SpecMount(destination=mount.target, type="bind", source=path, options=("bind", "rprivate")))
                        env = [entry for entry in env if not entry.startswith("SSH_AUTH_SOCK=")]
                        if not any(entry.startswith("SSH_AUTH_SOCK=") for entry in op.env):
                            env.append(f"SSH_AUTH_SOCK={mount.target}")
                    elif mount.required:
                        raise BuildFault(f"no SSH key {mount.id!r} forwarded from the client", hint="build with --ssh")
        return made, env

    @contextlib.asynccontextmanager
    async def _folder(self, *, volatile: bool = False) -> AsyncIterator[str]:
        """A folder for one step, gone with it; `volatile`: below the exec root, on no disk."""
        self._numbers += 1
        base = f"{self._context.layout.exec_root}/build" if volatile else self._scratch
        path = f"{base}/{os.path.basename(self._scratch)}-{self._numbers}" if volatile else f"{base}/{self._numbers}"
        os.makedirs(path, 0o700)
        try:
            yield path
        finally:
            # A RUN may have made a tree of any depth. What stays is removed when a daemon begins to build.
            with trio.CancelScope(shield=True), contextlib.suppress(OSError):
                await blocking("disk", remove_below, *os.path.split(path))

    async def _caches(self, op: Run, inputs: Sequence[Outcome], stack: contextlib.AsyncExitStack) -> dict[str, CacheMount]:
        """The folders of a step's cache mounts, by key: one for a key, also where it is mounted twice. They are taken in one order by all,
        so that no two steps wait for each other's."""
        wanted: dict[str, tuple[Mount, Tree | None]] = {}
        for mount in op.mounts:
            if mount.kind == "cache":
                tree = self._tree_of(inputs[mount.input]) if mount.input >= 0 else None
                wanted.setdefault(_cache_key(mount, tree), (mount, tree))
        caches: dict[str, CacheMount] = {}
        for key in sorted(wanted):
            mount, tree = wanted[key]
            fill = functools.partial(mounting.fill_cache, mount, tree, stopping) if tree is not None else None
            used = self._mounts.use(
                key, f"mount {mount.target} of a RUN, id {mount.id!r}", mount.sharing, mount.mode, mount.uid, mount.gid, fill
            )
            caches[key] = await stack.enter_async_context(used)
        return caches

    def _tree_of(self, outcome: Outcome) -> Tree:
        return outcome.tree if outcome.tree is not None else self.tree(outcome.row)

    def _secret(self, mount: Mount) -> bytes | None:
        secret = self._gifts.secrets.get(mount.id)
        if secret is None:
            if mount.required:
                raise BuildFault(f"secret {mount.id}: not found", hint="give it with --secret id=" + mount.id)
            return None
        if len(secret) > _SECRET_MAX:
            raise InvalidParameter(f"secret {mount.id}: invalid secret size {len(secret)}, at most {_SECRET_MAX} bytes")
        return secret

    @contextlib.asynccontextmanager
    async def _secret_file(self, mount: Mount, secret: bytes) -> AsyncIterator[SpecMount]:
        """A secret as a file that is on no disk: below the exec root, and gone when the step has ended."""
        async with self._folder(volatile=True) as folder:
            path = f"{folder}/secret"
            _write_secret(path, mount, secret)
            yield mounting.file(mount.target, path)


class _Told:
    """The output of a process, for whoever is told of a vertex. The process waits for a client that reads slowly, but not for one that does
    not read: another build may wait for the same step."""

    def __init__(self, reporter: Reporter, vertex: str) -> None:
        self._reporter = reporter
        self._vertex = vertex
        self._listens = True
        self._left_out = 0

    def __call__(self, stream: int, data: bytes) -> None:
        if not self._listens:
            self._left_out += len(data)
            return
        if self._left_out:
            note = b"[%d bytes of output are left out: nobody read them]\n" % self._left_out
            self._reporter.log(self._vertex, 2, note)
            self._left_out = 0
        self._reporter.log(self._vertex, stream, data)

    async def room(self) -> None:
        self._listens = await self._reporter.room()


def stopping() -> bool:
    """For work in a thread of `blocking`: never true, but raises trio.Cancelled when nobody waits for the work any more."""
    trio.from_thread.check_cancelled()
    return False


def _cache_key(mount: Mount, tree: Tree | None) -> str:
    """BuildKit's: folders of one id that begin with something else, or with another owner or mode, are not the same."""
    if tree is not None:
        return f"{mount.id}\0{mount.source}\0{tree.identity}"
    plain = (mount.uid, mount.gid, mount.mode) == (0, 0, 0o755)
    return f"{mount.id}\0\0" if plain else f"{mount.id}\0{mount.uid}:{mount.gid}:{mount.mode:o}\0"


def _is_content(identity: str) -> bool:
    """Whether an identity is the same for all equal trees, and not only for this very one."""
    return bool(identity) and not identity.startswith(_SNAPSHOT)


def _write_secret(path: str, mount: Mount, secret: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(secret)
        os.fchown(fd, mount.uid, mount.gid)
        os.fchmod(fd, mount.mode)


def limits_key(limits: Limits) -> str:
    """What of a build's limits an outcome may depend on: nothing that only makes it slower."""
    hc = limits.host_config
    return msgspec.json.encode([[limit.name, limit.soft, limit.hard] for limit in hc.ulimits or ()]).decode()
