"""A BGP speaker that only sends: one TCP connection, one OPEN, then UPDATEs of its caller's choosing, byte by byte.

For tests that need paths no router would make. It connects; the router waits. It never sends a KEEPALIVE after the
first one, so its session stands for the hold time that it asks for.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from bgp.rib import AS_SET, Origin, Path, Prefix

OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4
ORIGIN, AS_PATH, NEXT_HOP, MED, LOCAL_PREF, ORIGINATOR_ID, CLUSTER_LIST = 1, 2, 3, 4, 5, 9, 10
OPTIONAL, TRANSITIVE = 0x80, 0x40
IPV4_UNICAST, FOUR_OCTET_AS = 1, 65
HOLD_TIME = 240


def message(kind: int, body: bytes = b"") -> bytes:
    """RFC 4271 §4.1."""
    return b"\xff" * 16 + struct.pack("!HB", 19 + len(body), kind) + body


def open_message(asn: int, identifier: IPv4Address) -> bytes:
    """RFC 4271 §4.2, with IPv4 unicast (RFC 4760 §8) and four-octet AS numbers (RFC 6793 §3)."""
    capabilities = struct.pack("!BBHBB", 1, 4, 1, 0, 1) + struct.pack("!BBI", FOUR_OCTET_AS, 4, asn)
    options = struct.pack("!BB", 2, len(capabilities)) + capabilities
    short = min(asn, 23456)
    fixed = struct.pack("!BHH", 4, asn if asn < 65536 else short, HOLD_TIME) + identifier.packed
    return message(OPEN, fixed + bytes([len(options)]) + options)


def update(path: Path) -> bytes:
    """RFC 4271 §4.3: one path; an attribute that it has not is left out."""
    attributes = _attribute(TRANSITIVE, ORIGIN, bytes([list(Origin).index(path.origin)]))
    attributes += _attribute(TRANSITIVE, AS_PATH, _segments(path))
    attributes += _attribute(TRANSITIVE, NEXT_HOP, path.next_hop.packed)
    if path.med is not None:
        attributes += _attribute(OPTIONAL, MED, struct.pack("!I", path.med))
    if path.local_pref is not None:
        attributes += _attribute(TRANSITIVE, LOCAL_PREF, struct.pack("!I", path.local_pref))
    if path.originator_id:
        attributes += _attribute(OPTIONAL, ORIGINATOR_ID, path.originator_id.packed)
    if path.cluster_list:
        attributes += _attribute(OPTIONAL, CLUSTER_LIST, b"".join(id_.packed for id_ in path.cluster_list))
    return message(UPDATE, struct.pack("!HH", 0, len(attributes)) + attributes + _nlri(path.prefix))


def _attribute(flags: int, kind: int, value: bytes) -> bytes:
    return struct.pack("!BBB", flags, kind, len(value)) + value


def _segments(path: Path) -> bytes:
    """The flat path in segments; its AS_SET, if any, is its last element."""
    sequence = [asn for asn in path.as_path if asn != AS_SET]
    found = struct.pack(f"!BB{len(sequence)}I", 2, len(sequence), *sequence) if sequence else b""
    if path.as_sets:
        found += struct.pack(f"!BB{len(path.as_sets)}I", 1, len(path.as_sets), *sorted(path.as_sets))
    return found


def _nlri(prefix: Prefix) -> bytes:
    octets = (prefix.prefixlen + 7) // 8
    return bytes([prefix.prefixlen]) + prefix.network_address.packed[:octets]


@dataclass
class Sender:
    """One established session; leave it to close it."""

    connection: socket.socket

    @classmethod
    def connect(cls, source: str, router: tuple[str, int], asn: int, identifier: IPv4Address) -> Self:
        sender = cls(socket.create_connection(router, timeout=10, source_address=(source, 0)))
        sender.connection.sendall(open_message(asn, identifier) + message(KEEPALIVE))
        while (kind := sender._receive()[0]) != KEEPALIVE:
            assert kind == OPEN, kind
        return sender

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def send(self, paths: Iterable[Path]) -> None:
        self.connection.sendall(b"".join(map(update, paths)))

    def _receive(self) -> tuple[int, bytes]:
        length, kind = struct.unpack("!HB", self._exactly(19)[16:])
        body = self._exactly(length - 19)
        assert kind != NOTIFICATION, f"the router said {body[0]}/{body[1]}"
        return kind, body

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.connection.recv(count - len(data))
            assert more, "the router closed the connection"
            data += more
        return data
