"""Mount options: the words of mount(8) and the OCI specification (config.md, "Linux mount options") as kernel flags. Pure.

A file system gets MS_ flags and a data string; a bind gets mount attributes (mount_setattr(2)), which leave alone what is not mentioned.
"""

from __future__ import annotations

import functools
import re

import msgspec

from engine.errors import InvalidParameter, NotImplementedYet

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT, MS_MANDLOCK, MS_DIRSYNC = 1, 2, 4, 8, 16, 32, 64, 128
MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC, MS_SILENT = 256, 1024, 2048, 4096, 16384, 32768
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 24, 1 << 25

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOATIME, ATTR_STRICTATIME = 1, 2, 4, 8, 0x10, 0x20
ATTR_ATIME_MASK, ATTR_NODIRATIME, ATTR_NOSYMFOLLOW = 0x70, 0x80, 0x200000

PROPAGATION = {
    "private": MS_PRIVATE, "rprivate": MS_PRIVATE | MS_REC, "slave": MS_SLAVE, "rslave": MS_SLAVE | MS_REC,
    "shared": MS_SHARED, "rshared": MS_SHARED | MS_REC, "unbindable": MS_UNBINDABLE, "runbindable": MS_UNBINDABLE | MS_REC,
}  # fmt: skip

# word: (MS_ flags to set, to clear, attributes to set, to clear)
_FLAGS = {
    "ro": (MS_RDONLY, 0, ATTR_RDONLY, 0),
    "rw": (0, MS_RDONLY, 0, ATTR_RDONLY),
    "nosuid": (MS_NOSUID, 0, ATTR_NOSUID, 0),
    "suid": (0, MS_NOSUID, 0, ATTR_NOSUID),
    "nodev": (MS_NODEV, 0, ATTR_NODEV, 0),
    "dev": (0, MS_NODEV, 0, ATTR_NODEV),
    "noexec": (MS_NOEXEC, 0, ATTR_NOEXEC, 0),
    "exec": (0, MS_NOEXEC, 0, ATTR_NOEXEC),
    "noatime": (MS_NOATIME, 0, ATTR_NOATIME, ATTR_ATIME_MASK),
    "atime": (0, MS_NOATIME, 0, ATTR_ATIME_MASK),
    "relatime": (MS_RELATIME, 0, 0, ATTR_ATIME_MASK),
    "norelatime": (0, MS_RELATIME, 0, ATTR_ATIME_MASK),
    "strictatime": (MS_STRICTATIME, 0, ATTR_STRICTATIME, ATTR_ATIME_MASK),
    "nostrictatime": (0, MS_STRICTATIME, 0, ATTR_ATIME_MASK),
    "nodiratime": (MS_NODIRATIME, 0, ATTR_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME, 0, ATTR_NODIRATIME),
    "nosymfollow": (MS_NOSYMFOLLOW, 0, ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, MS_NOSYMFOLLOW, 0, ATTR_NOSYMFOLLOW),
}
# Of the file system itself, so a bind cannot have them.
_SUPER = {
    "sync": (MS_SYNCHRONOUS, 0), "async": (0, MS_SYNCHRONOUS), "dirsync": (MS_DIRSYNC, 0), "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME), "mand": (MS_MANDLOCK, 0), "nomand": (0, MS_MANDLOCK), "silent": (MS_SILENT, 0), "loud": (0, MS_SILENT),
}  # fmt: skip
_RECURSIVE = {
    "r" + word for word in _FLAGS if word not in ("norelatime", "nostrictatime", "nosymfollow", "symfollow")
} | {"rnorelatime", "rnostrictatime", "rnosymfollow", "rsymfollow"}  # fmt: skip
_LATER = ("tmpcopyup",)
_NAME = re.compile(r"(?:[^\\:]|\\.)+", re.DOTALL)  # between colons that have no backslash before them
_EVERY = re.compile(r"\\(.)", re.DOTALL)


class Options(msgspec.Struct, frozen=True):
    """Parsed options. `flags` and `data` are for a new file system; `set`, `clear`, `recursive` for attributes; `bind`: it is a bind.

    `idmap`: its owners are to be mapped, with `idmap_recursive` those of everything mounted below too.
    """

    flags: int = 0
    data: str = ""
    set: int = 0
    clear: int = 0
    attributes_recursive: bool = False
    propagation: int = 0
    bind: bool = False
    bind_recursive: bool = False
    idmap: bool = False
    idmap_recursive: bool = False


@functools.lru_cache(maxsize=512)
def parse(words: tuple[str, ...]) -> Options:
    """Options of one mount, later words winning. Unknown words are the file system's own data.

    Raises NotImplementedYet for options that this version does not have, InvalidParameter for `remount`.
    """
    flags = set_ = clear = propagation = 0
    recursive = bind = bind_recursive = idmap = idmap_recursive = False
    data = []
    for word in words:
        name = word[1:] if word in _RECURSIVE else word
        if name in _FLAGS:
            on, off, attr_on, attr_off = _FLAGS[name]
            flags = flags & ~off | on
            set_, clear = set_ & ~attr_off | attr_on, clear & ~attr_on | attr_off
            recursive = recursive or name != word
        elif word in _SUPER:
            on, off = _SUPER[word]
            flags = flags & ~off | on
        elif word in PROPAGATION:
            propagation = PROPAGATION[word]
        elif word in ("bind", "rbind"):
            bind, bind_recursive = True, word == "rbind"
        elif word in ("idmap", "ridmap"):
            idmap, idmap_recursive = True, word == "ridmap"
        elif word in _LATER:
            raise NotImplementedYet(f"mount option {word}")
        elif word == "remount":
            raise InvalidParameter("mount option remount makes no sense for a new mount")
        elif word not in ("defaults", ""):
            data.append(word)
    return Options(flags, ",".join(data), set_, clear, recursive, propagation, bind, bind_recursive, idmap, idmap_recursive)


def lowers(words: tuple[str, ...]) -> tuple[str, ...]:
    """The folders that overlay's option `lowerdir=` names, topmost first; none without it (overlayfs.rst)."""
    names: tuple[str, ...] = ()
    for word in words:
        if word.startswith("lowerdir="):
            names = tuple(_EVERY.sub(r"\1", name) for name in _NAME.findall(word.removeprefix("lowerdir=")))
    return names
