"""The kernel's nftables in one network namespace: transactions over nfnetlink, with errors that name the object. No policy.

Documentation: nft(8); net/netfilter/nfnetlink.c for batches.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable

from engine.errors import KnarrError
from engine.wire import netlink
from engine.wire.nftables import DELSETELEM, NEWCHAIN, NEWSETELEM, NEWTABLE, Message, batch, delete_table, elements, new_table, replacing
from engine.wire.nftmodel import Changes, Table

_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
_RECEIVE = 1 << 16
_RIGHTS = "the daemon needs CAP_NET_ADMIN"


class NftablesError(KnarrError):
    """The kernel refused a transaction; nothing of it was done. `number`: errno; `failed`: what it was about, None for the whole."""

    def __init__(self, number: int, what: str, explanation: str = "", *, failed: Message | None = None, hint: str = "") -> None:
        cause = os.strerror(number) + (f" ({explanation})" if explanation else "")
        super().__init__(f"changing the firewall: {what}: {cause}", hint=hint)
        self.number = number
        self.failed = failed


class NftablesMissing(NftablesError):
    """The kernel has no nftables at all."""


def missing(number: int) -> NftablesMissing:
    """The error for a kernel without nftables, for instance one whose firewall is iptables' legacy alone."""
    return NftablesMissing(
        number,
        "this kernel has no nftables",
        hint="load the module nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT); iptables alone is not supported. "
        "Networks host and none work without it",
    )


class Nftables:
    """A socket to nftables of the network namespace in which this was made. Not for several threads at once.

    `bridges`: whether the kernel has tables of the family bridge, as far as is known; without, tables of it are left out.
    """

    def __init__(self) -> None:
        """Raises NftablesMissing for a kernel without nfnetlink."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise missing(error.errno or errno.EOPNOTSUPP) from None
            raise
        for option in (netlink.NETLINK_EXT_ACK, netlink.NETLINK_CAP_ACK):
            self._socket.setsockopt(netlink.SOL_NETLINK, option, 1)
        self._socket.connect((0, 0))
        self._room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        self._sequence = 1
        self.bridges = True

    def close(self) -> None:
        """The rules stay."""
        self._socket.close()

    def commit(self, messages: Iterable[Message]) -> None:
        """One transaction. Raises NftablesError with the first object that the kernel names; nothing was changed then."""
        found = list(messages)
        if not found:
            return
        first = self._sequence
        self._sequence = (first + len(found) + 2) & 0x3FFFFFFF
        data = batch(found, first)
        if len(data) > self._room:
            self._grow(len(data))
        self._socket.send(data)
        self._answers(found, first)

    def replace(self, tables: Iterable[Table]) -> None:
        """Puts tables in the place of those with their names, in one transaction. Connections that are established stay so.

        Where the kernel has no bridge tables, `bridges` becomes false and the others are made. Raises NftablesError, NftablesMissing.
        """
        found = [table for table in tables if self.bridges or table.family != "bridge"]
        try:
            self.commit(message for table in found for message in replacing(table))
        except NftablesError as error:
            number = error.number
            first = error.failed
            if first is None or first.family != "bridge" or first.type not in (NEWTABLE, NEWCHAIN):
                raise
            if number not in (*_UNSUPPORTED, errno.ENOENT):
                raise
            self.bridges = False
            self.replace(found)

    def update(self, changes: Changes, whole: Callable[[], Iterable[Table]]) -> bool:
        """Removes and adds elements in one transaction. Where the tables are not as expected (somebody flushed them), `whole` is asked for
        everything and takes their place; the answer is whether that happened. Raises NftablesError."""
        try:
            self.commit(
                message
                for type, some in ((DELSETELEM, changes.removed), (NEWSETELEM, changes.added))
                for family, table, one, found in some
                if self.bridges or family != "bridge"
                for message in elements(type, family, table, one, found)
            )
        except NftablesError as error:
            if error.number not in (errno.ENOENT, errno.EEXIST):
                raise
            self.replace(whole())
            return True
        return False

    def remove(self, tables: Iterable[tuple[str, str]]) -> None:
        """Removes tables (family, name), also such that are not there."""
        for family, name in tables:
            if self.bridges or family != "bridge":
                self.commit((new_table(family, name), delete_table(family, name)))

    def _grow(self, length: int) -> None:
        """A transaction is one datagram; a longer one than net.core.wmem_max takes CAP_NET_ADMIN, which who changes rules has. Its answers
        are as many as its messages when everything fails."""
        for option, number in (("send", _SO_SNDBUFFORCE), ("receive", _SO_RCVBUFFORCE)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, number, length + 4096)
            except PermissionError as error:
                raise NftablesError(errno.EPERM, f"a {option} buffer of {length} bytes", hint=_RIGHTS) from error
        self._room = length

    def _answers(self, sent: list[Message], first: int) -> None:
        """The kernel has worked through the transaction when send returns, so what it says is there."""
        failure: tuple[int, netlink.Ack] | None = None
        done = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                failure = failure or (-1, netlink.Ack(errno.ENOBUFS, -1, "more errors than fit the socket"))
                continue
            for one in netlink.parse(data):
                number = one.seq - first - 1
                if one.type != netlink.NLMSG_ERROR or not -1 <= number < len(sent):
                    continue
                ack = netlink.error(one.payload, one.flags)
                if ack.errno and failure is None:
                    failure = number, ack
                done = done or number == len(sent) - 1
        if failure is None and not done:
            failure = -1, netlink.Ack(errno.EPROTO, -1, "the kernel gave no answer")
        if failure is not None:
            raise _refused(sent, *failure)


def _refused(sent: list[Message], number: int, ack: netlink.Ack) -> NftablesError:
    if number < 0 and ack.errno in _UNSUPPORTED:
        return missing(ack.errno)
    message = sent[number] if number >= 0 else None
    hint = _RIGHTS if ack.errno == errno.EPERM else ""
    return NftablesError(ack.errno, message.what if message else "the transaction", ack.text, failed=message, hint=hint)
