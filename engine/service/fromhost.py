"""`image from-host`: programs of this host and what they need become an image of one layer: which files those are, the
layer's archive and the configuration. Reads the host, touches no store; blocks.

The image depends on the files' content, modes and owners alone, never on time or order, so the same programs give the same identifier.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from engine.errors import InvalidParameter, NotFound
from engine.linux.closure import Closure
from engine.spec import image as spec
from engine.spec.hostimage import HostImage
from engine.spec.platform import Platform
from engine.wire import tar, tarwrite

_EPOCH = "1970-01-01T00:00:00Z"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_READ = 256 << 10
_TYPES = {
    stat.S_IFREG: tar.REGULAR, stat.S_IFLNK: tar.SYMLINK, stat.S_IFDIR: tar.DIRECTORY, stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE, stat.S_IFIFO: tar.FIFO,
}  # fmt: skip
# Where distributions keep the bundle: Debian and Alpine, Fedora, SUSE.
_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/var/lib/ca-certificates/ca-bundle.pem")
_NAME_SERVICES = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")


def collect(wanted: HostImage) -> tuple[Closure, list[str]]:
    """All paths of the image, and where its programs are. Raises InvalidParameter, NotFound."""
    if not wanted.programs:
        raise InvalidParameter("making an image from this host: no program was given")
    closure = Closure()
    programs = [closure.program(name) for name in wanted.programs]
    for path in wanted.files:
        closure.file(path)
    if wanted.passwd or wanted.nsswitch:
        closure.path("/etc/passwd")
        closure.path("/etc/group")
    if wanted.nsswitch:
        _add_name_services(closure)
    if wanted.ca_certificates:
        _add_certificates(closure)
    return closure, programs


def _add_name_services(closure: Closure) -> None:
    if os.path.exists("/etc/nsswitch.conf"):
        closure.path("/etc/nsswitch.conf")
    folders = {os.path.dirname(path) for path in closure.paths if os.path.basename(path).startswith("libc.so")}
    for folder in folders:
        for name in _NAME_SERVICES:
            if os.path.exists(f"{folder}/{name}"):
                closure.file(f"{folder}/{name}")


def _add_certificates(closure: Closure) -> None:
    found = next((path for path in _CERTIFICATES if os.path.exists(path)), None)
    if found is None:
        raise NotFound("this host has no bundle of CA certificates", hint="install the package ca-certificates")
    closure.path(found)
    if found != _CERTIFICATES[0]:
        closure.links.setdefault(_CERTIFICATES[0], found)


def archive(closure: Closure) -> Iterator[bytes]:
    """The layer's tar, piece by piece: every path in order, with no times."""
    for path in sorted({*closure.paths, *closure.links}):
        if path in closure.links:
            entry = tar.Entry(os.fsencode(path[1:]), tar.SYMLINK)
            entry.mode, entry.linkname = 0o777, os.fsencode(closure.links[path])
            yield tarwrite.header(entry)
            continue
        yield from _member(path)
    yield tarwrite.END


def _member(path: str) -> Iterator[bytes]:
    info = os.lstat(path)
    kind = _TYPES.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        return  # a socket cannot be in an archive
    entry = tar.Entry(os.fsencode(path[1:]), kind)
    entry.mode, entry.uid, entry.gid = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
    if kind == tar.SYMLINK:
        entry.linkname = os.fsencode(os.readlink(path))
    elif kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
        entry.devmajor, entry.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
    if kind != tar.REGULAR:
        yield tarwrite.header(entry)
        return
    if "security.capability" in os.listxattr(path, follow_symlinks=False):
        entry.xattrs = {b"security.capability": os.getxattr(path, "security.capability", follow_symlinks=False)}
    entry.size = info.st_size
    yield tarwrite.header(entry)
    yield from _content(path, entry.size)


def _content(path: str, size: int) -> Iterator[bytes]:
    left = size
    with open(path, "rb", buffering=0) as file:
        while left:
            piece = file.read(min(left, _READ))
            if not piece:
                raise InvalidParameter(f"making an image from this host: {path} became shorter while it was read")
            left -= len(piece)
            yield piece
    if end := tarwrite.padding(size):
        yield end


def config(wanted: HostImage, programs: list[str], diff_id: str, architecture: str, host: Platform) -> bytes:
    """The bytes of the configuration; `architecture` is the programs', "" for the host's own."""
    entrypoint = wanted.entrypoint if wanted.entrypoint is not None else (programs[0],)
    defaults = spec.ContainerConfig(
        env=(_PATH, *wanted.env), entrypoint=entrypoint or None, cmd=wanted.cmd or None, user=wanted.user, working_dir=wanted.working_dir,
        labels=wanted.labels or None,
    )  # fmt: skip
    made_by = "knarr image from-host " + " ".join(programs)
    architecture = architecture or host.architecture
    return spec.encode(spec.ImageConfig(
        created=_EPOCH, architecture=architecture, variant=host.variant if architecture == host.architecture else "", os="linux",
        config=defaults, rootfs=spec.RootFS(diff_ids=(diff_id,)), history=(spec.History(created=_EPOCH, created_by=made_by),),
    ))  # fmt: skip
