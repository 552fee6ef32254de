"""Many short containers at once over the API, for tests that look what is left afterwards."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.lib.daemon import Engine

SPEC = {"Image": "busybox", "Cmd": ["sh", "-c", "echo out; exit 7"], "HostConfig": {"NetworkMode": "none"}}


@dataclass
class Result:
    """What happened: containers that ended as they should, and what went wrong, by container."""

    finished: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def lifecycle(engine: Engine, number: int, auto_remove: bool) -> None:
    """create, start, wait, (logs, delete); every odd one with AutoRemove. Raises AssertionError when an answer is wrong."""
    spec = {**SPEC, "HostConfig": {**SPEC["HostConfig"], "AutoRemove": auto_remove}}  # type: ignore[dict-item]
    made = engine.api("POST", "/containers/create", spec)
    assert made.status == 201, made.body
    container = made.json()["Id"]
    started = engine.api("POST", f"/containers/{container}/start")
    assert started.status == 204, started.body
    if auto_remove:
        waited = engine.api("POST", f"/containers/{container}/wait?condition=removed")
        assert waited.status in (200, 404), waited.body  # it may be gone already
        return
    waited = engine.api("POST", f"/containers/{container}/wait")
    assert (waited.status, waited.json()["StatusCode"]) == (200, 7), waited.body
    logs = engine.api("GET", f"/containers/{container}/logs?stdout=1&stderr=1")
    assert logs.body == b"\x01\0\0\0\0\0\0\x04out\n", logs.body
    removed = engine.api("DELETE", f"/containers/{container}")
    assert removed.status == 204, removed.body


def run(
    engine: Engine, count: int, at_once: int, *, daemon_may_die: Callable[[], bool] = lambda: False, result: Result | None = None
) -> Result:
    """`count` lifecycles, `at_once` in parallel, added to `result`. A broken connection is no fault while `daemon_may_die()`."""
    result = result or Result()
    numbers = iter(range(count))

    def work() -> None:
        while True:
            with result.lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                lifecycle(engine, number, auto_remove=number % 2 == 1)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                with result.lock, contextlib.suppress(StopIteration):
                    if not daemon_may_die():
                        result.wrong.append(f"{number}: {type(error).__name__}: {error}")
            else:
                with result.lock:
                    result.finished += 1

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result
