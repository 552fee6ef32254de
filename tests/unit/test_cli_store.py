"""`system check`, the prune commands, `save` and their answers, against a daemon that answers from a table."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import main, manual
from cli.help import summary_key
from tests.golden.cli_fake import FakeDaemon
from tests.lib.daemon import knarr_command

SOUND = b'{"summary":{"checked":5,"bytes":1089276,"damaged":0,"repaired":0}}\n'
BROKEN = b'{"summary":{"checked":5,"bytes":0,"damaged":2,"repaired":1}}\n'
ORPHAN = b'{"kind":"ingest","name":"x","state":"orphan","detail":"","repaired":false}\n'
DAMAGED = b'{"kind":"blob","name":"sha256:ab","state":"damaged","detail":"digest is\\tsha256:cd\\u001b[2J","repaired":false}\n'
REPAIRED = b'{"kind":"snapshot","name":"7","state":"missing","detail":"unpacked again","repaired":true}\n'


class User:
    """A folder with a daemon; `table` is what it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table: dict[str, Any] = {}
        self.fake = FakeDaemon(folder / "s")
        self.fake.table = self.table

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        environment = {**kept, "KNARR_HOST": f"unix://{self.fake.path}", "HOME": str(self.folder)}
        command = [*knarr_command(), *arguments]
        result = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120)
        return result.returncode, result.stdout, result.stderr

    def asked(self) -> list[str]:
        return [f"{one['method']} {one['path']}" for one in self.fake.requests]


@pytest.fixture
def user() -> Iterator[User]:
    with tempfile.TemporaryDirectory() as folder:
        made = User(Path(folder))
        yield made
        made.fake.close()


def test_a_sound_store(user: User) -> None:
    user.table["GET /system/check"] = (200, [SOUND])
    assert user("system", "check") == (0, "5 things looked at, 1.09MB compared, 0 damaged, 0 repaired\nNo damage found\n", "")
    assert user("system", "check", "--repair", "--quick", "-a")[0] == 0
    assert [one["query"] for one in user.fake.requests] == [{}, {"repair": "1", "all": "1", "quick": "1"}]
    user.table["GET /system/check"] = (200, [ORPHAN, SOUND])
    assert user("system", "check")[0] == 0


def test_damage_is_an_exit_status(user: User) -> None:
    user.table["GET /system/check"] = (200, [DAMAGED, REPAIRED, BROKEN])
    code, out, error = user("system", "check")
    assert (code, error) == (1, "")
    assert out.splitlines() == [
        "KIND       NAME        STATE     REPAIRED   DETAIL", "blob       sha256:ab   damaged   no         digest is sha256:cd[2J",
        "snapshot   7           missing   yes        unpacked again", "", "5 things looked at, 0B compared, 2 damaged, 1 repaired",
        "Damage is left: 'knarr system check --repair' repairs what it can",
    ]  # fmt: skip
    user.table["GET /system/check"] = (200, [REPAIRED, BROKEN])
    code, out, _ = user("system", "check", "--repair")
    assert (code, out.splitlines()[-1]) == (0, "No damage is left")


def test_findings_for_a_script(user: User) -> None:
    user.table["GET /system/check"] = (200, [DAMAGED, REPAIRED, SOUND])
    code, out, _ = user("system", "check", "--format", "json")
    assert (code, [json.loads(line)["Name"] for line in out.splitlines()]) == (1, ["sha256:ab", "7"])
    assert user("system", "check", "--format", "{{.Kind}}:{{.State}}")[1] == "blob:damaged\nsnapshot:missing\n"


def test_a_check_that_breaks_off_is_no_clean_store(user: User) -> None:
    user.table["GET /system/check"] = (200, [REPAIRED])
    assert user("system", "check") == (1, "", "system check: the daemon ended the check before it was complete\n")
    user.table["GET /system/check"] = (200, [b'{"error":"the store is locked"}\n'])
    assert user("system", "check") == (1, "", "the store is locked\n")


def test_gc_shows_what_the_rules_remove(user: User) -> None:
    removed = [{"Id": "sha256:" + "ab" * 32, "Names": ["app:1"], "Reason": "not used for 31 days", "Size": 1_500_000}]
    user.table["POST /system/gc"] = (200, {"DryRun": True, "Removed": removed, "SpaceReclaimed": 1_500_000, "Used": 30, "Total": 40})
    code, out, error = user("system", "gc", "--dry-run")
    assert (code, error, user.fake.requests[-1]["query"]) == (0, "", {"dry-run": "1"})
    assert out.splitlines() == [
        "NAMES     IMAGE ID       REASON                 SIZE", "app:1     abababababab   not used for 31 days   1.5MB", "",
        "1.5MB would be freed; the disk was 75% full",
    ]  # fmt: skip
    assert user("system", "gc", "-q")[1] == "abababababab\n"
    user.table["POST /system/gc"] = (200, {"DryRun": False, "Removed": [], "SpaceReclaimed": 0, "Used": 0, "Total": 0})
    assert user("system", "gc")[1] == "0B freed; the disk was 0% full\n"


MISSING = (501, {"message": "not implemented: POST"})


def test_system_prune_where_there_is_no_builder_yet(user: User) -> None:
    user.table |= {
        "POST /containers/prune": (200, {"ContainersDeleted": None, "SpaceReclaimed": 0}),
        "POST /images/prune": (200, {"ImagesDeleted": None, "SpaceReclaimed": 7}),
        "POST /networks/prune": (200, {"NetworksDeleted": None}),
        "POST /volumes/prune": (200, {"VolumesDeleted": [], "SpaceReclaimed": 0}),
        "POST /build/prune": MISSING,
    }  # fmt: skip
    assert user("system", "prune", "-f", "--volumes") == (0, "Total reclaimed space: 7B\n", "")
    assert user.asked() == [f"POST /{noun}/prune" for noun in ("containers", "networks", "volumes", "images", "build")]


@pytest.mark.parametrize("noun", ["containers", "images"])
def test_system_prune_says_what_it_could_not_do(user: User, noun: str) -> None:
    user.table |= {f"POST /{noun}/prune": MISSING, "POST /.*/prune": (200, {"SpaceReclaimed": 0})}
    assert user("system", "prune", "-f") == (1, "", "Error response from daemon: not implemented: POST\n")


def test_an_archive_is_there_whole_or_not_at_all(user: User) -> None:
    target = user.folder / "out.tar"
    target.write_bytes(b"before")
    user.table["GET /images/get"] = (500, {"message": "no"})
    assert user("save", "-o", "out.tar", "x")[0] == 1
    broken = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    user.fake._send = lambda sock, *_: (sock.sendall(broken), sock.shutdown(socket.SHUT_RDWR))  # type: ignore[method-assign,assignment]
    assert user("save", "-o", "out.tar", "x") == (1, "", "unexpected EOF: the daemon closed the connection within an answer\n")
    assert target.read_bytes() == b"before"
    assert sorted(one.name for one in user.folder.iterdir()) == ["out.tar", "s"]


def test_what_the_other_side_has_is_left_out(user: User) -> None:
    user.table["GET /images/get"] = (200, b"an archive")
    assert user("save", "--since", "app:1", "app:2") == (0, "an archive", "")
    assert user.fake.requests[-1]["query"] == {"since": "app:1", "names": "app:2"}


@pytest.mark.parametrize("rate", ["", "0", "-1", "x", "5x"])
def test_rates_that_are_none(user: User, rate: str) -> None:
    code, out, error = user("pull", "--limit-rate", rate, "x")
    assert (code, out) == (125, "")
    assert error.startswith(f'invalid argument "{rate}" for "--limit-rate" flag: ')
    assert user.asked() == []


def test_an_old_daemon_is_not_given_what_it_would_ignore(user: User) -> None:
    user.table["GET /_ping"] = (200, b"OK", {"Api-Version": "1.45"})
    for arguments, version in ((("push", "--platform", "linux/arm64", "x"), "1.46"), (("save", "--platform", "linux/arm64", "x"), "1.48"),
                               (("images", "--tree"), "1.47"), (("rmi", "--platform", "linux/arm64", "x"), "1.50")):
        code, _, error = user(*arguments)
        flag = next(word for word in arguments if word.startswith("--"))
        assert (code, error) == (1, f'"{flag}" requires API version {version}, but the Docker daemon API version is 1.45\n')


def test_every_command_has_its_help() -> None:
    served = {f"{group} {name}" for group, commands in main.GROUPS.items() for name in commands if name not in ("list", "remove")}
    for name in sorted(served | set(main.COMMANDS) - {"help", "debug"}):
        assert summary_key(name) in manual.SUMMARIES, name
