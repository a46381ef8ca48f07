"""Decide this node's policy: what the datastore has, compiled once, as rules and sets of both families. Pure.

    snapshot ─▶ Resources ─▶ World ─┬─▶ render, IPv4 ─┐
    host, settings ─▶ Site ─────────┴─▶ render, IPv6 ─┤
    agent.translation (NAT, guards of tunnels) ───────┴─▶ Composed ─▶ agent.rules

What costs time with many policies is all here. A whole pass has it worked out in a thread; an attach adds its own
endpoint to the last answer (`with_own`), whatever else the snapshot has come to by then. What did not change is the
same object from one answer to the next, and costs nothing.

IPv6 has its rules on every node, whether it has an IPv6 address or not: what comes by IPv6 is closed, not forgotten.

A list of policies whose last workload has gone keeps its rules for a while, with an empty set: where one container
comes as another goes, an attach then touches sets alone, and needs no restore, which waits for the kernel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import is_
from typing import NamedTuple, TypeVar

from fabric.agent import translation
from fabric.agent.compose import Composed, compose
from fabric.agent.routing import Host
from fabric.agent.settings import layers
from fabric.agent.snapshot import Snapshot
from fabric.agent.translation import Translation
from fabric.model import extensions
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.ippool import IPPool
from fabric.model.networkset import GlobalNetworkSet, NetworkSet
from fabric.model.node import Node
from fabric.model.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
)
from fabric.model.profile import Profile
from fabric.model.tier import Tier
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.plan.tables import VERSIONS, Version
from fabric.plan.tunnels import Tunnel
from policy import compile as compiler
from policy import hosts
from policy.form import DIRECTIONS, Endpoint, Key, Rendered, Site
from policy.items import key
from policy.render import Listed, render
from policy.site import site
from policy.world import Resources, World

T = TypeVar("T")

MOST_LATELY = 32  # a workload of both families has four


class Lately(NamedTuple):
    """A list that a workload had in one direction, and whether its drops were named."""

    version: Version
    listed: Listed


@dataclass(frozen=True)
class Policing:
    """This node's policy, and what it was made of: `elsewhere` are other nodes' workloads, `here` its own.

    `lately` are the lists of workloads that have gone, the last ones last.
    """

    resources: Resources
    elsewhere: tuple[WorkloadEndpoint, ...]
    here: tuple[WorkloadEndpoint, ...]
    lately: tuple[Lately, ...]
    sites: Mapping[Version, Site]
    translated: Translation
    world: World
    rendered: Mapping[Version, Rendered]
    composed: Composed

    @property
    def active(self) -> Mapping[str, Endpoint]:
        """This node's host endpoints that act on a link, by its name."""
        site = self.sites[4]  # the links in it have the addresses of both families
        return hosts.active(self.world, site.node, site.links)

    @cached_property
    def problems(self) -> Mapping[str, str]:
        """What has no effect here, by object: host endpoints without links, missing profiles, ports that are taken.

        What could not be compiled, the World knows.
        """
        site = self.sites[4]
        found = {str(one): why for one, why in hosts.idle(self.world, site.node, site.links).items()}
        found |= self.translated.problems
        by_name = defaultdict[str, list[Key]](list)
        for endpoint in self.world.local(site.node):
            for name in endpoint.profiles:
                if name not in self.world.profiles:
                    by_name[name].append(endpoint.key)
        for name, named_by in by_name.items():
            more = f", and {len(named_by) - 1} more of this node" if len(named_by) > 1 else ""
            found[f"Profile {name}"] = (
                f"does not exist, and is one of {named_by[0]}{more}: it allows nothing, and gives no labels"
            )
        return found


def policing(
    node: str,
    snapshot: Snapshot,
    host: Host,
    known: Policing | None,
    *,
    tidy: bool = False,
    tunnels: Iterable[Tunnel] = (),
    localnet: bool = False,
) -> Policing:
    """Return the policy of `node` whole; `known` is any answer of earlier: what did not change is taken from it.

    `tidy` has nothing in it that is there for workloads of lately. `tunnels` are those that stand, or are to.
    `localnet` says that a link carries 127/8.
    """
    before = known.resources if known else Resources()
    workloads = snapshot.all(WorkloadEndpoint)
    here = _kept(tuple(e for e in workloads if e.spec.node == node), known.here if known else ())
    elsewhere = _kept(tuple(e for e in workloads if e.spec.node != node), known.elsewhere if known else ())
    resources = Resources(
        tiers=_kept(snapshot.all(Tier), before.tiers),
        policies=_kept(
            (
                *snapshot.all(NetworkPolicy),
                *snapshot.all(GlobalNetworkPolicy),
                *snapshot.all(StagedNetworkPolicy),
                *snapshot.all(StagedGlobalNetworkPolicy),
                *snapshot.all(StagedKubernetesNetworkPolicy),
            ),
            before.policies,
        ),
        profiles=_kept(snapshot.all(Profile), before.profiles),
        network_sets=_kept((*snapshot.all(NetworkSet), *snapshot.all(GlobalNetworkSet)), before.network_sets),
        workloads=_kept((*elsewhere, *here), before.workloads),
        hosts=_kept(snapshot.all(HostEndpoint), before.hosts),
        nodes=_kept(snapshot.all(Node), before.nodes),
        unread=_kept(tuple(snapshot.unread.values()), before.unread),
    )
    translated = translation.translation(
        node, snapshot, host, tunnels, known.translated if known else None, localnet=localnet
    )
    return _made(resources, elsewhere, here, _sites(node, snapshot, host), translated, known, tidy=tidy)


def with_own(node: str, snapshot: Snapshot, known: Policing) -> Policing:
    """Return `known` with the workloads of `node` as they are now; everything else is as it was there."""
    here = _kept(snapshot.endpoints(node), known.here)
    if here is known.here:
        return known
    there = {profile.metadata.name for profile in known.resources.profiles}
    named = {name for endpoint in here for name in endpoint.spec.profiles} - there
    new = tuple(found for name in sorted(named) if (found := snapshot.get(Profile, name)))
    resources = replace(
        known.resources,
        workloads=(*known.elsewhere, *here),
        # The first workload of a namespace comes with its profile.
        profiles=(*known.resources.profiles, *new) if new else known.resources.profiles,
    )
    translated = translation.with_own(known.translated, here)
    return _made(resources, known.elsewhere, here, known.sites, translated, known)


def _made(
    resources: Resources,
    elsewhere: tuple[WorkloadEndpoint, ...],
    here: tuple[WorkloadEndpoint, ...],
    sites: Mapping[Version, Site],
    translated: Translation,
    known: Policing | None,
    *,
    tidy: bool = False,
) -> Policing:
    same = known is not None and all(map(is_, _fields(resources), _fields(known.resources)))
    alike = known and sites == known.sites and translated is known.translated
    if known and same and alike and not (tidy and known.lately):
        return known
    world = known.world if known and same else compiler.compile(resources, known.world if known else None)
    lately = _lately(resources, here, known) if known and not tidy else ()
    rendered = {
        version: render(
            world,
            sites[version],
            version,
            known.rendered[version] if known else None,
            also=[one.listed for one in lately if one.version == version],
        )
        for version in VERSIONS
    }
    # Before policy: what comes by a tunnel is let in or not whatever a host endpoint says.
    composed = compose(
        (*translated.rendered, *rendered.values()),
        known.composed if known else None,
        publishing=translated.publishing,
    )
    return Policing(resources, elsewhere, here, lately, sites, translated, world, rendered, composed)


def _lately(resources: Resources, here: tuple[WorkloadEndpoint, ...], known: Policing) -> tuple[Lately, ...]:
    """Return the lists of those that have gone since `known`, after those of before; none once a policy has changed."""
    before, there = known.resources, set(map(id, here))
    if (resources.tiers, resources.unread) != (before.tiers, before.unread) or not (
        resources.policies is before.policies and resources.profiles is before.profiles
    ):
        return ()
    gone = [known.world.endpoints.get(key(e)) for e in known.here if id(e) not in there]
    found = [
        Lately(version, Listed(known.world.applied(one.key, direction), direction, one.drop_log))
        for one in gone
        if one
        for version in {address.version for address in one.addresses}
        for direction in DIRECTIONS
    ]
    by_name = {
        (one.version, one.listed.applied.id, one.listed.logged): one for one in (*known.lately, *found)
    }
    return tuple(by_name.values())[-MOST_LATELY:]


def _fields(resources: Resources) -> Iterable[object]:
    return vars(resources).values()


def _kept(now: tuple[T, ...], before: tuple[T, ...]) -> tuple[T, ...]:
    """Return `before` where it has the very same things."""
    return before if len(now) == len(before) and all(map(is_, now, before)) else now


def _sites(node: str, snapshot: Snapshot, host: Host) -> dict[Version, Site]:
    me = snapshot.get(Node, node)
    said = me.metadata.annotations if me else {}
    accept = extensions.value(said, extensions.FORWARDING, extensions.forwarding, "keep") == "accept"
    made = site(
        node,
        layers(snapshot, node),
        snapshot.all(Node),
        snapshot.all(IPPool),
        links=host.links,
    )
    return {
        version: replace(made, routed_before=accept or version in host.routed_before) for version in VERSIONS
    }
