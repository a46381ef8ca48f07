"""The first process of a lab's backplane: the namespaces that hold what lies between its nodes.

There are the wires (fabric/lab/wires.py), the bridge of the management network, and the nodes' disks, a
tmpfs that outlives each of them. Run like `init.py` beside it, with the standard library only:

    > (born)    < orders, as JSON    > (ready)    < (go)    then silence

While it runs it carries the loss of a carrier across each wire, as a cable does: when the interface at one
end goes down, or its node ends, the other end loses its carrier. Published ports are a child's: `publish.py`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn, TypedDict

NLMSG, IFINFO, ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=HH")
NLMSG_DONE, RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTMGRP_LINK = 3, 16, 17, 18, 1
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
IFLA_IFNAME, IFLA_GROUP = 3, 27
CUT = 1  # the interface group of both ends of a wire that was cut (fabric/lab/wires.py)
CHUNK = 65536


class Orders(TypedDict):
    """What the runner asks: `disks` is where they go, `wires` the two interface names of each wire.

    `publish` is the command that passes published ports on, or nothing; its descriptors are inherited.
    """

    disks: str
    wires: list[tuple[str, str]]
    publish: list[str]


def main() -> NoReturn:
    print("born", flush=True)
    orders: Orders = json.loads(hear())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", orders["disks"].encode(), b"tmpfs", 0, b"mode=755"):
        sys.exit(f"cannot mount the nodes' disks: {os.strerror(ctypes.get_errno())}")
    print("ready", flush=True)
    if orders["publish"]:
        subprocess.Popen(orders["publish"], stdin=subprocess.DEVNULL, stdout=2, close_fds=False)
    hear()
    with Path(os.devnull).open("r+b") as null:
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)
    follow(Wires(orders["wires"]))


def hear() -> str:
    return sys.stdin.readline() or sys.exit("the runner is gone")


class Message(NamedTuple):
    """What the kernel tells of one interface; `flags` is None when it is gone."""

    name: str
    number: int  # its ifindex
    flags: int | None
    group: int = 0


class Wires:
    """The wires' ends as the kernel last told them."""

    def __init__(self, wires: list[tuple[str, str]]) -> None:
        self.pairs = {end: pair for pair in wires for end in pair}
        self.ends: dict[str, Message] = {}  # those that are there

    def told(self, message: Message) -> list[tuple[int, bool]]:
        """Fold one message in; return what to set, as (interface index, up)."""
        self.fold(message)
        return self.judge(message.name)

    def fold(self, message: Message) -> None:
        if message.flags is None:
            self.ends.pop(message.name, None)
        elif message.name in self.pairs:
            self.ends[message.name] = message

    def judge(self, name: str) -> list[tuple[int, bool]]:
        """Return what to set at the wire that has an end called `name`.

        An end without a carrier, or gone, takes the other one down; with its carrier the other one comes up.
        Of an end that is down nothing is concluded, so where both are, the first comes up. A wire that was
        cut is left alone. What is seen may be older than what was set: then it is set again.
        """
        if name not in self.pairs:
            return []
        a, b = (self.ends.get(end) for end in self.pairs[name])
        if CUT in {end.group for end in (a, b) if end}:
            return []
        if a and b and not _up(a) and not _up(b):
            return [(a.number, True)]
        for near, far in ((a, b), (b, a)):
            if far and _up(near) and _lit(near) != _up(far):
                return [(far.number, _lit(near))]
        return []


def _up(end: Message | None) -> bool:
    """Whether it is up by configuration; one that is gone counts as up, and without a carrier."""
    return end is None or bool((end.flags or 0) & IFF_UP)


def _lit(end: Message | None) -> bool:
    return end is not None and bool((end.flags or 0) & IFF_LOWER_UP)


def follow(wires: Wires) -> NoReturn:
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as setter,
    ):
        netlink.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE: a lab's start is a storm
        netlink.bind((0, RTMGRP_LINK))
        whole = False  # until then an end that was not told of is not gone
        ask(netlink)
        while True:
            try:
                data = netlink.recv(CHUNK)
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                # Some messages are lost: what is there is asked again.
                whole = False
                wires.ends.clear()
                ask(netlink)
                continue
            for message in links(data):
                if message:
                    wires.fold(message)
                else:
                    whole = True
                for name in [message.name] if message else wires.pairs:
                    for number, up in wires.judge(name) if whole else ():
                        change(setter, number, up)


def ask(netlink: socket.socket) -> None:
    """Ask for every interface that there is."""
    header = NLMSG.pack(NLMSG.size + IFINFO.size, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    netlink.send(header + IFINFO.pack(0, 0, 0, 0, 0))


def change(setter: socket.socket, number: int, up: bool) -> None:
    """Set an interface up or down."""
    request = IFINFO.pack(0, 0, number, IFF_UP if up else 0, IFF_UP)
    setter.send(NLMSG.pack(NLMSG.size + len(request), RTM_NEWLINK, NLM_F_REQUEST, 0, 0) + request)


def links(data: bytes) -> Iterator[Message | None]:
    """Yield what netlink messages tell of interfaces, and None where all that was asked for has been told."""
    while len(data) >= NLMSG.size:
        length, kind, _, _, _ = NLMSG.unpack_from(data)
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            _, _, index, flags, _ = IFINFO.unpack_from(data, NLMSG.size)
            told = dict(attributes(data[NLMSG.size + IFINFO.size : length]))
            name = told[IFLA_IFNAME].rstrip(b"\0").decode()
            group = int.from_bytes(told.get(IFLA_GROUP, b""), sys.byteorder)
            yield Message(name, index, flags if kind == RTM_NEWLINK else None, group)
        elif kind == NLMSG_DONE:
            yield None
        data = data[(length + 3) & ~3 :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= ATTRIBUTE.size:
        size, kind = ATTRIBUTE.unpack_from(data)
        yield kind, data[ATTRIBUTE.size : size]
        data = data[(size + 3) & ~3 :]


if __name__ == "__main__":
    main()
