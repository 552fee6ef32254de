"""The example application of three tiers, brought up, scaled, hurt and taken down by Docker Compose 2 and by docker-compose 1.29.

Another engine (KNARR_PEER_DOCKER_HOST) must see the files of KNARR_PEER_FOLDER under the same path, and KNARR_PEER_NETNS names the network
namespace that it publishes ports in.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PEER
from tests.lib import busybox, compose
from tests.lib.compose import Project
from tests.lib.daemon import Daemon, Engine
from tests.lib.leaks import Leaks
from tests.lib.netns import Namespace, eventually, free_port

pytestmark = pytest.mark.slow


def peer_namespace() -> Namespace:
    name = os.environ.get("KNARR_PEER_NETNS") if PEER else None
    return Namespace.named(name) if name else Namespace.here()


def leaks_of(daemon: Daemon) -> Leaks:
    """After a first container on a network of its own: what that leaves for good is there."""
    daemon.docker("network", "create", "warm")
    daemon.docker("run", "--rm", "--network", "warm", busybox.NAME, "true")
    daemon.docker("network", "rm", "warm")
    return Leaks(daemon)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One whose name server asks nobody outside about names that it does not know."""
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    ours = Daemon("--dns", "127.0.0.1")
    try:
        ours.start()
        busybox.load(ours)
        yield ours
    finally:
        ours.close()


@pytest.fixture(scope="module", params=["2", "1"], ids=["v2", "v1"])
def app(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Project]:
    """The application, up. Skipped where this Compose is not installed."""
    version = request.param
    if compose.program(version) is None:
        pytest.skip(f"no Docker Compose {version}.x here: packaging/system-packages installs it where the distribution has it")
    compose.load_image(engine)
    host = peer_namespace()
    parent = (os.environ.get("KNARR_PEER_FOLDER") if PEER else None) or tempfile.gettempdir()
    with tempfile.TemporaryDirectory(dir=parent, prefix="knarr-compose-") as folder:
        Path(folder).chmod(0o755)
        with host:
            port = free_port()
        project = Project(engine, version, host, Path(folder), port)
        leaks = leaks_of(engine) if isinstance(engine, Daemon) else None
        try:
            project.compose("up", "-d")
            yield project
        finally:
            project.close()
            host.close()
    if leaks:
        leaks.check()


def test_everything_is_up_and_well(app: Project) -> None:
    states = {c["Labels"]["com.docker.compose.service"]: (c["State"], c["Status"]) for c in app.containers()}
    assert set(states) == {"web", "api", "init", "db"}, "what has a profile is not started"
    assert states["init"][0] == "exited" and states["init"][1].startswith("Exited (0)")
    for service in ("api", "db"):
        assert states[service][0] == "running" and "(healthy)" in states[service][1], states
    assert eventually(lambda: "(healthy)" in app.containers("web")[0]["Status"])
    shown = app.compose("ps").stdout
    assert "web" in shown and str(app.port) in shown


def test_services_waited_for_one_another(app: Project) -> None:
    started = {name: app.inspect(name)["State"]["StartedAt"] for name in ("db", "init", "api", "web")}
    assert started["db"] < app.inspect("init")["State"]["FinishedAt"] <= started["api"] < started["web"], started
    assert "filled" in app.compose("logs", "init").stdout


def test_the_whole_chain_answers_through_the_published_port(app: Project) -> None:
    first, second = app.visit(), app.visit()
    assert first["greeting"] == "Hello from the API"
    assert first["seed"] == "planted"
    assert second["visits"] == first["visits"] + 1


def test_the_database_is_on_the_internal_network_only(app: Project) -> None:
    networks = {network["Name"]: network for network in app.listed("networks")}
    assert networks[f"{app.name}_backend"]["Internal"] is True
    assert networks[f"{app.name}_frontend"]["Internal"] is False
    assert list(app.inspect("db")["NetworkSettings"]["Networks"]) == [f"{app.name}_backend"]
    assert set(app.inspect("api")["NetworkSettings"]["Networks"]) == {f"{app.name}_backend", f"{app.name}_frontend"}
    routes = app.compose("exec", "-T", "db", "cat", "/proc/net/route").stdout.splitlines()[1:]
    assert not any(line.split()[1] == "00000000" for line in routes), "an internal network has no default route"
    ask = ("env", "RES_OPTIONS=timeout:1 attempts:1", "python3", "-c", "import socket; socket.gethostbyname('db')")
    found = app.compose("exec", "-T", "web", *ask, check=False)
    assert found.returncode == 1 and "gaierror" in found.stdout + found.stderr, "a name of a network that one is not in"


def test_secrets_and_configs_are_files(app: Project) -> None:
    assert app.compose("exec", "-T", "api", "cat", "/run/secrets/password").stdout.strip() == "correct horse battery staple"
    assert app.compose("exec", "-T", "web", "head", "-1", "/etc/nginx/nginx.conf").stdout.strip() == "worker_processes 1;"


def test_the_volume_took_the_images_owner(app: Project) -> None:
    assert app.compose("exec", "-T", "db", "stat", "-c", "%U", "/var/lib/redis").stdout.strip() == "redis"
    (volume,) = app.listed("volumes", "Volumes")
    assert volume["Name"] == f"{app.name}_data"
    mounts = app.inspect("db")["Mounts"]
    assert any(m["Type"] == "volume" and m["Name"] == volume["Name"] and m["Destination"] == "/var/lib/redis" for m in mounts), mounts


def test_scaled_processes_are_asked_in_turn(app: Project) -> None:
    app.compose("up", "-d", "--no-recreate", "--scale", "api=3")
    names = {app.engine.api("GET", f"/containers/{c['Id']}/json").json()["Config"]["Hostname"] for c in app.containers("api")}
    assert len(names) == 3
    hosts: set[str] = set()

    def all_were_asked() -> bool:
        hosts.add(app.visit()["host"])
        return hosts == names

    assert eventually(all_were_asked), (hosts, names)
    app.compose("up", "-d", "--no-recreate", "--scale", "api=1")
    assert len(app.containers("api")) == 1
    last = app.inspect("api")["Config"]["Hostname"]
    assert eventually(lambda: all(app.visit()["host"] == last for _ in range(3)))


def test_a_restart_keeps_data_and_names(app: Project) -> None:
    before = app.visit()["visits"]
    pid = app.inspect("db")["State"]["Pid"]
    app.compose("restart", "-t", "3", "db")
    assert app.inspect("db")["State"]["Pid"] != pid
    assert eventually(lambda: "(healthy)" in app.containers("db")[0]["Status"])
    assert app.visit()["visits"] > before


def test_a_crash_is_mended_by_the_restart_policy(app: Project) -> None:
    before = app.inspect("api")
    app.curl("/crash", "-X", "POST", check=False)
    assert eventually(lambda: app.inspect("api")["RestartCount"] == before["RestartCount"] + 1), app.inspect("api")["State"]
    assert eventually(lambda: app.inspect("api")["State"]["Running"])
    assert app.visit()["host"] == before["Config"]["Hostname"]
    assert eventually(lambda: app.inspect("api")["State"]["Health"]["Status"] == "healthy")


def test_logs_name_their_service(app: Project) -> None:
    app.visit()

    def told() -> bool:  # the web server writes its line after it has answered
        lines = app.compose("logs", "web").stdout.splitlines()
        return any("web" in line.partition("|")[0] and '"GET / HTTP/1.1" 200' in line for line in lines)

    assert eventually(told)
    assert any("serving on port 8000" in line for line in app.compose("logs", "api").stdout.splitlines())


def test_stopping_one_service_leaves_the_others(app: Project) -> None:
    app.compose("stop", "-t", "3", "api")
    assert app.inspect("api")["State"]["Status"] == "exited", "a stop is no failure: no restart"
    assert app.curl("/health").strip() == "well"
    assert app.curl("/", "-o", "/dev/null", "-w", "%{http_code}") in ("502", "504")
    app.compose("start", "api")
    assert app.visit()["seed"] == "planted"


def test_a_changed_service_is_made_anew_and_the_others_stay(app: Project) -> None:
    if app.version == "1" and PEER:
        pytest.skip("docker-compose 1.29 cannot replace containers on Docker 25 and later: it wants ContainerConfig of images")
    settings = app.folder / "settings.env"
    settings.write_text(settings.read_text().replace("Hello", "Changed"))
    db = app.inspect("db")["Id"]
    old = app.inspect("api")["Id"]
    app.compose("up", "-d")
    assert app.inspect("api")["Id"] != old
    assert app.inspect("db")["Id"] == db
    assert eventually(lambda: app.visit()["greeting"] == "Changed from the API")
    quiet = [c["Id"] for c in app.containers()]
    app.compose("up", "-d")
    assert sorted(c["Id"] for c in app.containers()) == sorted(quiet), "nothing changed, nothing is made anew"


def test_a_profile_is_run_on_demand(app: Project) -> None:
    ask = 'REDISCLI_AUTH="$(cat /run/secrets/password)" redis-cli -h database get seed'
    assert "planted" in app.compose("--profile", "debug", "run", "--rm", "-T", "tools", "sh", "-c", ask).stdout


def test_down_leaves_nothing(app: Project) -> None:
    """The last of the module: takes the application down."""
    if app.version == "2":
        app.compose("down", "-t", "5")
        assert app.containers() == []
        assert app.listed("networks") == []
        assert len(app.listed("volumes", "Volumes")) == 1, "data stay unless -v is given"
        app.compose("up", "-d")
        assert app.visit()["visits"] > 1, "and are there again"
    app.compose("down", "-v", "-t", "5")
    assert (app.containers(), app.listed("networks"), app.listed("volumes", "Volumes")) == ([], [], [])
    assert app.curl("/", "-o", "/dev/null", "-w", "%{http_code}", check=False) == "000", "nobody listens on the port"
