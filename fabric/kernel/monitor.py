"""Touches the kernel's multicast of changes: says that something changed, and of links whether they have a carrier.

An event only brings the next read-back forward, so nothing else is decoded beyond what tells our own echo
and the noise apart, and a lost event costs a read-back too. The caller debounces. A carrier cannot wait: a full
table takes long to read back.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from fabric.kernel.netlink import (
    IFF_LOWER_UP,
    IFF_UP,
    IFINFO,
    IFLA_IFNAME,
    NUD_PERMANENT,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    attributes,
    messages,
)
from fabric.plan.routes import FABRIC_PROTO

GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400  # links, neighbours, addresses and routes of both families


# Links, addresses, routes, neighbours: message types come in groups of four, from RTM_NEWLINK on.
KINDS = (16, 20, 24, 28)
AF_BRIDGE = 7


@dataclass(frozen=True, slots=True)
class Changed:
    """Something did; `carriers` says of each link among it, by name, whether it is up and has a carrier now."""

    carriers: Mapping[str, bool] = field(default_factory=dict)


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

    async def changes(self) -> AsyncIterator[Changed]:
        """Yield once for all the events that were waiting, if any of them matters, without end."""
        while True:
            found = [await self._first(), *self._waiting()]
            if any(event is not None for event in found):
                yield Changed(
                    {name: is_on for event in found if event for name, is_on in event.carriers.items()}
                )

    async def _first(self) -> Changed | None:
        try:
            return _read(await asyncio.get_running_loop().sock_recv(self._socket, 65536))
        except OSError as err:
            return _lost(err)

    def _waiting(self) -> list[Changed | None]:
        """Empty the queue: after an overflow the kernel drops all that follows, unsaid, until it is empty."""
        seen: list[Changed | None] = []
        while True:
            try:
                seen.append(_read(self._socket.recv(65536)))
            except BlockingIOError:
                return seen
            except OSError as err:
                seen.append(_lost(err))


def _lost(err: OSError) -> Changed:
    if err.errno != errno.ENOBUFS:
        raise err
    return Changed()  # events were lost: anything may have changed


def _read(data: bytes) -> Changed | None:
    """Return what of it matters, None where nothing does."""
    found = [
        (kind, payload)
        for kind, _flags, _sequence, payload in messages(data)
        if kind & ~3 in KINDS and not _is_noise(kind, payload)
    ]
    links = (_carrier(kind, payload) for kind, payload in found if kind in (RTM_NEWLINK, RTM_DELLINK))
    return Changed(dict(filter(None, links))) if found else None


def _carrier(kind: int, payload: bytes) -> tuple[str, bool] | None:
    family, _type, _index, flags, _change = IFINFO.unpack_from(payload)
    name = dict(attributes(payload[IFINFO.size :])).get(IFLA_IFNAME, b"").rstrip(b"\0").decode()
    # A bridge tells of its ports apart: that one left it is no loss of its link.
    if not name or family == AF_BRIDGE:
        return None
    return name, kind == RTM_NEWLINK and flags & (IFF_UP | IFF_LOWER_UP) == IFF_UP | IFF_LOWER_UP


def _is_noise(kind: int, payload: bytes) -> bool:
    """A route of ours that was set was set by us; an entry of the ARP cache that comes is nobody's change."""
    if kind == RTM_NEWROUTE:
        return payload[5] == FABRIC_PROTO  # rtm_protocol
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        state = struct.unpack_from("=H", payload, 8)[0]  # ndm_state
        return kind == RTM_NEWNEIGH and not state & NUD_PERMANENT
    return False
