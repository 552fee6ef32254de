"""The metadata database: SQLite in WAL mode. Owns the connections, the schema and its migrations, and when data is durable.

A transaction here is a plain write (about 50 µs) and may run on the event loop's thread. What must survive a power cut calls
`sync` (in a worker thread) before it is acknowledged; one sync serves every transaction that was committed before it began.
Nothing else in the program opens this file. Facts used: sqlite.org/wal.html, pragma.html "synchronous".
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator

from engine.store.reserve import Reserve

# What a failed read or write raises: no space, a damaged page, a lock. For those who handle it without knowing SQLite.
DatabaseError = sqlite3.Error

# A writer waits this long, in seconds, for the checkpointer's short write transaction.
_BUSY_SECONDS = 5.0

# Schema changes in order; PRAGMA user_version is the number of those applied. Only ever append.
_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE containers (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE snapshots (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, committed INTEGER NOT NULL, parent TEXT NOT NULL,
        size INTEGER NOT NULL DEFAULT 0, inodes INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE images (id TEXT PRIMARY KEY, record BLOB NOT NULL, config BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE image_names (name TEXT PRIMARY KEY, image TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE checkpoint (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL);
    INSERT INTO checkpoint VALUES (1, 0);
    """,
    # What a name stands for in a registry (an index or a manifest; "" is the image's manifest), indexes as they came, when images
    # were used last, and what work under way needs beyond a restart.
    """
    ALTER TABLE image_names ADD COLUMN target TEXT NOT NULL DEFAULT '';
    CREATE TABLE image_indexes (
        digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, raw BLOB NOT NULL, held TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID;
    CREATE TABLE image_use (image TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE leases (
        holder TEXT NOT NULL, resource TEXT NOT NULL, expires INTEGER NOT NULL, PRIMARY KEY (holder, resource)
    ) WITHOUT ROWID;
    """,
    # The registry server's repositories. Tags sort by `folded`, which is the tag in lower case.
    """
    CREATE TABLE repositories (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE repository_blobs (
        repository INTEGER NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, linked INTEGER NOT NULL, PRIMARY KEY (repository, digest)
    ) WITHOUT ROWID;
    CREATE INDEX repository_blobs_by_digest ON repository_blobs (digest);
    CREATE TABLE repository_manifests (
        repository INTEGER NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL, subject TEXT NOT NULL,
        artifact_type TEXT NOT NULL, annotations BLOB, pushed INTEGER NOT NULL, PRIMARY KEY (repository, digest)
    ) WITHOUT ROWID;
    CREATE INDEX repository_manifests_by_digest ON repository_manifests (digest);
    CREATE INDEX repository_manifests_by_subject ON repository_manifests (repository, subject, digest) WHERE subject <> '';
    CREATE TABLE repository_refs (
        repository INTEGER NOT NULL, manifest TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (repository, manifest, digest)
    ) WITHOUT ROWID;
    CREATE INDEX repository_refs_by_digest ON repository_refs (repository, digest);
    CREATE TABLE repository_tags (
        repository INTEGER NOT NULL, folded TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, tagged INTEGER NOT NULL,
        PRIMARY KEY (repository, folded, tag)
    ) WITHOUT ROWID;
    CREATE INDEX repository_tags_by_digest ON repository_tags (repository, digest);
    CREATE TABLE repository_uploads (
        id TEXT PRIMARY KEY, repository TEXT NOT NULL, algorithm TEXT NOT NULL, started INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    # Of a committed snapshot: when that was (Unix seconds), the blob it was unpacked from, and what is wrong with it ("" for nothing).
    """
    ALTER TABLE snapshots ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE snapshots ADD COLUMN blob TEXT NOT NULL DEFAULT '';
    ALTER TABLE snapshots ADD COLUMN damage TEXT NOT NULL DEFAULT '';
    """,
    # What msgspec encodes of each network.
    "CREATE TABLE networks (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;",
    # Volumes by name.
    """
    CREATE TABLE volumes (name TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    """,
    # The build cache: of a snapshot the boot in which it was committed without a sync, and whether the cache keeps it; what it is the
    # result of (times in Unix nanoseconds); and under which keys it is found.
    """
    ALTER TABLE snapshots ADD COLUMN boot TEXT NOT NULL DEFAULT '';
    ALTER TABLE snapshots ADD COLUMN cached INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE build_results (
        snapshot INTEGER PRIMARY KEY, id TEXT NOT NULL, description TEXT NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL,
        uses INTEGER NOT NULL
    );
    CREATE TABLE build_keys (key TEXT PRIMARY KEY, snapshot INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX build_keys_by_snapshot ON build_keys (snapshot);
    """,
    # Of a committed snapshot that was packed as a layer: the digest of the archive, and its bytes.
    """
    ALTER TABLE snapshots ADD COLUMN diff_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE snapshots ADD COLUMN packed INTEGER NOT NULL DEFAULT 0;
    """,
)


class Database:
    """The metadata of one data root.

    `set_aside` is "" or the new path of a damaged file that was replaced by an empty database at opening, `fresh` says that there was none;
    the stores above then refill what they can.

    `commit_sequence` counts committed transactions, `synced_sequence` those known to be durable.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.set_aside = ""
        self.set_aside_reason = ""
        self.fresh = not _size(self.path)
        self._reserve = Reserve(os.path.dirname(self.path))
        self.commit_sequence = 0
        self.synced_sequence = 0
        self._reserve.spend_if_needed()
        try:
            self._connection = _open(self.path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise
            self.set_aside_reason = str(error)
            self.set_aside = _set_aside(self.path)
            self._connection = _open(self.path)
        self._wal = os.open(self.path + "-wal", os.O_RDWR | os.O_CLOEXEC)
        _sync_folder(os.path.dirname(self.path))
        self._reserve.keep()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """A write transaction: committed at the end, rolled back on any exception. Not durable until `sync`.

        Event-loop thread only, and without an await inside. Raises sqlite3.Error.
        """
        self._reserve.spend_if_needed()
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            yield cursor
            cursor.execute("COMMIT")
            self.commit_sequence += 1
        except BaseException:
            if self._connection.in_transaction:  # a full disk makes SQLite roll back by itself, at a statement or at COMMIT
                cursor.execute("ROLLBACK")
            raise
        finally:
            cursor.close()

    def query(self, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """Rows of a SELECT. Event-loop thread only."""
        return self._connection.execute(statement, parameters).fetchall()

    def sync(self) -> None:
        """Make every transaction committed so far durable. Blocks on the disk; any thread. Raises OSError."""
        sequence = self.commit_sequence
        if sequence <= self.synced_sequence:
            return
        os.fdatasync(self._wal)
        self.synced_sequence = max(self.synced_sequence, sequence)

    def wal_size(self) -> int:
        """Bytes in the write-ahead log: what tells when a checkpoint is worth it."""
        return os.fstat(self._wal).st_size

    def checkpoint(self) -> bool:
        """Move the log into the database with a connection of its own. Blocks; any thread but the event loop's.

        True when all of it was moved. The small write at the end makes SQLite start the log over, with its fsync, here and not
        in the next transaction of the event loop.
        """
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA wal_autocheckpoint=0")
            busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            complete = not busy and frames == moved
            if complete:
                connection.execute("UPDATE checkpoint SET count = count + 1")
            self._reserve.keep()
            return complete
        finally:
            connection.close()

    def verify(self) -> list[str]:
        """What SQLite finds wrong with the file; [] for nothing. Reads all of it on a connection of its own: any thread."""
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA query_only=1")
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
        except sqlite3.DatabaseError as error:
            found = [str(error)]
        finally:
            connection.close()
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Durable, checkpointed and closed."""
        self.sync()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()
        os.close(self._wal)


def is_full(error: sqlite3.Error) -> bool:
    """Whether there is no room on the disk: for rows, or for the index of the log that SQLite maps into memory."""
    return getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _open(path: str) -> sqlite3.Connection:
    # Environments of containers hold secrets; SQLite gives its -wal and -shm the same mode.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        existed = os.fstat(descriptor).st_size > 0
    finally:
        os.close(descriptor)
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        if existed:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        _migrate(connection)
        # The first write transaction makes the -wal file, whose descriptor `sync` needs.
        connection.execute("UPDATE checkpoint SET count = count + 1")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(_MIGRATIONS):
        raise RuntimeError(
            f"the database has schema version {version}, this program knows {len(_MIGRATIONS)}: it was written by a newer version; "
            "start that one, or use another --data-root"
        )
    for number in range(version, len(_MIGRATIONS)):
        connection.executescript(f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT;")


def _is_damage(error: sqlite3.OperationalError) -> bool:
    """Operational errors are mostly the host's (no space, no right, locked); these two are the file's."""
    return getattr(error, "sqlite_errorname", "") in ("SQLITE_ERROR", "SQLITE_CORRUPT", "SQLITE_NOTADB")


def _set_aside(path: str) -> str:
    target = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    for suffix in ("", "-wal", "-shm"):
        try:
            os.rename(path + suffix, target + suffix)
        except FileNotFoundError:
            continue
    return target


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
