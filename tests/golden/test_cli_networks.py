"""What knarr sends, prints and refuses for commands on networks and ports, against what the docker CLI did.

`cli_networks.json` and `cli_network_create.json` are recorded from the docker CLI on PATH when KNARR_RECORD is set.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.golden import test_cli_requests
from tests.golden.cli_network_cases import CREATE, LINES, TABLE
from tests.golden.test_cli_images import request
from tests.golden.test_cli_requests import HERE, RECORD, recorded, words
from tests.lib.daemon import docker_program, knarr_command

# where Knarr does not do as Docker: what of the answer is not compared, and why
ON_PURPOSE: dict[str, list[str]] = {
    "-p target=80,foo=bar": ["code", "sent", "error"],  # Docker drops what it does not know
    "-p published=80": ["error"],  # says what is missing
    "-p Target=80,Published=81": ["code", "sent", "error"],  # names in any case, as for all the other flags
    "network create warn": ["error"],  # the daemon's warning is shown, Docker drops it
}


def answer(command: list[str], line: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result, fake = test_cli_requests.run(command, shlex.split(line), Path(folder), TABLE)
    requests = [request(one) for one in fake.requests if one["path"] not in ("/_ping", "/info")]
    for one in requests:
        one.get("body", {}).get("IPAM", {}).get("Config", []).sort(key=str)  # the docker CLI keeps them in a map
    return {"code": result.returncode, "out": result.stdout.decode(), "error": result.stderr.decode(), "requests": requests}


def alike(found: dict[str, Any]) -> dict[str, Any]:
    """Without what may differ: the program's name, and questions that only Swarm's networks need."""
    error = words(found["error"]).removesuffix("exit status 1").strip()
    removing = any(one["method"] == "DELETE" for one in found["requests"])
    requests = [one for one in found["requests"] if not (removing and one["method"] == "GET")]
    return {**found, "error": error, "requests": requests}


def compare(name: str, lines: list[str], ask: Any) -> list[str]:
    golden = recorded(name)
    if RECORD:
        with ThreadPoolExecutor(4) as pool:
            golden = dict(zip(lines, pool.map(lambda line: ask([docker_program()], line), lines), strict=True))
        (HERE / name).write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda line: ask(knarr_command(), line), lines))
    different = []
    for line, found in zip(lines, answers, strict=True):
        theirs, ours = golden[line], found
        if "out" in ours:
            theirs, ours = alike(theirs), alike(ours)
        else:
            theirs, ours = {**theirs, "error": words(theirs["error"])}, {**ours, "error": ours["error"].strip()}
        for part in ON_PURPOSE.get(line, ()):
            assert ours.pop(part, None) != theirs.pop(part, None), f"{line}: {part} is as with Docker, after all"
        if ours != theirs:
            parts = [part for part in theirs if ours[part] != theirs[part]]
            different.append("\n".join([line, *(f"  {part}\n    docker {theirs[part]!r}\n    knarr  {ours[part]!r}" for part in parts)]))
    return different


def test_commands_on_networks_do_what_dockers_do() -> None:
    different = compare("cli_networks.json", LINES, answer)
    assert not different, "\n".join(different)


def test_flags_of_create_about_networks(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    different = compare("cli_network_create.json", CREATE, lambda command, line: test_cli_requests.answer(command, line, folder))
    assert not different, "\n".join(different)
