"""`config.json` of the docker CLI: where it is, what it says, and writing it so that it is whole at every moment.

Only what a command of ours uses is interpreted (`auths`, `credsStore`, `credHelpers`, `HttpHeaders`); every other member is kept as it is.
"""

import errno
import posix

from cli.client import Failure, getenv
from cli.codec import indent, loads, ordered_dumps
from cli.streams import write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

MOST = 16 << 20  # bytes; a larger file is no configuration


def folder(given: str = "") -> str:
    """`--config`, DOCKER_CONFIG, or `~/.docker`."""
    chosen = given or getenv("DOCKER_CONFIG")
    if chosen:
        return chosen
    home = getenv("HOME")
    if not home:
        from pwd import getpwuid

        home = getpwuid(posix.getuid()).pw_dir
    return home + "/.docker"


def read_file(path: str, most: int = MOST) -> "bytes | None":
    """The bytes of a file, None when there is none."""
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    try:
        data = b""
        while len(data) <= most and (piece := posix.read(descriptor, 1 << 20)):
            data += piece
    finally:
        posix.close(descriptor)
    if len(data) > most:
        raise Failure(f"read {path}: larger than {most} bytes")
    return data


def write_file(path: str, data: bytes, mode: int) -> None:
    """Replace a file at once and for good: another name in the same folder, written out, then renamed."""
    temporary = f"{path}.{posix.getpid()}.{posix.urandom(4).hex()}"
    descriptor = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, mode)
    try:
        try:
            write_all(descriptor, data)
            posix.fchmod(descriptor, mode)
            posix.fsync(descriptor)
        finally:
            posix.close(descriptor)
        posix.rename(temporary, path)
    except BaseException:
        posix.unlink(temporary)
        raise


def make_folder(path: str) -> None:
    """A folder and those above it, for the user alone."""
    if path and not _is_folder(path):
        make_folder(path.rpartition("/")[0])
        try:
            posix.mkdir(path, 0o700)
        except FileExistsError:
            pass


def _is_folder(path: str) -> bool:
    try:
        return (posix.stat(path).st_mode & 0o170000) == 0o040000
    except OSError:
        return False


def read_headers(given: str) -> "dict[str, Any]":
    """`HttpHeaders`: what the user wants sent with every request. For every command, so nothing is parsed unless it is there."""
    try:
        data = read_file(folder(given) + "/config.json")
        if data is None or b'"HttpHeaders"' not in data:
            return {}
        headers = loads(data).get("HttpHeaders")
    except (OSError, ValueError, AttributeError):
        return {}  # the commands that need the file say what is wrong with it
    return headers if isinstance(headers, dict) else {}


class ConfigFile:
    """The parsed file; `data` is its JSON object, empty when there is no file."""

    def __init__(self, given: str = ""):
        self.path = folder(given) + "/config.json"
        self.data: dict[str, Any] = {}
        self.broken = ""
        try:
            data = read_file(self.path)
            value = loads(data) if data is not None and data.strip() else {}
            if not isinstance(value, dict):
                raise ValueError("it is no JSON object")
            self.data = value
        except (ValueError, OSError) as error:
            self.broken = str(getattr(error, "strerror", None) or error)
            self.warn(self.broken)

    def warn(self, text: str) -> None:
        write_all(2, f"WARNING: Error parsing config file ({self.path}): {text}\n".encode())

    def mapping(self, member: str) -> "dict[str, Any]":
        """A member that is an object; an empty one where it is missing or something else."""
        value = self.data.get(member)
        return value if isinstance(value, dict) else {}

    def save(self) -> None:
        """Write it with mode 0600, through a symbolic link to where it points. Raises Failure."""
        if self.broken:
            raise Failure(f"write {self.path}: its present content cannot be read ({self.broken}); repair or remove it first")
        text = indent(ordered_dumps(self.data), "\t") + "\n"
        try:
            path = self._target()
            make_folder(path.rpartition("/")[0])
            write_file(path, text.encode("utf-8", "surrogateescape"), 0o600)
        except OSError as error:
            raise Failure(f"write {self.path}: {(error.strerror or '').lower()}") from None

    def _target(self) -> str:
        path = self.path
        for _ in range(40):  # as many links as the kernel follows (path_resolution(7))
            try:
                link = posix.readlink(path)
            except OSError:
                return path
            path = link if link[:1] == "/" else path.rpartition("/")[0] + "/" + link
        raise Failure(f"write {self.path}: too many levels of symbolic links")
