"""Decide what an allocation or a release makes of one address block, and how Calico writes that block.

A block is an aligned slice of a pool, with one affinity. Free addresses are a queue: allocation takes
its head, a freed address goes to its tail, so that the one free the longest is used next.

Source: calico-semantics §5 "Objects"; calico-wire for the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fabric.errors import ConfigError, Exhausted, NotFound, Taken
from fabric.ipam import records
from fabric.ipam.types import Address, Prefix

MAX_DIGITS = 20  # of an ordinal in JSON
_WORDS: Mapping[type, str] = {
    str: "a text",
    list: "a list",
    int: "a whole number",
    dict: "an object",
    bool: "true or false",
}
_KNOWN: Mapping[str, type] = {
    "cidr": str,
    "affinity": str,
    "affinity_claim_time": str,
    "allocations": list,
    "unallocated": list,
    "attributes": list,
    "sequenceNumber": int,
    "sequenceNumberForAllocation": dict,
    "deleted": bool,
}
_KNOWN_OF_OWNER: Mapping[str, type] = {
    "handle_id": str,
    "secondary": dict,
    "alternateOwnerAttrs": dict,
    "releasedAt": str,
}


@dataclass(frozen=True)
class Owner:
    """Who holds an address; `alternate` is a second owner, of a virtual machine on the move.

    With `released_at` (UTC, whole seconds) nobody does: the address cools down until it may be given out
    again. `rest` is what other versions of Calico wrote beside it, kept as it is.
    """

    handle: str | None
    secondary: Mapping[str, str] = field(default_factory=dict)
    alternate: Mapping[str, str] = field(default_factory=dict)
    released_at: datetime | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """One block as stored; ordinals count from the block's first address.

    `owners[i]` is None for a free address; `affinity` is "host:NODE", "virtual:NAME" or None.
    `claimed_at` is RFC 3339, or "" where it is not known. A `deleted` block is one whose deletion
    somebody has announced: it gives out nothing more. `sequence` rises with each write and never repeats for a
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
    deleted: bool = False
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> str | None:
        """The node the block is affine to, if it is to a node."""
        kind, _, name = (self.affinity or "").partition(":")
        return name if kind == "host" else None

    @property
    def empty(self) -> bool:
        """No address is held, and none cools down."""
        return not any(self.owners)

    def address(self, ordinal: int) -> Address:
        return self.prefix.network_address + ordinal

    def ordinal(self, address: Address) -> int:
        return int(address) - int(self.prefix.network_address)

    def held_by(self, handle: str) -> tuple[Address, ...]:
        """Return the addresses that `handle` holds here, in order."""
        return tuple(
            self.address(i)
            for i, owner in enumerate(self.owners)
            if owner and owner.handle == handle and owner.released_at is None
        )

    def claimed_before(self, moment: datetime) -> bool:
        """Whether it was claimed at `moment` or earlier; one that does not say when, was."""
        try:
            return datetime.fromisoformat(self.claimed_at) <= moment
        except (ValueError, TypeError):
            return True


def new(prefix: Prefix, node: str, at: datetime) -> Block:
    """Return an empty block, affine to `node` from `at` (UTC) on."""
    size = prefix.num_addresses
    return Block(
        prefix=prefix,
        affinity=f"host:{node}",
        claimed_at=_text(at),
        owners=(None,) * size,
        free=tuple(range(size)),
        sequence=int(at.timestamp() * 1_000_000) * 1000,
    )


def usable(block: Block, reserved: Iterable[Prefix] = ()) -> int | None:
    """Return the ordinal that automatic assignment takes next: free the longest, and not reserved."""
    if block.deleted or not block.free:
        return None
    near = [prefix for prefix in reserved if prefix.overlaps(block.prefix)]
    return next((i for i in block.free if not any(block.address(i) in prefix for prefix in near)), None)


def allocate(block: Block, owner: Owner, reserved: Iterable[Prefix] = ()) -> tuple[Block, Address]:
    """Give `owner` the address that has been free the longest, of those not in `reserved`.

    Raises:
        Exhausted: every address of the block is held or reserved.
    """
    ordinal = usable(block, reserved)
    if ordinal is None:
        raise Exhausted(f"block {block.prefix}: all {len(block.owners)} addresses are held or reserved")
    return _give(block, ordinal, owner), block.address(ordinal)


def allocate_exact(block: Block, address: Address, owner: Owner) -> Block:
    """Give `owner` this very address.

    Raises:
        Taken: somebody holds it; the message names the holder.
    """
    ordinal = block.ordinal(address)
    if (holder := block.owners[ordinal]) is not None:
        if holder.released_at:
            raise Taken(
                f"address {address}: released at {_text(holder.released_at)} and still cooling down; nothing was "
                "allocated; choose another address or wait"
            )
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


def release(
    block: Block,
    address: Address,
    handle: str | None,
    expected_sequence: int | None = None,
    *,
    at: datetime,
    cooldown: int = 0,
) -> Block:
    """Take `address` back; it goes to the tail of the queue, after `cooldown` seconds where that is not 0.

    Args:
        handle: who is expected to hold it; None: whoever it is.
        expected_sequence: the number it is expected to have been allocated at.
        at: now, UTC.

    Raises:
        NotFound: nobody holds it (free, or cooling down already).
        Taken: it was given to another since; it is left alone.
    """
    ordinal = block.ordinal(address)
    owner, sequence = block.owners[ordinal], block.sequences.get(ordinal)
    if owner is None or owner.released_at:
        raise NotFound(f"address {address}: nobody holds it; it was left as it is")
    if handle is not None and owner.handle != handle:
        raise Taken(
            f"address {address}: held by {owner.handle or 'no handle'}, not held by {handle}; it was left as it is"
        )
    if expected_sequence is not None and sequence != expected_sequence:
        raise Taken(
            f"address {address}: allocated at sequence number {sequence}, not {expected_sequence}: given out anew "
            "since; it was left as it is"
        )
    if not cooldown:
        return _free(block, [ordinal])
    owners = list(block.owners)
    owners[ordinal] = replace(owner, handle=None, released_at=at.replace(microsecond=0))
    return replace(block, owners=tuple(owners), sequence=block.sequence + 1)


def cooled(block: Block, at: datetime, cooldown: int) -> Block:
    """Free what was released `cooldown` seconds ago or earlier; without any, return `block` itself."""
    since = at - timedelta(seconds=cooldown)
    ripe = [
        (owner.released_at, i)
        for i, owner in enumerate(block.owners)
        if owner and owner.released_at and owner.released_at <= since
    ]
    return _free(block, [i for _, i in sorted(ripe)]) if ripe else block


def _free(block: Block, ordinals: list[int]) -> Block:
    owners = list(block.owners)
    for i in ordinals:
        owners[i] = None
    return replace(
        block,
        owners=tuple(owners),
        free=(*block.free, *ordinals),
        sequences={i: number for i, number in block.sequences.items() if i not in ordinals},
        sequence=block.sequence + 1,
    )


def without_affinity(block: Block) -> Block:
    """Return the block belonging to no node: its addresses stay valid and can only be released."""
    return replace(block, affinity=None, sequence=block.sequence + 1)


def touched(block: Block) -> Block:
    """Return the block as a write alone leaves it: who decided on it as it was, loses the race."""
    return replace(block, sequence=block.sequence + 1)


def to_json(block: Block) -> str:
    """Return the block as Calico stores it, compact."""
    # By identity: one owner of several addresses is one object, as it was read; comparing values would
    # take the square of the addresses held.
    attributes = {id(owner): owner for owner in block.owners if owner is not None}
    index = {key: number for number, key in enumerate(attributes)}
    allocations = [None if owner is None else index[id(owner)] for owner in block.owners]
    document: dict[str, Any] = {"cidr": str(block.prefix), "affinity": block.affinity}
    if block.claimed_at:
        document["affinity_claim_time"] = block.claimed_at
    document |= {
        "allocations": allocations,
        "unallocated": list(block.free),
        "attributes": [_attribute(owner) for owner in attributes.values()],
        "sequenceNumber": block.sequence,
        "sequenceNumberForAllocation": {str(i): number for i, number in sorted(block.sequences.items())},
        "deleted": block.deleted,
    }
    return json.dumps(document | dict(block.rest), separators=(",", ":"))


def from_json(text: str) -> Block:
    """Read a stored block.

    Raises:
        ConfigError: it is no block of Calico's; the message says which part is wrong.
    """
    document = _shaped(records.read_object("block", text), _KNOWN)
    for key in ("cidr", "allocations", "unallocated"):
        if document.get(key) is None:
            raise ConfigError(f"stored block: {key}: expected {_WORDS[_KNOWN[key]]}, found none")
    allocations, free = document["allocations"], document["unallocated"]
    sequences = document.get("sequenceNumberForAllocation") or {}
    _counts(free, "unallocated")
    _counts(sequences.values(), "sequenceNumberForAllocation")
    owners = [_owner(attribute, i) for i, attribute in enumerate(document.get("attributes") or [])]
    held = [i for i in allocations if i is not None]
    _counts(held, "allocations")
    if max(held, default=-1) >= len(owners):
        raise ConfigError(f"stored block: allocations: {max(held)} is none of the {len(owners)} attributes")
    block = Block(
        prefix=records.read_prefix("block", "cidr", document["cidr"]),
        affinity=document.get("affinity") or None,
        claimed_at=document.get("affinity_claim_time") or "",
        owners=tuple(None if i is None else owners[i] for i in allocations),
        free=tuple(free),
        sequence=document.get("sequenceNumber") or 0,
        sequences={_ordinal(i): n for i, n in sequences.items()},
        deleted=bool(document.get("deleted")),
        rest={key: value for key, value in document.items() if key not in _KNOWN},
    )
    # A free address that is held, or is none of the block's, would be given out a second time.
    wrong = [i for i in block.free if not 0 <= i < len(block.owners) or block.owners[i]]
    if len(block.owners) != block.prefix.num_addresses:
        raise ConfigError(
            f"stored block {block.prefix}: {len(block.owners)} allocations for {block.prefix.num_addresses} addresses"
        )
    if wrong or len(set(block.free)) < len(block.free):
        raise ConfigError(
            f"stored block {block.prefix}: unallocated does not fit allocations, or repeats itself"
        )
    return block


def _shaped(document: Mapping[str, Any], known: Mapping[str, type], where: str = "") -> Mapping[str, Any]:
    """Return `document` where every field that is known and given has its type; decisions rely on it."""
    for key, kind in known.items():
        if (value := document.get(key)) is not None and type(value) is not kind:
            raise records.unexpected("block", where + key, _WORDS[kind], value)
    return document


def _counts(values: Iterable[object], where: str) -> None:
    for value in values:
        if type(value) is not int or value < 0:
            raise records.unexpected("block", where, "numbers from 0 on", value)


def _ordinal(text: str) -> int:
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise records.unexpected("block", "sequenceNumberForAllocation", "ordinals", text)
    return int(text)


def _owner(attribute: Any, index: int) -> Owner:
    where = f"attributes[{index}]"
    if type(attribute) is not dict:
        raise records.unexpected("block", where, "an object", attribute)
    _shaped(attribute, _KNOWN_OF_OWNER, f"{where}.")
    released = attribute.get("releasedAt")
    return Owner(
        handle=attribute.get("handle_id"),
        secondary=attribute.get("secondary") or {},
        alternate=attribute.get("alternateOwnerAttrs") or {},
        released_at=_moment(released, f"{where}.releasedAt") if released else None,
        rest={key: value for key, value in attribute.items() if key not in _KNOWN_OF_OWNER},
    )


def _moment(text: str, where: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as err:
        raise records.unexpected("block", where, "a time like 2026-01-31T12:00:00Z", text) from err


def _attribute(owner: Owner) -> dict[str, Any]:
    attribute: dict[str, Any] = {"handle_id": owner.handle, "secondary": dict(owner.secondary)}
    if owner.alternate:
        attribute["alternateOwnerAttrs"] = dict(owner.alternate)
    if owner.released_at:
        attribute["releasedAt"] = _text(owner.released_at)
    return attribute | dict(owner.rest)


def _text(at: datetime) -> str:
    """RFC 3339 in whole seconds, as Calico writes it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
