"""Attached clients of a monitor: frames, half-close, back-pressure, big streams byte for byte, terminals, detach keys."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.monitor import client
from engine.wire import control
from tests.runtime.monitor_tools import TIMEOUT, Daemon, Monitors, alive, digest, frames, log_lines, read_all, reading, stream, wait_gone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BIG = 50 * 1024 * 1024


@pytest.fixture
def monitors() -> Iterator[Monitors]:
    made = Monitors()
    yield made
    pids = [one.pid for one in made.made]
    made.close()
    for pid in pids:
        wait_gone(pid)


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    found = b""
    while wanted not in found:
        chunk = sock.recv(65536)
        assert chunk, f"the stream ended after {found!r}"
        found += chunk
    return found


def until(monitors: Monitors, name: str) -> str:
    """Shell words that wait until there is a file of that name in the folder."""
    return f"while [ ! -e {monitors.folder}/{name} ]; do sleep 0.01; done"


def test_attach_before_start_misses_nothing(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(7) as sock:
        monitors.start("echo out; echo err >&2", daemon=one)
        data = read_all(sock)
    assert stream(data, 1) == b"out\n"
    assert stream(data, 2) == b"err\n"
    assert one.expect(control.Detached) == control.Detached(id=7, reason="ended")
    one.expect(control.Exit)


@pytest.mark.parametrize(("flags", "expected"), [("stdout", {1}), ("stderr", {2}), ("both", {1, 2})])
def test_only_the_streams_asked_for(monitors: Monitors, flags: str, expected: set[int]) -> None:
    one = monitors.take()
    with one.attach(stdout=flags != "stderr", stderr=flags != "stdout") as sock:
        monitors.start("echo out; echo err >&2", daemon=one)
        assert {number for number, _ in frames(read_all(sock))} == expected


def test_raw_stream_has_no_frames(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(framed=False) as sock:
        monitors.start("printf abc", daemon=one)
        assert read_all(sock) == b"abc"


def test_two_clients_and_the_log_get_everything(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(1) as first, one.attach(2) as second, reading(first) as got_first, reading(second) as got_second:
        monitors.start("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done", daemon=one)
    text = b"".join(b"line %d\n" % i for i in range(2000))
    assert stream(got_first[0], 1) == stream(got_second[0], 1) == text
    assert "".join(line["log"] for line in log_lines(f"{one.bundle}/log")).encode() == text


def test_client_that_comes_late_sees_only_what_follows(monitors: Monitors) -> None:
    one = monitors.start("echo early; read x; echo late $x", open_stdin=True, stdin_once=True)
    while not log_lines(f"{one.bundle}/log"):
        time.sleep(0.01)
    with one.attach(stdin=True) as sock:
        sock.sendall(b"there\n")
        assert stream(read_all(sock), 1) == b"late there\n"


def test_big_output_byte_for_byte(monitors: Monitors) -> None:
    source = monitors.folder / "data"
    data = os.urandom(1 << 20) * (BIG >> 20)
    source.write_bytes(data)
    one = monitors.take()
    with one.attach() as sock, reading(sock) as got:
        monitors.start(f"cat {source}", daemon=one, log=False)
    assert digest(stream(got[0], 1)) == digest(data)


def test_big_input_and_output_byte_for_byte(monitors: Monitors) -> None:
    data = os.urandom(1 << 20) * (BIG >> 20)
    one = monitors.take()
    with one.attach(stdin=True, early=data[:70_000]) as sock:
        monitors.start("cat", daemon=one, log=False, open_stdin=True, stdin_once=True)

        def feed() -> None:
            sock.sendall(data[70_000:])
            sock.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=feed)
        thread.start()
        with reading(sock) as got:
            pass
        thread.join()
    assert digest(stream(got[0], 1)) == digest(data)
    assert one.expect(control.Exit).status == 0


def test_big_output_over_tcp(monitors: Monitors) -> None:
    source = monitors.folder / "data"
    data = os.urandom(1 << 20) * 8
    source.write_bytes(data)
    one = monitors.take()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        ours.settimeout(TIMEOUT)
        with theirs:
            one.send(control.Attach(id=1, stdin=True), theirs.fileno())
        ours.sendall(b"input that nobody reads\n" * 1000)
        monitors.start(f"cat {source}", daemon=one, open_stdin=True)
        assert digest(stream(read_all(ours), 1)) == digest(data)


def test_half_close_ends_stdin_once(monitors: Monitors) -> None:
    one = monitors.start("cat; echo end", open_stdin=True, stdin_once=True)
    with one.attach(stdin=True) as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        assert stream(read_all(sock), 1) == b"hello\nend\n"
    assert one.expect(control.Exit).status == 0


def test_half_close_without_stdin_once_ends_the_attachment(monitors: Monitors) -> None:
    one = monitors.start("cat", open_stdin=True)
    with one.attach(3, stdin=True) as sock:
        sock.sendall(b"hello\n")
        read_until(sock, b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    assert one.expect(control.Detached) == control.Detached(id=3, reason="input")
    with one.attach(4, stdin=True) as sock:
        sock.sendall(b"again\n")
        read_until(sock, b"again\n")
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_client_without_stdin_may_half_close(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach() as sock:
        sock.shutdown(socket.SHUT_WR)
        monitors.start("echo a; sleep 0.1; echo b", daemon=one)
        assert stream(read_all(sock), 1) == b"a\nb\n"


def test_client_that_writes_and_goes_is_heard(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(stdin=True) as sock:
        sock.sendall(b"words\n" * 100)
    monitors.start("cat; echo end", daemon=one, open_stdin=True, stdin_once=True)
    one.expect(control.Exit)
    assert [line["log"] for line in log_lines(f"{one.bundle}/log")] == ["words\n"] * 100 + ["end\n"]


def test_input_without_open_stdin_is_thrown_away(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(stdin=True) as sock:
        monitors.start(f"cat; {until(monitors, 'sent')}; echo end", daemon=one)
        sock.sendall(b"words\n" * 100_000)
        sock.shutdown(socket.SHUT_WR)
        (monitors.folder / "sent").touch()
        assert stream(read_all(sock), 1) == b"end\n"


def test_input_for_a_process_that_closed_its_stdin(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(stdin=True) as sock, reading(sock) as got:
        monitors.start(f"exec 0<&-; {until(monitors, 'sent')}; echo end", daemon=one, open_stdin=True, stdin_once=True)
        sock.sendall(b"x" * 1_000_000)
        sock.shutdown(socket.SHUT_WR)
        (monitors.folder / "sent").touch()
    assert stream(got[0], 1) == b"end\n"
    assert one.expect(control.Exit).status == 0


def test_slow_client_holds_the_process_back_and_loses_nothing(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach() as sock:
        monitors.start(f"dd if=/dev/zero bs=1024 count=4096 2>/dev/null; echo written > {monitors.folder}/done", daemon=one)
        time.sleep(0.3)
        assert not (monitors.folder / "done").exists()
        rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
        assert sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) < 800
        assert len(stream(read_all(sock), 1)) == 4 << 20
    one.expect(control.Exit)
    assert (monitors.folder / "done").exists()


def test_rest_of_the_output_waits_for_a_slow_client_after_the_end(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        monitors.start("dd if=/dev/zero bs=1024 count=200 2>/dev/null", daemon=one)
        one.expect(control.Exit)
        assert sum(len(line["log"]) for line in log_lines(f"{one.bundle}/log")) == 200 << 10
        assert len(stream(read_all(sock), 1)) == 200 << 10


def test_client_that_vanishes_lets_the_process_go_on(monitors: Monitors) -> None:
    one = monitors.take()
    sock = one.attach(5)
    monitors.start(f"i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; {until(monitors, 'gone')}", daemon=one)
    sock.recv(100)
    sock.close()
    assert one.expect(control.Detached) == control.Detached(id=5, reason="closed")
    (monitors.folder / "gone").touch()
    assert one.expect(control.Exit).status == 0
    assert log_lines(f"{one.bundle}/log")[-1]["log"] == "line 19999\n"


def test_tcp_reset_harms_nobody(monitors: Monitors) -> None:
    one = monitors.take()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with theirs:
            one.send(control.Attach(id=1, stdin=True), theirs.fileno())
    script = f"i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; {until(monitors, 'gone')}"
    monitors.start(script, daemon=one, open_stdin=True)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.close()
    assert one.expect(control.Detached).reason in ("closed", "input")
    (monitors.folder / "gone").touch()
    assert one.expect(control.Exit).status == 0
    assert log_lines(f"{one.bundle}/log")[-1]["log"] == "line 19999\n"


@pytest.mark.parametrize("kind", ["none", "file", "datagram"])
def test_descriptor_that_is_no_stream_socket(monitors: Monitors, kind: str) -> None:
    one = monitors.start("sleep 100")
    with open("/dev/null", "rb") as file, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        fds = {"none": [], "file": [file.fileno()], "datagram": [datagram.fileno()]}[kind]
        one.send(control.Attach(id=2), *fds)
    assert one.expect(control.Detached) == control.Detached(id=2, reason="error")
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_more_clients_than_places(monitors: Monitors) -> None:
    one = monitors.take()
    socks = [one.attach(number) for number in range(140)]
    refused = [one.expect(control.Detached) for _ in range(12)]
    assert {message.reason for message in refused} == {"error"}
    monitors.start("echo all", daemon=one)
    got = [read_all(sock) for sock in socks]
    assert [stream(data, 1) for data in got] == [b"all\n"] * 128 + [b""] * 12
    for sock in socks:
        sock.close()


def test_attach_after_a_reconnect(monitors: Monitors) -> None:
    one = monitors.start("read x; echo got $x", open_stdin=True, stdin_once=True)
    with one.attach(1) as old:
        one.close()
        with client.connect(one.bundle) as connection:
            again = Daemon(connection)
            with again.attach(1, stdin=True) as new:
                new.sendall(b"it\n")
                assert stream(read_all(new), 1) == b"got it\n"
            assert again.expect(control.Detached) == control.Detached(id=1, reason="ended")
            again.expect(control.Exit)
        assert stream(read_all(old), 1) == b"got it\n"


def test_others_that_hold_the_output_are_not_waited_for_long(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach() as sock:
        monitors.start(f"sleep 1000 & echo $! > {monitors.folder}/other; echo early", daemon=one)
        assert stream(read_all(sock), 1) == b"early\n"
    other = int((monitors.folder / "other").read_text())
    assert alive(other)
    os.kill(other, signal.SIGKILL)
    assert one.expect(control.Exit).status == 0


def test_everything_is_drained_without_log_or_client(monitors: Monitors) -> None:
    one = monitors.start("dd if=/dev/zero bs=1048576 count=20 2>/dev/null", log=False)
    assert one.expect(control.Exit).status == 0


# ---- terminals ----


def test_terminal_is_one_with_size_and_echo(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(stdin=True, framed=False) as sock:
        script = "test -t 0 && test -t 1 && test -t 2 && stty size; read x; echo got $x >&2"
        monitors.start(script, daemon=one, tty=True, rows=33, cols=101, open_stdin=True)
        read_until(sock, b"33 101\r\n")
        sock.sendall(b"text\r")
        assert read_all(sock).replace(b"text\r\n", b"", 1) == b"got text\r\n"
    one.expect(control.Exit)
    assert {line["stream"] for line in log_lines(f"{one.bundle}/log")} == {"stdout"}
    assert log_lines(f"{one.bundle}/log")[0]["log"] == "33 101\r\n"


def test_resize_sends_sigwinch(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(stdin=True, framed=False) as sock:
        monitors.start("trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done", daemon=one, tty=True, open_stdin=True)
        read_until(sock, b"ready\r\n")
        one.send(control.Resize(rows=40, cols=120))
        read_until(sock, b"40 120\r\n")
        one.send(control.Signal(number=9))
        read_all(sock)
    one.expect(control.Exit)


def test_ctrl_c_reaches_the_foreground(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(stdin=True, framed=False) as sock:
        monitors.start("echo ready; sleep 100", daemon=one, tty=True, open_stdin=True)
        read_until(sock, b"ready\r\n")
        sock.sendall(b"\x03")
        read_all(sock)
    assert os.waitstatus_to_exitcode(one.expect(control.Exit).status) in (-2, 130)


def test_detach_keys_leave_the_process_running(monitors: Monitors) -> None:
    one = monitors.start("while read x; do echo got $x; done", tty=True, open_stdin=True)
    with one.attach(1, stdin=True, framed=False) as sock:
        sock.sendall(b"one\r")
        read_until(sock, b"got one\r\n")
        sock.sendall(b"tw\x10")
        time.sleep(0.05)
        sock.sendall(b"\x11never")
        read_all(sock)
    assert one.expect(control.Detached) == control.Detached(id=1, reason="keys")
    with one.attach(2, stdin=True, framed=False, detach_keys=b"") as sock:
        sock.sendall(b"o\r")
        read_until(sock, b"got two\r\n")
        sock.sendall(b"\x04")
        read_all(sock)
    one.expect(control.Exit)


def test_beginning_of_detach_keys_is_passed_on(monitors: Monitors) -> None:
    one = monitors.start("stty raw -echo; echo ready; dd bs=1 count=7 2>/dev/null | od -An -tx1", tty=True, open_stdin=True)
    with one.attach(stdin=True, framed=False, detach_keys=b"aab") as sock:
        while not log_lines(f"{one.bundle}/log"):
            time.sleep(0.01)
        for byte in b"aaacaax":
            sock.sendall(bytes([byte]))
            time.sleep(0.005)
        assert b"61 61 61 63 61 61 78" in read_all(sock)


def test_detach_keys_need_a_terminal(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(stdin=True) as sock:
        monitors.start("cat", daemon=one, open_stdin=True, stdin_once=True)
        sock.sendall(b"a\x10\x11b")
        sock.shutdown(socket.SHUT_WR)
        assert stream(read_all(sock), 1) == b"a\x10\x11b"


def test_big_output_through_a_terminal(monitors: Monitors) -> None:
    one = monitors.take()
    with one.attach(framed=False) as sock, reading(sock) as got:
        monitors.start("i=0; while [ $i -lt 50000 ]; do echo line $i; i=$((i+1)); done", daemon=one, tty=True)
    assert got[0] == b"".join(b"line %d\r\n" % i for i in range(50000))


def test_big_input_through_a_raw_terminal(monitors: Monitors) -> None:
    size = 300_000
    one = monitors.start(f"stty raw -echo; echo ready; head -c {size} | sha256sum", tty=True, open_stdin=True)
    data = os.urandom(size).replace(b"\x10", b"x")
    with one.attach(stdin=True, framed=False) as sock:
        while not log_lines(f"{one.bundle}/log"):
            time.sleep(0.01)
        sock.sendall(data)
        assert digest(data).encode() in read_all(sock)
    one.expect(control.Exit)


def test_terminal_has_the_kernels_default_modes(monitors: Monitors) -> None:
    one = monitors.start("sleep 100", tty=True)
    slave = os.open(f"/proc/{one.started.pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
    flags = termios.tcgetattr(slave)
    os.close(slave)
    assert flags[1] & termios.ONLCR
    assert flags[3] & termios.ICANON
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_idle_monitor_gives_its_buffers_back(monitors: Monitors) -> None:
    busy_loop = f"while [ ! -e {monitors.folder}/enough ]; do dd if=/dev/zero bs=1048576 count=1 2>/dev/null; done"
    one = monitors.start(f"read x; {busy_loop}; sleep 100", open_stdin=True, stdin_once=True)
    one.settled()

    def private() -> int:
        rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))

    def wait(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not true():
            assert time.monotonic() < deadline, f"{private()} kB now, {idle} kB before, {busy} kB when busy"
            time.sleep(0.05)

    idle = busy = private()
    one.attach(stdin=True, early=b"go\n").close()
    wait(lambda: private() > idle + 40)
    busy = private()
    (monitors.folder / "enough").touch()
    wait(lambda: private() <= busy - 40)
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_idle_monitor_does_not_wake(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    hung = one.attach(1, stdin=True)
    hung.sendall(b"x" * 10)
    hung.close()
    one.settled()
    time.sleep(3.5)

    def switches() -> int:
        return sum(int(line.split()[1]) for line in Path(f"/proc/{one.pid}/status").read_text().splitlines() if "ctxt" in line)

    def woken() -> int:
        before = switches()
        select.select([], [], [], 1.0)
        return switches() - before

    assert any(woken() <= 1 for _ in range(20))  # on a busy machine it may have things to finish yet
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_clients_that_come_and_go_at_random_lose_the_log_nothing(monitors: Monitors) -> None:
    chance = random.Random(7)
    total = 60_000
    one = monitors.start(f"i=0; while [ $i -lt {total} ]; do echo line $i; i=$((i+1)); done; exit 5", open_stdin=True)
    daemons = [one]
    socks: list[socket.socket] = []
    ended = False
    number = 0
    while not ended:
        number += 1
        daemon = chance.choice(daemons)
        match chance.randrange(6):
            case 0 | 1 if len(socks) < 20:
                with contextlib.suppress(client.MonitorGone, BlockingIOError):
                    socks.append(daemon.attach(number, stdin=chance.random() < 0.5, early=b"x" * chance.randrange(100)))
            case 2 if socks:
                socks.pop(chance.randrange(len(socks))).close()
            case 3 if socks:
                sock = chance.choice(socks)
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    sock.send(b"y" * chance.randrange(5000))
                    sock.shutdown(socket.SHUT_WR)
            case 4 if len(daemons) < 6 and os.path.exists(f"{one.bundle}/monitor.sock"):
                with contextlib.suppress(client.MonitorGone):
                    daemons.append(Daemon(client.connect(one.bundle)))
            case 5 if len(daemons) > 1:
                daemons.pop(chance.randrange(1, len(daemons))).close()
        for sock in socks:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.recv(1 << 20)
        try:
            one.seen += [message for message, _ in one.connection.receive()]
        except client.MonitorGone:
            ended = True
        ended = ended or any(isinstance(message, control.Exit) for message in one.seen)
    assert one.expect(control.Exit).status == 5 << 8
    for each in socks:
        each.close()
    for daemon in daemons[1:]:
        daemon.close()
    lines = [line["log"] for name in (".1", "") for line in log_lines(f"{one.bundle}/log{name}")]
    assert lines == [f"line {i}\n" for i in range(total)]
