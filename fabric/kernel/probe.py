"""Touches a network namespace made for the purpose: tries there what a node needs of its kernel.

Nothing of the host changes: the namespace goes with the thread that made it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fabric.kernel.threads import CLONE_NEWNET, in_thread

IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"

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


async def missing_features() -> list[str]:
    """Return what this kernel refuses of what a node needs, each with what the kernel said."""
    return await in_thread(lambda: list(_missing()))


def _missing() -> Iterator[str]:
    if not os.access(IP_FORWARD, os.W_OK):
        yield f"forwarding: {IP_FORWARD} cannot be written (a container with /proc/sys read-only?)"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        yield f"network namespaces: {os.strerror(ctypes.get_errno())}"
        return
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        for what, trial in _TRIALS.items():
            try:
                trial(ip)
            except NetlinkError as err:
                yield f"{what}: {os.strerror(err.code)}"
