"""What an edge host gives up: properties of the decision, whatever the images; and the rules in daemon.json."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine import config
from engine.errors import InvalidParameter
from engine.service.retention import Candidate, Disk, Policy, Removal, decide, pinned, total
from engine.spec.units import seconds

NOW = 1_700_000_000.0
DAY = 86400.0
FULL = Disk(total=1000, used=900)


def image(id: str, *tags: str, used: float = 1.0, loaded: float = 1.0, resources: str = "", **fields: Any) -> Candidate:
    """`tags` as `repository:tag`; `used` and `loaded` in days before now."""
    names = tuple((tag.partition(":")[0], tag.partition(":")[2]) for tag in tags)
    return Candidate(id, names, NOW - used * DAY, NOW - loaded * DAY, tuple(resources), **fields)


def ids(removals: list[Removal]) -> list[str]:
    return [removal.id for removal in removals]


def test_nothing_is_removed_without_a_rule() -> None:
    assert decide([image("a", used=1000)], {}, FULL, Policy(), NOW) == []
    assert not Policy(pins=("x",)).active


def test_least_recently_used_first_until_low() -> None:
    images = [image("a", "a:1", used=3, resources="xA"), image("b", "b:1", used=5, resources="xB"), image("c", "c:1", resources="C")]
    sizes = {"x": 100, "A": 50, "B": 60, "C": 70}
    assert decide(images, sizes, Disk(1000, 840), Policy(high=85, low=70), NOW) == []
    # 900 - 700 = 200 to free: b frees its own 60, a its 50 and the 100 they share.
    assert [(one.id, one.bytes) for one in decide(images, sizes, FULL, Policy(high=85, low=70), NOW)] == [("b", 60), ("a", 150)]
    assert ids(decide(images, sizes, FULL, Policy(high=90, low=85), NOW)) == ["b"]
    assert ids(decide(images, sizes, FULL, Policy(high=90), NOW)) == []


def test_images_without_a_tag_go_first() -> None:
    images = [image("a", "a:1", used=9, resources="A"), image("b", "b:", used=1, resources="B")]
    assert ids(decide(images, {"A": 500, "B": 500}, FULL, Policy(high=80, low=80), NOW)) == ["b"]


def test_keep_newest_tags_of_each_repository() -> None:
    images = [
        image("a", "app:1", "app:old", "stable:1", loaded=4), image("b", "app:2", loaded=3), image("c", "app:3", loaded=2),
        image("d", "other:1", loaded=9),
    ]  # fmt: skip
    removals = decide(images, {}, FULL, Policy(keep=2), NOW)
    assert {(one.id, *one.names) for one in removals} == {("a", ("app", "1")), ("a", ("app", "old"))}
    assert all(one.bytes == 0 for one in removals)  # it has another name


def test_unused_for() -> None:
    images = [image("a", "a:1", used=31), image("b", "b:1", used=29), Candidate("unknown", used=0.0)]
    assert [(one.id, one.reason) for one in decide(images, {}, FULL, Policy(unused_for=30 * DAY), NOW)] == [("a", "unused for 31.0 days")]


@pytest.mark.parametrize(
    ("pin", "stays"),
    [("docker.io/library/*", True), ("docker.io/*", True), ("docker.io/library/app", True), ("docker.io/library/app:1", True),
     ("docker.io/library/app:2", False), ("app", False), ("quay.io/*", False)],
)  # fmt: skip
def test_pins(pin: str, stays: bool) -> None:
    assert pinned(image("a", "docker.io/library/app:1"), [pin]) is stays


def test_the_label_pins() -> None:
    assert pinned(image("a", labels={"knarr.pin": "true"}), [])
    assert not pinned(image("a", labels={"knarr.pin": "false"}), [])


@pytest.mark.parametrize("seed", range(300))
def test_properties(seed: int) -> None:
    chance = random.Random(seed)
    resources = [chr(65 + number) for number in range(12)]
    sizes = {resource: chance.randrange(1, 200) for resource in resources}
    images = [
        image(
            f"i{number}", *{f"r{chance.randrange(4)}:{chance.choice(('', '1', '2', '3'))}" for _ in range(chance.randrange(4))},
            used=chance.uniform(0, 60), loaded=chance.uniform(0, 60), needed=chance.random() < 0.2,
            resources="".join(chance.sample(resources, chance.randrange(6))),
            labels={"knarr.pin": "1"} if chance.random() < 0.1 else {},
        )
        for number in range(chance.randrange(12))
    ]  # fmt: skip
    policy = Policy(
        high=chance.choice((0, 50, 90)), low=chance.choice((0, 40)), keep=chance.choice((0, 1, 2)),
        unused_for=chance.choice((0, 30 * DAY)), pins=("r3",),
    )  # fmt: skip
    disk = Disk(1000, chance.randrange(1000))
    removals = decide(images, sizes, disk, policy, NOW)
    check(images, sizes, disk, policy, removals)
    assert decide(images[::-1], sizes, disk, policy, NOW) == removals  # the order in which they are known does not matter


def check(images: list[Candidate], sizes: dict[str, int], disk: Disk, policy: Policy, removals: list[Removal]) -> None:
    by_id = {one.id: one for one in images}
    names = {one.id: set(one.tags) for one in images}
    gone: list[str] = []
    for removal in removals:
        one = by_id[removal.id]
        assert not one.needed
        assert not pinned(one, policy.pins)
        assert removal.id not in gone
        assert removal.reason
        assert set(removal.names) <= names[removal.id]
        names[removal.id] -= set(removal.names)
        if not removal.names or not names[removal.id]:
            gone.append(removal.id)
    # What is said to be freed is what nobody needs afterwards.
    left = {resource for one in images if one.id not in gone for resource in one.resources}
    lost = {resource for id in gone for resource in by_id[id].resources} - left
    assert sum(removal.bytes for removal in removals) == total(sizes, lost)
    room = [by_id[removal.id] for removal in removals if "full" in removal.reason]
    order = [(bool(one.tags), one.used) for one in room]
    assert order == sorted(order)
    if room:  # not one more than was needed
        before = disk.used - sum(removal.bytes for removal in removals[:-1])
        assert before > disk.total * (policy.low or policy.high) / 100
    if policy.keep:
        for repository in {repository for one in images for repository, _ in one.tags}:
            kept = [one for one in images for name in names[one.id] if name[0] == repository and one.id not in gone]
            newest = sorted(kept, key=lambda one: one.loaded, reverse=True)[policy.keep :]
            assert all(one.needed or pinned(one, policy.pins) for one in newest)
    if policy.unused_for:
        stale = [one for one in images if one.id not in gone and 0 < one.used < NOW - policy.unused_for]
        assert all(one.needed or pinned(one, policy.pins) for one in stale)


# -- settings


def test_the_rules_in_daemon_json() -> None:
    found = config.settings({}, {"gc": {"high-watermark": 85, "low-watermark": 70, "keep": 2, "unused-for": "30d", "pins": ["a/*"]}})
    assert (found.gc_high_watermark, found.gc_low_watermark, found.gc_keep) == (85, 70, 2)
    assert (found.gc_unused_for, found.gc_pins) == (30 * DAY, ["a/*"])
    assert config.settings({"gc-unused-for": "1h30m"}, {}).gc_unused_for == 5400


@pytest.mark.parametrize(
    ("flags", "members", "message"),
    [
        ({}, {"gc": {"watermark": 1}}, "gc.watermark"),
        ({}, {"gc": {"keep": "x"}}, "gc.keep"),
        ({"gc-keep": 1}, {"gc": {"keep": 2}}, "specified both"),
        ({"gc-high-watermark": 101}, {}, "0 to 100"),
        ({"gc-high-watermark": 50, "gc-low-watermark": 60}, {}, "is more than"),
        ({"gc-unused-for": "30 days"}, {}, "invalid duration"),
    ],
)
def test_bad_rules(flags: dict[str, Any], members: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        config.settings(flags, members)


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("1h30m", 5400), ("30d", 30 * DAY), ("2w", 14 * DAY), ("500ms", 0.5)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "d", "30", "1y", "-1h", "1h ", "1 h"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(InvalidParameter):
        seconds(text)
