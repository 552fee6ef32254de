"""What a pull shows: a client that replays the lines ends with the right picture, whatever the layers do and whenever one looks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.service.pullprogress import Shown
from engine.spec.digest import sha256, short
from engine.wire import jsonstream

PHASES = ["waiting", "downloading", "extracting", "complete"]


@dataclass
class Layer:
    phase: str = "waiting"
    done: int = 0
    total: int = 100
    existed: bool = False


def replayed(lines: Iterable[bytes], screen: dict[str, list[str]]) -> None:
    """What a terminal shows under each identifier, one entry for each line that came."""
    decoder = jsonstream.Decoder()
    for line in lines:
        for message in decoder.feed(line):
            screen.setdefault(message.id, []).append(message.status)


def digests(names: str) -> list[str]:
    return [sha256(name.encode()) for name in names]


# One step of one layer: how far it goes, and how many bytes.
steps = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(0, 100)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(
    names=st.text("abc", min_size=1, max_size=5),
    existing=st.sets(st.integers(0, 4)),
    moves=steps,
    looks=st.lists(st.booleans(), max_size=40),
)
def test_the_last_picture_is_right(names: str, existing: set[int], moves: list[tuple[int, int, int]], looks: list[bool]) -> None:
    layers = [Layer() for _ in names]
    shown = Shown(digests(names))
    screen: dict[str, list[str]] = {}
    replayed(shown.lines(layers), screen)
    for number, (which, further, done) in enumerate(moves):
        layer = layers[which % len(layers)]
        if layer.phase == "complete":
            continue
        if which % len(layers) in existing:
            layer.phase, layer.existed = "complete", True
        else:
            layer.phase, layer.done = PHASES[min(PHASES.index(layer.phase) + further - 1, 3)], done
        if number < len(looks) and looks[number]:
            replayed(shown.lines(layers), screen)
    for number, layer in enumerate(layers):
        layer.existed = layer.existed or (layer.phase == "waiting" and number in existing)
        layer.phase = "complete"
    replayed(shown.finish(layers), screen)
    assert set(screen) == {short(digest) for digest in digests(names)}
    for name in set(names):
        told = screen[short(sha256(name.encode()))]
        mine = [layer for layer, other in zip(layers, names, strict=True) if other == name]
        assert told[0] == "Pulling fs layer"
        assert told[-1] == ("Already exists" if all(layer.existed for layer in mine) else "Pull complete")
        order = [
            "Pulling fs layer",
            "Waiting",
            "Downloading",
            "Verifying Checksum",
            "Download complete",
            "Extracting",
            "Pull complete",
            "Already exists",
        ]
        places = [order.index(status) for status in told]
        assert places == sorted(places)
        once = [status for status in told if status not in ("Downloading", "Extracting")]
        assert len(once) == len(set(once))
        if told[-1] == "Pull complete":
            assert {"Verifying Checksum", "Download complete"} <= set(told)
    assert list(shown.lines(layers)) == []


def test_as_dockerd_tells_it() -> None:
    layers = [Layer(), Layer(), Layer()]
    shown = Shown(digests("abc"), here=[True, False, False])
    ids = [short(digest) for digest in digests("abc")]

    def told() -> list[tuple[str, str]]:
        screen = [message for line in shown.lines(layers) for message in jsonstream.Decoder().feed(line)]
        return [(message.id, message.status) for message in screen]

    assert told() == [(ids[0], "Already exists"), (ids[1], "Pulling fs layer"), (ids[2], "Pulling fs layer")]
    layers[0].phase, layers[0].existed = "complete", True
    layers[1].phase, layers[1].done = "downloading", 10
    assert told() == [(ids[1], "Downloading"), (ids[2], "Waiting")]
    assert told() == []
    layers[1].done = 20
    assert told() == [(ids[1], "Downloading")]
    layers[1].phase, layers[1].done = "extracting", 5
    assert told() == [(ids[1], "Verifying Checksum"), (ids[1], "Download complete"), (ids[1], "Extracting")]
    layers[1].phase = layers[2].phase = "complete"
    assert told() == [
        (ids[1], "Pull complete"), (ids[2], "Verifying Checksum"), (ids[2], "Download complete"), (ids[2], "Pull complete"),
    ]  # fmt: skip


def test_a_layer_that_vanished_meanwhile_is_shown() -> None:
    layers = [Layer()]
    shown = Shown(digests("a"), here=[True])
    screen: dict[str, list[str]] = {}
    replayed(shown.lines(layers), screen)
    layers[0].phase, layers[0].done = "downloading", 3
    replayed(shown.lines(layers), screen)
    layers[0].phase = "complete"
    replayed(shown.finish(layers), screen)
    assert next(iter(screen.values())) == ["Already exists", "Downloading", "Verifying Checksum", "Download complete", "Pull complete"]
