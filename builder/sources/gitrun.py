"""Running `git`: in a session of its own, with nothing of this host's settings, and with nothing that a repository could make it run.

What a repository says is hostile. Hooks are off, the only transports are http, https, git and ssh (so that a submodule cannot name a
folder of this host), nobody is asked for a password, and no file of settings but the repository's own, which we wrote, is read.
Credentials are in the environment, where other users of the host do not see them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

import trio

from engine.errors import KnarrError

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OUTPUT_MAX = 16 << 20
_MARK = "KNARR_SOURCES"  # in the environment of each git and of all that it starts
_TOLD = 4000  # characters of what git complains
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.autocrlf": "false",
    "init.defaultBranch": "master",
    "init.templateDir": "",
    "safe.directory": "*",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
    "fetch.recurseSubmodules": "false",
    # A server that says nothing for a minute is gone.
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "60",
}


class GitFailed(KnarrError):
    """`git` ended with an error; `output` is what it said."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


class Git:
    """How to run git for one repository. `settings` beside ours, e.g. a header with a token; `agent`: the path of an ssh agent's socket;
    `root`: the folder that it works for, by which `end_strays` knows it."""

    def __init__(self, shown: str, settings: Mapping[str, str] | None = None, agent: str = "", root: str = "") -> None:
        self._shown = shown
        self._root = root
        self._settings = {**_SETTINGS, **(settings or {})}
        self._agent = agent

    def environment(self, local: bool) -> dict[str, str]:
        """Everything that git gets to know. `local`: it may read another repository on this host."""
        found = {
            "PATH": os.environ.get("PATH", _PATH),
            "LC_ALL": "C",
            "HOME": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_SSH_COMMAND": "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            "GIT_ALLOW_PROTOCOL": "file" if local else "http:https:git:ssh",
            "GIT_CONFIG_COUNT": str(len(self._settings)),
            _MARK: f"{self._root}:{os.getpid()}",
        }
        for i, (key, value) in enumerate(self._settings.items()):
            found[f"GIT_CONFIG_KEY_{i}"] = key
            found[f"GIT_CONFIG_VALUE_{i}"] = value
        found |= {name: os.environ[name] for name in _PROXIES if name in os.environ}
        if self._agent:
            found["SSH_AUTH_SOCK"] = self._agent
        return found

    async def run(self, doing: str, folder: str, *arguments: str, local: bool = False) -> str:
        """Run one command in `folder` and return what it prints. `doing` for the error.

        Cancelling ends it and all that it started. Raises GitFailed, KnarrError when there is no git.
        """
        try:
            process = await trio.lowlevel.open_process(
                ["git", *arguments],
                cwd=folder,
                env=self.environment(local),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                umask=0o022,
            )
        except FileNotFoundError as error:
            raise KnarrError(f"{doing} {self._shown}: failed to find git binary", hint="install git on the daemon's host") from error
        outputs = bytearray(), bytearray()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read, process.stdout, outputs[0])
                nursery.start_soon(_read, process.stderr, outputs[1])
                await process.wait()
        finally:
            # Helpers of git outlive it, and it does not wait for them when it is killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
                for stream in (process.stdout, process.stderr):
                    assert stream is not None
                    await stream.aclose()
        told = outputs[1].decode("utf-8", "replace").strip()
        if process.returncode:
            raise GitFailed(f"{doing} {self._shown}: git stderr:\n{told[-_TOLD:]}", told)
        return outputs[0].decode("utf-8", "surrogateescape")

    async def retried(self, doing: str, folder: str, arguments: Sequence[str], **options: bool) -> str:
        """As `run`, once more without `--depth` for servers that cannot do it."""
        try:
            return await self.run(doing, folder, *arguments, **options)
        except GitFailed as error:
            plain = [word for word in arguments if word != "--depth=1"]
            if len(plain) == len(arguments) or ("--depth" not in error.output and "shallow" not in error.output):
                raise
        return await self.run(doing, folder, *plain, **options)


async def _read(stream: trio.abc.ReceiveStream | None, into: bytearray) -> None:
    assert stream is not None
    async for piece in stream:
        if len(into) < _OUTPUT_MAX:
            into += piece


def end_strays(root: str) -> None:
    """Kill what was started for the folder `root` by a daemon that is gone. Blocks."""
    mark, mine = f"{_MARK}={root}:".encode(), str(os.getpid()).encode()
    namespace = os.readlink("/proc/self/ns/mnt")
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            process = os.pidfd_open(int(name))
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    found = [entry for entry in file.read().split(b"\0") if entry.startswith(mark)]
                # A container's processes may say what they like, but are elsewhere.
                if found and found[0][len(mark) :] != mine and os.readlink(f"/proc/{name}/ns/mnt") == namespace:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)
