"""Touches what a host says about itself: its addresses, its daemons and their files, its clock, its sysctls.

Reads only. For the checks of a host and for the choice of a session's source address.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from typing import Any

from fabric.kernel.netlink import (
    IFF_LOWER_UP,
    IFF_UP,
    RTA_OIF,
    RTEXT_FILTER_SKIP_STATS,
    RTMSG,
    attributes,
    dump,
    dump_routes,
)
from fabric.kernel.threads import in_thread

TCP_LISTEN, UDP_OPEN = "0A", "07"
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
COMM_LENGTH = 15  # what the kernel keeps of a process's name
# linux/ipv6_route.h: a default route, learned from a router advertisement by the kernel itself.
RTF_DEFAULT, RTF_ADDRCONF = 0x00010000, 0x00040000
RTPROT_KERNEL, RTPROT_RA, RTA_CACHEINFO = 2, 9, 12
ACCEPT_RA = "net/ipv6/conf/{}/accept_ra"  # with slashes: the name of a VLAN's link has a dot


@dataclass(frozen=True, slots=True)
class HostAddress:
    """One address of one link; `kind` is the link's ("veth", "vlan", ...), empty for a plain device.

    `carrier` False: nothing can pass, be it that the link is down, or that its cable is out.
    """

    link: str
    address: IPv4Interface | IPv6Interface
    up: bool
    kind: str
    mtu: int
    carrier: bool = True

    @property
    def own_on_lo(self) -> bool:
        """It is a single address on lo that others may reach, as where a host has several uplinks."""
        ip, network = self.address.ip, self.address.network
        single = network.prefixlen == network.max_prefixlen
        return self.link == "lo" and single and not (ip.is_loopback or ip.is_link_local)


@dataclass(frozen=True, slots=True)
class Vxlan:
    """One VXLAN device: `version` is the family of what carries it, 0 where it takes both.

    `shares` False: its socket is one that no other device can use, so that the whole port is its own.
    """

    name: str
    vni: int
    port: int
    version: int
    shares: bool


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that holds a port; `pid` 0 and no name when it belongs to a process we cannot see."""

    pid: int
    name: str

    def __str__(self) -> str:
        unseen = "a process that cannot be seen from here, or the kernel for a tunnel"
        return f"{self.name} (pid {self.pid})" if self.pid else unseen


@dataclass(frozen=True, slots=True)
class Clock:
    """`error` is the largest error the kernel admits, in microseconds."""

    synchronised: bool
    error: int


async def addresses() -> list[HostAddress]:
    """Return every address of this network namespace, in the kernel's order."""
    return (await links_and_addresses())[1]


async def links_and_addresses() -> tuple[dict[str, bool], list[HostAddress]]:
    """Return all links of this network namespace by name, and every address, in the kernel's order.

    Of each link whether it is a port of a bridge: IP packets come in by the bridge then, and not by it.
    """
    links = {link["index"]: link for link in await dump("link", ext_mask=RTEXT_FILTER_SKIP_STATS)}
    found = []
    for message in await dump("addr"):
        link = links.get(message["index"])
        if link is None:
            continue  # it came between the two reads
        # On a point-to-point link IFA_ADDRESS is the other end.
        address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
        value = ip_interface((address, message["prefixlen"]))
        name, up, carrier = link.get_attr("IFLA_IFNAME"), link["flags"] & IFF_UP, link["flags"] & IFF_LOWER_UP
        found.append(HostAddress(name, value, bool(up), kind, link.get_attr("IFLA_MTU"), bool(carrier)))
    return {link.get_attr("IFLA_IFNAME"): _is_port(link) for link in links.values()}, found


def _is_port(link: Any) -> bool:
    return bool(link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_KIND") == "bridge")


async def vxlans() -> list[Vxlan]:
    """Return the VXLAN devices of this network namespace."""
    return [
        _vxlan(link.get_attr("IFLA_IFNAME"), link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA"))
        for link in await dump("link", ext_mask=RTEXT_FILTER_SKIP_STATS)
        if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "vxlan"
    ]


def _vxlan(name: str, data: Any) -> Vxlan:
    external = bool(data.get_attr("IFLA_VXLAN_COLLECT_METADATA"))
    v6 = any(data.get_attr(f"IFLA_VXLAN_{end}6") for end in ("LOCAL", "GROUP"))
    # What makes a socket of another kind: drivers/net/vxlan, VXLAN_F_RCV_FLAGS. Of some the presence alone counts.
    valued = ("UDP_ZERO_CSUM6_RX", "REMCSUM_RX")
    alone = ("GBP", "GPE", "REMCSUM_NOPARTIAL")
    strange = any(data.get_attr(f"IFLA_VXLAN_{flag}") for flag in valued) or any(
        data.get_attr(f"IFLA_VXLAN_{flag}") is not None for flag in alone
    )
    return Vxlan(
        name,
        data.get_attr("IFLA_VXLAN_ID"),
        data.get_attr("IFLA_VXLAN_PORT"),
        0 if external else 6 if v6 else 4,
        not (external or strange),
    )


async def listeners(
    port: int, protocol: str = "tcp", address: IPv4Address | IPv6Address | None = None
) -> list[Listener]:
    """Return who holds the port of "tcp" or "udp" in this network namespace, v4 or v6; reads all of /proc.

    Of another protocol nobody is seen.
    Of UDP also the kernel itself, for a tunnel: nobody that we can see. With `address`, who would take what comes to
    that one; a socket of any IPv6 address is taken for one of any at all.
    """
    if protocol not in ("tcp", "udp"):
        return []
    return await in_thread(partial(_listeners, port, protocol, address))


def _listeners(port: int, protocol: str, address: IPv4Address | IPv6Address | None) -> list[Listener]:
    inodes = {
        inode
        for table in (protocol, f"{protocol}6")
        for inode, held in _listening(table, port)
        if address is None or _takes(held, address)
    }
    holders = set(_holders(inodes)) if inodes else set()
    unseen = inodes - {inode for inode, _pid in holders}
    pids = sorted({pid for _inode, pid in holders})
    return [Listener(pid, _name(pid)) for pid in pids] + ([Listener(0, "")] if unseen else [])


def _takes(held: IPv4Address | IPv6Address, address: IPv4Address | IPv6Address) -> bool:
    if isinstance(held, IPv6Address):
        held = held.ipv4_mapped or held
    return held == address or (held.is_unspecified and held.version >= address.version)


def _listening(table: str, port: int) -> Iterator[tuple[str, IPv4Address | IPv6Address]]:
    try:
        lines = Path("/proc/thread-self/net", table).read_text().splitlines()[1:]
    except FileNotFoundError:
        return  # a host without IPv6
    for fields in map(str.split, lines):
        state = TCP_LISTEN if table.startswith("tcp") else UDP_OPEN
        held, _, number = fields[1].rpartition(":")
        if fields[3] == state and int(number, 16) == port:
            # Words of four octets, each in this machine's order.
            words = [bytes.fromhex(held[at : at + 8]) for at in range(0, len(held), 8)]
            yield fields[9], ip_address(b"".join(w[::-1] if sys.byteorder == "little" else w for w in words))


def _holders(inodes: set[str]) -> Iterator[tuple[str, int]]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        for target in _open_files(folder):
            if target in wanted:
                yield wanted[target], int(folder.parent.name)


def _open_files(folder: Path) -> Iterator[str]:
    try:
        entries = os.listdir(folder)  # noqa: PTH208  a host has 100,000 open files, and a Path of each takes seconds
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return  # it has just ended, or is not ours to look into
    for entry in entries:
        # Closed since it was listed: among our own files that is the listing itself.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            yield os.readlink(f"{folder}/{entry}")  # noqa: PTH115


def _name(pid: int) -> str:
    try:
        if b"/exabgp_main.py\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return "fabricctl's own speaker"
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def clock() -> Clock:
    """Return what adjtimex(2) says; it changes nothing and needs no privilege."""
    # struct timex begins with modes (an int, padded), offset, freq and maxerror, each a long.
    timex = (ctypes.c_long * 32)()
    state = ctypes.CDLL(None).adjtimex(timex)
    return Clock(state not in (-1, TIME_ERROR), timex[3])


def sysctls(names: Iterable[str]) -> dict[str, str]:
    """Return the sysctls that exist here, each by its name with slashes: "net/ipv4/ip_forward".

    Slashes, as sysctl(8) takes them too, since the name of a VLAN's link has a dot.
    """
    found = {}
    for name in names:
        with suppress(OSError):  # not in this namespace, or without its module
            found[name] = Path("/proc/sys", name).read_text().strip()
    return found


def running(names: Collection[str]) -> frozenset[str]:
    """Return those of `names` that a process we can see has."""
    there = {_name(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    return frozenset(name for name in names if name[:COMM_LENGTH] in there)


def files(patterns: Iterable[str], root: Path = Path("/")) -> dict[str, str]:
    """Return the text of the files that match, by their absolute path below `root`; unreadable ones are left out."""
    found = {}
    for pattern in patterns:
        for path in sorted(root.glob(pattern.lstrip("/"))):
            with suppress(OSError):
                found[f"/{path.relative_to(root)}"] = path.read_text(encoding="utf-8", errors="replace")
    return found


def advertised_defaults() -> frozenset[str]:
    """Return the links on which the kernel has an IPv6 default route from a router advertisement."""
    try:
        lines = Path("/proc/thread-self/net/ipv6_route").read_text().splitlines()
    except FileNotFoundError:
        return frozenset()
    wanted = RTF_DEFAULT | RTF_ADDRCONF
    return frozenset(fields[9] for fields in map(str.split, lines) if int(fields[8], 16) & wanted == wanted)


async def heeding(known: Iterable[str] = ()) -> frozenset[str]:
    """Return the links that have routes from router advertisements, which the kernel heeds there itself.

    Those of the links `known` to have had some are among them, as after a reboot none may have come yet. What an
    advertisement says to be on the link comes as a route of the kernel's own, which expires.
    """
    told = [_attributes(route) for route in await dump_routes(socket.AF_INET6, proto=RTPROT_RA)]
    kernel = [_attributes(route) for route in await dump_routes(socket.AF_INET6, proto=RTPROT_KERNEL)]
    expiring = [attrs for attrs in kernel if any(attrs.get(RTA_CACHEINFO, b"")[8:12])]  # rta_expires
    names = dict(socket.if_nameindex())
    found = {names.get(_number(attrs.get(RTA_OIF, b"")), "") for attrs in told + expiring} | set(known)
    # Where it is 0, a daemon heeds them, NetworkManager for one, whom forwarding does not hinder.
    accepted = sysctls(ACCEPT_RA.format(link) for link in found)
    return frozenset(link for link in found if accepted.get(ACCEPT_RA.format(link), "0") != "0")


def _attributes(route: bytes) -> dict[int, bytes]:
    return dict(attributes(route[RTMSG.size :]))


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def tcp_counters(names: Collection[str]) -> dict[str, int]:
    """Return those of the kernel's extended TCP counters (TcpExt) that it has, of this network namespace."""
    try:
        lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    except OSError:
        return {}
    headings, values = [line.split()[1:] for line in lines if line.startswith("TcpExt:")]
    return {name: int(value) for name, value in zip(headings, values, strict=True) if name in names}
