"""Touches the kernel's multicast of changes: says what kind of thing changed, never what it is now.

An event only brings the next read-back forward, so nothing is decoded beyond what tells our own echo
and the noise apart, and a lost event costs a read-back too: `Change.RESYNC`. The caller debounces.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from enum import Enum
from types import TracebackType
from typing import Self

from fabric.kernel.netlink import NUD_PERMANENT, RTM_DELNEIGH, RTM_NEWNEIGH, RTM_NEWROUTE, messages
from fabric.plan.routes import FABRIC_PROTO

GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400  # links, neighbours, addresses and routes of both families


class Change(Enum):
    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"
    NEIGHBOUR = "neighbour"
    RESYNC = "resync"  # events were lost: anything may have changed


# Message types come in groups of four (new, delete, get, set), from RTM_NEWLINK = 16.
KINDS = {16: Change.LINK, 20: Change.ADDRESS, 24: Change.ROUTE, 28: Change.NEIGHBOUR}


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

    async def changes(self) -> AsyncIterator[Change]:
        """Yield each kind once for all the events that were waiting, without end."""
        while True:
            seen = await self._first() | self._waiting()
            for change in sorted(seen, key=lambda change: change.value):
                yield change

    async def _first(self) -> set[Change]:
        try:
            return _kinds(await asyncio.get_running_loop().sock_recv(self._socket, 65536))
        except OSError as err:
            return _lost(err)

    def _waiting(self) -> set[Change]:
        """Empty the queue: after an overflow the kernel drops all that follows, unsaid, until it is empty."""
        seen: set[Change] = set()
        while True:
            try:
                seen |= _kinds(self._socket.recv(65536))
            except BlockingIOError:
                return seen
            except OSError as err:
                seen |= _lost(err)


def _lost(err: OSError) -> set[Change]:
    if err.errno != errno.ENOBUFS:
        raise err
    return {Change.RESYNC}


def _kinds(data: bytes) -> set[Change]:
    return {
        KINDS[kind & ~3]
        for kind, _flags, _sequence, payload in messages(data)
        if kind & ~3 in KINDS and not _is_noise(kind, payload)
    }


def _is_noise(kind: int, payload: bytes) -> bool:
    """A route of ours that was set was set by us; an entry of the ARP cache that comes is nobody's change."""
    if kind == RTM_NEWROUTE:
        return payload[5] == FABRIC_PROTO  # rtm_protocol
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        state = struct.unpack_from("=H", payload, 8)[0]  # ndm_state
        return kind == RTM_NEWNEIGH and not state & NUD_PERMANENT
    return False
