"""Touches the network with numbered datagrams: sends one every 10 ms to each peer, and stamps what peers send.

Run as a program in the namespace of one end of the traffic, by path, so it imports nothing but the standard
library: `traffic.py ORDERS`, which are JSON (`Orders`). More peers, or another address of one, may follow on
standard input, a line of JSON each time; the program ends when that does.

Datagram `n` of every sender is due at `epoch` plus n times 10 ms, so a number is a moment too, and one that
nobody sent is a gap as good as one that was lost.

What happens goes to standard output, record by record (`RECORD`): the sender, the number, and the time in ns
since 1970 at which it was sent, or, of a peer's, at which the kernel took it in. So nothing is lost with a
process that is killed.
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
from typing import TypedDict

EVERY = 10_000_000  # ns
TOO_LATE = 200_000_000  # ns; what is due longer than this is not sent any more
DATAGRAM = struct.Struct("!QHI")  # epoch, sender, number: another run's are told by their epoch
RECORD = struct.Struct("<HIq")  # sender, number, ns
TIMESPEC = struct.Struct("@qq")
# Not in Python's socket module.
SO_RCVBUFFORCE, SO_TIMESTAMPNS, IP_FREEBIND, IPV6_FREEBIND = 33, 35, 15, 78
ROOM = 4 << 20  # bytes of datagrams that wait while this process does not get its turn


class Orders(TypedDict):
    """`me` and the keys of `peers` are the senders' numbers; all use the same port."""

    me: int
    epoch: int
    address: str
    port: int
    peers: dict[str, str]


def run(orders: Orders) -> None:
    """Send and receive until standard input ends."""
    me, epoch, port, peers = orders["me"], orders["epoch"], orders["port"], orders["peers"]
    told = b""
    number = (time.time_ns() - epoch) // EVERY + 1
    with listener(orders["address"], port) as sock:
        while True:
            records = b""
            now, due = time.time_ns(), epoch + number * EVERY
            if now >= due + TOO_LATE:
                number = (now - epoch) // EVERY
                continue
            if now >= due:
                data = DATAGRAM.pack(epoch, me, number)
                records = RECORD.pack(me, number, now)
                for address in peers.values():
                    # A refused one has its number, and counts as lost.
                    with suppress(OSError):
                        sock.sendto(data, (address, port))
                number += 1
                due += EVERY
            ready = select.select([sock.fileno(), 0], [], [], max(due - time.time_ns(), 0) / 1e9)[0]
            if sock.fileno() in ready:
                records += b"".join(arrivals(sock, epoch))
            if records:
                os.write(1, records)
            if 0 in ready:
                more = os.read(0, 4096)
                if not more:
                    return
                *lines, told = (told + more).split(b"\n")
                for line in lines:
                    peers |= json.loads(line)


def listener(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    # An address may come and go with its interface: it need not be there yet.
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    try:
        sock.bind((address, port))
    except OSError as err:
        sys.exit(f"UDP port {port} of {address}: {err.strerror}")
    return sock


def arrivals(sock: socket.socket, epoch: int) -> Iterator[bytes]:
    """Yield a record for each datagram that waits."""
    space = socket.CMSG_SPACE(TIMESPEC.size)
    for _ in range(64):  # and then it may be time to send again
        try:
            data, extra, _, _ = sock.recvmsg(DATAGRAM.size + 1, space)
        except BlockingIOError:
            return
        if len(data) != DATAGRAM.size:
            continue
        run_of, sender, number = DATAGRAM.unpack(data)
        if run_of == epoch:
            seconds, ns = TIMESPEC.unpack(extra[0][2])
            yield RECORD.pack(sender, number, seconds * 1_000_000_000 + ns)


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
