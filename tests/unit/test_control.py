"""The control protocol: every message there and back, what is refused, and the monitor's own decoder against Python's."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine import _core
from engine.wire import control

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
PATH = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=50).map(lambda text: "/" + text)
PAIRS = st.lists(st.tuples(U32, U64), max_size=5).map(tuple)
DEGRADED = st.lists(st.tuples(U32, U32), max_size=3).map(tuple)

LOG = st.builds(control.LogSettings, path=PATH, max_size=U64, max_files=U32, attrs=st.binary(max_size=50))
OOM = st.builds(control.OomSource, path=PATH, version=st.sampled_from([1, 2]), watch=st.booleans())
TO_MONITOR = st.one_of(
    st.builds(
        control.Start,
        plan=st.binary(max_size=200),
        bundle=PATH,
        tty=st.booleans(),
        rows=U16,
        cols=U16,
        open_stdin=st.booleans(),
        stdin_once=st.booleans(),
        log=st.none() | LOG,
        oom=st.none() | OOM,
    ),
    st.builds(
        control.Attach,
        id=U32,
        stdin=st.booleans(),
        stdout=st.booleans(),
        stderr=st.booleans(),
        framed=st.booleans(),
        detach_keys=st.binary(max_size=control.DETACH_KEYS_LIMIT),
        early=st.binary(max_size=200),
    ),
    st.builds(control.Resize, rows=U16, cols=U16),
    st.builds(control.Signal, number=U32),
    st.just(control.Status()),
)
FROM_MONITOR = st.one_of(
    st.builds(
        control.Started,
        pid=st.integers(0, 2**31 - 1),
        start_time=U64,
        received=U64,
        prepared=U64,
        launched=U64,
        trace=PAIRS,
        degraded=DEGRADED,
    ),
    st.builds(
        control.Failed, op=st.integers(-1, 2000), errno=U32, what=st.text(st.characters(codec="utf-8")), trace=PAIRS, degraded=DEGRADED
    ),
    st.builds(control.Exit, status=U32, oom_kills=U64, finished=U64, log_dropped=U64),
    st.builds(control.Detached, id=U32, reason=st.sampled_from(["keys", "input", "closed", "error", "ended"])),
    st.builds(control.Oom, kills=U64),
    st.builds(
        control.State,
        phase=st.sampled_from(["waiting", "running", "ended"]),
        pid=st.integers(0, 2**31 - 1),
        start_time=U64,
        tty=st.booleans(),
        log_dropped=U64,
        clients=st.lists(U32, max_size=5).map(tuple),
    ),
    st.builds(control.Warning, text=st.text(st.characters(codec="utf-8"))),
)


@given(TO_MONITOR | FROM_MONITOR)
@settings(max_examples=500, deadline=None)
def test_there_and_back(message: control.Message) -> None:
    assert control.decode(control.encode(message)) == message


@given(TO_MONITOR)
@settings(max_examples=500, deadline=None)
def test_the_monitor_understands(message: control.ToMonitor) -> None:
    encoded = control.encode(message)
    assert _core.decode_control(encoded) == encoded[1]


@given(FROM_MONITOR)
@settings(deadline=None)
def test_the_monitor_refuses_its_own_messages(message: control.FromMonitor) -> None:
    with pytest.raises(ValueError, match="no message"):
        _core.decode_control(control.encode(message))


@given(TO_MONITOR | FROM_MONITOR, st.data())
@settings(max_examples=300, deadline=None)
def test_cut_off_or_longer_is_refused(message: control.Message, data: st.DataObject) -> None:
    encoded = control.encode(message)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for bad in (encoded[:cut], encoded + b"\0", encoded[:4] + cut.to_bytes(4, "little") + encoded[8:cut]):
        with pytest.raises(control.MalformedMessage):
            control.decode(bad)
        with pytest.raises(ValueError, match="no message"):
            _core.decode_control(bad)


def agree(data: bytes) -> None:
    """Both decoders accept the same bytes, but for what only the C side checks: that the paths are absolute and not too long."""
    try:
        message = control.decode(data)
    except control.MalformedMessage:
        message = None
    try:
        kind = _core.decode_control(data)
    except ValueError:
        kind = 0
    if kind:
        assert message is not None
        assert data[1] == kind
    elif isinstance(message, control.ToMonitor):
        assert isinstance(message, control.Start)


@given(TO_MONITOR, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=1000, deadline=None)
def test_flipped_bytes_never_harm(message: control.ToMonitor, flips: list[tuple[int, int]]) -> None:
    data = bytearray(control.encode(message))
    for at, value in flips:
        data[at % len(data)] = value
    data[4:8] = len(data).to_bytes(4, "little")
    agree(bytes(data))


@given(st.integers(0, 40), st.binary(max_size=300))
@example(1, b"\xff" * 64)
@settings(max_examples=1000, deadline=None)
def test_random_bodies_never_harm(kind: int, body: bytes) -> None:
    agree(bytes((control.VERSION, kind, 0, 0)) + (8 + len(body)).to_bytes(4, "little") + body)
    agree(body)


@pytest.mark.parametrize(
    "message",
    [
        control.Resize(rows=70000, cols=1),
        control.Attach(id=-1),
        control.Attach(id=1, detach_keys=b"x" * 33),
        control.Start(plan=b"", bundle="/a\0b"),
        control.Start(plan=b"x" * control.MESSAGE_LIMIT, bundle="/b"),
    ],
)
def test_values_that_do_not_fit(message: control.ToMonitor) -> None:
    with pytest.raises(control.MalformedMessage):
        control.encode(message)


def test_plan_is_aligned_for_its_decoder() -> None:
    encoded = control.encode(control.Start(plan=b"THEPLAN!", bundle="/b"))
    assert encoded.index(b"THEPLAN!") % 8 == 0


def test_large_packet_is_a_bare_header() -> None:
    encoded = control.encode(control.Start(plan=b"x" * 100_000, bundle="/b"))
    packet = control.large_packet(encoded)
    assert len(packet) == 8
    assert int.from_bytes(packet[2:4], "little") == control.FLAG_LARGE
    with pytest.raises(control.MalformedMessage):
        control.decode(packet)


def test_version_is_the_cores() -> None:
    assert _core.MONITOR_VERSION == control.VERSION
