"""Builds of a daemon that is killed anywhere in them, and what has to be there afterwards: every image that was acknowledged."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import threading
from pathlib import Path

from tests.lib import buildwork
from tests.lib.daemon import Daemon
from tests.lib.images import entry, tar

SITES = 4
_STEPS = (
    "RUN echo {n} > /run-{n}; sleep 0.0{n}",
    "COPY . /all-{n}",
    "COPY --chown=7:8 --chmod=600 part /own-{n}",
    "RUN --mount=type=cache,id=kills,target=/cache echo {n} >> /cache/log; cp /cache/log /log-{n}",
    "RUN --mount=type=cache,id=locked,sharing=locked,target=/cache sleep 0.05; touch /cache/{n} /touched-{n}",
    "RUN --mount=type=bind,target=/context,rw echo x > /context/written; cat /context/number > /bound-{n}",
    "RUN --network=none rm -rf /all-{n}; mkdir -p /deep/{n}",
    "WORKDIR /made/{n}",
    "COPY --link part/1 /linked-{n}",
    "RUN head -c 400000 /dev/urandom > /big-{n}",
)


class Builds:
    """Clients of one daemon that build all the time, and what was acknowledged: name -> what /number must hold, None while that is open."""

    def __init__(self, daemon: Daemon, folder: Path, chance: random.Random) -> None:
        self.daemon = daemon
        self.folder = folder
        self.chance = chance
        self.expected: dict[str, str | None] = {}
        self.done = self.cut = 0
        self.wrong: list[str] = []
        self._locks = [threading.Lock() for _ in range(SITES)]
        self._number = 0

    def dockerfile(self, site: int) -> str:
        """Steps that a site has always, so that they are cached, and a few by chance."""
        always = [step.format(n=site) for step in _STEPS]
        more = [step.format(n=self.chance.randrange(100, 105)) for step in self.chance.sample(_STEPS, 2)]
        return "\n".join(["FROM busybox", *always[: 3 + site], *more, "COPY number /number", ""])

    def step(self, site: int, dying: threading.Event) -> None:
        """One build in a site, by either client."""
        self._number += 1
        number, name = self._number, f"killed:{site}"
        text = self.dockerfile(site)
        self.expected[name] = None
        if site % 2:
            code = self._own(site, name, text, str(number))
        else:
            code = self._classic(name, text.replace("COPY --link ", "COPY "), str(number))
        if code == "":
            self.expected[name] = str(number)
            self.done += 1
        elif dying.is_set():
            self.cut += 1
        else:
            self.wrong.append(code)

    def _files(self, number: str) -> dict[str, bytes]:
        return {"number": number.encode(), **{f"part/{one}": b"%d" % one * 50 for one in range(30)}}

    def _own(self, site: int, name: str, text: str, number: str) -> str:
        folder = buildwork.site(self.folder / f"site-{site}", text, self._files(number))
        code, told = buildwork.build(self.daemon, folder, "-t", name, check=False)
        return told[-3000:] if code else ""

    def _classic(self, name: str, text: str, number: str) -> str:
        members = {"Dockerfile": text.encode(), **self._files(number)}
        archive = tar([entry(path, data=data) for path, data in members.items()])
        try:
            answer = self.daemon.api("POST", f"/build?t={name}&rm=1", archive, {"Content-Type": "application/x-tar"}, timeout=300)
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        return "" if b"Successfully tagged" in answer.body else answer.body[-3000:].decode(errors="replace")

    def busy(self, site: int, dying: threading.Event) -> None:
        while not dying.is_set() and not self.wrong:
            self.step(site, dying)

    # -- after a start

    def look(self) -> None:
        """Nothing of builds that were cut off is left, the store is sound, and every acknowledged image is there, as it should be."""
        daemon = self.daemon
        own = {str(path) for path in (daemon.exec_root / "bundles").iterdir()}
        assert not own, own
        buildwork.wait(lambda: not groups(daemon), told=lambda: f"control groups: {groups(daemon)}")
        assert not (daemon.exec_root / "build").exists()
        findings = [json.loads(line) for line in buildwork.findings(daemon)]
        assert not findings, findings
        shown = {tag for image in daemon.api("GET", "/images/json").json() for tag in image["RepoTags"] or ()}
        for name, holds in list(self.expected.items()):
            if holds is not None:
                assert name in shown, (name, shown)
                assert self.number(name) == holds
            elif name in shown:
                self.expected[name] = self.number(name)
            else:
                del self.expected[name]

    def number(self, name: str) -> str:
        """What an image's /number holds, asked of a container."""
        body = {"Image": name, "Cmd": ["cat", "/number"], "HostConfig": {"NetworkMode": "none"}}
        made = self.daemon.api("POST", "/containers/create", body)
        assert made.status == 201, (name, made.body)
        container = made.json()["Id"]
        assert self.daemon.api("POST", f"/containers/{container}/start").status == 204
        assert self.daemon.api("POST", f"/containers/{container}/wait").json()["StatusCode"] == 0
        logs = self.daemon.api("GET", f"/containers/{container}/logs?stdout=1").body
        assert self.daemon.api("DELETE", f"/containers/{container}").status == 204
        return logs[8:].decode()

    def warm(self) -> bool:
        """Whether a build of the steps that a site has always finds most of them; False when nothing of it was ever finished."""
        site = self.chance.randrange(SITES // 2) * 2 + 1
        if f"killed:{site}" not in self.expected:
            return False
        text = "\n".join(["FROM busybox", *(step.format(n=site) for step in _STEPS[:1]), ""])
        folder = buildwork.site(self.folder / f"warm-{site}", text)
        _, told = buildwork.build(self.daemon, folder, check=True)
        assert "CACHED" in told, told
        return True


def groups(daemon: Daemon) -> list[str]:
    return [str(group) for group in daemon.cgroups() if group.name != "default-devices"]


def killed_amid(builds: Builds, seconds: float) -> None:
    """Builds at once, and SIGKILL in them."""
    dying = threading.Event()
    threads = [threading.Thread(target=builds.busy, args=(site, dying)) for site in range(SITES)]
    for thread in threads:
        thread.start()
    dying.wait(seconds)
    dying.set()
    builds.daemon.kill()
    for thread in threads:
        thread.join()
    assert not builds.wrong, "\n\n".join([*builds.wrong, builds.daemon.log_tail(80)])
    with contextlib.suppress(FileNotFoundError):
        os.unlink(builds.daemon.socket)
