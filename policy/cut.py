"""Decide which live connections a change of policy has denied, and which of those cut before it allows again.

Rules of ours let through what is established, so a connection outlives the rule that allowed it. Deleting its conntrack
entry is not enough: with tcp_loose the next segment of either side makes a new one. So denied connections carry CUT in
their conntrack mark (`policy.marks`), and a rule ahead of ESTABLISHED drops what does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import chain
from typing import Literal, TypeAlias

from policy import hosts
from policy.evaluate import Asked, verdicts
from policy.flows import Flow
from policy.form import DIRECTIONS, Address, End, Key, Origin, Packet, Policy, Profile, Rule, Site
from policy.holders import Holders
from policy.marks import CUT
from policy.world import World

# Whether a connection is denied now: not at all, and cut for it, or spared by a policy that keeps live ones.
Denial: TypeAlias = Literal["cut", "kept"] | None


@dataclass(frozen=True, slots=True)
class Cut:
    """`mark` are denied now and not marked yet, `clear` marked and not denied; `by` is what denies each of `mark`."""

    mark: tuple[Flow, ...] = ()
    clear: tuple[Flow, ...] = ()
    by: tuple[Origin | None, ...] = field(default=(), compare=False)


def local(world: World, site: Site) -> frozenset[Address]:
    """Return the addresses on this node that policy applies to: its workloads', with host endpoints its own too."""
    workloads = (one for one in world.local(site.node) if not one.is_host)
    found = {address for one in workloads for address in one.addresses}
    if hosts.active(world, site.node, site.links):
        found.update(*site.links.values())
    return frozenset(found)


def cut(world: World, site: Site, flows: Collection[Flow]) -> Cut:
    """Judge `flows` by what this node enforces now; they are those of `Conntrack.flows`, with CUT as its bits."""
    judge = _Judge(world, site)
    masters = {flow.original: flow for flow in flows}
    mark, clear, by = [], [], []
    for flow in flows:
        judged = masters.get(flow.master) if flow.master else flow
        denial, origin = judge.denial(judged) if judged else (None, None)
        if flow.mark & CUT and denial is None:
            clear.append(flow)
        elif not flow.mark & CUT and denial == "cut":
            mark.append(flow)
            by.append(origin)
    return Cut(tuple(mark), tuple(clear), tuple(by))


class _Judge:
    """Remembers its answers: a table has many connections of few kinds.

    Connections that differ in their source ports alone are of one kind unless a rule asks for these, and so are those
    of far ends that no rule tells apart: a service has clients everywhere.
    """

    def __init__(self, world: World, site: Site) -> None:
        self._world, self._site, self._sites = world, site, {site.node: site}
        rules = list(_rules(world))
        guarded = bool(hosts.active(world, site.node, site.links))
        # What answers a failsafe port goes by its source port, too.
        self._by_port = guarded or any(_asks_port(rule.source) for rule in rules)
        nets = {
            net
            for rule in rules
            for end in (rule.source, rule.destination)
            for net in (*end.nets, *end.not_nets)
        }
        if guarded:
            nets |= {open_.net for open_ in (*site.failsafe_in, *site.failsafe_out) if open_.net is not None}
            nets |= set(map(ip_network, site.nodes))
        self._own = frozenset[Address]().union(*site.links.values())
        self._nets = Holders().changed((), [(Key("", "", str(net)), net) for net in nets])
        self._alike: dict[tuple[object, ...], Address] = {}
        self._stand_ins: dict[Address, Address] = {}
        self._known: dict[tuple[object, ...], tuple[Denial, Origin | None]] = {}

    def denial(self, flow: Flow) -> tuple[Denial, Origin | None]:
        """Return whether this node denies the connection, and whether it is cut for that; with what denies it."""
        first, answer = flow.original, flow.reply
        source, arrived, reached = map(self._stand_in, (first.source, first.destination, answer.source))
        port = first.source_port if self._by_port else 0
        ports = (first.destination_port, answer.source_port)
        kind = (source, arrived, reached, first.protocol, port, *ports, first.icmp)
        if kind not in self._known:
            packets = (
                Packet(source, end, first.protocol, port, to, first.icmp)
                for end, to in zip((arrived, reached), ports, strict=True)
            )
            self._known[kind] = self._judge(*packets)
        return self._known[kind]

    def _stand_in(self, address: Address) -> Address:
        """Return the first that was seen of the addresses that no verdict tells apart from this one."""
        if (found := self._stand_ins.get(address)) is None:
            found, endpoint = address, self._world.at(address)
            if address not in self._own and (endpoint is None or endpoint.node != self._site.node):
                told_by = (address.version, self._world.told_by(address), *self._nets.around(address))
                found = self._alike.setdefault(told_by, address)
            self._stand_ins[address] = found
        return found

    def _judge(self, arrived: Packet, packet: Packet) -> tuple[Denial, Origin | None]:
        for asked in verdicts(self._world, packet, self._sites, arrived=arrived).asked:
            if asked.node == self._site.node and not asked.verdict.allowed:
                return "kept" if self._is_kept(asked) else "cut", asked.verdict.origin
        return None, None

    def _is_kept(self, asked: Asked) -> bool:
        """Whether what denies is a policy that spares live connections, or the end of a tier of nothing else."""
        origin = asked.verdict.origin
        if asked.endpoint is None or origin is None:
            return False
        for tier in self._world.applied(asked.endpoint.key, asked.direction, asked.hook).tiers:
            enforced = [policy for policy in tier.policies if not policy.staged]
            if origin.what == "tier" and origin.name == tier.name:
                return all(policy.keep for policy in enforced)
            for policy in enforced:
                if origin.what in {"policy", "broken"} and origin.name == str(policy.key):
                    return policy.keep
        return False


def _rules(world: World) -> Iterator[Rule]:
    policies = (policy for tier in world.tiers for policy in tier.policies)
    for one in chain[Policy | Profile](policies, world.profiles.values()):
        for direction in DIRECTIONS:
            yield from one.rules(direction) or ()


def _asks_port(end: End) -> bool:
    return bool(end.ports or end.named or end.not_ports or end.not_named)
