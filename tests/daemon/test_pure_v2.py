"""A whole daemon under a kernel that has cgroup version 2 alone: limits hold, and an out-of-memory kill that no daemon saw is known."""

from __future__ import annotations

import os
import sys

import pytest

from tests.lib import cgroup2

CHOSEN = "run_prints or limit or out_of_memory or exec_into"


@pytest.mark.slow
@pytest.mark.skipif(cgroup2.INSIDE in os.environ, reason="this is that kernel")
def test_a_daemon_under_version_2_alone() -> None:
    reason = cgroup2.missing()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    assert not reason
    files = ["tests/daemon/test_docker_cli.py", "tests/daemon/test_survive.py"]
    status, output = cgroup2.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", CHOSEN])
    assert status == 0, output[-6000:]
    assert " passed" in output
