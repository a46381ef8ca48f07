"""Decides the chains of policies and profiles, and of groups: endpoints whose one direction the same list decides.

A group asks its policies in turn while no mark of a verdict is set, so a rule is one line, and its counter is exact:

    group  ─▶ policy: Allow = goto fab-allow, Pass = goto fab-pass, which mark and go back to the group; Deny = DROP
           ─▶ staged: any verdict = goto fab-staged, so that the first staged verdict of a tier is the only one counted
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from policy import naming
from policy.form import Applied, AppliedTier, Direction, Line, Origin, Policy, Profile, Rule
from policy.marks import Marks
from policy.render_match import Version, Wanted
from policy.render_match import lines as matches

ALLOW: Final = "fab-allow"
PASSED: Final = "fab-pass"
STAGED: Final = "fab-staged"
_TARGETS: Final = {"Allow": f"-g {ALLOW}", "Pass": f"-g {PASSED}", "Deny": "-j DROP"}
# Of one rule, so that a flood of denied packets does not become a flood of messages.
_LIMIT: Final = "-m limit --limit 10/second --limit-burst 10"


@dataclass(frozen=True, slots=True)
class Chain:
    """Lines, and the sets that they match by."""

    lines: tuple[Line, ...]
    wanted: Wanted


def marking(marks: Marks) -> dict[str, tuple[Line, ...]]:
    """Return the chains that a verdict is a goto to."""
    return {
        chain: (Line(f"-j MARK --set-xmark {bit:#x}/{bit:#x}"),)
        for chain, bit in zip((ALLOW, PASSED, STAGED), marks, strict=True)
    }


def of_policy(policy: Policy, direction: Direction, version: Version, logged: bool) -> Chain:
    """Return the chain of one policy; `logged` has its denied packets named."""
    if policy.broken:
        origin = Origin("broken", str(policy.key), direction, staged=policy.staged)
        return Chain(tuple(_verdict("", "Deny", origin, logged)), {})
    owner = Origin("policy", str(policy.key), direction, staged=policy.staged)
    return _rules(policy.rules(direction) or (), owner, version, logged)


def of_profile(profile: Profile, direction: Direction, version: Version, logged: bool) -> Chain:
    """Return the chain of one profile."""
    return _rules(profile.rules(direction), Origin("profile", profile.name, direction), version, logged)


def _rules(rules: tuple[Rule, ...], owner: Origin, version: Version, logged: bool) -> Chain:
    wanted: Wanted = {}
    found: list[Line] = []
    for rule in rules:
        origin = Origin(owner.what, owner.name, owner.direction, rule.index, owner.staged)
        for match in matches(rule, version, wanted):
            found += _verdict(match, rule.action, origin, logged)
    return Chain(tuple(found), wanted)


def _verdict(match: str, action: str, origin: Origin, logged: bool) -> Iterator[Line]:
    if action == "Log":
        yield Line(match, origin)  # counts what the limit leaves out
        yield Line(_joined(match, nflog("log", origin)))
        return
    if action == "Deny" and logged:
        yield Line(_joined(match, nflog("deny", origin)))
    yield Line(_joined(match, f"-g {STAGED}" if origin.staged else _TARGETS[action]), origin)


def drop(match: str, origin: Origin, logged: bool) -> Iterator[Line]:
    """Return the lines of a drop that no rule of the user's asks for."""
    return _verdict(match, "Deny", origin, logged)


def nflog(verb: naming.Verb, origin: Origin) -> str:
    """Return the target that has a packet named, no more often than the limit says."""
    return (
        f"{_LIMIT} -j NFLOG --nflog-group {naming.NFLOG_GROUP} --nflog-prefix {naming.prefix(verb, origin)}"
    )


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds the list of a group: lines before it, what an allowed packet does, and whether it ends in a drop.

    `would_deny` are the tiers whose end denies once their policies are no longer staged.
    """

    marks: Marks
    head: tuple[Line, ...]
    allowed: tuple[str, ...]
    closed: bool
    would_deny: frozenset[str]


def of_group(applied: Applied, direction: Direction, frame: Frame, logged: bool) -> tuple[Line, ...]:
    """Return the chain that asks `applied`; packets come by a goto, so RETURN is the end of it."""
    return tuple(_Group(applied, direction, frame, logged).lines())


class _Group:
    def __init__(self, applied: Applied, direction: Direction, frame: Frame, logged: bool) -> None:
        self.applied, self.direction, self.frame, self.logged = applied, direction, frame, logged
        self.marks = frame.marks
        self.accepted = tuple(Line(f"{having(self.marks.accept)} {target}") for target in frame.allowed)

    def lines(self) -> Iterator[Line]:
        yield from self.frame.head
        yield clear(self.marks.all)
        for number, tier in enumerate(self.applied.tiers):
            if number:
                yield clear(self.marks.passed | self.marks.staged)
            yield from self._tier(tier)
        if not self.frame.closed:
            return
        for profile in self.applied.profiles:
            chain = naming.profile_chain(profile.name, self.direction, self.logged)
            yield Line(f"{without(self.marks.accept)} -j {chain}")
        if self.applied.profiles:
            yield from self.accepted
        yield from drop("", Origin("no-profile", "", self.direction), self.logged)

    def _tier(self, tier: AppliedTier) -> Iterator[Line]:
        decided = self.marks.accept | self.marks.passed
        for policy in tier.policies:
            logged = self.logged or policy.drop_log
            chain = naming.policy_chain(policy.key, self.direction, logged)
            yield Line(f"{without(self.marks.all if policy.staged else decided)} -j {chain}")
        if not all(policy.staged for policy in tier.policies):
            yield from self.accepted
        if tier.default is None:
            if tier.name in self.frame.would_deny and all(policy.staged for policy in tier.policies):
                origin = Origin("staged-tier", tier.name, self.direction, staged=True)
                yield Line(without(self.marks.staged), origin)
            return
        end, origin = without(self.marks.passed), Origin("tier", tier.name, self.direction)
        if tier.default == "Deny":
            yield from drop(end, origin, self.logged or any(policy.drop_log for policy in tier.policies))
        else:
            yield Line(end, origin)


def having(bit: int) -> str:
    """Return the match of packets that carry the mark `bit`."""
    return f"-m mark --mark {bit:#x}/{bit:#x}"


def without(bits: int) -> str:
    """Return the match of packets that carry none of `bits`."""
    return f"-m mark --mark 0x0/{bits:#x}"


def clear(bits: int) -> Line:
    """Return the line that takes `bits` off every packet."""
    return Line(f"-j MARK --set-xmark 0x0/{bits:#x}")
