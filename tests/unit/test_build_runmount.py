"""The options of `RUN --mount` and `RUN --device`."""

from __future__ import annotations

import re

import pytest

from builder.language.runmount import RunMount, check_mount, fields, parse_device, parse_mount


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("target=/a", RunMount(target="/a")),
        ("dst=/a,rw", RunMount(target="/a", readonly=False)),
        ("type=bind,source=s,from=f,destination=/a,readwrite=0", RunMount(target="/a", source="s", from_="f")),
        ("TYPE=Cache,Target=/a", RunMount(type="cache", target="/a", readonly=False)),
        (
            "type=cache,id=i,target=/a,ro,sharing=Locked,from=f,src=/s,mode=0700,uid=1,gid=2",
            RunMount(type="cache", id="i", target="/a", sharing="locked", from_="f", source="/s", mode=0o700, uid=1, gid=2),
        ),
        ("type=tmpfs,target=/a,size=1.5k", RunMount(type="tmpfs", target="/a", size=1536, readonly=False)),
        ("type=secret,id=i", RunMount(type="secret", id="i")),
        ("type=secret,id=i,env=TOKEN,required", RunMount(type="secret", id="i", env="TOKEN", required=True)),
        ("type=secret,target=/run/t,env=", RunMount(type="secret", target="/run/t", env="t")),
        ("type=secret,source=s,required=false,mode=444", RunMount(type="secret", source="s", mode=0o444)),
        ("type=ssh,required=true,uid=0", RunMount(type="ssh", required=True, uid=0)),
        ('type=cache,"target=/a,b"', RunMount(type="cache", target="/a,b", readonly=False)),
    ],
)
def test_mounts(text: str, mount: RunMount) -> None:
    assert parse_mount(text) == mount


def test_values_are_expanded_and_keys_are_not() -> None:
    assert parse_mount("type=$t,target=/$t,id=$t", lambda value: value.replace("$t", "cache")) == RunMount(
        type="cache", target="/cache", id="cache", readonly=False
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=foo", 'unsupported mount type "foo"'),
        ("type=bin", 'unsupported mount type "bin" (did you mean bind?)'),
        ("typ=foo", "unexpected key 'typ' in 'typ=foo' (did you mean type?)"),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("", "failed to parse csv mounts: EOF"),
        ('a"b', 'failed to parse csv mounts: parse error on line 1, column 2: bare " in non-quoted field'),
        ("type=cache,sharing=lock", 'unsupported sharing value "lock" (did you mean locked?)'),
        ("type=bind,sharing=shared", "invalid cache sharing set for bind mount"),
        ("type=bind,size=1", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,size=x", "invalid value for size: x"),
        ("type=tmpfs,size=" + "9" * 400, "invalid value for size: " + "9" * 240 + "…"),
        ("type=cache,required", "unexpected key 'required' for mount type 'cache'"),
        ("type=ssh,required=maybe", "invalid value for required: maybe"),
        ("ro=maybe", "invalid value for ro: maybe"),
        ("mode=0700", 'mode not allowed for "bind" type mounts'),
        ("type=tmpfs,uid=1", 'uid not allowed for "tmpfs" type mounts'),
        ("type=cache,mode=8", "invalid value 8 for mode"),
        ("type=cache,uid=4294967296", "invalid value 4294967296 for uid"),
        ("type=cache,gid=-1", "invalid value -1 for gid"),
        ("type=cache,env=X", 'env not allowed for "cache" type mounts'),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,from=x,id=i", "secret mount should not have a from"),
        ("type=secret,sharing=shared,id=i", "secret mount should not define sharing"),
        ("type=secret,source=s,id=i", "both source and id can't be set"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_mount(text)


def test_what_is_checked_before_substitution() -> None:
    check_mount("type=$nonsense,target=$x,from=a$")
    with pytest.raises(ValueError, match="'from' doesn't support variable expansion, define alias stage instead"):
        check_mount("type=$nonsense,FROM=$x")


def test_fields() -> None:
    assert fields('"a""b",,c d,"e,f"', "x") == ['a"b', "", "c d", "e,f"]
    assert fields("a,", "x") == ["a", ""]


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("vendor.com/class=name", ("vendor.com/class=name", False)),
        ("name=a/b=c,required", ("a/b=c", True)),
        ("class,required=false", ("class", False)),
        ("required=1", ("", True)),
    ],
)
def test_devices(text: str, device: tuple[str, bool]) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name=a,name=b", "device name already set to a"),
        ("a,b", "invalid field 'b' must be a key=value pair"),
        ("a,requird=1", "unexpected key 'requird' in 'requird=1' (did you mean required?)"),
        ("a,required=x", "invalid value for required: x"),
    ],
)
def test_mistakes_in_devices(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_device(text)
