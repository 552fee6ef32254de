"""What the daemon knows of a container and of an exec: the record that is stored and the state that changes. Pure data.

Times are nanoseconds since the epoch, 0 for "never". Field names follow Docker's inspect output.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.spec.docker.containers import Config, HostConfig, NetworkingConfig
from engine.spec.health import Health
from engine.spec.mount import MountPoint

Status = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]


class State(msgspec.Struct, omit_defaults=True):
    """Where a container is in its life. `exit_code` is Docker's (128+n for a signal); 255 with `error` when it is unknown."""

    status: Status = "created"
    pid: int = 0
    pid_start: int = 0  # field 22 of /proc/PID/stat, tells a reused pid
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: int = 0
    finished_at: int = 0
    restart_count: int = 0
    manually_stopped: bool = False  # since the last start
    health: Health | None = None

    @property
    def running(self) -> bool:
        """Whether Docker calls it running: also while it is paused, or waits for its next restart without a process."""
        return self.status in ("running", "paused", "restarting")

    @property
    def alive(self) -> bool:
        """Whether there is a process (a paused container has one)."""
        return self.status in ("running", "paused")


class ContainerRecord(msgspec.Struct, omit_defaults=True):
    """One row of the containers table, msgspec-encoded JSON.

    `path` and `args` are what is executed (entrypoint and command merged); `image_id` is the digest of the image's
    configuration, `image` the name the user gave. `snapshot` is the key of the active snapshot. `mount_points` are those
    that inspect shows, resolved at create.
    """

    id: str
    name: str
    created_at: int
    image: str
    image_id: str
    path: str
    args: list[str]
    config: Config
    host_config: HostConfig
    networking: NetworkingConfig
    mount_points: list[MountPoint] = []
    driver: str = "overlay2"
    platform: str = "linux"
    log_path: str = ""
    state: State = msgspec.field(default_factory=State)


class Trace(msgspec.Struct, frozen=True):
    """One step of a start: its human name and when it began, nanoseconds of CLOCK_MONOTONIC."""

    name: str
    at: int


class ExecRecord(msgspec.Struct):
    """One exec; lives in memory only, as in Docker. `exit_code` is None until it ended."""

    id: str
    container_id: str
    tty: bool
    open_stdin: bool
    open_stdout: bool
    open_stderr: bool
    detach_keys: str
    path: str
    args: list[str]
    env: list[str]
    user: str
    privileged: bool
    working_dir: str
    console_size: tuple[int, int] | None = None
    running: bool = False
    exit_code: int | None = None
    pid: int = 0
    can_remove: bool = False
    started: bool = False
