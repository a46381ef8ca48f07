"""Touches the network from the namespace it runs in: answers, knocks, watches, measures.

Run by `fabric.lab.asking` as a program, by path, so it imports nothing but the standard library:

    probe.py listen tcp|udp ADDRESS PORT        send back whatever comes, until the input ends
    probe.py knock ping|tcp|udp ADDRESS PORT WHOSE TOKEN PATIENCE [SOURCE]
                                                does ADDRESS answer a payload with TOKEN within PATIENCE seconds?
    probe.py watch TOKEN                        every packet seen here that carries TOKEN, until the input ends
    probe.py measure ADDRESS BYTES TOKEN [SOURCE]
                                                the largest packet that gets there in one piece, BYTES expected

Each prints JSON, a line each: `listen` and `watch` first that they are at work, then what came in, and from whom,
or by; the other two their one answer. WHOSE is `ours` if the listener at ADDRESS is
`listen`, which sends everything back, or `theirs`: then a connection, or any datagram back, is an answer.
Packets are recognised by the token alone, so an address that was changed on the way cannot hide one.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

EVERY = 0.2  # seconds between two attempts
FLOW = 4  # characters after the token `watch` is given, by which it tells flows apart
BUFFER = 8 << 20  # bytes; a socket that overflows would lose what it is there to see

ETH_P_ALL, PACKET_OUTGOING, SO_RCVBUFFORCE = 3, 4, 33  # linux/if_ether.h, if_packet.h, asm/socket.h
ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
ECHO_REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}
# Send whole whatever is believed of the path, or fail: linux/in.h, in6.h.
PROBE = {
    socket.AF_INET: ((socket.IPPROTO_IP, 10, 3),),  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
    socket.AF_INET6: (
        (socket.IPPROTO_IPV6, 23, 3),  # IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE
        (socket.IPPROTO_IPV6, 62, 1),  # IPV6_DONTFRAG
    ),
}
HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}  # bytes of IP and ICMP
VNI_VALID = 0x08  # the only flag of a VXLAN header (RFC 7348)


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def input_ended(timeout: float, *others: socket.socket) -> tuple[bool, list[socket.socket]]:
    """Return whether the standard input has ended, and which sockets can be read."""
    readable, _, _ = select.select([sys.stdin.fileno(), *others], [], [], timeout)
    return sys.stdin.fileno() in readable, [each for each in others if each in readable]


# Answering


def listen(kind: str, address: str, port: int) -> None:
    """Say "ready", or "busy" where another program answers at that port already."""
    with socket.socket(family_of(address), _TYPES[kind]) as listener:
        if kind == "tcp":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                raise
            say("busy")
            return
        if kind == "tcp":
            listener.listen(64)
            listener.setblocking(False)  # a caller that gave up meanwhile must not block the others
        say("ready")
        callers: dict[socket.socket, str] = {}
        while True:
            ended, readable = input_ended(60, listener, *callers)
            for each in readable:
                with suppress(OSError):  # the caller went away; its own side knows why
                    if kind == "udp":
                        _return_datagram(each)
                    elif each is listener:
                        caller, where = each.accept()
                        callers[caller] = where[0]
                    elif not _return_stream(each, callers[each]):
                        del callers[each]
            if ended:
                return


def _return_datagram(listener: socket.socket) -> None:
    data, caller = listener.recvfrom(2048)
    say([data.decode(errors="replace"), caller[0]])
    listener.sendto(data, caller)


def _return_stream(caller: socket.socket, address: str) -> bool:
    data = b""
    with suppress(OSError):
        if data := caller.recv(2048):
            say([data.decode(errors="replace"), address])
            caller.sendall(data)
    if not data:
        caller.close()
    return bool(data)


_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


# Knocking


class NoAnswer(Exception):
    """Nothing came back in time."""

    def __str__(self) -> str:
        return "no answer"


def knock(kind: str, target: tuple[str, int], ours: bool, token: bytes, patience: float, source: str) -> None:
    """Say ["", from which address it was sent] once an answer is in, else [why there is none, ""]."""
    attempt = {"ping": ping, "tcp": call, "udp": write}[kind]
    deadline = time.monotonic() + patience
    why, own = str(NoAnswer()), ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            own = attempt(target, ours, token, min(left, 3 * EVERY), source)
        except NoAnswer:
            continue
        except OSError as err:
            why = err.strerror or str(err)
            time.sleep(min(left, EVERY))
            continue
        why = ""
        break
    say([why, own])


def ping(target: tuple[str, int], _ours: bool, token: bytes, patience: float, source: str) -> str:
    with echo_socket(target[0], source) as echo:
        echo.connect((target[0], 0))  # an ICMP error then reaches us as one
        echo.send(request(echo.family, 0, token))
        for reply in replies(echo, patience):
            if token in reply:
                return str(echo.getsockname()[0])
    raise NoAnswer


def call(target: tuple[str, int], ours: bool, token: bytes, patience: float, source: str) -> str:
    try:
        with socket.create_connection(target, patience, (source, 0) if source else None) as caller:
            caller.sendall(token)
            if ours and token not in caller.recv(2048):
                raise NoAnswer
            return str(caller.getsockname()[0])
    except TimeoutError as err:
        raise NoAnswer from err


def write(target: tuple[str, int], ours: bool, token: bytes, patience: float, source: str) -> str:
    with socket.socket(family_of(target[0]), socket.SOCK_DGRAM) as writer:
        if source:
            writer.bind((source, 0))
        writer.settimeout(patience)
        writer.connect(target)
        writer.send(token)
        try:
            while token not in writer.recv(2048) and ours:
                pass
        except TimeoutError as err:
            raise NoAnswer from err
        return str(writer.getsockname()[0])


@contextmanager
def echo_socket(address: str, source: str) -> Iterator[socket.socket]:
    family = family_of(address)
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    with socket.socket(family, socket.SOCK_RAW, protocol) as echo:
        with suppress(OSError):  # without the right to force it, what the kernel grants has to do
            echo.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        if source:
            echo.bind((source, 0))
        yield echo


def request(family: int, sequence: int, payload: bytes) -> bytes:
    """Return an ICMP echo request; for IPv6 the kernel fills in the checksum."""
    kind, identifier = ECHO_REQUEST[socket.AddressFamily(family)], os.getpid() & 0xFFFF
    total = checksum(struct.pack("!BBHHH", kind, 0, 0, identifier, sequence) + payload)
    return struct.pack("!BBHHH", kind, 0, total, identifier, sequence) + payload


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def replies(echo: socket.socket, patience: float) -> Iterator[bytes]:
    """Yield the ICMP echo replies that come within `patience` seconds, whomever they answer."""
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        echo.settimeout(left)
        try:
            packet = echo.recv(1 << 16)
        except TimeoutError:
            return
        if echo.family == socket.AF_INET:
            packet = packet[(packet[0] & 15) * 4 :]
        if packet and packet[0] == ECHO_REPLY[socket.AddressFamily(echo.family)]:
            yield packet


# Watching


def watch(token: bytes) -> None:
    """Say [flow, device, source, destination, carried] once for each kind of packet that carries the token."""
    seen = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
        with suppress(OSError):
            tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        tap.setblocking(False)
        say("ready")
        ended = False
        while not ended:
            ended, _ = input_ended(60, tap)
            # What was there before the input ended is seen all the same.
            for packet, device in packets(tap):
                for sighting in sightings(packet, token):
                    if (device, sighting) not in seen:
                        seen.add((device, sighting))
                        flow, *rest = sighting
                        say([flow, device, *rest])


def packets(tap: socket.socket) -> Iterator[tuple[bytes, str]]:
    while True:
        try:
            packet, where = tap.recvfrom(1 << 16)
        except OSError:  # nothing more for now, or a device that went down
            return
        yield packet, where[0]


def sightings(packet: bytes, token: bytes) -> Iterator[tuple[str, str, str, str]]:
    """Yield the flow, source and destination of a packet, read backwards from the token in its payload.

    So what is in front of the innermost IP header (tunnels, tags) does not matter; what of it is a tunnel comes last.
    """
    at = packet.find(token)
    if at < 0:
        return
    flow = packet[at + len(token) : at + len(token) + FLOW].decode(errors="replace")
    for transport, protocols in ((8, {1, 17, 58}), *((size, {6}) for size in range(20, 64, 4))):
        ipv4, ipv6 = at - transport - 20, at - transport - 40
        if ipv4 >= 0 and packet[ipv4] == 0x45 and packet[ipv4 + 9] in protocols:  # version, header's length
            source, destination = packet[ipv4 + 12 : ipv4 + 16], packet[ipv4 + 16 : ipv4 + 20]
            yield flow, socket.inet_ntoa(source), socket.inet_ntoa(destination), carried(packet[:ipv4])
            return
        if ipv6 >= 0 and packet[ipv6] >> 4 == 6 and packet[ipv6 + 6] in protocols:
            source, destination = packet[ipv6 + 8 : ipv6 + 24], packet[ipv6 + 24 : ipv6 + 40]
            inet6 = socket.AF_INET6
            ends = socket.inet_ntop(inet6, source), socket.inet_ntop(inet6, destination)
            yield flow, *ends, carried(packet[:ipv6])
            return


def carried(front: bytes) -> str:
    """Return what carries a packet that has this in front of its IP header: "native", "ipip", or "vxlan …"."""
    outer = front[-20:]
    if len(outer) == 20 and outer[0] == 0x45 and outer[9] == socket.IPPROTO_IPIP:
        return "ipip"
    # A VXLAN packet's last headers before the inner IP: IP, UDP (8), VXLAN (8), Ethernet (14).
    ip, udp, vxlan = front[:-30], front[-30:-22], front[-22:-14]
    over = len(ip) >= 20 and ip[-20] == 0x45 and ip[-11] == socket.IPPROTO_UDP
    over |= len(ip) >= 40 and ip[-40] >> 4 == 6 and ip[-34] == socket.IPPROTO_UDP
    if over and vxlan[0] == VNI_VALID:
        port, vni = struct.unpack("!H", udp[2:4])[0], int.from_bytes(vxlan[4:7])
        return f"vxlan {vni} at port {port}"
    return "native"


# Measuring

AT_ONCE = 32  # sizes tried in one go
SMALLEST = 128  # bytes; a path that does not carry these counts as carrying nothing


def measure(address: str, expected: int, token: bytes, source: str) -> None:
    """Say the largest packet, in bytes with its IP header, that is answered; None if none is."""
    with echo_socket(address, source) as echo:
        for level, option, value in PROBE[family_of(address)]:
            echo.setsockopt(level, option, value)
        say(largest(Sizes(echo, address, token).answered, expected))


class Sizes:
    """Tries packets of given sizes; one that is lost is sent twice more."""

    def __init__(self, echo: socket.socket, address: str, token: bytes) -> None:
        self.echo, self.address, self.token = echo, address, token
        self.sent: dict[int, int] = {}  # sequence number → size

    def answered(self, sizes: Iterable[int]) -> set[int]:
        left, found = set(sizes), set[int]()
        for _ in range(3):
            left = {size for size in left - found if self._send(size)}
            for reply in replies(self.echo, 2 * EVERY) if left else ():
                if self.token in reply:
                    found.add(self.sent[struct.unpack("!H", reply[6:8])[0]])
                if left <= found:
                    break
        return found

    def _send(self, size: int) -> bool:
        sequence = len(self.sent)
        self.sent[sequence] = size
        payload = self.token.ljust(size - HEADERS[family_of(self.address)], b".")
        try:
            self.echo.sendto(request(self.echo.family, sequence, payload), (self.address, 0))
        except OSError as err:
            if err.errno != errno.EMSGSIZE:
                raise
            return False
        return True


def largest(answered: Callable[[Iterable[int]], set[int]], expected: int) -> int | None:
    passed = answered((expected, expected + 1))
    if passed == {expected}:
        return expected
    if not passed and not answered([SMALLEST]):
        return None
    # Without an answer up to 64 KiB: it may have been the path that was not ready, not the size.
    low, high = expected + 1 if passed else SMALLEST, 1 << 16
    while high - low > 1:
        step = max(1, (high - low) // AT_ONCE)
        tried = range(low + step, high, step)
        low = max({low} | answered(tried))
        high = min({high} | {size for size in tried if size > low})
    return low


def main(arguments: list[str]) -> None:
    match arguments:
        case ["listen", kind, address, port]:
            listen(kind, address, int(port))
        case ["knock", kind, address, port, whose, token, patience, *source]:
            ours = whose == "ours"
            knock(kind, (address, int(port)), ours, token.encode(), float(patience), "".join(source))
        case ["watch", token]:
            watch(token.encode())
        case ["measure", address, size, token, *source]:
            measure(address, int(size), token.encode(), "".join(source))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as err:
        sys.exit(err.strerror or str(err))
