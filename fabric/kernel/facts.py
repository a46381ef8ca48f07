"""Touches what a host says about itself: its addresses, its daemons and their files, its clock, its sysctls.

Reads only. For the checks of a host and for the choice of a session's source address.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import Any

from fabric.kernel.netlink import IFF_LOWER_UP, IFF_UP, RTEXT_FILTER_SKIP_STATS, dump
from fabric.kernel.threads import in_thread

TCP_LISTEN = "0A"
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
COMM_LENGTH = 15  # what the kernel keeps of a process's name
# linux/ipv6_route.h: a default route, learned from a router advertisement by the kernel itself.
RTF_DEFAULT, RTF_ADDRCONF = 0x00010000, 0x00040000


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
class Listener:
    """A process that holds a TCP port; `pid` 0 and no name when it belongs to a process we cannot see."""

    pid: int
    name: str


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


async def listeners(port: int) -> list[Listener]:
    """Return who listens on the TCP port in this network namespace, v4 or v6; reads all of /proc."""
    return await in_thread(partial(_listeners, port))


def _listeners(port: int) -> list[Listener]:
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    holders = set(_holders(inodes)) if inodes else set()
    unseen = inodes - {inode for inode, _pid in holders}
    pids = sorted({pid for _inode, pid in holders})
    return [Listener(pid, _name(pid)) for pid in pids] + ([Listener(0, "")] if unseen else [])


def _listening(table: str, port: int) -> Iterator[str]:
    try:
        lines = Path("/proc/thread-self/net", table).read_text().splitlines()[1:]
    except FileNotFoundError:
        return  # a host without IPv6
    for fields in map(str.split, lines):
        if fields[3] == TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            yield fields[9]


def _holders(inodes: set[str]) -> Iterator[tuple[str, int]]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        for target in _open_files(folder):
            if target in wanted:
                yield wanted[target], int(folder.parent.name)


def _open_files(folder: Path) -> Iterator[str]:
    try:
        entries = list(folder.iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return  # it has just ended, or is not ours to look into
    for entry in entries:
        # Closed since it was listed: among our own files that is the listing itself.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            yield str(entry.readlink())


def _name(pid: int) -> str:
    try:
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


def tcp_counters(names: Collection[str]) -> dict[str, int]:
    """Return those of the kernel's extended TCP counters (TcpExt) that it has, of this network namespace."""
    try:
        lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    except OSError:
        return {}
    headings, values = [line.split()[1:] for line in lines if line.startswith("TcpExt:")]
    return {name: int(value) for name, value in zip(headings, values, strict=True) if name in names}
