"""Touches veth pairs, their addresses, neighbours and sysctls: the `Links` behind `fabric.plan.links`.

A pair is made from inside the container's namespace with its other end on the host, and configured there,
then here; the host end goes up last of all, so that one which is down was left half-made. One thread does it
all in two batches of netlink requests; `fabric.kernel.netlink` says why by hand.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections.abc import Collection
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from fabric.errors import DataplaneError
from fabric.kernel import netlink
from fabric.kernel.netlink import NUD_PERMANENT, Hop, Pair, Request, Rtnl, dump
from fabric.kernel.threads import enter, home_and_target, in_thread
from fabric.plan.links import GATEWAY4, HOST_LINK_LOCAL, HOST_MAC, HostLink, Neighbour, Veth, is_ours

RTPROT_STATIC = 4
LOOPBACK = 1  # the first link of every network namespace
DEFAULTS: dict[int, netlink.Prefix] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
GATEWAYS: dict[int, netlink.Address] = {4: GATEWAY4, 6: HOST_LINK_LOCAL}
CONF = Path("/proc/sys/net")  # follows the namespace of the thread that opens a file in it
IPV4_SYSCTLS = {"proxy_arp": 1, "forwarding": 1}
LOCALNET = "route_localnet"  # 0 in every new namespace, so a new link has it only where it is wanted
IPV6_SYSCTLS = {"proxy_ndp": 1, "forwarding": 1, "accept_ra": 0, "accept_dad": 0, "disable_ipv6": 0}
# Without an IPv6 address the link has no IPv6 at all: a container must not be heeded as a router (accept_ra
# is 1 by default), and a link that forwards IPv6 takes the kernel 17 ms longer to remove.
NO_IPV6 = {"disable_ipv6": 1}


class NetlinkLinks:
    """The workload links of the network namespace of the calling thread."""

    def __init__(self) -> None:
        # The kernel makes links one at a time anyway (the RTNL lock); 50 threads at once, which also contend
        # for the interpreter's lock, took 1.2 to 3.4 times as long as one after the other.
        self._turn = asyncio.Lock()

    async def owned_links(self) -> list[HostLink]:
        neighbours: dict[int, set[Neighbour]] = {}
        for entry in await dump("neigh", state=NUD_PERMANENT):
            pair = (ip_address(entry.get_attr("NDA_DST")), entry.get_attr("NDA_LLADDR"))
            neighbours.setdefault(entry["ifindex"], set()).add(pair)
        found = await dump("link", kind="veth", ext_mask=netlink.RTEXT_FILTER_SKIP_STATS)
        ours = [message for message in found if is_ours(message.get_attr("IFLA_IFNAME"))]
        return [_host_link(message, frozenset(neighbours.get(message["index"], ()))) for message in ours]

    async def create(self, veth: Veth) -> None:
        async with self._turn:
            await in_thread(partial(_create, veth))

    async def remove(self, names: Collection[str]) -> None:
        # In a thread: the kernel waits for an RCU grace period (10 ms and more) inside the request.
        async with self._turn:
            await in_thread(partial(_remove, names))


def _host_link(message: Any, neighbours: frozenset[Neighbour]) -> HostLink:
    return HostLink(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        up=bool(message["flags"] & netlink.IFF_UP),
        mac=message.get_attr("IFLA_ADDRESS"),
        neighbours=neighbours,
        sysctls=_sysctls_hold(message.get_attr("IFLA_AF_SPEC")),
        mtu=message.get_attr("IFLA_MTU"),
        alias=message.get_attr("IFLA_IFALIAS") or "",
        localnet=bool(message.get_attr("IFLA_AF_SPEC").get_attr("AF_INET")[LOCALNET]),
    )


def _sysctls_hold(spec: Any) -> bool:
    """Whether they are as `_settle_host` sets them; the dump carries them, which spares seven files a link."""
    ipv4, inet6 = spec.get_attr("AF_INET"), spec.get_attr("AF_INET6")
    # A host without IPv6 has nothing to hold there.
    ipv6 = inet6 and inet6.get_attr("IFLA_INET6_CONF")
    return _holds(ipv4, IPV4_SYSCTLS) and (not ipv6 or _holds(ipv6, NO_IPV6) or _holds(ipv6, IPV6_SYSCTLS))


def _holds(conf: Any, values: dict[str, int]) -> bool:
    return all(conf[key] == value for key, value in values.items())


def _remove(names: Collection[str]) -> None:
    """Remove them as a group: the kernel then waits once for all (100 links: 0.07 s; one by one 1.9 s).

    The group's number is drawn each time, so that a link which was left in one by a crash is in nobody's.
    """
    group = secrets.randbelow(1 << 31) + 1
    hint = f"of {', '.join(sorted(names))}, what is still there the next pass removes"
    with Rtnl() as rtnl:
        for requests in [netlink.link_group(name, group) for name in names], [netlink.group_delete(group)]:
            try:
                rtnl.run(requests, hint)
            except DataplaneError as err:
                if err.code != errno.ENODEV:
                    raise


def _create(veth: Veth) -> None:
    with home_and_target(veth.netns) as (home, target), Rtnl() as host:
        _enter(target, veth)
        with Rtnl() as container:
            found = _make(veth, home, host, container)
            made = found is None
            try:
                if found:
                    _resize(veth, found, host, container)
                _settle_container(veth, container, fresh=made)
                enter(home)
                _settle_host(veth, host, fresh=made)
            except (DataplaneError, OSError) as err:
                state = "the link was removed again" if made else "the link stands as it was found"
                if made:
                    host.run([netlink.link_delete(veth.name)])
                raise _failure(veth, err, state) from err


def _failure(veth: Veth, err: DataplaneError | OSError, state: str) -> DataplaneError:
    if isinstance(err, DataplaneError):
        what, code, said = err.what, err.code, err.hint
    else:
        what, code, said = str(err.filename or "namespace"), err.errno or errno.EIO, ""
    where = f"link {veth.name} of {veth.netns}"
    return DataplaneError(f"{where}: {what}", code, "; ".join(filter(None, [said, state])))


def _enter(target: int, veth: Veth) -> None:
    try:
        enter(target)
    except OSError as err:
        hint = "it may not be entered; nothing was changed"
        raise DataplaneError(f"enter {veth.netns}", err.errno or errno.EIO, hint) from err


def _make(veth: Veth, home: int, host: Rtnl, container: Rtnl) -> tuple[Pair, Pair] | None:
    """Make the pair, or return its ends, the container's first, when it is there already.

    Asked only after a refusal, so that the usual case costs one request.
    """
    request = netlink.veth_create(veth.interface, veth.mac, veth.name, HOST_MAC, home, veth.mtu)
    try:
        container.run([request], "nothing was changed")
        return None
    except DataplaneError as err:
        if err.code != errno.EEXIST:
            raise
    inside, outside = container.link(veth.interface), host.link(veth.name)
    if inside and outside and inside.is_with(outside):
        return inside, outside
    if inside:
        what = f"link {veth.name}: interface {veth.interface} in {veth.netns}"
        raise DataplaneError(what, errno.EEXIST, f"{_instead(veth, inside, host)}; nothing was changed")
    # The name's last life is still in some other namespace: a container that is going away.
    host.run([netlink.link_delete(veth.name)])
    container.run([request], "nothing was changed")
    return None


def _instead(veth: Veth, inside: Pair, host: Rtnl) -> str:
    """Return what the interface is that the container has already."""
    if inside.mac != veth.mac:
        return "the container has one of that name already, which is not this workload's"
    other = host.link(inside.peer)
    if not other or not other.is_with(inside):
        return "it is ours, and its other end is not on this host any more; delete it, and it is made anew"
    back = f"`ip link set {other.name} down`, then `ip link set {other.name} name {veth.name}`, gives it back"
    return f"it is ours, and its other end was renamed to {other.name}; {back}"


def _resize(veth: Veth, ends: tuple[Pair, Pair], host: Rtnl, container: Rtnl) -> None:
    """Set the MTU of both ends of a link that is in use, so that neither is sent what it does not take.

    An end drops what is larger than its own MTU. So the container first holds to the smaller of before and after,
    by its routes, and the host's end, which has no such routes, goes first where it shrinks, and last where it grows.
    """
    inside, outside = ends
    before = min(inside.mtu, outside.mtu)
    if before == veth.mtu == max(inside.mtu, outside.mtu):
        return
    # A half-made link refuses routes, and carries nothing yet.
    container.attempt(_defaults(veth, inside.index, min(before, veth.mtu)))
    order = [(host, outside), (container, inside)]
    for rtnl, end in order if veth.mtu < before else reversed(order):
        rtnl.run([netlink.link_mtu(end.index, veth.mtu)])


def _settle_container(veth: Veth, container: Rtnl, *, fresh: bool) -> None:
    """Runs inside the container's namespace; every request may be repeated."""
    index = socket.if_nametoindex(veth.interface)
    versions = {address.version for address in veth.addresses}
    if 6 in versions:
        # Before the link goes up, since DAD would hold the address back for a second.
        _write_sysctls("ipv6", veth.interface, {"accept_dad": 0, "disable_ipv6": 0})
    requests = [netlink.link_up(LOOPBACK), netlink.link_up(index)]
    if not fresh:
        requests += _stale_addresses(veth, index)
    requests += [netlink.address_set(index, ip_interface(address)) for address in veth.addresses]
    if 4 in versions:
        requests += _gateway4(index)
    if 6 in versions:
        requests += [netlink.neighbour_set(index, HOST_LINK_LOCAL, HOST_MAC)]
    container.run(requests + _defaults(veth, index))


def _gateway4(index: int) -> list[Request]:
    """The neighbour entry is permanent because the host's proxy ARP is silent without a default route."""
    link_route = netlink.route_replace(
        f"route {GATEWAY4}/32", IPv4Network(GATEWAY4), [Hop(index)], proto=RTPROT_STATIC, metric=0
    )
    return [netlink.neighbour_set(index, GATEWAY4, HOST_MAC), link_route]


def _defaults(veth: Veth, index: int, mtu: int = 0) -> list[Request]:
    """The default route of each family, held to `mtu` or, without one, to what the family needs.

    The metric is what `ip route` and the CNI plugins give: none in IPv4, the kernel's 1024 in IPv6.
    """
    versions = sorted({address.version for address in veth.addresses})
    return [
        netlink.route_replace(
            f"default route via {GATEWAYS[version]}",
            DEFAULTS[version],
            [Hop(index, GATEWAYS[version])],
            proto=RTPROT_STATIC,
            metric=0,
            mtu=mtu or veth.route_mtu(version),
        )
        for version in versions
    ]


def _stale_addresses(veth: Veth, index: int) -> list[Request]:
    with IPRoute() as ipr:
        found = [
            ip_interface(
                (message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"), message["prefixlen"])
            )
            for message in ipr.addr("dump", index=index)
        ]
    return [
        netlink.address_delete(index, interface)
        for interface in found
        if interface.ip not in veth.addresses and not interface.is_link_local
    ]


def _settle_host(veth: Veth, host: Rtnl, *, fresh: bool) -> None:
    """Runs in the host's namespace; the link goes up last (see the module's docstring)."""
    index = socket.if_nametoindex(veth.name)
    ipv6 = any(address.version == 6 for address in veth.addresses)
    localnet = {} if fresh and not veth.localnet else {LOCALNET: int(veth.localnet)}
    _write_sysctls("ipv4", veth.name, IPV4_SYSCTLS | localnet)
    _write_sysctls("ipv6", veth.name, IPV6_SYSCTLS if ipv6 else NO_IPV6)
    requests = [] if fresh else [*_stale_neighbours(veth, index), netlink.link_mac(index, HOST_MAC)]
    requests += [
        netlink.neighbour_set(index, address, mac) for address, mac in sorted(veth.neighbours, key=str)
    ]
    if ipv6:
        requests.insert(0, netlink.address_set(index, ip_interface((HOST_LINK_LOCAL, 64))))
    host.run([*requests, netlink.link_up(index, veth.alias)])


def _stale_neighbours(veth: Veth, index: int) -> list[Request]:
    with IPRoute() as ipr:
        found = [
            ip_address(entry.get_attr("NDA_DST"))
            for entry in ipr.neigh("dump", ifindex=index, state=NUD_PERMANENT)
        ]
    return [netlink.neighbour_delete(index, address) for address in found if address not in veth.addresses]


def _write_sysctls(family: str, link: str, values: dict[str, int]) -> None:
    folder = CONF / family / "conf" / link
    if family == "ipv6" and not folder.exists():
        return  # a host without IPv6; an IPv6 address is then refused by the kernel itself
    for key, value in values.items():
        (folder / key).write_text(str(value))
