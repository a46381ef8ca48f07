"""Decide in which order tiers, and policies within one, are asked (calico-semantics §2.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fabric.model.tier import BUILT_IN, Tier
from policy.form import Policy


@dataclass(frozen=True, slots=True)
class TierForm:
    """A tier with its policies in order, staged ones among them. `exists` is False where only policies name it."""

    name: str
    order: float | None
    default: Literal["Deny", "Pass"]
    policies: tuple[Policy, ...] = ()
    exists: bool = True
    problem: str = ""

    @property
    def head(self) -> object:
        """All of it but its policies."""
        return self.name, self.order, self.default, self.exists


def head(tier: Tier) -> TierForm:
    """Return a tier without its policies."""
    return TierForm(tier.metadata.name, tier.spec.order, tier.spec.default_action)


def ordered(heads: Iterable[TierForm], policies: Iterable[Policy]) -> tuple[TierForm, ...]:
    """Return every tier with its policies, in the order in which they are asked.

    The built-in ones are there without a head, and as they always are whatever one says. A tier that only policies
    name comes behind all others and denies at its end.
    """
    by_tier = defaultdict[str, list[Policy]](list)
    for policy in policies:
        by_tier[policy.tier].append(policy)
    known = {each.name: each for each in heads}
    known |= {name: TierForm(name, order, default) for name, (order, default) in BUILT_IN.items()}
    known |= {name: TierForm(name, None, "Deny", exists=False) for name in by_tier.keys() - known.keys()}
    filled = [replace(each, policies=_sorted(by_tier[name])) for name, each in known.items()]
    return tuple(sorted(filled, key=_place_of_tier))


def _place_of_tier(tier: TierForm) -> tuple[bool, bool, float, str]:
    return not tier.exists, tier.order is None, tier.order or 0, tier.name


def _sorted(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    return tuple(sorted(policies, key=_place_of_policy))


def _place_of_policy(policy: Policy) -> tuple[bool, float, str]:
    kind, namespace, name = policy.key
    return policy.order is None, policy.order or 0, f"{name}/{namespace}/{kind}"
