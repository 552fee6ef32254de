"""ELF files and scripts: what they need, and why the kernel would not run them. Reads files, decides nothing, runs nothing.

Files of images are hostile: they are opened inside their image component by component, and what the parser makes of their content is
only shown. pyelftools is imported when an ELF file is really read; that is never on the path of a start that works.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Sequence
from typing import BinaryIO

import msgspec

_MAGIC = b"\x7fELF"
_SCRIPT = b"#!"
_LINKS_MAX = 40  # the kernel's
_SCRIPTS_MAX = 4  # how deep the kernel follows interpreters that are scripts themselves
_HEAD = 256  # BINPRM_BUF_SIZE: what the kernel looks at of a script's first line
_SEARCH = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")

# e_machine -> Go's name of the architecture, for images; the second is for the other byte order or the 64-bit kind.
_MACHINES = {
    "EM_X86_64": "amd64", "EM_386": "386", "EM_AARCH64": "arm64", "EM_ARM": "arm", "EM_RISCV": "riscv64", "EM_S390": "s390x",
    "EM_LOONGARCH": "loong64", "EM_PPC64": "ppc64", "EM_PPC": "ppc", "EM_MIPS": "mips",
}  # fmt: skip
_HOST = {
    "x86_64": ("amd64", "386"), "i686": ("386",), "aarch64": ("arm64", "arm"), "armv7l": ("arm",), "armv6l": ("arm",), "armv8l": ("arm",),
    "riscv64": ("riscv64",), "s390x": ("s390x",), "ppc64le": ("ppc64le",), "loongarch64": ("loong64",),
}  # fmt: skip


class Elf(msgspec.Struct, frozen=True):
    """What the loader looks at. `architecture` is Go's name; `interpreter` "" for a static program or a library."""

    architecture: str
    bits: int
    interpreter: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


class NotElf(ValueError):
    """The file is no ELF file, or a damaged one."""


def read(file: BinaryIO) -> Elf:
    """Parse an open file. Raises NotElf, OSError."""
    file.seek(0)
    if file.read(4) != _MAGIC:
        raise NotElf("no ELF file")
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    # The parser trusts what it reads, so a damaged file ends in any of these.
    damaged = (ELFError, ConstructError, ValueError, LookupError, AssertionError, AttributeError, TypeError, OverflowError, struct.error)
    try:
        return _parse(ELFFile(file))
    except damaged as error:
        raise NotElf(f"a damaged ELF file: {error}") from error


def _parse(elf: object) -> Elf:
    interpreter = ""
    needed: list[str] = []
    paths: dict[str, tuple[str, ...]] = {}
    for segment in elf.iter_segments():  # type: ignore[attr-defined]
        kind = segment.header.p_type
        if kind == "PT_INTERP":
            interpreter = segment.get_interp_name()
        elif kind == "PT_DYNAMIC":
            for tag in segment.iter_tags():
                if tag.entry.d_tag == "DT_NEEDED":
                    needed.append(tag.needed)
                elif tag.entry.d_tag == "DT_RPATH":
                    paths["rpath"] = tuple(filter(None, tag.rpath.split(":")))
                elif tag.entry.d_tag == "DT_RUNPATH":
                    paths["runpath"] = tuple(filter(None, tag.runpath.split(":")))
    machine = elf.header.e_machine  # type: ignore[attr-defined]
    name = _MACHINES.get(machine, str(machine).removeprefix("EM_").lower())
    if elf.little_endian and name in ("ppc64", "mips"):  # type: ignore[attr-defined]
        name += "le"
    return Elf(name, elf.elfclass, interpreter, tuple(needed), **paths)  # type: ignore[attr-defined]


def interpreter_line(head: bytes) -> tuple[str, ...]:
    """The interpreter of a script, and its argument if there is one; () when the file does not begin with `#!`."""
    if not head.startswith(_SCRIPT):
        return ()
    line = head[2:_HEAD].partition(b"\n")[0].strip(b" \t")
    program, _, argument = line.replace(b"\t", b" ").partition(b" ")
    return tuple(os.fsdecode(part) for part in (program, argument.strip()) if part)


# -- why it does not run


def explain_exec(roots: int | Sequence[int], path: str) -> str | None:
    """Why executing `path` in an image fails, in words that end a sentence; None when nothing is wrong that can be seen from here.

    `roots` is the descriptor of a root file system, or those of its layers, topmost first. A name without a slash is looked for in the
    usual folders. Only for the failure path: it imports the parser.
    """
    image = _Image((roots,) if isinstance(roots, int) else tuple(roots))
    places = (path,) if "/" in path else tuple(f"{folder}/{path}" for folder in _SEARCH)
    for place in places:
        fd = image.open(place)
        if fd is not None:
            try:
                return _explain(image, fd, place, 0)
            finally:
                os.close(fd)
    return None


def _explain(image: _Image, fd: int, path: str, depth: int) -> str | None:
    info = os.fstat(fd)
    if stat.S_ISDIR(info.st_mode):
        return f"{path} is a folder"
    if not stat.S_ISREG(info.st_mode):
        return f"{path} is no regular file"
    if not info.st_mode & 0o111:
        return f"{path} is not executable, its mode is {stat.S_IMODE(info.st_mode):04o}"
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        head = file.read(_HEAD)
        if not head:
            return f"{path} is empty"
        if head.startswith(_SCRIPT):
            return _explain_script(image, head, path, depth)
        if not head.startswith(_MAGIC):
            return f"{path} is neither an ELF program nor a script with a #! line"
        return _explain_elf(image, file, path)


def _explain_script(image: _Image, head: bytes, path: str, depth: int) -> str | None:
    line = interpreter_line(head)
    if not line:
        return f"the #! line of {path} names no interpreter"
    if line[-1].endswith("\r"):
        return f"the #! line of {path} ends with a carriage return: the file has Windows line endings"
    fd = image.open(line[0])
    if fd is None:
        return f"the interpreter {line[0]} of the script {path} is not in the image"
    try:
        if depth >= _SCRIPTS_MAX:
            return f"the interpreter of {path} is a script itself, and so on"
        return _explain(image, fd, line[0], depth + 1)
    finally:
        os.close(fd)


def _explain_elf(image: _Image, file: BinaryIO, path: str) -> str | None:
    try:
        elf = read(file)
    except NotElf as error:
        return f"{path} is {error}"
    machine = os.uname().machine
    runs = _HOST.get(machine, (machine,))
    if elf.architecture not in runs:
        return f"{path} is for {elf.architecture}, this host is {runs[0]}"
    if not elf.interpreter:
        return None
    fd = image.open(elf.interpreter)
    if fd is None:
        return f"the interpreter {elf.interpreter} of {path} is not in the image"
    os.close(fd)
    return None


class _Image:
    """A root file system seen through its layers, topmost first; links are followed inside it, never by the kernel."""

    def __init__(self, roots: tuple[int, ...]) -> None:
        self._roots = roots

    def open(self, path: str) -> int | None:
        """An O_PATH descriptor of what `path` names at its end, or None when it is not there."""
        pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
        place: list[str] = []
        links = 0
        fd: int | None = None
        while pending:
            part = pending.pop()
            if part == "..":
                place = place[:-1]
                continue
            fd = self._look("/".join((*place, part)))
            if fd is None:
                return None
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode):
                target = os.readlink("", dir_fd=fd)
                os.close(fd)
                links += 1
                if links > _LINKS_MAX:
                    return None
                place = [] if target.startswith("/") else place
                pending += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
            elif not pending:
                return fd
            else:
                os.close(fd)
                place.append(part)
        return None

    def _look(self, path: str) -> int | None:
        """One true path, without links in it, in the topmost layer that has it or hides it."""
        from engine import _core

        for root in self._roots:
            try:
                # RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
                fd = _core.openat2(root, path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, 0x04 | 0x08 | 0x02)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                return None
            info = os.fstat(fd)
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                os.close(fd)
                return None
            return fd
        return None
