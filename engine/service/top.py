"""`docker top`: the host's `ps`, its lines filtered by the container's processes, as Docker does it. May run a program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import trio

from engine.errors import InvalidParameter, KnarrError, NotImplementedYet

_DEFAULT_ARGS = "-ef"  # Docker's


def parse(output: str, pids: set[int]) -> tuple[list[str], list[list[str]]]:
    """Titles and the rows whose PID column is in `pids`; the last column takes the rest of a line. Raises InvalidParameter without PID."""
    lines = output.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidParameter("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        words = line.split(None, len(titles) - 1)
        if len(words) > column and words[column].isdigit() and int(words[column]) in pids:
            rows.append([word.rstrip() for word in words])
    return titles, rows


async def processes(pids: list[int], ps_args: str) -> tuple[list[str], list[list[str]]]:
    """Run `ps`. Raises InvalidParameter for bad arguments, NotImplementedYet when the host has no ps."""
    args = (ps_args or _DEFAULT_ARGS).split()
    if any(re.search(r"\s*pid\s*=\s*(PID|pid)?\s*", word) is None and re.search(r"pid\s*=", word) for word in args):
        raise InvalidParameter(f"specified ps_args {ps_args!r} renames the PID column")
    program = shutil.which("ps")
    if program is None:
        raise NotImplementedYet("top on a host without ps", hint="install procps")
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}  # else it cuts lines at that width
    done = await trio.run_process(
        [program, *args], capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL, env=env
    )
    if done.returncode:
        raise KnarrError(f"Error running ps: {done.stderr.decode(errors='replace').strip()}")
    return parse(done.stdout.decode(errors="replace"), set(pids))
