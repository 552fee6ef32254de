"""The members of an image archive while it is read: small ones in memory, large ones in files, each with its digest.

Owns temporary files in the content store's ingest folder and removes what was not taken. An archive is read once, front to back, and says
only at its end which of its members are layers; so a plain tar is compressed on its way in, which is what it will be stored as.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import posixpath
from collections.abc import Callable
from typing import BinaryIO

from engine.errors import InvalidParameter, NotFound
from engine.spec import image as spec
from engine.spec.digest import sha256
from engine.store.content import Content
from engine.wire import compression, tar
from engine.wire.compression import Source

_SMALL = 256 << 10
# All small members together: manifests, configurations and legacy `json` files of the largest images are some hundred kB.
_MEMORY = 32 << 20
_MEMBERS_MAX = 100_000
_DOCUMENT_MAX = 8 << 20
_MEDIA = {"": spec.MEDIA_LAYER, "gzip": spec.MEDIA_LAYER + "+gzip", "zstd": spec.MEDIA_LAYER + "+zstd"}


class Staged:
    """One member. `digest` and `size` are of the member as it was; `blob` and `blob_size` of what lies in `path` or `data`.

    `compression` is that of the blob. They differ when a plain tar was compressed on its way in.
    """

    def __init__(self) -> None:
        self.digest = ""
        self.size = 0
        self.blob = ""
        self.blob_size = 0
        self.compression = ""
        self.path = ""
        self.data = b""
        self.kept = False

    @property
    def media_type(self) -> str:
        """The media type of the blob as a layer."""
        return _MEDIA[self.compression]

    def open(self) -> BinaryIO:
        """The blob's bytes."""
        return open(self.path, "rb", buffering=0) if self.path else io.BytesIO(self.data)

    def reopen(self, content: Content) -> Callable[[], BinaryIO]:
        """How to open it again later, also after it was stored."""
        return lambda: content.open(self.blob) if content.exists(self.blob) else self.open()


class Staging:
    """The members of one archive by name. Close it whatever happens."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._members: dict[str, Staged] = {}
        self._all: list[Staged] = []
        self._aliases: dict[str, str] = {}
        self._memory = 0

    def add(self, entry: tar.Entry, reader: tar.TarReader) -> Staged | None:
        """Take the reader's current member. Raises InvalidParameter when there are too many."""
        name = posixpath.normpath(entry.name.decode("utf-8", "surrogateescape")).lstrip("/")
        if len(self._members) + len(self._aliases) >= _MEMBERS_MAX:
            raise InvalidParameter(f"loading images: the archive has more than {_MEMBERS_MAX} members")
        if entry.type in (tar.SYMLINK, tar.LINK):
            target = entry.linkname.decode("utf-8", "surrogateescape")
            base = posixpath.dirname(name) if entry.type == tar.SYMLINK else ""
            self._aliases[name] = posixpath.normpath(posixpath.join(base, target)).lstrip("/")
            return None
        if entry.type != tar.REGULAR:
            return None
        if entry.sparse is not None:
            raise InvalidParameter(f"loading images: {tar.show(entry.name)} is stored as a sparse file")
        pieces = iter(reader.data())
        staged = self._members[name] = self.take(lambda: bytes(next(pieces, b"")), entry.stored)
        return staged

    def take(self, source: Source, size: int) -> Staged:
        """Stage what `source` gives, `size` bytes when known (else -1)."""
        if 0 <= size <= _SMALL and self._memory + size <= _MEMORY:
            self._memory += size
            return _in_memory(b"".join(iter(source, b"")))
        head, source = compression.peek(source, tar.BLOCK)
        staged = self._new_file()
        with open(staged.path, "xb", buffering=0) as file:
            _store(file, head, source, staged)
        return staged

    def _new_file(self) -> Staged:
        staged = Staged()
        staged.path = self._content.temporary()
        self._all.append(staged)
        return staged

    def names(self) -> list[str]:
        """Names of all members that are files."""
        return list(self._members)

    def find(self, name: str) -> Staged | None:
        """A member by name, through the archive's own links."""
        name = posixpath.normpath(name).lstrip("/")
        for _ in range(8):
            if name not in self._aliases:
                break
            name = self._aliases[name]
        return self._members.get(name)

    def get(self, name: str) -> Staged:
        """A member by name. Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"loading images: {name!r} is not in the archive")
        return found

    def document(self, name: str) -> bytes:
        """A small member's bytes. Raises NotFound, InvalidParameter."""
        staged = self.get(name)
        if staged.size > _DOCUMENT_MAX or staged.digest != staged.blob:
            raise InvalidParameter(f"loading images: {name!r} is no document")
        with staged.open() as file:
            return file.read()

    def blob(self, digest: str) -> Staged | None:
        """A member by digest: of an OCI layout, with the name that its digest demands. Raises InvalidParameter when it is another one."""
        algorithm, _, encoded = digest.partition(":")
        found = self.find(f"blobs/{algorithm}/{encoded}")
        if found is not None and algorithm == "sha256" and found.digest != digest:
            raise InvalidParameter(f"loading images: blob {digest} has the content of {found.digest}")
        return found

    def packed(self, staged: Staged) -> Staged:
        """The same layer as it shall be stored when its form is ours to choose: gzip, unless it is gzip or zstd already."""
        if staged.compression in ("gzip", "zstd"):
            return staged
        with staged.open() as file:
            return self._again(lambda: file.read(1 << 20), pack=True)

    def plain(self, staged: Staged) -> Staged:
        """The member as it was in the archive."""
        if staged.digest == staged.blob:
            return staged
        with staged.open() as file:
            _, source = compression.decompressed(lambda: file.read(1 << 20))
            return self._again(source, pack=False)

    def _again(self, source: Source, *, pack: bool) -> Staged:
        staged = self._new_file()
        with open(staged.path, "xb", buffering=0) as file:
            _, source = compression.decompressed(source) if pack else ("", source)
            (_store_packed if pack else _store_plain)(file, source, staged)
        return staged

    def stored(self, layer: spec.Descriptor) -> Staged:
        """A layer that is in the content store already; unpacking it checks its content. Raises NotFound."""
        if not self._content.exists(layer.digest, layer.size):
            raise NotFound(f"blob {layer.digest} is gone")
        staged = Staged()
        staged.path, staged.kept = self._content.path(layer.digest), True
        staged.digest = staged.blob = layer.digest
        staged.size = staged.blob_size = layer.size
        return staged

    def keep(self, staged: Staged) -> None:
        """Move a member into the content store, durably."""
        if self._content.exists(staged.blob, staged.blob_size):
            return
        if not staged.path:
            self._content.put(staged.data)
            return
        self._content.adopt(staged.path, staged.blob)
        staged.path = self._content.path(staged.blob)
        staged.kept = True

    def close(self) -> None:
        """Remove everything that was not kept."""
        for staged in self._all:
            if not staged.kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(staged.path)


def _in_memory(data: bytes) -> Staged:
    staged = Staged()
    staged.data = data
    staged.digest = staged.blob = sha256(data)
    staged.size = staged.blob_size = len(data)
    staged.compression = compression.detect(data[:6])
    return staged


def _store(file: io.RawIOBase | BinaryIO, head: bytes, source: Source, staged: Staged) -> None:
    if head[257:262] == b"ustar":
        _store_packed(file, source, staged)
    else:
        staged.compression = compression.detect(head[:6])
        _store_plain(file, source, staged)


class _Sink:
    """Writes and hashes."""

    def __init__(self, file: io.RawIOBase | BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _store_plain(file: io.RawIOBase | BinaryIO, source: Source, staged: Staged) -> None:
    sink = _Sink(file)
    while piece := source():
        sink.write(piece)
    staged.digest = staged.blob = sink.digest
    staged.size = staged.blob_size = sink.size


def _store_packed(file: io.RawIOBase | BinaryIO, source: Source, staged: Staged) -> None:
    """gzip rather than zstd: every registry and engine takes it, and igzip is as fast as zstd at the lowest level."""
    sink = _Sink(file)
    packer = compression.GzipWriter(sink.write)
    plain = hashlib.sha256()
    while piece := source():
        plain.update(piece)
        staged.size += len(piece)
        packer.write(piece)
    packer.finish()
    staged.digest = "sha256:" + plain.hexdigest()
    staged.blob, staged.blob_size, staged.compression = sink.digest, sink.size, "gzip"
