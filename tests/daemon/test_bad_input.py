"""What hostile and broken clients send to a real daemon: always an answer with a message, never a traceback or a hang, and no growth."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable

import pytest

from tests.lib.daemon import Daemon
from tests.lib.http import raw

HOST = b"Host: x\r\nConnection: close\r\n"
JSON = b"Content-Type: application/json\r\n"


def post(target: bytes, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (target, HOST, JSON, len(body), body)


def create(body: bytes) -> bytes:
    return post(b"/v1.51/containers/create", body)


REQUESTS: dict[str, bytes] = {
    "no http": b"hello there\r\n\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    "binary": bytes(range(256)) * 4 + b"\r\n\r\n",
    "no host": b"GET /_ping HTTP/1.1\r\n\r\n",
    "giant header": b"GET /_ping HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
    "giant target": b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "many headers": b"GET /_ping HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100_000 + b"\r\n",
    "two lengths": b"POST /containers/create HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "negative length": b"POST /containers/create HTTP/1.1\r\n" + HOST + b"Content-Length: -3\r\n\r\n",
    "length no number": b"POST /containers/create HTTP/1.1\r\n" + HOST + b"Content-Length: three\r\n\r\n",
    "giant announced body": b"POST /containers/create HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 99999999999\r\n\r\n{",
    "giant chunked body": b"POST /containers/create HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"100000\r\n" + b" " * 0x100000 + b"\r\n" + b"400000\r\n" + b" " * 0x400000 + b"\r\n0\r\n\r\n",
    "bad chunk size": b"POST /containers/create HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "bad chunk end": b"POST /containers/create HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}junk\r\n",
    "negative chunk": b"POST /containers/create HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "unknown coding": b"POST /containers/create HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    "empty body": create(b""),
    "broken json": create(b'{"Image":'),
    "array": create(b"[]"),
    "number": create(b"5"),
    "null": create(b"null"),
    "wrong type": create(b'{"Image":{"a":1}}'),
    "wrong inner type": create(b'{"Image":"busybox","HostConfig":{"Memory":"much"}}'),
    "huge number": create(b'{"Image":"busybox","HostConfig":{"Memory":99999999999999999999999}}'),
    "negative memory": create(b'{"Image":"busybox","HostConfig":{"Memory":-5}}'),
    "deep json": create(b'{"Image":"busybox","Labels":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    "deep unknown json": create(b'{"X":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "no utf-8": create(b'{"Image":"\xff\xfe\xfd"}'),
    "lone surrogate": create(b'{"Image":"\\ud800"}'),
    "nul in command": create(b'{"Image":"busybox","Cmd":["a\\u0000b"]}'),
    "nul in environment": create(b'{"Image":"busybox","Cmd":["true"],"Env":["A=\\u0000"]}'),
    "nul in a bind": create(b'{"Image":"busybox","Cmd":["true"],"HostConfig":{"Binds":["/tmp\\u0000:/x"]}}'),
    "junk behind json": create(b'{"Image":"busybox"} {"Image":"busybox"}'),
    "unknown image": create(b'{"Image":"no/such:image","Cmd":["true"]}'),
    "malformed image": create(b'{"Image":"UPPER/../case","Cmd":["true"]}'),
    "half a network mode": create(b'{"Image":"busybox","Cmd":["true"],"HostConfig":{"NetworkMode":"container:"}}'),
    "unknown mount type": create(b'{"Image":"busybox","Cmd":["true"],"HostConfig":{"Mounts":[{"Type":"wild","Target":"/x"}]}}'),
    "unknown ulimit": create(b'{"Image":"busybox","Cmd":["true"],"HostConfig":{"Ulimits":[{"Name":"wild","Soft":1,"Hard":1}]}}'),
    "unknown capability": create(b'{"Image":"busybox","Cmd":["true"],"HostConfig":{"CapAdd":["CAP_WILD"]}}'),
    "relative workdir": create(b'{"Image":"busybox","Cmd":["true"],"WorkingDir":"../up"}'),
    "wrong content type": b"POST /containers/create HTTP/1.1\r\n" + HOST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
    "bad name": post(b"/containers/create?name=..%2F..%2Fetc", b'{"Image":"busybox","Cmd":["true"]}'),
    "nul in a name": post(b"/containers/create?name=a%00b", b'{"Image":"busybox","Cmd":["true"]}'),
    "no utf-8 in a name": post(b"/containers/create?name=%ff%fe", b'{"Image":"busybox","Cmd":["true"]}'),
    "path up": b"GET /containers/../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "encoded path up": b"GET /containers/..%2f..%2fetc%2fpasswd/json HTTP/1.1\r\n" + HOST + b"\r\n",
    "nul in a path": b"GET /containers/a%00/json HTTP/1.1\r\n" + HOST + b"\r\n",
    "bad filter": b"GET /containers/json?filters=%7B%22status%22 HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown filter": b'GET /containers/json?filters=%7B%22wild%22%3A%5B%22a%22%5D%7D HTTP/1.1\r\n' + HOST + b"\r\n",
    "bad limit": b"GET /containers/json?limit=many HTTP/1.1\r\n" + HOST + b"\r\n",
    "bad since": b"GET /events?since=yesterday HTTP/1.1\r\n" + HOST + b"\r\n",
    "events backwards": b"GET /events?since=2000000000&until=1000000000 HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown version": b"GET /v9.99/_ping HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown exec": post(b"/exec/nope/start", b"{}"),
    "unknown container": b"POST /containers/nope/start HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    "attach to nothing": b"POST /containers/nope/attach?stream=1 HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    "load of junk": b"POST /images/load HTTP/1.1\r\n" + HOST + b"Content-Length: 7\r\n\r\ngarbage",
    "load of nothing": b"POST /images/load HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    "import of junk": b"POST /images/create?fromSrc=-&repo=x HTTP/1.1\r\n" + HOST + b"Content-Length: 7\r\n\r\ngarbage",
    "import without source": b"POST /images/create HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    "import under a bad name": b"POST /images/create?fromSrc=-&repo=A%20B HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    "tag without name": b"POST /images/busybox/tag HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
}  # fmt: skip


def answer(data: bytes) -> tuple[int, str]:
    """(status, message) of the first reply in `data`."""
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
    assert match is not None, data[:300]
    if b"chunked" in head:
        body = body.partition(b"\r\n")[2].partition(b"\r\n0\r\n")[0]
    return int(match[1]), str(json.loads(body.partition(b"\n")[0])["message"])


@pytest.mark.parametrize("name", REQUESTS)
def test_bad_requests_are_answered(daemon: Daemon, name: str) -> None:
    begun = time.monotonic()
    status, message = answer(raw(str(daemon.socket), REQUESTS[name], timeout=60))
    assert 400 <= status < 500 or status == 501, (status, message)
    assert message
    assert "Traceback" not in message
    assert time.monotonic() - begun < 50, "the daemon did not close the connection"
    assert daemon.api("GET", "/_ping").body == b"OK"


def test_nothing_of_it_was_a_surprise(daemon: Daemon) -> None:
    for data in REQUESTS.values():
        raw(str(daemon.socket), data, timeout=60)
    assert "Traceback" not in daemon.log.read_text(errors="replace")
    assert daemon.api("GET", "/containers/json?all=1").json() == []


def test_half_requests_and_closed_sockets(daemon: Daemon) -> None:
    """Whatever is cut off where, the daemon goes on, without a word in its log."""
    whole = create(b'{"Image":"busybox","Cmd":["true"],"HostConfig":{"NetworkMode":"none","AutoRemove":true}}')
    for length in range(0, len(whole) - 1, 7):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(daemon.socket))
            sock.sendall(whole[:length])
    for target in ("/events", "/containers/nope/wait"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(daemon.socket))
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.socket))
        sock.sendall(b"POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(5000))
    assert daemon.api("GET", "/_ping").body == b"OK"
    assert "Traceback" not in daemon.log.read_text(errors="replace")
    assert daemon.api("GET", "/containers/json?all=1").json() == []
    eventually(lambda: daemon.api("GET", "/info").json()["NEventsListener"] == 0, "somebody still listens to events")


def eventually(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def memory(pid: int) -> int:
    """Anonymous resident memory of a process in kB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(next(line.split()[1] for line in file if line.startswith("RssAnon:")))


def descriptors(daemon: Daemon) -> int:
    return len(list((daemon.directory / f"/proc/{daemon.pid}/fd").iterdir()))


def test_memory_and_descriptors_do_not_grow(daemon: Daemon) -> None:
    def once() -> None:
        for data in REQUESTS.values():
            raw(str(daemon.socket), data, timeout=60)

    once()
    time.sleep(0.3)
    before, open_before = memory(daemon.pid), descriptors(daemon)
    for _ in range(5):
        once()
    eventually(lambda: descriptors(daemon) <= open_before, "descriptors are left")
    eventually(lambda: memory(daemon.pid) < before + 8 * 1024, "more than 8 MB for 300 bad requests")


def test_a_client_that_does_not_read_is_not_fed(daemon: Daemon) -> None:
    """Thousands of requests and not one reply read: the daemon stops serving that client, and it alone."""
    before = memory(daemon.pid)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.socket))
        sock.setblocking(False)
        request = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        sent = 0
        for _ in range(200_000):
            try:
                sent += sock.send(request)
            except BlockingIOError:
                time.sleep(0.002)
                if not sock_writable(sock):
                    break
        assert daemon.api("GET", "/_ping").body == b"OK"
        assert memory(daemon.pid) < before + 8 * 1024
    assert daemon.api("GET", "/_ping").body == b"OK"


def sock_writable(sock: socket.socket) -> bool:
    import select

    return bool(select.select([], [sock], [], 0.5)[1])


def test_many_idle_connections(daemon: Daemon) -> None:
    socks = []
    try:
        for _ in range(300):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(daemon.socket))
            sock.sendall(b"GET /_pi")
            socks.append(sock)
        assert daemon.api("GET", "/_ping").body == b"OK"
    finally:
        for sock in socks:
            sock.close()
