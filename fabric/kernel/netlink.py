"""Touches rtnetlink: what we write goes out as bytes in batches, what we read comes in through pyroute2, routes aside.

Writing is the hot path of an attach and of a full BGP table. pyroute2 needs 0.1 to 0.4 ms to encode a
request and 0.5 ms for a synchronous round trip; packed by hand it is 5 us, and one send carries a whole
batch. The kernel works inside send(2) and has queued every answer when that returns: a read never waits.
Routes are read by hand as well: of ten thousand, pyroute2 made a second.

Layouts: linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h. Integers are in host order.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import TracebackType
from typing import Any, Self, TypeAlias

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fabric.errors import DataplaneError

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network
AnyAddress: TypeAlias = Address | Prefix | IPv4Interface | IPv6Interface

SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSGERR_ATTR_MSG = 1
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_STATS64, IFLA_GROUP, IFLA_NET_NS_FD = 18, 20, 23, 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 2
NDA_DST, NDA_LLADDR, NDA_IFINDEX, NUD_PERMANENT = 1, 2, 8, 0x80
AF_BRIDGE, NTF_SELF = 7, 2  # a VXLAN's forwarding database
RTEXT_FILTER_SKIP_STATS = 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS, RTA_MULTIPATH, RTA_VIA = 1, 4, 5, 6, 8, 9, 18
RTAX_MTU = 2
RT_TABLE_MAIN, RTN_UNICAST, RTN_BLACKHOLE = 254, 1, 6
RTNH_F_ONLINK = 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
# family, lengths of destination and source, tos, table, protocol, scope, type, flags
RTMSG = struct.Struct("=BBBBBBBBI")
RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, weight less 1, index; its attributes follow
# An answer takes about 800 bytes of the receive buffer (208 KiB by default), and an overflow loses it.
BATCH = 100


@dataclass(frozen=True, slots=True)
class Request:
    """One change; `what` names it in the error, should the kernel refuse."""

    what: str
    kind: int
    flags: int
    body: bytes


def attr(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def family(value: AnyAddress) -> int:
    return socket.AF_INET if value.version == 4 else socket.AF_INET6


def veth_create(name: str, mac: str, peer: str, peer_mac: str, peer_netns: int, mtu: int) -> Request:
    """A veth pair, both ends down: `name` here, `peer` in the namespace open as file `peer_netns`.

    Made in place: moving an end afterwards would cost an RCU grace period (10 ms and more).
    """
    there = IFINFO.pack(0, 0, 0, 0, 0) + _end(peer, peer_mac, mtu) + u32(IFLA_NET_NS_FD, peer_netns)
    info = text(IFLA_INFO_KIND, "veth") + attr(IFLA_INFO_DATA, attr(VETH_INFO_PEER, there))
    body = IFINFO.pack(0, 0, 0, 0, 0) + _end(name, mac, mtu) + attr(IFLA_LINKINFO, info)
    return Request(f"veth {name} with peer {peer}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _end(name: str, mac: str, mtu: int) -> bytes:
    return text(IFLA_IFNAME, name) + attr(IFLA_ADDRESS, mac_bytes(mac)) + u32(IFLA_MTU, mtu)


def link_up(index: int, alias: str = "") -> Request:
    """Set the link up, and first its alias if one is given."""
    body = IFINFO.pack(0, 0, index, IFF_UP, IFF_UP) + (attr(IFLA_IFALIAS, alias.encode()) if alias else b"")
    return Request(f"link {index} up", RTM_NEWLINK, 0, body)


def link_mtu(index: int, mtu: int) -> Request:
    body = IFINFO.pack(0, 0, index, 0, 0) + u32(IFLA_MTU, mtu)
    return Request(f"MTU {mtu} of link {index}", RTM_NEWLINK, 0, body)


def link_alias(index: int, alias: str) -> Request:
    """Set the alias, or take it away where it is ""."""
    body = IFINFO.pack(0, 0, index, 0, 0) + attr(IFLA_IFALIAS, alias.encode())
    return Request(f"alias of link {index}", RTM_NEWLINK, 0, body)


def link_mac(index: int, mac: str) -> Request:
    """Set the MAC; the kernel then forgets the link's neighbours, permanent or not, even if unchanged."""
    body = IFINFO.pack(0, 0, index, 0, 0) + attr(IFLA_ADDRESS, mac_bytes(mac))
    return Request(f"MAC {mac} of link {index}", RTM_NEWLINK, 0, body)


def device_create(name: str, kind: str, data: bytes) -> Request:
    """A device of that kind, down; `data` are the attributes of the kind."""
    body = IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + _linkinfo(kind, data)
    return Request(f"{kind} device {name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def device_change(index: int, kind: str, data: bytes) -> Request:
    body = IFINFO.pack(0, 0, index, 0, 0) + _linkinfo(kind, data)
    return Request(f"{kind} device {index}", RTM_NEWLINK, 0, body)


def _linkinfo(kind: str, data: bytes) -> bytes:
    info = text(IFLA_INFO_KIND, kind) + (attr(IFLA_INFO_DATA, data) if data else b"")
    return attr(IFLA_LINKINFO, info)


def link_down(index: int) -> Request:
    return Request(f"link {index} down", RTM_NEWLINK, 0, IFINFO.pack(0, 0, index, 0, IFF_UP))


def link_delete(name: str) -> Request:
    return Request(
        f"remove link {name}", RTM_DELLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    )


def link_group(name: str, group: int) -> Request:
    body = IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + u32(IFLA_GROUP, group)
    return Request(f"group {group} of link {name}", RTM_NEWLINK, 0, body)


def group_delete(group: int) -> Request:
    """Remove every link of the group, waiting once for the grace period that each alone would wait for."""
    body = IFINFO.pack(0, 0, 0, 0, 0) + u32(IFLA_GROUP, group)
    return Request(f"remove the links of group {group}", RTM_DELLINK, 0, body)


def address_set(index: int, interface: IPv4Interface | IPv6Interface) -> Request:
    """Add the address without duplicate address detection, which would hold it back for a second."""
    return _address(index, interface, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)


def address_delete(index: int, interface: IPv4Interface | IPv6Interface) -> Request:
    return _address(index, interface, RTM_DELADDR, 0)


def _address(index: int, interface: IPv4Interface | IPv6Interface, kind: int, flags: int) -> Request:
    head = IFADDR.pack(family(interface), interface.network.prefixlen, IFA_F_NODAD, 0, index)
    packed = interface.ip.packed
    return Request(
        f"address {interface}", kind, flags, head + attr(IFA_LOCAL, packed) + attr(IFA_ADDRESS, packed)
    )


def neighbour_set(index: int, address: Address, mac: str) -> Request:
    lladdr = attr(NDA_LLADDR, mac_bytes(mac))
    return _neighbour(index, address, lladdr, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)


def neighbour_delete(index: int, address: Address) -> Request:
    return _neighbour(index, address, b"", RTM_DELNEIGH, 0)


def _neighbour(index: int, address: Address, lladdr: bytes, kind: int, flags: int) -> Request:
    head = NDMSG.pack(family(address), index, NUD_PERMANENT, 0, 0)
    return Request(f"neighbour {address}", kind, flags, head + attr(NDA_DST, address.packed) + lladdr)


def fdb_set(index: int, mac: str, there: Address) -> Request:
    """Have the VXLAN device `index` send what is for `mac` to `there`, and nowhere else."""
    return _fdb(index, mac, there, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)


def fdb_delete(index: int, mac: str, there: Address) -> Request:
    return _fdb(index, mac, there, RTM_DELNEIGH, 0)


def _fdb(index: int, mac: str, there: Address, kind: int, flags: int) -> Request:
    head = NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
    body = head + attr(NDA_DST, there.packed) + attr(NDA_LLADDR, mac_bytes(mac))
    return Request(f"forwarding entry {mac} at {there}", kind, flags, body)


@dataclass(frozen=True, slots=True)
class Hop:
    """One next hop in the kernel's terms; `index` 0 leaves the choice of the link to the kernel."""

    index: int = 0
    gateway: Address | None = None
    onlink: bool = False

    def attrs(self, prefix: Prefix) -> bytes:
        if self.gateway is None:
            return b""
        if self.gateway.version == prefix.version:
            return attr(RTA_GATEWAY, self.gateway.packed)
        return attr(RTA_VIA, struct.pack("=H", family(self.gateway)) + self.gateway.packed)  # struct rtvia

    def flags(self) -> int:
        return RTNH_F_ONLINK if self.onlink else 0

    def multipath(self, prefix: Prefix) -> bytes:
        attrs = self.attrs(prefix)
        return RTNEXTHOP.pack(RTNEXTHOP.size + len(attrs), self.flags(), 0, self.index) + attrs


def route_replace(
    what: str, prefix: Prefix, hops: Sequence[Hop], *, proto: int, metric: int, mtu: int = 0
) -> Request:
    """Install the route in the main table, displacing what has its prefix and metric; no hops: blackhole.

    `mtu` 0: packets may be as large as the link takes.
    """
    flags, attrs, direct = 0, b"", bool(hops) and not any(hop.gateway for hop in hops)
    if len(hops) == 1:
        flags = hops[0].flags()
        attrs = hops[0].attrs(prefix) + (u32(RTA_OIF, hops[0].index) if hops[0].index else b"")
    elif hops:
        attrs = attr(RTA_MULTIPATH, b"".join(hop.multipath(prefix) for hop in hops))
    if mtu:
        attrs += attr(RTA_METRICS, u32(RTAX_MTU, mtu))
    scope = RT_SCOPE_LINK if direct and prefix.version == 4 else RT_SCOPE_UNIVERSE
    kind = RTN_UNICAST if hops else RTN_BLACKHOLE
    body = _route(prefix, proto, scope, kind, flags, metric) + attrs
    return Request(what, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def route_delete(what: str, prefix: Prefix, *, proto: int, metric: int) -> Request:
    """Remove the main table's route with this prefix, metric and proto, whatever its type and next hops."""
    return Request(what, RTM_DELROUTE, 0, _route(prefix, proto, RT_SCOPE_NOWHERE, 0, 0, metric))


def _route(prefix: Prefix, proto: int, scope: int, kind: int, flags: int, metric: int) -> bytes:
    head = RTMSG.pack(family(prefix), prefix.prefixlen, 0, 0, RT_TABLE_MAIN, proto, scope, kind, flags)
    return head + attr(RTA_DST, prefix.network_address.packed) + u32(RTA_PRIORITY, metric)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the kernel refused; `said` is its own explanation, `answer` what came with it."""

    request: Request
    code: int
    said: str
    answer: bytes


class Netlink:
    """One netlink socket; it stays in the network namespace of the thread that made it."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def run(self, requests: Sequence[Request], hint: str = "") -> None:
        """Run `requests` in order, each whether or not the one before succeeded.

        Raises:
            DataplaneError: the first refusal, with the kernel's own explanation and `hint`.
        """
        if refused := self.attempt(requests):
            said = "; ".join(filter(None, [refused[0].said, hint]))
            raise DataplaneError(refused[0].request.what, refused[0].code, said)

    def attempt(self, requests: Sequence[Request]) -> list[Refusal]:
        """Run `requests` in order, each whether or not the one before succeeded; return those refused.

        Raises:
            DataplaneError: answers were lost (ENOBUFS), so that it is not known what was done.
        """
        starts = range(0, len(requests), BATCH)
        return [refused for start in starts for refused in self._batch(requests[start : start + BATCH])]

    def _batch(self, requests: Sequence[Request]) -> list[Refusal]:
        first = self._sequence
        self._socket.send(b"".join(self._number(request) for request in requests))
        refusals, waiting = [], len(requests)
        while waiting:
            for kind, flags, sequence, payload in messages(self._answers(requests[0])):
                # An answer to a batch that was cut short by an exception is not ours to count.
                if kind != NLMSG_ERROR or not first < sequence <= first + len(requests):
                    continue
                waiting -= 1
                if code := -struct.unpack_from("=i", payload)[0]:
                    request = requests[sequence - first - 1]
                    refusals.append(Refusal(request, code, _explanation(flags, payload), payload))
        return refusals

    def _answers(self, first: Request) -> bytes:
        try:
            return self._socket.recv(65536)
        except OSError as err:
            # Until the queue is empty the kernel drops what follows, unsaid: the next batch would wait for ever.
            with suppress(BlockingIOError):
                while True:
                    self._socket.recv(65536, socket.MSG_DONTWAIT)
            hint = "answers were lost, so it may be done, and others with it; the next pass reads back"
            raise DataplaneError(first.what, err.errno or errno.EIO, hint) from err

    def _number(self, request: Request) -> bytes:
        self._sequence += 1
        flags = NLM_F_REQUEST | NLM_F_ACK | request.flags
        length = HEADER.size + len(request.body)
        return HEADER.pack(length, request.kind, flags, self._sequence, 0) + request.body


@dataclass(frozen=True, slots=True)
class Pair:
    """One end of a veth pair; `peer` is the index of the other one, wherever that is."""

    index: int
    peer: int
    name: str
    mac: str
    mtu: int

    def is_with(self, other: Pair) -> bool:
        """Whether their indices fit, as those of the ends of one pair do."""
        return (self.index, self.peer) == (other.peer, other.index)


@dataclass(frozen=True, slots=True)
class Device:
    """A link as the kernel tells of it: attributes by their number, `data` those of its kind."""

    index: int
    up: bool
    kind: str
    attrs: Mapping[int, bytes]
    data: Mapping[int, bytes]

    @property
    def mac(self) -> str:
        return self.attrs.get(IFLA_ADDRESS, b"").hex(":")

    def text(self, kind: int) -> str:
        return self.attrs.get(kind, b"").rstrip(b"\0").decode()

    def number(self, kind: int) -> int:
        return int(struct.unpack("=I", self.attrs.get(kind, bytes(4)))[0])


class Rtnl(Netlink):
    """One rtnetlink socket."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)

    def link(self, asked: str | int) -> Pair | None:
        """Return the link of that name or index as an end of a pair, or None if there is none."""
        found = self.device(asked)
        if found is None:
            return None
        peer, mtu = found.number(IFLA_LINK), found.number(IFLA_MTU)
        return Pair(found.index, peer, found.text(IFLA_IFNAME), found.mac, mtu)

    def device(self, asked: str | int) -> Device | None:
        """Return the link of that name or index, or None if there is none."""
        index = asked if isinstance(asked, int) else 0
        body = IFINFO.pack(0, 0, index, 0, 0) + (text(IFLA_IFNAME, asked) if isinstance(asked, str) else b"")
        self._socket.send(self._number(Request(str(asked), RTM_GETLINK, 0, body)))
        found = None
        while True:
            for kind, _flags, sequence, payload in messages(self._socket.recv(65536)):
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_ERROR:
                    return found
                found = _device(payload)

    def dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """Return the payloads of what the kernel has of that kind; by `body` it chooses. It waits for the whole."""
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.send(self._number(Request(what, kind, NLM_F_DUMP, body)))
        found: list[bytes] = []
        while True:
            for message, _flags, sequence, payload in messages(self._socket.recv(65536)):
                if sequence != self._sequence:
                    continue
                if message in (NLMSG_DONE, NLMSG_ERROR):
                    if code := -struct.unpack_from("=i", payload)[0]:
                        raise DataplaneError(f"{what} dump", code, "nothing was changed")
                    return found
                found.append(payload)


def _device(payload: bytes) -> Device:
    attrs = dict(attributes(payload[IFINFO.size :]))
    info = dict(attributes(attrs.get(IFLA_LINKINFO, b"")))
    _family, _type, index, flags, _change = IFINFO.unpack_from(payload)
    kind, data = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(), info.get(IFLA_INFO_DATA, b"")
    return Device(index, bool(flags & IFF_UP), kind, attrs, dict(attributes(data)))


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, sequence and payload of each message in one datagram."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, _port = HEADER.unpack_from(data, at)
        yield kind, flags, sequence, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _explanation(flags: int, payload: bytes) -> str:
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # errno, then the header of the request, then (unless capped) the rest of it, then the attributes.
    echoed = HEADER.size if flags & NLM_F_CAPPED else HEADER.unpack_from(payload, 4)[0]
    return dict(attributes(payload[4 + echoed :])).get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode()


async def dump_routes(family: int, *, proto: int = 0, kind: int = 0) -> list[bytes]:
    """Return the payloads of the main table's routes of one family: an RTMSG and attributes each.

    The kernel itself picks those of `proto` and of type `kind`, 0 for any. A socket of its own, so that the event
    loop may turn between its answers. What is said of `dump` holds here too.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        body = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, proto, 0, kind, 0)
        sock.send(HEADER.pack(HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        found: list[bytes] = []
        while True:
            for message, _flags, _sequence, payload in messages(sock.recv(65536)):
                if message in (NLMSG_DONE, NLMSG_ERROR):
                    code = -struct.unpack_from("=i", payload)[0]
                    if code not in (0, errno.ENOENT):  # a namespace makes its main table with its first route
                        raise DataplaneError("route dump", code, "nothing was changed")
                    return found
                # Without the family asked for (IPv6 is off) the kernel answers with the others.
                if payload[0] == family:
                    found.append(payload)
            await asyncio.sleep(0)


async def dump(what: str, **query: Any) -> list[Any]:
    """Return pyroute2's messages for one dump; `what` is "link", "addr" or "neigh".

    A socket each time: after an overflow pyroute2's are of no use any more. What changes during the dump
    may be missing or doubled, which is harmless: every operation planned from it may be repeated.
    """
    try:
        async with AsyncIPRoute(strict_check=True) as ipr:
            return [message async for message in await getattr(ipr, what)("dump", **query)]
    except NetlinkError as err:
        raise DataplaneError(f"{what} dump", err.code, "nothing was changed") from err
