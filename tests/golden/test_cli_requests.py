"""What `knarr create` sends, refuses and says for each of Docker's flags, against what the docker CLI did with the same words.

`cli_create.json` and `cli_output.json` are recorded from the docker CLI on PATH when KNARR_RECORD is set; the tests need no docker.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.golden.cli_cases import CREATE, OUTPUT, TABLE
from tests.golden.cli_fake import FakeDaemon
from tests.lib.daemon import docker_program, knarr_command

HERE = Path(__file__).parent
RECORD = bool(os.environ.get("KNARR_RECORD"))
FILES = {"env": "# c\nA=1\nFROM_ENV\nNOPE\n B=2 3\n", "labels": "l1=v\nl2\n", "seccomp.json": '{ "defaultAction" : "SCMP_ACT_ALLOW" }',
    "bad": "A b=1\n"}


def recorded(name: str) -> dict[str, Any]:
    path = HERE / name
    return json.loads(path.read_text()) if path.exists() else {}


def normal(value: Any) -> Any:
    """Without what means nothing: empty, zero and default values."""
    if isinstance(value, dict):
        kept = {key: normal(item) for key, item in value.items()}
        kept = {key: item for key, item in kept.items() if item not in (None, False, 0, "", [], {})}
        for key, default in (("MemorySwappiness", -1), ("RestartPolicy", {"Name": "no"}), ("ConsoleSize", [0, 0])):
            if kept.get(key) == default:
                del kept[key]
        return kept
    return [normal(item) for item in value] if isinstance(value, list) else value


def run(command: list[str], arguments: list[str], directory: Path, table: dict[str,
    Any] | None = None) -> tuple[subprocess.CompletedProcess[bytes], FakeDaemon]:
    with tempfile.TemporaryDirectory() as sockets:
        fake = FakeDaemon(Path(sockets) / "s", table)
        if arguments[:1] == ["attach"]:
            fake.started.set()  # the container runs already
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        environment = {**kept, "DOCKER_HOST": f"unix://{fake.path}", "FROM_ENV": "it", "HOME": str(directory), "TZ": "UTC"}
        result = subprocess.run([*command, *arguments], env=environment, cwd=directory, capture_output=True, stdin=subprocess.DEVNULL,
            timeout=120)
        fake.close()
    return result, fake


def answer(command: list[str], line: str, directory: Path) -> dict[str, Any]:
    result, fake = run(command, ["create", *shlex.split(line), "img", "a", "-b"], directory)
    sent = [(r["query"], normal(r.get("body"))) for r in fake.requests if r["path"] == "/containers/create"]
    text = json.dumps({"code": result.returncode, "sent": sent, "error": result.stderr.decode()}).replace(str(directory.parent), "/PARENT")
    found: dict[str, Any] = json.loads(text)
    for _, body in found["sent"]:
        body.get("HostConfig", {}).get("Binds", []).sort()  # the docker CLI keeps them in a map
        body.get("Env", []).sort()
    return found


def timeless(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d([ T])\d\d:\d\d:\d\d", r"0000-00-00\g<1>00:00:00", text)


def words(text: str) -> str:
    return text.replace("Docker", "Knarr").replace("docker", "knarr").strip()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_create_sends_what_docker_sends(directory: Path) -> None:
    golden = recorded("cli_create.json")
    if RECORD:
        golden = {line: answer([docker_program()], line, directory) for line in CREATE}
        (HERE / "cli_create.json").write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    different = []
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda line: answer(knarr_command(), line, directory), CREATE))
    for line, ours in zip(CREATE, answers, strict=True):
        theirs = golden[line]
        if ours["code"] != theirs["code"] or ours["sent"] != theirs["sent"] or ours["error"].strip() != words(theirs["error"]):
            different.append(f"{line}\n  docker {theirs}\n  knarr  {ours}")
    assert not different, "\n".join(different)


def test_output_is_dockers(directory: Path) -> None:
    """Tables, templates and errors byte for byte; standard error apart from the program's name."""
    golden = recorded("cli_output.json")
    if RECORD:
        golden = {}
        for line in OUTPUT:
            result, _ = run([docker_program()], shlex.split(line), directory, TABLE)
            golden[line] = [result.returncode, timeless(result.stdout.decode()), result.stderr.decode()]
        (HERE / "cli_output.json").write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    different = []
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda line: run(knarr_command(), shlex.split(line), directory, TABLE)[0], OUTPUT))
    for line, result in zip(OUTPUT, results, strict=True):
        ours = [result.returncode, timeless(result.stdout.decode()), result.stderr.decode().strip()]
        code, out, error = golden[line]
        if ours != [code, out, words(error)]:
            different.append(f"{line}\n  docker {golden[line]}\n  knarr  {ours}")
    assert not different, "\n".join(different)
