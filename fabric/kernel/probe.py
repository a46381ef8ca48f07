"""Touches a network namespace made for the purpose: tries there what a node needs of its kernel.

Nothing of the host changes: the namespace goes with the thread that made it. Only a tunnel that is asked for
is tried, since the kernel loads its module for that; whether there is one of IPIP the host's files tell as well.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from shutil import which
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fabric.errors import DataplaneError
from fabric.kernel.conntrack import NetlinkConntrack
from fabric.kernel.ipsets import REVISIONS, NetlinkIPSets
from fabric.kernel.tables import KernelTables
from fabric.kernel.tables_backend import choose
from fabric.kernel.threads import CLONE_NEWNET, in_thread
from fabric.plan.encap import Kind
from fabric.plan.ipsets import IPSet
from policy.marks import CUT

T = TypeVar("T")

IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
TCP_MD5SIG = 14  # linux/tcp.h
MODULES, LOADED = Path("/lib/modules"), Path("/sys/module")

_TRIALS: dict[str, Callable[[IPRoute], object]] = {
    "veth pairs (CONFIG_VETH)": lambda ip: ip.link("add", ifname="probe0", kind="veth", peer="probe1"),
    "permanent neighbour entries": lambda ip: ip.neigh(
        "replace",
        dst="192.0.2.1",
        lladdr="02:00:00:00:00:01",
        ifindex=ip.link_lookup(ifname="probe0")[0],
        state=0x80,
    ),
    "blackhole routes": lambda ip: ip.route("add", dst="192.0.2.0/24", type="blackhole"),
    "multipath routes (CONFIG_IP_ROUTE_MULTIPATH)": lambda ip: ip.route(
        "add", dst="198.51.100.0/24", multipath=[{"gateway": "127.0.0.2"}, {"gateway": "127.0.0.3"}]
    ),
}
_TUNNELS: dict[Kind, Callable[[IPRoute], object]] = {
    "ipip": lambda ip: ip.link("add", ifname="probe2", kind="ipip", ipip_remote="192.0.2.2"),
    "vxlan": lambda ip: ip.link("add", ifname="probe3", kind="vxlan", vxlan_id=4096, vxlan_port=4789),
}

_IPIP = re.compile(r"^(\S*/)?ipip\.ko\b|^alias rtnl-link-ipip ", re.MULTILINE)

# What the rules of policy, tunnels, NAT and published ports match by, and do; by table.
_RULES = {
    "filter": (
        "-m set --match-set fab4-hash-net src -m comment --comment x -j DROP",
        "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        f"-m connmark --mark {CUT:#x}/{CUT:#x} -j DROP",
        "-m mark --mark 0x0/0x10000 -j MARK --set-xmark 0x10000/0x10000",
        "-p tcp -m multiport --dports 80,443 -j RETURN",
        "-m limit --limit 10/second -j NFLOG --nflog-group 143",
    ),
    "mangle": ("-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",),
    "nat": (
        "-m addrtype --dst-type LOCAL -p tcp -j DNAT --to-destination 192.0.2.1:80",
        "-p tcp -j SNAT --to-source 192.0.2.1:1024-65535 --random-fully",
        "-p tcp -j MASQUERADE --to-ports 1024-65535 --random-fully",
    ),
}


async def missing_features() -> tuple[str, ...]:
    """Return what this kernel refuses of what every node needs, each with what the kernel said."""
    return await in_thread(lambda: tuple(_missing()))


async def missing_tunnels(wanted: AbstractSet[Kind]) -> dict[Kind, str]:
    """Return those of `wanted` that this kernel does not have, each with what the kernel said.

    Raises DataplaneError where it cannot be told: the kernel refused for another reason than that it has no such kind.
    """
    trials = {kind: trial for kind, trial in _TUNNELS.items() if kind in wanted}
    return await in_thread(partial(lacking, trials)) if wanted else {}


async def missing_unasked(modules: Path = MODULES, loaded: Path = LOADED) -> dict[Kind, str]:
    """Return IPIP if this kernel does not have it, and why; its module is not loaded, which makes a tunl0 everywhere.

    A host without the modules of its kernel, such as a container, cannot tell: it is tried there, as nothing loads.
    """
    tree = modules / os.uname().release
    if (loaded / "ipip").exists():
        return {}
    if not (tree / "modules.dep").exists():
        return await missing_tunnels({"ipip"})
    lists = [tree / name for name in ("modules.builtin", "modules.dep", "modules.alias")]
    text = "\n".join(one.read_text(errors="replace") for one in lists if one.exists())
    return {} if _IPIP.search(text) else {"ipip": f"not in {tree}"}


async def has_tcp_md5() -> bool:
    """Whether TCP sessions can be authenticated by a password (RFC 2385, CONFIG_TCP_MD5SIG)."""
    # struct tcp_md5sig: a sockaddr_storage, flags, prefix length, key length, interface, key.
    peer = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton("192.0.2.1"))
    key = struct.pack("=128sBBHi80s", peer, 0, 0, 1, 0, b"k")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, key)
        except OSError:
            return False
    return True


def _missing() -> Iterator[str]:
    if not os.access(IP_FORWARD, os.W_OK):
        yield f"forwarding: {IP_FORWARD} cannot be written (a container with /proc/sys read-only?)"
    if refused := _unshare():
        yield f"network namespaces: {refused}"
        return
    yield from (f"{what}: {os.strerror(code)}" for what, code in _refused(_TRIALS))
    if which("iptables-restore"):  # that it is not there is said by itself
        yield from asyncio.run(_missing_for_policy())


async def _missing_for_policy() -> list[str]:
    """Try in this thread's namespace what rules and sets of policy are made of."""
    found = []
    with NetlinkIPSets() as sets:
        for kind in REVISIONS:
            try:
                await sets.create(f"fab4-{kind.replace(':', '-')}", IPSet(kind, 4, frozenset()))
            except DataplaneError as err:
                found.append(f"ipsets of type {kind}: {os.strerror(err.code)}")
    try:
        tables = KernelTables((await choose("auto")).backend)
        for table, rule in [(t, rule) for t, rules in _RULES.items() for rule in rules] if not found else ():
            text = f"*{table}\n:fab-probe - [0:0]\n-A fab-probe {rule}\nCOMMIT\n"
            try:
                await tables.restore(4, text)
            except DataplaneError as err:
                said = f"rule `{rule}` in table {table}: {os.strerror(err.code)}"
                found.append(f"iptables ({tables.backend}), {said}")
    except DataplaneError as err:
        found.append(str(err))
    try:
        with NetlinkConntrack() as conntrack:
            await conntrack.flows(frozenset(), CUT)
    except DataplaneError as err:
        found.append(f"connection tracking by netlink (CONFIG_NF_CT_NETLINK): {os.strerror(err.code)}")
    return found


def lacking(trials: Mapping[Kind, Callable[[IPRoute], object]]) -> dict[Kind, str]:
    """Return what `missing_tunnels` does, with a trial for each kind; this thread is in a namespace of its own then."""
    if _unshare():
        return {}  # said by `missing_features`
    refused = dict(_refused(trials))
    for kind, code in refused.items():
        if code != errno.EOPNOTSUPP:
            raise DataplaneError(f"find out whether the kernel has {kind}", code, "not known yet; try again")
    return {kind: os.strerror(code) for kind, code in refused.items()}


def _unshare() -> str:
    """Give this thread a namespace of its own, or return what the kernel said."""
    libc = ctypes.CDLL(None, use_errno=True)
    return os.strerror(ctypes.get_errno()) if libc.unshare(CLONE_NEWNET) else ""


def _refused(trials: Mapping[T, Callable[[IPRoute], object]]) -> Iterator[tuple[T, int]]:
    """Return the trials that the kernel refuses, each with its errno."""
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        for what, trial in trials.items():
            try:
                trial(ip)
            except NetlinkError as err:
                yield what, err.code
