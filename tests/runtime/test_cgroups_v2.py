"""The tests of cgroups again, under a real kernel that has version 2 alone (tests/lib/cgroup2.py)."""

from __future__ import annotations

import os
import sys

import pytest

from tests.lib import cgroup2


@pytest.mark.skipif(cgroup2.INSIDE in os.environ, reason="this is that kernel")
def test_under_version_2_alone() -> None:
    reason = cgroup2.missing()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    assert not reason
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/runtime/test_cgroups.py"]
    status, output = cgroup2.run(command)
    assert status == 0, output[-6000:]
    assert " passed" in output
