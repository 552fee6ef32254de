"""`python -m benchmarks.builds`: building images, beside dockerd's classic builder and BuildKit.

Needs root; mmdebstrap for the real Dockerfile. Each engine in turn in one run; what is not here is left out of the table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import stats
from benchmarks.progress import Progress
from benchmarks.stats import Bar, Measurement
from tests.lib import busybox
from tests.lib.daemon import Daemon, docker_program, knarr_command

FILES, BYTES = 20_000, 500 << 20
STAGE_SECONDS = 5
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}

TITLES = {
    "fresh": ("3 RUN and 1 COPY on busybox, no cache", "ms"),
    "cached": ("The same, all cached", "ms"),
    "context": (f"A context of {FILES} files, {BYTES >> 20} MB, one file changed", "s"),
    "real": ("Debian, apt, pip, compile, COPY --from, no cache", "s"),
    "stages": (f"Two independent stages of {STAGE_SECONDS} s", "s"),
}
BARS = (
    Bar("no cache at most 1/8 of the classic builder", "fresh", "knarr", 1 / 8, "fresh", "classic"),
    Bar("no cache at most 1/8 of BuildKit", "fresh", "knarr", 1 / 8, "fresh", "buildkit"),
    Bar("cached at most 1/3 of BuildKit", "cached", "knarr", 1 / 3, "cached", "buildkit"),
    Bar("cached as the classic builder, and an interpreter's start more", "cached", "knarr", 2, "cached", "classic"),
    Bar("one file changed at most 1/3 of BuildKit", "context", "knarr", 1 / 3, "context", "buildkit"),
    Bar("a real Dockerfile faster than BuildKit", "real", "knarr", 1, "real", "buildkit"),
    Bar("two independent stages in about 5 s", "stages", "knarr", 5.5, "", None),
)

SMALL = """FROM busybox
RUN echo one > /one
RUN echo two > /two
RUN echo three > /three
COPY file /file
"""
WHOLE = "FROM busybox\nCOPY . /context\n"
STAGES = f"""FROM busybox AS a
RUN sleep {STAGE_SECONDS}; echo a > /a
FROM busybox AS b
RUN sleep {STAGE_SECONDS}; echo b > /b
FROM busybox
COPY --from=a /a /
COPY --from=b /b /
"""
REAL = """FROM knarr-bench-debian AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make python3 python3-pip python3-venv
COPY certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --cert /etc/ssl/certs/ca-certificates.crt requests
WORKDIR /src
COPY . .
RUN make
FROM knarr-bench-debian
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
COPY --from=build /src/program /usr/local/bin/program
CMD ["program"]
"""


class Builder:
    """A command that builds the folder it is given: `knarr build`, or the docker CLI with one of dockerd's builders."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.command = command
        self.environment = {**{k: v for k, v in os.environ.items() if not k.startswith("DOCKER")}, **environment}

    def build(self, context: Path, *flags: str) -> float:
        """Seconds. Raises RuntimeError with what the builder said."""
        command = [*self.command, "build", *flags, "-q", "-t", "knarr-bench-built", str(context)]
        began = time.monotonic()
        done = subprocess.run(command, env=self.environment, check=False, **QUIET)
        taken = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr.decode(errors='replace')[-2000:]}")
        return taken

    def run(self, *arguments: str, data: bytes | None = None) -> None:
        subprocess.run([*self.command, *arguments], env=self.environment, check=True, input=data, stdout=subprocess.DEVNULL)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.builds", description=__doc__)
    parser.add_argument("--docker-host", default="", help="unix socket of a running dockerd to compare with")
    parser.add_argument("--buildx", type=Path, help="the docker-buildx plugin, for BuildKit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help=f"comma-separated measurements: {', '.join(TITLES)}")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for builds.json and builds.txt")
    return parser.parse_args()


def contexts(work: Path) -> dict[str, Path]:
    made = {}
    for name, text in (("small", SMALL), ("whole", WHOLE), ("stages", STAGES), ("real", REAL)):
        made[name] = work / name
        made[name].mkdir()
        (made[name] / "Dockerfile").write_text(text)
    (made["small"] / "file").write_text("a file\n")
    (made["real"] / "program.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); }\n')
    # Those that this host trusts: its way out may be a proxy with one of its own.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", made["real"] / "certificates.crt")
    (made["real"] / "Makefile").write_text("program: program.c\n\tgcc -O2 -o program program.c\n")
    return made


def fill(folder: Path) -> None:
    """Many files of one size, none equal to another."""
    size = BYTES // FILES
    for number in range(FILES):
        place = folder / f"folder-{number // 200}"
        place.mkdir(exist_ok=True)
        (place / f"file-{number}").write_bytes(number.to_bytes(8, "big") + os.urandom(64) * (size // 64))


class Session:
    """One run."""

    def __init__(self, options: argparse.Namespace, work: Path, stack: ExitStack) -> None:
        self.options, self.work = options, work
        self.found = {key: Measurement(key, title) for key, (title, _) in TITLES.items()}
        daemon = Daemon()
        stack.callback(daemon.close)
        daemon.start()
        self.builders = [Builder("knarr", [*knarr_command(), "-H", f"unix://{daemon.socket}"], {})]
        # What users of the docker CLI have.
        self.builders.append(
            Builder("knarr by docker", [docker_program()], {"DOCKER_HOST": f"unix://{daemon.socket}", "DOCKER_BUILDKIT": "0"})
        )
        if options.docker_host:
            self.builders.append(Builder("classic", [docker_program()], {"DOCKER_HOST": options.docker_host, "DOCKER_BUILDKIT": "0"}))
        if options.docker_host and options.buildx:
            config = work / "config"
            (config / "cli-plugins").mkdir(parents=True)
            (config / "cli-plugins/docker-buildx").symlink_to(options.buildx)
            environment = {"DOCKER_HOST": options.docker_host, "DOCKER_CONFIG": str(config), "DOCKER_BUILDKIT": "1"}
            self.builders.append(Builder("buildkit", [docker_program()], environment))
        self.contexts = contexts(work)
        self.progress = Progress()
        for builder in self.builders:
            builder.run("load", data=busybox.archive())

    def add(self, key: str, builder: Builder, seconds: float) -> None:
        unit = TITLES[key][1]
        self.found[key].add(builder.name, seconds * 1000 if unit == "ms" else seconds, unit)

    def fresh(self) -> None:
        for number in range(self.options.rounds * 3):
            self.progress.stage(number, self.options.rounds * 3, "no cache")
            for builder in self.builders:
                self.add("fresh", builder, builder.build(self.contexts["small"], "--no-cache"))

    def cached(self) -> None:
        for builder in self.builders:
            builder.build(self.contexts["small"])
        for number in range(self.options.rounds * 4):
            self.progress.stage(number, self.options.rounds * 4, "cached")
            for builder in self.builders:
                self.add("cached", builder, builder.build(self.contexts["small"]))

    def context(self) -> None:
        folder = self.contexts["whole"]
        fill(folder)
        for builder in self.builders:
            builder.build(folder)
        for number in range(self.options.rounds):
            self.progress.stage(number, self.options.rounds, "context")
            for builder in self.builders:
                os.sync()
                (folder / "folder-7/file-1400").write_bytes(os.urandom(BYTES // FILES))
                self.add("context", builder, builder.build(folder))

    def stages(self) -> None:
        for builder in self.builders:
            self.add("stages", builder, builder.build(self.contexts["stages"], "--no-cache"))

    def real(self) -> None:
        root = self.work / "debian.tar"
        subprocess.run(["mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", root], check=True, **QUIET)
        for builder in self.builders:
            builder.run("import", str(root), "knarr-bench-debian")
        for number in range(max(1, self.options.rounds // 2)):
            self.progress.stage(number, max(1, self.options.rounds // 2), "a real Dockerfile")
            for builder in self.builders:
                if builder.name != "knarr by docker":
                    os.sync()
                    self.add("real", builder, builder.build(self.contexts["real"], "--no-cache"))


def main() -> int:
    options = arguments()
    if os.geteuid():
        print("benchmarks: needs root", file=sys.stderr)
        return 1
    wanted = options.only.split(",") if options.only else list(TITLES)
    if unknown := set(wanted) - set(TITLES):
        print(f"benchmarks: unknown: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 1
    made = tempfile.TemporaryDirectory(prefix="knarr-build-", dir="/var/tmp", ignore_cleanup_errors=True)
    with made as work, ExitStack() as stack:
        session = Session(options, Path(work), stack)
        try:
            for key in wanted:
                getattr(session, key)()
        finally:
            session.progress.done()
            stats.write(options.out, "builds", session.found, BARS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
