"""What a daemon has of the kernel and of the disk, before and after a test: nothing may be left of containers that are gone.

Looks at: mounts in every mount namespace, cgroups, processes and their namespaces, the daemon's descriptors, files; and, in the network
namespace that the daemon runs in, its links, its nftables elements, and the namespaces that it or its name server holds on to.
Other daemons may run tests beside this one: what names another test's folder is theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.lib.daemon import Daemon
from tests.lib.netns import Namespace

CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
TEST_FOLDER = re.compile(r"knarr-(?:test|cgroup2|transfer)-[^/\s]+")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
# Written to while a daemon runs; and the database's helpers come and go.
FILES_THAT_CHANGE = re.compile(r"/meta\.db(-wal|-shm)?$|/daemon\.log$")
WAITING_SNAPSHOTS = 16
SPARE_DESCRIPTORS = 8  # waiting monitors and kept connections come and go; a leak grows with every container
WAITING = "knarr-spawner"  # what the spawner is called, and its monitors until they get a container
POOL = 2  # monitors that a daemon keeps waiting
SPARE_NAMESPACES = 8  # made ahead for the next containers, each with its pair of links


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # processes end while one looks
        return ""


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def start_time(pid: int) -> str:
    return "".join(read(f"/proc/{pid}/stat").rpartition(")")[2].split(" ")[20:21])


def parent(pid: int) -> int:
    """Process id of the parent, 0 for a process that is gone."""
    return int("".join(read(f"/proc/{pid}/stat").rpartition(")")[2].split(" ")[2:3]) or 0)


def descriptors(pid: int) -> Counter[str]:
    """Open descriptors of a process by kind: a path, or socket, pipe, [pidfd] and so on."""
    kinds: Counter[str] = Counter()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return kinds
    for name in names:
        if target := link(f"/proc/{pid}/fd/{name}"):
            kinds[re.sub(r":\[\d+\]$", "", target)] += 1
    return kinds


def mounts_naming(folder: str) -> set[str]:
    """Mounts in any mount namespace whose mount point, root or options name `folder`."""
    seen: set[str] = set()
    found: set[str] = set()
    for pid in processes():
        namespace = link(f"/proc/{pid}/ns/mnt")
        if not namespace or namespace in seen:
            continue
        seen.add(namespace)
        for line in read(f"/proc/{pid}/mountinfo").splitlines():
            if folder in line:
                found.add(f"{namespace} {line.split(' ', 3)[3]}")
    return found


def belongs(pid: int, folder: str) -> bool:
    """Whether a process is this daemon's or one of its containers' (or may be: nothing says it is another test's)."""
    command = read(f"/proc/{pid}/cmdline").replace("\0", " ")
    executable = link(f"/proc/{pid}/exe")
    files = " ".join(descriptors(pid))
    named = TEST_FOLDER.findall(f"{command} {files} {link(f'/proc/{pid}/cwd')} {read(f'/proc/{pid}/cgroup')}")
    if any(name in folder for name in named):
        return True
    if not named and command.startswith(WAITING):  # a monitor that has no container yet names nothing: it is its spawner's
        above = parent(pid)
        if read(f"/proc/{above}/cmdline").startswith(WAITING):
            return belongs(above, folder)
    if named or CONTAINER_ID.search(read(f"/proc/{pid}/cgroup")) or link(f"/proc/{pid}/cwd") not in ("/", ""):
        return False  # another test's, in a container of a daemon whose control groups are elsewhere, or a daemon's that is no test's
    return command.startswith("knarr-") and executable.startswith("/memfd:")


def own_processes(daemon: Daemon) -> set[str]:
    """`pid start-time command` of every process that is this daemon's."""
    folder = str(daemon.directory)
    found = set()
    for pid in processes():
        if pid != os.getpid() and belongs(pid, folder):
            command = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or read(f"/proc/{pid}/comm").strip()
            found.add(f"{pid} {start_time(pid)} {command[:120]}")
    return found


def own_namespaces(daemon: Daemon) -> set[str]:
    """Namespaces, other than this process's, of the daemon's processes; and those that are bound somewhere below its folders."""
    mine = {link(f"/proc/self/ns/{kind}") for kind in NAMESPACES}
    found = set()
    for entry in own_processes(daemon):
        pid = entry.split(" ", 1)[0]
        found |= {link(f"/proc/{pid}/ns/{kind}") for kind in NAMESPACES}
    return found - mine - {""}


def files(daemon: Daemon) -> set[str]:
    found = set()
    for top in (daemon.data_root, daemon.exec_root):
        for folder, folders, names in os.walk(top):
            found |= {f"{folder}/{name}" for name in (*folders, *names)}
    waiting = waiting_snapshots(daemon)
    if len(waiting) <= WAITING_SNAPSHOTS:
        found = {name for name in found if not name.startswith(tuple(f"{folder}/" for folder in waiting)) and name not in waiting}
    return {name for name in found if not FILES_THAT_CHANGE.search(name)}


def waiting_snapshots(daemon: Daemon) -> set[str]:
    """Pairs of empty folders that are made ahead for the next containers."""
    pairs = (daemon.data_root / "snapshots").glob("*")
    return {str(pair) for pair in pairs if empty(pair / "fs") and empty(pair / "work")}


def empty(folder: Path) -> bool:
    """Whether there is nothing in it; also when there is no such folder (any more)."""
    try:
        return not os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return True


def network_tag(daemon: Daemon) -> str:
    """What the daemon's tables and its default bridge are called."""
    return f"knarr-{hashlib.sha256(str(daemon.exec_root).encode()).hexdigest()[:6]}"


def host_of(daemon: Daemon) -> Namespace:
    return Namespace.of(daemon.pid) if daemon.process else Namespace.here()


def links(daemon: Daemon) -> set[str]:
    """Bridges of the daemon's networks, and the pairs that are plugged into them. Its default bridge stays while it runs, and after."""
    default = network_tag(daemon)
    ids = {network["Id"] for network in daemon.api("GET", "/networks").json()} if daemon.process else set()
    if daemon.process:  # those that are gone; other daemons of this host have bridges too
        events = daemon.api("GET", f"/events?since=1&until={time.time():.0f}&filters=" + '{"type":["network"]}').body
        ids |= {json.loads(line)["Actor"]["ID"] for line in events.splitlines()}
    bridges = {default} | {f"br-{network[:12]}" for network in ids}
    host = host_of(daemon)
    try:
        shown = json.loads(host.ip("-j", "link", "show"))
    finally:
        host.close()
    return {one["ifname"] for one in shown if one["ifname"] in bridges or one.get("master") in bridges} - {default}


def elements(daemon: Daemon) -> set[str]:
    """`family set: element` of the daemon's tables, empty where nft(8) is not installed."""
    if not shutil.which("nft"):
        return set()
    host = host_of(daemon)
    found = set()
    try:
        for family in ("inet", "bridge"):
            listed = host.run("nft", "-j", "list", "table", family, network_tag(daemon), check=False)
            for item in json.loads(listed.stdout)["nftables"] if listed.returncode == 0 else ():
                for held in (item.get("set") or item.get("map") or {}).get("elem", ()):
                    found.add(f"{family} {(item.get('set') or item.get('map'))['name']}: {json.dumps(held)}")
    finally:
        host.close()
    return found


def held_namespaces(daemon: Daemon) -> int:
    """How many descriptors of network namespaces the daemon's processes have open."""
    count = 0
    for entry in own_processes(daemon):
        pid = entry.split(" ", 1)[0]
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        count += sum(link(f"/proc/{pid}/fd/{name}").startswith("net:[") for name in names)
    return count


@dataclass
class State:
    """One look. Sets of text, so that a difference reads by itself."""

    mounts: set[str]
    cgroups: set[str]
    links: set[str]
    elements: set[str]
    held: int
    processes: set[str]
    namespaces: set[str]
    files: set[str]
    descriptors: Counter[str] = field(default_factory=Counter)


def look(daemon: Daemon) -> State:
    return State(
        mounts=mounts_naming(str(daemon.directory)),
        cgroups={str(group) for group in daemon.cgroups()},
        links=links(daemon),
        elements=elements(daemon),
        held=held_namespaces(daemon),
        processes=own_processes(daemon),
        namespaces=own_namespaces(daemon),
        files=files(daemon),
        descriptors=descriptors(daemon.pid) if daemon.process else Counter(),
    )


class Leaks:
    """Taken at the start of a test, `check` at its end. Waiting monitors are replaced all the time, so processes count by command."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.settle()
        self.before = look(daemon)
        self.pid = daemon.pid

    def settle(self, timeout: float = 20) -> None:
        """A daemon that has only just begun has not forked all the monitors yet that it keeps waiting."""
        deadline = time.monotonic() + timeout
        while sum(WAITING in entry for entry in own_processes(self.daemon)) <= POOL and time.monotonic() < deadline:
            time.sleep(0.05)

    def differences(self) -> list[str]:
        now = look(self.daemon)
        found = []
        for name in ("mounts", "cgroups", "elements", "files"):
            found += [f"{name}: {entry}" for entry in sorted(getattr(now, name) - getattr(self.before, name))]
        new = now.links - self.before.links
        waiting = {name for name in new if name.startswith("veth")}
        found += [f"links: {entry}" for entry in sorted(new if len(waiting) > SPARE_NAMESPACES else new - waiting)]
        if now.held > self.before.held + SPARE_NAMESPACES:
            found.append(f"descriptors of network namespaces: {self.before.held} before, {now.held} now")
        found += self.more("namespaces", len(self.before.namespaces), now.namespaces)
        found += self.more("processes", len(self.before.processes), now.processes)
        if self.daemon.pid == self.pid:
            before, after = self.before.descriptors.total(), now.descriptors.total()
            if after > before + SPARE_DESCRIPTORS:
                found.append(
                    f"descriptors: {before} before, {after} now: {dict((now.descriptors - self.before.descriptors).most_common(8))}"
                )
        return found

    @staticmethod
    def more(name: str, before: int, now: set[str]) -> list[str]:
        if len(now) <= before + 2:
            return []
        return [f"{name}: {before} before, {len(now)} now", *(f"  {entry}" for entry in sorted(now)[:20])]

    def check(self, timeout: float = 60) -> None:
        """Removal's slow part comes after its answer, so look until all is gone or `timeout` seconds went by."""
        deadline = time.monotonic() + timeout
        while differences := self.differences():
            if time.monotonic() > deadline:
                raise AssertionError(f"left behind ({len(differences)}):\n" + "\n".join(differences[:60]) + "\n" + self.daemon.log_tail())
            time.sleep(0.3)
