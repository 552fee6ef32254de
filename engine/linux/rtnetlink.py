"""The socket that speaks rtnetlink: several requests in one system call, dumps, errors in the kernel's own words.

A socket belongs to the network namespace it was opened in, whoever uses it later. It serves one thread at a time. The requests
are made by `wire/rtnetlink.py`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from engine.linux import namespaces
from engine.wire import links as read
from engine.wire import netlink
from engine.wire import rtnetlink as wire
from engine.wire.links import Address, Link, Route
from engine.wire.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Ack, Message
from engine.wire.rtnetlink import Request

_BUFFER: Final = 32768  # the kernel makes no larger piece of a dump
_DUMP_ATTEMPTS: Final = 10
_TRUNCATED = socket.MSG_TRUNC

T = TypeVar("T")


class Rtnetlink:
    """An open socket. Use it as a context manager, or `close` it."""

    def __init__(self, ns: int = -1) -> None:
        """Open it in the calling thread's network namespace, or in that of descriptor `ns`."""
        if ns < 0:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        else:
            with namespaces.inside(ns):
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        # Each is only a convenience that an older kernel may lack: texts of errors, short acknowledgements, dumps that the kernel filters.
        for option in (netlink.NETLINK_EXT_ACK, netlink.NETLINK_CAP_ACK, netlink.NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(netlink.SOL_NETLINK, option, 1)
            except OSError:
                pass
        self._seq = 0

    def __enter__(self) -> Rtnetlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self._socket.fileno()

    def exchange(self, requests: Sequence[Request]) -> tuple[list[Message], dict[int, Ack]]:
        """Send all requests in one system call and read what they gave: (answers, failures by position in `requests`).

        The kernel tries each of them, also after a failure. It works them off within the send, one acknowledgement at the very end says
        that all is there.
        """
        first = self._seq + 1
        last = self._seq = self._seq + len(requests)
        data = b"".join(
            [
                netlink.message(type, flags | NLM_F_ACK if seq == last else flags, seq, payload)
                for seq, (type, flags, payload, _, _) in enumerate(requests, first)
            ]
        )
        self._socket.send(data)
        answers: list[Message] = []
        failures: dict[int, Ack] = {}
        while True:
            for message in self._receive(requests[-1].what):
                if message.seq < first:
                    continue  # left over from a batch that was broken off
                if message.type != NLMSG_ERROR:
                    answers.append(message)
                    continue
                ack = netlink.error(message.payload, message.flags)
                if ack.errno and ack.errno not in requests[message.seq - first].ignore:
                    failures[message.seq - first] = ack
                if message.seq == last:
                    return answers, failures

    def batch(self, requests: Sequence[Request]) -> list[Message]:
        """As `exchange`; OSError for the first that failed, with what it was doing and the kernel's text. The others were tried too."""
        if not requests:
            return []
        answers, failures = self.exchange(requests)
        if failures:
            position = min(failures)
            raise failure(requests[position], failures[position])
        return answers

    def link(self, *, name: str = "", index: int = 0) -> Link | None:
        """One link by name or index; None when there is none."""
        request = wire.get_link(name=name, index=index)
        answers, failures = self.exchange([request])
        if 0 in failures:
            if failures[0].errno == errno.ENODEV:
                return None
            raise failure(request, failures[0])
        return read.link(answers[0].payload) if answers else None

    def links(self, *, master: int = 0, kind: str = "") -> list[Link]:
        """All links of the namespace, or those of a bridge (its index) or kind."""
        found = self._dump(wire.dump_links(master=master, kind=kind), wire.RTM_NEWLINK, lambda p: [read.link(p)])
        return [one for one in found if (not master or one.master == master) and (not kind or one.kind == kind)]

    def addresses(self, index: int = 0) -> list[Address]:
        """All addresses, or those of a link."""
        found = self._dump(wire.dump_addresses(index), wire.RTM_NEWADDR, lambda p: [read.address(p)])
        return [one for one in found if not index or one.index == index]

    def routes(self, *, family: int = 0, table: int = wire.RT_TABLE_MAIN) -> list[Route]:
        """Routes of a table (0: of all), IPv4 before IPv6."""
        found: list[Route] = []
        for one in (family,) if family else (socket.AF_INET, socket.AF_INET6):
            found += self._dump(wire.dump_routes(one), wire.RTM_NEWROUTE, read.routes)
        return [one for one in found if not table or one.table == table]

    def _dump(self, request: Request, type: int, read: Callable[[bytes], Iterable[T]]) -> list[T]:
        """All entries of a table; again when it changed meanwhile, because then entries may be missing."""
        for _ in range(_DUMP_ATTEMPTS):
            found, whole = self._dump_once(request, type, read)
            if whole:
                return found
        return found

    def _dump_once(self, request: Request, type: int, read: Callable[[bytes], Iterable[T]]) -> tuple[list[T], bool]:
        self._seq += 1
        self._socket.send(netlink.message(request.type, NLM_F_DUMP, self._seq, request.payload))
        found: list[T] = []
        whole = True
        while True:
            for message in self._receive(request.what):
                if message.seq != self._seq:
                    continue
                if message.flags & NLM_F_DUMP_INTR:
                    whole = False
                if message.type == type:
                    found += read(message.payload)
                elif message.type in (NLMSG_DONE, NLMSG_ERROR):
                    reader = netlink.done if message.type == NLMSG_DONE else netlink.error
                    ack = reader(message.payload, message.flags)
                    if ack.errno:
                        raise failure(request, ack)
                    return found, whole

    def _receive(self, what: str) -> Iterable[Message]:
        """What the next datagram holds. The answer is there when the send returns, so there is nothing to wait for."""
        try:
            data, _, flags, _ = self._socket.recvmsg(_BUFFER, 0, socket.MSG_DONTWAIT)
        except BlockingIOError as error:
            raise OSError(error.errno, f"{what}: the kernel gave no answer") from error
        if flags & _TRUNCATED:
            raise OSError(errno.EMSGSIZE, f"{what}: an answer of more than {_BUFFER} bytes")
        return netlink.parse(data)


def failure(request: Request, ack: Ack) -> OSError:
    """The exception for a request that failed: FileExistsError, PermissionError, ... or OSError."""
    reason = os.strerror(ack.errno)
    return OSError(ack.errno, f"{request.what}: {reason}: {ack.text}" if ack.text else f"{request.what}: {reason}")
