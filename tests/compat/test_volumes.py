"""Volumes and mounts through the real docker CLI and the API, on any engine: what passes on dockerd has to pass here."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.lib import busybox, images
from tests.lib.daemon import Engine

IMAGE = "volumes-test:latest"
V = "/v1.45"
NET = ("--network", "none")


def archive() -> bytes:
    entry = images.entry
    first = images.tar([
        entry("data", tarfile.DIRTYPE, mode=0o1750, uid=33, gid=44), entry("data/f", data=b"hello", mode=0o4750, uid=5, gid=6),
        entry("data/gone", data=b"x"), entry("data/link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("data/sub", tarfile.DIRTYPE, mode=0o700), entry("data/sub/x", data=b"x"), entry("afile", data=b"x"),
    ])  # fmt: skip
    second = images.tar([entry("data", tarfile.DIRTYPE, mode=0o1751, uid=33, gid=44), entry("data/.wh.gone"), entry("data/new", data=b"n")])
    return images.docker_archive([busybox.layer(), first, second], [IMAGE], {"Cmd": ["sh"], "Volumes": {"/data": {}}})


@pytest.fixture(scope="module")
def loaded(engine: Engine) -> Engine:
    answer = engine.api("POST", "/images/load?quiet=1", archive(), {"Content-Type": "application/x-tar"})
    assert b"error" not in answer.body, answer.body
    return engine


@pytest.fixture
def e(loaded: Engine, clean: Engine) -> Iterator[Engine]:
    before, others = names(loaded), {container["Id"] for container in loaded.api("GET", "/containers/json?all=1").json()}
    yield loaded
    for container in loaded.api("GET", "/containers/json?all=1").json():
        if container["Id"] not in others:
            loaded.api("DELETE", f"/containers/{container['Id']}?force=1&v=1")
    for name in names(loaded) - before:
        loaded.api("DELETE", f"/volumes/{name}")


def names(engine: Engine) -> set[str]:
    return {volume["Name"] for volume in engine.api("GET", V + "/volumes").json()["Volumes"] or ()}


def run(engine: Engine, *arguments: str, image: str = busybox.NAME, command: str = "true") -> str:
    return engine.out("run", "--rm", *NET, *arguments, image, "sh", "-c", command)


def create(engine: Engine, image: str = busybox.NAME, host: dict[str, Any] | None = None, **config: Any) -> Any:
    body = {"Image": image, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none", **(host or {})}, **config}
    return engine.api("POST", V + "/containers/create", body)


def shown(engine: Engine, id: str) -> dict[str, dict[str, Any]]:
    return {mount["Destination"]: mount for mount in engine.api("GET", f"{V}/containers/{id}/json").json()["Mounts"]}


def test_a_named_volume_keeps_files(e: Engine) -> None:
    run(e, "-v", "keep1:/x", command="echo hello > /x/f")
    assert run(e, "-v", "keep1:/y:ro", command="cat /y/f; touch /y/g 2>&1 || true").startswith("hello\ntouch: /y/g: Read-only file system")
    assert "keep1" in names(e)


def test_creating_a_volume_twice_gives_the_first(e: Engine) -> None:
    first = e.api("POST", V + "/volumes/create", {"Name": "twice", "Labels": {"a": "b"}})
    second = e.api("POST", V + "/volumes/create", {"Name": "twice", "Labels": {"c": "d"}, "DriverOpts": {}})
    assert (first.status, second.status) == (201, 201)
    assert first.json() == second.json()
    assert first.json()["Labels"] == {"a": "b"}
    assert first.json()["Scope"] == "local"
    assert first.json()["Options"] is None
    other = e.api("POST", V + "/volumes/create", {"Name": "twice", "Driver": "nope"})
    assert other.status == 404
    assert 'create twice: error looking up volume plugin nope: plugin "nope" not found' in other.json()["message"]


def test_an_anonymous_volume_has_its_label(e: Engine) -> None:
    for body in ({}, None):
        made = e.api("POST", V + "/volumes/create", body).json()
        assert len(made["Name"]) == 64
        assert made["Labels"] == {"com.docker.volume.anonymous": ""}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"Name": "x"}, "create x: volume name is too short, names should be at least two alphanumeric characters"),
        ({"Name": "a/b"}, 'create a/b: "a/b" includes invalid characters for a local volume name'),
        ({"Name": "oo", "DriverOpts": {"foo": "x"}}, 'create oo: invalid option: "foo"'),
        ({"Name": "oo", "DriverOpts": {"type": "tmpfs"}}, 'create oo: missing required option: "device"'),
        ({"Name": "oo", "DriverOpts": {"size": "x"}}, "create oo: invalid size: 'x'"),
        ({"Name": "oo", "DriverOpts": {"size": "10m"}}, "create oo: quota size requested but no quota support"),
    ],
)
def test_volumes_that_cannot_be(e: Engine, body: dict[str, Any], words: str) -> None:
    answer = e.api("POST", V + "/volumes/create", body)
    assert answer.status == 400
    assert words in answer.json()["message"]


def test_a_new_volume_begins_with_the_images_files(e: Engine) -> None:
    look = "cd /data; stat -c '%n %a %u %g' . f link sub sub/x new; ls -A | wc -l; readlink link"
    expected = [". 1751 33 44", "f 4750 5 6", "link 777 0 0", "sub 700 0 0", "sub/x 644 0 0", "new 644 0 0", "4", "/etc/passwd"]
    for arguments in (("-v", "fill1:/data"), (), ("--mount", "type=volume,src=fill2,dst=/data")):
        assert run(e, *arguments, image=IMAGE, command=look).splitlines() == expected, arguments
    assert run(e, "-v", "fill3:/data:nocopy", image=IMAGE, command="ls -A /data") == ""
    assert run(e, "--mount", "type=volume,src=fill4,dst=/data,volume-nocopy", image=IMAGE, command="ls -A /data") == ""
    assert run(e, "-v", "fill5:/other", image=IMAGE, command="touch /other/mine") == ""
    assert run(e, "-v", "fill5:/data", image=IMAGE, command="ls -A /data") == "mine"
    assert run(e, "-v", "fill6:/nowhere/deep", image=IMAGE, command="ls -A /nowhere/deep") == ""


def test_what_inspect_shows(e: Engine) -> None:
    volume = {"Type": "volume", "Target": "/n", "Source": "show2", "VolumeOptions": {"NoCopy": True}}
    host = {"Binds": ["show1:/a:ro", "/tmp:/b", "/c"], "Tmpfs": {"/t": ""}, "Mounts": [{"Type": "tmpfs", "Target": "/m"}, volume]}
    id = create(e, IMAGE, host, Volumes={"/d": {}}).json()["Id"]
    found = shown(e, id)
    assert set(found) == {"/a", "/b", "/c", "/m", "/n", "/d", "/data"}
    source = found["/a"].pop("Source")
    assert source == e.api("GET", V + "/volumes/show1").json()["Mountpoint"]
    assert found["/a"] == {
        "Type": "volume", "Name": "show1", "Destination": "/a", "Driver": "local", "Mode": "ro", "RW": False, "Propagation": ""
    }  # fmt: skip
    assert found["/b"] == {"Type": "bind", "Source": "/tmp", "Destination": "/b", "Mode": "", "RW": True, "Propagation": "rprivate"}
    assert found["/m"] == {"Type": "tmpfs", "Source": "", "Destination": "/m", "Mode": "", "RW": True, "Propagation": ""}
    assert (found["/n"]["Mode"], found["/c"]["Mode"], found["/d"]["Mode"]) == ("z", "z", "")
    config = e.api("GET", f"{V}/containers/{id}/json").json()["HostConfig"]
    assert config["Binds"] == host["Binds"]
    assert config["Tmpfs"] == host["Tmpfs"]


def test_what_is_mounted_takes_the_place_of_an_images_volume(e: Engine) -> None:
    for host in ({"Binds": ["place1:/data"]}, {"Mounts": [{"Type": "tmpfs", "Target": "/data"}]}, {"Tmpfs": {"/data": ""}}):
        before = names(e)
        found = shown(e, create(e, IMAGE, host, Volumes={"/data": {}}).json()["Id"])
        assert found.get("/data", {}).get("Name") in ("place1", None)
        assert names(e) - before <= {"place1"}


def test_volumes_from(e: Engine) -> None:
    create_host = {"Binds": ["from1:/a:ro", "from2:/b", "/tmp:/t"]}
    source = create(e, IMAGE, create_host).json()["Id"]
    taken = shown(e, create(e, host={"VolumesFrom": [source]}).json()["Id"])
    assert {place: (mount["Type"], mount["RW"]) for place, mount in taken.items()} == {
        "/a": ("volume", False), "/b": ("volume", True), "/t": ("bind", True), "/data": ("volume", True)
    }  # fmt: skip
    assert taken["/data"]["Name"] == shown(e, source)["/data"]["Name"]
    assert not any(mount["RW"] for mount in shown(e, create(e, host={"VolumesFrom": [source + ":ro"]}).json()["Id"]).values())
    own = shown(e, create(e, host={"VolumesFrom": [source], "Binds": ["from3:/b"]}).json()["Id"])
    assert own["/b"]["Name"] == "from3"
    missing = create(e, host={"VolumesFrom": ["nosuch"]})
    assert (missing.status, missing.json()["message"]) == (400, "No such container: nosuch")
    assert create(e, host={"VolumesFrom": [source + ":bad"]}).json()["message"] == "invalid mode: bad"


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"Binds": ["v1:/a", "v2:/a"]}, "Duplicate mount point: /a"),
        ({"Binds": ["/tmp:/a:ro,rw"]}, "invalid mode: ro,rw"),
        ({"Binds": ["/tmp:/a:nocopy"]}, "field VolumeOptions must not be specified"),
        ({"Binds": ["v1:/a:rshared"]}, "field BindOptions must not be specified"),
        ({"Binds": ["v1:/"]}, "destination can't be '/'"),
        ({"Binds": ["x:/a"]}, "create x: volume name is too short"),
        ({"Binds": ["no good:/a"]}, "includes invalid characters for a local volume name"),
        ({"Mounts": [{"Type": "volume", "Target": "/a", "ReadOnly": True}]}, "must not set ReadOnly mode when using anonymous volumes"),
        ({"Mounts": [{"Type": "bind", "Target": "/a", "Source": "/no/such"}]}, "bind source path does not exist: /no/such"),
        ({"Mounts": [{"Type": "volume", "Target": "/a", "Source": "v1", "VolumeOptions": {"Subpath": "../x"}}]}, "must be a relative path"),
        ({"VolumeDriver": "nope", "Binds": ["v1x:/a"]}, 'create v1x: error looking up volume plugin nope: plugin "nope" not found'),
    ],
)
def test_mounts_that_cannot_be(e: Engine, host: dict[str, Any], words: str) -> None:
    before = {container["Id"] for container in e.api("GET", "/containers/json?all=1").json()}
    answer = create(e, host=host)
    assert answer.status >= 400
    assert words in answer.json()["message"]
    assert {container["Id"] for container in e.api("GET", "/containers/json?all=1").json()} == before


def test_a_volume_in_the_place_of_a_file_is_refused_and_leaves_nothing(e: Engine) -> None:
    before = names(e)
    answer = create(e, IMAGE, Volumes={"/afile": {}})
    assert "cannot mount volume over existing file, file exists" in answer.json()["message"]
    assert names(e) == before


def test_a_volume_in_use_stays(e: Engine) -> None:
    ids = [create(e, host={"Binds": ["used1:/a"]}).json()["Id"] for _ in range(2)]
    for force in ("", "?force=1"):
        answer = e.api("DELETE", f"{V}/volumes/used1{force}")
        assert answer.status == 409
        message = answer.json()["message"]
        assert message.startswith("remove used1: volume is in use - [")
        assert all(id in message for id in ids)
    for id in ids:
        e.api("DELETE", f"{V}/containers/{id}?v=1")
    assert "used1" in names(e)
    assert e.api("DELETE", f"{V}/volumes/used1").status == 204
    gone = e.api("DELETE", f"{V}/volumes/used1")
    assert (gone.status, gone.json()["message"]) == (404, "get used1: no such volume")
    assert e.api("DELETE", f"{V}/volumes/used1?force=1").status == 204


def test_anonymous_volumes_go_with_their_last_container(e: Engine) -> None:
    before = names(e)
    first = create(e, IMAGE, {"Binds": ["anon1:/n"]}).json()["Id"]
    second = create(e, host={"VolumesFrom": [first]}).json()["Id"]
    volume = shown(e, first)["/data"]["Name"]
    e.api("DELETE", f"{V}/containers/{first}?v=1")
    assert volume in names(e)
    e.api("DELETE", f"{V}/containers/{second}?v=1")
    assert names(e) - before == {"anon1"}
    kept = create(e, IMAGE).json()["Id"]
    e.api("DELETE", f"{V}/containers/{kept}")
    assert len(names(e) - before) == 2
    run(e, "-v", "/x", image=IMAGE)
    assert len(names(e) - before) == 2


def test_filters_and_prune(e: Engine) -> None:
    e.api("POST", V + "/volumes/create", {"Name": "list-a", "Labels": {"k": "v"}})
    e.api("POST", V + "/volumes/create", {"Name": "list-b"})
    create(e, host={"Binds": ["list-b:/a"]})

    def listed(**filters: list[str]) -> set[str]:
        answer = e.api("GET", f"{V}/volumes?filters={quote(json.dumps(filters))}").json()
        return {volume["Name"] for volume in answer["Volumes"]}

    assert listed(name=["list-"]) == {"list-a", "list-b"}
    assert listed(name=["list-a$"]) == {"list-a"}
    assert listed(label=["k"]) == listed(label=["k=v"]) == {"list-a"}
    assert listed(label=["k=w"]) == set()
    assert "list-b" not in listed(dangling=["true"])
    assert "list-b" in listed(dangling=["false"])
    assert listed(driver=["other"]) == set()
    for filters in ({"bad": ["x"]}, {"dangling": ["x"]}):
        assert e.api("GET", f"{V}/volumes?filters={quote(json.dumps(filters))}").status == 400
    anonymous = e.api("POST", V + "/volumes/create", {}).json()["Name"]
    gone = e.api("POST", V + "/volumes/prune").json()
    assert anonymous in gone["VolumesDeleted"]
    assert "list-a" not in gone["VolumesDeleted"]
    gone = e.api("POST", f"{V}/volumes/prune?filters={quote(json.dumps({'all': ['true'], 'label': ['k=v']}))}").json()
    assert gone == {"VolumesDeleted": ["list-a"], "SpaceReclaimed": 0}
    assert "list-b" in names(e)


def test_sizes(e: Engine) -> None:
    run(e, "-v", "size1:/a", command="head -c 5000 /dev/zero > /a/f; mkdir /a/d; echo hi > /a/d/g")
    volumes = {volume["Name"]: volume for volume in e.api("GET", V + "/system/df?type=volume").json()["Volumes"]}
    assert volumes["size1"]["UsageData"] == {"RefCount": 0, "Size": 5003}
    assert e.out("volume", "ls", "-q", "-f", "name=size1") == "size1"


def test_a_tmpfs_volume_lives_as_long_as_somebody_runs(e: Engine) -> None:
    e.out("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m,uid=1000", "mem1")
    id = e.out("run", "-d", *NET, "-v", "mem1:/m", busybox.NAME, "sh", "-c", "echo x > /m/f; exec sleep 1000")
    while e.docker("exec", id, "test", "-s", "/m/f", check=False).returncode:  # written a moment after the start
        pass
    look = "grep -c ' /m rw.* tmpfs .*size=1024k,uid=1000' /proc/self/mountinfo; cat /m/f 2>&1; true"
    for _ in range(2):
        assert run(e, "-v", "mem1:/m", command=look).splitlines() == ["1", "x"]
    e.api("DELETE", f"/containers/{id}?force=1")
    assert run(e, "-v", "mem1:/m", command=look).splitlines() == ["1", "cat: can't open '/m/f': No such file or directory"]


def test_a_bind_volume(e: Engine) -> None:
    e.out("volume", "create", "-o", "type=none", "-o", "device=/proc/sys", "-o", "o=bind,ro", "bound1")
    assert run(e, "-v", "bound1:/p", command="cat /p/kernel/ostype") == "Linux"
    e.out("volume", "create", "-o", "type=none", "-o", "device=/no/such/place", "-o", "o=bind", "bound2")
    failed = e.docker("run", "--rm", *NET, "-v", "bound2:/p", busybox.NAME, "true", check=False)
    assert failed.returncode in (125, 127)
    assert b"failed to mount local volume: mount /no/such/place:" in failed.stderr
    assert b"flags: 0x1000: no such file or directory" in failed.stderr


def test_a_part_of_a_volume(e: Engine) -> None:
    run(e, "-v", "part1:/data", image=IMAGE)
    assert run(e, "--mount", "type=volume,src=part1,dst=/q,volume-subpath=sub", command="ls /q") == "x"
    assert run(e, "--mount", "type=volume,src=part1,dst=/q,volume-subpath=f", command="cat /q") == "hello"
    for missing in ("none", "link"):
        failed = e.docker(
            "run", "--rm", *NET, "--mount", f"type=volume,src=part1,dst=/q,volume-subpath={missing}", busybox.NAME, "true", check=False
        )
        assert failed.returncode in (125, 127)


def test_read_only_reaches_what_is_mounted_below(e: Engine) -> None:
    count = "grep -c ' /x/shm ro,' /proc/self/mountinfo"
    assert int(run(e, "-v", "/dev:/x:ro", command=count)) >= 1
    assert int(run(e, "--mount", "type=bind,src=/dev,dst=/x,ro", command=count)) >= 1
    assert run(e, "--mount", "type=bind,src=/dev,dst=/x,ro,bind-recursive=writable", command=count + " || true") == "0"
    assert (
        run(e, "--mount", "type=bind,src=/dev,dst=/x,bind-recursive=disabled", command="grep -c ' /x/shm ' /proc/self/mountinfo || true")
        == "0"
    )


def test_the_same_volumes_after_a_restart(e: Engine) -> None:
    id = e.out("create", *NET, "-v", "/a", "-v", "again1:/b", IMAGE, "sh", "-c", "cat /a/n /b/n 2>/dev/null; date +%N | tee /a/n > /b/n")
    e.docker("start", "-a", id)
    mounts = shown(e, id)
    second = e.docker("start", "-a", id).stdout.split()
    assert len(second) == 2
    assert second[0] == second[1]
    assert shown(e, id) == mounts


def test_events(e: Engine) -> None:
    since = int(time.time())
    run(e, "-v", "event1:/a:ro")
    e.out("volume", "rm", "event1")
    query = f"{V}/events?since={since}&until={int(time.time()) + 1}&filters={quote(json.dumps({'volume': ['event1']}))}"
    found = [json.loads(line) for line in e.api("GET", query).body.splitlines()]
    assert [event["Action"] for event in found] == ["create", "mount", "unmount", "destroy"]
    mount = found[1]["Actor"]["Attributes"]
    assert {key: mount[key] for key in mount if key != "container"} == {
        "driver": "local", "destination": "/a", "propagation": "", "read/write": "false"
    }  # fmt: skip
    assert found[2]["Actor"]["Attributes"] == {"driver": "local", "container": mount["container"]}


def test_ps_finds_users_of_a_volume(e: Engine) -> None:
    id = create(e, host={"Binds": ["find1:/a", "/tmp:/b"]}).json()["Id"]
    for value in ("find1", "/a", "/tmp"):
        assert id in e.out("ps", "-aq", "--no-trunc", "-f", f"volume={value}").split(), value
    assert e.out("ps", "-a", "-f", f"id={id}", "--format", "{{.Mounts}}|{{.LocalVolumes}}") == "find1,/tmp|1"


def test_a_read_only_root_leaves_volumes_writable(e: Engine) -> None:
    command = "touch /a/x /b/y && ls /a /b; touch /c 2>&1 || true"
    found = run(e, "--read-only", "-v", "/a", "-v", "ro1:/b", command=command)
    assert found.splitlines() == ["/a:", "x", "", "/b:", "y", "touch: /c: Read-only file system"]
