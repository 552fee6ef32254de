"""The json-file log format."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.wire import jsonlog
from engine.wire.logfiles import Formatter

LINE = b'{"log":"caf\\u00e9 \\u003cb\\u003e\\n","stream":"stderr","attrs":{"b":"x y","a":"1"},"time":"2024-05-06T07:08:09.12Z"}'


def test_decoding_docker_lines() -> None:
    entry = jsonlog.decode(LINE)
    assert entry == jsonlog.Entry("café <b>\n", "stderr", {"a": "1", "b": "x y"}, "2024-05-06T07:08:09.12Z")
    assert jsonlog.decode(b'{"log":"x","stream":"stdout","time":"","new":1}').log == "x"
    with pytest.raises(msgspec.MsgspecError):
        jsonlog.decode(b'{"log":"x')
    assert json.loads(jsonlog.encode(entry))["log"] == "café <b>\n"


@given(st.integers(0, 4 * 10**18))
def test_times(value: int) -> None:
    text = jsonlog.format_time(value)
    assert not text.endswith("0Z") or "." not in text
    assert jsonlog.nanoseconds(text) == jsonlog.nanoseconds(jsonlog.fixed_time(text)) == value
    assert len(jsonlog.fixed_time(text)) == 30


def test_other_zones() -> None:
    assert jsonlog.nanoseconds("2024-01-01T02:00:00.5+02:00") == jsonlog.nanoseconds("2024-01-01T00:00:00.5Z")
    assert jsonlog.nanoseconds("2023-12-31T22:30:00-01:30") == jsonlog.nanoseconds("2024-01-01T00:00:00Z")


def test_formatting() -> None:
    piece = LINE + b"\n"
    assert Formatter(framed=False).feed(piece) == "café <b>\n".encode()
    assert Formatter(framed=True).feed(piece) == b"\x02\0\0\0\0\0\0\x0a" + "café <b>\n".encode()
    assert Formatter(framed=False, stderr=False).feed(piece) == b""
    shown = Formatter(framed=False, timestamps=True, details=True).feed(piece)
    assert shown == "2024-05-06T07:08:09.120000000Z a=1,b=x+y café <b>\n".encode()


def test_torn_and_foreign_lines_are_passed_over() -> None:
    formatter = Formatter(framed=False)
    good = jsonlog.encode(jsonlog.Entry("ok\n", "stdout", None, "2024-01-01T00:00:00Z"))
    assert formatter.feed(b'{"log":"torn\n\0\0\0\n[]\n' + good) == b"ok\n"


@given(st.lists(st.text(max_size=20), max_size=10), st.data())
def test_any_cut_gives_the_same(texts: list[str], data: st.DataObject) -> None:
    whole = b"".join(jsonlog.encode(jsonlog.Entry(text, "stdout", None, "2024-01-01T00:00:00Z")) for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    formatter = Formatter(framed=False)
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert b"".join(formatter.feed(piece) for piece in pieces) == "".join(texts).encode()
    assert formatter.pending == 0


def test_since_and_until() -> None:
    base = jsonlog.nanoseconds("2024-01-01T00:00:00Z")
    lines = b"".join(jsonlog.encode(jsonlog.Entry(f"{n}\n", "stdout", None, jsonlog.format_time(base + n * 10**8))) for n in range(10))
    formatter = Formatter(framed=False, since=base + 3 * 10**8, until=base + 6 * 10**8)
    assert formatter.feed(lines) == b"3\n4\n5\n6\n"
    assert formatter.past_until
