"""The repositories of the registry server: which blobs, manifests, tags and unfinished uploads each of them has. Owns the tables
`repositories` and `repository_*`.

A blob or manifest of the content store is visible in a repository only through a row here ("linked"), and the garbage collector keeps
what is linked anywhere. A blob that no manifest of its repository names stays linked for a grace time, so that a push has time to come
to its manifest. Knows neither HTTP nor who may see what. Event-loop thread only, as the database; writes are durable after
`Database.sync`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import cast

import msgspec

from engine.store.db import Database

# As long as containerd's lease of a pull and as an upload session lives: what was pushed a day ago and belongs to nothing is abandoned.
GRACE_SECONDS = 24 * 3600

_OF = "(SELECT id FROM repositories WHERE name = ?)"
_COLUMNS = "digest, media_type, size, subject, artifact_type, annotations"
# What a cache keeps of another registry lies in repositories named `HOST//NAME`, which no client's name can be.
CACHE_MARK = "//"
_TOUCH_SECONDS = 3600  # how exact the time of last use is

_IN = 500  # values in one IN (...); SQLite takes 999 parameters in every version


class StoredManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest of one repository. `size` in bytes; `subject` and `artifact_type` are "" when it has none."""

    digest: str
    media_type: str
    size: int
    subject: str = ""
    artifact_type: str = ""
    annotations: dict[str, str] | None = None


class Upload(msgspec.Struct, frozen=True):
    """An upload that was begun: its file is named by `id`; `started` is a Unix time in seconds."""

    id: str
    repository: str
    algorithm: str
    started: int


class RepositoryStore:
    """All repositories of one data root."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._held: Counter[str] = Counter()

    # -- repositories

    def names(self, last: str = "", limit: int = -1) -> list[str]:
        """Names in byte order after `last`, `limit` of them at most (-1: all)."""
        rows = self._db.query("SELECT name FROM repositories WHERE name > ? ORDER BY name LIMIT ?", (last, limit))
        return [cast(str, name) for (name,) in rows]

    def exists(self, name: str) -> bool:
        """Whether anything was ever linked there and something still is."""
        return self._id(name) is not None

    def _id(self, name: str) -> int | None:
        rows = self._db.query("SELECT id FROM repositories WHERE name = ?", (name,))
        return cast(int, rows[0][0]) if rows else None

    # -- blobs

    def blob_size(self, name: str, digest: str) -> int | None:
        """Bytes of a blob that is linked in the repository, else None."""
        rows = self._db.query(f"SELECT size FROM repository_blobs WHERE repository = {_OF} AND digest = ?", (name, digest))
        return cast(int, rows[0][0]) if rows else None

    def blob_sizes(self, name: str, digests: Sequence[str]) -> dict[str, int]:
        """The sizes of those of `digests` that are linked as blobs."""
        return self._sizes("repository_blobs", name, digests)

    def manifest_sizes(self, name: str, digests: Sequence[str]) -> dict[str, int]:
        """The sizes of those of `digests` that are manifests of the repository."""
        return self._sizes("repository_manifests", name, digests)

    def _sizes(self, table: str, name: str, digests: Sequence[str]) -> dict[str, int]:
        repository = self._id(name)
        found: dict[str, int] = {}
        if repository is None:
            return found
        for start in range(0, len(digests), _IN):
            part = digests[start : start + _IN]
            marks = ",".join("?" * len(part))
            rows = self._db.query(f"SELECT digest, size FROM {table} WHERE repository = ? AND digest IN ({marks})", (repository, *part))
            found.update((cast(str, digest), cast(int, size)) for digest, size in rows)
        return found

    def holders(self, digest: str, limit: int = 64) -> list[str]:
        """Repositories in which a blob is linked, `limit` at most."""
        rows = self._db.query(
            "SELECT name FROM repository_blobs JOIN repositories ON id = repository WHERE digest = ? ORDER BY name LIMIT ?", (digest, limit)
        )
        return [cast(str, name) for (name,) in rows]

    def link(self, name: str, digest: str, size: int) -> None:
        """Make a blob visible in a repository, which comes into being with its first. Linking again begins the grace time anew."""
        with self._db.transaction() as cursor:
            cursor.execute("INSERT OR IGNORE INTO repositories (name) VALUES (?)", (name,))
            cursor.execute(
                "INSERT INTO repository_blobs SELECT id, ?, ?, ? FROM repositories WHERE name = ? "
                "ON CONFLICT (repository, digest) DO UPDATE SET linked = excluded.linked",
                (digest, size, int(time.time()), name),
            )

    def unlink(self, name: str, digest: str) -> bool:
        """Take a blob out of a repository; False when it was not there."""
        with self._db.transaction() as cursor:
            cursor.execute(f"DELETE FROM repository_blobs WHERE repository = {_OF} AND digest = ?", (name, digest))
            return cursor.rowcount > 0

    # -- manifests

    def manifest(self, name: str, digest: str) -> StoredManifest | None:
        """A manifest of the repository by its digest."""
        rows = self._db.query(f"SELECT {_COLUMNS} FROM repository_manifests WHERE repository = {_OF} AND digest = ?", (name, digest))
        return _manifest(rows[0]) if rows else None

    def put_manifest(self, name: str, manifest: StoredManifest, refers: Iterable[str], tags: Sequence[str] = ()) -> None:
        """Store a manifest and move `tags` to it, in one transaction. `refers`: digests of the blobs and manifests that it names."""
        now = int(time.time())
        with self._db.transaction() as cursor:
            cursor.execute("INSERT OR IGNORE INTO repositories (name) VALUES (?)", (name,))
            repository = cursor.execute("SELECT id FROM repositories WHERE name = ?", (name,)).fetchone()[0]
            annotations = msgspec.json.encode(manifest.annotations) if manifest.annotations else None
            kind = (manifest.media_type, manifest.size, manifest.subject, manifest.artifact_type, annotations)
            cursor.execute(
                "INSERT INTO repository_manifests VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (repository, digest) DO UPDATE SET media_type = excluded.media_type, pushed = excluded.pushed",
                (repository, manifest.digest, *kind, now),
            )
            cursor.executemany(
                "INSERT OR IGNORE INTO repository_refs VALUES (?, ?, ?)", [(repository, manifest.digest, digest) for digest in refers]
            )
            cursor.executemany(
                "INSERT INTO repository_tags VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (repository, folded, tag) DO UPDATE SET digest = excluded.digest, tagged = excluded.tagged",
                [(repository, tag.lower(), tag, manifest.digest, now) for tag in tags],
            )

    def delete_manifest(self, name: str, digest: str) -> bool:
        """Remove a manifest and every tag on it; False when it was not there. Its blobs stay linked for their grace time."""
        repository = self._id(name)
        if repository is None:
            return False
        with self._db.transaction() as cursor:
            cursor.execute("DELETE FROM repository_manifests WHERE repository = ? AND digest = ?", (repository, digest))
            if not cursor.rowcount:
                return False
            cursor.execute("DELETE FROM repository_refs WHERE repository = ? AND manifest = ?", (repository, digest))
            cursor.execute("DELETE FROM repository_tags WHERE repository = ? AND digest = ?", (repository, digest))
            return True

    def referrers(self, name: str, subject: str, last: str = "", limit: int = -1, artifact_type: str = "") -> list[StoredManifest]:
        """Manifests whose subject is `subject`, by digest, those after `last`; only of `artifact_type` when it is given."""
        rows = self._db.query(
            f"SELECT {_COLUMNS} FROM repository_manifests WHERE repository = {_OF} "
            "AND subject = ? AND digest > ? AND (? = '' OR artifact_type = ?) ORDER BY digest LIMIT ?",
            (name, subject, last, artifact_type, artifact_type, limit),
        )
        return [_manifest(row) for row in rows]

    # -- tags

    def tag(self, name: str, tag: str) -> str:
        """The digest that a tag stands for, "" when there is no such tag."""
        rows = self._db.query(
            f"SELECT digest FROM repository_tags WHERE repository = {_OF} AND folded = ? AND tag = ?",
            (name, tag.lower(), tag),
        )
        return cast(str, rows[0][0]) if rows else ""

    def tagged(self, name: str, tag: str) -> float:
        """When a tag was last set or confirmed, as a Unix time in seconds; 0 when there is no such tag."""
        rows = self._db.query(
            f"SELECT tagged FROM repository_tags WHERE repository = {_OF} AND folded = ? AND tag = ?",
            (name, tag.lower(), tag),
        )
        return float(cast(int, rows[0][0])) if rows else 0.0

    def tags(self, name: str, last: str = "", limit: int = -1) -> list[str]:
        """Tags after `last` in the specification's order: by letters and digits whatever their case, then by bytes."""
        rows = self._db.query(
            f"SELECT tag FROM repository_tags WHERE repository = {_OF} AND (folded, tag) > (?, ?) ORDER BY folded, tag LIMIT ?",
            (name, last.lower(), last, limit),
        )
        return [cast(str, tag) for (tag,) in rows]

    def untag(self, name: str, tag: str) -> bool:
        """Remove a tag and leave its manifest; False when it was not there."""
        with self._db.transaction() as cursor:
            cursor.execute(
                f"DELETE FROM repository_tags WHERE repository = {_OF} AND folded = ? AND tag = ?",
                (name, tag.lower(), tag),
            )
            return cursor.rowcount > 0

    # -- unfinished uploads

    def uploads(self) -> list[Upload]:
        """Every upload that was begun and neither finished nor given up."""
        rows = self._db.query("SELECT id, repository, algorithm, started FROM repository_uploads")
        return [Upload(cast(str, a), cast(str, b), cast(str, c), cast(int, d)) for a, b, c, d in rows]

    def add_upload(self, upload: Upload) -> None:
        """Remember an upload. It need not be durable: a client whose upload is unknown begins anew."""
        with self._db.transaction() as cursor:
            row = (upload.id, upload.repository, upload.algorithm, upload.started)
            cursor.execute("INSERT INTO repository_uploads VALUES (?, ?, ?, ?)", row)

    def remove_uploads(self, ids: Collection[str]) -> None:
        """Forget uploads."""
        with self._db.transaction() as cursor:
            cursor.executemany("DELETE FROM repository_uploads WHERE id = ?", [(id,) for id in ids])

    # -- garbage collection

    @contextlib.contextmanager
    def holding(self, *digests: str) -> Iterator[None]:
        """Count blobs as linked while they are stored or looked at on the way to being linked."""
        self._held.update(digests)
        try:
            yield
        finally:
            self._held.subtract(digests)
            for digest in digests:
                if not self._held[digest]:
                    del self._held[digest]

    def roots(self) -> set[str]:
        """Every digest that a repository links or holds, blobs and manifests. Call `expire` before, to let go of what is old."""
        rows = self._db.query("SELECT digest FROM repository_blobs UNION SELECT digest FROM repository_manifests")
        return {cast(str, digest) for (digest,) in rows} | set(self._held)

    def refs(self, digest: str) -> set[str]:
        """What a manifest names, in whichever repository."""
        rows = self._db.query("SELECT DISTINCT digest FROM repository_refs WHERE manifest = ?", (digest,))
        return {cast(str, found) for (found,) in rows}

    def expire(self, now: float, grace: float = GRACE_SECONDS) -> int:
        """Take blobs out of repositories whose manifests do not name them and that were linked more than `grace` seconds before `now`; how
        many. Repositories in which nothing is left go too."""
        with self._db.transaction() as cursor:
            cursor.execute(
                "DELETE FROM repository_blobs WHERE linked < ? AND NOT EXISTS (SELECT 1 FROM repository_refs AS r "
                "WHERE r.repository = repository_blobs.repository AND r.digest = repository_blobs.digest)",
                (int(now - grace),),
            )
            gone = cursor.rowcount
            cursor.execute(
                "DELETE FROM repositories WHERE id NOT IN (SELECT repository FROM repository_blobs) "
                "AND id NOT IN (SELECT repository FROM repository_manifests)"
            )
            return gone

    def touch(self, name: str, digest: str, now: float) -> None:
        """A blob or manifest of a cache was used. Written once an hour at most; need not be durable."""
        rows = self._db.query(
            f"SELECT linked FROM repository_blobs WHERE repository = {_OF} AND digest = ? "
            f"UNION ALL SELECT pushed FROM repository_manifests WHERE repository = {_OF} AND digest = ?",
            (name, digest, name, digest),
        )
        if all(cast(int, moment) > now - _TOUCH_SECONDS for (moment,) in rows):
            return
        with self._db.transaction() as cursor:
            cursor.execute(f"UPDATE repository_blobs SET linked = ? WHERE repository = {_OF} AND digest = ?", (int(now), name, digest))
            cursor.execute(f"UPDATE repository_manifests SET pushed = ? WHERE repository = {_OF} AND digest = ?", (int(now), name, digest))

    def expire_cached(self, before: float) -> int:
        """Drop what caches hold and nobody used since `before`, a Unix time in seconds; how many blobs and manifests."""
        of = f"repository IN (SELECT id FROM repositories WHERE instr(name, '{CACHE_MARK}'))"
        with self._db.transaction() as cursor:
            cursor.execute(f"DELETE FROM repository_blobs WHERE {of} AND linked < ?", (int(before),))
            gone = cursor.rowcount
            cursor.execute(f"DELETE FROM repository_manifests WHERE {of} AND pushed < ?", (int(before),))
            gone += cursor.rowcount
            lost = "NOT EXISTS (SELECT 1 FROM repository_manifests AS m WHERE m.repository = {0}.repository AND m.digest = {0}.{1})"
            cursor.execute(f"DELETE FROM repository_refs WHERE {of} AND " + lost.format("repository_refs", "manifest"))
            cursor.execute(f"DELETE FROM repository_tags WHERE {of} AND " + lost.format("repository_tags", "digest"))
            return gone


def _manifest(row: tuple[object, ...]) -> StoredManifest:
    digest, media_type, size, subject, artifact_type, annotations = row
    return StoredManifest(
        digest=cast(str, digest),
        media_type=cast(str, media_type),
        size=cast(int, size),
        subject=cast(str, subject),
        artifact_type=cast(str, artifact_type),
        annotations=msgspec.json.decode(cast(bytes, annotations), type=dict[str, str]) if annotations else None,
    )
