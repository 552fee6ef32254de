"""Query parameters of the streaming endpoints, checked. Pure data."""

from __future__ import annotations

import msgspec


class AttachOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /containers/{id}/attach`. `detach_keys` as Docker writes them ("ctrl-p,ctrl-q"); "" for the default."""

    stream: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    logs: bool = False
    detach_keys: str = ""


class LogsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /containers/{id}/logs`. Times in nanoseconds since the epoch, 0 for none; `tail` -1 for all."""

    follow: bool = False
    stdout: bool = False
    stderr: bool = False
    since: int = 0
    until: int = 0
    timestamps: bool = False
    tail: int = -1
    details: bool = False
