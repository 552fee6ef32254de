"""Records as Docker's JSON: the words, the fields that come and go with versions, the shapes that clients rely on."""

from __future__ import annotations

import pytest

from engine.api.version import LATEST
from engine.api.views import containers, execs, images, system, times
from engine.service.containers import Paths
from engine.spec.container import ContainerRecord, ExecRecord, State
from engine.spec.docker.containers import Config, EndpointSettings, HostConfig, NetworkingConfig, RestartPolicy
from engine.spec.image import ContainerConfig, History, ImageConfig, RootFS
from engine.spec.mount import MountPoint
from engine.store.images import ImageRecord, Layer

S = 1_000_000_000
ID = "52428fc456385d1c8cf057cf72f4c178b54998681a775fb8ba187362a2a1bef8"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3540, "59 minutes"),
        (3600, "About an hour"),
        (5399, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (59 * 86400, "8 weeks"),
        (60 * 86400, "2 months"),
        (2 * 365 * 86400, "2 years"),
        (-3, "Less than a second"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert times.duration(seconds) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0001-01-01T00:00:00Z"),
        (1_795_458_723 * S, "2026-11-23T18:32:03Z"),
        (1_795_458_723 * S + 328_920_220, "2026-11-23T18:32:03.32892022Z"),
        (1_795_458_723 * S + 1, "2026-11-23T18:32:03.000000001Z"),
    ],
)
def test_rfc3339(ns: int, text: str) -> None:
    assert times.rfc3339(ns) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-23T18:32:03Z", 1_795_458_723),
        ("2026-11-23T18:32:03.328920220Z", 1_795_458_723),
        ("2026-11-23T20:32:03.5+02:00", 1_795_458_723),
        ("", 0),
        (None, 0),
        ("yesterday", 0),
        ("0001-01-01T00:00:00Z", -62135596800),
    ],
)
def test_seconds_from_rfc3339(text: str | None, seconds: int) -> None:
    assert times.seconds_from_rfc3339(text) == seconds


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State(), "Created"),
        (State(status="running", started_at=820 * S), "Up 3 minutes"),
        (State(status="paused", started_at=820 * S), "Up 3 minutes (Paused)"),
        (State(status="exited", exit_code=137, started_at=1 * S, finished_at=995 * S), "Exited (137) 5 seconds ago"),
        (State(status="restarting", exit_code=1, started_at=1 * S, finished_at=999 * S), "Restarting (1) 1 second ago"),
        (State(status="removing", started_at=1 * S), "Removal In Progress"),
        (State(status="dead", started_at=1 * S), "Dead"),
        (State(exit_code=127), "Created"),
    ],
)
def test_status_text(state: State, text: str) -> None:
    assert containers.status_text(state, 1000) == text


def record(**changes: object) -> ContainerRecord:
    members: dict[str, object] = {
        "id": ID,
        "name": "kt1",
        "created_at": 1_795_458_723 * S,
        "image": "busybox",
        "image_id": "sha256:97",
        "path": "/bin/sh",
        "args": ["-c", "echo out; echo err >&2"],
        "config": Config(cmd=["/bin/sh"], env=["A=b"], image="busybox"),
        "host_config": HostConfig(network_mode="none"),
        "networking": NetworkingConfig(),
    }
    return ContainerRecord(**{**members, **changes})  # type: ignore[arg-type]


PATHS = Paths(
    hosts="/b/hosts", hostname="/b/hostname", resolv_conf="/b/resolv.conf", log="/l", upper="/u", lowers=("/l2", "/l1"), work="/w"
)
POINT = MountPoint(type="bind", source="/tmp", destination="/mnt", mode="ro", rw=False, propagation="rprivate")


def inspect(found: ContainerRecord, version: tuple[int, int] = LATEST) -> dict[str, object]:
    return containers.inspect(found, version, paths=PATHS, points=[POINT], exec_ids=[], size=None)


def test_inspect() -> None:
    shown = inspect(record())
    assert shown["Name"] == "/kt1"
    assert shown["ExecIDs"] is None
    assert shown["ResolvConfPath"] == "/b/resolv.conf"
    assert "SizeRw" not in shown
    assert shown["Mounts"] == [
        {"Type": "bind", "Source": "/tmp", "Destination": "/mnt", "Mode": "ro", "RW": False, "Propagation": "rprivate"}
    ]
    state = shown["State"]
    assert isinstance(state, dict)
    assert state["StartedAt"] == "0001-01-01T00:00:00Z"
    host = shown["HostConfig"]
    assert isinstance(host, dict)
    assert host["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert host["LogConfig"] == {"Type": "json-file", "Config": {}}
    assert not {"Init", "Tmpfs", "Sysctls", "Mounts", "Annotations", "StorageOpt"} & host.keys()
    assert {"BlkioDeviceReadIOps", "IOMaximumIOps", "UTSMode", "ContainerIDFile", "Dns", "NanoCpus", "CpuCount"} <= host.keys()
    config = shown["Config"]
    assert isinstance(config, dict)
    assert config["Labels"] == {}
    assert not {"Healthcheck", "StopSignal", "StopTimeout", "Shell", "ExposedPorts", "MacAddress"} & config.keys()


def test_inspect_shows_what_was_set() -> None:
    found = record(
        config=Config(cmd="true", stop_timeout=0, stop_signal="SIGINT", exposed_ports={"80/tcp": {}}),
        host_config=HostConfig(network_mode="host", init=False, tmpfs={"/t": ""}, restart_policy=RestartPolicy("always", 0)),
    )
    shown = inspect(found)
    config, host = shown["Config"], shown["HostConfig"]
    assert isinstance(config, dict)
    assert isinstance(host, dict)
    assert (config["StopTimeout"], config["StopSignal"], config["Cmd"]) == (0, "SIGINT", ["true"])
    assert config["ExposedPorts"] == {"80/tcp": {}}
    assert host["Init"] is False
    assert host["Tmpfs"] == {"/t": ""}


def test_networks_by_version() -> None:
    assert "DNSNames" not in containers.networks(record(), (1, 43))["none"]
    assert "GwPriority" not in containers.networks(record(), (1, 47))["none"]
    assert containers.networks(record(), LATEST)["none"]["GwPriority"] == 0
    joined = record(host_config=HostConfig(network_mode="container:x"))
    assert containers.networks(joined, LATEST) == {}
    default = record(networking=NetworkingConfig({"default": EndpointSettings(aliases=["a"])}))
    assert containers.networks(default, LATEST)["none"]["Aliases"] == ["a"]


@pytest.mark.parametrize(
    ("args", "text"), [([], "sh"), (["a b"], "sh 'a b'"), (["it's"], "sh 'it'\\''s'"), ([""], "sh ''"), (["-c", "x=1"], "sh -c x=1")]
)
def test_command_line(args: list[str], text: str) -> None:
    assert containers.command_line("sh", args) == text


def test_summary() -> None:
    shown = containers.summary(record(), LATEST, points=[], size=(0, 5))
    assert shown["Command"] == "/bin/sh -c 'echo out; echo err >&2'"
    assert shown["Names"] == ["/kt1"]
    assert shown["SizeRootFs"] == 5
    assert "SizeRw" not in shown
    assert shown["HostConfig"] == {"NetworkMode": "none"}


def image(**changes: object) -> ImageRecord:
    config = ImageConfig(
        created="2026-11-23T18:32:03Z",
        architecture="amd64",
        config=ContainerConfig(cmd=("sh",)),
        rootfs=RootFS(diff_ids=("sha256:1", "sha256:2")),
        history=(History(created_by="one"), History(created_by="empty", empty_layer=True), History(created_by="two", comment="c")),
    )  # fmt: skip
    layers = tuple(Layer(f"sha256:b{n}", 10 * n, "", f"sha256:{n}", f"sha256:c{n}") for n in (1, 2))
    members: dict[str, object] = {
        "id": "sha256:9", "manifest": "sha256:m", "manifest_size": 1, "config": config, "raw": b"", "layers": layers, "size": 30,
        "repo_tags": ("a:latest",),
    }  # fmt: skip
    return ImageRecord(**{**members, **changes})  # type: ignore[arg-type]


def test_image_inspect_by_version() -> None:
    old, new = images.inspect(image(), (1, 43)), images.inspect(image(), LATEST)
    assert old["VirtualSize"] == 30
    assert old["Config"]["Hostname"] == ""
    assert "VirtualSize" not in new
    assert "Hostname" not in new["Config"]
    assert new["RootFS"] == {"Type": "layers", "Layers": ("sha256:1", "sha256:2")}
    assert new["Comment"] == "c"


def test_image_summary() -> None:
    assert images.summary(image(), LATEST, containers=2)["Containers"] == 2
    assert images.summary(image(), (1, 50), containers=2)["Containers"] == -1
    assert images.summary(image(repo_tags=()), (1, 42))["RepoTags"] == ["<none>:<none>"]
    assert images.summary(image(repo_tags=()), LATEST)["RepoTags"] == []


def test_image_history() -> None:
    shown = images.history(image(), [10, 20])
    assert [(entry["CreatedBy"], entry["Size"], entry["Id"]) for entry in shown] == [
        ("two", 20, "sha256:9"),
        ("empty", 0, "<missing>"),
        ("one", 10, "<missing>"),
    ]
    assert shown[0]["Tags"] == ("a:latest",)
    assert len(images.history(image(config=ImageConfig()), [1, 2])) == 2


def test_exec_inspect() -> None:
    found = ExecRecord(
        id="e", container_id="c", tty=True, open_stdin=False, open_stdout=True, open_stderr=True, detach_keys="", path="sh", args=["-c"],
        env=[], user="nobody", privileged=False, working_dir="",
    )  # fmt: skip
    shown = execs.inspect(found)
    assert shown["ProcessConfig"] == {"tty": True, "entrypoint": "sh", "arguments": ["-c"], "privileged": False, "user": "nobody"}
    assert shown["ExitCode"] is None


def test_version_and_info() -> None:
    shown = system.version({"KernelVersion": "6.1", "Os": "linux", "Arch": "amd64"})
    assert shown["Components"][0]["Details"]["ApiVersion"] == shown["ApiVersion"] == "1.51"
    assert system.info({"ID": "x"}, LATEST, 5 * S)["SystemTime"] == "1970-01-01T00:00:05Z"
    assert "BridgeNfIptables" in system.info({}, (1, 49))
    assert "BridgeNfIptables" not in system.info({}, LATEST)
