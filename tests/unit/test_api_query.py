"""Query strings and JSON bodies, as Go's clients and careless ones write them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api import version
from engine.api.bodies import Body
from engine.api.query import Query, number, parse, timestamp, unescape
from engine.errors import InvalidParameter
from engine.spec.docker.containers import CreateRequest, ExecStartRequest

CREATE = Body(CreateRequest)


@pytest.mark.parametrize("text", ["", "0", "False", "no", "none"])
def test_flags(text: str) -> None:
    assert not Query(f"f={text}").flag("f")
    assert Query(f"f=1{text}").flag("f")
    assert Query("").flag("f", default=True)


def test_parse_keeps_order_and_decodes() -> None:
    assert parse("a=1&b=%2F+x&a=2&c&=&d=%C3%A9") == {"a": ["1", "2"], "b": ["/ x"], "c": [""], "": [""], "d": ["é"]}


@pytest.mark.parametrize("text", ["%00", "%ff", "%C3"])
def test_addresses_that_are_no_text(text: str) -> None:
    with pytest.raises(InvalidParameter):
        unescape(text)


@pytest.mark.parametrize(
    ("text", "ns"), [("", 0), ("0", 0), ("1", 10**9), ("1.5", 1_500_000_000), ("1.000000001", 1_000_000_001), ("-5", -5 * 10**9)]
)
def test_times(text: str, ns: int) -> None:
    assert timestamp(text) == ns


@pytest.mark.parametrize("text", ["x", "1.", "1e5", "10m", "٣", "9" * 13])
def test_bad_times(text: str) -> None:
    with pytest.raises(InvalidParameter, match="ParseInt"):
        timestamp(text)


@pytest.mark.parametrize("text", ["", "a", "1.0", "٣", "1" * 19 + "9", "9" * 19, "--1"])
def test_bad_numbers(text: str) -> None:
    with pytest.raises(InvalidParameter, match="Atoi"):
        number(text)


def test_versions() -> None:
    assert version.parse("1.24") == (1, 24)
    assert version.parse("1.51") == version.LATEST
    with pytest.raises(InvalidParameter, match=r"client version 1\.99 is too new\. Maximum supported API version is 1\.51"):
        version.parse("1.99")
    with pytest.raises(InvalidParameter, match=r"client version 1\.10 is too old\. Minimum supported API version is 1\.24, please upgrade"):
        version.parse("1.10")
    for text in ("1", "1.2.3", ".", "1.", "1" * 50 + ".1"):
        with pytest.raises(InvalidParameter):
            version.parse(text)


def test_null_for_any_member() -> None:
    """docker-py sends null for everything that the user did not give."""
    members = {field.encode_name: None for field in msgspec.structs.fields(CreateRequest)}
    assert CREATE.parse(json.dumps(members).encode()) == CreateRequest()
    request = CREATE.parse(b'{"Image":"a","Hostname":null,"HostConfig":{"PidMode":null,"PortBindings":{"80/tcp":null}}}')
    assert request.image == "a"
    assert request.host_config is not None
    assert request.host_config.port_bindings == {"80/tcp": None}


def test_member_names_in_any_case() -> None:
    request = CREATE.parse(b'{"image":"a","CMD":["x"],"labels":{"Key":"V"},"hostconfig":{"networkmode":"none"}}')
    assert (request.image, request.cmd, request.labels) == ("a", ["x"], {"Key": "V"})
    assert request.host_config is not None
    assert request.host_config.network_mode == "none"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "got EOF"),
        (b"{", "invalid JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"Image":5}', r"Expected `str`, got `int` - at `\$.Image`"),
        (b'{"Cmd":[5]}', r"at `\$.Cmd\[0\]`"),
        (b'{"Image":"a"} junk', "unexpected content after JSON"),
        (b'{"Image":"\xff"}', "UTF-8"),
        (b'{"Image":"a\\u0000b"}', "NUL"),
        (b'{"Labels":{"a\\u0000":"b"}}', "NUL"),
        (b'{"HostConfig":{"Memory":99999999999999999999}}', "out of range"),
        (b'{"HostConfig":{"Memory":1e400}}', "out of range"),
        (b'{"X":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "max depth"),
        (b"[" * 100_000, "invalid JSON"),
    ],
)
def test_bad_bodies(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        CREATE.parse(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    try:
        CREATE.parse(raw)
    except InvalidParameter:
        pass


_names = st.sampled_from(["Image", "HostConfig", "Cmd", "labels", "Mounts", "x"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=12,
)


@given(_json)
def test_any_json_is_parsed_or_refused(value: object) -> None:
    try:
        CREATE.parse(json.dumps(value).encode())
    except InvalidParameter:
        pass


def test_plain_bodies_go_the_quick_way() -> None:
    assert Body(ExecStartRequest).parse(b'{"Detach":true,"ConsoleSize":[24,80]}') == ExecStartRequest(detach=True, console_size=(24, 80))
