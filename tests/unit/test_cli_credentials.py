"""config.json and credential helpers: what is kept, how, and that nothing of it is lost or shown."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from cli import credentials
from cli.client import Client, Failure
from cli.configfile import ConfigFile, read_headers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def config(folder: Path, value: object = None) -> ConfigFile:
    if value is not None:
        (folder / "config.json").write_text(json.dumps(value))
    return ConfigFile(str(folder))


def helper(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A credential helper `t` on PATH; `body` is Python."""
    programs = folder / "programs"
    programs.mkdir()
    program = programs / "docker-credential-t"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


LOGIN = {"username": "ü", "password": "a:b\n", "serveraddress": "r:5000"}


def test_a_login_comes_back_as_it_was_given(folder: Path) -> None:
    assert credentials.store(config(folder), dict(LOGIN)) is True
    assert credentials.find(config(folder), "r:5000") == LOGIN
    assert credentials.store(config(folder), dict(LOGIN)) is False  # nothing new was written
    credentials.erase(config(folder), "r:5000")
    assert credentials.find(config(folder), "r:5000") == {}


def test_the_file_is_for_its_owner_and_keeps_what_others_wrote(folder: Path) -> None:
    target = folder / "elsewhere.json"
    target.write_text(json.dumps({"z": {"b": 1.5, "a": None}, "auths": {"b": {}, "a": {"auth": "eDp5"}}, "text": "<&>ü"}))
    target.chmod(0o644)
    (folder / "config.json").symlink_to("elsewhere.json")
    credentials.store(config(folder), dict(LOGIN))
    assert (folder / "config.json").is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    written = json.loads(target.read_text())
    assert list(written) == ["z", "auths", "text"]
    assert (written["z"], written["text"], sorted(written["auths"])) == ({"b": 1.5, "a": None}, "<&>ü", ["a", "b", "r:5000"])
    assert sorted(one.name for one in folder.iterdir()) == ["config.json", "elsewhere.json"]


def test_a_file_that_cannot_be_read_is_not_written_over(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_text('{"auths": {')
    with pytest.raises(Failure, match="cannot be read"):
        credentials.store(config(folder), dict(LOGIN))
    assert (folder / "config.json").read_text() == '{"auths": {'
    assert "WARNING: Error parsing config file" in capfd.readouterr().err


def test_a_full_disk_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli import configfile

    credentials.store(config(folder), dict(LOGIN))
    before = (folder / "config.json").read_bytes()

    def full(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(configfile, "write_all", full)
    with pytest.raises(Failure, match="no space left on device"):
        credentials.store(config(folder), LOGIN | {"password": "other"})
    assert [one.name for one in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("entry", [{"auth": "%%"}, {"auth": base64.b64encode(b"nocolon").decode()}, "text", 5, None, {"auth": 3}])
def test_entries_that_are_no_logins(folder: Path, entry: object) -> None:
    assert credentials.find(config(folder, {"auths": {"r": entry}}), "r") == {}


@pytest.mark.parametrize("value", [[], 5, {"auths": []}, {"credsStore": 5}, {"credHelpers": "x"}])
def test_files_of_the_wrong_shape(folder: Path, value: object) -> None:
    assert credentials.find(config(folder, value), "r") == {}


def test_a_login_is_for_its_own_registry_only(folder: Path) -> None:
    kept = config(folder, {"auths": {"https://index.docker.io/v1/": {"auth": "aHViOng="}, "https://r.example/v1/": {"auth": "cjp4"}}})
    assert credentials.find(kept, "r.example")["username"] == "r"
    for other in ("r.example:5000", "example", "index.docker.io", "evil-r.example"):
        assert credentials.find(kept, other).get("username") in ((None, "hub") if other == "index.docker.io" else (None,))


def test_a_helper_gets_the_server_on_stdin_and_never_on_its_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(folder, monkeypatch, f"open({str(folder / 'seen')!r}, 'a').write(repr((sys.argv[1:], sys.stdin.read())) + chr(10))\n"
        "print('{\"Username\": \"u\", \"Secret\": \"s\"}')")
    kept = config(folder, {"credsStore": "t"})
    assert credentials.find(kept, "r") == {"username": "u", "password": "s", "serveraddress": "r"}
    assert credentials.store(kept, LOGIN | {"serveraddress": "r"}) is False
    seen = (folder / "seen").read_text().splitlines()
    assert seen[0] == "(['get'], 'r')"
    assert seen[1].startswith("(['store'], '{\"ServerURL\":\"r\"")
    assert "a:b" not in (folder / "config.json").read_text()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('credentials not found in native keychain'); sys.exit(1)", ""),
        ("print('locked'); sys.exit(3)", "exit status 3, out: `locked`"),
        ("print('no json')", "no answer of the credential helper protocol"),
        ("print('[]')", "no answer of"), ("print('{}')", "no answer of"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"), ("sys.stdin.close(); print('x' * 3_000_000)", "error getting credentials"),
    ],
)  # fmt: skip
def test_helpers_that_fail(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    helper(folder, monkeypatch, body)
    kept = config(folder, {"credHelpers": {"r": "t"}, "auths": {"r": {"auth": "eDp5"}}})
    if not message:
        assert credentials.find(kept, "r") == {}
        return
    with pytest.raises(Failure) as caught:
        credentials.find(kept, "r")
    assert message in caught.value.text


def test_a_helper_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(Failure, match='"docker-credential-nosuch": executable file not found'):
        credentials.find(config(folder, {"credsStore": "nosuch"}), "r")


def test_the_header_is_base64url() -> None:
    value = credentials.header({"username": "ÿ?>", "password": "~~~"}).removeprefix("X-Registry-Auth: ").rstrip()
    assert not set(value) & set("+/\r\n")
    assert json.loads(base64.urlsafe_b64decode(value)) == {"username": "ÿ?>", "password": "~~~"}


def test_headers_of_the_configuration_cannot_end_a_line(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"HttpHeaders": {"X-A": "b", "User-Agent": "no"}}))
    assert Client("unix:///x", folder=str(folder)).headers() == "X-A: b\r\n"
    assert read_headers(str(folder)) == {"X-A": "b", "User-Agent": "no"}
    for name, value in (("X-A", "b\r\nEvil: 1"), ("X:A", "b"), ("", "b"), ("X A", "b")):
        (folder / "config.json").write_text(json.dumps({"HttpHeaders": {name: value}}))
        with pytest.raises(Failure, match="no valid header"):
            Client("unix:///x", folder=str(folder)).headers()
