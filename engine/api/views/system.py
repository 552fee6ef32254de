"""`GET /version` and `GET /info`. Source: the Engine API reference 1.51 and the answers of dockerd."""

from __future__ import annotations

import time
from typing import Any

from engine.api.version import API_VERSION, MIN_API_VERSION, VERSION, Version
from engine.api.views.times import rfc3339

Json = dict[str, Any]


def version(facts: Json) -> Json:
    """`facts`: `service.system.System.version()`. The top-level members repeat the component "Engine" for clients older than 1.35."""
    kernel, os, arch = facts.get("KernelVersion", ""), facts.get("Os", "linux"), facts.get("Arch", "")
    details = {
        "ApiVersion": API_VERSION,
        "Arch": arch,
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": kernel,
        "MinAPIVersion": MIN_API_VERSION,
        "Os": os,
    }
    if "Python" in facts:
        details["PythonVersion"] = facts["Python"]
    return {
        "Platform": {"Name": "Knarr"},
        "Components": [{"Name": "Engine", "Version": VERSION, "Details": details}],
        "Version": VERSION,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "GitCommit": "",
        "GoVersion": "",
        "Os": os,
        "Arch": arch,
        "KernelVersion": kernel,
        "BuildTime": "",
    }


def info(facts: Json, asked: Version, now_ns: int | None = None) -> Json:
    """`facts`: `service.system.System.info()`, already with Docker's names."""
    shown = {**facts, "ServerVersion": VERSION, "SystemTime": rfc3339(time.time_ns() if now_ns is None else now_ns)}
    shown.setdefault("BridgeNfIptables", False)
    shown.setdefault("BridgeNfIp6tables", False)
    if asked >= (1, 50):
        shown.pop("BridgeNfIptables")
        shown.pop("BridgeNfIp6tables")
    if asked >= (1, 50):
        shown.setdefault("DiscoveredDevices", None)
        shown.setdefault("FirewallBackend", {"Driver": "none"})
    return shown
