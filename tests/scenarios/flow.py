"""Touches the network with numbered datagrams: `send` counts those that `echo` did not answer.

Run as a program in the namespace that is measured, by path, so it imports nothing but the standard library:

    flow.py echo PORT           answers each datagram with its number and the sender's address as seen here
    flow.py send ADDRESS PORT   one every 10 ms until SIGTERM, then a JSON report

Both print one line once they work: `echo` when it listens, `send` when the first answer is in.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys
import time
from contextlib import suppress

EVERY = 0.01  # seconds
LINGER = 1.0  # seconds after the last datagram for answers that are under way


def echo(port: int) -> None:
    with _socket("0.0.0.0" if not socket.has_ipv6 else "::") as listener:
        listener.bind(("::", port))
        print("ready", flush=True)
        while True:
            data, peer = listener.recvfrom(64)
            # Not reachable just now: the sender counts the answer as lost, which is what it is.
            with suppress(OSError):
                listener.sendto(data + b" " + peer[0].removeprefix("::ffff:").encode(), peer)


class Sender:
    """Datagrams and what became of them; `answered` maps each number to our address as the far end saw it."""

    def __init__(self, address: str, port: int) -> None:
        self.target = (address, port)
        self.answered: dict[int, str] = {}
        self.sent = 0
        self.pause = 0.0
        self.stopped = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        with _socket(self.target[0]) as self.socket:
            last = due = time.monotonic()
            while not self.stopped:
                now = time.monotonic()
                if now >= due:
                    self._send()
                    self.pause, last, due = max(self.pause, now - last), now, max(due + EVERY, now)
                self._receive(due)
            self._linger()

    def report(self) -> str:
        lost = [number for number in range(self.sent) if number not in self.answered]
        seen_as = sorted(set(self.answered.values()))
        return json.dumps({"sent": self.sent, "lost": lost, "pause": self.pause, "seen_as": seen_as})

    def _send(self) -> None:
        # A refused datagram has its number, and counts as lost.
        with suppress(OSError):
            self.socket.sendto(str(self.sent).encode(), self.target)
        self.sent += 1

    def _receive(self, until: float) -> None:
        if not select.select([self.socket], [], [], max(until - time.monotonic(), 0))[0]:
            return
        with suppress(OSError):  # an ICMP error for an earlier datagram, which is then not answered
            number, _, seen_as = self.socket.recv(64).decode().partition(" ")
            if not self.answered:
                print("ready", flush=True)
            self.answered[int(number)] = seen_as

    def _linger(self) -> None:
        deadline = time.monotonic() + LINGER
        while len(self.answered) < self.sent and time.monotonic() < deadline:
            self._receive(deadline)

    def _stop(self, *_: object) -> None:
        self.stopped = True


def _socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.socket(family, socket.SOCK_DGRAM)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo", port]:
            echo(int(port))
        case ["send", address, port]:
            sender = Sender(address, int(port))
            sender.run()
            print(sender.report())
