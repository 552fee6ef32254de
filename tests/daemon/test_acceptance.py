"""What a user who comes from Docker does first, where Knarr once answered otherwise: docker-py's way of saying a bind mount, commands
that are not there yet, and templates over events that do not all have the same attributes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lib.daemon import Daemon, knarr_command

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def knarr(daemon: Daemon) -> Run:
    """`knarr …` as a user of this module's daemon types it; returns what it wrote and its exit status."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
    environment = {**kept, "KNARR_HOST": f"unix://{daemon.socket}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*knarr_command(), *arguments], env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )

    return run


@pytest.mark.parametrize(
    "mounts",
    [
        {"Binds": ["{source}:/m:ro"]},
        {"Binds": ["{source}:/m/"]},
        {"Mounts": [{"Type": "bind", "Source": "{source}", "Target": "/m"}]},
    ],
)
def test_a_volume_that_a_bind_mount_covers(daemon: Daemon, tmp_path: Path, mounts: dict[str, list[object]]) -> None:
    """docker-py sends the target of every bind mount in `Volumes`, too."""
    (tmp_path / "file").write_text("hello")

    def filled(value: object) -> object:
        if isinstance(value, str):
            return value.format(source=tmp_path)
        return {k: filled(v) for k, v in value.items()} if isinstance(value, dict) else value

    host = {"NetworkMode": "none", **{key: [filled(item) for item in items] for key, items in mounts.items()}}
    body = {"Image": "busybox", "Cmd": ["cat", "/m/file"], "Volumes": {"/m": {}}, "HostConfig": host}
    answer = daemon.api("POST", "/containers/create", body)
    assert answer.status == 201, answer.body
    assert answer.json()["Warnings"] == []
    one = answer.json()["Id"]
    try:
        assert daemon.api("POST", f"/containers/{one}/start").status == 204
        assert daemon.api("POST", f"/containers/{one}/wait").json()["StatusCode"] == 0
        assert b"hello" in daemon.api("GET", f"/containers/{one}/logs?stdout=1").body
    finally:
        daemon.api("DELETE", f"/containers/{one}?force=1")


@pytest.mark.parametrize("command", ["commit x y", "cp x:/ .", "stats", "pause x"])
def test_commands_of_docker_that_are_not_there_say_so(knarr: Run, command: str) -> None:
    answer = knarr(*command.split())
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"not implemented: knarr {command.split()[0]}\n")


@pytest.mark.parametrize("command", ["container stats", "container cp", "container export"])
def test_commands_of_groups_that_are_not_there_say_so(knarr: Run, command: str) -> None:
    answer = knarr(*command.split())
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"not implemented: knarr {command}\n")


def test_commands_that_nobody_has_are_unknown(knarr: Run) -> None:
    assert knarr("frobnicate").stderr.startswith("knarr: unknown command: knarr frobnicate\n")
    assert knarr("container", "frobnicate").stderr.startswith("knarr: unknown command: knarr container frobnicate\n")


def test_commands_listed_as_later_are_not_served() -> None:
    from cli.later import _GROUPS, _TOP
    from cli.main import COMMANDS, GROUPS

    assert not set(_TOP) & (set(COMMANDS) | set(GROUPS))
    assert all(not set(names) & set(GROUPS[group]) for group, names in _GROUPS.items())


def test_events_template_over_attributes_that_not_all_have(knarr: Run) -> None:
    assert knarr("run", "--rm", "--network", "none", "--name", "seen", "busybox", "sh", "-c", "exit 3").returncode == 3
    form = "{{.Action}} {{.Actor.Attributes.exitCode}}{{if .Actor.Attributes.exitCode}} ended{{end}}"
    past = ("events", "--since", "1h", "--until", "0s", "--filter", "container=seen")
    shown = knarr(*past, "--format", form)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "start <no value>\n" in shown.stdout and "die 3 ended\n" in shown.stdout
    wrong = knarr(*past, "--format", "{{.Nope}}")
    assert wrong.returncode != 0 and 'no entry for key "Nope"' in wrong.stderr
