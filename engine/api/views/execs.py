"""Execs as `GET /exec/{id}/json` shows them. Source: the Engine API reference 1.51 and the answers of dockerd."""

from __future__ import annotations

from typing import Any

from engine.spec.container import ExecRecord


def inspect(record: ExecRecord) -> dict[str, Any]:
    """The whole record; `ProcessConfig` is the one object whose names Docker writes in small letters."""
    process: dict[str, Any] = {
        "tty": record.tty,
        "entrypoint": record.path,
        "arguments": record.args,
        "privileged": record.privileged,
    }
    if record.user:
        process["user"] = record.user
    return {
        "ID": record.id,
        "Running": record.running,
        "ExitCode": record.exit_code,
        "ProcessConfig": process,
        "OpenStdin": record.open_stdin,
        "OpenStderr": record.open_stderr,
        "OpenStdout": record.open_stdout,
        "CanRemove": record.can_remove,
        "ContainerID": record.container_id,
        "DetachKeys": record.detach_keys,
        "Pid": record.pid,
    }
