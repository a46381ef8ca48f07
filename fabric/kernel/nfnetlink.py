"""Touches nfnetlink, the netlink of the packet filter: what ipsets, conntrack and NFLOG have in common.

Layouts: linux/netfilter/nfnetlink.h. Integers in attributes are in network order here, unlike rtnetlink's.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Iterator

from fabric.errors import DataplaneError
from fabric.kernel.netlink import (
    HEADER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Netlink,
    Request,
    attr,
    messages,
)

NETLINK_NETFILTER = 12
NLA_F_NESTED = 0x8000
NFGENMSG = struct.Struct(">BBH")  # family, version, resource


class Nfnl(Netlink):
    """One nfnetlink socket."""

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)


def nested(kind: int, payload: bytes) -> bytes:
    return attr(kind | NLA_F_NESTED, payload)


def be16(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack(">H", value))


def be32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack(">I", value))


def u8(kind: int, value: int) -> bytes:
    return attr(kind, bytes((value,)))


async def dump(request: Request) -> AsyncIterator[list[bytes]]:
    """Yield payloads, a NFGENMSG and attributes each, as many at a time as the kernel hands out at once.

    A socket of its own, so that the event loop may turn between its answers. What changes during the dump may be
    missing or doubled.
    """
    for found in read(request):
        yield found
        await asyncio.sleep(0)


def read(request: Request) -> Iterator[list[bytes]]:
    """Yield what `dump` does, for a thread of its own.

    Raises:
        DataplaneError: the kernel refused; for want of the object (ENOENT) it yields nothing instead.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER) as sock:
        flags = NLM_F_REQUEST | NLM_F_DUMP
        sock.send(HEADER.pack(HEADER.size + len(request.body), request.kind, flags, 1, 0) + request.body)
        while True:
            found: list[bytes] = []
            for message, _flags, _sequence, payload in messages(sock.recv(65536)):
                if message in (NLMSG_DONE, NLMSG_ERROR):
                    yield found
                    code = -struct.unpack_from("=i", payload)[0]
                    if code not in (0, errno.ENOENT):
                        raise DataplaneError(request.what, code, "nothing was changed")
                    return
                found.append(payload)
            yield found
