"""Decide which settings of address management are valid (Calico's IPAMConfiguration).

The one resource that is not stored as one: its spec lives at /calico/ipam/v2/config under other names, where
whatever is zero is left out. So an absent "auto_allocate_blocks" is False there, and True in a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from fabric.errors import ConfigError
from fabric.model.base import ALWAYS, API_VERSION, Means, Metadata, Model, Resource, Tree, named, tree
from fabric.model.fields import Flag, broken

NAME: Final = "default"

_STORED_AS: Final = {
    "strictAffinity": "strict_affinity",
    "autoAllocateBlocks": "auto_allocate_blocks",
    "maxBlocksPerHost": "maxBlocksPerHost",
    "kubeVirtVMAddressPersistence": "kubeVirtVMAddressPersistence",
    "ipCooldownSeconds": "ipCooldownSeconds",
}
_READ_AS: Final = {stored: name for name, stored in _STORED_AS.items()}


class IPAMConfigurationSpec(Model):
    """`max_blocks_per_host` 0 stands for 20; `ip_cooldown_seconds` is how long a freed address rests."""

    strict_affinity: Annotated[Flag, ALWAYS] = False
    max_blocks_per_host: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    auto_allocate_blocks: Annotated[Flag, ALWAYS] = True
    kube_virt_vm_address_persistence: Annotated[Literal["Enabled", "Disabled"] | None, Means("Enabled")] = (
        Field(default=None, alias="kubeVirtVMAddressPersistence")
    )
    ip_cooldown_seconds: Annotated[int, Field(strict=True, ge=0, le=1200)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.strict_affinity and not self.auto_allocate_blocks:
            raise broken(
                "needs strictAffinity: true", "autoAllocateBlocks", value=False, needs=("strictAffinity",)
            )
        return self


class IPAMConfiguration(Resource):
    """There is one, called "default"."""

    kind: Literal["IPAMConfiguration"] = "IPAMConfiguration"
    metadata: Annotated[Metadata, named(NAME, f'there is one IPAMConfiguration, called "{NAME}"')]
    spec: IPAMConfigurationSpec = Field(default_factory=IPAMConfigurationSpec)


def stored_tree(spec: IPAMConfigurationSpec) -> Tree:
    """Return the JSON value that holds `spec` at /calico/ipam/v2/config, unknown fields included."""
    named_so = {_STORED_AS.get(name, name): value for name, value in tree(spec).items()}
    return {name: value for name, value in named_so.items() if value or name not in _READ_AS}


def resource_tree(stored: Mapping[str, Any]) -> Tree:
    """Return `stored`, the JSON value at /calico/ipam/v2/config, as the resource's tree, for `wire.from_tree`.

    Raises:
        ConfigError: `stored` is no JSON object.
    """
    if not isinstance(stored, Mapping):
        raise ConfigError("the stored IPAM configuration is no JSON object")
    spec = {"strictAffinity": False, "autoAllocateBlocks": False}
    spec |= {_READ_AS.get(name, name): value for name, value in stored.items()}
    return {
        "kind": "IPAMConfiguration",
        "apiVersion": API_VERSION,
        "metadata": {"name": NAME},
        "spec": spec,
    }
