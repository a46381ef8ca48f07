"""Live connections that a policy may cut, and pokes at what it denies: each says at its end when it got something.

Run as a program in a namespace, by path, so it imports nothing but the standard library:

    stream.py serve PORT                   sends something every 10 ms to everybody who has come, by TCP or UDP
    stream.py take tcp|udp ADDRESS PORT    comes, and then only receives: nothing but the server's packets goes on
    stream.py poke tcp|udp ADDRESS PORT    makes a new connection every 10 ms

`serve` prints a line when it listens, `poke` one when it begins, `take` "comes" when something comes in, and "silent"
when nothing has for half a second. With SIGTERM `take` and `poke` end, and print the times (CLOCK_MONOTONIC) at which
something came in, as JSON.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Literal

EVERY = 0.01  # seconds
SILENCE = 0.5  # seconds
PATIENCE = 0.5  # seconds that a poke is waited for
Kind = Literal["tcp", "udp"]
TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Ended(Exception):
    """SIGTERM."""


def _end(_number: int, _frame: FrameType | None) -> None:
    raise Ended


def _socket(kind: Kind, address: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, TYPES[kind])


def serve(port: int) -> None:
    listener, datagrams = _socket("tcp", "::"), _socket("udp", "::")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for each in (listener, datagrams):
        each.bind(("::", port))
        each.setblocking(False)
    listener.listen(16)
    print("ready", flush=True)
    connections: list[socket.socket] = []
    peers = []
    while True:
        with suppress(BlockingIOError):
            connections.append(listener.accept()[0])
        # An ICMP error for somebody who has gone is told here, too.
        with suppress(OSError):
            peers.append(datagrams.recvfrom(64)[1])
        for connection in [*connections]:
            try:
                connection.send(b"x", socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass  # nobody has acknowledged for long
            except OSError:
                connections.remove(connection)
                connection.close()
        for peer in peers:
            with suppress(OSError):
                datagrams.sendto(b"x", peer)
        time.sleep(EVERY)


def take(kind: Kind, address: str, port: int) -> list[float]:
    times: list[float] = []
    with suppress(Ended), _socket(kind, address) as made:
        made.connect((address, port))
        if kind == "udp":
            made.send(b"x")
        made.settimeout(SILENCE)
        comes = False
        while True:
            try:
                assert made.recv(4096), "the server has ended"
            except TimeoutError:
                if comes:
                    print("silent", flush=True)
                comes = False
                continue
            times.append(time.monotonic())
            if not comes:
                print("comes", flush=True)
            comes = True
    return times


def poke(kind: Kind, address: str, port: int) -> list[float]:
    times: list[float] = []
    under_way: dict[socket.socket, float] = {}
    events = selectors.DefaultSelector()
    print("ready", flush=True)
    with suppress(Ended):
        due = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= due:
                _poke(events, under_way, kind, (address, port))
                due = max(due + EVERY, now)
            for key, _ in events.select(max(due - time.monotonic(), 0)):
                made = key.fileobj
                assert isinstance(made, socket.socket)
                if not made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    times.append(time.monotonic())
                _forget(events, under_way, made)
            for made in [s for s, began in under_way.items() if began < now - PATIENCE]:
                _forget(events, under_way, made)
    return times


def _poke(
    events: selectors.BaseSelector, under_way: dict[socket.socket, float], kind: Kind, target: tuple[str, int]
) -> None:
    made = _socket(kind, target[0])
    made.setblocking(False)
    made.connect_ex(target)
    with suppress(OSError):
        if kind == "udp":
            made.send(b"x")
    events.register(made, selectors.EVENT_WRITE if kind == "tcp" else selectors.EVENT_READ)
    under_way[made] = time.monotonic()


def _forget(
    events: selectors.BaseSelector, under_way: dict[socket.socket, float], made: socket.socket
) -> None:
    del under_way[made]
    events.unregister(made)
    made.close()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    match sys.argv[1:]:
        case ["serve", port]:
            serve(int(port))
        case ["take", ("tcp" | "udp") as kind, address, port]:
            print(json.dumps(take(kind, address, int(port))))
        case ["poke", ("tcp" | "udp") as kind, address, port]:
            print(json.dumps(poke(kind, address, int(port))))
