"""Decide which IP pools are valid, and their defaults (Calico's IPPool)."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from fabric.model.base import Model, Resource
from fabric.model.fields import AnyPrefix, Flag, LocalSelector, broken
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
        self._check_blocks()
        self._check_uses()
        self._check_encapsulation()
        return self

    def _check_blocks(self) -> None:
        sizes, cidr = _BLOCK_SIZES[self.cidr.version], self.cidr
        if cidr.overlaps(link_local := _LINK_LOCAL[cidr.version]):
            raise broken(f"overlaps the link-local {link_local}", "cidr", value=cidr)
        if self.block_size not in sizes:
            rule = f"must be {sizes[0]} to {sizes[-1]} for IPv{cidr.version}"
            raise broken(rule, "blockSize", value=self.block_size, needs=("cidr",))
        if cidr.prefixlen > self.block_size and not self.disabled:
            rule = f"is smaller than one block, /{self.block_size}"
            raise broken(rule, "cidr", value=cidr, needs=("blockSize", "disabled"))

    def _check_uses(self) -> None:
        if self.namespace_selector and "Tunnel" in self.allowed_uses:
            rule = "excludes the use Tunnel: set allowedUses: [Workload]"
            raise broken(rule, "namespaceSelector", value=self.namespace_selector, needs=("allowedUses",))
        if "LoadBalancer" not in self.allowed_uses:
            return
        if set(self.allowed_uses) != {"LoadBalancer"}:
            raise broken("LoadBalancer excludes Workload and Tunnel", "allowedUses")
        if self.disable_bgp_export:
            raise broken("must be false: a LoadBalancer pool is announced", "disableBGPExport", value=True)
        if selector.parse(self.node_selector) != selector.All():
            rule = "must be all(): a LoadBalancer pool is no node's"
            raise broken(rule, "nodeSelector", value=self.node_selector)

    def _check_encapsulation(self) -> None:
        modes = {"ipipMode": self.ipip_mode, "vxlanMode": self.vxlan_mode}
        for name, mode in modes.items():
            if mode != "Never" and "LoadBalancer" in self.allowed_uses:
                raise broken("must be Never: a LoadBalancer pool has no tunnels", name, value=mode)
        if "Never" not in modes.values():
            rule = "excludes ipipMode: one of them must be Never"
            raise broken(rule, "vxlanMode", value=self.vxlan_mode)
        if self.ipip_mode != "Never" and self.cidr.version == 6:
            raise broken("must be Never for IPv6: IPIP carries IPv4 only", "ipipMode", value=self.ipip_mode)


class IPPool(Resource):
    kind: Literal["IPPool"] = "IPPool"
    spec: IPPoolSpec
    status: Mapping[str, Any] | None = None
