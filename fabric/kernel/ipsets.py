"""Touches the kernel's ipsets: the `IPSets` behind `fabric.plan.ipsets`.

Packed by hand as rtnetlink is, some hundred members a message: pyroute2 takes 0.5 ms a member.

Layouts: linux/netfilter/ipset/ip_set.h, ip_set_hash.h.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv6Address
from itertools import islice
from typing import Final, cast

from fabric.errors import DataplaneError
from fabric.kernel.netlink import HEADER, NLM_F_CREATE, NLM_F_EXCL, Refusal, Request, attr, attributes, text
from fabric.kernel.nfnetlink import NFGENMSG, Nfnl, be16, be32, dump, nested, u8
from fabric.plan.ipsets import PREFIXES, Held, IPSet, Kind, Version, hashsize, room

SUBSYSTEM = 6 << 8  # NFNL_SUBSYS_IPSET
CREATE, DESTROY, SWAP, LIST, ADD, DELETE = (SUBSYSTEM | command for command in (2, 3, 6, 7, 9, 10))
PROTOCOL = 6  # the oldest that kernels still speak
SETNAME, TYPENAME, SETNAME2, REVISION, FAMILY, FLAGS, DATA, ADT, LINENO = 2, 3, 3, 4, 5, 6, 7, 8, 9
IP, CIDR, PORT, PORT_TO, PROTO, HASHSIZE, MAXELEM, IFACE, ELEMENTS = 1, 3, 4, 5, 7, 18, 19, 23, 24
LIST_HEADER = 4
NET_BYTEORDER = 0x4000  # the kernel insists on this flag with addresses, ports and sizes

# The revision of each type in kernels since 3.19.
REVISIONS: Final[Mapping[Kind, int]] = {
    "hash:net": 6,
    "hash:ip,port": 5,
    "hash:net,iface": 6,
    "bitmap:port": 3,
}
PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136}
_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}
# Bounds a message to 64 KiB, the longest attribute there is.
AT_ONCE = 500
# A name that is no hash: the set that is being made to take another's place.
_NEW: Final[Mapping[Version, str]] = {version: f"{prefix}~" for version, prefix in PREFIXES.items()}

# IPSET_ERR_*: what the kernel says beyond errno, as the errno that is nearest.
_ERRORS: Final[Mapping[int, tuple[int, str]]] = {
    4097: (errno.EPROTO, "the kernel does not know our ipset protocol"),
    4098: (errno.EPROTONOSUPPORT, "the kernel does not have this type of set"),
    4099: (errno.ENFILE, "there are as many sets as there can be"),
    4100: (errno.EBUSY, "a rule goes by it"),
    4102: (errno.EINVAL, "the two sets are of different types"),
    4104: (errno.EINVAL, "its prefix length is not possible here"),
    4106: (errno.EINVAL, "the set is of the other family"),
    4108: (errno.EBUSY, "a rule goes by it"),
    4109: (errno.EINVAL, "it is no IPv4 address"),
    4110: (errno.EINVAL, "it is no IPv6 address"),
    4352: (errno.ENOSPC, "the set is full"),
}


class NetlinkIPSets(Nfnl):
    """The ipsets of the network namespace in which it was made."""

    async def owned(self) -> dict[str, Held]:
        """Return our sets with their members; a set comes in as many messages as it needs."""
        reader = _Reader()
        async for found in dump(Request("ipset dump", LIST, 0, _head())):
            for payload in found:
                reader.take(payload)
        return reader.held()

    async def sizes(self) -> dict[str, int]:
        """Return how many members each of our sets has: their headers alone are read."""
        found = {}
        body = _head() + be32(FLAGS | NET_BYTEORDER, LIST_HEADER)
        async for payloads in dump(Request("ipset dump", LIST, 0, body)):
            for attrs in (dict(attributes(payload[NFGENMSG.size :])) for payload in payloads):
                name, sizes = _text(attrs[SETNAME]), dict(attributes(attrs.get(DATA, b"")))
                if name.startswith(tuple(PREFIXES.values())):
                    found[name] = int.from_bytes(sizes[ELEMENTS], "big")
        return found

    async def create(self, name: str, ipset: IPSet) -> None:
        """Make the set; one that cannot be filled is destroyed again."""
        self._do(_create(name, ipset), "nothing was changed and the next pass retries")
        try:
            await self._fill(name, ipset)
        except DataplaneError:
            self._do(_destroy(name), "it is there, incomplete, and the next pass retries")
            raise

    async def add(self, name: str, part: IPSet) -> None:
        await self._members(ADD, name, part, "it may be in the set in part, and the next pass retries")

    async def delete(self, name: str, part: IPSet) -> None:
        await self._members(DELETE, name, part, "it may be out of the set in part, and the next pass retries")

    async def rewrite(self, name: str, ipset: IPSet) -> None:
        """Fill a new set and swap it in; the old one then has the new one's name, and goes."""
        new = _NEW[ipset.version]
        await self.destroy(new)  # of an agent that died just here
        try:
            self._do(_create(new, ipset), "the set is as it was")
            await self._fill(new, ipset)
            body = _head(name) + text(SETNAME2, new)
            self._do(Request(f"replace ipset {name}", SWAP, 0, body), "the set is as it was")
        finally:
            await self.destroy(new)

    async def destroy(self, name: str) -> None:
        try:
            self._do(_destroy(name), "it is still there and the next pass retries")
        except DataplaneError as err:
            if err.code != errno.ENOENT:
                raise

    async def _fill(self, name: str, ipset: IPSet) -> None:
        await self._members(ADD, name, ipset, "the set was not put in place and the next pass retries")

    async def _members(self, command: int, name: str, part: IPSet, hint: str) -> None:
        verb = "to" if command == ADD else "from"
        members = iter(part.members)
        while some := tuple(islice(members, AT_ONCE)):
            data = b"".join(
                nested(DATA, _packed(part, member) + struct.pack("=HHI", 8, LINENO, number))
                for number, member in enumerate(some, 1)
            )
            body = _head(name) + attr(LINENO, bytes(4)) + nested(ADT, data)
            self._do(Request(f"{verb} ipset {name}", command, 0, body), hint, some)
            await asyncio.sleep(0)

    def _do(self, request: Request, hint: str, members: Sequence[str] = ()) -> None:
        for refused in self.attempt([request]):
            code, said = _ERRORS.get(refused.code, (refused.code, refused.said))
            if refused.code not in _ERRORS and refused.code >= 4096:
                code, said = errno.EINVAL, f"ipset error {refused.code}"
            what = f"member {_member(refused, members)} {request.what}" if members else request.what
            raise DataplaneError(what, code, "; ".join(filter(None, [said, hint])))


def _head(name: str = "") -> bytes:
    return NFGENMSG.pack(socket.AF_INET, 0, 0) + u8(1, PROTOCOL) + (text(SETNAME, name) if name else b"")


def _create(name: str, ipset: IPSet) -> Request:
    count = len(ipset.members)
    if ipset.kind == "bitmap:port":
        family = socket.AF_UNSPEC
        sizes = be16(PORT | NET_BYTEORDER, 0) + be16(PORT_TO | NET_BYTEORDER, 65535)
    else:
        family = socket.AF_INET if ipset.version == 4 else socket.AF_INET6
        sizes = be32(HASHSIZE | NET_BYTEORDER, hashsize(count))
        sizes += be32(MAXELEM | NET_BYTEORDER, room(count))
    body = _head(name) + text(TYPENAME, ipset.kind) + u8(REVISION, REVISIONS[ipset.kind])
    body += u8(FAMILY, family) + nested(DATA, sizes)
    return Request(f"ipset {name}", CREATE, NLM_F_CREATE | NLM_F_EXCL, body)


def _destroy(name: str) -> Request:
    return Request(f"remove ipset {name}", DESTROY, 0, _head(name))


def _packed(part: IPSet, member: str) -> bytes:
    if part.kind == "bitmap:port":
        return be16(PORT | NET_BYTEORDER, int(member))
    where, _, more = member.partition(",")
    address, _, length = where.partition("/")
    if part.version == 4:
        packed = nested(IP, attr(1 | NET_BYTEORDER, socket.inet_pton(socket.AF_INET, address)))
    else:
        packed = nested(IP, attr(2 | NET_BYTEORDER, socket.inet_pton(socket.AF_INET6, address)))
    if part.kind == "hash:ip,port":
        protocol, _, port = more.partition(":")
        return packed + be16(PORT | NET_BYTEORDER, int(port)) + u8(PROTO, PROTOCOLS[protocol])
    packed += u8(CIDR, int(length)) if length else b""
    return packed + text(IFACE, more) if more else packed


def _member(refused: Refusal, members: Sequence[str]) -> str:
    """Return the member that was refused: its number stands behind errno, the echoed header and ours."""
    echoed = dict(attributes(refused.answer[4 + HEADER.size + NFGENMSG.size :]))
    number = int.from_bytes(echoed.get(LINENO, b""), sys.byteorder)
    return members[number - 1] if number else f"{members[0]} and others"


class _Reader:
    """Puts sets together from the messages of a dump: the first of a set has its header, all have members."""

    def __init__(self) -> None:
        self._heads: dict[str, tuple[Kind, Version, int | None]] = {}
        self._members: dict[str, list[str]] = {}

    def take(self, payload: bytes) -> None:
        attrs = dict(attributes(payload[NFGENMSG.size :]))
        name = _text(attrs[SETNAME])
        version = next((version for version, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if version is None:
            return
        if TYPENAME in attrs:
            # One of a type that is not ours has no members here: it is to go in any case.
            kind = cast("Kind", _text(attrs[TYPENAME]))
            sizes = dict(attributes(attrs.get(DATA, b"")))
            limit = int.from_bytes(sizes[MAXELEM], "big") if MAXELEM in sizes else None
            if kind != "bitmap:port":  # which has no family
                version = 6 if attrs[FAMILY][0] == socket.AF_INET6 else 4
            self._heads[name] = (kind, version, limit)
            self._members[name] = []
        self._members[name] += _unpacked(self._heads[name][0], attrs.get(ADT, b""))

    def held(self) -> dict[str, Held]:
        return {
            name: Held(IPSet(kind, version, frozenset(self._members[name])), limit)
            for name, (kind, version, limit) in self._heads.items()
        }


def _unpacked(kind: Kind, data: bytes) -> Iterator[str]:
    for _kind, member in attributes(data):
        attrs = dict(attributes(member))
        match kind:
            case "bitmap:port":
                yield str(int.from_bytes(attrs[PORT], "big"))
            case "hash:ip,port":
                port = int.from_bytes(attrs[PORT], "big")
                protocol = attrs[PROTO][0]
                yield f"{_address(attrs[IP])},{_NAMES.get(protocol, protocol)}:{port}"
            case "hash:net" | "hash:net,iface":
                packed, length = attrs[IP], attrs[CIDR][0]
                # The address stands behind the header of its own attribute.
                prefix = _address(packed) + ("" if length == (len(packed) - 4) * 8 else f"/{length}")
                yield f"{prefix},{_text(attrs[IFACE])}" if IFACE in attrs else prefix


def _address(packed: bytes) -> str:
    if len(packed) == 8:
        return socket.inet_ntop(socket.AF_INET, packed[4:])
    shown = socket.inet_ntop(socket.AF_INET6, packed[4:])
    return str(IPv6Address(packed[4:])) if "." in shown else shown  # ::ffff:0:0/96 is written in two ways


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode()
