"""Decide which tunnel, if any, leads to another node, for each pool and next hop. Pure.

Both ends of a tunnel must stand, which their Nodes say, before a packet goes in; until then the way is by another
tunnel of which that is so, or as it would be without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from bgp.nexthop import Hop, LongestMatch
from fabric.plan import encap as encaps
from fabric.plan.encap import ENCAPS, Address, Encap, Kind, Node, Pool, Prefix

WORDS: Final[Mapping[Kind, str]] = {"ipip": "IPIP", "vxlan": "VXLAN"}
NO_END: Final = "{} has no end of {} yet"


class Way(NamedTuple):
    """Where packets go that a tunnel takes to another node, and that node's own address, to which the tunnel goes."""

    hop: Hop
    underlay: Address


class Carried(NamedTuple):
    """What carries a pool's packets to a node; `encap` None: they go as they are.

    `why` says what is in the way of the tunnel that the pool asks for, or of the one it asks for first. `blame` is the
    node that it is about. `waiting`: it comes right by itself once that node's agent has done its part; until then
    packets go by another tunnel that stands at both ends, such as the one that the pool asked for before.
    """

    encap: Encap | None = None
    why: str = ""
    blame: str = ""
    waiting: bool = False


@dataclass(frozen=True)
class Ways:
    """Which tunnel, if any, leads where: `pools` are those that ask for one, `nodes` the others, by name.

    `members` are the nodes that a pool selects, by its name, where it does not select all of them. `holders` say which
    node has a block, or an address of another's block; only where a pool asks for it. `narrow` are the tunnels that
    this node cannot have for its links' MTU, each with that in words.
    """

    here: Node = field(default_factory=lambda: Node(""))
    nodes: Mapping[str, Node] = field(default_factory=dict)
    pools: tuple[Pool, ...] = ()
    holders: Mapping[Prefix, str] = field(default_factory=dict)
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)
    narrow: Mapping[Encap, str] = field(default_factory=dict)

    def way(self, prefix: Prefix, next_hop: Address) -> Way | None:
        """Return the tunnel into which packets for `prefix` go whose next hop by BGP is given, None for none.

        The next hop is the node that has it for its own address. Where it is a router, it said that it carries them;
        only a pool that is always tunnelled asks for the node that has the block.
        """
        if not self.pools or (pool := self.pool(prefix)) is None:
            return None
        if (there := self._there(pool, prefix, next_hop)) is None:
            return None
        key = pool.name, there.name, next_hop
        if key not in self._known:
            found = self.carried(pool, there, next_hop).encap
            self._known[key] = through(there, found) if found else None
        return self._known[key]

    def pool(self, prefix: Prefix) -> Pool | None:
        """Return the pool that asks for a tunnel for all of `prefix`."""
        found = self._by_prefix.find(prefix.network_address)
        return found if found and found.prefix.prefixlen <= prefix.prefixlen else None

    def barred(self, prefix: Prefix, next_hop: Address) -> bool:
        """Whether `prefix` is without the tunnel that its pool asks for, which is a problem of its own."""
        pool = self.pool(prefix)
        if pool is None or (there := self._there(pool, prefix, next_hop)) is None:
            return False
        found = self.carried(pool, there, next_hop)
        return bool(found.why) and found.encap is None

    def asks(self, node: str, encap: Encap) -> bool:
        """Whether a pool asks for that tunnel to end at the node, whatever may stand there still."""
        return any(
            encap in encaps.possible(pool) and node in self.members.get(pool.name, (node,))
            for pool in self.pools
        )

    def carried(self, pool: Pool, there: Node, next_hop: Address) -> Carried:
        """Return what carries packets for `pool` to the node `there`, whose next hop is given."""
        found = encaps.encapsulation(pool, self.here, there, next_hop)
        if found is None:
            return Carried()
        kind, version = found
        for node in (self.here, there):
            if not self.asks(node.name, found):
                return Carried(None, f"pool {pool.name} does not select {node.name}", node.name)
            if kind in node.lacks:
                return Carried(
                    None, f"the kernel of {node.name} has no {WORDS[kind]} (module {kind})", node.name
                )
            if (own := node.address(version)) is None:
                return Carried(None, f"{node.name} has no IPv{version} address", node.name)
            if around := self._by_prefix.find(own.ip):
                why = f"{node.name}'s own address {own.ip} is in pool {around.name}, which is tunnelled"
                return Carried(None, why, node.name)
        if narrow := self.narrow.get(found):
            return Carried(None, narrow, self.here.name)
        for node in (self.here, there):
            if found not in node.ends:
                why = NO_END.format(node.name, WORDS[kind])
                return Carried(self._standing(there, version), why, node.name, waiting=True)
        if kind == pool.kind:
            return Carried(found)
        lacking = [node.name for node in (self.here, there) if pool.kind in node.lacks]
        return Carried(found, f"no {WORDS[pool.kind or kind]} in the kernel of {' and '.join(lacking)}")

    def _standing(self, there: Node, version: int) -> Encap | None:
        """Return a tunnel of that family that stands at both ends already."""
        ends = (self.here.ends.keys() & there.ends.keys()) - self.narrow.keys()
        lacks = self.here.lacks | there.lacks
        return next((e for e in ENCAPS if e.version == version and e in ends and e.kind not in lacks), None)

    def _there(self, pool: Pool, prefix: Prefix, next_hop: Address) -> Node | None:
        """Return the node to which a next hop leads, as `way` says."""
        there = self._by_address.get(next_hop)
        return self._holder(prefix) if there is None and pool.mode == "Always" else there

    def _holder(self, prefix: Prefix) -> Node | None:
        held = self._held.find(prefix.network_address)
        return self.nodes.get(held[1]) if held and held[0].prefixlen <= prefix.prefixlen else None

    @cached_property
    def _known(self) -> dict[tuple[str, str, Address], Way | None]:
        return {}

    @cached_property
    def _by_address(self) -> Mapping[Address, Node]:
        return {held.ip: node for node in self.nodes.values() for held in node.addresses}

    @cached_property
    def _by_prefix(self) -> LongestMatch[Pool]:
        return LongestMatch({pool.prefix: pool for pool in self.pools})

    @cached_property
    def _held(self) -> LongestMatch[tuple[Prefix, str]]:
        return LongestMatch({prefix: (prefix, name) for prefix, name in self.holders.items()})


def through(there: Node, encap: Encap) -> Way:
    """Return the way through a tunnel to the node `there`, which has an end of it."""
    own = there.address(encap.version)
    assert own
    return Way(Hop(own.ip if encap.kind == "ipip" else there.ends[encap], encap.device), own.ip)
