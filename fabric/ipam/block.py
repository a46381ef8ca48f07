"""Decide what an allocation or a release makes of one address block, and how Calico writes that block.

A block is an aligned slice of a pool, with one affinity. Free addresses are a queue: allocation takes
its head, a freed address goes to its tail, so that the one free the longest is used next.

Source: calico-semantics §5 "Objects"; calico-wire for the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

from fabric.errors import ConfigError, Exhausted, NotFound, Taken
from fabric.ipam.types import Address, Prefix

_KNOWN = {
    "cidr",
    "affinity",
    "affinity_claim_time",
    "allocations",
    "unallocated",
    "attributes",
    "sequenceNumber",
    "sequenceNumberForAllocation",
    "deleted",
}


@dataclass(frozen=True)
class Owner:
    """Who holds an address. `rest` is what other versions of Calico wrote beside it, kept as it is."""

    handle: str | None
    secondary: Mapping[str, str] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """One block as stored; ordinals count from the block's first address.

    `owners[i]` is None for a free address. `sequence` rises with each write and never repeats for a
    prefix, since a new block starts at wall-clock nanoseconds; `sequences` holds, for each allocated
    ordinal, the number at which it was allocated.
    """

    prefix: Prefix
    affinity: str | None
    claimed_at: str
    owners: tuple[Owner | None, ...]
    free: tuple[int, ...]
    sequence: int
    sequences: Mapping[int, int] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> str | None:
        """The node the block is affine to, if it is to a node."""
        kind, _, name = (self.affinity or "").partition(":")
        return name if kind == "host" else None

    @property
    def empty(self) -> bool:
        return not any(self.owners)

    def address(self, ordinal: int) -> Address:
        return self.prefix.network_address + ordinal

    def ordinal(self, address: Address) -> int:
        return int(address) - int(self.prefix.network_address)

    def held_by(self, handle: str) -> tuple[Address, ...]:
        """Return the addresses that `handle` holds here, in order."""
        return tuple(
            self.address(i) for i, owner in enumerate(self.owners) if owner and owner.handle == handle
        )


def new(prefix: Prefix, node: str, now_ns: int, claimed_at: str) -> Block:
    """Return an empty block, affine to `node`. `now_ns` is wall-clock time in nanoseconds."""
    size = prefix.num_addresses
    return Block(
        prefix=prefix,
        affinity=f"host:{node}",
        claimed_at=claimed_at,
        owners=(None,) * size,
        free=tuple(range(size)),
        sequence=now_ns,
    )


def allocate(block: Block, owner: Owner) -> tuple[Block, Address]:
    """Give `owner` the address that has been free the longest.

    Raises:
        Exhausted: every address of the block is held.
    """
    if not block.free:
        raise Exhausted(f"block {block.prefix}: all {len(block.owners)} addresses are held")
    return _give(block, block.free[0], owner), block.address(block.free[0])


def allocate_exact(block: Block, address: Address, owner: Owner) -> Block:
    """Give `owner` this very address.

    Raises:
        Taken: somebody holds it; the message names the holder.
    """
    ordinal = block.ordinal(address)
    if (holder := block.owners[ordinal]) is not None:
        where = holder.secondary.get("node", "an unknown node")
        raise Taken(
            f"address {address}: held by {holder.handle or 'no handle'} on {where}; nothing was allocated; "
            "choose another address or remove its holder first"
        )
    return _give(block, ordinal, owner)


def _give(block: Block, ordinal: int, owner: Owner) -> Block:
    owners = list(block.owners)
    owners[ordinal] = owner
    return replace(
        block,
        owners=tuple(owners),
        free=tuple(i for i in block.free if i != ordinal),
        sequences={**block.sequences, ordinal: block.sequence},
        sequence=block.sequence + 1,
    )


def release(block: Block, address: Address, handle: str) -> Block:
    """Take `address` back from `handle`; it goes to the tail of the queue.

    Raises:
        NotFound: `handle` does not hold it, so it is left alone.
    """
    ordinal = block.ordinal(address)
    owner = block.owners[ordinal]
    if owner is None or owner.handle != handle:
        raise NotFound(f"address {address}: not held by {handle}; it was left as it is")
    owners = list(block.owners)
    owners[ordinal] = None
    return replace(
        block,
        owners=tuple(owners),
        free=(*block.free, ordinal),
        sequences={i: number for i, number in block.sequences.items() if i != ordinal},
        sequence=block.sequence + 1,
    )


def without_affinity(block: Block) -> Block:
    """Return the block belonging to no node: its addresses stay valid and can only be released."""
    return replace(block, affinity=None, sequence=block.sequence + 1)


def to_json(block: Block) -> str:
    """Return the block as Calico stores it, compact."""
    # By identity: one owner of several addresses is one object, as it was read; comparing values would
    # take the square of the addresses held.
    attributes = {id(owner): owner for owner in block.owners if owner is not None}
    index = {key: number for number, key in enumerate(attributes)}
    allocations = [None if owner is None else index[id(owner)] for owner in block.owners]
    document: dict[str, Any] = {"cidr": str(block.prefix)}
    if block.affinity:
        document["affinity"] = block.affinity
    if block.claimed_at:
        document["affinity_claim_time"] = block.claimed_at
    document |= {
        "allocations": allocations,
        "unallocated": list(block.free),
        "attributes": [
            {"handle_id": owner.handle, "secondary": dict(owner.secondary)} | dict(owner.rest)
            for owner in attributes.values()
        ],
        "sequenceNumber": block.sequence,
        "sequenceNumberForAllocation": {str(i): number for i, number in sorted(block.sequences.items())},
        "deleted": False,
    }
    return json.dumps(document | dict(block.rest), separators=(",", ":"))


def from_json(text: str) -> Block:
    """Read a stored block.

    Raises:
        ConfigError: it is no block of Calico's; the message says which part is wrong.
    """
    try:
        document = json.loads(text)
        owners_by_index = [_owner(attribute) for attribute in document.get("attributes") or []]
        block = Block(
            prefix=ip_network(document["cidr"]),
            affinity=document.get("affinity") or None,
            claimed_at=document.get("affinity_claim_time") or "",
            owners=tuple(None if i is None else owners_by_index[i] for i in document["allocations"]),
            free=tuple(document["unallocated"]),
            sequence=document.get("sequenceNumber", 0),
            sequences={int(i): n for i, n in (document.get("sequenceNumberForAllocation") or {}).items()},
            rest={key: value for key, value in document.items() if key not in _KNOWN},
        )
        # A free address that is held, or is none of the block's, would be given out a second time.
        wrong = [i for i in block.free if not 0 <= i < len(block.owners) or block.owners[i]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as err:
        raise ConfigError(f"stored block: not readable ({type(err).__name__}: {err})") from err
    if len(block.owners) != block.prefix.num_addresses:
        raise ConfigError(
            f"stored block {block.prefix}: {len(block.owners)} allocations for {block.prefix.num_addresses} addresses"
        )
    if wrong or len(set(block.free)) < len(block.free):
        raise ConfigError(
            f"stored block {block.prefix}: unallocated does not fit allocations, or repeats itself"
        )
    return block


def _owner(attribute: Mapping[str, Any]) -> Owner:
    return Owner(
        handle=attribute.get("handle_id"),
        secondary=attribute.get("secondary") or {},
        rest={key: value for key, value in attribute.items() if key not in {"handle_id", "secondary"}},
    )
