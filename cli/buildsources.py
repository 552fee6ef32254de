"""Where the files of a build come from: a folder, standard input, an address, named folders, and the Dockerfile wherever it is.

Follows buildx: a Dockerfile that this client can read is sent as a context of its own, so that the daemon begins with it while the folder
is still walked, and so that .dockerignore may name it. `cli/buildcontext.py` walks and sends.
"""

import posix

from cli import buildflags
from cli.buildflags import Plan, refuse
from cli.client import Failure

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cli.buildcontext import Manifest

DOCKERFILE = "Dockerfile"
SENT = "dockerfile"
"""The name of the context that a Dockerfile of its own comes in."""
LARGEST = 16 << 20  # bytes of a Dockerfile, as the daemon has it
_MOST_IGNORED = 1 << 20  # bytes of a .dockerignore, as `builder.ignore` has it


class Sources:
    """Where a build's files come from. `text` is the Dockerfile, None where only the daemon sees it; `root` the folder of the main
    context, "" for none; `archive` what was read of one on stdin."""

    def __init__(self, plan: Plan, place: str):
        self.plan = plan
        self.text: bytes | None = None
        self.name = DOCKERFILE
        self.root = ""
        self.archive: bytes | None = None
        self.ignored: dict[str, bytes] = {}
        if place == "-":
            self._stdin()
        elif buildflags.is_folder(place):
            self.root = place
            self._local()
        elif buildflags.is_remote(place):
            plan.options["remote"] = place
            self._remote()
        else:
            raise refuse(f'unable to prepare context: path "{place}" not found')
        if self.text is not None:
            plan.options |= {"dockerfile": self.name, "dockerfileSent": True}
        if any(one["type"] == "local" for key in ("cacheFrom", "cacheTo") for one in plan.options.get(key, ())):
            from cli.buildcache import prepare

            prepare(plan)

    def _stdin(self) -> None:
        from cli.buildcontext import peek

        if self.plan.file == "-":
            raise refuse("invalid argument: can't use stdin for both build context and dockerfile")
        archive, begun = peek(0)
        if archive:
            self.archive = begun
            self.plan.options["dockerfile"] = self.plan.file or DOCKERFILE
        elif self.plan.file:
            raise refuse("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
        else:
            self.text = begun + read_all(0, "stdin")

    def _remote(self) -> None:
        if self.plan.file == "-":
            self.text = read_all(0, "stdin")
        elif self.plan.file.startswith("/"):
            self._read(self.plan.file)
        else:
            self.plan.options["dockerfile"] = self.plan.file or DOCKERFILE

    def _local(self) -> None:
        file = self.plan.file
        if file == "-":
            self.text = read_all(0, "stdin")
        elif file.startswith(("http://", "https://")):
            raise Failure(f"not implemented: --file {file}: a Dockerfile from an address with a context that is a folder")
        elif file:
            self._read(file)
        else:
            self._read(f"{self.root.rstrip('/') or ''}/{DOCKERFILE}", True)

    def _read(self, path: str, default: bool = False) -> None:
        folder, slash, self.name = path.rpartition("/")
        try:
            fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError as error:
            lower = folder + slash + DOCKERFILE.lower()
            if default and isinstance(error, FileNotFoundError) and posix.access(lower, posix.F_OK):
                self._read(lower)
                return
            raise refuse(f"failed to solve: failed to read dockerfile: open {self.name}: {(error.strerror or '').lower()}") from None
        try:
            self.text = read_all(fd, path)
        except IsADirectoryError:
            raise refuse(f"failed to solve: failed to read dockerfile: read {self.name}: is a directory") from None
        finally:
            posix.close(fd)
        self._ignore_file(folder + slash + self.name + ".dockerignore", self.name + ".dockerignore")

    def _ignore_file(self, path: str, name: str) -> None:
        from cli.configfile import read_file

        try:
            content = read_file(path, _MOST_IGNORED)
        except OSError as error:
            raise refuse(f"failed to read {path}: {(error.strerror or '').lower()}") from None
        if content is not None:
            self.ignored[name] = content

    def manifests(self) -> "Iterator[Manifest]":
        """The contexts to send, the Dockerfile's first, in the order of `names`; each is made when it is asked for. Raises Failure."""
        from cli import buildcontext

        patterns = None
        if self.root:
            if not self.ignored:
                self._ignore_file(f"{self.root}/.dockerignore", ".dockerignore")
            if self.ignored:
                patterns = self._patterns(next(iter(self.ignored.values())))
        if self.text is not None:
            yield buildcontext.documents(SENT, {self.name: self.text} | self.ignored)
        if self.root:
            yield buildcontext.walk("context", self.root, patterns)
        elif self.archive is not None:
            yield buildcontext.archive("context")
        elif "remote" not in self.plan.options:
            yield buildcontext.documents("context", {})
        for name, path in self.plan.named.items():
            excluded = self.plan.excluded.get(name)
            yield buildcontext.walk(name, path, self._named_patterns(path) if excluded is None else self._patterns(excluded))

    def names(self) -> "list[str]":
        main = [] if "remote" in self.plan.options else ["context"]
        return [*([SENT] if self.text is not None else []), *main, *self.plan.named]

    def _named_patterns(self, path: str) -> "Any":
        """A named context has the .dockerignore at its top."""
        from cli.configfile import read_file

        try:
            content = read_file(f"{path}/.dockerignore", _MOST_IGNORED)
        except OSError as error:
            raise refuse(f"failed to read {path}/.dockerignore: {(error.strerror or '').lower()}") from None
        return None if content is None else self._patterns(content)

    def _patterns(self, content: bytes) -> "Any":
        from builder.language.ignore import Patterns, read
        from engine.errors import InvalidParameter

        try:
            return Patterns(read(content))
        except InvalidParameter as error:
            raise refuse(f"failed to solve: {error}") from None


def read_all(fd: int, name: str) -> bytes:
    """A stream to its end. Raises Failure when it is too long for a Dockerfile, OSError."""
    data = bytearray()
    while piece := posix.read(fd, 1 << 18):
        data += piece
        if len(data) > LARGEST:
            raise refuse(f"failed to solve: failed to read dockerfile: {name} has more than {LARGEST} bytes")
    return bytes(data)
