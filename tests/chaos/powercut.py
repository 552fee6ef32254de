"""What runs inside the machine whose power is cut: `python -m tests.chaos.powercut FOLDER REGISTRY [last]`.

The data root lies on /dev/ubda. First everything that was acknowledged before the last cut (`FOLDER/expected.json`) must be there and run;
then requests follow one another until the cut, or, at the `last` time, the pulls that were cut off are done again.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.chaos.storework import TAGS, Work
from tests.lib.daemon import Daemon
from tests.lib.registries import DockerRegistry

DISK = "/run/disk"
PORT = 5000  # on a loopback of its own


def main(folder: Path, registry_folder: Path, last: bool) -> None:
    os.mkdir(DISK)
    subprocess.run(["mount", "-t", "ext4", "/dev/ubda", DISK], check=True)
    registry = DockerRegistry(folder=registry_folder)
    registry.port = PORT
    registry.config["http"]["addr"] = registry.host
    registry.start()
    try:
        daemon = Daemon("--data-root", f"{DISK}/data")
        daemon.data_root = Path(DISK) / "data"
        daemon.start(300)
        try:
            work = Work(daemon, registry.host, random.Random(), lambda: store(folder / "expected.json", work))
            work.expected = load(folder / "expected.json")
            work.look()
            for name, holds in work.expected.items():
                if holds is not None:
                    work.runs(name)
            store(folder / "expected.json", work)
            (folder / "ready").touch()
            while not last:
                work.step()
            for tag in range(TAGS):
                work.pull_tag(tag)
                work.runs(f"{registry.host}/app:{tag}")
            assert work.findings() == []
        except BaseException:
            print(daemon.log_tail(80), file=sys.stderr)
            raise
        daemon.stop()
    finally:
        registry.stop()


def store(path: Path, work: Work) -> None:
    """On the machine's own disk, for good, before the next request."""
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        json.dump(work.expected, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def load(path: Path) -> dict[str, str | None]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "last" in sys.argv[3:])
