"""Decides which groups there are, and reuses those of the render before wherever nothing of them changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from policy import naming
from policy.form import Applied, Direction, Line, Policy, Profile
from policy.render_chains import Chain, Frame, of_group, of_policy, of_profile
from policy.render_match import Version, Wanted

Place: TypeAlias = tuple[str, str]  # table and chain
Lines: TypeAlias = tuple[Line, ...]
Chains: TypeAlias = dict[Place, Lines]
# A policy's or profile's chain and its name, by identity: who is compared is held, so an id is never given twice.
_Asked: TypeAlias = dict[tuple[int, Direction, bool], tuple[Policy | Profile, str, Chain]]


@dataclass(frozen=True, slots=True)
class Part:
    """A group's chain, and those of the policies and profiles that it asks."""

    applied: Applied
    frame: Frame
    chains: Chains
    wanted: Wanted
    asked: _Asked


@dataclass(frozen=True, slots=True)
class Kept:
    """All parts of a render, also as one; never changed, so that several renders may begin with it."""

    parts: Mapping[Place, Part] = field(default_factory=dict)
    chains: Chains = field(default_factory=dict)
    wanted: Wanted = field(default_factory=dict)
    asked: _Asked = field(default_factory=dict)


class Parts:
    """The groups of one render, in the making."""

    def __init__(self, version: Version, before: Kept) -> None:
        self._version, self._before = version, before
        self._parts: dict[Place, Part] = {}
        self._asked: _Asked = {}

    def group(self, place: Place, applied: Applied, direction: Direction, frame: Frame, logged: bool) -> None:
        """Have a group whose chain is at `place`."""
        if place in self._parts:
            return
        part = self._before.parts.get(place)
        if part is None or part.frame != frame or part.applied != applied:
            part = self._made(place, applied, direction, frame, logged)
        self._parts[place] = part

    def kept(self) -> Kept:
        """Return all groups that there are to be."""
        before = self._before
        if len(self._parts) == len(before.parts) and all(
            before.parts.get(place) is part for place, part in self._parts.items()
        ):
            return before
        kept = Kept(self._parts, {}, {}, {})
        for part in self._parts.values():
            kept.chains.update(part.chains)
            kept.wanted.update(part.wanted)
            kept.asked.update(part.asked)
        return kept

    def _made(self, place: Place, applied: Applied, direction: Direction, frame: Frame, logged: bool) -> Part:
        part = Part(applied, frame, {}, {}, {})
        for policy in (policy for tier in applied.tiers for policy in tier.policies):
            self._ask(part, place[0], policy, direction, logged or policy.drop_log)
        for profile in applied.profiles:
            self._ask(part, place[0], profile, direction, logged)
        # A rule that changes is in the chain of its policy alone.
        before = self._before.parts.get(place)
        same = before and before.frame == frame and _list_of(before.applied) == _list_of(applied)
        part.chains[place] = (
            before.chains[place] if before and same else of_group(applied, direction, frame, logged)
        )
        return part

    def _ask(
        self, part: Part, table: str, asked: Policy | Profile, direction: Direction, logged: bool
    ) -> None:
        key = (id(asked), direction, logged)
        found = self._asked.get(key) or self._before.asked.get(key)
        if found is None:
            if isinstance(asked, Policy):
                name = naming.policy_chain(asked.key, direction, logged)
                chain = of_policy(asked, direction, self._version, logged)
            else:
                name = naming.profile_chain(asked.name, direction, logged)
                chain = of_profile(asked, direction, self._version, logged)
            found = asked, name, chain
        self._asked[key] = part.asked[key] = found
        part.chains[table, found[1]] = found[2].lines
        part.wanted.update(found[2].wanted)


def _list_of(applied: Applied) -> tuple[str, list[bool]]:
    """Return all that the chain of a group depends on, beside its frame."""
    return applied.id, [policy.drop_log for tier in applied.tiers for policy in tier.policies]
