"""Touches nftables' multicast of changes: says that somebody else changed a chain that concerns us.

As with fabric.kernel.monitor an event only asks for a read-back, so no more is decoded than tells what it is about.
Layouts: linux/netfilter/nf_tables.h. Integers in attributes are big-endian, those of headers in host order.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Collection
from types import TracebackType
from typing import Final, Self

from fabric.kernel.netlink import HEADER, attributes
from fabric.plan.tables import PREFIX, VERSIONS, Version

NETLINK_NETFILTER, NFNLGRP_NFTABLES = 12, 7
SO_RCVBUFFORCE = 33
BUFFER = 32 << 20  # bytes; our own restores are told too, and what does not fit costs a read-back
NFNL_SUBSYS_NFTABLES = 10
# The kinds that matter, each with the attribute that names its chain: NEWTABLE to DELRULE without the reads.
_CHAINS: Final = {0: 0, 2: 0, 3: 3, 5: 3, 6: 2, 8: 2}
_TABLE = 1  # the attribute that names the table, in all of them
_FAMILIES: Final[dict[int, Version]] = {socket.AF_INET: 4, socket.AF_INET6: 6}
_TABLES: Final = frozenset({"raw", "mangle", "nat", "filter", "security"})
_BUILT_IN: Final = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", ""})


class Watch:
    """Hears of every commit, in the network namespace in which it was made; `own` are the pids of our writers.

    The sender of a change is told by its netlink port, which a process's first socket has from its pid. The pid that
    the kernel tells besides is of no use where we are in a pid namespace: it is the first one's.
    """

    def __init__(self, own: Collection[int], buffer: int = BUFFER) -> None:
        self._own = own
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        self._socket.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def changes(self) -> AsyncIterator[frozenset[Version]]:
        """Yield the families of what others changed, once for all the events that were waiting, without end."""
        loop = asyncio.get_running_loop()
        while True:
            found: set[Version] = set()
            try:
                found |= self._read(await loop.sock_recv(self._socket, 65536))
            except OSError as err:
                found |= _lost(err)
            # All of it: after an overflow the kernel drops what follows, unsaid, until the queue is empty.
            while True:
                try:
                    found |= self._read(self._socket.recv(65536))
                except BlockingIOError:
                    break
                except OSError as err:
                    found |= _lost(err)
                await asyncio.sleep(0)  # a restore of ours may have made thousands
            if found:
                yield frozenset(found)

    def _read(self, data: bytes) -> set[Version]:
        found: set[Version] = set()
        at = 0
        while at + HEADER.size <= len(data):
            length, kind, _flags, _sequence, port = HEADER.unpack_from(data, at)
            subsystem, message = kind >> 8, kind & 0xFF
            payload = at + HEADER.size
            # struct nfgenmsg: family, version, resource.
            version = _FAMILIES.get(data[payload]) if payload < len(data) else None
            known = subsystem == NFNL_SUBSYS_NFTABLES and message in _CHAINS
            if known and version and version not in found and port not in self._own:
                found |= {version} if _concerns(message, data[payload + 4 : at + length]) else set()
            at += (length + 3) & ~3
        return found


def _lost(err: OSError) -> set[Version]:
    """Events were lost: anything may have changed."""
    if err.errno != errno.ENOBUFS:
        raise err
    return {*VERSIONS}


def _concerns(message: int, payload: bytes) -> bool:
    """Whether it is about a table of iptables, and in it about a chain of ours or one in which ours have a place."""
    names = dict(attributes(payload))
    table, chain = (
        names.get(kind, b"").rstrip(b"\0").decode(errors="replace") if kind else ""
        for kind in (_TABLE, _CHAINS[message])
    )
    return table in _TABLES and (chain in _BUILT_IN or chain.startswith(PREFIX))
