"""Pure parts of the runtime: mount options, refusals, errors in words."""

from __future__ import annotations

import errno
import os
from typing import Any

import msgspec
import pytest

from engine import _core
from engine.errors import InvalidParameter, NotImplementedYet
from engine.linux.cgroups_types import Placement
from engine.runtime import ops, options, plan
from engine.spec.mount import IdMapping, Mount
from engine.spec.runtime import (
    VERSION,
    Capabilities,
    Device,
    Hooks,
    Linux,
    Namespace,
    Personality,
    Process,
    Rlimit,
    Scheduler,
    Spec,
    User,
)  # fmt: skip
from engine.wire.plan import MAX_OPS

MAPPED = (IdMapping(container_id=0, host_id=1, size=1),)
OVERLAY = Mount(type="overlay", source="overlay", options=("lowerdir=l",))


def spec(*, linux: dict[str, Any] | None = None, process: dict[str, Any] | None = None, **top: Any) -> Spec:
    base = {"namespaces": (Namespace(type="mount"),)}
    return Spec(
        oci_version=VERSION,
        process=Process(**{"user": User(uid=0, gid=0), "cwd": "/", "args": ("x",), **(process or {})}),
        linux=Linux(**{**base, **(linux or {})}),
        **top,
    )


def make(value: Spec, rootfs: tuple[Mount, ...] = (OVERLAY,), **options: Any) -> tuple[ops.Op, ...]:
    return plan.container_plan(value, rootfs=rootfs, mountpoint="/m", placement=Placement(), seccomp=None, tty=False, **options)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), options.Options()),
        (("ro", "nosuid", "rw"), options.Options(flags=2, set=2, clear=1)),
        (("mode=755", "noexec", "size=1m"), options.Options(flags=8, data="mode=755,size=1m", set=8)),
        (("rbind", "rprivate"), options.Options(bind=True, bind_recursive=True, propagation=1 << 18 | 0x4000)),
        (("bind", "rro"), options.Options(flags=1, set=1, attributes_recursive=True, bind=True)),
        (("noatime", "strictatime"), options.Options(flags=1024 | 1 << 24, set=0x20, clear=0x70)),
        (("relatime", "defaults"), options.Options(flags=1 << 21, clear=0x70)),
        (("sync", "shared"), options.Options(flags=16, propagation=1 << 20)),
        (("rbind", "ridmap"), options.Options(bind=True, bind_recursive=True, idmap=True, idmap_recursive=True)),
        (("rbind", "idmap"), options.Options(bind=True, bind_recursive=True, idmap=True)),
    ],
)
def test_mount_options(words: tuple[str, ...], expected: options.Options) -> None:
    assert options.parse(words) == expected


@pytest.mark.parametrize("word", ["tmpcopyup"])
def test_options_that_are_missing(word: str) -> None:
    with pytest.raises(NotImplementedYet, match=word):
        options.parse((word,))


@pytest.mark.parametrize(
    "value",
    [
        spec(hooks=Hooks()),
        spec(linux={"uid_mappings": (IdMapping(container_id=0, host_id=1, size=1),)}),
        spec(linux={"namespaces": (Namespace(type="mount"), Namespace(type="user"))}),
        spec(linux={"namespaces": (Namespace(type="mount", path="/x"),)}),
        spec(linux={"personality": Personality(domain="LINUX32")}),
        spec(process={"apparmor_profile": "docker-default"}),
        spec(process={"scheduler": Scheduler(policy="SCHED_RR")}),
        spec(mounts=(Mount(destination="/x", source="/y", uid_mappings=MAPPED, gid_mappings=MAPPED),)),
        spec(mounts=(Mount(destination="/x", type="tmpfs", uid_mappings=MAPPED, gid_mappings=MAPPED),)),
        spec(mounts=(Mount(destination="/x", type="cgroup", options=("idmap",)),)),
    ],
)
def test_what_is_missing_is_said(value: Spec) -> None:
    with pytest.raises(NotImplementedYet):
        make(value)


@pytest.mark.parametrize(
    "value",
    [
        spec(process={"args": ()}),
        spec(process={"cwd": "relative"}),
        spec(process={"rlimits": (Rlimit(type="RLIMIT_X", soft=0, hard=0),)}),
        spec(process={"rlimits": (Rlimit(type="RLIMIT_CORE", soft=1, hard=0),)}),
        spec(process={"capabilities": Capabilities(bounding=("CAP_NOPE",))}),
        spec(linux={"namespaces": (Namespace(type="pid"),)}),
        spec(linux={"namespaces": (Namespace(type="mount"), Namespace(type="moon"))}),
        spec(linux={"sysctl": {"net/../../x": "1"}}),
        spec(linux={"sysctl": {"net..x": "1"}}),
        spec(linux={"sysctl": {"": "1"}}),
        spec(linux={"sysctl": {"net.ipv4.ip_forward": "1"}}),
        spec(
            linux={
                "sysctl": {"kernel.panic": "1"},
                "namespaces": tuple(Namespace(type=kind) for kind in ("mount", "network", "ipc", "uts")),
            }
        ),
        spec(hostname="the-host-itself"),
        spec(mounts=(Mount(destination="//", source="/y"),)),
        spec(linux={"devices": (Device(path="/dev/x", type="z"),)}),
        spec(linux={"rootfs_propagation": "sometimes"}),
        spec(mounts=(Mount(destination="x", source="/y"),)),
        spec(mounts=(Mount(destination="/x", source="/y", options=("rbind", "size=1")),)),
        spec(mounts=(Mount(destination="/x", type="", source="y"),)),
        spec(mounts=(Mount(destination="/x", type="tmpfs", source="y", options=("remount",)),)),
    ],
)
def test_what_makes_no_sense_is_refused(value: Spec) -> None:
    with pytest.raises(InvalidParameter):
        make(value)


def test_no_root_file_system() -> None:
    with pytest.raises(InvalidParameter, match="no root"):
        make(spec(), rootfs=())


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/x", "net/ipv4/conf/eth0.1/x"),
        ("net.x/y.z", "net/x.y/z"),
        ("kernel.shmmax", "kernel/shmmax"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
    ],
)
def test_sysctl_names(name: str, path: str) -> None:
    namespaces = tuple(Namespace(type=kind) for kind in ("mount", "network", "ipc"))
    assert ops.Sysctl(path, "1") in make(spec(linux={"sysctl": {name: "1"}, "namespaces": namespaces}))


def test_a_read_only_dev_is_so_only_after_its_nodes() -> None:
    steps = make(spec(mounts=(Mount(destination="/dev", type="tmpfs", source="tmpfs", options=("ro", "mode=755")),)))
    mount = next(op for op in steps if isinstance(op, ops.Mount))
    assert mount.flags & 1 == 0
    assert steps.index(ops.Attributes("/dev", 1)) > max(i for i, op in enumerate(steps) if isinstance(op, ops.Mknod))


def test_a_dev_from_the_host_is_left_alone() -> None:
    steps = make(spec(mounts=(Mount(destination="/dev", type="bind", source="/dev", options=("rbind",)),)))
    assert not any(isinstance(op, ops.Mknod) for op in steps)


def test_a_device_of_a_default_name_replaces_it() -> None:
    steps = make(spec(linux={"devices": (Device(path="/dev/null", type="c", major=1, minor=3, file_mode=0o600),)}))
    assert [op.mode & 0o777 for op in steps if isinstance(op, ops.Mknod) and op.path == "/dev/null"] == [0o600]


def test_shared_binds_are_cloned_before_the_propagation_changes() -> None:
    mounts = (Mount(destination="/x", source="/y", options=("rbind", "rshared", "ro")),)
    steps = make(spec(mounts=mounts, linux={"rootfs_propagation": "rshared"}))
    kept, propagation, bound = (next(i for i, op in enumerate(steps) if test(op)) for test in (
        lambda op: isinstance(op, ops.Bind) and op.keep == 0,
        lambda op: op == ops.Propagation("/", options.MS_SLAVE | options.MS_REC),
        lambda op: isinstance(op, ops.Bind) and op.kept == 0 and op.set == 1,
    ))  # fmt: skip
    assert kept < propagation < bound


def test_text_that_the_kernel_would_cut_off() -> None:
    with pytest.raises(InvalidParameter, match="NUL"):
        ops.encode([ops.Clone(0), ops.Exec(("a\0b",))])


def test_bytes_that_are_not_text_come_through() -> None:
    raw = os.fsdecode(b"A=\xff")
    assert b"A=\xff\0" in ops.encode([ops.Clone(0), ops.Exec(("x",), (raw,))])


def test_every_operation_is_described_and_decodes() -> None:
    samples = {
        ops.Alive: (1, 2),
        ops.Clone: (ops.NEWPID,), ops.Join: (ops.NEWNET, "/x"), ops.JoinProcess: (1, 2, ops.NEWNS), ops.Tasks: ("/t/tasks",),
        ops.Unshare: (ops.NEWCGROUP,), ops.Propagation: ("/", 1), ops.Root: ("s", "/t"), ops.Mount: ("s", "/t", "proc"), ops.Bind:
        ("/s", "/t"), ops.Owners: (("a/b", "c"), "/d", "/n"),
        ops.Attributes: ("/t",), ops.Mknod: ("/dev/x", 0o20666, 259), ops.Symlink: ("a", "/b"), ops.Mask: ("/p",),
        ops.Readonly: ("/p",), ops.Sysctl: ("a/b", "1"), ops.Hostname: ("h",), ops.Domainname: ("d",), ops.Rlimit: (7, 1, 2),
        ops.OomScore: (-1,), ops.Cwd: ("/",), ops.Bounding: (0,), ops.User: (1, 2, (3,)), ops.Capabilities: (1, 2), ops.Seccomp:
        (b"\0" * 8,), ops.Exec: (("x",),),
    }  # fmt: skip
    kinds = ops.Op.__subclasses__()
    made = [kind(*samples.get(kind, ())) for kind in kinds]
    assert all(ops.describe(op) for op in made)
    middle = [op for op in made if not isinstance(op, (ops.Clone, ops.Exec))]
    encoded = ops.encode([ops.Clone(0), *middle, ops.Exec(("x",))])
    assert _core.decode(encoded) == len(kinds)
    assert msgspec.json.encode(made)


def test_too_many_operations() -> None:
    with pytest.raises(InvalidParameter, match="too many operations"):
        ops.encode([ops.Clone(0)] * (MAX_OPS + 1))


STEPS = (ops.Clone(0), ops.Bind("/s", "/t"), ops.Exec(("prog",)))


@pytest.mark.parametrize(
    ("index", "code", "text", "exit_code"),
    [
        (1, errno.ENOENT, "bind /s to /t: no such file or directory (the source does not exist)", 125),
        (1, errno.EIO, "bind /s to /t: input/output error", 125),
        (2, errno.ENOENT, 'exec: "prog": executable file not found in $PATH', 127),
        (2, errno.EACCES, 'exec: "prog": permission denied', 126),
        (2, errno.ENOEXEC, 'exec: "prog": exec format error (a program for another processor, or a script without #!)', 126),
        (-1, errno.ENOMEM, "starting the process: cannot allocate memory", 125),
        (99, errno.ENOMEM, "starting the process: cannot allocate memory", 125),
    ],
)
def test_errors_in_words(index: int, code: int, text: str, exit_code: int) -> None:
    error = plan.explain(STEPS, index, code)
    assert str(error) == text
    assert (error.index, error.errno) == (index, code)
    assert plan.exit_code(error) == exit_code


@pytest.mark.parametrize(("word", "recursive"), [("idmap", False), ("ridmap", True), ("rw", False)])
def test_the_mappings_of_a_mount_become_a_user_namespace(word: str, recursive: bool) -> None:
    """config.md: mappings count with or without the option; `ridmap` is for everything mounted below."""
    asked = []

    def userns(uids: tuple[IdMapping, ...], gids: tuple[IdMapping, ...]) -> str:
        asked.append((uids, gids))
        return "/the/namespace"

    gids = (IdMapping(container_id=0, host_id=2, size=1),)
    mount = Mount(destination="/x", source="/y", options=("rbind", word), uid_mappings=MAPPED, gid_mappings=gids)
    plain = Mount(destination="/z", source="/y", options=("rbind",))
    found = [op for op in make(spec(mounts=(mount, plain)), userns=userns) if isinstance(op, ops.Bind)]
    assert [(op.userns, op.userns_recursive) for op in found] == [("/the/namespace", recursive), ("", False)]
    assert asked == [(MAPPED, gids)]
    assert _core.decode(ops.encode(make(spec(mounts=(mount,)), userns=userns))) > 0
    error = plan.explain(found, 0, errno.EINVAL)
    assert str(error).startswith("bind /y to /x with owners mapped: invalid argument (the file system of the source")
    assert "mapped" not in str(plan.explain(found, 1, errno.EPERM))


def test_a_bind_of_what_another_namespace_has() -> None:
    mount = Mount(destination="/dev/shm", source="/dev/shm", options=("bind", "rprivate"), namespace="/proc/7/ns/mnt")
    (found,) = (op for op in make(spec(mounts=(mount,))) if isinstance(op, ops.Bind))
    assert (found.namespace, found.set, found.recursive) == ("/proc/7/ns/mnt", 0, False)
    assert found.propagation & options.MS_PRIVATE  # its owner may share mounts with others
    assert ops.describe(found) == "bind another container's /dev/shm to /dev/shm"
    assert _core.decode(ops.encode((ops.Clone(0), found, ops.Exec(("x",))))) == 3


def test_whose_namespaces_are_joined_must_be_there_when_all_of_them_are_open() -> None:
    shm = Mount(destination="/dev/shm", source="/dev/shm", options=("bind",), namespace="/proc/7/ns/mnt")
    steps = make(spec(mounts=(shm,)), alive=((7, 99),))
    last = max(at for at, op in enumerate(steps) if isinstance(op, (ops.Bind, ops.Join)))
    (at,) = (at for at, op in enumerate(steps) if isinstance(op, ops.Alive))
    assert last < at < next(at for at, op in enumerate(steps) if isinstance(op, ops.Pivot))  # /proc is the host's until then
    assert steps[at] == ops.Alive(7, 99)
    assert "has ended meanwhile" in str(plan.explain(steps, at, errno.ESRCH))


def test_the_folders_of_an_overlay_are_mapped_while_it_is_mounted() -> None:
    options = (r"lowerdir=1/fs:2/fs/a\:b\,c\\d", "ro", "nosuid", "idmap")
    mount = Mount(
        destination="/x", type="overlay", source="overlay", options=options, base="/layers", uid_mappings=MAPPED, gid_mappings=MAPPED
    )
    steps = make(spec(mounts=(mount,)), userns=lambda uids, gids: "/n")
    at = next(index for index, op in enumerate(steps) if isinstance(op, ops.Owners))
    assert steps[at] == ops.Owners(("1/fs", r"2/fs/a:b,c\d"), "/layers", "/n")
    assert isinstance(mounted := steps[at + 1], ops.Mount) and (mounted.data, mounted.base) == (options[0], "/layers")
    assert steps[at + 2] == ops.Owners(("1/fs", r"2/fs/a:b,c\d"), "/layers")
    assert _core.decode(ops.encode(steps)) == len(steps)
    assert "(the file system of the source" in str(plan.explain(steps, at, errno.EINVAL))
    assert "need Linux 5.19" in str(plan.explain(steps, at + 1, errno.EINVAL))
    for members in ({"options": ("lowerdir=a", "upperdir=u", "workdir=w")}, {"options": ()}, {"base": ""}):
        with pytest.raises(NotImplementedYet, match="id mappings of the mount on /x"):
            make(spec(mounts=(msgspec.structs.replace(mount, **members),)), userns=lambda uids, gids: "/n")


@pytest.mark.parametrize("names", [(), ("a",), ("a:b", "c,d"), ("e\\", "\\:", "f")])
def test_folders_named_in_options(names: tuple[str, ...]) -> None:
    text = ":".join(name.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for name in names)
    assert options.lowers(("ro", f"lowerdir={text}")) == names
    assert options.lowers(("ro",)) == ()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"options": ("bind", "idmap")}, "idmap without mappings"),
        ({"uid_mappings": MAPPED}, "go together"),
        ({"gid_mappings": MAPPED}, "go together"),
        ({"gid_mappings": MAPPED, "uid_mappings": (IdMapping(container_id=0, host_id=1 << 32, size=1),)}, "leaves 0-4294967294"),
    ],
)
def test_mappings_that_make_no_sense(members: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        make(spec(mounts=(Mount(destination="/x", source="/y", **members),)), userns=lambda uids, gids: "/n")
