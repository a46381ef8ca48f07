"""Decide which rules are valid; profiles and every kind of policy are lists of them (semantics §2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fabric.model.base import Model
from fabric.model.fields import PortMatch, Prefix, Protocol, RuleNet, SelectorText

_PORTED = {"TCP", "UDP", "SCTP", 6, 17, 132}
_ICMP = {4: {"ICMP", 1}, 6: {"ICMPv6", 58}}

Nets = Annotated[tuple[RuleNet, ...], Field(max_length=256)]
Ports = Annotated[tuple[PortMatch, ...], Field(max_length=50)]


class ICMP(Model):
    type: Annotated[int, Field(strict=True, ge=0, le=254)] | None = None
    code: Annotated[int, Field(strict=True, ge=0, le=255)] | None = None

    @model_validator(mode="after")
    def _code_needs_type(self) -> Self:
        if self.code is not None and self.type is None:
            raise ValueError("code needs type")
        return self


class ServiceAccounts(Model):
    names: tuple[str, ...] = ()
    selector: SelectorText = ""


class Services(Model):
    name: str = ""
    namespace: str = ""


class EntityRule(Model):
    """What one end of the traffic must be; everything given must hold."""

    nets: Nets = ()
    selector: SelectorText = ""
    namespace_selector: SelectorText = ""
    services: Services | None = None
    ports: Ports = ()
    not_nets: Nets = ()
    not_selector: SelectorText = ""
    not_ports: Ports = ()
    service_accounts: ServiceAccounts | None = None

    @model_validator(mode="after")
    def _services_stand_alone(self) -> Self:
        others = (self.nets, self.not_nets, self.selector, self.not_selector, self.namespace_selector)
        if self.services and (any(others) or self.service_accounts):
            raise ValueError("services exclude nets, selectors and serviceAccounts")
        if any(net.prefixlen == 0 for net in self.not_nets):
            raise ValueError("notNets must not hold a whole address family: the rule could never match")
        return self


class Rule(Model):
    """One rule; `ports` on either side need a protocol that has ports, unless they are names."""

    action: Literal["Allow", "Deny", "Log", "Pass"]
    ip_version: Literal[4, 6] | None = None
    protocol: Protocol | None = None
    icmp: ICMP | None = None
    not_protocol: Protocol | None = None
    not_icmp: ICMP | None = Field(default=None, alias="notICMP")
    source: EntityRule | None = None
    destination: EntityRule | None = None
    http: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.icmp or self.not_icmp) and self.protocol not in _ICMP[4] | _ICMP[6]:
            raise ValueError("icmp and notICMP need protocol ICMP or ICMPv6")
        for version, protocols in _ICMP.items():
            if self.protocol in protocols and self.ip_version not in {None, version}:
                raise ValueError(f"protocol {self.protocol} needs ipVersion {version}")
        if self.protocol not in _PORTED and any(map(_is_numeric, self._ports())):
            raise ValueError("ports need protocol TCP, UDP or SCTP")
        families = {net.version for net in self._nets()} | ({self.ip_version} if self.ip_version else set())
        if len(families) > 1:
            raise ValueError("nets, notNets and ipVersion of one rule must be of one address family")
        return self

    def _entities(self) -> tuple[EntityRule, ...]:
        return tuple(entity for entity in (self.source, self.destination) if entity)

    def _ports(self) -> tuple[int | str, ...]:
        return tuple(chain.from_iterable(entity.ports + entity.not_ports for entity in self._entities()))

    def _nets(self) -> tuple[Prefix, ...]:
        return tuple(chain.from_iterable(entity.nets + entity.not_nets for entity in self._entities()))


def _is_numeric(port: int | str) -> bool:
    return isinstance(port, int) or ":" in port


Rules = Annotated[tuple[Rule, ...], Field(max_length=1024)]
