"""Connection tracking: what the kernel remembers of datagrams is forgotten for ports that change hands.

A flow of UDP has no end that the kernel could see: a client that never stops asking keeps its entry, and with it the translation that
was right when it began. Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from engine.wire import netlink

_NETLINK_NETFILTER: Final = 12
_CTNETLINK: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = _CTNETLINK | 0, _CTNETLINK | 1, _CTNETLINK | 2
_TUPLE_ORIG, _ZONE, _ID = 1, 18, 12
_TUPLE_PROTO, _PROTO_NUM, _PROTO_DST_PORT = 2, 1, 3
_NESTED: Final = 0x8000
_RECEIVE: Final = 65536


def forget_datagrams(ports: set[int]) -> int:
    """Forget flows of UDP to these ports of the host, of both families; how many. Blocks shortly. Raises OSError.

    A kernel without the interface (CONFIG_NF_CT_NETLINK) has none that could be forgotten this way: 0.
    """
    found = 0
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return 0
        raise
    with sock:
        sock.connect((0, 0))
        for family in (socket.AF_INET, socket.AF_INET6):
            for payload in [entry for entry in _dump(sock, family) if _port(entry) in ports]:
                header = struct.pack("=BBH", family, 0, 0)
                kept = netlink.attributes(payload, 4)
                wanted = b"".join(
                    netlink.attribute(type | (_NESTED if type == _TUPLE_ORIG else 0), kept[type])
                    for type in (_TUPLE_ORIG, _ID, _ZONE)
                    if type in kept
                )
                sock.send(netlink.message(_DELETE, netlink.NLM_F_REQUEST | netlink.NLM_F_ACK, 2, header + wanted))
                found += _acknowledged(sock)
    return found


def _dump(sock: socket.socket, family: int) -> Iterator[bytes]:
    sock.send(netlink.message(_GET, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, 1, struct.pack("=BBH", family, 0, 0)))
    while True:
        for one in netlink.parse(sock.recv(_RECEIVE)):
            if one.type == netlink.NLMSG_DONE:
                return
            if one.type == netlink.NLMSG_ERROR:
                number = netlink.error(one.payload, one.flags).errno
                if number in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
                    return
                raise OSError(number, f"reading connections: {os.strerror(number)}")
            if one.type == _NEW:
                yield one.payload


def _port(payload: bytes) -> int:
    """The port that a flow of UDP was first sent to; 0 for other protocols."""
    original = netlink.attributes(payload, 4).get(_TUPLE_ORIG)
    protocol = netlink.attributes(original).get(_TUPLE_PROTO) if original is not None else None
    if protocol is None:
        return 0
    parts = netlink.attributes(protocol)
    if parts.get(_PROTO_NUM, b"")[:1] != bytes([socket.IPPROTO_UDP]) or _PROTO_DST_PORT not in parts:
        return 0
    return int.from_bytes(parts[_PROTO_DST_PORT][:2], "big")


def _acknowledged(sock: socket.socket) -> int:
    """1 when the entry was deleted, 0 when it was gone."""
    for one in netlink.parse(sock.recv(_RECEIVE)):
        if one.type == netlink.NLMSG_ERROR:
            number = netlink.error(one.payload, one.flags).errno
            if number not in (0, errno.ENOENT):
                raise OSError(number, f"forgetting a connection: {os.strerror(number)}")
            return int(number == 0)
    return 0
