"""Builds as the docker CLI's classic builder, docker-py and bare calls of the API do them: what is printed, what fails in which way.

Written against dockerd 26.1; where Knarr answers with a better status both are accepted. Images are made from `busybox`, which is there.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import lzma
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.lib import compose
from tests.lib.buildwork import running, wait
from tests.lib.daemon import Engine, docker_program
from tests.lib.http import UnixConnection

docker = pytest.importorskip("docker")

OWN = "knarr-compat-build"  # begins the names of all images that are made here


@pytest.fixture
def api(clean: Engine) -> Iterator[Engine]:
    """The engine; images made by the test are removed after it."""
    yield clean
    for image in clean.api("GET", "/images/json").json():
        for tag in image["RepoTags"] or ():
            if tag.startswith(OWN):
                clean.api("DELETE", f"/images/{tag}?force=1")


@pytest.fixture
def client(api: Engine) -> Iterator[Any]:
    found = docker.DockerClient(base_url=f"unix://{api.socket}", timeout=120)
    yield found
    found.close()


def archive(files: dict[str, str | bytes]) -> bytes:
    """A context."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


class Built:
    """An answer of `POST /build`: `status`, the stream's lines, all text of it."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in body.splitlines() if line.strip()]
        self.text = "".join(line.get("stream", "") for line in self.lines)

    @property
    def message(self) -> str:
        """Of an error, wherever it stands."""
        last = self.lines[-1] if self.lines else {}
        return str(last.get("message") or last.get("error") or "")

    @property
    def image(self) -> str:
        """The identifier that programs read."""
        return str(next(line["aux"]["ID"] for line in reversed(self.lines) if "aux" in line))


def build(
    api: Engine, text: str = "", /, *, body: bytes | None = None, headers: dict[str, str] | None = None, **parameters: Any
) -> Built:  # fmt: skip
    query = "&".join(
        f"{key}={quote(one if isinstance(one, str) else json.dumps(one))}"
        for key, value in parameters.items()
        for one in (value if isinstance(value, tuple) else (value,))
    )
    connection = UnixConnection(str(api.socket), 120)
    try:
        sent = archive({"Dockerfile": text, "file": "content\n"}) if body is None else body
        connection.request("POST", f"/v1.45/build?{query}", body=sent, headers={"Content-Type": "application/x-tar", **(headers or {})})
        answer = connection.getresponse()
        return Built(answer.status, answer.read())
    finally:
        connection.close()


def run(api: Engine, image: str, *command: str) -> str:
    return api.out("run", "--rm", image, *command)


def cli(api: Engine, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """`docker build` with the classic builder."""
    environment = {**api.docker_environment(), "DOCKER_BUILDKIT": "0"}
    done = subprocess.run([docker_program(), "build", *arguments], env=environment, capture_output=True, timeout=300, **options)
    assert not check or not done.returncode, (done.stdout, done.stderr, api.log_tail())
    return done


DOCKERFILE = """\
FROM busybox
ENV GREETING=hello
RUN echo $GREETING > /greeting; echo out; echo err >&2
COPY file /copied
WORKDIR /work
CMD ["cat", "/greeting"]
"""


def shape(text: str) -> str:
    """What was printed, with every identifier as #."""
    return re.sub(r"\b[0-9a-f]{12}\b", "#", text)


def test_the_stream_of_a_build(api: Engine) -> None:
    built = build(api, DOCKERFILE, t=(f"{OWN}:1", f"{OWN}:2"), nocache="1")
    assert built.status == 200, built.message
    text = shape(built.text)
    for step, line in enumerate(DOCKERFILE.splitlines(), 1):
        assert f"Step {step}/6 : {line}\n" in text
    assert "Step 3/6 : RUN echo $GREETING > /greeting; echo out; echo err >&2\n ---> Running in #\n" in text
    assert "out\n" in text and "\x1b[91merr\n\x1b[0m" in text
    assert (
        "Step 4/6 : COPY file /copied\n ---> #\nStep 5/6 : WORKDIR /work\n ---> Running in #\n ---> Removed intermediate container #\n"
        in text
    )
    assert text.endswith(f" ---> #\nSuccessfully built #\nSuccessfully tagged {OWN}:1\nSuccessfully tagged {OWN}:2\n")
    assert {"stream": "Step 1/6 : FROM busybox"} in built.lines and {"stream": "\n"} in built.lines
    assert built.image == api.api("GET", f"/images/{OWN}:2/json").json()["Id"]
    assert f"Successfully built {built.image[7:19]}\n" in built.text and f" ---> {built.image[7:19]}\n" in built.text
    assert (
        run(api, f"{OWN}:1") == "hello" and run(api, OWN + ":1", "cat", "/copied") == "content" and run(api, OWN + ":1", "pwd") == "/work"
    )


def test_the_second_build_uses_the_cache(api: Engine) -> None:
    first = build(api, DOCKERFILE)
    second = build(api, DOCKERFILE)
    assert second.image == first.image
    assert second.text.count(" ---> Using cache\n") == 5 and "Running in" not in second.text
    assert "Using cache" not in build(api, DOCKERFILE, nocache="1").text


def test_quiet(api: Engine) -> None:
    built = build(api, DOCKERFILE, q="1", t=OWN)
    assert [list(line) for line in built.lines] == [["stream"]]
    assert built.text == api.api("GET", f"/images/{OWN}/json").json()["Id"] + "\n"


def test_a_quiet_build_that_fails_tells_all(api: Engine) -> None:
    built = build(api, "FROM busybox\nRUN echo why; exit 3\n", q="1", nocache="1")
    assert "why\n" in built.text and built.lines[-1]["errorDetail"]["code"] == 3


@pytest.mark.parametrize(
    ("command", "message", "code"),
    [
        ("RUN exit 3", "The command '/bin/sh -c exit 3' returned a non-zero code: 3", 3),
        ('RUN ["sh", "-c", "exit 4"]', "The command 'sh -c exit 4' returned a non-zero code: 4", 4),
    ],
)
def test_a_command_that_fails(api: Engine, command: str, message: str, code: int) -> None:
    built = build(api, f"FROM busybox\n{command}\n")
    assert built.status == 200
    assert built.lines[-1] == {"errorDetail": {"code": code, "message": message}, "error": message}
    assert "Successfully" not in built.text


def test_forcerm_tells_of_the_container_of_a_command_that_failed(api: Engine) -> None:
    built = build(api, "FROM busybox\nRUN exit 3\n", forcerm="1")
    assert shape(built.text).endswith(" ---> Running in #\n ---> Removed intermediate container #\n")


def test_a_file_that_is_not_there_fails_in_the_stream(api: Engine) -> None:
    built = build(api, "FROM busybox\nCOPY nosuch /\n")
    assert built.status == 200 and "nosuch" in built.message and "Step 2/2 : COPY nosuch /\n" in built.text


def test_a_base_image_that_is_not_there_fails_in_the_stream(api: Engine) -> None:
    built = build(api, "FROM 127.0.0.1:1/nosuch\n")
    assert built.status == 200 and built.message and built.text == "Step 1/1 : FROM 127.0.0.1:1/nosuch\n"


@pytest.mark.parametrize(
    ("dockerfile", "message"),
    [
        ("FROM busybox\nFOO x\n", "unknown instruction: FOO"),
        ("", "cannot be empty"),
        ("# only a comment\n", "file with no instructions"),
        ("RUN x\n", "no build stage in current context"),
    ],
)
def test_a_dockerfile_that_cannot_be_read_is_a_400(api: Engine, dockerfile: str, message: str) -> None:
    built = build(api, dockerfile)
    assert built.status == 400 and message in built.message


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"buildargs": "x"}, "error reading build args: "),
        ({"labels": "x"}, "error reading labels: "),
        ({"cachefrom": "x"}, "error reading cache-from: "),
        ({"ulimits": "x"}, "error reading ulimit settings: "),
        ({"outputs": "x"}, "invalid outputs specified: "),
        ({"version": "3"}, 'invalid version "3"'),
        ({"securityopt": '["x"]'}, "security options are not supported on linux"),
        ({"platform": "foo"}, '"foo": unknown operating system or architecture: invalid argument'),
        ({"target": "nosuch"}, 'target stage "nosuch" could not be found'),
    ],
)
def test_parameters_that_make_no_sense_are_a_400(api: Engine, parameters: dict[str, Any], message: str) -> None:
    built = build(api, "FROM busybox\n", **parameters)
    assert built.status == 400 and message in built.message


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"t": "UPPER"}, "must be lowercase"),
        ({"t": "a:b:c"}, "invalid reference format"),
        ({"shmsize": "x"}, "invalid syntax"),
        ({"dockerfile": "nosuch"}, "nosuch"),
        ({"dockerfile": "../outside"}, "outside"),
        ({"remote": "x"}, ""),
        ({"remote": "http://127.0.0.1:1/x"}, "127.0.0.1:1"),
    ],
)
def test_what_dockerd_calls_an_internal_error_is_an_error(api: Engine, parameters: dict[str, Any], message: str) -> None:
    built = build(api, "FROM busybox\n", **parameters)
    assert built.status in (400, 404, 500) and message in built.message


def test_an_archive_that_is_none(api: Engine) -> None:
    assert build(api, body=b"FROM busybox\n").status in (400, 500)
    assert build(api, body=b"").status in (400, 500)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
def test_compressed_contexts(api: Engine, compress: Any) -> None:
    built = build(api, body=compress(archive({"Dockerfile": "FROM busybox\nCOPY a /a\n", "a": "b"})), t=OWN)
    if 'exec: "xz"' in built.message:
        pytest.skip("the engine has no xz")
    assert built.status == 200 and run(api, OWN, "cat", "/a") == "b"


def test_arguments_and_labels(api: Engine) -> None:
    dockerfile = "ARG TAG=none\nFROM busybox:$TAG\nARG WORD=default\nRUN echo $WORD > /word\n"
    built = build(api, dockerfile, buildargs={"TAG": "latest", "WORD": "given", "other": "1"}, labels={"z": "1", "a": "b c"}, t=OWN)
    assert re.findall(r"Step .*", built.text) == [
        "Step 1/6 : ARG TAG=none", "Step 2/6 : FROM busybox:$TAG", "Step 3/6 : ARG WORD=default", "Step 4/6 : RUN echo $WORD > /word",
        "Step 5/6 : LABEL a=b c", "Step 6/6 : LABEL z=1",
    ]  # fmt: skip
    assert "[Warning] One or more build-args [other] were not consumed\n" in built.text
    assert run(api, OWN, "cat", "/word") == "given"
    assert api.api("GET", f"/images/{OWN}/json").json()["Config"]["Labels"] == {"z": "1", "a": "b c"}


def test_stages_and_a_target(api: Engine) -> None:
    dockerfile = "FROM busybox AS one\nRUN echo 1 > /x\nFROM busybox AS two\nCOPY --from=one /x /y\nFROM two AS three\nRUN exit 1\n"
    built = build(api, dockerfile, target="two", t=OWN)
    assert built.status == 200, built.message
    assert "Step 1/4 : FROM busybox AS one\n" in built.text and "Step 4/4 : COPY --from=one /x /y\n" in built.text
    assert run(api, OWN, "cat", "/y") == "1"


def test_triggers(api: Engine) -> None:
    build(api, "FROM busybox\nONBUILD RUN echo triggered > /t\n", t=f"{OWN}:on")
    built = build(api, f"FROM {OWN}:on\nCMD true\n", t=OWN, nocache="1")
    assert f"Step 1/2 : FROM {OWN}:on\n# Executing 1 build trigger\n ---> Running in #\n" in shape(built.text)
    assert run(api, OWN, "cat", "/t") == "triggered"


def test_limits_and_hosts_of_commands(api: Engine) -> None:
    dockerfile = "FROM busybox\nRUN ulimit -n > /n; df /dev/shm | tail -1 > /shm; grep myhost /etc/hosts > /hosts\n"
    built = build(
        api, dockerfile, t=OWN, nocache="1", ulimits=[{"Name": "nofile", "Soft": 99, "Hard": 100}], shmsize="1048576",
        extrahosts="myhost:10.1.2.3", memory="67108864", memswap="-1", cpushares="512", cpusetcpus="0", cpuperiod="100000",
        cpuquota="50000",
    )  # fmt: skip
    assert built.status == 200 and "Successfully built" in built.text, built.message
    assert run(api, OWN, "cat", "/n") == "99" and "10.1.2.3" in run(api, OWN, "cat", "/hosts")
    assert run(api, OWN, "cat", "/shm").split()[1] == "1024"


@pytest.mark.parametrize(
    ("parameters", "message"), [({"memory": "1"}, "Minimum memory limit allowed is 6MB"), ({"extrahosts": "x"}, "bad format for add-host")]
)
def test_limits_that_cannot_be(api: Engine, parameters: dict[str, Any], message: str) -> None:
    built = build(api, "FROM busybox\nRUN true\n", nocache="1", **parameters)
    assert built.status in (200, 400) and message in built.message


def test_no_network(api: Engine) -> None:
    built = build(api, "FROM busybox\nRUN ls /sys/class/net > /net\n", t=OWN, nocache="1", networkmode="none")
    assert built.status == 200, built.message
    assert run(api, OWN, "cat", "/net").split() == ["lo"]


def test_a_client_that_goes_ends_its_build(api: Engine) -> None:
    connection = UnixConnection(str(api.socket), 120)
    connection.request(
        "POST", f"/v1.45/build?nocache=1&t={OWN}", body=archive({"Dockerfile": "FROM busybox\nRUN echo begun; sleep 31471\n"})
    )
    answer = connection.getresponse()
    seen = b""
    while b"begun\\n" not in seen:
        piece = answer.read1()
        assert piece, seen
        seen += piece
    wait(lambda: running("sleep 31471"))
    connection.close()
    answer.close()
    wait(lambda: not running("sleep 31471"), told=lambda: "the step still runs")
    assert api.api("GET", f"/images/{OWN}/json").status == 404


def test_cancel(api: Engine) -> None:
    assert api.api("POST", "/build/cancel").status == 400
    assert api.api("POST", "/build/cancel?id=nosuch").status == 200


def test_prune_and_its_errors(api: Engine) -> None:
    answer = api.api("POST", '/build/prune?filters={"id":["nosuch"]}')
    assert (answer.status, answer.json()) == (200, {"CachesDeleted": None, "SpaceReclaimed": 0})
    for query, message in (
        ("filters=x", "invalid filter"),
        ('filters={"until":["1h","2h"]}', "failed to prune build cache: filters expect only one value"),
        ('filters={"nosuch":["a"]}', "failed to prune build cache: invalid filter 'nosuch'"),
        ("keep-storage=x", "keep-storage is in bytes and expects an integer, got x"),
    ):
        answer = api.api("POST", f"/build/prune?{query}")
        assert answer.status == 400 and message in answer.message


def test_credentials_that_are_nonsense_are_ignored(api: Engine) -> None:
    assert build(api, "FROM busybox\n", headers={"X-Registry-Config": "%%%"}).status == 200
    config = base64.urlsafe_b64encode(json.dumps({"r.example": {"username": "u", "password": "p"}}).encode()).decode()
    assert build(api, "FROM busybox\n", headers={"X-Registry-Config": config}).status == 200


# docker-py


def test_docker_py(client: Any, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nARG WORD\nCOPY file /file\nRUN echo $WORD >> /file\n")
    (tmp_path / "file").write_text("first\n")
    (tmp_path / "ignored").write_text("x" * 1000)
    (tmp_path / ".dockerignore").write_text("ignored\n")
    image, logs = client.images.build(path=str(tmp_path), tag=OWN, buildargs={"WORD": "second"}, rm=True, labels={"k": "v"})
    assert image.tags == [f"{OWN}:latest"] and image.labels == {"k": "v"}
    assert any("Successfully built" in line.get("stream", "") for line in logs)
    assert client.containers.run(OWN, ["cat", "/file"], remove=True) == b"first\nsecond\n"


def test_docker_py_without_a_context(client: Any) -> None:
    image, _ = client.images.build(fileobj=io.BytesIO(b'FROM busybox\nCMD ["echo", "hi"]\n'), tag=OWN, quiet=True)
    assert client.containers.run(image.id, remove=True) == b"hi\n"


def test_docker_py_raises_what_it_raises(client: Any) -> None:
    with pytest.raises(docker.errors.BuildError, match="returned a non-zero code: 2") as caught:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 2\n"))
    assert any("Step 2/2" in line.get("stream", "") for line in caught.value.build_log)
    with pytest.raises(docker.errors.APIError, match="unknown instruction"):
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nNOSUCH\n"))


# the docker CLI


def test_the_cli(api: Engine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile.x").write_text(DOCKERFILE)
    (tmp_path / "file").write_text("content\n")
    iidfile = tmp_path / "iid"
    file = str(tmp_path / "Dockerfile.x")
    done = cli(api, "-f", file, "-t", OWN, "--iidfile", str(iidfile), "--label", "a=b", "--no-cache", str(tmp_path))
    assert f"Successfully tagged {OWN}:latest\n" in done.stdout.decode()
    assert iidfile.read_text() == api.api("GET", f"/images/{OWN}/json").json()["Id"]
    quiet = cli(api, "-q", "-f", file, "--label", "a=b", str(tmp_path))
    assert quiet.stdout.decode().strip() == iidfile.read_text()


def test_the_cli_reads_standard_input(api: Engine) -> None:
    cli(api, "-t", OWN, "-", input=b"FROM busybox\nRUN echo x > /x\n")
    assert run(api, OWN, "cat", "/x") == "x"
    cli(api, "-t", OWN, "-", input=gzip.compress(archive({"Dockerfile": "FROM busybox\nCOPY y /\n", "y": "y"})))
    assert run(api, OWN, "cat", "/y") == "y"


def test_the_cli_tells_the_exit_status_of_a_command(api: Engine) -> None:
    done = cli(api, "-", input=b"FROM busybox\nRUN exit 5\n", check=False)
    assert done.returncode == 5 and b"The command '/bin/sh -c exit 5' returned a non-zero code: 5" in done.stderr
    assert cli(api, "-", input=b"FROM busybox\nNOSUCH\n", check=False).returncode == 1


@pytest.mark.parametrize("version", ["1", "2"])
def test_compose(api: Engine, tmp_path: Path, version: str) -> None:
    """Both Composes that use the classic builder: docker-compose 1, and the plugin with DOCKER_BUILDKIT=0."""
    found = compose.program(version)
    if found is None:
        pytest.skip(f"Compose {version} is not here")
    (tmp_path / "Dockerfile").write_text("FROM busybox AS first\nARG WORD\nRUN echo $WORD > /word\nFROM first\nRUN exit 1\n")
    service = {"image": OWN, "build": {"context": ".", "target": "first", "args": {"WORD": "composed"}, "labels": {"k": "v"}}}
    file = tmp_path / "compose.yaml"
    file.write_text(json.dumps({"version": "3.8", "services": {"s": service}}))
    environment = {**api.docker_environment(), "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}

    def build_it(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [found or "", "-p", OWN, "-f", str(file), "build", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, timeout=300, stdin=subprocess.DEVNULL)

    done = build_it()
    assert done.returncode == 0, (done.stdout, done.stderr, api.log_tail())
    assert run(api, OWN, "cat", "/word") == "composed"
    assert api.api("GET", f"/images/{OWN}/json").json()["Config"]["Labels"]["k"] == "v"
    service["build"] = {"context": "."}
    file.write_text(json.dumps({"version": "3.8", "services": {"s": service}}))
    failed = build_it()
    assert failed.returncode and b"returned a non-zero code: 1" in failed.stdout + failed.stderr
