"""Decide what follows at once when links lose their carrier: what the host is then, and which sessions end. Pure.

Fast external fail-over: such a session is ended, so that its paths are flushed. Else they would stand until its hold
timer expires, and a router that comes back before that would be used before it has its routes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bgp.peering import Here, Peering
from bgp.rib import Address, SessionState
from fabric.agent.ribs import Ribs
from fabric.agent.routing import Host


@dataclass(frozen=True, slots=True)
class Ending:
    """`due` are to be ended now. `over` are those that need it no more until their link has had a carrier again."""

    due: frozenset[Address]
    over: frozenset[Address]


def after(host: Host, carriers: Mapping[str, bool]) -> Host:
    """Return the host after its links have come to have a carrier or not: `host` itself where that is no news."""
    uplinks = tuple(
        replace(uplink, carrier=carriers.get(uplink.device, uplink.carrier)) for uplink in host.here.uplinks
    )
    return host if uplinks == host.here.uplinks else replace(host, here=replace(host.here, uplinks=uplinks))


def lost(before: Host, now: Host) -> bool:
    """Whether a link that had a carrier before has none now."""
    had = {uplink.device for uplink in before.here.uplinks if uplink.carrier}
    return bool(had & {uplink.device for uplink in now.here.uplinks if not uplink.carrier})


def ending(here: Here, peerings: Iterable[Peering], ribs: Ribs, over: frozenset[Address]) -> Ending:
    """Return which sessions end since the link that has their source is without a carrier, once for each loss.

    `over` is the last answer's. Of several links that have the source, one with a carrier is enough.
    """
    carriers: dict[Address, bool] = {}
    for uplink in here.uplinks:
        carriers[uplink.address.ip] = uplink.carrier or carriers.get(uplink.address.ip, False)
    dead = frozenset(p.spec.peer for p in peerings if carriers.get(p.spec.source) is False)
    return Ending(frozenset(peer for peer in dead - over if _holds(ribs, peer)), dead)


def _holds(ribs: Ribs, peer: Address) -> bool:
    """Whether ending the session flushes anything; one that idles for its number of prefixes is left to idle."""
    seen = ribs.sessions.get(peer)
    return (
        seen is not None
        and not seen.idle_until
        and (seen.state is SessionState.ESTABLISHED or bool(ribs.adj_rib_in.get(peer)))
    )
