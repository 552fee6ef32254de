"""Images for tests and benchmarks, made from the host's static busybox: no registry, no download, a fraction of a second."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterable, Mapping

BUSYBOX = "/bin/busybox"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "i686": "386"}
ARCHITECTURE = _MACHINES.get(os.uname().machine, os.uname().machine)
_FOLDERS = {**dict.fromkeys(("bin", "dev", "etc", "home", "proc", "sys", "usr", "var"), 0o755), "root": 0o700, "tmp": 0o1777}
_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nuser:x:1000:1000::/home:/bin/sh\n",
    "etc/group": b"root:x:0:\ndaemon:x:1:\naudio:x:29:user\nuser:x:1000:\n",
}


def entry(name: str, type: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """One member of a layer; `fields` are attributes of TarInfo."""
    info = tarfile.TarInfo(name)
    info.type = type
    info.size = len(data)
    info.mode = 0o755 if type == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed archive of `entry` results."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def busybox_layer() -> bytes:
    """A root file system with busybox and a link for each of its commands."""
    with open(BUSYBOX, "rb") as file:
        program = file.read()
    names = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    entries = [entry(name, tarfile.DIRTYPE, mode=mode) for name, mode in _FOLDERS.items()]
    entries.append(entry("bin/busybox", data=program, mode=0o755))
    entries += [entry(f"bin/{name}", tarfile.LNKTYPE, linkname="bin/busybox", mode=0o755) for name in names if name != "busybox"]
    entries += [entry(name, data=data) for name, data in _FILES.items()]
    return tar(entries)


def image_config(diff_ids: list[str], config: Mapping[str, object] | None = None, **fields: object) -> bytes:
    """The bytes of an image configuration; `config` is its `config` member."""
    default = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]}
    return json.dumps({
        "created": "2024-01-01T00:00:00Z", "architecture": ARCHITECTURE, "os": "linux", "config": {**default, **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(len(diff_ids))],
        **fields,
    }).encode()  # fmt: skip


def docker_archive(layers: list[bytes], tags: list[str], config: Mapping[str, object] | None = None, *, compress: bool = False) -> bytes:
    """What `docker save` writes: manifest.json, one configuration, layers in folders of their own."""
    diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    raw = image_config(diff_ids, config)
    config_name = hashlib.sha256(raw).hexdigest() + ".json"
    names = [f"{digest[7:]}/layer.tar" for digest in diff_ids]
    bodies = [gzip.compress(layer, 1) if compress else layer for layer in layers]
    manifest = json.dumps([{"Config": config_name, "RepoTags": tags, "Layers": names}]).encode()
    members = {config_name: raw, **dict(zip(names, bodies, strict=True)), "manifest.json": manifest}
    return tar(entry(name, data=data) for name, data in members.items())


def busybox_archive(path: str | os.PathLike[str], tag: str = "busybox:latest", config: Mapping[str, object] | None = None) -> str:
    """Write a docker-archive with one busybox image to `path`; returns the path as text."""
    with open(path, "wb") as file:
        file.write(docker_archive([busybox_layer()], [tag], config))
    return os.fspath(path)
