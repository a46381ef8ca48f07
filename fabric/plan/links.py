"""Decide which workload links this node should have, and how to get there from those it has.

A link is a veth pair: one end in the container with the workload's addresses, one on the host with a
fixed MAC. There is no bridge; the host end routes. Same shape as `fabric.plan.routes`: frozen values, a
pure `plan`, a thin `apply`, a Protocol where the kernel begins.

Ownership: a link is ours if it is a veth whose name `is_ours`. Only the host end is read back, and
it goes up last of all: one that is down was left half-made, or was changed by hand, and is repaired. What its other
end was given is in its alias: nothing of a container is seen from the host.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol, TypeAlias

from fabric.errors import DataplaneError
from fabric.plan.mtu import Mtus

Address: TypeAlias = IPv4Address | IPv6Address
Neighbour: TypeAlias = tuple[Address, str]

# One MAC for every host end, as with Calico: a container moved to another node keeps a valid neighbour entry.
HOST_MAC = "ee:ee:ee:ee:ee:ee"
# What the kernel derives from HOST_MAC (RFC 4291 appendix A); set by hand, since a host may derive otherwise.
HOST_LINK_LOCAL = IPv6Address("fe80::ecee:eeff:feee:eeee")
GATEWAY4 = IPv4Address("169.254.1.1")


@dataclass(frozen=True, slots=True)
class Veth:
    """One link as it should be.

    `name` is the host end's. `mac`, `addresses` and `interface` are the container end's; `netns` is
    a path. `localnet` lets the host end carry packets that were for 127.0.0.0/8 before NAT.
    """

    name: str
    netns: str
    interface: str
    mac: str
    addresses: tuple[Address, ...]
    mtus: Mtus
    localnet: bool = False

    @property
    def neighbours(self) -> frozenset[Neighbour]:
        """The permanent entries of the host end."""
        return frozenset((address, self.mac) for address in self.addresses)

    @property
    def mtu(self) -> int:
        """That of both ends: the larger of what its families need."""
        return _fitted(tuple([address.version for address in self.addresses]), self.mtus)[0]

    def route_mtu(self, version: int) -> int:
        """Return what the container's default route of that family holds packets to, 0 where the device's will do."""
        mtu = self.mtus.of(version)
        return mtu if mtu < self.mtu else 0

    @property
    def alias(self) -> str:
        """The host end's, by which a restarted agent knows what the container's end was given."""
        return _fitted(tuple([address.version for address in self.addresses]), self.mtus)[1]


@lru_cache  # every pass asks it of all links
def _fitted(versions: tuple[int, ...], mtus: Mtus) -> tuple[int, str]:
    needs = {version: mtus.of(version) for version in sorted(versions)}
    noted = (f"mtu{version}={need}" for version, need in needs.items())
    return max(needs.values(), default=max(mtus)), " ".join(["fab", *noted])


@dataclass(frozen=True, slots=True)
class HostLink:
    """The host end of one link as read back; `sysctls` says whether they are as `Links.create` sets them."""

    name: str
    index: int
    up: bool
    mac: str
    neighbours: frozenset[Neighbour]
    sysctls: bool
    mtu: int
    alias: str
    localnet: bool


@dataclass(frozen=True, slots=True)
class Create:
    """Make the link; it is not there."""

    veth: Veth


@dataclass(frozen=True, slots=True)
class Repair:
    """Bring an existing link to what it should be, without taking it down."""

    veth: Veth


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the link called `name`; already gone counts as success."""

    name: str


Op: TypeAlias = Create | Repair | Remove


class Links(Protocol):
    """The seam: `fabric.kernel.links.NetlinkLinks` for the kernel, `tests.fakes.links.FakeLinks` else."""

    async def owned_links(self) -> Collection[HostLink]:
        """Return the host end of every link of ours, and no other."""

    async def create(self, veth: Veth) -> None:
        """Make the link, or bring an existing one to what it should be; a repetition changes nothing.

        Raises DataplaneError if refused: a link this call has made is then gone again.
        """

    async def remove(self, names: Collection[str]) -> None:
        """Remove all of them at once.

        Raises DataplaneError if refused, and says nothing of which; a missing link is not an error.
        """


def host_name(namespace: str, workload: str) -> str:
    """Return the host end's name: a kernel name holds 15 characters, so a hash stands for the workload's."""
    return f"fab{_digest(namespace, workload)[:12]}"


def container_mac(namespace: str, workload: str) -> str:
    """Return the container end's MAC, the same each time: unicast, locally administered (first octet 02)."""
    digest = _digest(namespace, workload)
    return ":".join(["02", *(digest[start : start + 2] for start in range(12, 22, 2))])


def is_ours(name: str) -> bool:
    """Whether `host_name` could have made `name`; a stranger's "fabric0" is not ours to remove."""
    return re.fullmatch(r"fab[0-9a-f]{12}", name) is not None


def _digest(namespace: str, workload: str) -> str:
    # "/" is in neither name, so no two pairs give one text.
    return hashlib.sha1(f"{namespace}/{workload}".encode(), usedforsecurity=False).hexdigest()


def noted_mtus(alias: str) -> dict[int, int]:
    """Return what `Veth.alias` says, by family; nothing of an alias that is not ours."""
    return {int(version): int(mtu) for version, mtu in re.findall(r"\bmtu([46])=(\d+)", alias)}


def as_made(veth: Veth, index: int = 0) -> HostLink:
    """Return the host end of `veth` as it is read back once `Links.create` has returned."""
    return HostLink(
        name=veth.name,
        index=index,
        up=True,
        mac=HOST_MAC,
        neighbours=veth.neighbours,
        sysctls=True,
        mtu=veth.mtu,
        alias=veth.alias,
        localnet=veth.localnet,
    )


def plan(
    desired: Mapping[str, Veth],
    actual: Mapping[str, HostLink],
    *,
    in_sync: bool = True,
    scope: AbstractSet[str] | None = None,
) -> list[Op]:
    """Return the operations that turn `actual` into `desired`, both by host name, in the order to run them.

    Removals come first, unlike routes': an unwanted link may hold the interface name that its
    successor needs in the same container. Nothing is removed until the datastore is `in_sync`. `scope`, when
    given, limits the plan to these host names (an attach). After a full apply it is [].
    """
    ours = sorted(desired.keys() | actual.keys())
    names = [name for name in ours if scope is None or name in scope]
    removals: list[Op] = [Remove(name) for name in names if in_sync and name not in desired]
    return removals + [
        op for name in names if name in desired and (op := _step(desired[name], actual.get(name)))
    ]


def _step(veth: Veth, link: HostLink | None) -> Create | Repair | None:
    if link is None:
        return Create(veth)
    # Field by field: to make the HostLink that it should be takes three times as long, and every pass asks of all.
    sound = (
        link.up
        and link.sysctls
        and link.mac == HOST_MAC
        and link.localnet == veth.localnet
        and (link.mtu, link.alias) == (veth.mtu, veth.alias)
        and link.neighbours == veth.neighbours
    )
    return None if sound else Repair(veth)


async def apply(ops: Sequence[Op], links: Links) -> dict[Op, DataplaneError]:
    """Run `ops` and return the refused ones; links are independent, so go on. Removals come first, as in a plan."""
    refused: dict[Op, DataplaneError] = await _remove([op for op in ops if isinstance(op, Remove)], links)
    for op in ops:
        if not isinstance(op, Remove):
            try:
                await links.create(op.veth)
            except DataplaneError as err:
                refused[op] = err
    return refused


async def _remove(ops: Sequence[Remove], links: Links) -> dict[Op, DataplaneError]:
    """Together, which costs little more than one; where that is refused, each alone, so that one spares the rest."""
    if not ops:
        return {}
    try:
        await links.remove([op.name for op in ops])
    except DataplaneError as err:
        if len(ops) == 1:
            return {ops[0]: err}
        return {op: why for each in ops for op, why in (await _remove([each], links)).items()}
    return {}
