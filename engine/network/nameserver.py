"""The embedded name server's place in a container's network namespace: two sockets on 127.0.0.11 and a rewrite of ports.

Containers ask 127.0.0.11 port 53, but the sockets listen on `RESOLVER_PORT`: a container's own name server may have 0.0.0.0:53, which the
kernel refuses while another socket has 127.0.0.11:53. The rewrite is stateless, so that no connection tracking is loaded in the
namespace. Who answers on the sockets is not decided here.
"""

from __future__ import annotations

import functools
import socket
from typing import Final

from engine.linux import namespaces
from engine.linux.nftables import Nftables
from engine.wire.nftables import Message, replacing, table_messages
from engine.wire.nftmodel import ACCEPT, Chain, Match, Rewrite, Rule, Table

RESOLVER_ADDRESS: Final = "127.0.0.11"
RESOLVER_PORT: Final = 53053

_TABLE: Final = "knarr-dns"
_BACKLOG: Final = 128
_BEFORE_TRACKING, _AFTER_NAT = -300, 300
_LEAVES: Final[Rule] = (Match("oifname", "lo", negated=True), ACCEPT)


def table() -> Table:
    """The rewrite. Requests are changed before connection tracking sees them and answers after it, so that a container which loads it for
    rules of its own finds both to be one connection."""
    return Table(
        family="ip",
        name=_TABLE,
        chains=(
            Chain(name="requests", hook="output", priority=_BEFORE_TRACKING, rules=(_LEAVES, *(_request(p) for p in ("udp", "tcp")))),
            Chain(name="answers", hook="output", priority=_AFTER_NAT, rules=(_LEAVES, *(_answer(p) for p in ("udp", "tcp")))),
        ),
    )


def _request(protocol: str) -> Rule:
    key = f"{protocol} dport"
    return Match("ip daddr", RESOLVER_ADDRESS), Match(key, "53"), Rewrite(key, str(RESOLVER_PORT))


def _answer(protocol: str) -> Rule:
    key = f"{protocol} sport"
    return Match("ip saddr", RESOLVER_ADDRESS), Match(key, str(RESOLVER_PORT)), Rewrite(key, "53")


@functools.cache
def _messages() -> tuple[Message, ...]:
    return tuple(table_messages(table()))


def open_here() -> tuple[int, int]:
    """(UDP, listening TCP) descriptors in the calling thread's network namespace, a new one in which `lo` is up.

    Close-on-exec and blocking. OSError, or NftablesError for a kernel without nftables.
    """
    _commit(_messages())
    return _sockets()


def open_in(ns: int) -> tuple[int, int]:
    """As `open_here` in the namespace of a running container, which may have had the rewrite before. OSError EADDRINUSE when sockets of
    an earlier call are still open."""
    with namespaces.inside(ns):
        _commit(tuple(replacing(table())))
        return _sockets()


def _commit(messages: tuple[Message, ...]) -> None:
    nft = Nftables()
    try:
        nft.commit(messages)
    finally:
        nft.close()


def _sockets() -> tuple[int, int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as udp:
        udp.bind((RESOLVER_ADDRESS, RESOLVER_PORT))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as tcp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((RESOLVER_ADDRESS, RESOLVER_PORT))
            tcp.listen(_BACKLOG)
            return udp.detach(), tcp.detach()
