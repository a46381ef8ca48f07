"""Decide what the rules of BGPFilters make of a route: which rule matches first, and what it changes.

Source: calico-semantics §7, "BGPFilter rule", and the BIRD filters that Calico makes of them. Rules are compiled once
for a table of routes, since ten thousand of them meet each one.

What a rule sees of a route:

- Its AS path is the received one; a route of this node's own has none. On export, the local AS is put in front of it
  last, before what prependASPath put there, so that it is the first on the wire (RFC 4271 §5.1.2).
- Its priority is 2147483647 minus the local preference; a path that carries none counts as 100.
- Its interface is the link that leads to it: a workload's, `lo` for the node's own address, for a path that of its next
  hop, as far as routes that BGP did not make lead there. An own block is a blackhole, and has none; `*` alone matches
  that too, as in BIRD.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from bgp.rib import AS_SET, Prefix
from fabric.model.bgpfilter import BGPFilter, FilterRuleV4, FilterRuleV6, Operation

Direction: TypeAlias = Literal["import", "export"]
FilterRule: TypeAlias = FilterRuleV4 | FilterRuleV6

HIGHEST_PRIORITY = 2_147_483_647


@dataclass(frozen=True, slots=True)
class RuleId:
    """One rule of a BGPFilter; `index` counts from 0 in its list."""

    filter: str
    direction: Direction
    version: int
    index: int

    def __str__(self) -> str:
        return f"BGPFilter {self.filter}, {self.direction}V{self.version}[{self.index}]"


class Seen(NamedTuple):
    """What rules match and change. `local_pref` is the one that counts, also where none was sent."""

    prefix: Prefix
    local_pref: int
    learned: bool = True
    device: str = ""
    as_path: tuple[int, ...] = ()
    as_sets: frozenset[int] = frozenset()
    communities: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """`rule` decided; `seen` is the route after the rule's operations."""

    rule: RuleId
    accepted: bool
    seen: Seen


Test: TypeAlias = Callable[[Seen], bool]
Change: TypeAlias = Callable[[Seen], Seen]


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule: it matches where all tests pass."""

    id: RuleId
    accepts: bool
    tests: tuple[Test, ...]
    changes: tuple[Change, ...]


Rules: TypeAlias = Mapping[int, tuple[Rule, ...]]


def compiled(filters: Iterable[BGPFilter], direction: Direction, *, external: bool) -> Rules:
    """Return by family the rules that count on a session, in the order in which they are tried."""
    rules: dict[int, list[Rule]] = {4: [], 6: []}
    peer_type = "eBGP" if external else "iBGP"
    for found in filters:
        for version, index, rule in _listed(found, direction):
            if rule.peer_type in (None, peer_type):
                name = RuleId(found.metadata.name, direction, version, index)
                changes = tuple(map(_change, rule.operations))
                rules[version].append(Rule(name, rule.action == "Accept", tuple(_tests(rule)), changes))
    return {version: tuple(found) for version, found in rules.items()}


def decide(rules: Rules, seen: Seen) -> Verdict | None:
    """Return what the first rule that matches decides, None where none does."""
    for rule in rules[seen.prefix.version]:
        for test in rule.tests:
            if not test(seen):
                break
        else:
            for change in rule.changes:
                seen = change(seen)
            return Verdict(rule.id, rule.accepts, seen)
    return None


def _listed(found: BGPFilter, direction: Direction) -> Iterator[tuple[int, int, FilterRule]]:
    spec = found.spec
    by_version: dict[int, tuple[FilterRule, ...]] = (
        {4: spec.import_v4, 6: spec.import_v6}
        if direction == "import"
        else {4: spec.export_v4, 6: spec.export_v6}
    )
    for version, rules in by_version.items():
        for index, rule in enumerate(rules):
            yield version, index, rule


def _tests(rule: FilterRule) -> Iterator[Test]:
    if rule.cidr is not None:
        yield _prefix_test(rule, rule.cidr)
    if rule.source is not None:
        yield lambda seen: seen.learned
    if rule.interface is not None:
        yield _interface_test(rule.interface)
    if rule.communities is not None:
        yield _community_test(rule.communities.values[0])
    if rule.as_path_prefix:
        yield _as_path_test(rule.as_path_prefix)
    if rule.priority is not None:
        yield _local_pref_test(HIGHEST_PRIORITY - rule.priority)


def _prefix_test(rule: FilterRule, cidr: Prefix) -> Test:
    """`In` is contained or equal, and of a length within the bounds; `NotIn` and `NotEqual` are the exact opposites.

    Bounds outside the cidr's length and a single address's are drawn in to these; with none left between them,
    nothing is `In`. `Equal` too asks the cidr's own length to be within the bounds; BIRD, comparing a prefix with a
    set of them, would find nothing equal ever.
    """
    bits, length = cidr.max_prefixlen, cidr.prefixlen
    bounds = rule.prefix_length
    shortest = max(length, bounds.min) if bounds and bounds.min is not None else length
    longest = min(bits, bounds.max) if bounds and bounds.max is not None else bits
    shift = bits - length
    network = int(cidr.network_address) >> shift
    if rule.match_operator in ("Equal", "NotEqual"):
        longest = length if longest >= length else -1
    wanted = rule.match_operator in ("Equal", "In")

    def test(seen: Seen) -> bool:
        prefix = seen.prefix
        matches = shortest <= prefix.prefixlen <= longest and int(prefix.network_address) >> shift == network
        return matches is wanted

    return test


def _interface_test(pattern: str) -> Test:
    matches = re.compile(re.escape(pattern).replace(r"\*", ".*")).fullmatch
    return lambda seen: matches(seen.device) is not None


def _community_test(text: str) -> Test:
    value = _canonical(text)
    return lambda seen: value in seen.communities


def _as_path_test(prefix: tuple[int, ...]) -> Test:
    def begins(seen: Seen) -> bool:
        return len(seen.as_path) >= len(prefix) and all(
            wanted in seen.as_sets if found == AS_SET else found == wanted
            for wanted, found in zip(prefix, seen.as_path, strict=False)
        )

    return begins


def _local_pref_test(local_pref: int) -> Test:
    return lambda seen: seen.local_pref == local_pref


def _change(operation: Operation) -> Change:
    if (added := operation.add_community) is not None:
        return _adding(_canonical(added.value))
    if (prepended := operation.prepend_as_path) is not None:
        return lambda seen: seen._replace(as_path=prepended.prefix + seen.as_path)
    assert operation.set_priority is not None  # the model wants exactly one of the three
    local_pref = HIGHEST_PRIORITY - operation.set_priority.value
    return lambda seen: seen._replace(local_pref=local_pref)


def _adding(value: str) -> Change:
    return lambda seen: seen._replace(communities=with_communities(seen.communities, (value,)))


def with_communities(communities: tuple[str, ...], added: Iterable[str]) -> tuple[str, ...]:
    """Return `communities` and those of `added` that are not among them; a set in BGP (RFC 1997, RFC 8092 §2)."""
    return tuple(dict.fromkeys((*communities, *map(_canonical, added))))


def _canonical(text: str) -> str:
    """As the speaker writes it: no leading zeros."""
    return ":".join(str(int(part)) for part in text.split(":"))
