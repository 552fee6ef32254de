"""Project quotas: how much the files below one folder may take. ext4 and XFS have them, where they are mounted with `prjquota`.

Kernel's side: quotactl_fd(2) (Linux 5.14), struct if_dqblk of linux/quota.h, struct fsxattr of linux/fs.h. The C library knows no
quotactl_fd, so it is called by its number, which is the same on all architectures that Docker has.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

FIRST_PROJECT = 1 << 20
"""Identifiers of ours are above it; those that people choose by hand are small."""

_QUOTACTL_FD = 443
_PROJECT = 2  # PRJQUOTA
_GET, _SET = 0x800007, 0x800008  # Q_GETQUOTA, Q_SETQUOTA
_BLOCK_LIMITS = 1  # QIF_BLIMITS
_BLOCK = 1024  # QIF_DQBLKSIZE
_LIMITS = struct.Struct("=8QI4x")
_FS_GET, _FS_SET = 0x801C581F, 0x401C5820  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT
_ATTRIBUTES = struct.Struct("=5I8s")


def _call(fd: int, command: int, project: int, block: bytes) -> bytes:
    import ctypes  # a megabyte of memory that only who limits a volume pays

    library = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(block, len(block))
    number = ctypes.c_long(_QUOTACTL_FD)
    if library.syscall(number, ctypes.c_int(fd), ctypes.c_uint(command << 8 | _PROJECT), ctypes.c_uint(project), buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "quotactl_fd")
    return buffer.raw


def supported(path: str) -> bool:
    """Whether project quotas are on in the file system of `path`. Raises OSError when it cannot be opened."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _call(fd, _GET, 0, bytes(_LIMITS.size))
    except OSError as error:
        return error.errno == errno.ENOENT  # on, but nobody has used project 0
    finally:
        os.close(fd)
    return True


def limit(path: str, project: int, size: int) -> None:
    """Put the empty folder `path` into a project of its own that may take `size` bytes (rounded up to 1024). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags, *rest = _ATTRIBUTES.unpack(fcntl.ioctl(fd, _FS_GET, bytes(_ATTRIBUTES.size)))
        rest[2] = project
        fcntl.ioctl(fd, _FS_SET, _ATTRIBUTES.pack(flags | _INHERIT, *rest))
        blocks = -(-size // _BLOCK)
        _call(fd, _SET, project, _LIMITS.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _BLOCK_LIMITS))
    finally:
        os.close(fd)
