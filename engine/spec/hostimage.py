"""What `image from-host` is asked for. Pure data."""

from __future__ import annotations

import msgspec


class HostImage(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """An image to make of this host's programs.

    `programs` are paths or names; `files` are further absolute paths (folders with everything in them). `entrypoint` defaults to the first
    program. `passwd` adds /etc/passwd and /etc/group, `nsswitch` also /etc/nsswitch.conf and the name service libraries, `ca_certificates`
    the host's bundle of certificate authorities.
    """

    programs: tuple[str, ...]
    tag: str = ""
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    labels: dict[str, str] | None = None
    files: tuple[str, ...] = ()
    passwd: bool = False
    nsswitch: bool = False
    ca_certificates: bool = False
