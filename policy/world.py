"""The whole cluster's policy, compiled: what decides for an endpoint, and who is in a set.

    Resources ─▶ compile ─▶ World ─▶ applied, members, at, holds

A World is never changed. It works out what it is asked for, keeps it, and hands it on to the World after it where it
still holds; what is equal there is the same object. Two threads may ask one World, and compile from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, TypeVar, overload

from fabric.model.base import Resource
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.networkset import GlobalNetworkSet, NetworkSet
from fabric.model.node import Node
from fabric.model.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
)
from fabric.model.profile import Profile as ProfileResource
from fabric.model.tier import Tier
from fabric.model.workloadendpoint import WorkloadEndpoint
from policy import form
from policy.form import (
    Address,
    AddressSet,
    Applied,
    AppliedTier,
    Direction,
    Endpoint,
    Hook,
    Key,
    Policy,
    PortMember,
    PortSet,
    Prefix,
)
from policy.holders import Holders
from policy.index import Index
from policy.items import Container, Item
from policy.order import TierForm
from policy.rules import Compiled, PolicyResource, ProfileForm
from policy.selector import Selector, parse
from policy.unread import Unread

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True)
class Resources:
    """All that policy is compiled from, in any order. What has not changed is best the same object again."""

    tiers: tuple[Tier, ...] = ()
    policies: tuple[PolicyResource, ...] = ()
    profiles: tuple[ProfileResource, ...] = ()
    network_sets: tuple[NetworkSet | GlobalNetworkSet, ...] = ()
    workloads: tuple[WorkloadEndpoint, ...] = ()
    hosts: tuple[HostEndpoint, ...] = ()
    nodes: tuple[Node, ...] = ()
    unread: tuple[Unread, ...] = ()

    @classmethod
    def of(cls, resources: Iterable[Resource]) -> Resources:
        """Return those of `resources` that policy is compiled from."""
        found = list(resources)

        def all_of(*kinds: type[R]) -> tuple[R, ...]:
            return tuple(each for each in found if isinstance(each, kinds))

        return cls(
            tiers=all_of(Tier),
            policies=(
                *all_of(NetworkPolicy),
                *all_of(GlobalNetworkPolicy),
                *all_of(StagedNetworkPolicy),
                *all_of(StagedGlobalNetworkPolicy),
                *all_of(StagedKubernetesNetworkPolicy),
            ),
            profiles=all_of(ProfileResource),
            network_sets=(*all_of(NetworkSet), *all_of(GlobalNetworkSet)),
            workloads=all_of(WorkloadEndpoint),
            hosts=all_of(HostEndpoint),
            nodes=all_of(Node),
        )


class Asked(NamedTuple):
    """All that the answer to `World.applied` depends on."""

    matched: frozenset[str]
    profiles: tuple[str, ...]
    is_host: bool
    direction: Direction
    hook: Hook


@dataclass(frozen=True)
class Parts:
    """What a World is made of, and what the next is compiled from. What was read is by the identity of what it was."""

    resources: Resources = field(default_factory=Resources)
    read_policies: Mapping[int, tuple[PolicyResource | Unread, Compiled]] = field(default_factory=dict)
    read_profiles: Mapping[int, tuple[ProfileResource | Unread, ProfileForm]] = field(default_factory=dict)
    read_hosts: Mapping[int, tuple[Unread, HostEndpoint | None]] = field(default_factory=dict)
    hosts: tuple[HostEndpoint, ...] = ()
    logging_nodes: frozenset[str] = frozenset()
    profiles: Mapping[str, ProfileForm] = field(default_factory=dict)
    tiers: tuple[TierForm, ...] = ()
    by_subject: Mapping[str, list[tuple[int, int, Policy]]] = field(default_factory=dict)
    peer_terms: Mapping[str, Selector] = field(default_factory=dict)
    items: Mapping[Key, Item] = field(default_factory=dict)
    endpoints: Mapping[Key, Endpoint] = field(default_factory=dict)
    by_node: Mapping[str, Mapping[Key, Endpoint]] = field(default_factory=dict)
    containers: Mapping[Container, frozenset[Key]] = field(default_factory=dict)
    subjects: Index = field(default_factory=Index)
    peers: Index = field(default_factory=Index)
    holders: Holders = field(default_factory=Holders)
    problems: Mapping[str, str] = field(default_factory=dict)


class World:
    """`tiers` in order, each with its policies in order; `problems` are by the object that has them, with why."""

    def __init__(
        self,
        parts: Parts,
        known_applied: dict[Asked, Applied] | None = None,
        known_nets: dict[AddressSet, frozenset[Prefix]] | None = None,
        known_ports: dict[PortSet, frozenset[PortMember]] | None = None,
    ) -> None:
        self.parts = parts
        self.tiers = parts.tiers
        self.profiles: Mapping[str, form.Profile] = {
            name: found.profile for name, found in parts.profiles.items()
        }
        self.endpoints = parts.endpoints
        self.problems = parts.problems
        # Grown by asking, and only by single operations: two threads may ask, and copy.
        self.known_applied: dict[Asked, Applied] = known_applied or {}
        self.known_nets: dict[AddressSet, frozenset[Prefix]] = known_nets or {}
        self.known_ports: dict[PortSet, frozenset[PortMember]] = known_ports or {}
        self.known_local: dict[str, tuple[Endpoint, ...]] = {}
        self.known_hosts: dict[str, tuple[Endpoint, ...]] = {}

    def applied(self, endpoint: Key, direction: Direction, hook: Hook = "normal") -> Applied:
        """Return all that decides one direction of an endpoint. Raises KeyError where there is no such endpoint."""
        found = self.endpoints[endpoint]
        profiles = found.profiles if hook == "normal" else ()
        matched = self.parts.subjects.matched[endpoint]
        asked = Asked(matched, profiles, found.is_host, direction, hook)
        if (known := self.known_applied.get(asked)) is None:
            known = self.known_applied[asked] = self._apply(*asked)
        return known

    def _apply(
        self,
        matched: frozenset[str],
        profiles: tuple[str, ...],
        is_host: bool,
        direction: Direction,
        hook: Hook,
    ) -> Applied:
        found = sorted(
            (place, index, policy)
            for text in matched
            for place, index, policy in self.parts.by_subject[text]
            if _takes_part(policy, is_host, direction, hook)
        )
        by_tier: dict[int, list[Policy]] = {}
        for place, _, policy in found:
            by_tier.setdefault(place, []).append(policy)
        tiers = tuple(_tier(self.tiers[place], tuple(held), hook) for place, held in by_tier.items())
        known = tuple(self.profiles[name] for name in profiles if name in self.profiles)
        return Applied(_id(direction, hook, tiers, known), tiers, known)

    @overload
    def members(self, wanted: AddressSet) -> frozenset[Prefix]: ...
    @overload
    def members(self, wanted: PortSet) -> frozenset[PortMember]: ...
    def members(self, wanted: AddressSet | PortSet) -> frozenset[Prefix] | frozenset[PortMember]:
        """Return who is in a set: prefixes, or addresses with a port."""
        if isinstance(wanted, PortSet):
            if (ports := self.known_ports.get(wanted)) is None:
                ports = self.known_ports[wanted] = _ports_of(self._selected(wanted.selector), wanted)
            return ports
        if (nets := self.known_nets.get(wanted)) is None:
            nets = frozenset(net for item in self._selected(wanted.selector) for net in item.nets)
            self.known_nets[wanted] = nets
        return nets

    def _selected(self, selector: str) -> list[Item]:
        if selector in self.parts.peer_terms:
            return [self.parts.items[key] for key in self.parts.peers.members.get(selector, ())]
        term = parse(selector)  # of no policy here
        return [item for item in self.parts.items.values() if term.matches(item.labels)]

    def holds(self, wanted: AddressSet, address: Address) -> bool:
        """Return whether `address` is in the set, without listing who else is."""
        around = self.parts.holders.around(address)
        if wanted.selector in self.parts.peer_terms:
            return not self.parts.peers.members.get(wanted.selector, frozenset()).isdisjoint(around)
        term = parse(wanted.selector)
        return any(term.matches(self.parts.items[key].labels) for key in around)

    def told_by(self, address: Address) -> frozenset[object]:
        """Return what sets know an address by: those of one family with equal answers are in the same sets."""
        around = tuple(self.parts.holders.around(address))
        texts = (text for key in around for text in self.parts.peers.matched.get(key, ()))
        ports = (port for key in around if key in self.endpoints for port in self.endpoints[key].ports)
        return frozenset[object]((*texts, *ports))

    def local(self, node: str) -> tuple[Endpoint, ...]:
        """Return the endpoints of `node`, by key."""
        if (known := self.known_local.get(node)) is None:
            found = self.parts.by_node.get(node, {})
            known = self.known_local[node] = tuple(found[key] for key in sorted(found))
        return known

    def hosts(self, node: str) -> tuple[Endpoint, ...]:
        """Return the host endpoints of `node`, by key."""
        if (known := self.known_hosts.get(node)) is None:
            known = self.known_hosts[node] = tuple(each for each in self.local(node) if each.is_host)
        return known

    def at(self, address: Address) -> Endpoint | None:
        """Return the endpoint that has `address`: a workload, or else a host endpoint that expects it."""
        found = [self.endpoints[key] for key in self.parts.holders.at(address) if key in self.endpoints]
        return min(found, key=lambda each: (each.is_host, each.key)) if found else None


def _takes_part(policy: Policy, is_host: bool, direction: Direction, hook: Hook) -> bool:
    if policy.rules(direction) is None or not (is_host or hook == "normal"):
        return False
    match hook:
        case "untracked":
            return policy.do_not_track
        case "pre-dnat":
            return policy.pre_dnat and direction == "Ingress"
        case "forward" if not policy.apply_on_forward:
            return False
    return not (policy.do_not_track or policy.pre_dnat)


def _tier(tier: TierForm, policies: tuple[Policy, ...], hook: Hook) -> AppliedTier:
    endless = hook in {"pre-dnat", "untracked"} or all(policy.staged for policy in policies)
    return AppliedTier(tier.name, policies, None if endless else tier.default)


def _id(
    direction: Direction, hook: Hook, tiers: tuple[AppliedTier, ...], profiles: tuple[form.Profile, ...]
) -> str:
    asked = [(tier.name, tier.default, [tuple(policy.key) for policy in tier.policies]) for tier in tiers]
    text = repr((direction, hook, asked, [profile.name for profile in profiles]))
    return sha256(text.encode()).hexdigest()[:24]


def _ports_of(items: Iterable[Item], wanted: PortSet) -> frozenset[PortMember]:
    return frozenset(
        PortMember(address, wanted.protocol, port.port)
        for item in items
        if item.endpoint
        for port in item.endpoint.ports
        if (port.name, port.protocol) == (wanted.name, wanted.protocol)
        for address in item.endpoint.addresses
    )
