"""Sends the packets that it is told to, answers others', and says what it has heard: one process a network namespace.

Run by path, so it imports nothing but the standard library. Commands are JSON, a line each, on stdin; each is answered
by a line on stdout:

    {"listen": [addresses], "tcp": [ports], "udp": [ports], "raw": [[version, protocol], ...]}  -> null
    {"send": [[token, source, destination, protocol, source port or type, destination port or code], ...],
     "wait": seconds}  -> the tokens of what was answered, as soon as all were or after that time
    {"heard": true}    -> [source, protocol, source port or type, destination port or code, token] of each packet that
                          came in since the last time, as far as its protocol is one of `raw`

Answered is a TCP connection that stands, a datagram that came back, an ICMP echo's reply. A token is a number that goes
along with the packet, less than 65536; TCP's first segment has no room for one, and is heard with 0. A source port of 0
is any.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
REPLY = {ICMP: 0, ICMPV6: 129}
SYN, ACK = 0x02, 0x10


class Prober:
    def __init__(self) -> None:
        self.events = selectors.DefaultSelector()
        self.answered: set[int] = set()
        self.heard: list[tuple[str, int, int, int, int]] = []
        self.sending: list[socket.socket] = []
        self.buffer = b""

    def run(self) -> None:
        self._on(sys.stdin.fileno(), self._read)
        while True:
            self._turn(None)

    # Commands

    def _read(self) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            sys.exit()
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            print(json.dumps(self._obey(json.loads(line))), flush=True)

    def _obey(self, command: dict[str, Any]) -> object:
        match command:
            case {"listen": addresses, "tcp": tcp, "udp": udp, "raw": raw}:
                for address in addresses:
                    for port in tcp:
                        self._listen(address, port)
                    for port in udp:
                        self._echo(address, port)
                for version, protocol in raw:
                    self._hear(version, protocol)
                return None
            case {"send": packets, "wait": wait}:
                return self._send(packets, wait)
            case {"heard": True}:
                heard, self.heard = self.heard, []
                return heard
        raise ValueError(command)

    def _send(self, packets: list[list[Any]], wait: float) -> list[int]:
        self.answered = set()
        for token, source, destination, protocol, here, there in packets:
            self._launch(token, source, destination, protocol, here, there)
        deadline = time.monotonic() + wait
        while len(self.answered) < len(packets) and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        for each in self.sending:
            with suppress(KeyError):
                self.events.unregister(each)
            each.close()
        self.sending.clear()
        return sorted(self.answered)

    def _launch(
        self, token: int, source: str, destination: str, protocol: int, here: int, there: int
    ) -> None:
        made = self._socket(protocol, destination)
        self.sending.append(made)
        made.bind((source, here if protocol in {TCP, UDP} else 0))
        if protocol == TCP:
            # What is closed is reset, and leaves no TIME_WAIT to the next one with these ports.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made.connect_ex((destination, there))
            self._on(made, lambda: self._connected(token, made), selectors.EVENT_WRITE)
            return
        # Refused at once, or no way there: it is not answered.
        with suppress(OSError):
            made.connect((destination, there if protocol == UDP else 0))
            if protocol == UDP:
                self._on(made, lambda: self._returned(token, made))
                made.send(struct.pack("!H", token))
            elif protocol in REPLY:
                self._on(made, lambda: self._replied(token, made, protocol))
                made.send(_icmp(protocol, here, there, token))
            else:
                made.send(struct.pack("!H", token))

    def _connected(self, token: int, made: socket.socket) -> None:
        self.events.unregister(made)
        if made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            self.answered.add(token)

    def _returned(self, token: int, made: socket.socket) -> None:
        with suppress(OSError):
            if made.recv(64) == struct.pack("!H", token):
                self.answered.add(token)

    def _replied(self, token: int, made: socket.socket, protocol: int) -> None:
        """A raw socket sees every ICMP message from the address that it is connected to."""
        with suppress(OSError):
            body = _body(made.recv(2048), protocol == ICMP)
            if len(body) >= 8 and struct.unpack("!BxxxHH", body[:8]) == (
                REPLY[protocol],
                os.getpid() & 0xFFFF,
                token,
            ):
                self.answered.add(token)

    # Others' packets

    def _listen(self, address: str, port: int) -> None:
        made = self._socket(TCP, address)
        made.bind((address, port))
        made.listen(1024)
        self._on(made, lambda: self._accept(made))

    @staticmethod
    def _accept(made: socket.socket) -> None:
        with suppress(OSError):
            made.accept()[0].close()

    def _echo(self, address: str, port: int) -> None:
        made = self._socket(UDP, address)
        made.bind((address, port))
        self._on(made, lambda: self._return(made))

    @staticmethod
    def _return(made: socket.socket) -> None:
        with suppress(OSError):
            data, peer = made.recvfrom(64)
            made.sendto(data, peer)

    def _hear(self, version: int, protocol: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = socket.socket(family, socket.SOCK_RAW, protocol)
        made.setblocking(False)
        self._on(made, lambda: self._note(made, version, protocol))

    def _note(self, made: socket.socket, version: int, protocol: int) -> None:
        with suppress(OSError):
            while True:
                data, peer = made.recvfrom(2048)
                if told := _told(protocol, _body(data, version == 4)):
                    self.heard.append((peer[0], protocol, *told))

    # Sockets and events

    def _socket(self, protocol: int, address: str) -> socket.socket:
        kind = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}.get(protocol, socket.SOCK_RAW)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made

    def _on(
        self, what: int | socket.socket, act: Callable[[], None], event: int = selectors.EVENT_READ
    ) -> None:
        self.events.register(what, event, act)

    def _turn(self, timeout: float | None) -> None:
        for key, _ in self.events.select(timeout):
            key.data()


def _body(data: bytes, with_header: bool) -> bytes:
    """Raw sockets of IPv4 have the header in front."""
    return data[(data[0] & 15) * 4 :] if with_header else data


def _told(protocol: int, body: bytes) -> tuple[int, int, int] | None:
    """Return source port or type, destination port or code, and token of a first packet."""
    match protocol:
        case 6 if len(body) >= 14 and body[13] & (SYN | ACK) == SYN:
            here, there = struct.unpack("!HH", body[:4])
            return here, there, 0
        case 17 if len(body) >= 10:
            here, there, token = struct.unpack("!HHxxxxH", body[:10])
            return here, there, token
        case 1 | 58 if len(body) >= 8 and body[0] not in REPLY.values():
            here, there, token = struct.unpack("!BBxxxxH", body[:8])
            return here, there, token
        case 1 | 6 | 17 | 58:
            return None
    return (0, 0, struct.unpack("!H", body[:2])[0]) if len(body) >= 2 else None


def _icmp(protocol: int, type_: int, code: int, token: int) -> bytes:
    """The kernel fills in the checksum of ICMPv6 by itself."""
    parts = (type_, code, 0, os.getpid() & 0xFFFF, token)
    if protocol == ICMPV6:
        return struct.pack("!BBHHH", *parts)
    total = sum(struct.unpack("!4H", struct.pack("!BBHHH", *parts)))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", type_, code, ~(total + (total >> 16)) & 0xFFFF, *parts[3:])


if __name__ == "__main__":
    Prober().run()
