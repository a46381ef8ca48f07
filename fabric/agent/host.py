"""Read what the agent must know of its host from the kernel: addresses, routes that are not ours, MTU."""

from __future__ import annotations

from fabric.agent.desired import Host
from fabric.kernel import facts
from fabric.kernel.routes import NetlinkFib
from fabric.plan.links import is_ours


async def read_host(fib: NetlinkFib) -> Host:
    """Return the host as it is now; the MTU is the smallest of its links that are up and not ours."""
    found = [a for a in await facts.addresses() if a.up and a.link != "lo" and not is_ours(a.link)]
    return Host(
        addresses=tuple(a.address for a in found),
        foreign_routes=tuple(await fib.foreign_routes()),
        mtu=min((a.mtu for a in found), default=1500),
    )
