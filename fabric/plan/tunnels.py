"""Decide which tunnel devices this node should have, and how to get there from those it has.

Same shape as `fabric.plan.links`: frozen values, a pure `plan`, a thin `apply`, a Protocol where the kernel begins.

Ownership: a device is ours by its name (`encap.DEVICES`) and kind; tunl0, which is there whoever uses it, by its alias.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from fabric.errors import DataplaneError
from fabric.plan.encap import Address, Encap


@dataclass(frozen=True, slots=True)
class Far:
    """The far end of a VXLAN: what goes to `address`, the other node's end, is for `mac`, at `node`'s own address."""

    address: Address
    mac: str
    node: Address


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One device as it should be, up; the encapsulation gives its name.

    `address` is this node's end, a single address; `local` this node's own address, from which it sends. Of a VXLAN
    alone: `mac` (its own), `vni`, `port` (UDP, destination), `far` (FDB and neighbour entries), and `offload`: whether
    checksums of what it carries are left to the link.
    """

    encap: Encap
    address: Address
    local: Address
    mtu: int
    mac: str = ""
    vni: int = 0
    port: int = 0
    far: frozenset[Far] = frozenset()
    offload: bool = True

    @property
    def name(self) -> str:
        return self.encap.device


@dataclass(frozen=True, slots=True)
class HostTunnel:
    """A device as read back. `sound` False: it is down, or something that a Tunnel does not name is not as made.

    `received` counts the packets that have come by it.
    """

    tunnel: Tunnel
    sound: bool = True
    received: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Create:
    """Make the device; it is not there."""

    tunnel: Tunnel

    @property
    def name(self) -> str:
        return self.tunnel.name


@dataclass(frozen=True, slots=True)
class Repair:
    """Bring an existing device to what it should be, without taking it down."""

    tunnel: Tunnel

    @property
    def name(self) -> str:
        return self.tunnel.name


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the device called `name`, and with it the routes by it; already gone counts as success."""

    name: str


Op: TypeAlias = Create | Repair | Remove


class Tunnels(Protocol):
    """The seam: `fabric.kernel.tunnels.NetlinkTunnels` for the kernel, `tests.fakes.tunnels.FakeTunnels` else."""

    async def owned(self) -> Collection[HostTunnel]:
        """Return every tunnel device of ours, and no other."""

    async def create(self, tunnel: Tunnel) -> None:
        """Make the device, or bring an existing one to what it should be; a repetition changes nothing.

        Raises DataplaneError if refused, in words that name who holds what it needs (its name, VNI or port): a device
        that this call has made is then gone again.
        """

    async def remove(self, name: str) -> None:
        """Remove it, and tunl0, which the kernel keeps, bring to how it was found: down, no address.

        Raises DataplaneError if refused; one that is gone is no error.
        """


def plan(
    desired: Mapping[str, Tunnel], actual: Mapping[str, HostTunnel], *, in_sync: bool = True
) -> list[Op]:
    """Return the operations that turn `actual` into `desired`, both by device name, in the order to run them.

    Removals come first: the kernel cannot change a VXLAN's VNI or port, so that such a device is made anew. Until the
    datastore is `in_sync` nothing is removed, neither device nor far end: one that was not heard of yet looks exactly
    like one no longer wanted. After a full apply it is [].
    """
    if not in_sync:
        desired = {name: _no_less(tunnel, actual.get(name)) for name, tunnel in desired.items()}
    anew = {name for name, tunnel in desired.items() if _is_another(tunnel, actual.get(name))}
    gone = (actual.keys() - desired.keys() if in_sync else set()) | anew
    removals: list[Op] = [Remove(name) for name in sorted(gone)]
    return removals + [
        op
        for name in sorted(desired)
        if (op := _step(desired[name], None if name in anew else actual.get(name)))
    ]


def widened(desired: Mapping[str, Tunnel], actual: Mapping[str, HostTunnel]) -> dict[str, Tunnel]:
    """Return `desired` with the far ends that are there still, at their nodes as desired: routes may lead to them.

    What is planned of this comes before routes, and what is planned of `desired` after them.
    """
    return {name: _wider(tunnel, actual.get(name)) for name, tunnel in desired.items()}


def _wider(tunnel: Tunnel, held: HostTunnel | None) -> Tunnel:
    if held is None:
        return tunnel
    addresses, nodes = {far.address for far in tunnel.far}, {far.mac: far.node for far in tunnel.far}
    kept = {
        replace(far, node=nodes.get(far.mac, far.node))
        for far in held.tunnel.far
        if far.address not in addresses
    }
    return replace(tunnel, far=tunnel.far | kept)


def _no_less(tunnel: Tunnel, held: HostTunnel | None) -> Tunnel:
    """Return `tunnel` with what a part of the datastore cannot be asked to take away: far ends, VNI and port."""
    if held is None:
        return tunnel
    wanted = {far.address for far in tunnel.far} | {far.mac for far in tunnel.far}
    kept = {far for far in held.tunnel.far if far.address not in wanted and far.mac not in wanted}
    return replace(tunnel, vni=held.tunnel.vni, port=held.tunnel.port, far=tunnel.far | kept)


def _is_another(tunnel: Tunnel, held: HostTunnel | None) -> bool:
    return held is not None and (tunnel.vni, tunnel.port) != (held.tunnel.vni, held.tunnel.port)


def _step(tunnel: Tunnel, held: HostTunnel | None) -> Create | Repair | None:
    if held is None:
        return Create(tunnel)
    # From where tunl0 sends the kernel chooses, as it does the route.
    known = replace(held.tunnel, local=tunnel.local) if tunnel.encap.kind == "ipip" else held.tunnel
    return None if held.sound and known == tunnel else Repair(tunnel)


async def apply(ops: Iterable[Op], tunnels: Tunnels) -> dict[Op, DataplaneError]:
    """Run `ops` in order and return the refused ones; tunnels are independent, so go on."""
    refused: dict[Op, DataplaneError] = {}
    for op in ops:
        try:
            match op:
                case Create(tunnel) | Repair(tunnel):
                    await tunnels.create(tunnel)
                case Remove(name):
                    await tunnels.remove(name)
        except DataplaneError as err:
            refused[op] = err
    return refused
