"""`python -m benchmarks`: measure Knarr beside whatever else is here. Needs root."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.client import Client
from benchmarks.engines import Dockerd, Knarr, Podman, Runtime
from benchmarks.floor import Floor
from benchmarks.measures import Plan, Session
from benchmarks.progress import Progress

DEFAULT_DOCKER = "unix:///var/run/docker.sock"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Measure Knarr beside whichever of docker, podman, crun, runc is here.")
    parser.add_argument(
        "--docker-host", default=os.environ.get("KNARR_BENCH_DOCKER_HOST", DEFAULT_DOCKER), help="unix socket of a running dockerd"
    )
    parser.add_argument("--quick", action="store_true", help="a handful of samples: whether it works, not how fast it is")
    parser.add_argument("--rounds", type=int, help="samples of each measurement (default 60)")
    parser.add_argument("--only", default="", help="comma-separated engines, e.g. knarr,dockerd")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for results.json, results.svg, results.txt")
    return parser.parse_args()


def answers(host: str) -> bool:
    """Whether a Docker daemon (and not Knarr itself) answers on a unix socket."""
    try:
        client = Client(host.removeprefix("unix://"), "")
        names = [part.get("Name", "") for part in client.json("GET", "/version").get("Components", [])]
        client.close()
    except (OSError, ValueError):
        return False
    return "Engine" in names and "containerd" in names


def present(options: argparse.Namespace, notes: list[str]) -> list[Any]:
    """The engines that are here and work, prepared. Knarr first."""
    wanted = [name for name in options.only.split(",") if name]
    candidates: dict[str, Any] = {"knarr": Knarr}
    for name in ("crun", "runc"):
        if shutil.which(name):
            candidates[name] = lambda name=name: Runtime(name)
    if shutil.which("podman"):
        candidates["podman"] = Podman
    if answers(options.docker_host):
        candidates["dockerd"] = lambda: Dockerd(options.docker_host.removeprefix("unix://"))
    found = []
    for name, make in candidates.items():
        if wanted and name not in wanted:
            continue
        engine = make()
        try:
            engine.prepare()
        except (OSError, subprocess.CalledProcessError) as error:
            if name == "knarr":
                engine.stop()
                raise
            notes.append(f"{name}: not measured: {error}")
            engine.close()
        else:
            found.append(engine)
    return found


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        print("benchmarks: starting containers needs root", file=sys.stderr)
        return 1
    notes: list[str] = []
    engines = present(options, notes)
    floor = Floor()
    try:
        session = Session(engines, floor, Plan(options.quick, options.rounds), Progress())
        session.skipped += notes
        session.run()
    finally:
        floor.close()
        for engine in engines:
            engine.stop() if hasattr(engine, "stop") else engine.close()
    report.write(session, options.out)
    print(report.text(session))
    print(f"Written to {options.out}/results.json, results.svg and results.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
