"""What knarr sends, prints and writes for commands on images, registries and the disk, against what the docker CLI did with the same words.

`cli_images.json` is recorded from the docker CLI on PATH when KNARR_RECORD is set; the tests need no docker.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.golden.cli_fake import FakeDaemon
from tests.golden.cli_image_cases import CONFIGS, LOGIN, OTHER, PULL, table
from tests.golden.test_cli_requests import HERE, RECORD, normal, recorded, timeless, words
from tests.lib.daemon import docker_program, knarr_command

CASES = [
    *(("auths", line) for line in (*PULL, *LOGIN, *OTHER)), *((name, line) for name in ("store", "helpers") for line in LOGIN),
    ("store", "pull localhost:5000/a"), ("store", "pull token.example/a"), ("store", "pull x"), ("helpers", "pull localhost:5000/a"),
    ("helpers", "pull x"), ("helpers", "pull gone.example/a"), ("bad", "pull localhost:5000/a"), ("broken", "pull x"),
    ("store", "login -u refused -p pw localhost:5000"), ("none", "login -u me -p pw"), ("none", "logout"), ("none", "pull x"),
]  # fmt: skip
# where Knarr does not do as Docker: what of the answer is not compared, and why
ON_PURPOSE = {
    "auths: push --platform foo/bar/baz/qux x": ["error"],  # Docker joins two messages without a space
    "auths: push lacking": ["out"],  # Docker does not say what is missing
    "auths: logout docker.io": ["config"],  # what `login docker.io` kept is forgotten, Docker keeps it
    "helpers: logout docker.io": ["config"],
    "auths: logout old.example": ["config"],  # also under the spelling of old versions
    "helpers: pull gone.example/a": ["error"],  # Docker does not say that the helper is missing
    "bad: pull localhost:5000/a": ["error", "requests"],  # names the entry; sends nothing that is no login
    "broken: pull x": ["error"],  # the JSON parser's words
}

TREE_WARNING = "WARNING: This is an experimental feature. The output may change and shouldn't be depended on.\n"


def answer(command: list[str], config: str, line: str) -> dict[str, Any]:
    """Run one command line in a home of its own; everything that can be seen of it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        (home / ".docker").mkdir(parents=True)
        (home / "bin").mkdir()
        shutil.copy(HERE / "cli_helper.py", home / "bin/docker-credential-knarrtest")
        file = home / ".docker/config.json"
        before = json.dumps(CONFIGS[config]) if config in CONFIGS else "{broken" if config == "broken" else ""
        if before:
            file.write_text(before)
        (home / "in.tar").write_bytes(b"an archive")
        text, _, stdin = line.partition(" <<<")
        fake = FakeDaemon(Path(folder) / "s", table())
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        environment = {
            **kept, "DOCKER_HOST": f"unix://{fake.path}", "HOME": str(home), "TZ": "UTC", "KNARR_TEST_LOGINS": f"{home}/logins",
            "PATH": f"{home}/bin:{kept['PATH']}", "DOCKER_CLI_HINTS": "false",
        }
        result = subprocess.run([*command, *shlex.split(text)], env=environment, cwd=home, capture_output=True, timeout=120,
            input=stdin[1:].replace("\\n", "\n").encode())
        fake.close()
        found: dict[str, Any] = {
            "code": result.returncode, "out": timeless(result.stdout.decode()), "error": result.stderr.decode(),
            "requests": [request(one) for one in fake.requests if one["path"] not in ("/_ping", "/info")],
        }
        after = file.read_text() if file.exists() else ""
        if after != before:
            found["config"] = after
        if (home / "logins").exists():
            found["logins"] = json.loads((home / "logins").read_text())
        if (home / "out.tar").exists():
            found["file"] = (home / "out.tar").read_text()
        replaced: dict[str, Any] = json.loads(json.dumps(found).replace(str(home), "/HOME"))
        return replaced


def request(one: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in one.items() if key != "raw"}
    query = {key: value for key, value in one["query"].items() if value}
    for key in ("filters", "platform", "platforms"):
        if query.get(key, "").startswith("{"):
            query[key] = json.loads(query[key])
    if "filters" in query:  # {"key": ["value"]} and {"key": {"value": true}} mean the same
        query["filters"] = {key: sorted(values) for key, values in query["filters"].items()}
    shown["query"] = query
    if "body" in shown:
        shown["body"] = normal(shown["body"])
    if "raw" in one:
        shown["raw"] = one["raw"].decode()
    return shown


def alike(found: dict[str, Any]) -> dict[str, Any]:
    """Without what may differ: the program's name, colours, a slip in Docker's words, how JSON is laid out, and members it would lose."""
    out = re.sub(r"\x1b\[[0-9;]*m", "", found["out"]).removeprefix(TREE_WARNING)
    error = words(found["error"]).replace("SRun", "Run")
    kept = {**found, "out": out.replace("Docker", "Knarr").replace("docker ", "knarr "), "error": error}
    if "config" in found:
        config = json.loads(found["config"])
        config.pop("unknownMember", None)
        kept["config"] = config
    kept["requests"] = [one for one in found["requests"] if not one["path"].endswith("/wait")]
    return kept


def test_commands_on_images_do_what_dockers_do() -> None:
    golden = recorded("cli_images.json")
    if RECORD:
        golden = {f"{config}: {line}": answer([docker_program()], config, line) for config, line in CASES}
        (HERE / "cli_images.json").write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    different = []
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda case: answer(knarr_command(), *case), CASES))
    for (config, line), found in zip(CASES, answers, strict=True):
        theirs, ours = alike(golden[f"{config}: {line}"]), alike(found)
        for part in ON_PURPOSE.get(f"{config}: {line}", ()):
            assert ours.pop(part, None) != theirs.pop(part, None), f"{config}: {line}: {part} is as with Docker, after all"
        if ours != theirs:
            different.append(f"{config}: {line}\n  docker {theirs}\n  knarr  {ours}")
    assert not different, "\n".join(different)
