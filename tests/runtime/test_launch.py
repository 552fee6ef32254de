"""The core runs real plans: what a process finds itself in, and what happens when it cannot be started."""

from __future__ import annotations

import gc
import os
import pty
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from engine import _core
from engine.errors import LaunchError
from engine.linux import seccomp
from engine.linux.cgroups_types import Placement
from engine.runtime import ops, plan
from engine.spec.mount import Mount
from engine.spec.runtime import Box as Size
from engine.spec.runtime import Capabilities, Device, Namespace, Rlimit, User
from tests.lib.box import Box, box, launch

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def c() -> Iterator[Box]:
    with box() as made:
        yield made


def status(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def test_it_is_alone(c: Box) -> None:
    result = c.sh("hostname; echo $$; ls /; ip -o addr show lo; ps | wc -l", hostname="box")
    assert result.code == 0, result.err
    assert result.lines[:2] == ["box", "1"]
    assert "127.0.0.1" in result.out
    assert "mnt" not in result.lines


def test_trace_names_every_operation_in_order(c: Box) -> None:
    steps = c.plan(c.spec("true"))
    running = launch(steps)
    assert [op for op, _, _ in running.trace] == list(range(len(steps) + 1))
    times = [ns for _, ns, _ in running.trace]
    assert times == sorted(times)
    assert running.wait().code == 0


def test_signals_are_reset_and_nothing_is_inherited(c: Box) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    spare = [os.open("/", os.O_RDONLY) for _ in range(3)]  # close-on-exec, as all of ours
    os.set_inheritable(spare[0], True)
    try:
        result = c.sh("cat /proc/self/status; ls /proc/self/fd; ls -l /proc/self/cwd", cwd="/bin")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        for fd in spare:
            os.close(fd)
    fields = status(result.out)
    assert fields["SigBlk"] == fields["SigIgn"] == fields["SigCgt"] == "0" * 16
    assert [line for line in result.lines if line.isdigit()] == ["0", "1", "2", "3"]  # 3 is ls itself
    assert result.out.endswith("-> /bin\n")


def test_pipe_breaks(c: Box) -> None:
    assert c.sh("yes | head -n 1").lines == ["y"]


def test_capabilities_seccomp_and_privileges(c: Box) -> None:
    sets = Capabilities(bounding=("CAP_CHOWN", "CAP_KILL"), permitted=("CAP_CHOWN", "CAP_KILL"), effective=("CAP_CHOWN", "CAP_KILL"))
    program = seccomp.compile(seccomp.default_profile(), sets.bounding)
    result = status(c.run("cat", "/proc/self/status", capabilities=sets, seccomp=program).out)
    assert {result[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {f"{1 << 0 | 1 << 5:016x}"}
    assert result["CapInh"] == result["CapAmb"] == "0" * 16
    assert (result["Seccomp"], result["NoNewPrivs"]) == ("2", "0")
    result = status(c.run("cat", "/proc/self/status", seccomp=program, no_new_privileges=True).out)
    assert (result["Seccomp"], result["NoNewPrivs"], result["CapBnd"]) == ("2", "1", "0" * 16)


def test_user_groups_umask_and_streams(c: Box) -> None:
    user = User(uid=1000, gid=1001, additional_gids=(5, 6), umask=0o077)
    program = seccomp.compile(seccomp.default_profile(), ())
    result = c.sh("cat /proc/self/status; umask; echo again > /dev/stdout", user=user, seccomp=program)
    fields = status(result.out)
    assert fields["Uid"].split() == ["1000"] * 4
    assert fields["Gid"].split() == ["1001"] * 4
    assert fields["Groups"] == "5 6"
    assert fields["CapPrm"] == fields["CapEff"] == "0" * 16
    assert "0077" in result.lines
    assert result.code == 0, result.err


def test_ambient_capabilities_reach_an_ordinary_user(c: Box) -> None:
    names = ("CAP_NET_BIND_SERVICE",)
    sets = Capabilities(bounding=names, permitted=names, effective=names, inheritable=names, ambient=names)
    fields = status(c.run("cat", "/proc/self/status", user=User(uid=1000, gid=1000), capabilities=sets).out)
    assert fields["CapEff"] == fields["CapAmb"] == f"{1 << 10:016x}"


def test_limits_and_what_cannot_be_had(c: Box) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    steps = c.plan(
        c.spec("sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj",
               rlimits=(Rlimit(type="RLIMIT_NOFILE", soft=hard + 1000, hard=hard + 1000), Rlimit(type="RLIMIT_CORE", soft=0, hard=0)),
               oom_score_adj=200)
    )  # fmt: skip
    running = launch(steps)
    degraded = [type(steps[op]).__name__ for op, _, error in running.trace if error]
    result = running.wait()
    if degraded:  # without CAP_SYS_RESOURCE
        assert degraded == ["Rlimit"]
        assert result.lines == [str(hard), str(hard), "0", "200"]
    else:
        assert result.lines == [str(hard + 1000), str(hard + 1000), "0", "200"]


def test_few_open_files_are_enough_for_a_program(c: Box) -> None:
    for count in (4, 10):
        result = c.sh("ulimit -n; ulimit -Hn", rlimits=(Rlimit(type="RLIMIT_NOFILE", soft=count, hard=count),))
        assert (result.code, result.lines) == (0, [str(count)] * 2), result.err


def test_readonly_root_and_hidden_paths(c: Box) -> None:
    linux = {"masked_paths": ("/proc/keys", "/proc/acpi", "/proc/nothing", "/sys/firmware"), "readonly_paths": ("/proc/sys", "/proc/none")}
    result = c.sh("touch /x; touch /dev/x && echo ok; cat /proc/keys /sys/firmware/*; echo > /proc/sys/kernel/domainname; cat /proc/mounts",
                  linux=linux, readonly=True)  # fmt: skip
    assert result.lines[0] == "ok"
    assert result.err.count("Read-only file system") == 2
    mounts = {line.split()[1]: line.split() for line in result.lines[1:]}
    assert mounts["/"][3].startswith("ro,")
    assert "ro" in mounts["/proc/sys"][3].split(",")
    assert mounts["/sys/firmware"][2] == "tmpfs"
    assert "/proc/nothing" not in mounts


def test_devices(c: Box) -> None:
    devices = (Device(path="/dev/mine/zero", type="c", major=1, minor=5, file_mode=0o600, uid=7, gid=8), Device(path="/dev/p", type="p"))
    result = c.sh("cd /dev; stat -c '%n %F %a %u %g %t:%T' null mine/zero p; readlink /dev/fd; readlink /dev/ptmx; echo > /dev/null",
                  linux={"devices": devices})  # fmt: skip
    assert result.lines[0] == "null character special file 666 0 0 1:3"
    assert result.lines[1] == "mine/zero character special file 600 7 8 1:5"
    assert result.lines[2].startswith("p fifo 666")
    assert result.lines[3:] == ["/proc/self/fd", "pts/ptmx"]


def test_binds(c: Box) -> None:
    (c.files / "sub").mkdir()
    (c.files / "file").write_text("hello\n")
    mounts = (
        Mount(destination="/data/deep/er", source=str(c.files), options=("rbind", "ro", "nosuid")),
        Mount(destination="/etc/file", source=str(c.files / "file"), options=("bind",)),
        Mount(destination="/data2/", source=str(c.files), options=("rbind", "rro")),
    )
    result = c.sh("cat /etc/file /data/deep/er/file; touch /data/deep/er/x; echo more >> /etc/file; touch /data2/y; grep data /proc/mounts",
                  mounts=mounts)  # fmt: skip
    assert result.lines[:2] == ["hello", "hello"]
    assert result.err.count("Read-only file system") == 2
    assert "nosuid" in result.lines[2]
    assert (c.files / "file").read_text() == "hello\nmore\n"
    assert sorted(os.listdir(c.files)) == ["file", "sub"]


def test_a_link_in_the_image_cannot_send_a_mount_outside(c: Box, tmp_path: Path) -> None:
    """Absolute links, climbing ones, links to nothing and magic links as mount points."""
    (c.files / "file").write_text("mounted\n")
    for name, target in {
        "abs": str(tmp_path), "up": "../../../../../../" + str(tmp_path), "dangling": str(tmp_path / "new"), "far": "../" * 20 + "new/er",
    }.items():  # fmt: skip
        (c.lower / name).symlink_to(target)
    mounts = tuple(Mount(destination=f"/{name}", source=str(c.files / "file")) for name in ("dangling", "far")) + tuple(
        Mount(destination=f"/{name}/x", source=str(c.files)) for name in ("abs", "up")
    )
    result = c.sh(f"cat {tmp_path}/new /new/er {tmp_path}/x/file; grep -c knarr /proc/mounts; readlink /dangling", mounts=mounts)
    assert result.lines[:3] == ["mounted"] * 3, result.err
    assert result.lines[-1] == str(tmp_path / "new")
    assert os.listdir(tmp_path) == []
    (c.lower / "magic").symlink_to("/proc/self/cwd")
    error = c.fails("true", mounts=(Mount(destination="/magic/x", source=str(c.files)),))
    assert error.op == "Bind"
    (c.lower / "loop").symlink_to("loop")
    assert c.fails("true", mounts=(Mount(destination="/loop/x", source=str(c.files)),)).errno == 40


def test_a_link_as_working_directory_stays_inside(c: Box, tmp_path: Path) -> None:
    (c.lower / "cwd").symlink_to(tmp_path)
    assert c.sh("pwd -P", cwd="/cwd").lines == [str(tmp_path)]
    assert c.sh("pwd -P", cwd="/made/by/us").lines == ["/made/by/us"]
    (c.lower / "fd").symlink_to("/proc/self/fd/3")
    assert c.fails("true", cwd="/fd").op == "Cwd"
    assert c.fails("true", cwd="/proc/self/fd/4/..").op == "Cwd"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("nope",), 127, 'exec: "nope": executable file not found in $PATH'),
        (("/nope",), 127, 'exec: "/nope": no such file or directory'),
        (("/etc/passwd",), 126, 'exec: "/etc/passwd": permission denied'),
        (("/etc",), 126, "permission denied"),
        (("/etc/empty",), 126, "exec format error"),
        (("/etc/badscript",), 127, "interpreter"),
        (("/etc/passwd/x",), 127, "not a directory"),
    ],
)
def test_a_program_that_cannot_run(c: Box, args: tuple[str, ...], code: int, text: str) -> None:
    for name, content in (("empty", ""), ("badscript", "#!/no/such/interpreter\n")):
        (c.lower / "etc" / name).write_text(content)
        (c.lower / "etc" / name).chmod(0o755)
    gc.collect()  # what an earlier test left to the collector must not go in between
    before, children_before = len(os.listdir("/proc/self/fd")), children()
    error = c.fails(*args)
    assert plan.exit_code(error) == code
    assert text in str(error)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert children() <= children_before


def children() -> set[str]:
    """Processes of this one, ended ones too."""
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for one in lists for pid in one.read_text().split()}


def test_a_failed_operation_names_itself(c: Box) -> None:
    error = c.fails("true", mounts=(Mount(destination="/x", source="/no/such/source"),))
    assert str(error).startswith("bind /no/such/source to /x: no such file or directory (")
    assert plan.exit_code(error) == 125
    error = c.fails("true", mounts=(Mount(destination="/x", type="tmpfs", source="t", options=("size=many",)),))
    assert (error.op, error.errno) == ("Mount", 22)
    error = c.fails("true", linux={"sysctl": {"net.ipv4.no_such": "1"}})
    assert str(error).startswith("set net.ipv4.no_such to '1': no such file or directory")
    c.rootfs = [Mount(type="overlay", source="overlay", options=("lowerdir=gone", "upperdir=upper", "workdir=work"), base=str(c.folder))]
    assert str(c.fails("true")).startswith("mount overlay on /: no such file or directory")


def test_sysctls_are_those_of_the_namespace(c: Box) -> None:
    before = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    result = c.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni",
                  linux={"sysctl": {"net.ipv4.ip_unprivileged_port_start": "7", "kernel/shmmni": "77"}})  # fmt: skip
    assert result.lines == ["7", "77"]
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == before


def read_until(master: int, word: bytes) -> bytes:
    text = b""
    while word not in text:
        text += os.read(master, 1000)
    return text


SCRIPT = "tty; stty size; test -t 0 && test -c /dev/console && echo yes > /dev/tty; ls -l /proc/self/fd/0"


def test_a_terminal_of_its_own(c: Box) -> None:
    steps = c.plan(c.spec("sh", "-c", SCRIPT, console_size=Size(height=20, width=90)), tty=True)
    pid, pidfd, _, master = _core.launch_terminal(ops.encode(steps))
    try:
        assert not os.get_inheritable(master)
        text = read_until(master, b"->")
        os.waitpid(pid, 0)
        assert text.split()[:4] == [b"/dev/pts/0", b"20", b"90", b"yes"]
    finally:
        os.close(pidfd)
        os.close(master)


def test_a_terminal_of_the_host(c: Box) -> None:
    """Where the container has no devpts."""
    spec = c.spec("sh", "-c", SCRIPT)
    spec = msgspec.structs.replace(spec, mounts=tuple(mount for mount in spec.mounts if mount.type != "devpts"))
    master, slave = pty.openpty()
    try:
        running = launch(c.plan(spec, tty=True), (slave,) * 3)
        os.close(slave)
        slave = -1
        text = read_until(master, b"->")
        assert running.wait().code == 0
        assert text.split()[0] == b"/dev/console"
        assert b"yes" in text
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


def test_a_failed_launch_leaves_no_terminal(c: Box) -> None:
    gc.collect()  # what an earlier test left to the collector must not go in between
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(_core.LaunchFailed):
        _core.launch_terminal(ops.encode(c.plan(c.spec("nope"), tty=True)))
    assert len(os.listdir("/proc/self/fd")) <= before


def test_mounts_do_not_come_back_to_the_host(c: Box) -> None:
    everything = Capabilities(**dict.fromkeys(("bounding", "effective", "permitted"), ("CAP_SYS_ADMIN",)))
    result = c.sh("mount -t tmpfs come-back /etc; grep come-back /proc/mounts", capabilities=everything)
    assert (result.code, len(result.lines)) == (0, 1)
    found = Path("/proc/self/mountinfo").read_text()  # other tests' daemons may still be taking theirs away
    assert "come-back" not in found and str(c.folder) not in found


def test_shared_and_slave_binds(c: Box) -> None:
    """In a mount namespace of our own, so that the host never sees it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _core.unshare(ops.NEWNS)
            _core.mount(None, "/", None, 0x4000 | 1 << 18, None)
            shared = c.folder / "shared"
            shared.mkdir()
            _core.mount("tmpfs", shared, "tmpfs", 0, None)
            _core.mount(None, shared, None, 1 << 20, None)
            (shared / "in").mkdir()
            everything = Capabilities(**dict.fromkeys(("bounding", "effective", "permitted"), ("CAP_SYS_ADMIN",)))
            result = c.sh("mount -t tmpfs t /data/in && touch /data/in/x", capabilities=everything, linux={"rootfs_propagation": "rshared"},
                          mounts=(Mount(destination="/data", source=str(shared), options=("rbind", "rshared")),))  # fmt: skip
            code = 0 if result.code == 0 and os.listdir(shared / "in") == ["x"] else 2
            result = c.sh("grep /data /proc/self/mountinfo", linux={"rootfs_propagation": "rslave"},
                          mounts=(Mount(destination="/data", source=str(shared), options=("rbind", "rslave")),))  # fmt: skip
            code = code or (0 if "master:" in result.out and "shared:" not in result.out else 3)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_control_groups(c: Box) -> None:
    group = Path("/sys/fs/cgroup/pids") / f"knarr-test-launch-{os.getpid()}"
    if not (group.parent / "tasks").exists():
        pytest.skip("no v1 pids hierarchy")
    group.mkdir()
    try:
        cgroup = Mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=("ro", "nosuid"))
        result = c.sh("cat /proc/self/cgroup; cat /sys/fs/cgroup/pids/tasks; ls /sys/fs/cgroup", mounts=(cgroup,),
                      placement=Placement(tasks=(f"{group}/tasks",)))  # fmt: skip
        assert any(line.endswith(":pids:/") for line in result.lines)
        assert result.lines[-1] == "pids"
        assert "1" in result.lines
        with pytest.raises(LaunchError, match="its control group is gone"):
            c.run("true", placement=Placement(tasks=("/sys/fs/cgroup/pids/knarr-none/tasks",)))
    finally:
        remove_group(group)


def remove_group(group: Path) -> None:
    """A control group stays busy for a moment after its last process."""
    deadline = time.monotonic() + 60
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            assert time.monotonic() < deadline, (group / "cgroup.procs").read_text()
            time.sleep(0.02)


def test_clone_into_a_v2_group(c: Box) -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((Path(path) for _, path, kind, *_ in mounts if kind == "cgroup2"), None)
    if root is None:
        pytest.skip("no v2 hierarchy")
    group = root / f"knarr-test-launch-{os.getpid()}"
    group.mkdir()
    try:
        result = c.sh("cat /proc/self/cgroup", placement=Placement(directory=str(group)))
        assert "0::/" in result.lines
        linux = {"namespaces": tuple(Namespace(type=name) for name in ("mount", "pid", "network", "ipc", "uts"))}
        assert f"0::/{group.name}" in c.sh("cat /proc/self/cgroup", placement=Placement(directory=str(group)), linux=linux).lines
    finally:
        remove_group(group)


def test_a_plain_clone_does_the_same(c: Box) -> None:
    steps = (ops.Clone(ops.NEWPID | ops.NEWNS, plain=True), *c.plan(c.spec("sh", "-c", "echo $$"))[1:])
    steps = tuple(op for op in steps if not isinstance(op, ops.Loopback))
    assert launch(steps).wait().lines == ["1"]
    with pytest.raises(LaunchError, match="not found"):
        launch((*steps[:-1], ops.Exec(("nope",), ("PATH=/bin",))))


def test_many_at_once(c: Box) -> None:
    """Launches of several threads share nothing, neither stack nor report."""

    def one(number: int) -> None:
        steps = (ops.Clone(ops.NEWPID | ops.NEWUTS), ops.Hostname(f"h{number}"), ops.Stdio(), ops.Exec(("/bin/busybox", "hostname")))
        for _ in range(10):
            assert launch(steps).wait().lines == [f"h{number}"]
            with pytest.raises(LaunchError) as caught:
                launch((*steps[:-1], ops.Exec((f"/nope/{number}",))))
            assert caught.value.index == 3

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(8)))


class TestExec:
    @pytest.fixture
    def first(self, c: Box) -> Iterator[int]:
        running = launch(c.plan(c.spec("sleep", "1000", hostname="inside")))
        yield running.pid
        os.kill(running.pid, signal.SIGKILL)
        running.wait()

    def plan(self, c: Box, pid: int, *args: str, start_time: int = 0, **options: object) -> tuple[ops.Op, ...]:
        process = c.spec(*args, **options).process  # type: ignore[arg-type]
        assert process is not None
        return plan.exec_plan(process, pid=pid, start_time=start_time, placement=Placement(), seccomp=None, tty=False)

    def test_it_is_inside(self, c: Box, first: int) -> None:
        stat = Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()
        steps = self.plan(
            c, first, "sh", "-c", "hostname; ps; ls -l /proc/1/ns/ /proc/self/ns; cat /proc/self/cgroup", start_time=int(stat[19])
        )
        result = launch(steps).wait()
        assert result.lines[0] == "inside"
        assert "sleep 1000" in result.out
        spaces = [line.split()[-1] for line in result.lines if "->" in line]
        assert set(spaces[: len(spaces) // 2]) == set(spaces[len(spaces) // 2 :])

    def test_the_caller_stays_outside(self, c: Box, first: int) -> None:
        before = os.readlink("/proc/self/ns/pid_for_children")
        launch(self.plan(c, first, "true")).wait()
        with pytest.raises(LaunchError):
            launch(self.plan(c, first, "nope"))
        assert os.readlink("/proc/self/ns/pid_for_children") == before

    def test_a_terminal(self, c: Box, first: int) -> None:
        process = c.spec("sh", "-c", "tty; echo end").process
        assert process is not None
        steps = plan.exec_plan(process, pid=first, placement=Placement(), seccomp=None, tty=True)
        pid, pidfd, _, master = _core.launch_terminal(ops.encode(steps))
        assert read_until(master, b"end").split() == [b"/dev/pts/0", b"end"]
        os.waitpid(pid, 0)
        os.close(pidfd)
        os.close(master)

    def test_another_process_with_the_same_pid_is_refused(self, c: Box, first: int) -> None:
        with pytest.raises(LaunchError, match="the container is not running") as caught:
            launch(self.plan(c, first, "true", start_time=12345))
        assert caught.value.op == "JoinProcess"

    def test_the_files_of_another_process_with_the_same_pid_are_refused(self, c: Box, first: int) -> None:
        began = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[19])
        namespaces = (Namespace(type="mount"), Namespace(type="uts", path=f"/proc/{first}/ns/uts"))
        spec = c.spec("hostname", linux={"namespaces": namespaces})

        def steps(*alive: tuple[int, int]) -> tuple[ops.Op, ...]:
            return plan.container_plan(
                spec, rootfs=c.rootfs, mountpoint=str(c.folder / "mnt"), placement=Placement(), seccomp=None, tty=False, alive=alive
            )

        assert launch(steps((first, began))).wait().lines == ["inside"]
        for gone in ((first, began + 1), (1 << 30, began)):
            with pytest.raises(LaunchError, match="has ended meanwhile") as caught:
                launch(steps(gone))
            assert caught.value.op == "Alive"

    def test_working_directory_must_exist(self, c: Box, first: int) -> None:
        with pytest.raises(LaunchError, match="change directory to /nowhere"):
            launch(self.plan(c, first, "true", cwd="/nowhere"))

    def test_a_namespace_by_path(self, c: Box, first: int) -> None:
        joined = tuple(
            Namespace(type=name, path=f"/proc/{first}/ns/{file}") for name, file in (("network", "net"), ("pid", "pid"), ("uts", "uts"))
        )
        linux = {"namespaces": (*joined, Namespace(type="mount"), Namespace(type="ipc"))}
        result = c.sh("hostname; ps", linux=linux)
        assert result.lines[0] == "inside"
        assert "sleep 1000" in result.out
