"""Touches the kernel's multicast of changes: says that something changed, never what, nor what it is now.

An event only brings the next read-back forward, so nothing is decoded beyond what tells our own echo
and the noise apart, and a lost event costs a read-back too. The caller debounces.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from fabric.kernel.netlink import NUD_PERMANENT, RTM_DELNEIGH, RTM_NEWNEIGH, RTM_NEWROUTE, messages
from fabric.plan.routes import FABRIC_PROTO

GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400  # links, neighbours, addresses and routes of both families


# Links, addresses, routes, neighbours: message types come in groups of four, from RTM_NEWLINK on.
KINDS = (16, 20, 24, 28)


class Monitor:
    """Hears of every change after its making, in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setblocking(False)
        self._socket.bind((0, GROUPS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def changes(self) -> AsyncIterator[None]:
        """Yield once for all the events that were waiting, if any of them matters, without end."""
        while True:
            first = await self._first()
            if self._waiting() or first:
                yield

    async def _first(self) -> bool:
        try:
            return _matters(await asyncio.get_running_loop().sock_recv(self._socket, 65536))
        except OSError as err:
            return _lost(err)

    def _waiting(self) -> bool:
        """Empty the queue: after an overflow the kernel drops all that follows, unsaid, until it is empty."""
        seen = False
        while True:
            try:
                seen |= _matters(self._socket.recv(65536))
            except BlockingIOError:
                return seen
            except OSError as err:
                seen |= _lost(err)


def _lost(err: OSError) -> bool:
    if err.errno != errno.ENOBUFS:
        raise err
    return True  # events were lost: anything may have changed


def _matters(data: bytes) -> bool:
    return any(
        kind & ~3 in KINDS and not _is_noise(kind, payload)
        for kind, _flags, _sequence, payload in messages(data)
    )


def _is_noise(kind: int, payload: bytes) -> bool:
    """A route of ours that was set was set by us; an entry of the ARP cache that comes is nobody's change."""
    if kind == RTM_NEWROUTE:
        return payload[5] == FABRIC_PROTO  # rtm_protocol
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        state = struct.unpack_from("=H", payload, 8)[0]  # ndm_state
        return kind == RTM_NEWNEIGH and not state & NUD_PERMANENT
    return False
