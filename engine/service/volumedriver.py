"""The `local` driver: which options a volume may have, and the file system that they ask for on its folder.

Follows Docker's local driver: `type`, `device` and `o` as mount(8) has them (with `addr=` of network file systems resolved here, because
the kernel cannot), and `size`, a project quota. Nothing here knows who uses a volume.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping

from engine import _core
from engine.errors import InvalidParameter, KnarrError, NotFound
from engine.linux import mounts
from engine.runtime import options
from engine.spec.units import memory_bytes
from engine.spec.volume import LOCAL

_NEEDS = {"type": ("device",), "device": ("type",), "o": ("device", "type"), "size": ()}
_NETWORK = ("nfs", "nfs4", "cifs", "smb3")
_ADDRESS = re.compile(r"(?:^|,)addr=([^,]*)")
_SECRET = re.compile(r"((?:^|,)(?:password|pass|username|user)=)[^,]*")


def check_driver(name: str, driver: str) -> None:
    """Volume plugins do not exist here. Raises NotFound in Docker's words for a plugin that is not there."""
    if driver not in ("", LOCAL):
        raise NotFound(
            f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found',
            hint="volume plugins are not supported; the driver local mounts NFS, CIFS, tmpfs and block devices by its options",
        )


def check_options(name: str, given: Mapping[str, str]) -> int:
    """Check a volume's options; the size in bytes that it is limited to, 0 for none. Raises InvalidParameter in Docker's words."""
    for key in given:
        if key not in _NEEDS:
            raise InvalidParameter(f'create {name}: invalid option: "{key}"')
    for key in given:
        for needed in _NEEDS[key]:
            if needed not in given:
                raise InvalidParameter(f'create {name}: missing required option: "{needed}"')
    for key, value in given.items():
        if "\0" in value:
            raise InvalidParameter(f'create {name}: a NUL byte in option "{key}"')
    if given.get("device"):
        options.parse(_words(given))
    if not given.get("size"):
        return 0
    try:
        return memory_bytes(given["size"])
    except InvalidParameter:
        raise InvalidParameter(f"create {name}: invalid size: '{given['size']}'") from None


def _words(given: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for word in given.get("o", "").split(",") if word)


def mount(given: Mapping[str, str], path: str) -> None:
    """Mount what a volume's options ask for on its folder `path`. May take long (a network). Raises KnarrError."""
    try:
        _mount(given, path)
    except KnarrError as error:
        raise KnarrError(f"error while mounting volume '{path}': {error.message}", hint=error.hint) from error


def _mount(given: Mapping[str, str], path: str) -> None:
    device, kind = given["device"], given.get("type", "")
    words = _words(given)
    if kind in _NETWORK:
        words = tuple(_resolved(",".join(words)).split(","))
    opts = options.parse(words)
    bind = opts.bind or kind in ("bind", "rbind")
    flags, data = opts.flags, opts.data
    if bind:
        flags, data = options.MS_BIND | (options.MS_REC if opts.bind_recursive or kind == "rbind" else 0), ""
    try:
        _core.mount(device, path, None if bind else kind, flags, data or None)
    except OSError as error:
        shown = ", data: " + _SECRET.sub(r"\1********", data) if data else ""
        raise KnarrError(
            f"failed to mount local volume: mount {device}:{path}, flags: {flags:#x}{shown}: {os.strerror(error.errno or 0).lower()}",
            hint=_hint(kind, error.errno or 0),
        ) from error
    try:
        if bind and opts.flags:
            _core.mount(None, path, None, options.MS_BIND | options.MS_REMOUNT | opts.flags, None)
        if opts.propagation:
            _core.mount(None, path, None, opts.propagation, None)
    except OSError as error:
        mounts.unmount_below(path)
        cause = os.strerror(error.errno or 0).lower()
        raise KnarrError(f"failed to mount local volume: options {','.join(words)} of {path}: {cause}") from error


def _hint(kind: str, number: int) -> str:
    import errno

    return f"this kernel has no file system {kind}, or its module is not loaded" if number == errno.ENODEV else ""


def _resolved(data: str) -> str:
    """`addr=NAME` as an address. Raises KnarrError."""
    found = _ADDRESS.search(data)
    if found is None or not found[1]:
        return data
    name = found[1]
    try:
        ipaddress.ip_address(name)
        return data
    except ValueError:
        pass
    try:
        address = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        text = (error.strerror or str(error)).lower()
        raise KnarrError(f"error resolving passed in network volume address: lookup {name}: {text}") from error
    return data[: found.start(1)] + address + data[found.end(1) :]


def mounted(paths: list[str]) -> set[str]:
    """Which of some folders something is mounted on. One look at the mount table."""
    targets = {entry.target for entry in mounts.read()}
    return {path for path in paths if path in targets or os.path.realpath(path) in targets}


def unmount(path: str) -> None:
    """Take down what is mounted on a volume's folder; processes that still use it keep it. Raises OSError."""
    mounts.unmount_below(path)
