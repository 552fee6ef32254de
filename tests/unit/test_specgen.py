"""Specs from records: what a user asks for ends up where the OCI specification wants it."""

from __future__ import annotations

import msgspec
import pytest

from engine.config import Settings
from engine.errors import InvalidParameter, NotImplementedYet
from engine.linux.signals import signal_number
from engine.service import admission, networkmode, specgen, users
from engine.service.logsettings import log_tag
from engine.spec.container import ContainerRecord
from engine.spec.docker.containers import (
    Config,
    CreateRequest,
    HostConfig,
    NetworkingConfig,
    RestartPolicy,
    Ulimit,
)
from engine.spec.mount import Mount

HOST = specgen.Host(hostname="host", cgroupns_private=True)


def record(config: Config | None = None, hc: HostConfig | None = None) -> ContainerRecord:
    return ContainerRecord(
        id="a" * 64, name="n", created_at=1, image="i", image_id="sha256:1", path="/bin/true", args=["x"],
        config=config or Config(hostname="box"),
        host_config=hc or HostConfig(network_mode="none", cgroup_parent="knarr"), networking=NetworkingConfig(),
    )  # fmt: skip


def spec(config: Config | None = None, hc: HostConfig | None = None, **more: object):
    made = record(config, hc)
    return specgen.spec(made, users.Identity(), HOST, files=(), mounts=more.get("mounts", ()), limits=specgen.resources(made.host_config))


def test_defaults_are_dockers() -> None:
    made = spec()
    assert made.process.args == ("/bin/true", "x")
    assert made.process.env[:2] == (specgen.DEFAULT_PATH, "HOSTNAME=box")
    assert made.process.env[-1] == "HOME=/"
    assert made.process.cwd == "/"
    assert [mount.destination for mount in made.mounts][:4] == ["/proc", "/dev", "/dev/pts", "/sys"]
    assert "/proc/kcore" in made.linux.masked_paths
    assert {namespace.type for namespace in made.linux.namespaces} == {"mount", "pid", "uts", "ipc", "network", "cgroup"}
    assert "CAP_SYS_ADMIN" not in made.process.capabilities.bounding
    assert not made.process.capabilities.inheritable


def test_host_network_shares_it_and_sets_no_net_sysctl() -> None:
    made = spec(hc=HostConfig(network_mode="host"))
    assert "network" not in {namespace.type for namespace in made.linux.namespaces}
    assert made.linux.sysctl == {}


def test_what_another_container_shares() -> None:
    made = record(hc=HostConfig(network_mode="none", ipc_mode="container:x", shm_size=1 << 20))
    found = specgen.spec(made, users.Identity(), HOST, files=(), mounts=(), joined=specgen.Joined(ipc=7))
    assert [one.path for one in found.linux.namespaces if one.type == "ipc"] == ["/proc/7/ns/ipc"]
    (shm,) = (mount for mount in found.mounts if mount.destination == "/dev/shm")
    assert shm == Mount(destination="/dev/shm", source="/dev/shm", options=("bind", "rprivate"), namespace="/proc/7/ns/mnt")
    shared = spec(hc=HostConfig(network_mode="none", ipc_mode="shareable"))
    assert shared.mounts == spec().mounts and "/dev/shm" in {mount.destination for mount in shared.mounts}


def test_privileged_unmasks_and_allows_all_devices() -> None:
    made = spec(hc=HostConfig(network_mode="none", privileged=True))
    assert made.linux.masked_paths == ()
    assert made.linux.resources.devices[0].allow
    assert "ro" not in next(mount for mount in made.mounts if mount.destination == "/sys").options


def test_a_users_mount_replaces_a_default_one() -> None:
    made = spec(mounts=[Mount(destination="/dev/shm", type="tmpfs", source="tmpfs", options=("size=1m",))])
    shm = [mount for mount in made.mounts if mount.destination == "/dev/shm"]
    assert len(shm) == 1
    assert "size=1m" in shm[0].options


@pytest.mark.parametrize(
    ("hc", "quota", "period"),
    [(HostConfig(nano_cpus=1_500_000_000), 150_000, 100_000), (HostConfig(cpu_quota=5000, cpu_period=10_000), 5000, 10_000)],
)
def test_cpu_limits(hc: HostConfig, quota: int, period: int) -> None:
    cpu = specgen.resources(hc).cpu
    assert (cpu.quota, cpu.period) == (quota, period)


def test_memory_swap_is_twice_the_memory_unless_given() -> None:
    assert specgen.resources(HostConfig(memory=10 << 20)).memory.swap == 20 << 20
    assert specgen.resources(HostConfig(memory=10 << 20, memory_swap=-1)).memory.swap == -1


def test_environment_replaces_in_place_and_unsets() -> None:
    assert specgen.merge_env(["A=1", "B=2"], ["A=3", "B", "C=4"]) == ["A=3", "C=4"]
    assert specgen.environment(["PATH=/x", "HOME=/h"], "box", True, "/root") == ("PATH=/x", "HOSTNAME=box", "TERM=xterm", "HOME=/h")


def test_entrypoint_and_command_follow_docker() -> None:
    image = Config(entrypoint=["/e"], cmd=["c"])
    cases = [
        (CreateRequest(), ["/e"], ["c"]),
        (CreateRequest(cmd=["x"]), ["/e"], ["x"]),
        (CreateRequest(entrypoint=["/n"]), ["/n"], None),
        (CreateRequest(entrypoint=[""], cmd=["x"]), None, ["x"]),
        (CreateRequest(entrypoint="/n", cmd="x"), ["/n"], ["x"]),
    ]
    for request, entrypoint, cmd in cases:
        merged = admission.merge(request, image)
        assert (merged.entrypoint, merged.cmd) == (entrypoint, cmd)
    with pytest.raises(InvalidParameter, match="no command specified"):
        admission.merge(CreateRequest(), Config())


@pytest.mark.parametrize(
    ("hc", "flag"),
    [
        (HostConfig(init=True), "--init"),
    ],
)
def test_what_is_not_there_yet_is_refused_by_its_flag(hc: HostConfig, flag: str) -> None:
    with pytest.raises(NotImplementedYet, match=f"not implemented: {flag}"):
        admission.check(CreateRequest(), hc, Config(), Settings())


@pytest.mark.parametrize(
    "hc",
    [
        HostConfig(memory=1024),
        HostConfig(memory_swap=1),
        HostConfig(nano_cpus=1, cpu_quota=1),
        HostConfig(pid_mode="x"),
        HostConfig(ipc_mode="x"),
        HostConfig(oom_score_adj=5000),
        HostConfig(security_opt=["what"]),
        HostConfig(sysctls={"kernel.core_pattern": "|x"}),
        HostConfig(network_mode="host", sysctls={"net.ipv4.ip_forward": "1"}),
        HostConfig(ulimits=[Ulimit(name="nofile", soft=5, hard=3)]),
        HostConfig(ulimits=[Ulimit(name="nothing", soft=5, hard=5)]),
        HostConfig(runtime="kata"),
        HostConfig(cgroup_parent="../x"),
        HostConfig(blkio_weight=5),
        HostConfig(restart_policy=RestartPolicy(name="sometimes")),
    ],
)
def test_bad_values_are_refused(hc: HostConfig) -> None:
    with pytest.raises(InvalidParameter):
        admission.check(CreateRequest(), hc, Config(), Settings())


@pytest.mark.parametrize(
    ("hc", "request_", "words"),
    [
        (HostConfig(network_mode="container:x"), CreateRequest(hostname="h"), "hostname and the network mode"),
        (HostConfig(network_mode="container:x", dns=["1.1.1.1"]), CreateRequest(), "dns and the network mode"),
        (HostConfig(network_mode="container:x", extra_hosts=["a:1.1.1.1"]), CreateRequest(), "custom host-to-IP mapping"),
        (HostConfig(network_mode="container:x", publish_all_ports=True), CreateRequest(), "port publishing and the container type"),
        (HostConfig(network_mode="host", links=["a"]), CreateRequest(), "host type networking can't be used with links"),
        (HostConfig(network_mode="container:"), CreateRequest(), "invalid container format"),
        (HostConfig(), CreateRequest(mac_address="nonsense"), "invalid MAC address"),
        (HostConfig(extra_hosts=["nonsense"]), CreateRequest(), "bad format for add-host"),
        (HostConfig(dns=["nonsense"]), CreateRequest(), "invalid DNS server"),
    ],
)
def test_network_modes_that_make_no_sense(hc: HostConfig, request_: CreateRequest, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        networkmode.choose(hc, request_, Settings())


def test_the_default_network_is_the_bridge() -> None:
    filled, _, warnings = admission.check(CreateRequest(), HostConfig(network_mode="default"), Config(), Settings())
    assert filled.network_mode == "bridge"
    assert not warnings


def test_log_options() -> None:
    assert admission.check(CreateRequest(), HostConfig(network_mode="none"), Config(), Settings())[0].log_config.type == "json-file"
    for driver, options in [
        ("json-file", {"what": "1"}),
        ("json-file", {"max-size": "x"}),
        ("json-file", {"max-file": "0"}),
        ("none", {"max-size": "1m"}),
    ]:
        hc = msgspec.convert({"LogConfig": {"Type": driver, "Config": options}, "NetworkMode": "none"}, HostConfig)
        with pytest.raises(InvalidParameter):
            admission.check(CreateRequest(), hc, Config(), Settings())
    hc = msgspec.convert({"LogConfig": {"Type": "syslog"}, "NetworkMode": "none"}, HostConfig)
    with pytest.raises(NotImplementedYet, match="syslog"):
        admission.check(CreateRequest(), hc, Config(), Settings())


PASSWD = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\nbroken\n"
GROUP = "root:x:0:\nann:x:1001:\nwheel:x:10:root,ann\naudio:x:29:ann\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", users.Identity(0, 0, (0, 10), "/root")),
        ("ann", users.Identity(1000, 1001, (1001, 10, 29), "/home/ann")),
        ("1000", users.Identity(1000, 1001, (1001, 10, 29), "/home/ann")),
        ("ann:audio", users.Identity(1000, 29, (29,), "/home/ann")),
        ("4242", users.Identity(4242, 0, (0,), "/")),
        ("4242:77", users.Identity(4242, 77, (77,), "/")),
    ],
)
def test_users(user: str, expected: users.Identity) -> None:
    assert users.resolve(user, PASSWD, GROUP) == expected


def test_unknown_users_and_groups_are_named() -> None:
    with pytest.raises(InvalidParameter, match="unable to find user bob"):
        users.resolve("bob", PASSWD, GROUP)
    with pytest.raises(InvalidParameter, match="unable to find group nope"):
        users.resolve("ann:nope", PASSWD, GROUP)
    with pytest.raises(InvalidParameter):
        users.resolve("99999999999", PASSWD, GROUP)
    for number in ("²", "٣", "9" * 5000):  # what str.isdigit takes and int() or the kernel does not
        with pytest.raises(InvalidParameter):
            users.resolve("eve", f"eve:x:{number}:0::/:/bin/sh\n", GROUP)
        with pytest.raises(InvalidParameter):
            users.resolve(number, PASSWD, GROUP)
    assert users.resolve("ann", PASSWD, GROUP, ("5", "wheel")).groups == (1001, 10, 29, 5)


@pytest.mark.parametrize(("text", "number"), [("SIGTERM", 15), ("term", 15), ("9", 9), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)])
def test_signal_names(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "99", "SIGNOPE", "RTMIN+99", "RTMIN*2"])
def test_bad_signal_names(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid signal"):
        signal_number(text)


def test_log_tags() -> None:
    assert log_tag("{{.Name}}/{{ .ID }}", "a" * 64, "web", "img", "sha256:" + "b" * 64) == "web/" + "a" * 12
    with pytest.raises(InvalidParameter):
        log_tag("{{.Nope}}", "a", "b", "c", "d")
