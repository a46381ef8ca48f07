"""A link that makes checksums of what a tunnel carries wrong, as some network cards do: a bridge in userland.

Its two ends take frames whose checksum the sender has left to the link, which says where the checksum is. Of a packet's
own it makes that; of one inside of a tunnel it forgets it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from functools import partial
from typing import Final, Self

from tests.contract.netns import Namespace

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL: Final = 3
VNET_HDR = struct.Struct(
    "=BBHHHH"
)  # flags, GSO type, header length, GSO size, start and offset of the checksum
NEEDS_CSUM: Final = 1
OUTER: Final = {0x0800: 14 + 20, 0x86DD: 14 + 40}  # where TCP or UDP begins, by the type of the frame


class BrokenLink:
    """It goes from `ends[0]` to `ends[1]`, two devices of `space`; `forgot` counts checksums that it did not make."""

    def __init__(self, space: Namespace, ends: tuple[str, str]) -> None:
        self._space, self._ends = space, ends
        self.forgot = 0

    def __enter__(self) -> Self:
        self._space.call(self._open)
        return self

    def __exit__(self, *exc: object) -> None:
        self._space.call(self._close)

    def _open(self) -> None:
        self._sockets = [_socket(end) for end in self._ends]
        for here, there in (self._sockets, self._sockets[::-1]):
            asyncio.get_running_loop().add_reader(here, partial(self._forward, here, there))

    def _close(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _forward(self, here: socket.socket, there: socket.socket) -> None:
        data = here.recv(1 << 16)
        flags, _gso, _length, _size, start, offset = VNET_HDR.unpack_from(data)
        frame = bytearray(data[VNET_HDR.size :])
        if flags & NEEDS_CSUM:
            if start == OUTER.get(int.from_bytes(frame[12:14], "big")):
                # The field holds what the pseudo-header makes.
                struct.pack_into("!H", frame, start + offset, _checksum(frame[start:]) or 0xFFFF)
            else:
                self.forgot += 1
        there.send(VNET_HDR.pack(0, 0, 0, 0, 0, 0) + frame)


def _socket(end: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.bind((end, ETH_P_ALL))
    return sock


def _checksum(data: bytearray) -> int:
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
