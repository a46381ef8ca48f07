"""Touches the kernel's connection tracking: the `Conntrack` behind `policy.flows`.

A table has 50,000 entries and more, of which few concern us, and reading must not hold up the event loop: a thread
looks at addresses where they lie in the message, and decodes only the entries that have one of ours.

Layouts: linux/netfilter/nfnetlink_conntrack.h. The order within a tuple is the one in which the kernel writes it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from fabric.errors import DataplaneError
from fabric.kernel.netlink import BATCH, Request, attr, attributes
from fabric.kernel.nfnetlink import NFGENMSG, Nfnl, be32, read
from fabric.kernel.threads import in_thread
from policy.flows import Ends, Flow
from policy.form import Address, Icmp

SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
NEW, GET, DELETE = SUBSYSTEM, SUBSYSTEM | 1, SUBSYSTEM | 2
MARK, TUPLE_MASTER, ZONE, MARK_MASK = 8, 14, 18, 21


class NetlinkConntrack(Nfnl):
    """The connection tracking of the network namespace in which it was made."""

    async def flows(self, addresses: AbstractSet[Address], bits: int) -> list[Flow]:
        return await in_thread(partial(_flows, addresses, bits))

    async def set_mark(self, flows: Collection[Flow], value: int, mask: int) -> None:
        change = be32(MARK, value & mask) + be32(MARK_MASK, mask)
        await self._each("mark", [Request(_told(flow), NEW, 0, flow.handle + change) for flow in flows])

    async def forget(self, flows: Collection[Flow]) -> None:
        await self._each("delete", [Request(_told(flow), DELETE, 0, flow.handle) for flow in flows])

    async def _each(self, verb: str, requests: Sequence[Request]) -> None:
        for start in range(0, len(requests), BATCH):
            for refused in self.attempt(requests[start : start + BATCH]):
                if refused.code != errno.ENOENT:
                    hint = f"{refused.said}; it goes on and the next pass retries".removeprefix("; ")
                    raise DataplaneError(f"{verb} connection {refused.request.what}", refused.code, hint)
            await asyncio.sleep(0)


def _told(flow: Flow) -> str:
    ends = flow.original
    ports = f"ports {ends.source_port} to {ends.destination_port}, " if ends.source_port else ""
    return f"{ends.source} to {ends.destination} ({ports}protocol {ends.protocol})"


def _layouts(size: int) -> dict[int, struct.Struct]:
    """Return how tuples of addresses of `size` are read, by their length: with ports, ICMP's, or neither."""
    # Headers of the tuple, of its addresses and of the first; the addresses; headers of the protocol; its number.
    head = f">12x{size}s4x{size}s4x4xB3x"
    forms = (struct.Struct(head + rest) for rest in ("", "4xH2x4xH2x", "4xH2x4xB3x4xB3x"))
    return {form.size: form for form in forms}


_LAYOUTS: Final[Mapping[int, Mapping[int, struct.Struct]]] = {
    socket.AF_INET: _layouts(4),
    socket.AF_INET6: _layouts(16),
}
_LENGTH = struct.Struct("=H")
_AT = NFGENMSG.size  # where the original tuple begins; the reply's is behind it
_SOURCE = 12  # of a tuple


def _flows(addresses: AbstractSet[Address], bits: int) -> list[Flow]:
    """Runs in a thread of its own."""
    ours = {address.packed: address for address in addresses}
    reader = _Reader(ours)
    if ours:
        for payloads in read(Request("conntrack dump", GET, 0, NFGENMSG.pack(socket.AF_UNSPEC, 0, 0))):
            for payload in payloads:
                if _touches(payload, ours):
                    reader.take(payload)
    if bits:
        body = NFGENMSG.pack(socket.AF_UNSPEC, 0, 0) + be32(MARK, bits) + be32(MARK_MASK, bits)
        for payloads in read(Request("conntrack dump by mark", GET, 0, body)):
            for payload in payloads:
                reader.take(payload)
    return list(reader.found.values())


def _touches(payload: bytes, ours: Mapping[bytes, Address]) -> bool:
    size = 4 if payload[0] == socket.AF_INET else 16
    source = _AT + _SOURCE
    if payload[source : source + size] in ours:
        return True
    destination = source + size + 4
    if payload[destination : destination + size] in ours:
        return True
    answers = source + _LENGTH.unpack_from(payload, _AT)[0]
    return payload[answers : answers + size] in ours


class _Reader:
    """Decodes entries; an address that many have is one object."""

    def __init__(self, known: Mapping[bytes, Address]) -> None:
        self._known = dict(known)
        self.found: dict[bytes, Flow] = {}

    def take(self, payload: bytes) -> None:
        """Take an entry in, unless its tuples are none of ours: such as have a zone for one direction alone."""
        answers = _AT + _LENGTH.unpack_from(payload, _AT)[0]
        end = answers + _LENGTH.unpack_from(payload, answers)[0]
        original = self._ends(payload[0], payload[_AT:answers])
        reply = self._ends(payload[0], payload[answers:end])
        if original is None or reply is None:
            return
        attrs = dict(attributes(payload[end:]))
        mark = int.from_bytes(attrs.get(MARK, b""), "big")
        handle = payload[:end] + (attr(ZONE, attrs[ZONE]) if ZONE in attrs else b"")
        master = self._ends(payload[0], bytes(4) + attrs[TUPLE_MASTER]) if TUPLE_MASTER in attrs else None
        self.found[handle] = Flow(original, reply, mark, master, handle)

    def _ends(self, family: int, data: bytes) -> Ends | None:
        form = _LAYOUTS[family].get(len(data))
        protocol_at = 24 if family == socket.AF_INET else 48
        # The protocol is the last thing in it; a zone would be behind that.
        if form is None or protocol_at + _LENGTH.unpack_from(data, protocol_at)[0] != len(data):
            return None
        source, destination, protocol, *more = form.unpack(data)
        ends = Ends(self._address(source), self._address(destination), protocol)
        match more:
            case [int(source_port), int(destination_port)]:
                return ends._replace(source_port=source_port, destination_port=destination_port)
            case [int(), int(kind), int(code)]:
                return ends._replace(icmp=Icmp(kind, code))
        return ends

    def _address(self, packed: bytes) -> Address:
        if (address := self._known.get(packed)) is None:
            address = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
            self._known[packed] = address
        return address
