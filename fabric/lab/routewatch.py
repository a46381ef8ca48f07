"""Touches the kernel's main routing table: says what it is, and at once whatever changes in it.

Run as a program in a node, by path, so it imports nothing but the standard library. On standard output it
prints a line of JSON a change: `at`, in ns since 1970, and `routes`, each prefix with its next hops (a
gateway, or on link a device; "blackhole" for any kind of refusal), or none where it is gone. The first line
is the whole table. The program ends when its standard input does.

fabric/lab/routers.py reads the same table from what `ip` prints, in the same words. Here that would not do: to
start `ip` at each event takes longer than what is to be seen, and this program shares no module with it.

Events of the kernel only say that it is time to look again: of routes that go with their interface or
their nexthop object there are none. What comes and goes within less than a look, some 0.2 ms, is not seen.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv6Network, ip_address, ip_network

NLMSG, RTMSG, RTATTR, RTNEXTHOP = (struct.Struct(f) for f in ("=IHHII", "=8BI", "=HH", "=HBBi"))
RTM_NEWROUTE, RTM_GETROUTE, NLMSG_DONE = 24, 26, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
RTMGRP_LINK, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE = 0x1, 0x40, 0x400
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_NEXTHOP, SO_RCVBUFFORCE = 270, 1, 32, 33
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 9, 15, 18
RTN_UNICAST, REFUSALS = 1, range(6, 10)  # blackhole, unreachable, prohibit, throw
RT_TABLE_MAIN, RTNH_F_DEAD = 254, 0x1
# Every interface has these, and no router minds them.
BORING = (IPv6Network("fe80::/10"), IPv6Network("ff00::/8"))
CHUNK = 65536

Table = dict[str, tuple[str, ...]]


def main() -> None:
    with netlink() as events, netlink() as asking:
        events.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
        events.bind((0, RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE))
        events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_NEXTHOP)
        at, known = time.time_ns(), look(asking)
        print(json.dumps({"at": at, "routes": known}), flush=True)
        while True:
            ready = select.select([events.fileno(), 0], [], [])[0]
            if 0 in ready and not os.read(0, 1):
                return
            at = time.time_ns()
            # One that did not fit is no loss: the table is read whole.
            with suppress(OSError):
                while True:
                    events.recv(CHUNK, socket.MSG_DONTWAIT)
            before, known = known, look(asking)
            if changes := difference(before, known):
                print(json.dumps({"at": at, "routes": changes}), flush=True)


def netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def look(asking: socket.socket) -> Table:
    """Return the main table, both families."""
    request = NLMSG.pack(NLMSG.size + RTMSG.size, RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
    messages: list[bytes] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        asking.send(request + RTMSG.pack(family, *[0] * 8))
        done = False
        while not done:
            for kind, body in split(asking.recv(CHUNK)):
                done = kind == NLMSG_DONE
                if kind == RTM_NEWROUTE:
                    messages.append(body)
    return table(messages)


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message."""
    while data:
        length, kind, _, _, _ = NLMSG.unpack_from(data)
        yield kind, data[NLMSG.size : length]
        data = data[(length + 3) & ~3 :]


def table(messages: list[bytes]) -> Table:
    """Return the main table in these route messages: of several metrics the kernel uses the lowest."""
    best: dict[str, tuple[int, set[str]]] = {}
    for body in messages:
        family, length, _, _, _, _, _, kind, flags = RTMSG.unpack_from(body)
        fields = attributes(body[RTMSG.size :])
        if number(fields[RTA_TABLE]) != RT_TABLE_MAIN or (kind != RTN_UNICAST and kind not in REFUSALS):
            continue
        size = 4 if family == socket.AF_INET else 16
        prefix = ip_network((fields.get(RTA_DST, bytes(size)), length))
        if isinstance(prefix, IPv6Network) and any(map(prefix.subnet_of, BORING)):
            continue
        found = {"blackhole"} if kind in REFUSALS else set(next_hops(fields, flags))
        metric = number(fields.get(RTA_PRIORITY, bytes(4)))
        lowest, hops = best.get(str(prefix), (metric, set()))
        if metric == lowest:
            best[str(prefix)] = metric, hops | found
        elif metric < lowest:
            best[str(prefix)] = metric, found
    return {prefix: tuple(sorted(hops)) for prefix, (_, hops) in best.items() if hops}


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= RTATTR.size:
        length, kind = RTATTR.unpack_from(data)
        found[kind] = data[RTATTR.size : length]
        data = data[(length + 3) & ~3 :]
    return found


def next_hops(fields: dict[int, bytes], flags: int) -> Iterator[str]:
    """Yield where a unicast route's packets go; a dead next hop gets none."""
    if RTA_MULTIPATH not in fields:
        if not flags & RTNH_F_DEAD:
            yield hop(fields, number(fields[RTA_OIF]))
        return
    data = fields[RTA_MULTIPATH]
    while len(data) >= RTNEXTHOP.size:
        length, dead, _, device = RTNEXTHOP.unpack_from(data)
        if not dead & RTNH_F_DEAD:
            yield hop(attributes(data[RTNEXTHOP.size : length]), device)
        data = data[(length + 3) & ~3 :]


def hop(fields: dict[int, bytes], device: int) -> str:
    if gateway := fields.get(RTA_GATEWAY) or fields.get(RTA_VIA, b"")[2:]:
        return str(ip_address(gateway))
    try:
        return socket.if_indextoname(device)
    except OSError:  # it has just gone
        return f"interface {device}"


def number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def difference(before: Table, after: Table) -> Table:
    """Return what is new or other in `after`, and with no next hops what is gone."""
    gone: Table = dict.fromkeys(before.keys() - after.keys(), ())
    return gone | {prefix: hops for prefix, hops in after.items() if before.get(prefix) != hops}


if __name__ == "__main__":
    main()
