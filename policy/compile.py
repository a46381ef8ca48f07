"""Decide what all resources together say: who is selected, by what, and in which order.

What the World before was compiled from is compared by identity; only what came, and what that concerns, is compiled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import compress, count
from operator import is_not
from typing import Final, TypeAlias, TypeVar

from fabric.model import extensions, namespaces
from fabric.model.base import Metadata
from fabric.model.profile import Profile
from policy import order, rules, unread
from policy.form import AddressSet, Applied, Endpoint, Key, Policy, PortMember, PortSet, Prefix
from policy.items import Container, Item, item, key
from policy.order import TierForm
from policy.rules import ProfileForm
from policy.selector import Selector
from policy.unread import Unread
from policy.world import Asked, Parts, Resources, World

R = TypeVar("R")
V = TypeVar("V")

Changes: TypeAlias = Mapping[Key, Item | None]  # None is gone
Nets: TypeAlias = dict[AddressSet, frozenset[Prefix]]
Ports: TypeAlias = dict[PortSet, frozenset[PortMember]]

# There without a resource, and as it is whatever one says: host endpoints that others make by themselves use it.
DEFAULT_ALLOW: Final = namespaces.default_allow("projectcalico-default-allow")


def compile(resources: Resources, before: World | None = None) -> World:  # noqa: A001  what it does
    """Return what `resources` say. `before` is any World of earlier: what did not change since is taken from it."""
    old = before.parts if before else Parts()
    new = _with_profiles(old, resources)
    new = _with_policies(old, new, resources)
    new = _with_hosts(old, new, resources)
    changes, new = _with_selectable(old, new, resources)
    new = _indexed(old, new, changes)
    new = replace(new, resources=resources, problems=_problems(old, new))
    if not before:
        return World(new)
    return World(new, _applied_still(before, new), *_members_still(before, new, changes))


def _read(
    resources: Iterable[R], before: Mapping[int, tuple[R, V]], convert: Callable[[R], V]
) -> dict[int, tuple[R, V]]:
    """Return what each resource says, by its identity: that is its own as long as the resource is kept beside it."""
    return {id(each): before.get(id(each)) or (each, convert(each)) for each in resources}


def _with_profiles(old: Parts, resources: Resources) -> Parts:
    was, nodes, read = old.resources, old.logging_nodes, old.read_profiles
    if resources.nodes is not was.nodes:
        nodes = frozenset(node.metadata.name for node in resources.nodes if _logs(node.metadata))
    if not read or resources.profiles is not was.profiles or resources.unread is not was.unread:
        lost = (each for each in resources.unread if each.key.kind == "Profile")
        read = _read((*lost, *resources.profiles, DEFAULT_ALLOW), old.read_profiles, _profile)
        if read.keys() == old.read_profiles.keys():
            read = old.read_profiles
    if read is old.read_profiles:
        return replace(old, logging_nodes=nodes)
    profiles = {found.profile.name: found for _, found in read.values()}
    return replace(old, logging_nodes=nodes, read_profiles=read, profiles=profiles)


def _profile(resource: Profile | Unread) -> ProfileForm:
    if isinstance(resource, Unread):
        return unread.profile(resource)
    return replace(rules.profile(resource), drop_log=_logs(resource.metadata))


def _logs(metadata: Metadata) -> bool:
    return extensions.value(metadata.annotations, extensions.DROP_LOG, extensions.switch, False)


def _with_policies(old: Parts, new: Parts, resources: Resources) -> Parts:
    was, read, tiers = old.resources, old.read_policies, old.tiers
    same_unread = resources.unread is was.unread
    if resources.policies is not was.policies or not same_unread:
        lost = (each for each in resources.unread if each.key.kind in rules.POLICIES)
        read = _read((*resources.policies, *lost), old.read_policies, _policy)
        if read.keys() == old.read_policies.keys():
            read = old.read_policies
    if not tiers or read is not old.read_policies or resources.tiers is not was.tiers or not same_unread:
        lost_tiers = (unread.tier(each) for each in resources.unread if each.key.kind == "Tier")
        policies = [found.policy for _, found in read.values() if found.policy]
        tiers = order.ordered((*map(order.head, resources.tiers), *lost_tiers), policies)
        if tiers == old.tiers:
            tiers = old.tiers
    if read is not old.read_policies or new.profiles is not old.profiles:
        peers: dict[str, Selector] = {}
        for _, policy in read.values():
            peers.update(policy.peers)
        for profile in new.profiles.values():
            peers.update(profile.peers)
        new = replace(new, peer_terms=peers)
    if tiers is not old.tiers:
        new = replace(new, tiers=tiers, by_subject=_by_subject(tiers))
    return replace(new, read_policies=read)


def _policy(resource: rules.PolicyResource | Unread) -> rules.Compiled:
    if isinstance(resource, Unread):
        return unread.policy(resource)
    return rules.policy(resource, key(resource))


def _by_subject(tiers: tuple[TierForm, ...]) -> Mapping[str, list[tuple[int, int, Policy]]]:
    by_subject = defaultdict[str, list[tuple[int, int, Policy]]](list)
    for place, tier in enumerate(tiers):
        for index, policy in enumerate(tier.policies):
            by_subject[policy.selector].append((place, index, policy))
    return dict(by_subject)


def _with_hosts(old: Parts, new: Parts, resources: Resources) -> Parts:
    was = old.resources
    if resources.hosts is was.hosts and resources.unread is was.unread:
        return new
    lost = (each for each in resources.unread if each.key.kind == "HostEndpoint")
    read = _read(lost, old.read_hosts, unread.host)
    return replace(
        new, read_hosts=read, hosts=(*resources.hosts, *(found for _, found in read.values() if found))
    )


def _with_selectable(old: Parts, new: Parts, resources: Resources) -> tuple[Changes, Parts]:
    """Return what changed of the items, also where that is what their profiles and nodes hand on."""
    was, changes = old.resources, dict[Key, Item | None]()
    pairs = (
        _differing(was.workloads, resources.workloads),
        _differing(old.hosts, new.hosts),
        _differing(was.network_sets, resources.network_sets),
    )
    changes |= {key(each): None for gone, _ in pairs for each in gone}
    changes |= {key(each): item(each, new.profiles, new.logging_nodes) for _, came in pairs for each in came}
    profiles, nodes = _handing_on_otherwise(old, new), old.logging_nodes ^ new.logging_nodes
    if profiles or nodes:
        for each, found in old.items.items():
            concerned = found.node in nodes or not profiles.isdisjoint(found.profiles)
            if concerned and each not in changes:
                changes[each] = item(found.resource, new.profiles, new.logging_nodes)
    containers = _with_siblings(old, changes)
    for each, now in changes.items():
        before = old.items.get(each)
        if now and before and before.endpoint and before.endpoint == now.endpoint:
            changes[each] = replace(now, labels=before.labels, endpoint=before.endpoint)
    return changes, replace(new, containers=containers)


def _differing(old: tuple[R, ...], new: tuple[R, ...]) -> tuple[list[R], list[R]]:
    """Return what is in `old` alone, and what in `new` alone, by identity."""
    if old is new:
        return [], []
    # Of 10,000 endpoints most stand where they stood, and this does not look at them one by one in Python.
    start = next(compress(count(), map(is_not, old, new)), min(len(old), len(new)))
    had, has = {id(each): each for each in old[start:]}, {id(each): each for each in new[start:]}
    return [had[each] for each in had.keys() - has.keys()], [has[each] for each in has.keys() - had.keys()]


def _with_siblings(old: Parts, changes: dict[Key, Item | None]) -> Mapping[Container, frozenset[Key]]:
    """Return the endpoints of each container, and give them each other's addresses in `changes`."""
    containers, touched = dict(old.containers), set[Container]()
    for each, now in changes.items():
        was = old.items.get(each)
        for found in (was, now):
            if found and found.container:
                touched.add(found.container)
        if was and was.container and (now is None or now.container != was.container):
            containers[was.container] -= {each}
        if now and now.container:
            containers[now.container] = containers.get(now.container, frozenset()) | {each}
    for container in touched:
        members = {each: changes.get(each) or old.items[each] for each in containers[container]}
        if not members:
            del containers[container]
        # One that has lost its siblings is among these, as it has their addresses still.
        if len(members) > 1 or any(each not in changes for each in members):
            for each, found in members.items():
                others = (net for sibling in members.values() if sibling is not found for net in sibling.nets)
                if (now := found.with_siblings(others)) is not found:
                    changes[each] = now
    return containers if touched else old.containers


def _handing_on_otherwise(old: Parts, new: Parts) -> frozenset[str]:
    """Return the profiles that now give their endpoints other labels, or another wish to have drops named."""
    if new.profiles is old.profiles:
        return frozenset()

    def handed_on(profile: ProfileForm | None) -> object:
        return (profile.labels, profile.drop_log) if profile else ({}, False)

    both = old.profiles.keys() | new.profiles.keys()
    return frozenset(
        name for name in both if handed_on(old.profiles.get(name)) != handed_on(new.profiles.get(name))
    )


def _indexed(old: Parts, new: Parts, changes: Changes) -> Parts:
    """Return `new` with everything that goes by items, or by selectors of policies, brought up to date."""
    subjects = None
    if new.read_policies is not old.read_policies:
        compiled = (each for _, each in new.read_policies.values())
        subjects = {each.policy.selector: each.subject for each in compiled if each.policy and each.subject}
    peers = new.peer_terms if new.peer_terms is not old.peer_terms else None
    if not changes:
        return replace(new, subjects=old.subjects.changed(subjects, {}), peers=old.peers.changed(peers, {}))
    endpoints = {
        each: now.endpoint if now else None
        for each, now in changes.items()
        if each in old.endpoints or (now and now.endpoint)
    }
    nets = [
        (each, was.nets if (was := old.items.get(each)) else frozenset(), now.nets if now else frozenset())
        for each, now in changes.items()
    ]
    return replace(
        new,
        items=_updated(old.items, changes),
        endpoints=_updated(old.endpoints, endpoints),
        by_node=_by_node(old, endpoints),
        subjects=old.subjects.changed(
            subjects, {each: now.labels if now else None for each, now in endpoints.items()}
        ),
        peers=old.peers.changed(peers, {each: now.labels if now else None for each, now in changes.items()}),
        holders=old.holders.changed(
            gone=[(each, net) for each, had, has in nets for net in had - has],
            came=[(each, net) for each, had, has in nets for net in has - had],
        ),
    )


def _updated(known: Mapping[Key, V], changes: Mapping[Key, V | None]) -> dict[Key, V]:
    new = dict(known)
    for each, now in changes.items():
        if now is None:
            new.pop(each, None)
        else:
            new[each] = now
    return new


def _by_node(old: Parts, endpoints: Mapping[Key, Endpoint | None]) -> dict[str, Mapping[Key, Endpoint]]:
    by_node = dict(old.by_node)
    changes = defaultdict[str, dict[Key, Endpoint | None]](dict)
    for each, now in endpoints.items():
        was = old.endpoints.get(each)
        if was and (now is None or was.node != now.node):
            changes[was.node][each] = None
        if now:
            changes[now.node][each] = now
    for node, changed in changes.items():
        by_node[node] = _updated(by_node.get(node, {}), changed)
        if not by_node[node]:
            del by_node[node]
    return by_node


def _problems(old: Parts, new: Parts) -> Mapping[str, str]:
    untracked = [policy for tier in new.tiers for policy in tier.policies if policy.do_not_track]
    if (
        new.tiers is old.tiers
        and new.read_policies is old.read_policies
        and new.read_profiles is old.read_profiles
        and new.read_hosts.keys() == old.read_hosts.keys()
        and (new.subjects is old.subjects or not untracked)
    ):
        return old.problems
    found: dict[str, str] = {}
    for tier in new.tiers:
        if tier.problem:
            found[f"Tier {tier.name}"] = tier.problem
        if not tier.exists:
            for policy in tier.policies:
                found[str(policy.key)] = (
                    f"spec.tier: there is no tier {tier.name}; until there is, the policy comes behind all tiers, "
                    "and what it selects and does not decide is denied there"
                )
    for policy in untracked:
        selected = (new.endpoints[each] for each in new.subjects.members.get(policy.selector, ()))
        if every := [each.key for each in selected if each.interface == "*"]:
            found[str(policy.key)] = (
                f"spec.doNotTrack: it selects {min(every)}, which is for every link: what is not tracked is decided "
                "on links that have a host endpoint of their own"
            )
    for _, compiled in new.read_policies.values():
        if compiled.problem:
            found[str(compiled.key)] = compiled.problem
    for profile in new.profiles.values():
        if profile.problem:
            found[f"Profile {profile.profile.name}"] = profile.problem
    for lost, host in new.read_hosts.values():
        does = unread.HOST_STANDS if host else unread.HOST_IS_NONE
        found[str(lost.key)] = f"{lost.why}; {does}"
    return old.problems if found == old.problems else found


def _applied_still(before: World, new: Parts) -> dict[Asked, Applied]:
    """Return what was worked out before and holds still."""
    old, known = before.parts, before.known_applied.copy()
    if len(known) > 8 * len(new.endpoints):
        return {}  # more than can be asked for: most is of what no longer is
    if new.tiers is old.tiers and new.profiles is old.profiles:
        return known
    if [tier.head for tier in new.tiers] != [tier.head for tier in old.tiers]:
        return {}
    identities = old.read_policies.keys() ^ new.read_policies.keys()
    differing = [
        compiled.policy.selector
        for each in identities
        for _, compiled in [old.read_policies.get(each) or new.read_policies[each]]
        if compiled.policy
    ]
    profiles = {
        name
        for name in old.profiles.keys() | new.profiles.keys()
        if _rules_of(old, name) is not _rules_of(new, name)
    }
    return {
        asked: applied
        for asked, applied in known.items()
        if asked.matched.isdisjoint(differing) and profiles.isdisjoint(asked.profiles)
    }


def _rules_of(parts: Parts, name: str) -> object:
    found = parts.profiles.get(name)
    return found and found.profile


def _members_still(before: World, new: Parts, changes: Changes) -> tuple[Nets, Ports]:
    """Return the sets that were worked out before: as they are where that holds, or with what came and went."""
    old, nets, ports = before.parts, before.known_nets.copy(), before.known_ports.copy()
    touched = defaultdict[str, set[Key]](set)
    for each, now in changes.items():
        was = old.items.get(each)
        had, has = old.peers.matched.get(each, frozenset()), new.peers.matched.get(each, frozenset())
        same = was is not None and now is not None and was.offers == now.offers
        for text in had ^ has if same else had | has:
            touched[text].add(each)
    # What nobody's rules name was looked for item by item, and nothing tells how it changed.
    named = old.peer_terms.keys() & new.peer_terms.keys()
    return (
        {
            wanted: _edited(found, old, new, wanted.selector, touched.get(wanted.selector, ()))
            for wanted, found in nets.items()
            if wanted.selector in named
        },
        {
            wanted: found
            for wanted, found in ports.items()
            if wanted.selector in named and wanted.selector not in touched
        },
    )


def _edited(
    members: frozenset[Prefix], old: Parts, new: Parts, selector: str, touched: Iterable[Key]
) -> frozenset[Prefix]:
    """Return the prefixes of a set, of which `touched` came, went, or have others now."""
    if not touched:
        return members
    had, has = old.peers.members.get(selector, frozenset()), new.peers.members.get(selector, frozenset())
    gone = {net for each in touched if each in had for net in old.items[each].nets}
    came = {net for each in touched if each in has for net in new.items[each].nets}
    gone = {net for net in gone - came if has.isdisjoint(new.holders.of(net))}
    return (members - gone) | came if gone or came - members else members
