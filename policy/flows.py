"""Live connections as the kernel tracks them: values, and the seam to the kernel."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from policy.form import Address, Icmp


class Ends(NamedTuple):
    """One direction of a connection as conntrack keys it; ports are 0 and `icmp` None where there are none."""

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp: Icmp | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """One conntrack entry. NAT shows in `reply`: its source is where packets go, after DNAT.

    `master` is the connection for whose sake conntrack let this one through (RELATED); no policy was asked about it.
    `handle` is the kernel's own name for the entry, to be handed back when it is marked or deleted.
    """

    original: Ends
    reply: Ends
    mark: int = 0
    master: Ends | None = None
    handle: bytes = field(default=b"", repr=False)


class Conntrack(Protocol):
    """The seam: `fabric.kernel.conntrack` for the kernel, `tests.fakes.conntrack.FakeConntrack` else."""

    async def flows(self, addresses: AbstractSet[Address], bits: int) -> Collection[Flow]:
        """Return the entries that one of `addresses` is an end of, and those that have any of `bits` in their mark."""

    async def set_mark(self, flows: Collection[Flow], value: int, mask: int) -> None:
        """Set the bits `mask` of the entries' marks to those of `value`; an entry that is gone is no error."""

    async def forget(self, flows: Collection[Flow]) -> None:
        """Delete the entries, so that the next packet is asked about like a first one; one that is gone is no error."""
