"""The client's own flag parser, values, tables, JSON and the layers below a command: pure, no daemon."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import codec, create, main, manual, run, tables, terminal, times, trace, values
from cli.client import Client, Connection, DaemonError, Failure, Host, Unreachable, query, quote
from cli.flags import Command, Help, parse
from cli.streams import Demultiplexer

ROOT = Path(__file__).parent.parent.parent
COMMAND = Command("do", "[OPTIONS] ARG...", {"all": "bool", "name": "string", "env": "list", "count": "int", "kinds": "strings"},
                  {"a": "all", "n": "name", "e": "env", "c": "count"}, hidden={"old-name": "name"})
RUN = Command("run", "IMAGE", COMMAND.flags, COMMAND.shorts, interspersed=False)


@pytest.mark.parametrize(
    ("words", "expected", "arguments"),
    [
        (["-an", "x", "y"], {"all": True, "name": "x"}, ["y"]),
        (["-anx"], {"all": True, "name": "x"}, []),
        (["-n=x", "--name=y=z"], {"name": "y=z"}, []),
        (["--all=false", "--all=T"], {"all": True}, []),
        (["-e", "a", "-eb", "--env=c"], {"env": ["a", "b", "c"]}, []),
        (["x", "-a", "y"], {"all": True}, ["x", "y"]),
        (["x", "--", "-a"], {}, ["x", "-a"]),
        (["-", "-a"], {"all": True}, ["-"]),
        (["-c", "0x10"], {"count": 16}, []),
        (["--kinds", "a,b", "--kinds", '"c,d",e'], {"kinds": ["a", "b", "c,d", "e"]}, []),
        (["--old-name", "x"], {"name": "x"}, []),
        (["--name", "--all"], {"name": "--all"}, []),
        (["--name", ""], {"name": ""}, []),
    ],
)
def test_parse(words: list[str], expected: dict[str, Any], arguments: list[str]) -> None:
    assert parse(COMMAND, words) == (expected, arguments)


def test_flags_end_at_the_image() -> None:
    assert parse(RUN, ["-a", "image", "-n", "--all"]) == ({"all": True}, ["image", "-n", "--all"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["-az"], "unknown shorthand flag: 'z' in -z"),
        (["--name"], "flag needs an argument: --name"),
        (["-n"], "flag needs an argument: 'n' in -n"),
        (["-c", "x"], 'invalid argument "x" for "-c, --count" flag: strconv.ParseInt: parsing "x": invalid syntax'),
        (["--all=maybe"], 'invalid argument "maybe" for "-a, --all" flag: strconv.ParseBool: parsing "maybe": invalid syntax'),
        (["---x"], "bad flag syntax: ---x"),
    ],
)
def test_parse_errors_end_with_125(words: list[str], message: str) -> None:
    with pytest.raises(Failure) as caught:
        parse(COMMAND, words)
    assert caught.value.code == 125
    assert caught.value.text.splitlines()[0] == message


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["x", "--help"]])
def test_help(words: list[str]) -> None:
    with pytest.raises(Help):
        parse(COMMAND, words)


@given(st.lists(st.text(alphabet="-=aneck x1,\"", max_size=8), max_size=6))
def test_any_words_parse_or_are_refused(words: list[str]) -> None:
    try:
        parse(COMMAND, words)
    except (Failure, Help):
        pass


def test_every_flag_and_command_is_explained() -> None:
    from cli import attach, containers, events, execs, images, inspect, logs, system

    explained = {flag for _, flags in manual.FLAGS["run"] for flag in flags}
    assert explained == set(run.RUN.flags)
    modules = (run, attach, containers, events, execs, images, inspect, logs, system)
    for command in [item for module in modules for item in vars(module).values() if isinstance(item, Command)]:
        assert command.name in manual.SUMMARIES
        assert set(command.shorts.values()) <= set(command.flags)
        if command.name not in ("create",) and command.flags:
            assert {flag for _, flags in manual.FLAGS[command.name] for flag in flags} == set(command.flags), command.name


def test_every_command_has_its_function() -> None:
    for commands in (main.COMMANDS, *main.GROUPS.values()):
        for module, function in commands.values():
            assert callable(getattr(__import__(f"cli.{module}", fromlist=[function]), function))


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("10b", 10), ("1k", 1024), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("3mb", 3 << 20),
    ("5 m", 5 << 20)])
def test_sizes(text: str, size: int) -> None:
    assert values.size(text) == size


@pytest.mark.parametrize(("text", "nanoseconds"), [("0", 0), ("1h1m1s", 3661 * 10**9), ("1.5ms", 1500000), ("-2s", -2 * 10**9), ("1µs",
    1000)])
def test_durations(text: str, nanoseconds: int) -> None:
    assert values.duration(text) == nanoseconds


@pytest.mark.parametrize(("text", "nano"), [("1", 10**9), (".5", 5 * 10**8), ("1/4", 25 * 10**7), ("1e-3", 10**6), ("1e2", 10**11)])
def test_cpus(text: str, nano: int) -> None:
    assert values.cpus(text) == nano


@given(st.sampled_from(sorted(set(values.CONVERTERS) - {"mount", "network", "gpu-request"})), st.text(max_size=12))
def test_converters_refuse_with_value_errors_only(kind: str, text: str) -> None:
    try:
        values.convert(kind, text)
    except ValueError:
        pass


@given(st.sampled_from(["mount", "network", "gpu-request"]), st.text(alphabet="typebindsrcargo=,\"/ 0x-", max_size=30))
def test_long_values_refuse_with_value_errors_only(kind: str, text: str) -> None:
    try:
        values.convert(kind, text)
    except ValueError:
        pass


@given(st.text(max_size=20))
def test_volumes_and_ports_refuse_with_failures_only(text: str) -> None:
    for flag in ("volume", "publish", "expose", "device", "security-opt"):
        try:
            create.body({flag: [text]}, ["image"])
        except (Failure, ValueError):
            pass


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (61, "About a minute"), (119, "About a minute"), (120,
            "2 minutes"), (3600, "About an hour"),
        (2 * 3600, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"), (13 * 86400, "13 days"), (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_ages(seconds: float, words: str) -> None:
    assert tables.human_duration(seconds) == words


@pytest.mark.parametrize(("size", "text"), [(0, "0B"), (999, "999B"), (1000, "1kB"), (12345678, "12.3MB"), (1e12, "1TB")])
def test_human_sizes(size: float, text: str) -> None:
    assert tables.human_size(size) == text


def test_columns_follow_tabwriter() -> None:
    assert tables.columns(["A\tB\tC", "aaaaaaaaaaaa\tb\t", "no tabs", "x\ty"]) == (
        "A              B         C\naaaaaaaaaaaa   b         \nno tabs\nx         y\n"
    )
    assert tables.columns(["日本日本日本\tx", "a\tx"]) == "日本日本日本   x\na              x\n"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(),
    inner), max_leaves=15)


@given(JSON)
def test_codec_is_json(value: Any) -> None:
    assert codec.loads(codec.dumps(value)) == value
    assert codec.loads(json.dumps(value, indent=3)) == value
    assert json.loads(codec.go_dumps(value)) == value
    assert codec.indent(json.dumps(value)) == json.dumps(value, indent=4)


@pytest.mark.parametrize("text", ["", "{", '{"a":}', "[1,]", "nul", "1 2"])
def test_codec_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expecting|delimiter|Extra|extra|property|Illegal"):
        codec.loads(text)


def test_detach_keys() -> None:
    assert terminal.detach_bytes("") == b"\x10\x11"
    assert terminal.detach_bytes("ctrl-@,a,ctrl-[,DEL") == b"\0a\x1b\x7f"
    with pytest.raises(Failure, match="Unknown character"):
        terminal.detach_bytes("ctrl-P")
    detacher = terminal.Detacher(b"\x10\x11")
    assert detacher.feed(b"ab\x10") == (b"ab", False)
    assert detacher.feed(b"c\x10\x10") == (b"\x10c\x10", False)
    assert detacher.feed(b"\x11rest") == (b"", True)


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50)), max_size=10), st.integers(1, 20))
def test_demultiplexer_takes_pieces_of_any_size(frames: list[tuple[int, bytes]], step: int) -> None:
    import os
    import tempfile

    data = b"".join(struct.pack(">BxxxL", stream, len(payload)) + payload for stream, payload in frames)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        demultiplexer = Demultiplexer(out.fileno(), err.fileno())
        for at in range(0, len(data), step):
            demultiplexer.feed(memoryview(data[at:at + step]))
        assert os.pread(out.fileno(), 1 << 16, 0) == b"".join(payload for stream, payload in frames if stream == 1)
        assert os.pread(err.fileno(), 1 << 16, 0) == b"".join(payload for stream, payload in frames if stream == 2)


def test_input_is_whole_when_the_other_side_is_slow() -> None:
    """The pipe's end is seen while earlier bytes still wait for room in the socket."""
    import _socket
    import os
    import time

    from cli.streams import Pump

    ours, theirs = socket.socketpair()
    data = bytes(range(256)) * 8000
    source, sink = os.pipe()
    received = bytearray()

    def feed() -> None:
        with open(sink, "wb") as file:
            file.write(data)

    def take() -> None:
        time.sleep(0.2)
        while piece := theirs.recv(10000):
            received.extend(piece)
        theirs.close()

    threads = [threading.Thread(target=feed), threading.Thread(target=take)]
    for thread in threads:
        thread.start()
    assert Pump(Connection(_socket.socket(fileno=ours.detach())), source, True).run() is False
    for thread in threads:
        thread.join()
    os.close(source)
    assert bytes(received) == data


def test_demultiplexer_refuses_what_is_no_frame() -> None:
    with pytest.raises(Failure, match="Unrecognized input header"):
        Demultiplexer().feed(memoryview(b"HTTP/1.1 500"))


@pytest.mark.parametrize(("url", "path", "address"), [
    ("unix:///x/y", "/x/y", ("", 0)), ("tcp://1.2.3.4:5", "", ("1.2.3.4", 5)), ("tcp://[::1]:5", "", ("::1", 5)), ("tcp://name", "",
        ("name", 2375)), ("/x", "/x", ("", 0)),
])  # fmt: skip
def test_hosts(url: str, path: str, address: tuple[str, int]) -> None:
    host = Host(url)
    assert (host.path, host.address) == (path, address)


@pytest.mark.parametrize("url", [
    "foo://x", "https://x", "tcp://x:y", "tcp://x:99999", "ssh://", "ssh://-oProxyCommand=x", "ssh://-x@y", "ssh://a:b@c", "ssh://a;b",
    "ssh://a b", "ssh://a:0", "ssh://a:-p", "ssh://a/$(b)", "ssh://a/b c", "ssh://[::1", "ssh://a@b@c",
])  # fmt: skip
def test_refused_hosts(url: str) -> None:
    with pytest.raises(Failure):
        Host(url)


def test_queries() -> None:
    assert query("/x", a=True, b=False, c=None, d="", e="ä /", f=0) == "/x?a=1&b=0&e=%C3%A4%20%2F&f=0"
    assert quote("a/b") == "a%2Fb"


def answered(*pieces: bytes) -> Connection:
    """A connection whose peer says these pieces, then closes."""
    ours, theirs = socket.socketpair()

    def say() -> None:
        with theirs:
            for piece in pieces:
                theirs.sendall(piece)

    threading.Thread(target=say).start()
    import _socket

    return Connection(_socket.socket(fileno=ours.detach()))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n"


def test_bodies() -> None:
    assert answered(HEAD + b"Content-Length: 5\r\n\r\nhello").response().read() == b"hello"
    assert answered(HEAD[:9], HEAD[9:] + b"Transfer-Encoding: chunked\r\n\r", b"\n3\r\nab",
        b"c\r\n2;x=y\r\nde\r\n0\r\n\r\n").response().read() == b"abcde"
    assert answered(HEAD + b"\r\nuntil the end").response().read() == b"until the end"
    assert answered(b"HTTP/1.1 204 No Content\r\n\r\n").response().read() == b""
    assert list(answered(HEAD + b'Content-Length: 17\r\n\r\n{"a":1}\n\n{"b":2}\n').response().values()) == [{"a": 1},
        {"b": 2}]  # type: ignore[call-overload]


def test_two_answers_on_one_connection() -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n\r\n"
    connection = answered(HEAD + b"Content-Length: 1\r\n\r\na" + chunked + HEAD + b"Content-Length: 0\r\n\r\n")
    assert [connection.response().read() for _ in range(3)] == [b"a", b"b", b""]


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", b"SSH-2.0-x\r\n\r\n", HEAD + b"Content-Length: 9\r\n\r\nshort",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"])
def test_broken_answers(data: bytes) -> None:
    with pytest.raises(Failure):
        answered(data).response().read()


@pytest.mark.parametrize(("body", "message"), [(b'{"message":"no"}', "no"), (b"plain", "plain"), (b"[]", "[]"), (b"",
    "status 500 without a message")])
def test_errors_of_the_daemon(body: bytes, message: str) -> None:
    answer = answered(b"HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    with pytest.raises(DaemonError) as caught:
        answer.response().check()
    assert (caught.value.status, caught.value.message) == (500, message)


def test_unreachable() -> None:
    with pytest.raises(Unreachable, match="Cannot connect"):
        Client("unix:///nonexistent/x").get("/version")


def test_moments() -> None:
    assert times.timestamp("1700000000.5", "since") == "1700000000.5"
    assert times.timestamp("2023-11-14T22:13:20.25Z", "since") == "1700000000.250000000"
    assert times.timestamp("2023-11-14T23:13:20+01:00", "since") == "1700000000.000000000"
    with pytest.raises(Failure):
        times.timestamp("yesterday", "since")


def test_waterfall() -> None:
    text = trace.waterfall([{"name": "clone", "at": 1000}, {"name": "mount", "at": 3000}, {"name": "exec", "at": 11000}], 100, False)
    lines = text.splitlines()
    assert lines[1].split()[:3] == ["clone", "0.0", "2.0"]
    assert lines[2].split()[:3] == ["mount", "2.0", "8.0"]
    assert lines[3].split() == ["total", "10.0"]
    assert "\033" not in text
    assert "no trace" in trace.waterfall([], 100, False)


HEAVY = {"typer", "trio", "rich", "msgspec", "http", "json", "re", "argparse", "logging", "subprocess", "socket", "signal", "enum", "os",
    "typing", "dataclasses"}


@pytest.mark.parametrize("command", [["ps"], ["run", "x"], ["run", "-d", "-e", "A=b", "-p", "80:80", "-v", "/a:/b", "x"], ["exec", "x",
    "y"], ["stop", "x"], ["rm", "x"], ["logs", "x"],
                                     ["version"], ["start", "x"], ["kill", "x"], ["wait", "x"], ["create", "x"], ["attach", "x"],
                                     ["images"], ["inspect", "x"]])
def test_hot_commands_import_nothing_heavy(command: list[str]) -> None:
    """Start-up time is a feature: nobody may add an import to these commands unnoticed."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli.main import run\n"
        f"code = run(['-H', 'unix:///nonexistent/x', *{command!r}]); print('LOADED', *sorted(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, timeout=120)
    loaded = {name.partition(".")[0] for name in result.stdout.rpartition("LOADED ")[2].split()}
    assert "Cannot connect" in result.stderr, result
    assert not loaded & HEAVY
