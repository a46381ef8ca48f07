"""Decide which IP pools are valid, and their defaults (Calico's IPPool)."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from fabric.model.base import Model, Resource
from fabric.model.fields import AnyPrefix, Flag, LocalSelector
from policy import selector

Encapsulation: TypeAlias = Literal["Never", "Always", "CrossSubnet"]
Use: TypeAlias = Literal["Workload", "Tunnel", "LoadBalancer"]

BlockSize: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=128)]

_DEFAULT_USES: tuple[Use, ...] = ("Workload", "Tunnel")
_LINK_LOCAL = {4: ip_network("169.254.0.0/16"), 6: ip_network("fe80::/10")}
_BLOCK_SIZES = {4: range(20, 33), 6: range(116, 129)}


def _default_block_size(data: Mapping[str, Any]) -> int:
    """26 for IPv4, 122 for IPv6."""
    return 26 if data["cidr"].version == 4 else 122


class IPPoolSpec(Model):
    blank_is_absent: ClassVar = frozenset({"vxlanMode", "ipipMode", "nodeSelector"})

    cidr: AnyPrefix
    vxlan_mode: Encapsulation = "Never"
    ipip_mode: Encapsulation = "Never"
    # False, as the Go field is a plain bool: pools stored without it have no NAT.
    nat_outgoing: Flag = False
    disabled: Flag = False
    disable_bgp_export: Flag = Field(default=False, alias="disableBGPExport")
    block_size: BlockSize = Field(default_factory=_default_block_size)
    node_selector: LocalSelector = "all()"
    namespace_selector: LocalSelector = ""
    allowed_uses: Annotated[tuple[Use, ...], BeforeValidator(lambda uses: uses or _DEFAULT_USES)] = (
        _DEFAULT_USES
    )
    assignment_mode: Literal["Automatic", "Manual"] = "Automatic"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rules = (self._block_rule, self._use_rule, self._encapsulation_rule, self._selector_rule)
        if rule := next(filter(None, (check() for check in rules)), ""):
            raise ValueError(rule)
        return self

    def _block_rule(self) -> str:
        sizes, cidr = _BLOCK_SIZES[self.cidr.version], self.cidr
        if cidr.overlaps(link_local := _LINK_LOCAL[cidr.version]):
            return f"cidr {cidr} overlaps the link-local {link_local}"
        if self.block_size not in sizes:
            return f"blockSize {self.block_size} must be {sizes[0]} to {sizes[-1]} for IPv{cidr.version}"
        if cidr.prefixlen > self.block_size and not self.disabled:
            return f"cidr {cidr} is smaller than one block, /{self.block_size}"
        return ""

    def _encapsulation_rule(self) -> str:
        ipip, vxlan = self.ipip_mode != "Never", self.vxlan_mode != "Never"
        if ipip and vxlan:
            return "ipipMode and vxlanMode exclude each other: one of them must be Never"
        if ipip and self.cidr.version == 6:
            return "ipipMode must be Never for IPv6: IPIP carries IPv4 only"
        if "LoadBalancer" in self.allowed_uses and (ipip or vxlan):
            return "a LoadBalancer pool has neither ipipMode nor vxlanMode"
        return ""

    def _use_rule(self) -> str:
        if "LoadBalancer" not in self.allowed_uses:
            return ""
        if set(self.allowed_uses) != {"LoadBalancer"}:
            return "allowedUses: LoadBalancer excludes Workload and Tunnel"
        if self.disable_bgp_export:
            return "a LoadBalancer pool is announced: disableBGPExport must be false"
        every = selector.parse(self.node_selector) == selector.All()
        return "" if every else "a LoadBalancer pool is no node's: nodeSelector must be all()"

    def _selector_rule(self) -> str:
        if self.namespace_selector and "Tunnel" in self.allowed_uses:
            return "namespaceSelector excludes the use Tunnel: set allowedUses: [Workload]"
        return ""


class IPPool(Resource):
    kind: Literal["IPPool"] = "IPPool"
    spec: IPPoolSpec
    status: Mapping[str, Any] | None = None
