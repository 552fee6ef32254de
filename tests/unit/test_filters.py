"""Filters as Docker's clients send them."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.spec.filters import Filters


def test_both_forms() -> None:
    assert Filters.parse('{"label":["a","b=c"],"name":["x","x"]}') == {"label": ["a", "b=c"], "name": ["x"]}
    assert Filters.parse('{"label":{"a":true,"b":false}}') == {"label": ["a"]}
    assert Filters.parse("") == Filters.parse(None) == {}
    assert Filters.parse("{}") == {}


@pytest.mark.parametrize("text", ["[]", "1", "{", '{"a":1}', '{"a":[1]}', '{"a":"b"}', '{"a":{"b":"c"}}', "[" * 5000, b"\xff"])
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^invalid filter$"):
        Filters.parse(text)


def test_unknown_key() -> None:
    with pytest.raises(InvalidParameter, match=r"^invalid filter 'nonsense'$"):
        Filters.parse('{"nonsense":["x"]}').check({"name"})


def test_labels_must_all_hold() -> None:
    labels = {"a": "1", "b": ""}
    for values, holds in ((["a"], True), (["a=1"], True), (["a=2"], False), (["a", "c"], False), (["b="], True), (["b"], True), ([], True)):
        assert Filters.of({"label": values}).match_labels("label", labels) is holds, values
    assert Filters.of({"label!": ["c"]}).lacks_labels("label!", labels)
    assert not Filters.of({"label!": ["a=1"]}).lacks_labels("label!", labels)


def test_ways_to_match() -> None:
    filters = Filters.of({"name": ["^/web", "[", "exact"], "id": ["abc"], "status": ["running"]})
    assert filters.match_names("name", "/web-1")
    assert filters.match_names("name", "[")
    assert not filters.match_names("name", "/db")
    assert filters.match_names("other", "anything")
    assert filters.match_prefix("id", "abcdef")
    assert not filters.match_prefix("id", "xabc")
    assert filters.match_any("status", ("running", "exited"))
    assert not filters.match_any("status", ())


def test_flags() -> None:
    assert Filters.of({"dangling": ["true"]}).flag("dangling")
    assert not Filters.of({"dangling": ["0"]}).flag("dangling", True)
    assert Filters().flag("dangling", True)
    for values in (["x"], ["true", "false"]):
        with pytest.raises(InvalidParameter, match=r"invalid filter 'dangling=\["):
            Filters.of({"dangling": values}).flag("dangling")
