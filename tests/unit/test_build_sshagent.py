"""The socket by which a RUN reaches the ssh agent of the client that builds."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from builder.graph import Mount
from builder.sources import sshagent
from builder.sources.sshagent import agent_socket


class Agent:
    """Answers with what it gets, and counts its connections."""

    secrets: dict[str, bytes] = {}
    agents = frozenset(("default",))

    def __init__(self) -> None:
        self.now = self.most = 0
        self.crowded = trio.Event()  # four at once

    async def connect(self, id: str, stream: trio.SocketStream) -> None:
        assert id == "default"
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == 4:
            self.crowded.set()
        try:
            async for data in stream:
                await stream.send_all(bytes(data))
        finally:
            self.now -= 1


def test_it_serves_while_its_step_runs_and_no_longer(tmp_path: Path) -> None:
    agent = Agent()

    async def main() -> None:
        async with agent_socket(str(tmp_path), Mount(kind="ssh", id="default", mode=0o640, uid=3, gid=4), agent) as path:
            info = os.lstat(path)
            assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o640, 3, 4)
            stream = await trio.open_unix_socket(path)
            await stream.send_all(b"question")
            assert await stream.receive_some() == b"question"
        assert await stream.receive_some() == b""
        with pytest.raises(ConnectionRefusedError):
            await trio.open_unix_socket(path)

    trio.run(main)


def test_a_process_cannot_use_up_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sshagent, "_CONNECTIONS", 4)
    agent = Agent()

    async def main() -> None:
        async with agent_socket(str(tmp_path), Mount(kind="ssh", id="default", mode=0o600), agent) as path:
            streams = [await trio.open_unix_socket(path) for _ in range(12)]
            await agent.crowded.wait()
            for stream in streams:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
                await stream.aclose()

    trio.run(main)
    assert agent.most == 4
