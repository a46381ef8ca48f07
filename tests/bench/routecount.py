"""Touches the kernel's routing events: says when as many routes inside a prefix had come, or gone, as it was told.

    python3 routecount.py COUNT PREFIX add|del

Run in a node, by path, so it imports nothing but the standard library. It prints "ready" once it listens, then when the
first and the last of them came, in ns since 1970. Each prefix counts once.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Network

NLMSG, RTMSG, RTATTR = struct.Struct("=IHHII"), struct.Struct("=8BI"), struct.Struct("=HH")
KINDS = {"add": 24, "del": 25}  # RTM_NEWROUTE, RTM_DELROUTE
RTMGRP_IPV4_ROUTE, RTA_DST, RT_TABLE_MAIN, SO_RCVBUFFORCE = 0x40, 1, 254, 33


def main(count: int, within: IPv4Network, kind: int) -> None:
    mask, wanted = int(within.netmask), int(within.network_address)
    seen: set[bytes] = set()
    first = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events:
        events.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        events.bind((0, RTMGRP_IPV4_ROUTE))
        print("ready", flush=True)
        while len(seen) < count:
            data, at = events.recv(1 << 18), time.time_ns()
            for prefix in changed(data, kind):
                if int.from_bytes(prefix[:4], "big") & mask == wanted:
                    first = first or at
                    seen.add(prefix)
    print(first, at, flush=True)


def changed(data: bytes, wanted: int) -> Iterator[bytes]:
    """Yield what the messages of the kind `wanted` in `data` are about: four bytes of address, one of length."""
    offset = 0
    while offset < len(data):
        length, kind, *_ = NLMSG.unpack_from(data, offset)
        _, bits, _, _, table, *_ = RTMSG.unpack_from(data, offset + NLMSG.size)
        at = offset + NLMSG.size + RTMSG.size
        while kind == wanted and table == RT_TABLE_MAIN and at < offset + length:
            size, attribute = RTATTR.unpack_from(data, at)
            if attribute == RTA_DST:
                yield data[at + RTATTR.size : at + size] + bytes([bits])
            at += (size + 3) & ~3
        offset += (length + 3) & ~3


if __name__ == "__main__":
    main(int(sys.argv[1]), IPv4Network(sys.argv[2]), KINDS[sys.argv[3]])
