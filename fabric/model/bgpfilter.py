"""Decide which BGP filters are valid (Calico's BGPFilter)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from fabric.model.base import Model, Resource
from fabric.model.fields import ASNumber, Community, Prefix, V4Net, V6Net, broken, matching

InterfacePattern = Annotated[
    str, matching(r"[a-zA-Z0-9_.*-]{1,15}", "must be an interface's name, with * for any text")
]
Priority = Annotated[int, Field(strict=True, ge=1, le=2_147_483_646)]
V4Length: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=32)]
V6Length: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=128)]


class PrefixLengthV4(Model):
    """An absent `min` is the length of the rule's cidr, an absent `max` that of one address."""

    min: V4Length | None = None
    max: V4Length | None = None


class PrefixLengthV6(Model):
    """As in PrefixLengthV4."""

    min: V6Length | None = None
    max: V6Length | None = None


class CommunityMatch(Model):
    values: Annotated[tuple[Community, ...], Field(min_length=1, max_length=1)]


class AddCommunity(Model):
    value: Community


class PrependASPath(Model):
    """The path then begins with `prefix`, in the order written."""

    prefix: Annotated[tuple[ASNumber, ...], Field(min_length=1, max_length=10)]


class SetPriority(Model):
    value: Priority


class Operation(Model):
    add_community: AddCommunity | None = None
    prepend_as_path: PrependASPath | None = Field(default=None, alias="prependASPath")
    set_priority: SetPriority | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [self.add_community, self.prepend_as_path, self.set_priority]
        if given.count(None) != len(given) - 1:
            raise ValueError("needs exactly one of addCommunity, prependASPath and setPriority")
        return self


class _FilterRule(Model):
    """Everything given must match; `priority` is 2147483647 minus the local preference."""

    blank_is_absent: ClassVar = frozenset({"cidr", "source", "interface", "matchOperator"})

    cidr: Prefix | None = None
    prefix_length: PrefixLengthV4 | PrefixLengthV6 | None = None
    source: Literal["RemotePeers"] | None = None
    interface: InterfacePattern | None = None
    match_operator: Literal["Equal", "NotEqual", "In", "NotIn"] | None = None
    peer_type: Literal["eBGP", "iBGP"] | None = None
    communities: CommunityMatch | None = None
    as_path_prefix: tuple[ASNumber, ...] = Field(default=(), alias="asPathPrefix")
    priority: Priority | None = None
    action: Literal["Accept", "Reject"]
    operations: Annotated[tuple[Operation, ...], Field(max_length=10)] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.cidr and not self.match_operator:
            raise broken("needs matchOperator", "cidr", value=self.cidr, needs=("matchOperator",))
        if self.match_operator and not self.cidr:
            raise broken("needs cidr", "matchOperator", value=self.match_operator, needs=("cidr",))
        if self.prefix_length and self.cidr is None:
            raise broken("needs cidr", "prefixLength", needs=("cidr",))
        if self.operations and self.action != "Accept":
            raise broken("need action Accept", "operations", needs=("action",))
        return self


class FilterRuleV4(_FilterRule):
    cidr: V4Net | None = None
    prefix_length: PrefixLengthV4 | None = None


class FilterRuleV6(_FilterRule):
    cidr: V6Net | None = None
    prefix_length: PrefixLengthV6 | None = None


class BGPFilterSpec(Model):
    """Each list in order, the first rule that matches decides."""

    export_v4: tuple[FilterRuleV4, ...] = Field(default=(), alias="exportV4")
    import_v4: tuple[FilterRuleV4, ...] = Field(default=(), alias="importV4")
    export_v6: tuple[FilterRuleV6, ...] = Field(default=(), alias="exportV6")
    import_v6: tuple[FilterRuleV6, ...] = Field(default=(), alias="importV6")


class BGPFilter(Resource):
    kind: Literal["BGPFilter"] = "BGPFilter"
    spec: BGPFilterSpec = Field(default_factory=BGPFilterSpec)
