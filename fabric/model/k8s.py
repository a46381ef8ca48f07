"""Decide which NetworkPolicies, Namespaces and ServiceAccounts of Kubernetes are valid, as its API server does.

Only files hold them: `fabric.model.convert` says what is stored for each. An absent field and an empty one differ
in a policy: no `namespaceSelector` is the policy's own namespace, an empty one is every namespace. Of the other
two only name, labels and annotations matter here; the rest of their fields is taken as it comes.

Source: kubernetes, pkg/apis/networking/validation and pkg/apis/core.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, PlainValidator, model_validator

from fabric.model.base import Metadata, Model, Resource, named
from fabric.model.fields import DNS_LABEL, LabelMap, Prefix, broken, valid_labels
from fabric.model.kinds import CORE_API_VERSION, K8S_API_VERSION

_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")


def _port(value: object) -> int | str:
    match value:
        case bool():
            pass
        case int() if 1 <= value <= 65535:
            return value
        case str() if _PORT_NAME.fullmatch(value):
            return value
    raise ValueError(
        "must be a number from 1 to 65535, or a port's name: up to 15 lower-case letters, digits and '-', "
        "with a letter among them"
    )


def _block(value: object) -> Prefix:
    """Drop host bits, as Kubernetes does, which takes them and warns."""
    if isinstance(value, str) and "/" in value and "%" not in value:
        with suppress(ValueError):
            return ip_network(value, strict=False)
    raise ValueError("must be a prefix, such as 10.0.0.0/16 or fd00::/48")


PortOrName: TypeAlias = Annotated[int | str, PlainValidator(_port)]
Block: TypeAlias = Annotated[Prefix, PlainValidator(_block)]


class LabelSelectorRequirement(Model):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.operator in {"In", "NotIn"}) != bool(self.values):
            raise ValueError("In and NotIn need values, Exists and DoesNotExist have none")
        for value in self.values or ("",):
            valid_labels({self.key: value})
        return self


class LabelSelector(Model):
    """Everything given must hold; an empty one matches everything."""

    match_labels: LabelMap = Field(default_factory=dict)
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()


class IPBlock(Model):
    cidr: Block
    except_: tuple[Block, ...] = Field(default=(), alias="except")

    @model_validator(mode="after")
    def _except_is_within(self) -> Self:
        for index, prefix in enumerate(self.except_):
            if prefix == self.cidr or not _is_within(prefix, self.cidr):
                rule = f"must be a part of cidr {self.cidr}, and not all of it"
                raise broken(rule, "except", index, value=prefix, needs=("cidr",))
        return self


def _is_within(inner: Prefix, outer: Prefix) -> bool:
    match inner, outer:
        case (IPv4Network(), IPv4Network()) | (IPv6Network(), IPv6Network()):
            return inner.subnet_of(outer)  # type: ignore[arg-type]
    return False


class Peer(Model):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = Field(default=None, alias="ipBlock")

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        selectors = self.pod_selector is not None or self.namespace_selector is not None
        if selectors == (self.ip_block is not None):
            raise ValueError("needs podSelector, namespaceSelector or both, or else ipBlock alone")
        return self


class Port(Model):
    """Without `port` it is every port of the protocol; without `protocol` it is TCP."""

    protocol: Literal["TCP", "UDP", "SCTP"] | None = None
    port: PortOrName | None = None
    end_port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None

    @model_validator(mode="after")
    def _range_goes_upwards(self) -> Self:
        if self.end_port is None:
            return self
        if not isinstance(self.port, int):
            raise broken("needs port, and that a number", "endPort", value=self.end_port, needs=("port",))
        if self.end_port < self.port:
            raise broken(f"must not be below port {self.port}", "endPort", value=self.end_port)
        return self


class IngressRule(Model):
    """No peers is from anywhere, no ports is every protocol and port."""

    ports: tuple[Port, ...] = ()
    from_: tuple[Peer, ...] = Field(default=(), alias="from")


class EgressRule(Model):
    ports: tuple[Port, ...] = ()
    to: tuple[Peer, ...] = ()


class NetworkPolicySpec(Model):
    pod_selector: LabelSelector = Field(default_factory=LabelSelector)
    ingress: tuple[IngressRule, ...] = ()
    egress: tuple[EgressRule, ...] = ()
    policy_types: Annotated[tuple[Literal["Ingress", "Egress"], ...], Field(max_length=2)] = ()


class KubernetesNetworkPolicy(Resource):
    kind: Literal["NetworkPolicy"] = "NetworkPolicy"
    api_version: Literal["networking.k8s.io/v1"] = K8S_API_VERSION
    spec: NetworkPolicySpec = Field(default_factory=NetworkPolicySpec)
    status: Mapping[str, Any] | None = None  # servers of 1.24 to 1.27 print one


_NAMESPACE = rf"(?=.{{1,63}}$){DNS_LABEL}"


class KubernetesNamespace(Resource):
    kind: Literal["Namespace"] = "Namespace"
    api_version: Literal["v1"] = CORE_API_VERSION
    metadata: Annotated[
        Metadata, named(_NAMESPACE, "a namespace's name is at most 63 lower-case letters, digits and '-'")
    ]
    spec: Mapping[str, Any] | None = None
    status: Mapping[str, Any] | None = None


class KubernetesServiceAccount(Resource):
    kind: Literal["ServiceAccount"] = "ServiceAccount"
    api_version: Literal["v1"] = CORE_API_VERSION
    secrets: tuple[Mapping[str, Any], ...] = ()
    image_pull_secrets: tuple[Mapping[str, Any], ...] = ()
    automount_service_account_token: bool | None = None
