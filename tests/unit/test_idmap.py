"""Mappings of owners: what the kernel takes, how requests and the client write them, and the namespaces that have them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cli import mounts as cli
from engine.errors import InvalidParameter
from engine.linux import userns
from engine.service import mountspec
from engine.spec import idmapping
from engine.spec.docker.containers import HostConfig
from engine.spec.mount import IdMapping, MountPoint

ROOT = os.geteuid() == 0
IDENTITY = [(0, 0, 4294967295)]


def mapping(*ranges: tuple[int, int, int]) -> tuple[IdMapping, ...]:
    return tuple(IdMapping(container_id=a, host_id=b, size=size) for a, b, size in ranges)


def triples(found: tuple[IdMapping, ...]) -> list[tuple[int, int, int]]:
    return [(item.container_id, item.host_id, item.size) for item in found]


def ranges(*found: tuple[int, int, int]) -> list[dict[str, int]]:
    return [{"ContainerID": a, "HostID": b, "Size": size} for a, b, size in found]


def point(**members: Any) -> MountPoint:
    host_config = msgspec.convert({"Mounts": [{"Target": "/t", "Type": "bind", "Source": "/s", **members}]}, HostConfig)
    return mountspec.requested(host_config)[0].point


NUMBERS = st.sampled_from([0, 1, 2, 5, 1000, 4294967294, 4294967295])  # of larger ones the kernel takes the lower 32 bits


@pytest.mark.skipif(not ROOT, reason="makes user namespaces")
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=4))
@example([(0, 0, 4294967295)])
@example([(0, 0, 4294967294)])
@example([(4294967294, 4294967294, 1)])
@example([(i, i, 1) for i in range(340)])
@example([(i, i, 1) for i in range(341)])
@example([(1000000000 + i, 2000000000 + i, 1) for i in range(170)])
@example([(1000000000 + i, 2000000000 + i, 1) for i in range(171)])
def test_the_kernel_takes_what_is_called_sound_and_nothing_else(found: list[tuple[int, int, int]]) -> None:
    made = mapping(*found)
    if idmapping.problem(made):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            userns.new(made, idmapping.IDENTITY)
    else:
        os.close(userns.new(made, idmapping.IDENTITY))


@pytest.mark.skipif(not ROOT, reason="makes user namespaces")
def test_a_namespace_is_shared_and_goes_with_its_last_user() -> None:
    all = userns.UserNamespaces()
    first = all.get(mapping((0, 1000, 1)), mapping((0, 0, 5)))
    assert first is all.get(mapping((0, 1000, 1)), mapping((0, 0, 5)))
    assert first is not all.get(mapping((0, 1000, 1)), mapping((0, 0, 6)))
    name, path = os.readlink(first.path), first.path
    assert name.startswith("user:") and name != os.readlink("/proc/self/ns/user")
    for size in range(7, 40):
        all.get(mapping((0, 1000, 1)), mapping((0, 0, size)))
    assert first is all.get(mapping((0, 1000, 1)), mapping((0, 0, 5)))  # though others were asked for since
    del all, first
    assert not os.path.lexists(path) or os.readlink(path) != name


@pytest.mark.skipif(not ROOT, reason="makes user namespaces")
def test_no_process_is_left() -> None:
    """In a process of its own: other tests have children. One that nobody has reaped would be found with __WALL."""
    program = (
        "import os\nfrom engine.linux import userns\nfrom engine.spec.mount import IdMapping\n"
        "one = (IdMapping(container_id=0, host_id=1, size=1),)\n"
        "os.close(userns.new(one, one))\n"
        "try: userns.new((), one)\n"
        "except OSError: pass\n"
        "try: print(os.waitpid(-1, 0x40000000 | os.WNOHANG))\n"
        "except ChildProcessError: print('none')\n"
        "print(len(os.listdir('/proc/self/fd')))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.split() == ["none", "4"]


@pytest.mark.parametrize(("owner", "shown"), [(0, 1000), (5, 1005), (14, 1014), (15, 65534), (4, 65534)])
def test_who_is_shown(owner: int, shown: int) -> None:
    assert idmapping.shown(mapping((0, 1000, 1), (5, 1005, 10)), owner) == shown
    assert idmapping.shown(idmapping.IDENTITY, owner) == owner


def test_a_request_for_a_bind() -> None:
    found = point(UIDMappings=ranges((0, 1000, 1), (5, 1005, 10)))
    assert (triples(found.uid_mappings), triples(found.gid_mappings)) == ([(0, 1000, 1), (5, 1005, 10)], IDENTITY)
    assert found.options == ("rbind", "rw", "rprivate", "nosuid", "ridmap")
    assert point(GIDMappings=ranges((0, 1, 1)), BindOptions={"NonRecursive": True}).options[-1] == "idmap"
    assert triples(point(Type="volume", Source="v", GIDMappings=ranges((0, 1, 1))).gid_mappings) == [(0, 1, 1)]
    image = point(Type="image", Source="i", UIDMappings=ranges((0, 1, 1)))
    assert (triples(image.uid_mappings), triples(image.gid_mappings), image.options) == ([(0, 1, 1)], IDENTITY, ("nosuid", "idmap"))
    plain = point(UIDMappings=[], GIDMappings=None)
    assert (plain.uid_mappings, plain.options) == ((), ("rbind", "rw", "rprivate"))


def test_who_takes_it_over_read_only_keeps_the_mapping() -> None:
    found = mountspec.taken_over(point(UIDMappings=ranges((0, 1000, 1))), False)
    assert found.options == ("rbind", "rro", "rprivate", "nosuid", "ridmap")
    assert triples(found.uid_mappings) == [(0, 1000, 1)]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([(0, 1, 0)], "the range 0-1-0 is empty"),
        ([(0, 1, 4294967295)], "the range 0-1-4294967295 leaves 0-4294967294"),
        ([(-1, 1, 1)], "leaves"),
        ([(0, 4294967296, 1)], "leaves"),
        ([(0, 10, 5), (4, 20, 1)], "the id 4 of files is in two ranges"),
        ([(0, 10, 5), (9, 12, 1)], "the id 12 of the host is in two ranges"),
        ([(i, i, 1) for i in range(341)], "too many ranges"),
    ],
)
def test_requests_that_make_no_sense(found: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(InvalidParameter, match=f'invalid mount config for type "bind": GIDMappings: .*{message}'):
        point(GIDMappings=ranges(*found))


@pytest.mark.parametrize(
    ("text", "uids", "gids"),
    [
        ("idmap=uids=0-1000-1#5-1005-10;gids=0-1000-1", [(0, 1000, 1), (5, 1005, 10)], [(0, 1000, 1)]),
        ("idmap=gids=@0-7-2", None, [(0, 7, 2)]),
        ("IDMAP=uids=0-1-1", [(0, 1, 1)], None),
        ("idmap=u:0:1000:1 g:2:3:4", [(0, 1000, 1)], [(2, 3, 4)]),
        ("idmap=b:0:1000:1", [(0, 1000, 1)], [(0, 1000, 1)]),
        ("idmap=0:1000:1 u:5:6:7", [(0, 1000, 1), (5, 6, 7)], [(0, 1000, 1)]),
        ("idmap=false", None, None),
    ],
)
@pytest.mark.parametrize("order", ["type=bind,source=/s,target=/t,{}", "{},target=/t,source=/s,type=bind"])
def test_the_client(text: str, uids: Any, gids: Any, order: str) -> None:
    expected = {"Type": "bind", "Source": "/s", "Target": "/t"}
    expected |= {name: ranges(*found) for name, found in (("UIDMappings", uids), ("GIDMappings", gids)) if found}
    assert cli.mount(order.format(text)) == expected


@pytest.mark.parametrize("text", ["", "=", "=true", "= "])
def test_the_client_says_that_there_is_no_namespace_to_take(text: str) -> None:
    with pytest.raises(ValueError, match="the container's user namespace, and it has none"):
        cli.mount(f"type=bind,source=/s,target=/t,idmap{text}")


@pytest.mark.parametrize(
    "text",
    [
        "uids=",
        "uids=0-1",
        "uids=0-1-1;",
        "ids=0-1-1",
        "uids=0-1-x",
        "uids=0-1--1",
        "0-1-1",
        "x:0:1:1",
        "u:0:1",
        "uids=0-1-99999999999",
        "/ns",
    ],
)
def test_the_client_refuses_what_is_no_mapping(text: str) -> None:
    with pytest.raises(ValueError, match="invalid value for idmap"):
        cli.mount(f"type=bind,source=/s,target=/t,idmap={text}")


def test_the_client_knows_what_cannot_be_mapped() -> None:
    with pytest.raises(ValueError, match="cannot use 'idmap' with mount type 'tmpfs'"):
        cli.mount("type=tmpfs,target=/t,idmap=uids=0-1-1")
    assert cli.mount("type=image,source=i,target=/t,idmap=uids=0-1-1")["UIDMappings"]
