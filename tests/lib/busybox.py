"""Gets images into an engine: busybox (made by `tests.lib.images`), and a Debian root file system by mmdebstrap."""

from __future__ import annotations

import atexit
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.lib import images
from tests.lib.daemon import Engine

NAME = "busybox:latest"


@cache
def layer() -> bytes:
    return images.busybox_layer()


@cache
def archive(name: str = NAME) -> bytes:
    """The busybox image as `docker save` writes it."""
    return images.docker_archive([layer()], [name])


def load(engine: Engine) -> None:
    """Load busybox into an engine unless it is there."""
    if engine.api("GET", f"/images/{NAME}/json").status == 200:
        return
    answer = engine.api("POST", "/images/load?quiet=1", archive(), {"Content-Type": "application/x-tar"})
    assert answer.status == 200, answer.body
    assert b"error" not in answer.body, answer.body


@cache
def debian_tar() -> Path:
    """A minimal Debian root file system as a tar, from the host's own package sources: made once (some 15 s), gone when the tests end."""
    folder = tempfile.TemporaryDirectory(prefix="knarr-debian-")
    atexit.register(folder.cleanup)
    target = Path(folder.name) / "debian.tar"
    command = ["mmdebstrap", "--variant=minbase", "--quiet", "--aptopt=Acquire::Retries 5", "bookworm", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900)
    assert result.returncode == 0, result.stderr
    return target
