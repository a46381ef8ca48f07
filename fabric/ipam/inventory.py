"""Decide what one listing of the datastore says of every address: who holds it, who uses it, since when.

IPAM says who *holds* an address (blocks and handles); endpoints and Nodes say who *uses* it. The two are
compared in `fabric.ipam.audit` and counted in `fabric.ipam.usage`.

Source: calico-semantics §5 "Objects", "Tunnel addresses"; calico-wire for the attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from fabric.ipam.block import Block, Owner
from fabric.ipam.config import IPAMConfig
from fabric.ipam.records import Affinity, Handle
from fabric.ipam.types import Address, Prefix, order
from fabric.ipam.view import Stored
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.workloadendpoint import WorkloadEndpoint

# Calico's plugin writes the block first and the endpoint later; until then its address looks leaked.
GRACE = timedelta(seconds=60)

# Windows nodes hold the first and last addresses of a block under it; it has no handle object.
WINDOWS_HANDLE = "windows-reserved-ipam-handle"
_TUNNEL_TYPES = {
    "ipipTunnelAddress",
    "vxlanTunnelAddress",
    "vxlanV6TunnelAddress",
    "wireguardTunnelAddress",
    "wireguardV6TunnelAddress",
}


@dataclass(frozen=True, slots=True)
class Use:
    """One endpoint or Node that has the address; `holder` is Calico's form, `Workload(NAMESPACE/NAME)`."""

    holder: str
    node: str


class State(StrEnum):
    """What is known of a held address; only LEAKED may be freed without asking."""

    IN_USE = "in use"
    LEAKED = "leaked"
    RECENT = "recent"  # nothing uses it yet, and it was given out less than GRACE ago
    COOLING = "cooling"  # released, and not given out again for a while
    ASSUMED = "assumed in use"  # nothing here could say whether it is used


@dataclass(frozen=True, slots=True)
class Allocation:
    """One held address. `sequence` tells this allocation of it from a later one to the same handle."""

    address: Address
    block: Prefix
    owner: Owner
    sequence: int
    node: str
    borrowed: bool
    state: State
    users: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """Everything that bears on addresses, as of one `revision` of the store.

    `nodes` names every Node, one that cannot be read too. `unreadable` is key to reason; the blocks and
    handles among them are in `dark_blocks` and `dark_handles`, as they exist although their content is
    unknown. `blind` says why no address can be called unused: "" where all that uses any was read.
    """

    revision: int = 0
    nodes: frozenset[str] = frozenset()
    uses: Mapping[Address, tuple[Use, ...]] = field(default_factory=dict)
    pools: tuple[IPPool, ...] = ()
    reserved: tuple[Prefix, ...] = ()
    blocks: Mapping[Prefix, Stored] = field(default_factory=dict)
    affinities: Mapping[tuple[str, Prefix], Affinity] = field(default_factory=dict)
    handles: Mapping[str, Handle] = field(default_factory=dict)
    config: IPAMConfig = field(default_factory=IPAMConfig)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    dark_blocks: frozenset[Prefix] = frozenset()
    dark_handles: frozenset[str] = frozenset()
    blind: str = ""

    def pool_of(self, prefix: Prefix | Address) -> IPPool | None:
        """Return the pool that covers `prefix` (or one address), disabled ones too."""
        return next((p for p in self.pools if _covers(p.spec.cidr, prefix)), None)


def uses(nodes: Iterable[Node], endpoints: Iterable[WorkloadEndpoint]) -> dict[Address, tuple[Use, ...]]:
    """Return who has each address: endpoints by ipNetworks, Nodes by their tunnels."""
    found: dict[Address, dict[Use, None]] = {}
    for endpoint in endpoints:
        holder = f"Workload({endpoint.metadata.namespace}/{endpoint.metadata.name})"
        for network in endpoint.spec.ip_networks:
            found.setdefault(network.network_address, {})[Use(holder, endpoint.spec.node)] = None
    for node in nodes:
        for address in _tunnel_addresses(node):
            found.setdefault(address, {})[Use(f"Node({node.metadata.name})", node.metadata.name)] = None
    return {address: tuple(users) for address, users in found.items()}


def _tunnel_addresses(node: Node) -> Iterator[Address]:
    spec = node.spec
    wireguard = spec.wireguard
    candidates = (
        spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp else None,
        spec.ipv4_vxlan_tunnel_addr,
        spec.ipv6_vxlan_tunnel_addr,
        wireguard.interface_ipv4_address if wireguard else None,
        wireguard.interface_ipv6_address if wireguard else None,
    )
    return (address for address in candidates if address is not None)


def allocations(inventory: Inventory, now: datetime, grace: timedelta = GRACE) -> Iterator[Allocation]:
    """Yield every held address, block by block in order, cooling ones too."""
    for prefix in sorted(inventory.blocks, key=order):
        block = inventory.blocks[prefix].block
        for ordinal, owner in enumerate(block.owners):
            if owner is not None:
                yield _allocation(inventory, block, ordinal, owner, now - grace)


def _allocation(
    inventory: Inventory, block: Block, ordinal: int, owner: Owner, young_from: datetime
) -> Allocation:
    address = block.address(ordinal)
    state, users = _state(inventory, block, address, owner, young_from)
    holder = owner.secondary.get("node", "")
    return Allocation(
        address=address,
        block=block.prefix,
        owner=owner,
        sequence=block.sequences.get(ordinal, 0),
        node=holder or block.node or "",
        borrowed=bool(holder) and holder != block.node,
        state=state,
        users=users,
    )


def _state(
    inventory: Inventory, block: Block, address: Address, owner: Owner, young_from: datetime
) -> tuple[State, tuple[str, ...]]:
    if owner.released_at is not None:
        return State.COOLING, ()
    if users := inventory.uses.get(address):
        return State.IN_USE, tuple(use.holder for use in users)
    if assumed := _assumed(block, owner) or inventory.blind:
        return State.ASSUMED, (assumed,)
    born = given_out(owner)
    return State.RECENT if born and born > young_from else State.LEAKED, ()


def _assumed(block: Block, owner: Owner) -> str:
    """Return who may use the address although nothing in the datastore would say so, else ""."""
    kind = owner.secondary.get("type", "")
    if (owner.handle or "").lower() == WINDOWS_HANDLE:
        return "Reserved for Windows"
    if kind == "LoadBalancer" or block.affinity == "virtual:load-balancer":
        return "LoadBalancer"
    return f"UnknownType({kind})" if kind and kind not in _TUNNEL_TYPES else ""


def given_out(owner: Owner) -> datetime | None:
    """Return when the address was given out, None where nothing readable says so.

    The attribute is Go's text of a time, `2026-11-21 04:16:27.334108857 +0000 UTC`, sometimes with more
    behind it.
    """
    words = owner.secondary.get("timestamp", "").split()
    try:
        return datetime.strptime(" ".join([words[0], words[1][:8], words[2]]), "%Y-%m-%d %H:%M:%S %z")
    except (IndexError, ValueError):
        return None


def held(inventory: Inventory) -> dict[str, dict[Prefix, int]]:
    """Return what the blocks say each handle holds, the way handles say it themselves."""
    counts: dict[str, dict[Prefix, int]] = {}
    for prefix, stored in inventory.blocks.items():
        for owner in stored.block.owners:
            if owner and owner.handle and owner.handle.lower() != WINDOWS_HANDLE:
                of = counts.setdefault(owner.handle, {})
                of[prefix] = of.get(prefix, 0) + 1
    return counts


def _covers(cidr: Prefix, prefix: Prefix | Address) -> bool:
    first = prefix if isinstance(prefix, Address) else prefix.network_address
    return cidr.version == first.version and first in cidr
