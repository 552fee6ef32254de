"""The messages between the daemon and a container's monitor, both directions: bytes in, values out, no I/O.

Owns the layout only. The C side of the same layout is `native/monitor_wire.h`; a change here is a change there and of `VERSION`.
One message is one SOCK_SEQPACKET packet. Everything is little-endian: a header of 8 bytes (version u8, kind u8, flags u16, length
of the whole message u32), then the fields of the kind in the order of its struct below; text and bytes are a u32 length and the bytes.
A message longer than `INLINE_LIMIT` travels in a sealed memfd: the packet is then `large_packet(message)`, a bare header with the flag
`FLAG_LARGE`, and the memfd is the first descriptor that comes with it; the message's own descriptor, if any, is the second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec

VERSION: Final = 1
INLINE_LIMIT: Final = 64 * 1024
MESSAGE_LIMIT: Final = 16 * 1024 * 1024
FLAG_LARGE: Final = 1
DEFAULT_DETACH_KEYS: Final = b"\x10\x11"
DETACH_KEYS_LIMIT: Final = 32

_HEADER = struct.Struct("<BBHI")


class MalformedMessage(ValueError):
    """Bytes that are no message of this protocol version; says which part is wrong."""


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how the monitor writes Docker's json-file log.

    `path`: absolute host path of the file. `max_size`: bytes at which it is rotated, 0 for never (Knarr's default 10 MB).
    `max_files`: how many files are kept, the current one included: FILE, FILE.1, FILE.2. `attrs`: raw JSON object for each line's
    "attrs", empty for none.
    """

    path: str
    max_size: int = 10 * 1000 * 1000
    max_files: int = 3
    attrs: bytes = b""


class OomSource(msgspec.Struct, frozen=True, kw_only=True):
    """The memory cgroup's file with the `oom_kill` counter.

    `path`: memory.oom_control (`version` 1) or memory.events (`version` 2). The counter is always read at the end; `watch` asks for a
    live notice as well and is worth its cost only where a memory limit is set.
    """

    path: str
    version: int
    watch: bool = False


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Launch `plan` (as `runtime.ops.encode` makes it). Answered by `Started` or `Failed`. Sent once to a monitor.

    `bundle`: absolute host path of the folder for monitor.sock and exit.json. `rows`, `cols`: first size of the pty (0: kernel's default).
    `open_stdin`: keep stdin open for attached clients; without it stdin is /dev/null (a tty always has stdin).
    `stdin_once`: close the process's stdin when the first client with stdin ends its input.
    The message's descriptor, if any: the network namespace that the process is born in.
    """

    plan: bytes
    bundle: str
    tty: bool = False
    rows: int = 0
    cols: int = 0
    open_stdin: bool = False
    stdin_once: bool = False
    log: LogSettings | None = None
    oom: OomSource | None = None


class Attach(msgspec.Struct, frozen=True, kw_only=True):
    """Serve a client: its stream socket (unix or TCP) is the descriptor that comes with the message.

    `id`: chosen by the daemon, comes back in `Detached`. `framed`: output in Docker's 8-byte stdcopy frames, else raw bytes.
    `detach_keys`: bytes that end the attachment, empty for none; as in Docker they only count for a tty. `early`: input that the
    HTTP server had already read from the socket.
    """

    id: int
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    framed: bool = True
    detach_keys: bytes = DEFAULT_DETACH_KEYS
    early: bytes = b""


class Resize(msgspec.Struct, frozen=True, kw_only=True):
    """Set the pty's size in characters; ignored without a tty."""

    rows: int
    cols: int


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """Send signal `number` to the process (not to its group), by pidfd."""

    number: int


class Status(msgspec.Struct, frozen=True):
    """Ask for `State`."""


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The process runs (exec succeeded). Its pidfd comes with the message.

    `pid`: in the monitor's PID namespace. `start_time`: field 22 of /proc/PID/stat, to recognise the process later. `started`:
    CLOCK_REALTIME ns. `trace`: (operation index, CLOCK_MONOTONIC ns when it began). The monitor's own steps, same clock: START
    `received`, stdio `prepared`, `launched` (exec seen). `degraded`: (operation index, errno) of what could only be done in part.
    """

    pid: int
    start_time: int
    started: int = 0
    received: int = 0
    prepared: int = 0
    launched: int = 0
    trace: tuple[tuple[int, int], ...] = ()
    degraded: tuple[tuple[int, int], ...] = ()


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing runs; the monitor ends. `op`: index of the failed operation, -1 when it failed before the plan ran.

    `errno`: the kernel's error. `what`: what was being done and the cause in words, for errors outside the
    plan. Attached clients' sockets were closed without a shutdown, so that the daemon can still tell them through its own copies.
    """

    op: int
    errno: int
    what: str = ""
    trace: tuple[tuple[int, int], ...] = ()
    degraded: tuple[tuple[int, int], ...] = ()


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """The process ended; exit.json is already written and the log complete.

    `status`: as wait(2) has it, for os.waitstatus_to_exitcode. `oom_kills`: processes of the cgroup killed for want of memory.
    `finished`: CLOCK_REALTIME in ns. `log_dropped`: log lines lost to a full or broken disk.
    """

    status: int
    oom_kills: int = 0
    finished: int = 0
    log_dropped: int = 0


class Detached(msgspec.Struct, frozen=True, kw_only=True):
    """Client `id` is no longer served and its socket closed. Goes to the connection that attached it.

    `reason`: "keys" (detach keys), "input" (its input ended and, as in Docker, that ends an attachment that does not close the process's
    stdin), "closed" (it went away), "error" (its socket failed or is none), "ended" (the process ended, everything was delivered).
    """

    id: int
    reason: str


class Oom(msgspec.Struct, frozen=True, kw_only=True):
    """Live notice from the memory cgroup; `kills` is the counter when the notice came (v1: may still be one behind)."""

    kills: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Status`; with a process, its pidfd comes with the message.

    `started`: CLOCK_REALTIME ns. `phase`: "waiting" (no START yet), "running", "ended" (only delivering to clients). `clients`: ids
    attached now.
    """

    phase: str
    pid: int = 0
    start_time: int = 0
    started: int = 0
    tty: bool = False
    log_dropped: int = 0
    clients: tuple[int, ...] = ()


class Warning(msgspec.Struct, frozen=True, kw_only=True):
    """Something a user should see in the daemon's log; the container is not affected."""

    text: str


ToMonitor = Start | Attach | Resize | Signal | Status
FromMonitor = Started | Failed | Exit | Detached | Oom | State | Warning
Message = ToMonitor | FromMonitor

_KINDS: Final[dict[type, int]] = {
    Start: 1,
    Attach: 2,
    Resize: 3,
    Signal: 4,
    Status: 5,
    Started: 16,
    Failed: 17,
    Exit: 18,
    Detached: 19,
    Oom: 20,
    State: 21,
    Warning: 22,
}
_PHASES: Final = ("waiting", "running", "ended")
_REASONS: Final = ("keys", "input", "closed", "error", "ended")

_START = struct.Struct("<BBBBBBHHHQII")  # ends so that the plan that follows begins at a multiple of 8, as its decoder wants
_ATTACH = struct.Struct("<IB")
_TRACE = struct.Struct("<IQ")
_DEGRADED = struct.Struct("<II")


def encode(message: Message) -> bytes:
    """The whole message, header included. Raises MalformedMessage for a value the layout cannot carry."""
    kind = _KINDS[type(message)]
    try:
        body = _ENCODERS[kind](message)
    except (struct.error, UnicodeEncodeError) as error:
        raise MalformedMessage(f"encode {type(message).__name__}: {error}") from error
    total = _HEADER.size + len(body)
    if total > MESSAGE_LIMIT:
        raise MalformedMessage(f"encode {type(message).__name__}: {total} bytes are more than {MESSAGE_LIMIT}")
    return _HEADER.pack(VERSION, kind, 0, total) + body


def large_packet(encoded: bytes) -> bytes:
    """The packet that announces a message sent in a memfd: its header with FLAG_LARGE."""
    version, kind, _, total = _HEADER.unpack_from(encoded)
    return _HEADER.pack(version, kind, FLAG_LARGE, total)


def decode(packet: bytes) -> Message:
    """The message in a packet (or memfd). Raises MalformedMessage for anything that `encode` would not have made."""
    if len(packet) < _HEADER.size:
        raise MalformedMessage(f"a packet of {len(packet)} bytes has no header")
    version, kind, flags, total = _HEADER.unpack_from(packet)
    if version != VERSION:
        raise MalformedMessage(f"protocol version {version}, this side speaks {VERSION}")
    if flags or total != len(packet):
        raise MalformedMessage(f"header says {total} bytes, flags {flags}; the packet has {len(packet)}")
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise MalformedMessage(f"unknown kind {kind}")
    reader = _Reader(packet)
    message = decoder(reader)
    if reader.at != len(packet):
        raise MalformedMessage(f"{len(packet) - reader.at} bytes too many after {type(message).__name__}")
    return message


class _Reader:
    """Reads fields in order and refuses to read past the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = _HEADER.size

    def fields(self, layout: struct.Struct) -> tuple[int, ...]:
        if self.at + layout.size > len(self.data):
            raise MalformedMessage(f"cut off at byte {len(self.data)}")
        values: tuple[int, ...] = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def blob(self) -> bytes:
        (length,) = self.fields(_U32)
        end = self.at + length
        if end > len(self.data):
            raise MalformedMessage(f"a field of {length} bytes is cut off at byte {len(self.data)}")
        value = self.data[self.at : end]
        self.at = end
        return value

    def path(self) -> str:
        return self.blob().decode("utf-8", "surrogateescape")

    def text(self) -> str:
        return self.blob().decode("utf-8", "replace")

    def word(self, words: tuple[str, ...], value: int) -> str:
        if value >= len(words):
            raise MalformedMessage(f"value {value} is none of {', '.join(words)}")
        return words[value]

    def pairs(self, layout: struct.Struct) -> tuple[tuple[int, int], ...]:
        (count,) = self.fields(_U32)
        if count * layout.size > len(self.data) - self.at:
            raise MalformedMessage(f"a list of {count} entries is cut off")
        begin, self.at = self.at, self.at + count * layout.size
        # On every start's path: unpacked by one call instead of one for each entry.
        found: tuple[tuple[int, int], ...] = tuple(layout.iter_unpack(self.data[begin : self.at]))
        return found


_U32 = struct.Struct("<I")
_RESIZE = struct.Struct("<HH")
_SIGNAL = struct.Struct("<I")
_STARTED = struct.Struct("<iQQQQQ")
_FAILED = struct.Struct("<iI")
_EXIT = struct.Struct("<IQQQ")
_DETACHED = struct.Struct("<IB")
_OOM = struct.Struct("<Q")
_STATE = struct.Struct("<BiQQBQI")


def _blob(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _path(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise MalformedMessage(f"a path with a zero byte: {value!r}")
    return _blob(raw)


def _pairs(layout: struct.Struct, entries: tuple[tuple[int, int], ...]) -> bytes:
    return _U32.pack(len(entries)) + b"".join(layout.pack(first, second) for first, second in entries)


def _trace(m: Started | Failed) -> bytes:
    return _pairs(_TRACE, m.trace) + _pairs(_DEGRADED, m.degraded)


def _encode_start(m: Start) -> bytes:
    log, oom = m.log, m.oom
    head = _START.pack(
        m.tty,
        m.open_stdin,
        m.stdin_once,
        log is not None,
        oom.version if oom else 0,
        oom.watch if oom else False,
        0,
        m.rows,
        m.cols,
        log.max_size if log else 0,
        log.max_files if log else 0,
        0,
    )
    texts = (_path(m.bundle), _path(log.path if log else ""), _blob(log.attrs if log else b""), _path(oom.path if oom else ""))
    return b"".join((head, _blob(m.plan), *texts))


def _decode_start(r: _Reader) -> Start:
    tty, open_stdin, stdin_once, has_log, oom_version, oom_watch, *numbers = r.fields(_START)
    zero, rows, cols, max_size, max_files, also_zero = numbers
    if max(tty, open_stdin, stdin_once, has_log, oom_watch) > 1 or zero or also_zero or oom_version > 2:
        raise MalformedMessage("START: a flag is out of range")
    plan, bundle, log_path, attrs, oom_path = r.blob(), r.path(), r.path(), r.blob(), r.path()
    return Start(
        plan=plan,
        bundle=bundle,
        tty=bool(tty),
        rows=rows,
        cols=cols,
        open_stdin=bool(open_stdin),
        stdin_once=bool(stdin_once),
        log=LogSettings(path=log_path, max_size=max_size, max_files=max_files, attrs=attrs) if has_log else None,
        oom=OomSource(path=oom_path, version=oom_version, watch=bool(oom_watch)) if oom_version else None,
    )


def _encode_attach(m: Attach) -> bytes:
    if len(m.detach_keys) > DETACH_KEYS_LIMIT:
        raise MalformedMessage(f"{len(m.detach_keys)} detach keys are more than {DETACH_KEYS_LIMIT}")
    flags = m.stdin | m.stdout << 1 | m.stderr << 2 | m.framed << 3
    return _ATTACH.pack(m.id, flags) + _blob(m.detach_keys) + _blob(m.early)


def _decode_attach(r: _Reader) -> Attach:
    number, flags = r.fields(_ATTACH)
    if flags > 15:
        raise MalformedMessage("ATTACH: unknown flags")
    keys, early = r.blob(), r.blob()
    if len(keys) > DETACH_KEYS_LIMIT:
        raise MalformedMessage(f"{len(keys)} detach keys are more than {DETACH_KEYS_LIMIT}")
    stdin, stdout, stderr, framed = (bool(flags >> bit & 1) for bit in range(4))
    return Attach(id=number, stdin=stdin, stdout=stdout, stderr=stderr, framed=framed, detach_keys=keys, early=early)


def _encode_started(m: Started) -> bytes:
    return _STARTED.pack(m.pid, m.start_time, m.started, m.received, m.prepared, m.launched) + _trace(m)


def _decode_started(r: _Reader) -> Started:
    pid, start_time, started, received, prepared, launched = r.fields(_STARTED)
    return Started(
        pid=pid,
        start_time=start_time,
        started=started,
        received=received,
        prepared=prepared,
        launched=launched,
        trace=r.pairs(_TRACE),
        degraded=r.pairs(_DEGRADED),
    )


def _encode_failed(m: Failed) -> bytes:
    return _FAILED.pack(m.op, m.errno) + _blob(m.what.encode()) + _trace(m)


def _decode_failed(r: _Reader) -> Failed:
    op, errno = r.fields(_FAILED)
    return Failed(op=op, errno=errno, what=r.text(), trace=r.pairs(_TRACE), degraded=r.pairs(_DEGRADED))


def _decode_exit(r: _Reader) -> Exit:
    status, oom_kills, finished, dropped = r.fields(_EXIT)
    return Exit(status=status, oom_kills=oom_kills, finished=finished, log_dropped=dropped)


def _decode_detached(r: _Reader) -> Detached:
    number, reason = r.fields(_DETACHED)
    return Detached(id=number, reason=r.word(_REASONS, reason))


def _encode_state(m: State) -> bytes:
    head = _STATE.pack(_PHASES.index(m.phase), m.pid, m.start_time, m.started, m.tty, m.log_dropped, len(m.clients))
    return head + b"".join(_U32.pack(number) for number in m.clients)


def _decode_state(r: _Reader) -> State:
    phase, pid, start_time, started, tty, dropped, count = r.fields(_STATE)
    if count * _U32.size > len(r.data) - r.at:
        raise MalformedMessage(f"a list of {count} clients is cut off")
    clients = tuple(r.fields(_U32)[0] for _ in range(count))
    return State(
        phase=r.word(_PHASES, phase),
        pid=pid,
        start_time=start_time,
        started=started,
        tty=bool(tty),
        log_dropped=dropped,
        clients=clients,
    )


def _decode_resize(r: _Reader) -> Resize:
    rows, cols = r.fields(_RESIZE)
    return Resize(rows=rows, cols=cols)


_ENCODERS: Final[dict[int, Callable[[Any], bytes]]] = {
    1: _encode_start,
    2: _encode_attach,
    3: lambda m: _RESIZE.pack(m.rows, m.cols),
    4: lambda m: _SIGNAL.pack(m.number),
    5: lambda m: b"",
    16: _encode_started,
    17: _encode_failed,
    18: lambda m: _EXIT.pack(m.status, m.oom_kills, m.finished, m.log_dropped),
    19: lambda m: _DETACHED.pack(m.id, _REASONS.index(m.reason)),
    20: lambda m: _OOM.pack(m.kills),
    21: _encode_state,
    22: lambda m: _blob(m.text.encode()),
}
_DECODERS: Final[dict[int, Callable[[_Reader], Message]]] = {
    1: _decode_start,
    2: _decode_attach,
    3: _decode_resize,
    4: lambda r: Signal(number=r.fields(_SIGNAL)[0]),
    5: lambda r: Status(),
    16: _decode_started,
    17: _decode_failed,
    18: _decode_exit,
    19: _decode_detached,
    20: lambda r: Oom(kills=r.fields(_OOM)[0]),
    21: _decode_state,
    22: lambda r: Warning(text=r.text()),
}
