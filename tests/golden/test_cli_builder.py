"""`knarr builder prune` and the build cache in `system df -v`: what they ask, print and end with, against the docker CLI without buildx.

`cli_builder.json` is recorded from the docker CLI on PATH when KNARR_RECORD is set; the tests need no docker.
"""

# ruff: noqa: E501

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.golden.cli_fake import FakeDaemon
from tests.lib.daemon import docker_program, knarr_command

GOLDEN = Path(__file__).parent / "cli_builder.json"
RECORD = bool(os.environ.get("KNARR_RECORD"))
LINES = r"""
builder prune
builder prune <<< y\n
builder prune <<< n\n
builder prune -a <<< y
builder prune -f
builder prune -a -f
builder prune --all --force --filter until=24h
builder prune -f --filter type=regular --filter inuse=false
builder prune -f --filter nope
builder prune -f --keep-storage 1g
builder prune -f --keep-storage x
builder prune -f --nope
builder prune x
system df
system df -v
system df -v --format '{{range .BuildCache}}{{.ID}} {{.CacheType}} {{.Size}} {{.UsageCount}} {{.Shared}} {{.InUse}} {{.Description}};{{end}}'
""".strip().splitlines()
NOW = int(time.time())


def ago(days: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - 86400 * days))


def record(identity: str, **more: object) -> dict[str, Any]:
    return {"ID": identity, "Type": "regular", "Description": "[1/2] RUN x", "InUse": False, "Shared": False, "Size": 12345,
        "CreatedAt": ago(9), "LastUsedAt": ago(3), "UsageCount": 2} | more  # fmt: skip


USAGE = {"LayersSize": 0, "Images": [], "Containers": [], "Volumes": [], "BuildCache": [
    record("umypm1kugwix1t0ytivotu7so", Shared=True), record("ehz0ybpyzxjvb88crug43gpyr", InUse=True, Type="exec.cachemount"),
    record("ricfis98f8awy7l7864f1dvop", LastUsedAt=None, Size=0, Type="source.local"),
]}  # fmt: skip
TABLE: dict[str, Any] = {
    "GET /system/df": (200, USAGE),
    "POST /build/prune": (200, {"CachesDeleted": ["umypm1kugwix1t0ytivotu7so", "b"], "SpaceReclaimed": 12345678}),
}


def answer(command: list[str], line: str, directory: Path) -> dict[str, Any]:
    words, _, typed = line.partition(" <<< ")
    with tempfile.TemporaryDirectory() as sockets:
        fake = FakeDaemon(Path(sockets) / "s", TABLE)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        environment = {**kept, "DOCKER_HOST": f"unix://{fake.path}", "HOME": str(directory), "TZ": "UTC", "DOCKER_CLI_HINTS": "false"}
        result = subprocess.run(
            [*command, *shlex.split(words)], env=environment, cwd=directory, capture_output=True, timeout=120,
            input=typed.replace("\\n", "\n").encode(),
        )  # fmt: skip
        fake.close()
    sent = [[r["path"], asked(r["query"])] for r in fake.requests if r["path"] != "/_ping"]  # type: ignore[arg-type]
    # the docker CLI without its plugin says that it is deprecated, in three lines and an empty one
    error = re.sub(r"DEPRECATED: The legacy builder.*?\n\n", "", result.stderr.decode(), flags=re.DOTALL).strip()
    return {"code": result.returncode, "sent": sent, "out": result.stdout.decode(), "error": error}


def asked(query: dict[str, str]) -> dict[str, Any]:
    """A query with its filters in one form: maps and lists mean the same, and so do none and an empty one."""
    found: dict[str, Any] = {key: value for key, value in query.items() if value}
    if "filters" in found:
        found["filters"] = {key: sorted(values) for key, values in json.loads(found["filters"]).items()}
    return found


def words(text: str) -> str:
    return text.replace("Docker", "Knarr").replace("docker", "knarr").strip()


def golden(directory: Path) -> dict[str, Any]:
    if RECORD:
        found = {line: answer([docker_program()], line, directory) for line in LINES}
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    recorded: dict[str, Any] = json.loads(GOLDEN.read_text())
    return recorded


@pytest.mark.parametrize("line", LINES)
def test_builder_commands_are_dockers(line: str, tmp_path: Path) -> None:
    theirs = golden(tmp_path)[line] | {}
    theirs["error"] = words(theirs["error"])
    assert answer(knarr_command(), line, tmp_path) == theirs
