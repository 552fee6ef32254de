"""The files that host programs need to run elsewhere: themselves, their libraries, their loaders, and every link on the way.

Finds libraries as ld.so(8) does: DT_RPATH of the object and those that loaded it, DT_RUNPATH of the object, the folders of ld.so.conf, the
default ones; musl's folders for programs of musl. What a program opens by itself at run time (plug-ins, data, dlopen) cannot be seen.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import deque
from collections.abc import Iterable

from engine.errors import InvalidParameter, NotFound
from engine.linux import elf
from engine.linux.elf import Elf, NotElf

_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# ld.so(8): the trusted folders; 64-bit distributions without multiarch use the lib64 ones.
_DEFAULTS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
# musl, ldso/dynlink.c: when /etc/ld-musl-ARCH.path is absent.
_MUSL = ("/lib", "/usr/local/lib", "/usr/lib")
_CONF = "/etc/ld.so.conf"
_LINKS_MAX = 40
_INCLUDES_MAX = 8


class Closure:
    """A growing set of host paths. `paths` holds every file, folder and link to copy, absolute; `links` are extra links to make."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.links: dict[str, str] = {}
        self.architecture = ""
        self._seen: set[str] = set()
        self._conf: tuple[str, ...] | None = None
        self._outside: dict[str, str] = {}
        self._libc = ""

    def program(self, name: str) -> str:
        """Add a program, by path or by name in the usual folders, and all it needs; returns its path. Raises NotFound, InvalidParameter."""
        path = find_program(name)
        self._add(path)
        self._finish()
        return path

    def file(self, path: str) -> None:
        """Add a file, or a folder with all that is in it; programs and libraries bring what they need. Raises NotFound."""
        if not os.path.isabs(path):
            raise InvalidParameter(f"adding {path!r}: not an absolute path")
        real = self.path(path)
        if not os.path.isdir(real):
            self._add(path)
            self._finish()
            return
        for folder, folders, files in os.walk(real):
            self.paths.update(f"{folder}/{name}" for name in (*folders, *files))

    def path(self, path: str) -> str:
        """Add one path with the folders and links that lead to it; returns where it really is. Raises NotFound."""
        pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
        place: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                place = place[:-1]
                continue
            here = "/" + "/".join((*place, part))
            try:
                info = os.lstat(here)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound(f"{path} is not on this host")
            self.paths.add(here)
            if not stat.S_ISLNK(info.st_mode):
                place.append(part)
                continue
            links += 1
            if links > _LINKS_MAX:
                raise InvalidParameter(f"{path}: too many symbolic links")
            target = os.readlink(here)
            place = [] if target.startswith("/") else place
            pending += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
        return "/" + "/".join(place)

    # -- what a file needs

    def _add(self, path: str) -> None:
        """Breadth first, as the loader does; an entry carries the DT_RPATHs of those that loaded it."""
        queue: deque[tuple[str, tuple[str, ...]]] = deque([(path, ())])
        while queue:
            path, inherited = queue.popleft()
            real = self.path(path)
            if real in self._seen:
                continue
            self._seen.add(real)
            with open(real, "rb") as file:
                head = file.read(256)
                line = elf.interpreter_line(head)
                if line:
                    queue.extend((program, ()) for program in _script(line))
                    continue
                try:
                    found = elf.read(file)
                except NotElf:
                    continue
            self.architecture = self.architecture or found.architecture
            if found.interpreter:
                queue.append((found.interpreter, ()))
            queue.extend(self._libraries(real, found, inherited))

    def _libraries(self, real: str, found: Elf, inherited: tuple[str, ...]) -> Iterable[tuple[str, tuple[str, ...]]]:
        origin = os.path.dirname(real)
        rpath = tuple(_expand(part, origin, found) for part in found.rpath) + inherited if not found.runpath else ()
        runpath = tuple(_expand(part, origin, found) for part in found.runpath)
        for name in found.needed:
            yield self._library(name, found, (*rpath, *runpath), real), rpath

    def _library(self, name: str, wanted: Elf, own: tuple[str, ...], needer: str) -> str:
        if "/" in name:
            return name
        for folder in own:
            if _fits(f"{folder}/{name}", wanted):
                return f"{folder}/{name}"
        for folder in (*self._configured(), *_DEFAULTS, *_MUSL):
            candidate = f"{folder}/{name}"
            if _fits(candidate, wanted):
                self._outside.setdefault(name, candidate)
                if name.startswith(("libc.so", "libc.musl")):
                    self._libc = os.path.dirname(candidate)
                return candidate
        raise NotFound(f"{needer} needs the library {name}, which is not on this host")

    def _configured(self) -> tuple[str, ...]:
        if self._conf is None:
            self._conf = tuple(_configuration(_CONF, 0)) + tuple(_musl_paths())
        return self._conf

    def _finish(self) -> None:
        """Libraries found by the host's ld.so.cache alone get a link beside libc, a folder that the loader searches without a cache."""
        if not self._libc:
            return
        for name, path in self._outside.items():
            folder = os.path.dirname(path)
            if folder != self._libc and folder not in _DEFAULTS and not os.path.lexists(f"{self._libc}/{name}"):
                self.links[f"{os.path.realpath(self._libc)}/{name}"] = path


def find_program(name: str) -> str:
    """An absolute path of a program. Raises NotFound, InvalidParameter."""
    if "/" in name:
        if not os.path.isabs(name):
            raise InvalidParameter(f"program {name!r}: neither a name nor an absolute path")
        if not os.path.isfile(name):
            raise NotFound(f"program {name} is not on this host")
        return os.path.normpath(name)
    for folder in _PATH:
        if os.path.isfile(f"{folder}/{name}") and os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    raise NotFound(f"program {name} is not on this host", hint=f"looked in {', '.join(_PATH)}")


def _script(line: tuple[str, ...]) -> tuple[str, ...]:
    """The interpreter of a script; for `env NAME` also what env will start."""
    if os.path.basename(line[0]) != "env" or len(line) < 2:
        return line[:1]
    words = [word for word in line[1].split() if not word.startswith("-") and "=" not in word]
    return (line[0], find_program(words[0])) if words else line[:1]


def _expand(path: str, origin: str, found: Elf) -> str:
    """ld.so(8), "Dynamic string tokens"; $PLATFORM is left to fail, nobody uses it in images."""
    lib = "lib64" if found.bits == 64 else "lib"
    for token, value in (("ORIGIN", origin), ("LIB", lib)):
        path = path.replace("${" + token + "}", value).replace("$" + token, value)
    return os.path.normpath(path)


def _fits(path: str, wanted: Elf) -> bool:
    """Whether there is a library of the right architecture and word size: ld.so goes on past others, and past linker scripts."""
    try:
        with open(path, "rb") as file:
            found = elf.read(file)
    except (OSError, NotElf):
        return False
    return (found.architecture, found.bits) == (wanted.architecture, wanted.bits)


def _configuration(path: str, depth: int) -> Iterable[str]:
    """Folders of ld.so.conf, includes followed."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        text = line.partition("#")[0].strip()
        word, _, rest = text.partition(" ")
        if word == "include" and depth < _INCLUDES_MAX:
            for pattern in rest.split():
                for name in sorted(glob.glob(os.path.join(os.path.dirname(path), pattern))):
                    yield from _configuration(name, depth + 1)
        elif text.startswith("/"):
            yield text.rstrip("/")


def _musl_paths() -> Iterable[str]:
    for name in sorted(glob.glob("/etc/ld-musl-*.path")):
        with open(name, encoding="utf-8", errors="surrogateescape") as file:
            yield from (part for part in file.read().replace("\n", ":").split(":") if part.startswith("/"))
