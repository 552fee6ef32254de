"""Progress streams: what the daemon writes, the client reads."""

from __future__ import annotations

import pytest

from engine.wire import jsonstream


def test_lines_come_back_as_messages() -> None:
    data = b"".join((
        jsonstream.stream("Loaded image: x\n"), jsonstream.status("sha256:1"), jsonstream.status("Done", "abc"),
        jsonstream.progress("Loading layer", "abc", 5, 10), jsonstream.error("bad", 1), jsonstream.aux({"ID": "x"}),
    ))  # fmt: skip
    for step in (1, 7, 10_000):
        decoder = jsonstream.Decoder()
        found = [message for start in range(0, len(data), step) for message in decoder.feed(data[start : start + step])]
        assert decoder.finish() == []
        assert [message.stream for message in found if message.stream] == ["Loaded image: x\n"]
        assert found[3].progress_detail == jsonstream.ProgressDetail(5, 10)
        assert found[4].error_detail == jsonstream.ErrorDetail("bad", 1)
        assert found[5].aux == {"ID": "x"}


def test_sizes_and_bars_look_like_dockers() -> None:
    assert [jsonstream.size(value) for value in (0, 999, 1000, 32768, 1234567, 10**12)] == [
        "0B",
        "999B",
        "1kB",
        "32.77kB",
        "1.235MB",
        "1TB",
    ]
    assert jsonstream.bar(1, 2, 10) == "[=====>    ]        1B/2B"
    assert jsonstream.bar(2, 2, 10) == "[==========]        2B/2B"
    assert jsonstream.bar(5, 0) == "      5B"


def test_what_is_no_stream() -> None:
    with pytest.raises(ValueError, match="too long"):
        jsonstream.Decoder().feed(b"x" * 2_000_000)
    with pytest.raises(ValueError, match="JSON"):
        jsonstream.Decoder().feed(b"hello\n")
    decoder = jsonstream.Decoder()
    assert decoder.feed(b'{"status":"x"}') == []
    assert decoder.finish()[0].status == "x"
