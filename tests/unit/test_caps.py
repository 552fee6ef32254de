"""Capability sets from Docker's options."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.linux import caps

ALL = frozenset(caps.NAMES)
LAME = ALL - {"CAP_SYS_RESOURCE", "CAP_MKNOD"}


def resolve(*args: object, usable: frozenset[str] = ALL, **kw: object) -> set[str]:
    return set(caps.resolve(*args, usable=usable, **kw))  # type: ignore[arg-type]


def test_numbers_are_the_kernels() -> None:
    assert (caps.NUMBERS["CAP_CHOWN"], caps.NUMBERS["CAP_SYS_ADMIN"], caps.NUMBERS["CAP_CHECKPOINT_RESTORE"]) == (0, 21, 40)
    assert len(caps.DEFAULT) == 14
    assert caps.mask(caps.DEFAULT) == 0xA80425FB  # what dockerd's containers show as CapBnd
    assert caps.from_mask(0xA80425FB) == set(caps.DEFAULT)


@pytest.mark.parametrize("name", ["net_admin", "NET_ADMIN", "cap_net_admin", "CAP_NET_ADMIN", " Net_Admin "])
def test_names_in_any_form(name: str) -> None:
    assert caps.normalize(name, usable=ALL) == "CAP_NET_ADMIN"
    assert "CAP_NET_ADMIN" in resolve([name])


def test_add_and_drop() -> None:
    default = set(caps.DEFAULT)
    assert resolve() == default
    assert resolve(["SYS_TIME"], ["CHOWN"]) == default - {"CAP_CHOWN"} | {"CAP_SYS_TIME"}
    assert resolve(["ALL"]) == ALL
    assert resolve(["all"], ["mknod"]) == ALL - {"CAP_MKNOD"}
    assert resolve([], ["ALL"]) == set()
    assert resolve(["CHOWN"], ["ALL"]) == {"CAP_CHOWN"}
    assert resolve(["CHOWN"], ["CHOWN"]) == default
    assert resolve(["ALL"], ["ALL"]) == ALL - {"ALL"}
    assert resolve([], ["ALL"], privileged=True) == ALL


def test_no_more_than_the_daemon_has() -> None:
    assert resolve(usable=LAME) == set(caps.DEFAULT) - {"CAP_MKNOD"}
    assert resolve(privileged=True, usable=LAME) == LAME
    assert resolve(drop=["SYS_RESOURCE"], usable=LAME) == set(caps.DEFAULT) - {"CAP_MKNOD"}
    with pytest.raises(InvalidParameter, match="not available in the current environment"):
        resolve(["SYS_RESOURCE"], usable=LAME)
    assert caps.available() <= ALL


def test_unknown() -> None:
    for options in ((["FOO"], []), ([], ["CAP_FOO"])):
        with pytest.raises(InvalidParameter, match="unknown capability"):
            resolve(*options)
