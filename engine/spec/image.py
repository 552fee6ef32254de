"""Images: descriptors, manifests, indexes, configurations. Data only; bytes are the truth and are never re-encoded from these.

Follows OCI image specification 1.1 (descriptor, manifest, image-index, config), Docker's image manifest schema 2, and the
fields that Docker adds to the configuration (Healthcheck, OnBuild, Shell, ArgsEscaped, parent, container_config, …).
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.spec.platform import Platform

MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
INDEXES = frozenset({MEDIA_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({MEDIA_MANIFEST, DOCKER_MANIFEST})
ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
# containerd and BuildKit write the full name here, the short tag into ref.name.
ANNOTATION_IMAGE_NAME = "io.containerd.image.name"


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Names a blob: what it is, its digest, its length in bytes."""

    media_type: str = ""
    digest: str
    size: int = 0
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One image for one platform. `schema_version` must be written out: 2."""

    schema_version: int = 0
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...] | None = ()
    annotations: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.schema_version not in (0, 2):
            raise ValueError(f"image manifest has schema version {self.schema_version}, only 2 is supported")


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Several manifests, normally one for each platform. `schema_version` must be written out: 2."""

    schema_version: int = 0
    media_type: str = ""
    manifests: tuple[Descriptor, ...] | None = ()
    annotations: dict[str, str] | None = None


class Healthcheck(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """Docker's HEALTHCHECK. Times in nanoseconds, 0 is the default; `test` starts with NONE, CMD or CMD-SHELL."""

    test: tuple[str, ...] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """The defaults that an image gives to a container: config.md "config", with Docker's own fields."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    exposed_ports: dict[str, dict[str, Any]] | None = None
    tty: bool = False
    open_stdin: bool = False
    env: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    healthcheck: Healthcheck | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    entrypoint: tuple[str, ...] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: tuple[str, ...] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: tuple[str, ...] | None = None


class RootFS(msgspec.Struct, frozen=True):
    """The layers of an image, bottom first, as digests of the uncompressed archives."""

    type: str = "layers"
    diff_ids: tuple[str, ...] | None = ()


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a layer was made; `created` as RFC 3339 text."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The configuration blob. `config` may be null in the file; use `defaults` for a value that is always there."""

    created: str | None = None
    author: str = ""
    architecture: str = ""
    variant: str = ""
    os: str = "linux"
    os_version: str = msgspec.field(name="os.version", default="")
    config: ContainerConfig | None = None
    rootfs: RootFS = RootFS()
    history: tuple[History, ...] | None = None
    docker_version: str = ""
    comment: str = ""
    parent: str = ""

    @property
    def defaults(self) -> ContainerConfig:
        """`config`, or an empty one."""
        return self.config or ContainerConfig()

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of the uncompressed layers, bottom first. Go writes null for none."""
        return self.rootfs.diff_ids or ()

    @property
    def platform(self) -> Platform:
        """What the image is for."""
        return Platform(architecture=self.architecture, os=self.os or "linux", variant=self.variant)


decode_manifest = msgspec.json.Decoder(Manifest).decode
decode_index = msgspec.json.Decoder(Index).decode
decode_config = msgspec.json.Decoder(ImageConfig).decode
encode = msgspec.json.Encoder().encode
