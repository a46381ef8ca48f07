"""Decides what the packet filter and the ipsets hold, out of what each producer of rules wants; owns the hooks' order.

Rules of several producers for one hook stand in the order in which the producers are handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias, TypeVar, cast

from fabric.agent.translation import NOTHING, Publishing
from fabric.plan.ipsets import IPSet
from fabric.plan.tables import Place, Ruleset, Version
from policy import form, naming
from policy.form import Line, Origin, Rendered

Lines: TypeAlias = tuple[Line, ...]
Texts: TypeAlias = tuple[str, ...]
K = TypeVar("K")
V = TypeVar("V")
_At: TypeAlias = tuple[str, str]  # a Place, where nobody knows that word; they are equal


@dataclass(frozen=True)
class Composed:
    """Rules by family and ipsets by name, with what each rule is named after.

    `chains` are the rules of whole chains, `hooks` those in chains of others: first ones, then last ones. `publishing`
    is what connections are led by, which goes on for one that has begun until it is forgotten.
    """

    rulesets: Mapping[Version, Ruleset] = field(default_factory=dict)
    sets: Mapping[str, IPSet] = field(default_factory=dict)
    chains: Mapping[Version, Mapping[Place, Lines]] = field(default_factory=dict)
    hooks: Mapping[Version, Mapping[Place, Lines]] = field(default_factory=dict)
    publishing: Publishing = NOTHING
    made_from: Mapping[str, form.IPSet] = field(default_factory=dict, repr=False, compare=False)

    def origin(self, version: Version, place: Place, index: int) -> Origin | None:
        """Return what the rule at `index` of `place` is named after, None where that is nothing or no rule of ours."""
        chains = self.chains if place.is_ours else self.hooks
        lines = chains.get(version, {}).get(place, ())
        return lines[index].origin if index < len(lines) else None

    @cached_property
    def logged(self) -> Mapping[str, Origin]:
        """What a packet from NFLOG is named after, by the prefix that it carries."""
        chains = (lines for places in self.chains.values() for lines in places.values())
        logging = (lines for lines in chains if any(" NFLOG " in line.text for line in lines))
        origins = {line.origin for lines in logging for line in lines if line.origin}
        verbs: tuple[naming.Verb, ...] = ("deny", "log")
        return {naming.prefix(verb, origin): origin for origin in origins for verb in verbs}


def compose(
    rendered: Iterable[Rendered], before: Composed | None = None, publishing: Publishing = NOTHING
) -> Composed:
    """Return all of `rendered` as one; what is as it was in `before` is the same object again."""
    every, before = tuple(rendered), before or Composed()
    rulesets: dict[Version, Ruleset] = {}
    chains: dict[Version, Mapping[Place, Lines]] = {}
    hooks: dict[Version, Mapping[Place, Lines]] = {}
    for version in dict.fromkeys(one.version for one in every):
        found = [one for one in every if one.version == version]
        known = before.rulesets.get(version, Ruleset())
        chains[version], texts = _chains(
            _merged([one.chains for one in found]), before.chains.get(version, {}), known.chains
        )
        first, last = _joined(one.first for one in found), _joined(one.last for one in found)
        hooks[version] = {place: first.get(place, ()) + last.get(place, ()) for place in first | last}
        ruleset = Ruleset(texts, _texts(first), _texts(last))
        same = texts is known.chains and (ruleset.first, ruleset.last) == (known.first, known.last)
        rulesets[version] = known if same else ruleset
    made_from = _merged([one.sets for one in every])
    return Composed(rulesets, _sets(made_from, before), chains, hooks, publishing, made_from)


def _chains(
    now: Mapping[_At, Lines], before: Mapping[Place, Lines], written: Mapping[Place, Texts]
) -> tuple[Mapping[Place, Lines], Mapping[Place, Texts]]:
    """Return the chains of `now` by Place, and as texts, by what they were `before`, and were `written` as, then."""
    known = cast("Mapping[_At, Lines]", before)
    changed = [at for at, lines in now.items() if known.get(at) is not lines]
    if not changed and len(now) == len(before):
        return before, written
    chains, texts = dict(before), dict(written)
    for at in changed:
        place, lines = Place(*at), now[at]
        text = tuple(line.text for line in lines)
        chains[place] = lines
        if texts.get(place) != text:
            texts[place] = text
    for place in [place for place in chains if place not in now] if len(chains) > len(now) else ():
        del chains[place], texts[place]
    return chains, written if texts == written else texts


def _sets(now: Mapping[str, form.IPSet], before: Composed) -> Mapping[str, IPSet]:
    changed = [name for name, ipset in now.items() if before.made_from.get(name) is not ipset]
    if not changed and len(now) == len(before.sets):
        return before.sets
    sets = {name: ipset for name, ipset in before.sets.items() if name in now}
    for name in changed:
        ipset = IPSet(now[name].kind, now[name].version, now[name].members)
        if sets.get(name) != ipset:
            sets[name] = ipset
    return before.sets if sets == before.sets else sets


def _merged(every: list[Mapping[K, V]]) -> Mapping[K, V]:
    """Return all of `every` as one; where that is one alone, itself."""
    if len(every) == 1:
        return every[0]
    merged: dict[K, V] = {}
    for one in every:
        merged.update(one)
    return merged


def _joined(hooks: Iterable[Mapping[_At, Lines]]) -> dict[Place, Lines]:
    joined: dict[Place, Lines] = {}
    for one in hooks:
        for at, lines in one.items():
            joined[Place(*at)] = joined.get(Place(*at), ()) + lines
    return joined


def _texts(chains: Mapping[Place, Lines]) -> dict[Place, Texts]:
    return {place: tuple(line.text for line in lines) for place, lines in chains.items()}
