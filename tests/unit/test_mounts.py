"""What `-v`, `--mount`, `--tmpfs` and `--volumes-from` mean. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidParameter
from engine.service import mountspec
from engine.spec.docker.containers import HostConfig
from engine.spec.mount import MountPoint


def points(**members: Any) -> list[MountPoint]:
    """Of a HostConfig in the API's spelling."""
    return [request.point for request in mountspec.requested(msgspec.convert(members, HostConfig))]


def bind(text: str) -> MountPoint:
    return points(Binds=[text])[0]


def mount(**members: Any) -> MountPoint:
    return points(Mounts=[members])[0]


def test_a_host_path_is_bound_and_made_when_missing() -> None:
    point = bind("/srv/:/a/../b/:ro")
    assert (point.type, point.source, point.destination, point.mode, point.rw) == ("bind", "/srv", "/b", "ro", False)
    assert point.options == ("rbind", "rro", "rprivate")
    assert point.create


def test_a_name_is_a_volume_that_begins_with_the_images_files() -> None:
    point = bind("data:/a")
    assert (point.type, point.name, point.destination, point.mode, point.rw, point.copy) == ("volume", "data", "/a", "z", True, True)
    assert not point.anonymous
    assert not bind("data:/a:nocopy").copy
    assert bind("data:/a:ro,Z").options == ("rbind", "rro", "rprivate")


def test_a_path_alone_is_an_anonymous_volume() -> None:
    assert bind("/a").anonymous
    assert mount(Type="volume", Target="/a").anonymous
    point = mountspec.declared("/var//lib/x/", "")
    assert (point.destination, point.anonymous, point.mode) == ("/var/lib/x", True, "")


@pytest.mark.parametrize("mode", ["ro,rw", "ro,ro", "z,Z", "shared,rslave", "what", "ro,", "nocopy,nocopy", "cached,delegated"])
def test_modes_that_contradict_are_refused(mode: str) -> None:
    with pytest.raises(InvalidParameter, match=f"invalid mode: {mode}"):
        bind(f"/srv:/a:{mode}")


@pytest.mark.parametrize("text", ["", ":", "a:b:c:d", ":/a", "/a:", "/a:ro", "::"])
def test_what_is_no_bind_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid volume specification"):
        bind(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data:/", "destination can't be '/'"),
        ("data:/a/..", "destination can't be '/'"),
        ("data:a", "mount path must be absolute"),
        ("data:/a:rshared", "field BindOptions must not be specified"),
        ("/srv:/a:nocopy", "field VolumeOptions must not be specified"),
    ],
)
def test_binds_that_make_no_sense_say_why(text: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        bind(text)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"Type": "volume", "Target": "/a", "ReadOnly": True}, "must not set ReadOnly mode when using anonymous volumes"),
        ({"Type": "volume", "Target": "/a", "VolumeOptions": {"Subpath": "x"}}, "must not set Subpath when using anonymous volumes"),
        ({"Type": "volume", "Target": "/a", "Source": "v", "VolumeOptions": {"Subpath": "../x"}}, "relative path within the volume"),
        ({"Type": "volume", "Target": "/a", "Source": "v", "VolumeOptions": {"Subpath": "a/../../x"}}, "relative path within the volume"),
        ({"Type": "volume", "Target": "/a", "Source": "v", "VolumeOptions": {"Subpath": "/x"}}, "relative path within the volume"),
        ({"Type": "volume", "Target": "", "Source": "v"}, "field Target must not be empty"),
        ({"Type": "volume", "Target": "/a", "BindOptions": {}}, 'BindOptions must not be specified on mount type "volume"'),
        ({"Type": "bind", "Target": "/a"}, "field Source must not be empty"),
        ({"Type": "bind", "Target": "/a", "Source": "x"}, "mount path must be absolute"),
        ({"Type": "bind", "Target": "/a", "Source": "/x", "BindOptions": {"Propagation": "bad"}}, "invalid propagation mode: bad"),
        ({"Type": "tmpfs", "Target": "/a", "Source": "x"}, "field Source must not be specified"),
        ({"Type": "image", "Target": "/a"}, "field Source must not be empty"),
        ({"Type": "npipe", "Target": "/a"}, "mount type unknown"),
        ({"Target": "/a"}, "mount type unknown"),
    ],
)
def test_mounts_that_make_no_sense_say_why(members: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        mount(**members)


def test_how_far_read_only_reaches() -> None:
    def access(**options: Any) -> tuple[str, ...]:
        return mount(Type="bind", Source="/s", Target="/t", ReadOnly=True, BindOptions=options).options

    assert access() == ("rbind", "rro", "rprivate")
    assert access(ReadOnlyNonRecursive=True) == ("rbind", "ro", "rprivate")
    assert access(NonRecursive=True) == ("bind", "ro", "rprivate")
    assert access(ReadOnlyForceRecursive=True, Propagation="rslave") == ("rbind", "rro", "rslave")
    assert not mount(Type="bind", Source="/s", Target="/t").create


def test_volumes_of_mounts_carry_what_they_are_made_with() -> None:
    config = {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs"}}
    options = {"NoCopy": True, "Labels": {"a": "b"}, "DriverConfig": config}
    members = {"Mounts": [{"Type": "volume", "Source": "v", "Target": "/t", "VolumeOptions": options}]}
    request = mountspec.requested(msgspec.convert(members, HostConfig))[0]
    assert request.labels == {"a": "b"}
    assert request.driver_options == config["Options"]
    assert not request.point.copy
    assert points(VolumeDriver="other", Binds=["v:/a"])[0].driver == "other"


def test_tmpfs() -> None:
    given = points(Tmpfs={"/t": "exec,size=1m"})[0]
    assert (given.options, given.hidden, given.rw) == (("nosuid", "nodev", "exec", "size=1m"), True, True)
    asked = mount(Type="tmpfs", Target="/t", TmpfsOptions={"SizeBytes": 1000, "Mode": 0o700, "Options": [["exec"], ["uid", "5"]]})
    assert asked.options == ("nosuid", "nodev", "size=1000", "mode=700", "exec", "uid=5")
    assert not asked.hidden
    assert mount(Type="tmpfs", Target="/t", ReadOnly=True).options[-1] == "ro"


def test_one_destination_is_taken_once() -> None:
    for other in ({"Binds": ["v:/a", "w:/a/"]}, {"Binds": ["v:/a"], "Tmpfs": {"/a": ""}}):
        with pytest.raises(InvalidParameter, match="Duplicate mount point: /a"):
            points(**other)


def test_volumes_from() -> None:
    assert mountspec.sources(["a", "b:ro", "c:z", "d:rw"]) == [
        mountspec.Source("a", True), mountspec.Source("b", False), mountspec.Source("c", True), mountspec.Source("d", True)
    ]  # fmt: skip
    for text in ("", "a:what", "a:nocopy", "a:rshared"):
        with pytest.raises(InvalidParameter):
            mountspec.sources([text])


def test_what_is_taken_over_is_never_more_writable_and_never_filled_again() -> None:
    for point in (bind("v:/a"), bind("/s:/a"), bind("/a"), mount(Type="tmpfs", Target="/a")):
        taken = mountspec.taken_over(point, writable=False)
        assert not taken.rw
        assert "rw" not in taken.options
        assert {"rro", "ro"} & set(taken.options)
        assert not taken.copy
    assert not mountspec.taken_over(bind("v:/a:ro"), writable=True).rw
    assert mountspec.taken_over(bind("v:/a"), writable=True).options == bind("v:/a").options


@given(st.text(alphabet="/a.:,rowz\0-", max_size=20))
def test_any_text_is_a_mount_or_refused(text: str) -> None:
    """Whatever a client sends becomes an absolute place below the root, or an error for the client."""
    try:
        point = bind(text)
    except InvalidParameter:
        return
    assert point.destination.startswith("/")
    assert point.destination != "/"
    assert not {"..", "."} & set(point.destination.split("/"))
    assert "\0" not in point.destination + point.source
