"""Decide what this node's rules do beside policy: natOutgoing, published ports, guards of tunnels. Pure.

    snapshot, settings, host ─┬─▶ plan.nat, plan.guards ─┐
    tunnels ──────────────────┘                          ├─▶ before policy's rules (agent.policing)
    this node's workloads ──────▶ plan.publish ──────────┘

What did not change is the same object from one answer to the next: an attach that publishes nothing touches nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from fabric.agent.routing import Host
from fabric.agent.settings import layers
from fabric.agent.snapshot import Snapshot
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.plan import guards, nat, publish
from fabric.plan.nat import Outgoing
from fabric.plan.produced import Address, Prefix, Produced
from fabric.plan.publish import PROTOCOLS, Published, target
from fabric.plan.tables import VERSIONS, Version
from fabric.plan.tunnels import Tunnel
from policy import form
from policy.flows import Flow
from policy.form import TCP, UDP, Line, Rendered
from policy.site import first


@dataclass(frozen=True)
class Publishing:
    """The ports that are published, and the node's addresses, where those without a host address are.

    `inside` are the prefixes that containers have addresses of.
    """

    ports: tuple[Published, ...] = ()
    local: frozenset[Address] = frozenset()
    inside: frozenset[Prefix] = frozenset()


NOTHING: Final = Publishing()


@dataclass(frozen=True)
class Translation:
    """What is wanted; `own` are the node's addresses by family. `guarded` has 127/8 closed whoever publishes.

    `unpublished` are endpoints' ports that are not published, and why; `amiss` what of natOutgoing comes to nothing.
    """

    outgoing: Outgoing = field(default_factory=Outgoing)
    tunnels: tuple[Tunnel, ...] = ()
    nodes: frozenset[Address] = frozenset()
    own: Mapping[int, Address] = field(default_factory=dict)
    publishing: Publishing = NOTHING
    guarded: bool = False
    unpublished: Mapping[str, str] = field(default_factory=dict)
    amiss: Mapping[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong, by object, and why."""
        return {**self.unpublished, **self.amiss}

    @cached_property
    def rendered(self) -> tuple[Rendered, ...]:
        """The rules and sets of both families, in the order of their hooks."""
        return tuple(_rendered(one) for version in VERSIONS for one in self._produced(version) if one.chains)

    def _produced(self, version: Version) -> Iterable[Produced]:
        yield guards.produce(version, self.tunnels, self.nodes)
        own = self.own.get(version)
        yield publish.produce(version, self.publishing.ports, own, guarded=self.guarded)
        yield nat.produce(version, self.outgoing)


def translation(
    node: str,
    snapshot: Snapshot,
    host: Host,
    tunnels: Iterable[Tunnel],
    known: Translation | None,
    *,
    localnet: bool = False,
) -> Translation:
    """Return what `node` wants, `known` itself where that is the same.

    127/8 stays closed after the last port has gone, since its link goes later than the rules: while `localnet`.
    """
    me = snapshot.get(Node, node)
    nodes = frozenset(address for one in snapshot.all(Node) for address in one.sends_from)
    tunnels = tuple(tunnels)
    ports, unpublished = publish.published(snapshot.endpoints(node), received(tunnels))
    local = frozenset(address for held in host.links.values() for address in held)
    outgoing = _outgoing(node, snapshot, nodes)
    made = Translation(
        outgoing,
        tunnels,
        nodes,
        {held.version: held.ip for held in me.addresses} if me else {},
        Publishing(ports, local, outgoing.inside),
        bool(ports) or localnet,
        unpublished,
        _amiss(outgoing, host, node),
    )
    return known if known == made else made


def with_own(known: Translation, endpoints: Iterable[WorkloadEndpoint]) -> Translation:
    """Return `known` with the ports of `endpoints`, this node's workloads."""
    ports, unpublished = publish.published(endpoints, received(known.tunnels))
    if (ports, unpublished) == (known.publishing.ports, known.unpublished):
        return known
    return replace(
        known,
        publishing=replace(known.publishing, ports=ports),
        guarded=known.guarded or bool(ports),
        unpublished=unpublished,
    )


def received(tunnels: Iterable[Tunnel]) -> frozenset[tuple[int, int]]:
    """Return the UDP ports by which tunnels come in, each with its family."""
    return frozenset((one.encap.version, one.port) for one in tunnels if one.encap.kind == "vxlan")


def _amiss(outgoing: Outgoing, host: Host, node: str) -> Mapping[str, str]:
    """Say what settings of natOutgoing name that this node has not; of a node that it is not asked of, nothing."""
    if not any(prefix.version == 4 for prefix in outgoing.pools) or not host.links:
        return {}
    has = sorted(str(a) for held in host.links.values() for a in held if a.version == 4 and not a.is_loopback)
    why = []
    if (address := outgoing.address) and str(address) not in has:
        why.append(
            f"natOutgoingAddress {address} is no address of {node}, so no answer to what containers send out comes "
            f"back; it has {', '.join(has) or 'none'}; set it for each node, in FelixConfiguration node.{node}"
        )
    if (links := outgoing.interfaces) and not any(_matches(links, link) for link in host.links):
        why.append(
            f"iptablesNATOutgoingInterfaceFilter {links} matches no link of {node}, so nothing that containers send "
            f"out is translated; it has {', '.join(sorted(host.links))}"
        )
    return {"FelixConfiguration": "; ".join(why)} if why else {}


def _matches(pattern: str, link: str) -> bool:
    return link.startswith(pattern[:-1]) if pattern.endswith("+") else link == pattern


def _outgoing(node: str, snapshot: Snapshot, nodes: frozenset[Address]) -> Outgoing:
    said, pools = layers(snapshot, node), snapshot.all(IPPool)
    ports = first(said, lambda s: s.nat_port_range, None)
    exclusions = first(said, lambda s: s.nat_outgoing_exclusions, "IPPoolsOnly")
    return Outgoing(
        pools=frozenset(pool.spec.cidr for pool in pools if pool.spec.nat_outgoing),
        inside=frozenset(pool.spec.cidr for pool in pools if set(pool.spec.allowed_uses) != {"LoadBalancer"}),
        spared=nodes if exclusions == "IPPoolsAndHostIPs" else frozenset(),
        address=first(said, lambda s: s.nat_outgoing_address, None),
        ports="" if ports is None else str(ports).replace(":", "-"),
        interfaces=first(said, lambda s: s.nat_outgoing_interfaces, ""),
    )


def _rendered(made: Produced) -> Rendered:
    return Rendered(
        made.version,
        {place: tuple(map(Line, lines)) for place, lines in made.chains.items()},
        {place: tuple(map(Line, lines)) for place, lines in made.first.items()},
        {},
        {name: form.IPSet(one.kind, one.version, one.members) for name, one in made.sets.items()},
    )


def policed(wanted: Translation, flows: Collection[Flow]) -> Collection[Flow]:
    """Return `flows` but for those that carry tunnels' packets between nodes, of which no policy decides."""
    outer = {
        (one.encap.version, *((UDP, one.port) if one.encap.kind == "vxlan" else (guards.IPIP, 0)))
        for one in wanted.tunnels
    }
    own, nodes = wanted.publishing.local, wanted.nodes | wanted.publishing.local

    def carries(flow: Flow) -> bool:
        first = flow.original
        ends = {first.source, first.destination}
        kind = first.source.version, first.protocol, first.destination_port
        return kind in outer and ends <= nodes and not ends.isdisjoint(own)

    return [flow for flow in flows if not carries(flow)] if outer else flows


def touched(before: Publishing | None, now: Publishing) -> frozenset[Address]:
    """Return the ends of connections that may go another way `now` than they did `before`, None if that is unknown."""
    if before is None:
        return now.local
    changed = set(before.ports) ^ set(now.ports)
    new = any(one.protocol != "tcp" for one in changed & set(now.ports))
    return frozenset(one.address for one in changed) | (now.local if new else frozenset())


def astray(before: Publishing | None, now: Publishing, flows: Collection[Flow]) -> list[Flow]:
    """Return those of `flows` that conntrack leads elsewhere than the rules do `now`.

    A connection is asked about by its first packet alone: UDP from one port goes on for ever to where a container was.
    Connections of TCP that were not led anywhere are the host's own. Where it is not known what was there before,
    whatever is led to a container may be of a port that has gone; TCP comes to an end by itself then.
    """
    changed = set(before.ports if before else ()) ^ set(now.ports)
    at = {(PROTOCOLS[one.protocol], one.host_port) for one in changed}
    gone = {(one.address, one.port) for one in changed}
    found = []
    for flow in flows:
        first_packet = flow.original
        asked = first_packet.destination, first_packet.destination_port
        led = flow.reply.source, flow.reply.source_port
        changes = (first_packet.protocol, first_packet.destination_port) in at
        lasting = first_packet.destination in now.local and first_packet.protocol != TCP
        host_s = changes and lasting and led == asked
        if before is None:
            ours = lasting and led != asked and any(led[0] in prefix for prefix in now.inside)
        else:
            ours = changes and led in gone
        if (host_s or ours) and led != (target(now.ports, first_packet.protocol, *asked) or asked):
            found.append(flow)
    return found
