"""Touches NFLOG: hears of the packets that rules hand to it, each with the prefix of the rule.

A plain netlink socket; no library has it. Under overload the kernel drops what does not fit, which is counted by the
gap in its numbering and never an error: rules decide without us.

Layouts: linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from fabric.kernel.netlink import Request, attr, attributes, messages
from fabric.kernel.nfnetlink import NFGENMSG, Nfnl, be16, be32, u8
from policy.form import ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE, Icmp, Packet
from policy.naming import NFLOG_GROUP

PACKET, CONFIG = 4 << 8, 4 << 8 | 1  # NFNL_SUBSYS_ULOG
CFG_CMD, CFG_MODE, CFG_BUFFER, CFG_TIMEOUT, CFG_THRESHOLD, CFG_FLAGS = 1, 2, 3, 4, 5, 6
BIND, COPY_PACKET, NUMBERED = 1, 2, 1
IN_LINK, OUT_LINK, PAYLOAD, PREFIX, NUMBER = 4, 5, 9, 10, 12

COPIED = 96  # bytes of each packet: IPv6's header, some extensions and the ports
BUFFER = (
    16384  # bytes that the kernel gathers at most before it sends them on; it takes as much memory for fewer,
)
GATHER = 10  # hundredths of a second that it waits for more,
AT_ONCE = 50  # and packets
RECEIVE = 1 << 20  # bytes that may wait for us
SO_RCVBUFFORCE = 33  # beyond net.core.rmem_max

_PORTED: Final = frozenset({TCP, UDP, SCTP, UDPLITE})
_FRAGMENT: Final = 44
_AH: Final = 51
_EXTENSIONS: Final = frozenset(
    {0, 43, _FRAGMENT, _AH, 60, 135}
)  # also hop by hop, routing, destination, mobility


@dataclass(frozen=True, slots=True)
class Logged:
    """A packet that a rule logged; a link is "" where it has none there, as what the host itself sends or gets."""

    prefix: str
    in_link: str
    out_link: str
    packet: Packet


class NFLog(Nfnl):
    """The NFLOG group `group` of the network namespace in which it was made.

    `lost` counts packets that were dropped unheard.

    Raises:
        DataplaneError: somebody else has the group.
    """

    def __init__(self, group: int = NFLOG_GROUP) -> None:
        super().__init__()
        self.lost = 0
        self._next: int | None = None
        head = NFGENMSG.pack(socket.AF_UNSPEC, 0, group)
        settings = (
            u8(CFG_CMD, BIND),
            attr(CFG_MODE, struct.pack(">IBx", COPIED, COPY_PACKET)),
            be32(CFG_BUFFER, BUFFER) + be32(CFG_TIMEOUT, GATHER) + be32(CFG_THRESHOLD, AT_ONCE),
            be16(CFG_FLAGS, NUMBERED),
        )
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE)
        hint = "is another agent running? denied packets are not named, policy is enforced all the same"
        try:
            self.run([Request(f"NFLOG group {group}", CONFIG, 0, head + one) for one in settings], hint)
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    async def packets(self) -> AsyncIterator[Logged]:
        """Yield what is logged, without end; what is no IP packet is left out."""
        while True:
            for kind, _flags, _sequence, payload in messages(await self._datagram()):
                if kind == PACKET and (logged := self._logged(payload)):
                    yield logged

    async def _datagram(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, 2 * BUFFER)
        except OSError as err:
            if err.errno != errno.ENOBUFS:
                raise
            return b""  # the next number says how many

    def _logged(self, payload: bytes) -> Logged | None:
        attrs = dict(attributes(payload[NFGENMSG.size :]))
        number = int.from_bytes(attrs[NUMBER], "big")
        if self._next is not None:
            self.lost += (number - self._next) % (1 << 32)
        self._next = number + 1
        packet = parse(attrs.get(PAYLOAD, b""))
        if packet is None:
            return None
        prefix = attrs.get(PREFIX, b"").rstrip(b"\0").decode(errors="replace")
        return Logged(prefix, _link(attrs.get(IN_LINK)), _link(attrs.get(OUT_LINK)), packet)


def _link(index: bytes | None) -> str:
    if index is None:
        return ""
    number = int.from_bytes(index, "big")
    with suppress(OSError):
        return socket.if_indextoname(number)
    return str(number)  # it went away meanwhile


def parse(data: bytes) -> Packet | None:
    """Return the packet whose first bytes `data` are, None where they are no IP packet's.

    Ports and ICMP's fields are left out where they are not there: behind the first fragment, or cut off.
    """
    if len(data) >= 20 and data[0] >> 4 == 4:
        start = (data[0] & 15) * 4
        first = not int.from_bytes(data[6:8], "big") & 0x1FFF
        source, destination = IPv4Address(data[12:16]), IPv4Address(data[16:20])
        return _with_ports(Packet(source, destination, data[9]), data[start:] if first else b"")
    if len(data) >= 40 and data[0] >> 4 == 6:
        protocol, rest = _behind_extensions(data[6], data[40:])
        return _with_ports(Packet(IPv6Address(data[8:24]), IPv6Address(data[24:40]), protocol), rest)
    return None


def _behind_extensions(protocol: int, data: bytes) -> tuple[int, bytes]:
    while len(data) >= 8 and protocol in _EXTENSIONS:
        if protocol == _FRAGMENT and int.from_bytes(data[2:4], "big") >> 3:
            return data[0], b""
        # AH counts in words of four bytes, less two; the others in eight, less one.
        length = {_FRAGMENT: 8, _AH: (data[1] + 2) * 4}.get(protocol, (data[1] + 1) * 8)
        protocol, data = data[0], data[length:]
    return protocol, data


def _with_ports(packet: Packet, data: bytes) -> Packet:
    source, destination, protocol = packet.source, packet.destination, packet.protocol
    if protocol in _PORTED and len(data) >= 4:
        return Packet(source, destination, protocol, *struct.unpack_from(">HH", data))
    if protocol in {ICMP, ICMPV6} and len(data) >= 2:
        return Packet(source, destination, protocol, icmp=Icmp(data[0], data[1]))
    return packet
