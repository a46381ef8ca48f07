"""Read what the agent must know of its host from the kernel: links, addresses, others' routes, MTU, forwarding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from bgp.peering import Gateway, Here, Uplink
from bgp.rib import address_order
from fabric.agent.routing import Host
from fabric.config import SYSCTLS
from fabric.kernel import facts, sysctls
from fabric.kernel.netlink import Address
from fabric.kernel.routes import NetlinkFib
from fabric.plan import encap
from fabric.plan.links import is_ours
from fabric.plan.routes import Route

FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
# With a VXLAN: what routers say of its packets is for this host. Without it a workload's are still put into the tunnel
# when they are too large for the way, and the workload, which has to send smaller ones, never hears of it.
USE_PMTU = {"net.ipv4.ip_forward_use_pmtu": "1"}


async def read_host(fib: NetlinkFib) -> Host:
    """Return the host as it is now; its uplinks are its links that are up and not ours, tunnels neither.

    Routes through a link without carrier are among the routes and the gateways: the host has them still. Ports of
    bridges are no links for policy, unless they hold an address: a host has one for each container of Docker's.
    """
    links, every = await facts.links_and_addresses()
    held = defaultdict[str, set[Address]](set)
    for one in every:
        held[one.link].add(one.address.ip)
    addresses = [a for a in every if a.up and not is_ours(a.link) and a.link not in encap.DEVICES]
    found = [a for a in addresses if a.link != "lo"]
    routes = tuple(await fib.foreign_routes())
    before = await sysctls.before(FORWARDING.values(), SYSCTLS)
    changed = await sysctls.recorded(SYSCTLS)
    mtus = {a.link: a.mtu for a in found}
    return Host(
        here=Here(
            uplinks=tuple(Uplink(a.link, a.address, a.carrier) for a in found),
            gateways=gateways(routes),
            loopback=frozenset(a.address.ip for a in addresses if a.own_on_lo),
        ),
        foreign_routes=routes,
        mtu=min(mtus.values(), default=1500),
        mtus=mtus,
        links={
            name: frozenset(held[name])
            for name, is_port in links.items()
            if not is_ours(name) and not (is_port and all(address.is_link_local for address in held[name]))
        },
        routed_before=frozenset(v for v, name in FORWARDING.items() if before[name] not in ("", "0")),
        heeding=await facts.heeding(link for link in links if facts.ACCEPT_RA.format(link) in changed),
    )


def router(host: Host, *, ipv6: bool) -> dict[str, str]:
    """Return the sysctls that make the host a router, in the order to set them; for IPv6 only where that is needed.

    A link that has routes from router advertisements loses them when IPv6 forwarding comes on, and heeds no more of
    them, unless its accept_ra is 2 before.
    """
    wanted = {FORWARDING[4]: "1"}
    if ipv6:
        wanted |= {facts.ACCEPT_RA.format(link): "2" for link in sorted(host.heeding)}
        wanted[FORWARDING[6]] = "1"
    return wanted


def gateways(routes: Iterable[Route]) -> tuple[Gateway, ...]:
    """Return where the default routes among `routes` lead."""
    hops = {hop for route in routes if not route.key.prefix.prefixlen for hop in route.next_hops}
    found = [Gateway(hop.gateway, hop.device) for hop in hops if hop.gateway and hop.device]
    return tuple(sorted(found, key=lambda way: (address_order(way.address), way.device)))
