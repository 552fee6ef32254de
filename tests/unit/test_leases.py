"""Leases: what they keep, for how long, and across a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.store import leases as module
from engine.store.leases import Leases
from tests.lib.stores import open_stores


def test_a_lease_keeps_until_it_is_released_also_over_a_restart(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        leases = Leases(stores.db)
        leases.add("pull a", ["sha256:1", "sha256:2"])
        leases.add("pull b", ["sha256:2", "sha256:3"])
    with open_stores(tmp_path) as stores:
        leases = Leases(stores.db)
        assert leases.held() == {"sha256:1", "sha256:2", "sha256:3"}
        leases.release("pull a")
        leases.release("nobody")
        assert leases.held() == {"sha256:2", "sha256:3"}
    with open_stores(tmp_path) as stores:
        assert set(Leases(stores.db).holders()) == {"pull b"}


def test_what_has_ended_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    with open_stores(tmp_path) as stores:
        leases = Leases(stores.db)
        leases.add("old", ["sha256:1"], seconds=100)
        leases.add("renewed", ["sha256:2"], seconds=10_000)
        now[0] += 5_000
        leases.add("renewed", ["sha256:3"], seconds=10_000)
        assert leases.held() == {"sha256:2", "sha256:3"}
        now[0] += 9_000
        assert Leases(stores.db).held() == {"sha256:2", "sha256:3"}  # the first one was renewed with the second
        now[0] += 2_000
        assert Leases(stores.db).held() == set()
    with open_stores(tmp_path) as stores:
        assert Leases(stores.db).holders() == {}
