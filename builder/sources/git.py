"""Checkouts of Git repositories: ADD of one, and contexts that are one. Owns the mirrors and checkouts below a folder of `Kept`.

A mirror is a bare repository that later fetches add to. A checkout of a commit does not change and is made once: for a commit that is here
nobody is asked anything, for a branch or tag the server is asked what it points to. Follows BuildKit: one commit deep, submodules too,
modes 0644 and 0755, everything is root's, and `.git` is not there unless it is asked for.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from urllib.parse import urljoin

import msgspec

from builder.graph import GitSource
from builder.language.giturl import COMMIT, Repository, parse
from builder.sources.authorization import GitAuthorization, for_git, origin
from builder.sources.contextfolder import remove_below
from builder.sources.gitrun import Git, GitFailed
from builder.sources.kept import Kept, Record
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.aio.locks import KeyedLocks
from engine.errors import InvalidParameter, KnarrError
from engine.registry.transport import Transport
from engine.spec.buildcache import GIT, INTERNAL
from engine.store.merged import FOLDER
from engine.store.trees import walk
from engine.store.view import open_below

_SYMREF = re.compile(r"ref: refs/heads/(\S+)\tHEAD")
_REDIRECTED = re.compile(r"returned error: 30[12378]")
_REDIRECTS = 10
_REFS = "/info/refs"


class _Commit(msgspec.Struct, frozen=True):
    """What a ref is: its full name ("" for a commit named by itself), the object it points to, and the commit."""

    ref: str
    object: str
    commit: str


class Checkouts:
    """All repositories of a daemon. `transport`: for finding out where a server redirects to that wants credentials; without one such a
    redirect is an error."""

    def __init__(self, kept: Kept, transport: Transport | None = None) -> None:
        self.kept = kept
        self._transport = transport
        self._locks = KeyedLocks()

    async def fetch(self, op: GitSource, secrets: Mapping[str, bytes] | None = None, agent: str = "") -> tuple[str, Tree]:
        """A checkout, as (identifier among what is kept, tree). `secrets`: those that the client gives, of which GIT_AUTH_TOKEN and
        GIT_AUTH_HEADER (also with `.host`) are used; `agent`: the path of an ssh agent's socket. Raises KnarrError."""
        repository = parse(op.url)
        if op.checksum:
            if repository.checksum and not op.checksum.startswith(repository.checksum):
                raise InvalidParameter(f"checksum conflicts: {op.checksum!r} vs {repository.checksum!r}")
            repository = msgspec.structs.replace(repository, checksum=op.checksum)
        keep = op.keep_git_dir if repository.keep_git_dir is None else repository.keep_git_dir
        keep = keep and not repository.subdir
        authorization = for_git(repository.remote, secrets or {})
        try:
            return await self._fetch(repository, authorization, agent, keep)
        except GitFailed as error:
            if authorization is None or self._transport is None or not _REDIRECTED.search(error.output):
                raise
            moved = await _moved(self._transport, repository.remote, authorization.header)
            if not moved:
                raise
        # Another server gets what is for it by name, or nothing.
        elsewhere = origin(moved) != origin(repository.remote)
        repository = msgspec.structs.replace(repository, remote=moved)
        return await self._fetch(repository, for_git(moved, secrets or {}, of_host=elsewhere), agent, keep)

    async def _fetch(
        self, repository: Repository, authorization: GitAuthorization | None, agent: str, keep_git_dir: bool
    ) -> tuple[str, Tree]:  # fmt: skip
        settings = authorization.settings if authorization is not None else {}
        git = Git(repository.shown, settings, agent, self.kept.root)
        return await _Fetch(self.kept, self._locks, git, repository, keep_git_dir).run()


class _Fetch:
    def __init__(self, kept: Kept, locks: KeyedLocks, git: Git, repository: Repository, keep_git_dir: bool) -> None:
        self._kept = kept
        self._locks = locks
        self._git = git
        self._repository = repository
        self._keep_git_dir = keep_git_dir
        self._mirror_id = f"mirror-{_hash(repository.remote)}"

    async def run(self) -> tuple[str, Tree]:
        repository = self._repository
        found = await self._resolve()
        if found.commit:
            self._check(found)
        async with self._locks.hold(repository.remote):
            id = self._id(found.commit) if found.commit else ""
            if not id or self._kept.find(id) is None:
                try:
                    found = await self._fetched(found)
                except GitFailed:
                    # A mirror that an interrupted git left behind may be broken; a new one is not.
                    if self._kept.find(self._mirror_id) is None or not await self._drop_mirror():
                        raise
                    found = await self._fetched(found)
                self._check(found)
                id = self._id(found.commit)
                if self._kept.find(id) is None:
                    await self._checkout(found, id)
        return id, Tree(layers=(self._kept.tree(id),), identity=f"git {self._key(found.commit)}", commit=found.commit)

    def _key(self, commit: str) -> str:
        """What a tree is equal by: BuildKit's key and whether submodules are in it."""
        keep = ".git" if self._keep_git_dir else ""
        subdir = f":{self._repository.subdir}" if self._repository.subdir else ""
        return f"{commit}{keep}{subdir}{'' if self._repository.submodules else ' without submodules'}"

    def _id(self, commit: str) -> str:
        return f"git-{_hash(self._repository.remote, self._key(commit))}"

    def _check(self, found: _Commit) -> None:
        wanted = self._repository.checksum
        if wanted and not found.commit.startswith(wanted) and not found.object.startswith(wanted):
            raise KnarrError(f"expected checksum to match {wanted}, got {found.commit}")

    # -- what a ref is

    async def _resolve(self) -> _Commit:
        ref = self._repository.ref
        if COMMIT.fullmatch(ref):
            return _Commit("", ref, ref)
        remote = self._repository.remote
        if not ref:
            told = await self._git.run("error fetching default branch for repository", "/", "ls-remote", "--symref", "--", remote, "HEAD")
            match = _SYMREF.search(told)
            if match is None:
                raise KnarrError(f"could not find default branch for repository: {self._repository.shown}")
            ref = f"refs/heads/{match[1]}"
        told = await self._git.run("failed to fetch remote", "/", "ls-remote", "--", remote, ref, f"{ref}^{{}}")
        refs: dict[str, str] = {}
        for line in told.splitlines():
            object_name, _, name = line.partition("\t")
            refs[name] = object_name
        for name in (ref, f"refs/tags/{ref}", f"refs/heads/{ref}", f"refs/{ref}"):
            if name in refs:
                commit = refs.get(f"{name}^{{}}", refs[name])
                if not COMMIT.fullmatch(refs[name]) or not COMMIT.fullmatch(commit):
                    raise KnarrError(f"invalid commit sha {refs[name]!r:.100} from {self._repository.shown}")
                return _Commit(name, refs[name], commit)
        if re.fullmatch(r"[0-9a-f]{7,39}", ref):
            return _Commit("", ref, "")  # perhaps the beginning of a commit; it is found after fetching all
        raise KnarrError(f"repository does not contain ref {ref}, output: {told[:300]!r}")

    # -- the mirror

    @property
    def _mirror(self) -> str:
        return f"{self._kept.tree(self._mirror_id)}"

    async def _drop_mirror(self) -> bool:
        return await self._kept.remove([self._mirror_id], fetching=True) >= 0 and self._kept.find(self._mirror_id) is None

    async def _fetched(self, found: _Commit) -> _Commit:
        """Bring the commit into the mirror."""
        if self._kept.find(self._mirror_id) is None:
            async with self._kept.making() as path:
                await self._git.run("failed to init repo for", f"{path}/tree", "init", "--bare", "--quiet")
                record = Record(type=INTERNAL, description=f"shared git repo for {self._repository.shown}")
                await blocking("disk", self._kept.commit, path, self._mirror_id, record)
        self._kept.use(self._mirror_id)
        try:
            return await self._fetch(found)
        finally:
            self._kept.release(self._mirror_id)

    async def _fetch(self, found: _Commit) -> _Commit:
        doing, mirror, remote = "failed to fetch remote", self._mirror, self._repository.remote
        for lock in ("shallow.lock", "index.lock", "packed-refs.lock"):
            await blocking("disk", remove_below, mirror, lock)
        common = ["fetch", "--no-tags", "--no-write-fetch-head", "--force", "--quiet"]
        if found.commit and not await self._has(found.commit):
            try:
                # By what was resolved: the ref may point elsewhere by now.
                wanted = f"{found.object}:refs/knarr/{found.object}"
                await self._git.retried(doing, mirror, [*common, "--depth=1", "--", remote, wanted])
            except GitFailed:
                await self._fetch_all(found)
        elif not found.commit:
            await self._fetch_all(found)
        if not found.commit:
            try:
                commit = (await self._git.run(doing, mirror, "rev-parse", "--verify", "--quiet", f"{found.object}^{{commit}}")).strip()
            except GitFailed:
                raise KnarrError(f"repository does not contain ref {found.object}") from None
            return _Commit("", commit, commit)
        commit = (await self._git.run(doing, mirror, "rev-parse", "--verify", f"{found.object}^{{commit}}")).strip()
        return _Commit(found.ref, found.object, commit)

    async def _fetch_all(self, found: _Commit) -> None:
        """A server that gives only what it names is asked for the ref, or for everything."""
        doing, mirror, remote = "failed to fetch remote", self._mirror, self._repository.remote
        common = ["fetch", "--no-tags", "--no-write-fetch-head", "--force", "--quiet"]
        if found.ref:
            await self._git.retried(doing, mirror, [*common, "--depth=1", "--", remote, f"{found.ref}:refs/knarr/{found.object}"])
            return
        unshallow = ["--unshallow"] if os.path.exists(f"{mirror}/shallow") else []
        everything = ["+refs/heads/*:refs/knarr/heads/*", "+refs/tags/*:refs/knarr/tags/*"]
        await self._git.run(doing, mirror, *common, *unshallow, "--", remote, *everything)

    async def _has(self, commit: str) -> bool:
        try:
            await self._git.run("looking for a commit of", self._mirror, "cat-file", "-e", f"{commit}^{{commit}}")
        except GitFailed:
            return False
        return True

    # -- the checkout

    async def _checkout(self, found: _Commit, id: str) -> None:
        self._kept.use(self._mirror_id)
        try:
            async with self._kept.making() as path:
                work = f"{path}/work"
                await blocking("disk", os.mkdir, work, 0o755)
                await self._populate(found, work)
                await blocking("disk", _settle, work, f"{path}/tree", self._repository.subdir, self._keep_git_dir)
                record = Record(type=GIT, description=f"git snapshot for {self._repository.shown}#{found.ref or found.commit}")
                await blocking("disk", self._kept.commit, path, id, record)
        finally:
            self._kept.release(self._mirror_id)

    async def _populate(self, found: _Commit, work: str) -> None:
        """A repository of its own in `work`, checked out: submodules need one, and so does who wants to keep it."""
        doing = "failed to checkout remote"
        run = self._git.run
        await run(doing, work, "init", "--quiet")
        await run(doing, work, "remote", "add", "--", "origin", self._repository.shown)
        target = found.ref if found.ref.startswith(("refs/tags/", "refs/heads/")) else f"refs/knarr/{found.commit}"
        temporary = f"refs/knarr/{found.object}"
        await run(doing, self._mirror, "update-ref", temporary, found.object)
        arguments = ["fetch", "--no-tags", "--quiet", "--update-head-ok", "--depth=1", "--", f"file://{self._mirror}"]
        await run(doing, work, *arguments, f"{temporary}:{target}", local=True)
        await run(doing, work, "checkout", "--quiet", "--detach", found.commit)
        if self._repository.submodules and os.path.lexists(f"{work}/.gitmodules"):
            # Addresses of submodules may be relative to the repository's own.
            await run(doing, work, "remote", "set-url", "--", "origin", self._repository.remote)
            await self._git.retried(
                "failed to update submodules for", work, ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"]
            )
            await run(doing, work, "remote", "set-url", "--", "origin", self._repository.shown)
        if self._keep_git_dir:
            await run(doing, work, "reflog", "expire", "--all", "--expire=now")


def _settle(work: str, tree: str, subdir: str, keep_git_dir: bool) -> None:
    """Blocks. Move what is wanted of a checkout into the empty folder `tree`. Raises InvalidParameter for a subdir that is not there."""
    if keep_git_dir:
        remove_below(f"{work}/.git", "FETCH_HEAD")
    else:
        _remove_git(work)
    top = os.open(work, FOLDER)
    try:
        try:
            source = open_below(top, tuple(os.fsencode(part) for part in subdir.split("/") if part), FOLDER)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise
            what = "not a directory" if error.errno == errno.ENOTDIR else "no such file or directory"
            raise InvalidParameter(f"failed to open subdir {subdir}: {what}") from error
        target = os.open(tree, FOLDER)
        try:
            for name in os.listdir(source):
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        finally:
            os.close(source)
            os.close(target)
    finally:
        os.close(top)
    remove_below(*os.path.split(work))


def _remove_git(work: str) -> None:
    """Remove `.git` at the top, and the files of that name that submodules have."""
    remove_below(work, ".git")
    top = os.open(work, FOLDER)
    try:
        for place in [place for place, info in walk(top) if place[-1] == b".git" and not stat.S_ISDIR(info.st_mode)]:
            fd = open_below(top, place[:-1], FOLDER)
            try:
                os.unlink(place[-1], dir_fd=fd)
            finally:
                os.close(fd)
    finally:
        os.close(top)


def _hash(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:32]


async def _moved(transport: Transport, remote: str, header: str) -> str:
    """Where the server of a repository redirects to, "" for nowhere. The header goes to that server alone. Raises Unreachable."""
    first = url = f"{remote}{_REFS}?service=git-upload-pack"
    for _ in range(_REDIRECTS):
        response = await transport.send("GET", url, [("Authorization", header)])
        await response.close()
        if response.status not in (301, 302, 303, 307, 308):
            break
        url = urljoin(url, response.headers.get("location", ""))
        try:
            if not url.startswith(("https://", "http://")) or origin(url) != origin(first):
                break
        except ValueError:  # a port that is none
            return ""
    target, refs, _ = url.partition(f"{_REFS}?")
    return target if refs and url != first and target.startswith(("https://", "http://")) else ""
