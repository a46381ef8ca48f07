"""Measure how large packets to every other node may be, as they are and in each encapsulation, and judge the answers.

    nodes, pools ──▶ targets ──▶ (kernel.icmp asks) ──▶ rows ──▶ what is too small for this node's workloads

The judging is pure. What a tunnel takes is reckoned from what the way carries; where the tunnel stands it is asked
too, through it, since a filter on the way may keep out what only the tunnel sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fabric.errors import NotFound, StoreError
from fabric.ipam.assign import selects
from fabric.kernel import icmp
from fabric.kernel.links import NetlinkLinks
from fabric.model.ippool import IPPool
from fabric.model.kinds import lookup
from fabric.model.node import Node
from fabric.ops import resources
from fabric.plan import asked
from fabric.plan.encap import ENCAPS, Address, Encap, encapsulation
from fabric.plan.links import HostLink, noted_mtus
from fabric.store.kv import KeyValueStore

AT_ONCE = 16  # nodes that are asked at the same time


@dataclass(frozen=True, slots=True)
class Target:
    """An address of another node; `used` are the encapsulations by which pools send there, None: as packets are.

    `ends` are those of its tunnels, of that family.
    """

    node: str
    address: Address
    used: frozenset[Encap | None] = frozenset()
    ends: Mapping[Encap, Address] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a target: `carried` by the way itself, None where nobody answers.

    `through` has each tunnel that stands between the two: what comes through it, None for nothing.
    """

    carried: int | None
    through: Mapping[Encap, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """The largest packet of a workload that gets there in one encapsulation, None for none; `how` that is known."""

    node: str
    address: Address
    encapsulation: str  # native, ipip, vxlan
    usable: int | None
    used: bool
    how: str


@dataclass(frozen=True, slots=True)
class Checked:
    """`silent` are, in words, the nodes of which no address answers, and the ways in use by which nothing comes."""

    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    silent: tuple[str, ...]


def targets(name: str, nodes: Collection[Node], pools: Collection[IPPool]) -> list[Target]:
    """Return the addresses of the other nodes, with how the node `name` sends to them.

    Raises:
        NotFound: `name` is no node.
    """
    me = next((asked.node(node) for node in nodes if node.metadata.name == name), None)
    if me is None:
        raise NotFound(
            f"Node {name}: not in the datastore; nothing was sent; `fabricctl node join` registers this host"
        )
    found = []
    for node in sorted(nodes, key=lambda node: node.metadata.name):
        there = asked.node(node)
        fit = [asked.pool(pool) for pool in pools if selects(pool, node.metadata.labels)]
        for address in (held.ip for held in there.addresses if there.name != name):
            version = address.version
            used = (encapsulation(pool, me, there, address) for pool in fit if pool.prefix.version == version)
            ends = {encap: end for encap, end in there.ends.items() if encap.version == version}
            found.append(Target(there.name, address, frozenset(used), ends))
    return found


def rows(target: Target, measured: Measured) -> list[Row]:
    """Return a row for each encapsulation of the family, the native one first."""
    carried = measured.carried
    made = [_row(target, None, carried, "no answer" if carried is None else "probed")]
    for encap in (encap for encap in ENCAPS if encap.version == target.address.version):
        inside = None if carried is None else carried - encap.overhead
        how = "no answer" if inside is None else f"less {encap.overhead}"
        if encap in measured.through:
            # What comes through in pieces may be larger than what comes through whole.
            through = measured.through[encap]
            inside = None if through is None else min(through, inside or through)
            how = f"no answer through {encap.device}" if through is None else f"through {encap.device}"
        made.append(_row(target, encap, inside, how))
    return made


def _row(target: Target, encap: Encap | None, usable: int | None, how: str) -> Row:
    word = encap.kind if encap else "native"
    return Row(target.node, target.address, word, usable, encap in target.used, how)


def too_small(found: Iterable[Row], sent: Mapping[int, int]) -> list[str]:
    """Return what to say of each way in use that carries less than this node's workloads send, `sent` by family."""
    return [
        f"node {row.node} ({row.address}), {row.encapsulation}: packets of up to {row.usable} bytes get there, and "
        f"workloads here send up to {sent[row.address.version]}: larger ones depend on path MTU discovery; give the "
        f"link by which they leave an MTU that fits, or the links on the way a larger one"
        for row in found
        if row.used and row.usable is not None and row.usable < sent.get(row.address.version, 0)
    ]


def sent(links: Iterable[HostLink]) -> dict[int, int]:
    """Return the largest packet that a workload behind `links` may send, by family."""
    found: dict[int, int] = {}
    for link in links:
        for version, mtu in noted_mtus(link.alias).items():
            found[version] = max(mtu, found.get(version, 0))
    return found


def judged(name_rows: Collection[Row], sending: Mapping[int, int]) -> Checked:
    """Return the rows with what there is to say of them."""
    answering = {row.node for row in name_rows if row.usable is not None}
    silent = dict.fromkeys(
        f"node {row.node}: none of its addresses answers an echo request; is it up, and do packet filters and policy "
        "let ICMP through?"
        if row.node not in answering
        else f"node {row.node} ({row.address}), {row.encapsulation}: {row.how}, and packets go that way; does "
        "`fabricctl node status` of both show it up, and do packet filters on the way let it through?"
        for row in name_rows
        if row.node not in answering or (row.used and row.usable is None)
    )
    return Checked(tuple(name_rows), tuple(too_small(name_rows, sending)), tuple(silent))


async def check(name: str, kv: KeyValueStore) -> Checked:
    """Measure the ways from this host, the node `name`, to all others; it takes seconds where somebody is silent.

    Raises:
        NotFound: `name` is no node.
        StoreError: etcd did not answer.
        DataplaneError: this is not root.
    """
    try:
        nodes = (await resources.listing(kv, Node, lookup("node"))).resources
        pools = (await resources.listing(kv, IPPool, lookup("ippool"))).resources
    except StoreError as err:
        raise type(err)(f"nothing was sent, since the other nodes stand in etcd: {err}") from err
    sending = sent(await NetlinkLinks().owned_links())
    turn = asyncio.Semaphore(AT_ONCE)

    async def ask(target: Target) -> list[Row]:
        async with turn:
            return rows(target, await measure(target))

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask(target)) for target in targets(name, nodes, pools)]
    return judged([row for each in asking for row in each.result()], sending)


async def measure(target: Target) -> Measured:
    """Ask the target itself, and the ends of its tunnels that this host's routes lead into a tunnel for."""
    through: dict[Encap, int | None] = {}
    for encap, end in target.ends.items():
        way = await icmp.way(end)
        if way and way.link == encap.device:
            through[encap] = await icmp.usable(end, way.mtu)
    way = await icmp.way(target.address)
    return Measured(await icmp.usable(target.address, way.mtu) if way else None, through)
