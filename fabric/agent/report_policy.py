"""Decide what the agent says of one endpoint's policy: what is asked, in order, with what the kernel counted. Pure.

Counters are of the rules as they stand on this node: a policy's are of all its endpoints here, those of the ends of
tiers and lists are of the endpoints that share the list. Both families are added up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from fabric.agent.compose import Composed
from fabric.agent.policing import Policing
from fabric.errors import NotFound
from fabric.plan.tables import Counter, Place, Version
from policy import words
from policy.form import (
    DIRECTIONS,
    AppliedTier,
    Direction,
    Endpoint,
    Hook,
    Key,
    Origin,
    Rule,
)
from policy.render import chain_of
from policy.world import World

Json: TypeAlias = dict[str, Any]
Counters: TypeAlias = Mapping[Version, Mapping[tuple[Place, int], Counter]]

ELSEWHERE = "not on this node; it may be on another, whose agent knows its counters, or not exist"
WORKLOAD_HOOKS: tuple[Hook, ...] = ("normal",)
HOST_HOOKS: tuple[Hook, ...] = ("untracked", "pre-dnat", "normal", "forward")


def workload(policing: Policing | None, namespace: str, name: str, counters: Counters) -> Json:
    """Return the policy of one workload of this node.

    Raises:
        NotFound: there is none of that name here.
    """
    here = policing.here if policing else ()
    found = [e for e in here if (e.metadata.namespace, e.spec.workload) == (namespace, name)]
    if not policing or not found:
        raise NotFound(f"workload {namespace}/{name}: {ELSEWHERE}")
    key = Key("WorkloadEndpoint", namespace, found[0].metadata.name)
    return _report(policing, policing.world.endpoints[key], WORKLOAD_HOOKS, counters)


def host(policing: Policing | None, name: str, counters: Counters) -> Json:
    """Return the policy of one host endpoint of this node.

    Raises:
        NotFound: there is none of that name here.
    """
    found = policing.world.endpoints.get(Key("HostEndpoint", "", name)) if policing else None
    if not policing or not found or found.node != policing.sites[4].node:
        raise NotFound(f"HostEndpoint {name}: {ELSEWHERE}")
    return {
        **_report(policing, found, HOST_HOOKS, counters),
        "links": sorted(link for link, one in policing.active.items() if one.key == found.key),
        "inactive": policing.problems.get(str(found.key), ""),
    }


def in_force(policing: Policing | None) -> tuple[int, int]:
    """Return how many policies select an endpoint of this node: those that are enforced, and staged ones."""
    if not policing:
        return 0, 0
    world = policing.world
    asked = [(one, WORKLOAD_HOOKS) for one in world.local(policing.sites[4].node) if not one.is_host]
    asked += [(one, HOST_HOOKS) for one in policing.active.values()]
    found = {
        policy.key: policy.staged
        for one, hooks in asked
        for hook in hooks
        for direction in DIRECTIONS
        for tier in world.applied(one.key, direction, hook).tiers
        for policy in tier.policies
    }
    staged = sum(found.values())
    return len(found) - staged, staged


def _report(policing: Policing, endpoint: Endpoint, hooks: tuple[Hook, ...], counters: Counters) -> Json:
    counted = _Counted(policing.composed, counters)
    lists = {
        direction: [
            layer for hook in hooks for layer in _layers(policing.world, endpoint, direction, hook, counted)
        ]
        for direction in DIRECTIONS
    }
    return {
        "endpoint": str(endpoint.key),
        "node": endpoint.node,
        "interface": endpoint.interface,
        "addresses": sorted(map(str, endpoint.addresses)),
        "ingress": lists["Ingress"],
        "egress": lists["Egress"],
    }


class _Counted:
    """What the kernel counted, by what it is named after: on this node, or in one chain."""

    def __init__(self, composed: Composed, counters: Counters) -> None:
        self._all: dict[Origin, list[int]] = defaultdict(lambda: [0, 0])
        self._by_chain: dict[tuple[str, Origin], list[int]] = defaultdict(lambda: [0, 0])
        self.known = bool(counters)
        for version, found in counters.items():
            for (place, index), counter in found.items():
                if origin := composed.origin(version, place, index):
                    for total in (self._all[origin], self._by_chain[place.chain, origin]):
                        total[0] += counter.packets
                        total[1] += counter.bytes

    def of(self, origin: Origin, chain: str = "") -> Json:
        """Return packets and bytes, in one chain where one is named; null where the kernel could not be asked."""
        if not self.known:
            return {"packets": None, "bytes": None}
        packets, size = (
            self._by_chain.get((chain, origin), (0, 0)) if chain else self._all.get(origin, (0, 0))
        )
        return {"packets": packets, "bytes": size}


def _layers(
    world: World, endpoint: Endpoint, direction: Direction, hook: Hook, counted: _Counted
) -> Iterator[Json]:
    applied = world.applied(endpoint.key, direction, hook)
    chain = chain_of(world, endpoint.key, direction, hook)
    for tier in applied.tiers:
        for policy in tier.policies:
            owner = Origin("policy", str(policy.key), direction, staged=policy.staged)
            broken = Origin("broken", str(policy.key), direction, staged=policy.staged)
            yield _layer("policy", str(policy.key), hook) | {
                "tier": tier.name,
                "order": policy.order,
                "staged": policy.staged,
                "broken": policy.broken,
                "rules": _rules(policy.rules(direction) or (), owner, counted),
                "end": {"action": "Deny"} | counted.of(broken) if policy.broken else None,
            }
        yield from _end_of(tier, world, direction, hook, chain, counted)
    if hook != "normal":
        return
    for profile in applied.profiles:
        owner = Origin("profile", profile.name, direction)
        rules = _rules(profile.rules(direction), owner, counted)
        yield _layer("profile", profile.name, hook) | {"rules": rules}
    for name in endpoint.profiles:
        if name not in world.profiles:
            yield _layer("profile", name, hook) | {"missing": True}
    end = counted.of(Origin("no-profile", "", direction), chain)
    yield _layer("no-profile", "", hook) | {"end": {"action": "Deny"} | end}


def _end_of(
    tier: AppliedTier, world: World, direction: Direction, hook: Hook, chain: str, counted: _Counted
) -> Iterator[Json]:
    """The end of a tier; where all its policies are staged, what its end would do once they are not."""
    staged = all(policy.staged for policy in tier.policies)
    default = next(known.default for known in world.tiers if known.name == tier.name)
    if tier.default is None and (not staged or default != "Deny" or hook not in ("normal", "forward")):
        return
    origin = Origin("staged-tier" if staged else "tier", tier.name, direction, staged=staged)
    end = {"action": tier.default or default} | counted.of(origin, chain)
    yield _layer("tier", tier.name, hook) | {"tier": tier.name, "staged": staged, "end": end}


def _layer(what: str, name: str, hook: Hook) -> Json:
    return {
        "what": what,
        "name": name,
        "hook": hook,
        "tier": "",
        "order": None,
        "staged": False,
        "broken": "",
        "missing": False,
        "rules": [],
        "end": None,
    }


def _rules(rules: tuple[Rule, ...], owner: Origin, counted: _Counted) -> list[Json]:
    return [
        {"rule": rule.index, "action": rule.action, "match": words.of_rule(rule)}
        | counted.of(Origin(owner.what, owner.name, owner.direction, rule.index, owner.staged))
        for rule in rules
    ]
