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
from typing import Any

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


class Layout:
    """Makes OCI layouts by hand, of several platforms too."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def image(
        self, layers: list[bytes], architecture: str = ARCHITECTURE, variant: str = "", *, compress: bool = False, **more: Any
    ) -> dict[str, Any]:  # fmt: skip
        diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
        config = self.blob(image_config(diff_ids, architecture=architecture, variant=variant), "application/vnd.oci.image.config.v1+json")
        media = "application/vnd.oci.image.layer.v1.tar"
        descriptors = [self.blob(gzip.compress(one, 1, mtime=0), f"{media}+gzip") if compress else self.blob(one, media) for one in layers]
        media_type = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors}
        where = {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}
        return self.blob(json.dumps(manifest).encode(), media_type, platform=where, **more)

    def attestation(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """What BuildKit puts beside an image: a manifest that is none of an image."""
        config = self.blob(b'{"architecture":"unknown","os":"unknown"}', "application/vnd.oci.image.config.v1+json")
        statement = self.blob(json.dumps({"subject": image["digest"]}).encode(), "application/vnd.in-toto+json")
        media_type = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [statement]}
        notes = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"]}
        where = {"os": "unknown", "architecture": "unknown"}
        return self.blob(json.dumps(manifest).encode(), media_type, platform=where, annotations=notes)

    def index(self, manifests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        media_type = "application/vnd.oci.image.index.v1+json"
        return self.blob(json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).encode(), media_type, **more)

    def archive(self, manifests: list[dict[str, Any]]) -> bytes:
        return tar([
            entry("oci-layout", data=b'{"imageLayoutVersion":"1.0.0"}'),
            entry("index.json", data=json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()),
            *(entry("blobs/" + digest.replace(":", "/"), data=data) for digest, data in self.blobs.items()),
        ])  # fmt: skip


def busybox_archive(path: str | os.PathLike[str], tag: str = "busybox:latest", config: Mapping[str, object] | None = None) -> str:
    """Write a docker-archive with one busybox image to `path`; returns the path as text."""
    with open(path, "wb") as file:
        file.write(docker_archive([busybox_layer()], [tag], config))
    return os.fspath(path)
