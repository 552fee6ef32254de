"""Health checks and restart policies as users of Docker see them: states, words, events, what commands do in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.lib.daemon import Engine

NONE = ("--network", "none")
STATE = "{{.State.Status}} {{.State.Running}} {{.State.Restarting}} {{.State.Pid}} {{.State.ExitCode}}"


def until(what: Callable[[], Any], wanted: Any = True, seconds: float = 60) -> Any:
    """Look until it is as wanted; what it is then."""
    deadline = time.monotonic() + seconds
    while (found := what()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} instead of {wanted!r}"
        time.sleep(0.03)
    return found


def health(engine: Engine, name: str) -> Any:
    return json.loads(engine.out("inspect", "-f", "{{json .State.Health}}", name))


def status(engine: Engine, name: str) -> str:
    return str(health(engine, name)["Status"])


def state(engine: Engine, name: str) -> str:
    return engine.out("inspect", "-f", STATE, name)


def events(engine: Engine, name: str, *, execs: bool = False) -> list[str]:
    found = engine.out("events", "--since", "10m", "--until", str(time.time()), "--filter", f"container={name}", "--format", "{{.Action}}")
    return [line.strip() for line in found.splitlines() if execs or not line.startswith("exec_")]


def probed(engine: Engine, name: str, command: str, *more: str) -> None:
    engine.docker(
        "run", "-d", "--name", name, *NONE, "--health-cmd", command, "--health-interval", "500ms", *more, "busybox", "sleep", "1000"
    )


def test_starting_unhealthy_healthy(clean: Engine) -> None:
    later = ("--health-cmd", "true", "--health-interval", "1h")
    clean.docker("run", "-d", "--name", "hc-new", *NONE, *later, "busybox", "sleep", "1000")
    assert status(clean, "hc-new") == "starting"
    assert clean.out("ps", "--filter", "name=hc-new", "--format", "{{.Status}}").endswith("(health: starting)")
    probed(clean, "hc-life", "test -f /ok && echo fine", "--health-retries", "2", "--health-timeout", "60s")
    until(lambda: status(clean, "hc-life"), "unhealthy")
    assert clean.out("ps", "--filter", "name=hc-life", "--format", "{{.Status}}").endswith(" (unhealthy)")
    clean.docker("exec", "hc-life", "touch", "/ok")
    until(lambda: status(clean, "hc-life"), "healthy")
    found = health(clean, "hc-life")
    assert found["FailingStreak"] == 0
    assert found["Log"][-1]["ExitCode"] == 0
    assert found["Log"][-1]["Output"] == "fine\n"
    assert found["Log"][0]["Start"] < found["Log"][0]["End"] <= found["Log"][1]["Start"]
    until(lambda: len(health(clean, "hc-life")["Log"]), 5)
    assert clean.out("ps", "--filter", "health=healthy", "--filter", "name=hc-life", "--format", "{{.Names}}") == "hc-life"
    assert clean.out("ps", "--filter", "health=none", "--filter", "name=hc-life", "--format", "{{.Names}}") == ""
    clean.docker("stop", "-t", "0", "hc-life")
    assert status(clean, "hc-life") == "unhealthy"
    seen = events(clean, "hc-life", execs=True)
    assert [one for one in seen if one.startswith("health")] == ["health_status: unhealthy", "health_status: healthy"]
    assert seen[2:5] == [
        "exec_create: /bin/sh -c test -f /ok && echo fine", "exec_start: /bin/sh -c test -f /ok && echo fine", "exec_die",
    ]  # fmt: skip


def test_a_probe_that_takes_too_long(clean: Engine) -> None:
    probed(clean, "hc-slow", "echo so far; exec sleep 100", "--health-timeout", "300ms", "--health-retries", "1")
    until(lambda: status(clean, "hc-slow"), "unhealthy")
    wanted = (-1, "Health check exceeded timeout (300ms): so far\n")  # unless the shell did not even come to its first word
    until(lambda: wanted in [(result["ExitCode"], result["Output"]) for result in health(clean, "hc-slow")["Log"]])


def test_a_program_that_is_not_there(clean: Engine) -> None:
    body = {
        "Image": "busybox", "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "none"},
        "Healthcheck": {"Test": ["CMD", "/nowhere"], "Interval": 200_000_000, "Retries": 1},
    }  # fmt: skip
    assert clean.api("POST", "/containers/create?name=hc-absent", body).status == 201
    clean.docker("start", "hc-absent")
    until(lambda: status(clean, "hc-absent"), "unhealthy")
    result = health(clean, "hc-absent")["Log"][0]
    assert result["ExitCode"] in (-1, 126, 127)
    assert "/nowhere" in result["Output"]


def test_long_output_is_cut(clean: Engine) -> None:
    probed(clean, "hc-long", "yes | head -c 300000")
    until(lambda: status(clean, "hc-long"), "healthy")
    assert len(health(clean, "hc-long")["Log"][0]["Output"]) == 4096 + len("...")


def test_the_start_period(clean: Engine) -> None:
    slow = ("--health-interval", "30s", "--health-start-interval", "200ms", "--health-start-period", "300s", "--health-retries", "1")
    clean.docker("run", "-d", "--name", "hc-warm", *NONE, "--health-cmd", "false", *slow, "busybox", "sleep", "1000")
    until(lambda: len(health(clean, "hc-warm")["Log"]) >= 2)
    assert (status(clean, "hc-warm"), health(clean, "hc-warm")["FailingStreak"]) == ("starting", 0)


@pytest.mark.parametrize(("member", "value"), [("Interval", 5), ("Timeout", -1), ("StartPeriod", 999_999), ("StartInterval", 1)])
def test_times_that_are_too_short(clean: Engine, member: str, value: int) -> None:
    answer = clean.api("POST", "/containers/create", {"Image": "busybox", "Healthcheck": {"Test": ["CMD", "x"], member: value}})
    assert (answer.status, answer.json()["message"]) == (400, f"{member} in Healthcheck cannot be less than 1ms")


def test_no_health_check(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "hc-off", *NONE, "--no-healthcheck", "busybox", "sleep", "1000")
    assert health(clean, "hc-off") is None
    refused = clean.docker("ps", "--filter", "health=fine", check=False)
    assert b"unrecognized filter value for health: fine" in refused.stderr.lower()


def waiting(engine: Engine, name: str, code: int = 3) -> None:
    """A container that waits for its restart, for at least a second."""
    engine.docker("run", "-d", "--name", name, *NONE, "--restart", "always", "busybox", "sh", "-c", f"exit {code}")

    def waits() -> bool:
        shown = engine.api("GET", f"/containers/{name}/json").json()
        return bool(shown["RestartCount"] >= 5 and shown["State"]["Status"] == "restarting")

    until(waits)


def test_between_two_runs(clean: Engine) -> None:
    """The waits double: sooner or later each command comes within one."""
    waiting(clean, "rp-wait")
    until(lambda: state(clean, "rp-wait"), "restarting true true 0 3")
    listed = ("ps", "--filter", "name=rp-wait", "--filter", "status=restarting", "--format", "{{.State}} {{.Status}}")
    until(lambda: clean.out(*listed).startswith("restarting Restarting (3) "))
    for command, words in (
        (("exec", "rp-wait", "true"), "is restarting, wait until the container is running"),
        (("top", "rp-wait"), "is restarting, wait until the container is running"),
        (("rm", "rp-wait"), 'cannot remove container "/rp-wait": container is restarting: stop the container before removing'),
        (("attach", "rp-wait"), "You cannot attach to a restarting container"),
    ):

        def refused(command: tuple[str, ...] = command, words: str = words) -> bool:
            result = clean.docker(*command, check=False)
            return result.returncode != 0 and words in result.stderr.decode()

        until(refused)
    assert clean.api("POST", "/containers/rp-wait/start").status == 304
    assert clean.out("wait", "rp-wait") == "3"


def test_stop_ends_the_waiting(clean: Engine) -> None:
    waiting(clean, "rp-stop")
    clean.docker("stop", "rp-stop")
    assert state(clean, "rp-stop") == "exited false false 0 3"
    assert events(clean, "rp-stop")[-2:] == ["die", "stop"]
    count = clean.out("inspect", "-f", "{{.RestartCount}}", "rp-stop")
    time.sleep(0.3)
    assert clean.out("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "rp-stop") == f"exited {count}"
    assert clean.api("POST", "/containers/rp-stop/start").status == 204
    assert clean.api("GET", "/containers/rp-stop/json").json()["RestartCount"] < int(count)
    until(lambda: clean.out("inspect", "-f", "{{.State.Status}}", "rp-stop"), "restarting")


def test_kill_and_forced_rm_end_the_waiting(clean: Engine) -> None:
    waiting(clean, "rp-kill")
    clean.docker("kill", "rp-kill")
    assert state(clean, "rp-kill") == "exited false false 0 3"
    clean.docker("start", "rp-kill")
    until(lambda: clean.out("inspect", "-f", "{{.State.Status}}", "rp-kill"), "restarting")
    clean.docker("rm", "-f", "rp-kill")
    assert clean.docker("inspect", "rp-kill", check=False).returncode == 1


def test_update_ends_the_waiting(clean: Engine) -> None:
    waiting(clean, "rp-upd")
    clean.docker("update", "--restart", "no", "rp-upd")
    until(lambda: state(clean, "rp-upd"), "exited false false 0 3")
    clean.docker("update", "--restart", "on-failure:3", "rp-upd")
    assert clean.out("inspect", "-f", "{{json .HostConfig.RestartPolicy}}", "rp-upd") == '{"Name":"on-failure","MaximumRetryCount":3}'


def test_on_failure_gives_up(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "rp-few", *NONE, "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 4")
    until(lambda: clean.out("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "rp-few"), "2 exited")
    assert events(clean, "rp-few") == ["create", *["start", "die"] * 3]
    clean.docker("run", "-d", "--name", "rp-well", *NONE, "--restart", "on-failure", "busybox", "true")
    until(lambda: clean.out("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "rp-well"), "0 exited")


def test_an_attached_run_ends_with_the_first_run(clean: Engine) -> None:
    ended = clean.docker(
        "run", "--name", "rp-run", *NONE, "--restart", "on-failure:1", "busybox", "sh", "-c", "echo hi; exit 4", check=False
    )
    assert (ended.returncode, ended.stdout) == (4, b"hi\n")


def test_who_stops_it_is_obeyed(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "rp-manual", *NONE, "--restart", "always", "busybox", "sleep", "1000")
    clean.docker("stop", "-t", "0", "rp-manual")
    assert state(clean, "rp-manual") == "exited false false 0 137"
    clean.docker("start", "rp-manual")
    clean.docker("kill", "rp-manual")
    time.sleep(0.3)
    assert state(clean, "rp-manual") == "exited false false 0 137"
    clean.docker("restart", "-t", "0", "rp-manual")
    assert state(clean, "rp-manual").startswith("running true false ")


def test_a_first_start_that_fails_is_not_retried(clean: Engine) -> None:
    assert clean.docker("run", "-d", "--name", "rp-bad", *NONE, "--restart", "always", "busybox", "/nowhere", check=False).returncode == 127
    time.sleep(0.3)
    assert clean.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "rp-bad") == "created 127 0"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("bad", "invalid restart policy: unknown policy 'bad'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"),
        ("always:3", "invalid restart policy: maximum retry count can only be used with 'on-failure'"),
        ("on-failure:-1", "invalid restart policy: maximum retry count cannot be negative"),
    ],
)
def test_bad_policies(clean: Engine, policy: str, words: str) -> None:
    assert words in clean.docker("create", *NONE, "--restart", policy, "busybox", check=False).stderr.decode()
    clean.docker("create", "--name", "rp-any", *NONE, "busybox")
    assert words in clean.docker("update", "--restart", policy, "rp-any", check=False).stderr.decode()


def test_rm_and_a_policy_exclude_each_other(clean: Engine) -> None:
    body = {"Image": "busybox", "HostConfig": {"AutoRemove": True, "NetworkMode": "none", "RestartPolicy": {"Name": "always"}}}
    answer = clean.api("POST", "/containers/create", body)
    assert (answer.status, answer.json()["message"]) == (400, "can't create 'AutoRemove' container with restart policy")
    id = clean.out("create", "--rm", *NONE, "busybox")
    refused = clean.docker("update", "--restart", "always", id, check=False).stderr.decode()
    assert f"Cannot update container {id}: Restart policy cannot be updated because AutoRemove is enabled for the container" in refused


def test_update_of_limits(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "up", *NONE, "-m", "100m", "--memory-swap", "200m", "busybox", "sleep", "1000")
    clean.docker("update", "-m", "150m", "--pids-limit", "50", "--cpus", "0.5", "up")
    shown = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}"
    assert clean.out("inspect", "-f", shown, "up") == f"{150 << 20} {200 << 20} 50 500000000"
    id = clean.out("inspect", "-f", "{{.Id}}", "up")
    for flags, words in (
        (("-m", "300m"), f"Cannot update container {id}: Memory limit should be smaller than already set memoryswap limit"),
        (("-m", "4m"), "Minimum memory limit allowed is 6MB"),
        (("--cpu-quota", "50000"), "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"),
    ):
        assert words in clean.docker("update", *flags, "up", check=False).stderr.decode()
    assert events(clean, "up")[-1] == "update"
    assert clean.docker("update", "-m", "9m", "nowhere", check=False).stderr.decode().strip().endswith("No such container: nowhere")
