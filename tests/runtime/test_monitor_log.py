"""The monitor's json-file log: bytes, lines, escapes, rotation, full disks."""

from __future__ import annotations

import ctypes
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine import _core
from engine.wire import control
from tests.runtime.monitor_tools import Monitors, digest, exit_of, log_lines, read_all, stream, wait_gone

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def monitors() -> Iterator[Monitors]:
    made = Monitors()
    yield made
    pids = [one.pid for one in made.made]
    made.close()
    for pid in pids:
        wait_gone(pid)


def run(monitors: Monitors, data: bytes, **settings: object) -> str:
    """Print `data` to stdout; the log's path."""
    source = monitors.folder / "data"
    source.write_bytes(data)
    bundle = monitors.bundle()
    log = control.LogSettings(path=f"{bundle}/log", **settings)  # type: ignore[arg-type]
    monitors.start(f"cat {source}", bundle=bundle, log_settings=log).expect(control.Exit)
    return f"{bundle}/log"


def go_text(data: bytes) -> str:
    """What Go's UTF-8 decoder makes of bytes: U+FFFD for each byte that is part of no character."""
    found, at = [], 0
    while at < len(data):
        for size in (1, 2, 3, 4):
            try:
                found.append(data[at : at + size].decode())
                at += size
                break
            except UnicodeDecodeError:
                continue
        else:
            found.append("\ufffd")
            at += 1
    return "".join(found)


def go_json(text: str) -> str:
    """Docker's encoder (ffjson's string writer in moby's jsonlog), on text that is already valid."""
    special = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\u2028": "\\u2028", "\u2029": "\\u2029", "\ufffd": "\ufffd"}
    return "".join(special.get(c) or (f"\\u{ord(c):04x}" if c < " " or c in "<>&" else c) for c in text)


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda s: s.encode("utf-8", "surrogatepass")))
@example(b"\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xa7")
@example(b"\xed\xa0\x80\xf4\x90\x80\x80\xc0\x80\xf0\x80\x80\x80\xe0\x80\x80")
@example(b"\xf0\x9f\x98")
@example(bytes(range(256)))
@settings(max_examples=2000, deadline=None)
def test_text_is_escaped_as_docker_does(data: bytes) -> None:
    written = _core.json_text(data).decode()
    assert json.loads(f'"{written}"') == go_text(data)
    replaced = go_json(go_text(data.replace(b"\xef\xbf\xbd", b"")))
    if b"\xef\xbf\xbd" not in data:
        assert written == replaced.replace("\ufffd", "\\ufffd")


@given(st.integers(min_value=0, max_value=2**64 - 1))
@example(0)
@example(951782400 * 10**9)
@example(1709164799 * 10**9 + 999999999)
@example(1795459555000000100)
def test_time_is_rfc3339nano(ns: int) -> None:
    seconds, fraction = divmod(ns, 10**9)
    expected = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).rjust(19, "0")
    if fraction:
        expected += f".{fraction:09d}".rstrip("0")
    assert _core.json_time(ns).decode() == expected + "Z"


@needs_root
def test_lines_are_byte_exact(monitors: Monitors) -> None:
    path = run(monitors, 'plain\n\n"quoted" <b>&\\\ttab\r\n\xff\xe9\nlast'.encode("latin-1"))
    lines = Path(path).read_text().splitlines()
    expected = ["plain\\n", "\\n", '\\"quoted\\" \\u003cb\\u003e\\u0026\\\\\\u0009tab\\r\\n', "\\ufffd\\ufffd\\n", "last"]
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert re.fullmatch(
            re.escape(f'{{"log":"{text}","stream":"stdout","time":"') + r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z"\}', line
        ), line


@needs_root
def test_attributes(monitors: Monitors) -> None:
    path = run(monitors, b"x\n", attrs=b'{"tag":"a"}')
    assert Path(path).read_text().startswith('{"log":"x\\n","stream":"stdout","attrs":{"tag":"a"},"time":"')


@needs_root
def test_long_lines_are_split_at_16k(monitors: Monitors) -> None:
    sizes = [16383, 16384, 16385, 50_000, 3]
    path = run(monitors, b"".join(b"%c" % (97 + i) * size + b"\n" for i, size in enumerate(sizes)))
    assert [len(line["log"]) for line in log_lines(path)] == [16384, 16384, 1, 16384, 2, 16384, 16384, 16384, 849, 4]
    assert [line["log"][-1] == "\n" for line in log_lines(path)] == [True, False, True, False, True, False, False, False, True, True]


@needs_root
def test_characters_are_never_split(monitors: Monitors) -> None:
    for shift in range(4):
        text = "x" * shift + "\U0001f600" * 9000 + "\n"
        path = run(monitors, text.encode())
        assert "".join(line["log"] for line in log_lines(path)) == text


@needs_root
def test_streams_do_not_mix(monitors: Monitors) -> None:
    one = monitors.start("printf a; printf b >&2; sleep 0.05; echo c; echo d >&2")
    one.expect(control.Exit)
    assert sorted((line["stream"], line["log"]) for line in log_lines(f"{one.bundle}/log")) == [("stderr", "bd\n"), ("stdout", "ac\n")]


@needs_root
def test_log_is_private_and_appended_to(monitors: Monitors) -> None:
    bundle = monitors.bundle()
    Path(bundle, "log").write_text('{"log":"before\\n"}\n')
    monitors.start("echo after", bundle=bundle).expect(control.Exit)
    assert [line["log"] for line in log_lines(f"{bundle}/log")] == ["before\n", "after\n"]
    monitors.start("echo x", bundle=monitors.bundle()).expect(control.Exit)
    assert os.stat(monitors.folder / "bundle2" / "log").st_mode & 0o777 == 0o640


@needs_root
def test_rotation_keeps_the_newest_whole_lines(monitors: Monitors) -> None:
    text = [f"line {i:06d}\n" for i in range(20_000)]
    path = run(monitors, "".join(text).encode(), max_size=100_000, max_files=3)
    files = [f"{path}.2", f"{path}.1", path]
    assert sorted(os.listdir(os.path.dirname(path))) == ["exit.json", "log", "log.1", "log.2"]
    for file in files[:2]:
        assert 100_000 <= os.path.getsize(file) < 100_200
    kept = [line["log"] for file in files for line in log_lines(file)]
    assert kept == text[-len(kept) :]


@needs_root
def test_rotation_with_one_file_empties_it(monitors: Monitors) -> None:
    text = [f"line {i:06d}\n" for i in range(5_000)]
    path = run(monitors, "".join(text).encode(), max_size=50_000, max_files=1)
    assert sorted(os.listdir(os.path.dirname(path))) == ["exit.json", "log"]
    kept = [line["log"] for line in log_lines(path)]
    assert 0 < len(kept) < 1000
    assert kept == text[-len(kept) :]


@needs_root
def test_no_limit_never_rotates(monitors: Monitors) -> None:
    path = run(monitors, b"x" * 99 + b"\n" * 200_000, max_size=0)
    assert sorted(os.listdir(os.path.dirname(path))) == ["exit.json", "log"]


@needs_root
def test_big_output_is_complete(monitors: Monitors) -> None:
    data = b"".join(b"%d some text of a line\n" % i for i in range(400_000))
    path = run(monitors, data, max_size=0)
    assert digest("".join(line["log"] for line in log_lines(path)).encode()) == digest(data)


@pytest.fixture
def small_disk(monitors: Monitors) -> Iterator[Path]:
    folder = monitors.folder / "disk"
    folder.mkdir()
    _core.mount("none", str(folder), "tmpfs", 0, "size=256k")
    yield folder
    ctypes.CDLL(None).umount2(str(folder).encode(), 2)


@needs_root
def test_full_disk_loses_lines_but_never_stalls(monitors: Monitors, small_disk: Path) -> None:
    one = monitors.take()
    (small_disk / "ballast").write_bytes(b"x" * 65536)
    with one.attach() as sock:
        monitors.start(
            f"i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; rm {small_disk}/ballast; sleep 0.1; echo after",
            daemon=one,
            log_settings=control.LogSettings(path=f"{small_disk}/log", max_size=0),
        )
        output = stream(read_all(sock), 1)
    assert output == b"".join(b"line %d\n" % i for i in range(20_000)) + b"after\n"
    dropped = one.expect(control.Exit).log_dropped
    assert exit_of(one).log_dropped == dropped
    kept = [line["log"] for line in log_lines(f"{small_disk}/log")]
    assert kept[-1] == "after\n"
    assert dropped > 10_000
    assert len(kept) + dropped == 20_001
    assert [m for m in one.seen if isinstance(m, control.Warning)] == [one.seen[0]]
    assert "No space left" in one.seen[0].text


@needs_root
def test_exit_record_on_a_full_disk(monitors: Monitors, small_disk: Path) -> None:
    bundle = small_disk / "bundle"
    bundle.mkdir()
    one = monitors.start("read x; exit 7", bundle=str(bundle), log=False, open_stdin=True)
    one.settled()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * (1 << 20))
    one.attach(stdin=True, early=b"go\n").close()
    assert one.expect(control.Exit).status == 7 << 8
    assert exit_of(one).code == 7


@needs_root
def test_log_that_cannot_be_opened(monitors: Monitors) -> None:
    one = monitors.start("echo a; exit 3", log_settings=control.LogSettings(path=str(monitors.folder / "none" / "deeper" / "log")))
    assert "No such file" in one.expect(control.Warning).text
    exited = one.expect(control.Exit)
    assert (exited.status, exited.log_dropped) == (3 << 8, 1)


@needs_root
def test_folder_and_file_are_made_with_the_first_output(monitors: Monitors) -> None:
    settings = [control.LogSettings(path=str(monitors.folder / name / "log")) for name in ("silent", "loud")]
    monitors.start("true", log_settings=settings[0]).expect(control.Exit)
    monitors.start("echo x", log_settings=settings[1]).expect(control.Exit)
    assert not (monitors.folder / "silent").exists()
    assert os.stat(monitors.folder / "loud").st_mode & 0o777 == 0o710
    assert [line["log"] for line in log_lines(settings[1].path)] == ["x\n"]


@needs_root
def test_log_that_is_a_link_is_refused(monitors: Monitors) -> None:
    bundle = monitors.bundle()
    victim = monitors.folder / "victim"
    os.symlink(victim, f"{bundle}/log")
    one = monitors.start("echo a", bundle=bundle)
    one.expect(control.Warning)
    one.expect(control.Exit)
    assert not victim.exists()
