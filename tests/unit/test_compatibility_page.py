"""docs/compatibility.md says what answers `not implemented`: it lists exactly those endpoints."""

from __future__ import annotations

import re
from pathlib import Path

from engine.api import later

PAGE = Path(__file__).parent.parent.parent / "docs/compatibility.md"


def test_every_missing_endpoint_is_listed_and_no_other() -> None:
    section = PAGE.read_text().split("## Endpoints that answer")[1].split("\n## ")[0]
    listed = {tuple(entry.split(" ")) for entry in re.findall(r"`([A-Z]+ /[^`]*)`", section)} - {("POST", "/images/create")}
    assert listed == set(later.MISSING)
