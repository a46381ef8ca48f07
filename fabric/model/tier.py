"""Decide which tiers are valid; three of them always exist and do not change (Calico's Tier)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from fabric.model.base import Means, Metadata, Model, Resource, named
from fabric.model.fields import DNS_LABEL, Order, broken, matching

_ONE_LABEL = rf"(?=.{{1,63}}$){DNS_LABEL}"
_NAME_RULE = "a tier's name is at most 63 lower-case letters, digits and '-'"

TierName: TypeAlias = Annotated[str, matching(_ONE_LABEL, _NAME_RULE)]
DefaultAction: TypeAlias = Literal["Deny", "Pass"]


class TierSpec(Model):
    """`default_action` meets what a policy of the tier selects and no rule of it decides."""

    order: Annotated[Order | None, Means("(last)")] = None
    default_action: DefaultAction = "Deny"


class TierStatus(Model):
    conditions: tuple[Mapping[str, Any], ...] = ()


# Order and default action of the tiers that nobody may change or delete (calico-semantics §2.1).
BUILT_IN: Final[Mapping[str, tuple[int, DefaultAction]]] = {
    "kube-admin": (1_000, "Pass"),
    "default": (1_000_000, "Deny"),
    "kube-baseline": (10_000_000, "Pass"),
}


class Tier(Resource):
    kind: Literal["Tier"] = "Tier"
    metadata: Annotated[Metadata, named(_ONE_LABEL, _NAME_RULE)]
    spec: TierSpec = Field(default_factory=TierSpec)
    status: TierStatus = Field(default_factory=TierStatus)

    @model_validator(mode="after")
    def _built_in_stays(self) -> Self:
        order, action = BUILT_IN.get(self.metadata.name, (self.spec.order, self.spec.default_action))
        if (self.spec.order, self.spec.default_action) != (order, action):
            rule = (
                f"the built-in tier {self.metadata.name} has order {order} and defaultAction {action}, always"
            )
            raise broken(rule, "spec")
        return self
