"""Decide which rules are valid; profiles and every kind of policy are lists of them (semantics §2.5)."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from fabric.model.base import Model, NotInFiles
from fabric.model.fields import (
    PORTED,
    Annotations,
    LocalSelector,
    Name,
    NameOrEmpty,
    NamespaceSelector,
    PortMatch,
    Prefix,
    Protocol,
    StrictNet,
    broken,
    no_repeats,
)

_SERVICES = NotInFiles(
    "there are no Services of Kubernetes; give selector and ports, or nets, of what serves it"
)
_HTTP = NotInFiles("it needs a proxy; leave it out, and give protocol and ports")

_ICMP = {4: {"ICMP", 1}, 6: {"ICMPv6", 58}}

Nets = Annotated[tuple[StrictNet, ...], Field(max_length=256)]
Ports = Annotated[tuple[PortMatch, ...], Field(max_length=50)]


class ICMP(Model):
    type: Annotated[int, Field(strict=True, ge=0, le=254)] | None = None
    code: Annotated[int, Field(strict=True, ge=0, le=255)] | None = None

    @model_validator(mode="after")
    def _code_needs_type(self) -> Self:
        if self.code is not None and self.type is None:
            raise broken("needs type", "code", value=self.code, needs=("type",))
        return self


class ServiceAccounts(Model):
    names: tuple[str, ...] = ()
    selector: LocalSelector = ""


class Services(Model):
    """One service; in a NetworkPolicy an empty `namespace` is the policy's own."""

    name: Name
    namespace: NameOrEmpty = ""


class EntityRule(Model):
    """What one end of the traffic must be; everything given must hold."""

    nets: Nets = ()
    selector: LocalSelector = ""
    namespace_selector: NamespaceSelector = ""
    services: Annotated[Services | None, _SERVICES] = None
    ports: Ports = ()
    not_nets: Nets = ()
    not_selector: LocalSelector = ""
    not_ports: Ports = ()
    service_accounts: ServiceAccounts | None = None

    @model_validator(mode="after")
    def _services_stand_alone(self) -> Self:
        others = (self.nets, self.not_nets, self.selector, self.not_selector, self.namespace_selector)
        if self.services and (any(others) or self.service_accounts):
            raise broken("exclude nets, selectors and serviceAccounts", "services")
        if any(net.prefixlen == 0 for net in self.not_nets):
            raise broken("must not hold a whole address family: the rule could never match", "notNets")
        return self


class HTTPPath(Model):
    exact: Annotated[str, Field(max_length=1024)] = ""
    prefix: Annotated[str, Field(max_length=1024)] = ""

    @model_validator(mode="after")
    def _is_one_path(self) -> Self:
        if bool(self.exact) == bool(self.prefix):
            raise ValueError("needs either exact or prefix")
        path = self.exact or self.prefix
        if not path.startswith("/") or set("? #").intersection(path):
            raise ValueError('a path begins with "/" and has no "?", "#" or blank')
        return self


class HTTPMatch(Model):
    """Methods and paths are each alternatives; it needs a proxy."""

    methods: Annotated[tuple[str, ...], Field(max_length=20), AfterValidator(no_repeats)] = ()
    paths: Annotated[tuple[HTTPPath, ...], Field(max_length=20)] = ()


class RuleMetadata(Model):
    annotations: Annotations = Field(default_factory=dict)


class Rule(Model):
    """One rule; `ports` on either side need a protocol that has ports, unless they are names."""

    action: Literal["Allow", "Deny", "Log", "Pass"]
    ip_version: Literal[4, 6] | None = None
    protocol: Protocol | None = None
    icmp: ICMP | None = None
    not_protocol: Protocol | None = None
    not_icmp: ICMP | None = Field(default=None, alias="notICMP")
    source: EntityRule = Field(default_factory=EntityRule)
    destination: EntityRule = Field(default_factory=EntityRule)
    http: Annotated[HTTPMatch | None, _HTTP] = None
    metadata: RuleMetadata | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check_protocol()
        if self.http and self.protocol not in {None, "TCP", 6}:
            raise broken("needs protocol TCP, or none", "http")
        if self.http and self.action != "Allow":
            raise broken("needs action Allow", "http", needs=("action",))
        families = {net.version for net in self._nets()} | ({self.ip_version} if self.ip_version else set())
        if len(families) > 1:
            raise broken("nets, notNets and ipVersion of one rule must be of one address family", needs=())
        server = self.destination
        if server.services and server.ports + server.not_ports:
            rule = "as the destination exclude ports and notPorts: a service has its own"
            raise broken(rule, "destination", "services")
        return self

    def _check_protocol(self) -> None:
        if self.protocol not in _ICMP[4] | _ICMP[6]:
            for name, icmp in {"icmp": self.icmp, "notICMP": self.not_icmp}.items():
                if icmp:
                    raise broken("needs protocol ICMP or ICMPv6", name, needs=("protocol",))
        for version, protocols in _ICMP.items():
            for name, protocol in {"protocol": self.protocol, "notProtocol": self.not_protocol}.items():
                if protocol in protocols and self.ip_version not in {None, version}:
                    raise broken(f"needs ipVersion {version}", name, value=protocol)
        if self.protocol not in PORTED and any(map(_is_numeric, self._ports())):
            raise broken("ports need protocol TCP, UDP or SCTP", needs=("protocol",))

    def _ports(self) -> tuple[int | str, ...]:
        return tuple(
            chain.from_iterable(entity.ports + entity.not_ports for entity in (self.source, self.destination))
        )

    def _nets(self) -> tuple[Prefix, ...]:
        return tuple(
            chain.from_iterable(entity.nets + entity.not_nets for entity in (self.source, self.destination))
        )


def _is_numeric(port: int | str) -> bool:
    return isinstance(port, int) or ":" in port


def _ingress(rule: Rule) -> Rule:
    if rule.destination.services:
        raise broken("an ingress rule has services as its source only", "destination", "services")
    return rule


def _egress(rule: Rule) -> Rule:
    if rule.source.services:
        raise broken("an egress rule has services as its destination only", "source", "services")
    if rule.http:
        raise broken("only ingress rules have http", "http")
    return rule


def _names_namespace(rule: Rule) -> Rule:
    for end, entity in {"source": rule.source, "destination": rule.destination}.items():
        if entity.services and not entity.services.namespace:
            raise broken(
                "is required: a global policy has no namespace of its own", end, "services", "namespace"
            )
    return rule


_Limit = Field(max_length=1024)

Rules: TypeAlias = Annotated[tuple[Rule, ...], _Limit]
IngressRules: TypeAlias = Annotated[tuple[Annotated[Rule, AfterValidator(_ingress)], ...], _Limit]
EgressRules: TypeAlias = Annotated[tuple[Annotated[Rule, AfterValidator(_egress)], ...], _Limit]
GlobalIngressRules: TypeAlias = Annotated[
    tuple[Annotated[Rule, AfterValidator(_ingress), AfterValidator(_names_namespace)], ...], _Limit
]
GlobalEgressRules: TypeAlias = Annotated[
    tuple[Annotated[Rule, AfterValidator(_egress), AfterValidator(_names_namespace)], ...], _Limit
]
