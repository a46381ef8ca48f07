"""Decide what the datastore says of tunnels, and of the way to others' blocks. Pure.

    pools, nodes ────────▶ ways (agent.ways) ──▶ next hops of BGP's paths (agent.loc_rib)
                            │
    blocks, endpoints ──────┴─────▶ routes: VXLAN's, and those to nodes without BGP
    this node's ends (IPAM) ──────▶ tunnels

Worked out whole, and only when something changed of what it is made of: an attach changes none of it.

Source: calico-semantics §6 (CrossSubnet), §8 (remote routes).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Final, NamedTuple, TypeAlias, TypeVar

from bgp.nexthop import Hop, LongestMatch, Reach
from bgp.peering import Here
from fabric.agent import underlay
from fabric.agent.settings import Settings
from fabric.agent.snapshot import Snapshot, Stored
from fabric.agent.ways import WORDS, Carried, Ways, through
from fabric.ipam.assign import selects
from fabric.ipam.records import Affinity
from fabric.ipam.upkeep import tunnel_addresses
from fabric.ipam.view import Stored as StoredBlock
from fabric.model import extensions
from fabric.model.base import Resource
from fabric.model.ippool import IPPool
from fabric.model.node import Node as NodeResource
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.plan import asked, mtu
from fabric.plan import encap as encaps
from fabric.plan.encap import ENCAPS, IPIP, VXLAN, VXLAN6, Address, Encap, Kind, Node, Pool, Prefix
from fabric.plan.mtu import Mtus
from fabric.plan.routes import NextHop, Route, RouteKey
from fabric.plan.tunnels import Far, Tunnel
from fabric.store.keys import ResourceKey

K = TypeVar("K")
V = TypeVar("V")

NAMES: Final[Mapping[Encap, str]] = {IPIP: "ipip", VXLAN: "vxlan", VXLAN6: "vxlan-v6"}  # IPAM's


@dataclass(frozen=True)
class Ground:
    """What lies below: the host's links and routes, the MTU of each link, and the peers of its BGP sessions.

    `mtu` is what counts where no route says by which link packets leave.
    """

    here: Here = field(default_factory=Here, repr=False)
    foreign_routes: tuple[Route, ...] = ()
    mtus: Mapping[str, int] = field(default_factory=dict)
    mtu: int = 1500
    peers: tuple[Address, ...] = ()


class Row(NamedTuple):
    """How packets of a family go to a node where a pool asks for a tunnel; `why` where it is not the one asked for."""

    node: str
    version: int
    encapsulation: str  # ipip, vxlan, native
    why: str = ""


@dataclass(frozen=True)
class Inputs:
    """All that an Overlay is made of. `ends` are this node's, as IPAM has them.

    `members` are the nodes that a pool selects, by its name, where it does not select all of them.
    `owners` are the nodes of the blocks whose affinity is confirmed, `borrowed` those of workloads' addresses that are
    in no block of their own node; both are there only where a tunnel or a node without BGP asks for them.
    """

    here: Node
    nodes: Mapping[str, Node]
    pools: tuple[Pool, ...]
    members: Mapping[str, frozenset[str]]
    ends: Mapping[Encap, Address]
    owners: Mapping[Prefix, str]
    borrowed: Mapping[Prefix, str]
    vni: int
    port: int
    ground: Ground


_Held: TypeAlias = tuple[tuple[Prefix, str], ...]


@dataclass(frozen=True)
class Read:
    """What was read of the datastore, kept with what it was read from: what is still the same object is not read again.

    `borrowing` has the endpoints with an address outside of their own node's blocks, and which.
    """

    nodes: Mapping[str, tuple[NodeResource, Node]] = field(default_factory=dict)
    affinities: Mapping[tuple[str, Prefix], Affinity] = field(default_factory=dict)
    blocks: Mapping[Prefix, StoredBlock] = field(default_factory=dict)
    owners: Mapping[Prefix, str] = field(default_factory=dict)
    by_block: LongestMatch[str] = field(default_factory=lambda: LongestMatch({}))
    endpoints: Mapping[ResourceKey, Stored] = field(default_factory=dict)
    borrowing: Mapping[ResourceKey, _Held] = field(default_factory=dict)


@dataclass(frozen=True)
class Overlay:
    """What the datastore says of tunnels, and of the way to blocks.

    `pools` are all of them, `nodes` all others, by name. `problems` say by object what stays in the way of a tunnel
    that is asked for, or of any way at all; `waiting`, alike, what comes right by itself. `unmade` says by device why
    this node cannot have a tunnel that pools ask of it. `mtus` are a workload's, None until they are worked out.
    """

    here: Node = field(default_factory=lambda: Node(""))
    nodes: Mapping[str, Node] = field(default_factory=dict)
    pools: tuple[Pool, ...] = ()
    ways: Ways = field(default_factory=Ways)
    tunnels: tuple[Tunnel, ...] = ()
    routes: tuple[Route, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    unmade: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    mtus: Mtus | None = None
    inputs: Inputs | None = field(default=None, repr=False)
    read: Read = field(default_factory=Read, repr=False, compare=False)


def overlay(node: str, snapshot: Snapshot, settings: Settings, ground: Ground, known: Overlay) -> Overlay:
    """Return the overlay as `node` should have it; `known` is the last one, whose parts stand where nothing changed."""
    inputs, read = _inputs(node, snapshot, settings, ground, known.read)
    if inputs == known.inputs:
        return replace(known, read=read)
    tunnelled = tuple(pool for pool in inputs.pools if pool.kind and pool.mode != "Never")
    egress = _egress(inputs)
    narrow = _narrow(inputs, egress)
    ways = _ways(inputs, tunnelled, narrow)
    if ways == known.ways:
        ways = known.ways
    verdicts = _verdicts(inputs, ways)
    tunnels = tuple(_tunnels(inputs, ways, verdicts, egress))
    said = _Said()
    routes = [*_to_far_ends(tunnels), *_to_blocks(inputs, ways, verdicts, said)]
    _tell(inputs, ways, verdicts, said)
    return Overlay(
        here=inputs.here,
        nodes=inputs.nodes,
        pools=inputs.pools,
        ways=ways,
        tunnels=tunnels,
        routes=underlay.displacing_nobody(routes, ground.foreign_routes),
        problems=said.problems,
        waiting=said.waiting,
        unmade=dict(_unmade(inputs, ways)),
        rows=_rows(inputs, ways, verdicts),
        mtus=mtu.workload(egress, inputs.pools),
        inputs=inputs,
        read=read,
    )


# What is read


def _inputs(
    node: str, snapshot: Snapshot, settings: Settings, ground: Ground, before: Read
) -> tuple[Inputs, Read]:
    resources = snapshot.all(NodeResource)
    nodes = {r.metadata.name: _read_once(r, before.nodes.get(r.metadata.name)) for r in resources}
    others = {name: found for name, (_, found) in nodes.items() if name != node}
    here = nodes[node][1] if node in nodes else Node(node)
    given = sorted(snapshot.all(IPPool), key=lambda pool: pool.metadata.name)
    pools = tuple(map(asked.pool, given))
    wanted = _asks_for_owners(pools, (here, *others.values()))
    read = _holdings(snapshot, replace(before, nodes=nodes)) if wanted else Read(nodes)
    addresses = tunnel_addresses(snapshot.view(node))
    return Inputs(
        here=here,
        nodes=others,
        pools=pools,
        members={pool.metadata.name: _members(pool, resources) for pool in given if _is_choosy(pool)},
        ends={encap: address for encap, name in NAMES.items() if (address := addresses[name])},
        owners=read.owners,
        borrowed=dict(pair for held in read.borrowing.values() for pair in held),
        vni=settings.vxlan_vni,
        port=settings.vxlan_port,
        ground=ground,
    ), read


def _read_once(resource: NodeResource, before: tuple[NodeResource, Node] | None) -> tuple[NodeResource, Node]:
    return before if before and before[0] is resource else (resource, asked.node(resource))


def _is_choosy(pool: IPPool) -> bool:
    return pool.spec.node_selector != "all()"


def _members(pool: IPPool, nodes: Iterable[NodeResource]) -> frozenset[str]:
    return frozenset(node.metadata.name for node in nodes if selects(pool, node.metadata.labels))


def _asks_for_owners(pools: Iterable[Pool], nodes: Iterable[Node]) -> bool:
    by_tunnel = any(pool.kind == "vxlan" or pool.fallback or pool.mode == "Always" for pool in pools)
    return by_tunnel or not all(node.bgp for node in nodes)


def _holdings(snapshot: Snapshot, before: Read) -> Read:
    """Read which node has which block, and which addresses outside of its own."""
    if snapshot.affinities != before.affinities or _moved(snapshot.blocks, before.blocks):
        owners = {
            prefix: node
            for (node, prefix), record in snapshot.affinities.items()
            if record.confirmed and (held := snapshot.blocks.get(prefix)) and held.block.node == node
        }
        if owners != before.owners:
            before = Read(before.nodes, owners=owners, by_block=LongestMatch(owners))
    endpoints = snapshot.held(WorkloadEndpoint)
    borrowing = {key: pairs for key, pairs in before.borrowing.items() if key in endpoints}
    for key, stored in _fresh(endpoints, before.endpoints):
        borrowing.pop(key, None)
        if pairs := _borrowed(stored.resource, before.by_block):
            borrowing[key] = pairs
    return replace(
        before,
        affinities=snapshot.affinities,
        blocks=snapshot.blocks,
        endpoints=endpoints,
        borrowing=borrowing,
    )


def _moved(now: Mapping[Prefix, StoredBlock], before: Mapping[Prefix, StoredBlock]) -> bool:
    """Whether blocks came, went, or changed hands; most changes are of what is in them."""
    fresh = _fresh(now, before)
    return len(now) != len(before) or any(
        key not in before or before[key].block.affinity != stored.block.affinity for key, stored in fresh
    )


def _fresh(now: Mapping[K, V], before: Mapping[K, V]) -> list[tuple[K, V]]:
    """Return what is not there before as the same object; by identity, as a prefix takes long to hash."""
    known = set(map(id, before.values()))
    return [(key, value) for key, value in now.items() if id(value) not in known]


def _borrowed(endpoint: Resource, blocks: LongestMatch[str]) -> _Held:
    assert isinstance(endpoint, WorkloadEndpoint)
    node = endpoint.spec.node
    return tuple((n, node) for n in endpoint.spec.ip_networks if blocks.find(n.network_address) != node)


# What comes of it


_Verdicts: TypeAlias = Mapping[tuple[str, str], Carried]  # by names, of the pool and of the node


def _ways(inputs: Inputs, tunnelled: tuple[Pool, ...], narrow: Mapping[Encap, str]) -> Ways:
    if not tunnelled:
        return Ways()
    always = any(pool.mode == "Always" for pool in tunnelled)
    holders = {**inputs.owners, **inputs.borrowed} if always else {}
    return Ways(inputs.here, inputs.nodes, tunnelled, holders, inputs.members, narrow)


def _selected(inputs: Inputs, pool: Pool) -> AbstractSet[str]:
    """The nodes that the pool selects, this one with the others."""
    return inputs.members.get(pool.name, inputs.nodes.keys() | {inputs.here.name})


def _verdicts(inputs: Inputs, ways: Ways) -> _Verdicts:
    """Say for each pool with tunnels, and each node that it selects, what carries the one's packets to the other."""
    return {
        (pool.name, there.name): ways.carried(pool, there, far.ip)
        for pool in ways.pools
        for there in inputs.nodes.values()
        if (far := there.address(pool.prefix.version))
    }


def _egress(inputs: Inputs) -> int:
    ground = inputs.ground
    others = [held.ip for node in inputs.nodes.values() for held in node.addresses]
    return mtu.egress(ground.foreign_routes, ground.mtus, [*others, *ground.peers], ground.mtu)


def _narrow(inputs: Inputs, egress: int) -> Mapping[Encap, str]:
    """Say which tunnels there is no room for on the links that lead out."""
    link = min((name for name, size in inputs.ground.mtus.items() if size == egress), default="the way out")
    return {
        encap: f"{link} has an MTU of {egress}, which leaves {left} in {encap.device}; IPv{encap.version} needs {least}"
        for encap in ENCAPS
        if (left := mtu.tunnel(egress, encap)) < (least := mtu.MINIMUM[encap.version])
    }


def _unmade(inputs: Inputs, ways: Ways) -> Iterator[tuple[str, str]]:
    here = inputs.here
    for pool in ways.pools:
        if here.name in _selected(inputs, pool) and (kind := encaps.lacking(pool, here.lacks)):
            name = Encap(kind, pool.version).device
            yield name, f"the kernel has no {WORDS[kind]} (module {kind})"
    yield from ((e.device, why) for e, why in ways.narrow.items() if ways.asks(here.name, e))


def _tunnels(inputs: Inputs, ways: Ways, verdicts: _Verdicts, egress: int) -> Iterator[Tunnel]:
    """What pools ask of this node, and what carries their packets until that stands."""
    here, used = inputs.here, {found.encap for found in verdicts.values()}
    for encap, address in inputs.ends.items():
        if not (encap in used or ways.asks(here.name, encap)):
            continue
        if encap.kind in here.lacks or encap in ways.narrow or (own := here.address(encap.version)) is None:
            continue
        size = mtu.tunnel(egress, encap)
        if encap.kind == "ipip":
            yield Tunnel(encap, address, own.ip, size)
            continue
        far = frozenset(
            Far(node.ends[encap], node.macs[encap], theirs.ip)
            for node in inputs.nodes.values()
            if encap in node.ends and (theirs := node.address(encap.version))
        )
        yield Tunnel(encap, address, own.ip, size, here.macs[encap], inputs.vni, inputs.port, far)


def _to_far_ends(tunnels: Iterable[Tunnel]) -> Iterator[Route]:
    for tunnel in tunnels:
        hops = frozenset({NextHop(device=tunnel.name)})
        yield from (Route(RouteKey(ip_network(far.address)), hops) for far in tunnel.far)


class _Said:
    """What there is to say, by object, each thing once."""

    def __init__(self) -> None:
        self._problems: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._waiting: defaultdict[str, dict[str, None]] = defaultdict(dict)

    def say(self, node: str, what: str, *, waiting: bool = False) -> None:
        (self._waiting if waiting else self._problems)[f"Node {node}"][what] = None

    @property
    def problems(self) -> Mapping[str, str]:
        return {name: "; ".join(whats) for name, whats in sorted(self._problems.items())}

    @property
    def waiting(self) -> Mapping[str, str]:
        return {name: "; ".join(whats) for name, whats in sorted(self._waiting.items())}


def _to_blocks(inputs: Inputs, ways: Ways, verdicts: _Verdicts, said: _Said) -> Iterator[Route]:
    """The routes that the datastore says: BGP says the others."""
    here, near = inputs.here, _Near(inputs)
    for prefix, name in (*inputs.owners.items(), *inputs.borrowed.items()):
        if (there := inputs.nodes.get(name)) is None:
            continue
        without_bgp = not (here.bgp and there.bgp)
        pool = ways.pool(prefix)
        verdict = verdicts.get((pool.name, name), Carried()) if pool else Carried()
        if (encap := verdict.encap) and (encap.kind == "vxlan" or without_bgp):
            hop: Hop | str = through(there, encap).hop
        elif without_bgp:
            hop = near.hop(there, prefix.version)
        else:
            continue
        if isinstance(hop, str):
            its = pool or next((p for p in inputs.pools if _covers(p, prefix)), Pool(prefix, name="(none)"))
            said.say(name, _no_way(inputs, there, its, hop), waiting=verdict.waiting)
        else:
            yield Route(RouteKey(prefix), frozenset({NextHop(hop.gateway, hop.device)}))


def _covers(pool: Pool, prefix: Prefix) -> bool:
    return pool.prefix.version == prefix.version and prefix.network_address in pool.prefix


class _Near:
    """How nodes are reached that are in this node's subnet, each worked out once."""

    def __init__(self, inputs: Inputs) -> None:
        self._here, ground = inputs.here, inputs.ground
        self._reach = Reach(underlay.live(ground.foreign_routes, ground.here))
        self._known: dict[tuple[str, int], Hop | str] = {}

    def hop(self, there: Node, version: int) -> Hop | str:
        """Return the next hop, or why there is none."""
        key = there.name, version
        if key not in self._known:
            self._known[key] = self._find(there, version)
        return self._known[key]

    def _find(self, there: Node, version: int) -> Hop | str:
        own, far = self._here.address(version), there.address(version)
        if own is None or far is None:
            lacking = there.name if own else self._here.name
            return f"{lacking} has no IPv{version} address"
        if not encaps.same_subnet(self._here, far.ip):
            return f"{far.ip} is not in the subnet of {self._here.name}, {own.network}"
        via = self._reach.resolve(far.ip)
        return Hop(via.gateway, via.device) if via else f"no link with a carrier leads to {far.ip}"


def _no_way(inputs: Inputs, there: Node, pool: Pool, why: str) -> str:
    silent = " and ".join(node.name for node in (inputs.here, there) if not node.bgp)
    asks = f"pool {pool.name} {'has no tunnel to it yet' if pool.kind else 'asks for no tunnel'}"
    return (
        f"there is no way from {inputs.here.name} to {there.name}: BGP is off on {silent}, {why}, and {asks}; "
        "a tunnel (vxlanMode: CrossSubnet on the pool) or BGP (`fabricctl node join --bgp on`) would be one"
    )


def _tell(inputs: Inputs, ways: Ways, verdicts: _Verdicts, said: _Said) -> None:
    """Say what is in the way of tunnels between nodes that are both the pool's."""
    for pool in ways.pools:
        selected = _selected(inputs, pool)
        for name in inputs.nodes if inputs.here.name in selected else ():
            found = verdicts.get((pool.name, name), Carried())
            if not found.why or (found.encap and not found.waiting) or name not in selected:
                continue
            lacks = inputs.nodes.get(found.blame, inputs.here).lacks
            said.say(found.blame, _no_tunnel(pool, found, lacks), waiting=found.waiting)
        # With every other node in its subnet it needs none now, but what it lacks is asked of it all the same.
        if inputs.here.name in selected and (kind := encaps.lacking(pool, inputs.here.lacks)):
            name = inputs.here.name
            lost = Carried(None, f"the kernel of {name} has no {WORDS[kind]} (module {kind})", name)
            said.say(name, _no_tunnel(pool, lost, inputs.here.lacks))


def _no_tunnel(pool: Pool, found: Carried, lacks: frozenset[Kind]) -> str:
    hint = ""
    if pool.kind == "ipip" and not pool.fallback and "ipip" in lacks:
        hint = f"; vxlanMode, or the pool's annotation {extensions.TUNNEL_FALLBACK}: vxlan, would do"
    how = f"by {WORDS[found.encap.kind]}" if found.encap else "as they are"
    return f"pool {pool.name} ({pool.kind}Mode: {pool.mode}): {found.why}: packets go {how}{hint}"


def _rows(inputs: Inputs, ways: Ways, verdicts: _Verdicts) -> tuple[Row, ...]:
    rows = set()
    for pool in ways.pools:
        for name in _selected(inputs, pool) & inputs.nodes.keys():
            found = verdicts.get((pool.name, name), Carried())
            carried = found.encap.kind if found.encap else "native"
            rows.add(Row(name, pool.prefix.version, carried, found.why))
    return tuple(sorted(rows))
