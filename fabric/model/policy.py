"""Decide which policies are valid, and what is derived when one is written (Calico's policy kinds).

Source: calico-semantics §§2, 4, 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fabric.model import k8s
from fabric.model.base import COPIED_METADATA, Means, Metadata, Model, Resource, named, names_only, tree
from fabric.model.fields import DNS_LABEL, DNS_NAME, Flag, LocalSelector, Order, broken, no_repeats
from fabric.model.kinds import KUBERNETES_NAME as KUBERNETES_NAME
from fabric.model.rule import EgressRules, GlobalEgressRules, GlobalIngressRules, IngressRules, Rule
from fabric.model.tier import TierName

TIER_LABEL = "projectcalico.org/tier"
DEFAULT_TIER = "default"

PolicyType: TypeAlias = Literal["Ingress", "Egress"]
StagedAction: TypeAlias = Literal["Set", "Delete", "Learn", "Ignore"]

Types: TypeAlias = Annotated[tuple[PolicyType, ...], AfterValidator(no_repeats)]
Hints: TypeAlias = Annotated[tuple[Literal["AssumeNeededOnEveryNode"], ...], AfterValidator(no_repeats)]

_ONE_DOT = rf"({DNS_LABEL}\.)?{DNS_LABEL}"
# Kubernetes' and OpenStack's policies, as older releases of Calico name them.
_CONVERTED = rf"(knp|ossg)\.default\.{DNS_NAME}"
_NAME_RULE = "a policy's name is lower-case letters, digits and '-', with at most one '.'"

PolicyMetadata: TypeAlias = Annotated[Metadata, named(rf"{_ONE_DOT}|{_CONVERTED}", _NAME_RULE)]
GlobalPolicyMetadata: TypeAlias = Annotated[Metadata, named(_ONE_DOT, _NAME_RULE)]


class _PolicySpec(Model):
    """What every policy has. An absent `order` is last in its tier; `types` are derived on writing (§2.3)."""

    tier: Annotated[TierName, BeforeValidator(lambda tier: tier or DEFAULT_TIER)] = DEFAULT_TIER
    order: Annotated[Order | None, Means("(last)")] = None
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    selector: LocalSelector = ""
    types: Annotated[Types, Means("(by the rules there are)")] = ()


class NetworkPolicySpec(_PolicySpec):
    ingress: IngressRules = ()
    egress: EgressRules = ()
    service_account_selector: LocalSelector = ""
    performance_hints: Hints = ()


class GlobalNetworkPolicySpec(_PolicySpec):
    """`do_not_track`, `pre_dnat` and `apply_on_forward` matter for host endpoints only (§4)."""

    ingress: GlobalIngressRules = ()
    egress: GlobalEgressRules = ()
    do_not_track: Flag = False
    pre_dnat: Flag = Field(default=False, alias="preDNAT")
    apply_on_forward: Flag = False
    service_account_selector: LocalSelector = ""
    namespace_selector: LocalSelector = ""
    performance_hints: Hints = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.do_not_track and self.pre_dnat:
            raise broken("excludes doNotTrack", "preDNAT")
        if self.pre_dnat and (self.egress or "Egress" in self.types):
            raise broken("excludes egress rules and the type Egress: it acts before routing", "preDNAT")
        if (self.do_not_track or self.pre_dnat) and not self.apply_on_forward:
            name = "doNotTrack" if self.do_not_track else "preDNAT"
            raise broken("needs applyOnForward: true", name, needs=("applyOnForward",))
        return self


class _Staged(Model):
    blank_is_absent: ClassVar = frozenset({"stagedAction"})

    staged_action: StagedAction = "Set"


class StagedNetworkPolicySpec(NetworkPolicySpec, _Staged):
    pass


class StagedGlobalNetworkPolicySpec(GlobalNetworkPolicySpec, _Staged):
    pass


class StagedKubernetesNetworkPolicySpec(_Staged):
    """A Kubernetes NetworkPolicy's spec, and what is to become of it."""

    pod_selector: k8s.LabelSelector = Field(default_factory=k8s.LabelSelector)
    ingress: tuple[k8s.IngressRule, ...] = ()
    egress: tuple[k8s.EgressRule, ...] = ()
    policy_types: Types = ()


Spec = TypeVar("Spec", bound=_Staged)


def _delete_is_bare(spec: Spec) -> Spec:
    given = {name for name, value in tree(spec).items() if value} - {"stagedAction", "tier"}
    if spec.staged_action == "Delete" and given:
        raise broken("stagedAction Delete takes nothing beside it but the tier", min(given))
    return spec


class _Policy(Resource):
    """A kind whose spec is of a tier; subclasses narrow `spec`."""

    spec: Any

    def as_written(self) -> Self:
        """Add the types that follow from the rules, the label that policies are looked up by, and the name's copy."""
        spec: _PolicySpec = self.spec
        if not spec.types and getattr(spec, "staged_action", "Set") != "Delete":
            spec = spec.model_copy(update={"types": _derived_types(spec)})
        labels = {**self.metadata.labels, TIER_LABEL: spec.tier}
        annotations = dict(self.metadata.annotations)
        if names_only(annotations.get(COPIED_METADATA, '{"name":""}')):
            annotations[COPIED_METADATA] = f'{{"name":"{self.metadata.name}"}}'
        metadata = self.metadata.model_copy(update={"labels": labels, "annotations": annotations})
        return self.model_copy(update={"metadata": metadata, "spec": spec})


def _derived_types(spec: _PolicySpec) -> tuple[PolicyType, ...]:
    if not spec.egress:
        return ("Ingress",)
    return ("Ingress", "Egress") if spec.ingress else ("Egress",)


class NetworkPolicy(_Policy):
    kind: Literal["NetworkPolicy"] = "NetworkPolicy"
    metadata: PolicyMetadata
    spec: NetworkPolicySpec = Field(default_factory=NetworkPolicySpec)
    status: Mapping[str, Any] | None = None


class GlobalNetworkPolicy(_Policy):
    kind: Literal["GlobalNetworkPolicy"] = "GlobalNetworkPolicy"
    metadata: GlobalPolicyMetadata
    spec: GlobalNetworkPolicySpec = Field(default_factory=GlobalNetworkPolicySpec)
    status: Mapping[str, Any] | None = None


class StagedNetworkPolicy(_Policy):
    kind: Literal["StagedNetworkPolicy"] = "StagedNetworkPolicy"
    metadata: PolicyMetadata
    spec: Annotated[StagedNetworkPolicySpec, AfterValidator(_delete_is_bare)] = Field(
        default_factory=StagedNetworkPolicySpec
    )
    status: Mapping[str, Any] | None = None


class StagedGlobalNetworkPolicy(_Policy):
    kind: Literal["StagedGlobalNetworkPolicy"] = "StagedGlobalNetworkPolicy"
    metadata: GlobalPolicyMetadata
    spec: Annotated[StagedGlobalNetworkPolicySpec, AfterValidator(_delete_is_bare)] = Field(
        default_factory=StagedGlobalNetworkPolicySpec
    )
    status: Mapping[str, Any] | None = None


class StagedKubernetesNetworkPolicy(Resource):
    kind: Literal["StagedKubernetesNetworkPolicy"] = "StagedKubernetesNetworkPolicy"
    spec: Annotated[StagedKubernetesNetworkPolicySpec, AfterValidator(_delete_is_bare)] = Field(
        default_factory=StagedKubernetesNetworkPolicySpec
    )
    status: Mapping[str, Any] | None = None
