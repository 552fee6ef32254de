"""Ethernet frames by hand, as a hostile program with CAP_NET_RAW sends them: any source, any destination, forged ARP and neighbours."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import time
from collections.abc import Iterator

from tests.lib.netns import Namespace

ETH_ALL, ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0003, 0x0800, 0x0806, 0x86DD
BROADCAST = "ff:ff:ff:ff:ff:ff"
_PACKET = 17  # AF_PACKET


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(destination: str, source: str, kind: int, payload: bytes) -> bytes:
    return mac_bytes(destination) + mac_bytes(source) + struct.pack("!H", kind) + payload


def udp4(source: str, destination: str, source_port: int, port: int, data: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram (RFC 791, RFC 768; no UDP checksum, which IPv4 allows)."""
    datagram = struct.pack("!4H", source_port, port, 8 + len(data), 0) + data
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0x4000, 64, socket.IPPROTO_UDP, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + datagram


def udp6(source: str, destination: str, source_port: int, port: int, data: bytes) -> bytes:
    """An IPv6 packet with a UDP datagram (RFC 8200)."""
    ends = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed
    length = 8 + len(data)
    pseudo = ends + struct.pack("!II", length, socket.IPPROTO_UDP)
    head = struct.pack("!3H", source_port, port, length)
    value = checksum(pseudo + head + b"\0\0" + data) or 0xFFFF
    return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + ends + head + struct.pack("!H", value) + data


def arp_answer(mac: str, address: str, to_mac: str, to_address: str) -> bytes:
    """`address` is at `mac`, as an answer that nobody asked for (RFC 826)."""
    parts = mac_bytes(mac) + socket.inet_aton(address) + mac_bytes(to_mac) + socket.inet_aton(to_address)
    return struct.pack("!HHBBH", 1, ETH_IPV4, 6, 4, 2) + parts


def neighbour_answer(mac: str, address: str, to_address: str) -> bytes:
    """The same for IPv6: a neighbour advertisement that overrides (RFC 4861, 4.4)."""
    ends = ipaddress.IPv6Address(address).packed + ipaddress.IPv6Address(to_address).packed
    body = struct.pack("!II", 136 << 24, 0x60000000) + ipaddress.IPv6Address(address).packed + b"\x02\x01" + mac_bytes(mac)
    value = checksum(ends + struct.pack("!II", len(body), 58) + body)
    return struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + ends + body[:2] + struct.pack("!H", value) + body[4:]


class Wire:
    """A packet socket on one link of a namespace."""

    def __init__(self, namespace: Namespace, link: str) -> None:
        self.socket = namespace.socket(_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
        self.socket.bind((link, ETH_ALL))
        self.mac = self.socket.getsockname()[4].hex(":")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, destination: str, kind: int, payload: bytes, *, source: str = "", times: int = 3) -> None:
        """More than once: a single frame may be lost for reasons of its own."""
        for _ in range(times):
            self.socket.send(ethernet(destination, source or self.mac, kind, payload))
            time.sleep(0.01)

    def heard(self, seconds: float = 0.5) -> Iterator[bytes]:
        """Frames that come in for a while; not those that this host sends."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                frame, where = self.socket.recvfrom(65536)
                if where[2] != socket.PACKET_OUTGOING:
                    yield frame


def mac_of(namespace: Namespace, address: str) -> str:
    """What a namespace believes the link address of `address` to be, after talking to it; "" when it does not know."""
    words = namespace.ip("neigh", "show", address).split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""
