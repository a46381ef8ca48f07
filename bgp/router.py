"""Decide the router's side of the sessions that nodes have with it: neighbours, policy, and what else makes them work.

What a router's own part is (its names for links, its other neighbours, its IGP) is not known here, and nothing of it
is guessed. How it is written is `bgp.vendors`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses, ip_network

from bgp.peering import Here, Peering
from bgp.rib import Address, Prefix, address_order
from fabric.model.ippool import IPPool

MULTIPATH = 16
RANGE_FROM = 4  # so many nodes of one AS on one link are a listen range rather than a list
MAX_PREFIXES = 2000  # from one session; a node announces its blocks, and single addresses that it borrowed


@dataclass(frozen=True)
class NodeEnd:
    """A node as its routers meet it; `addresses` are its Node's own, `here` has its links as far as they are known."""

    name: str
    addresses: frozenset[Address]
    here: Here
    peerings: tuple[Peering, ...]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Prefixes inside `within` with a length of `low` to `high`."""

    within: Prefix
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One node: `address` and `port` are where it listens, `ours` the router's address that it connects to."""

    name: str
    address: Address
    ours: Address
    remote_as: int
    port: int = 179


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbours that the router treats alike.

    `direct`: each shares a prefix with the router; `link` is that prefix where it is the same for all. `listen`: all
    are of one AS on `link`, and so many that whoever connects from there is accepted. `hops` is the number of hops
    that GTSM allows, 0 without it. `password` stands for a secret and is none; "" where there is none. `client`:
    the router reflects for them. `shared_as`: other nodes have the same AS, and so take what the router sends on for
    loops, unless their `own_as_allowed`.
    """

    neighbours: tuple[Neighbour, ...]
    families: tuple[int, ...]
    external: bool
    direct: bool
    link: Prefix | None
    listen: bool
    hops: int
    password: str
    port: int
    client: bool
    shared_as: bool
    own_as_allowed: bool
    extended_next_hop: bool

    @property
    def as_override(self) -> bool:
        """The router's AS has to replace that of the nodes."""
        return self.shared_as and not self.own_as_allowed

    @property
    def remote_as(self) -> int:
        """The AS of a group that listens, in which there is one."""
        return self.neighbours[0].remote_as


@dataclass(frozen=True)
class Router:
    """What one router has to do. `accept` may come from nodes, `offer` may go to them; `filters` may let out more."""

    addresses: tuple[Address, ...]
    local_as: int
    groups: tuple[Group, ...]
    accept: tuple[Prefixes, ...]
    offer: tuple[Prefixes, ...]
    restart_time: int
    filters: tuple[str, ...]

    @property
    def neighbours(self) -> list[Neighbour]:
        return [neighbour for group in self.groups for neighbour in group.neighbours]

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(sorted({family for group in self.groups for family in group.families}))

    @property
    def identifier(self) -> IPv4Address | None:
        """One of its IPv4 addresses, which may be its router id."""
        return next((address for address in self.addresses if isinstance(address, IPv4Address)), None)


def routers(
    nodes: Sequence[NodeEnd], pools: Iterable[IPPool], one: Collection[Address] = ()
) -> tuple[Router, ...]:
    """Return the routers that `nodes` have sessions with, other nodes apart, in the order of their addresses.

    Args:
        nodes: every node of the fabric.
        pools: every pool.
        one: addresses of one and the same router; then that router is all that is returned. Without it each
            address counts as a router, since sessions do not tell which ones belong together.
    """
    ours = {address for node in nodes for address in node.addresses}
    sides: dict[tuple[tuple[Address, ...], int], list[tuple[NodeEnd, Peering]]] = defaultdict(list)
    for node in nodes:
        for peering in node.peerings:
            peer = peering.spec.peer
            if peer in one if one else peer not in ours:
                router = tuple(sorted(one, key=address_order)) if one else (peer,)
                sides[router, peering.spec.peer_as].append((node, peering))
    accept = _accepted(nodes, pools)
    sharing = _as_numbers_of_many(nodes)
    return tuple(
        _router(addresses, local_as, found, accept, sharing)
        for (addresses, local_as), found in sorted(
            sides.items(), key=lambda item: (list(map(address_order, item[0][0])), item[0][1])
        )
    )


def _as_numbers_of_many(nodes: Iterable[NodeEnd]) -> set[int]:
    """The ASes that more than one node has to its routers."""
    counted = Counter(number for node in nodes for number in {p.spec.local_as for p in node.peerings})
    return {number for number, count in counted.items() if count > 1}


def _accepted(nodes: Iterable[NodeEnd], pools: Iterable[IPPool]) -> tuple[Prefixes, ...]:
    """Blocks and single addresses: inside a pool and longer, but for a pool of one block; and nodes on their lo."""
    found = [
        Prefixes(
            pool.cidr,
            max(pool.cidr.prefixlen, min(pool.cidr.prefixlen + 1, pool.block_size)),
            pool.cidr.max_prefixlen,
        )
        for pool in (resource.spec for resource in pools)
        if not pool.disable_bgp_export
    ]
    own = {address for node in nodes for address in node.addresses & node.here.loopback}
    for version in (4, 6):
        single = [ip_network(address) for address in own if address.version == version]
        found += [Prefixes(net, net.max_prefixlen, net.max_prefixlen) for net in collapse_addresses(single)]  # type: ignore[type-var]
    return tuple(sorted(found, key=lambda p: (p.within.version, int(p.within.network_address), p.low)))


def _router(
    addresses: tuple[Address, ...],
    local_as: int,
    sides: Sequence[tuple[NodeEnd, Peering]],
    accept: tuple[Prefixes, ...],
    sharing: Collection[int],
) -> Router:
    alike: dict[Group, list[Neighbour]] = defaultdict(list)
    for node, peering in sides:
        spec = peering.spec
        group = Group(
            neighbours=(),
            families=tuple(sorted(spec.families)),
            external=spec.external,
            direct=bool(link := _link(node, peering)),
            link=link,
            # Whoever waits to be called must be known by address.
            listen=bool(link) and not spec.passive and spec.listen_port == 179,
            hops=spec.ttl_security,
            password=spec.password,
            port=spec.port,
            # Also a node that is alone: others may be at another address of this router, or behind its own reflectors.
            # A node that reflects for the router is none of its clients.
            client=not spec.external and not peering.reflector_client,
            shared_as=spec.external and spec.local_as in sharing,
            own_as_allowed=peering.allow_own_as > 0,
            extended_next_hop=spec.extended_next_hop,
        )
        neighbour = Neighbour(node.name, spec.source, spec.peer, spec.local_as, spec.listen_port)
        alike[group].append(neighbour)
    groups = tuple(_grouped(alike))
    families = {family for group in groups for family in group.families}
    accept = tuple(prefixes for prefixes in accept if prefixes.within.version in families)
    return Router(
        addresses=addresses,
        local_as=local_as,
        groups=groups,
        accept=accept,
        offer=_offered(accept, families),
        restart_time=max(peering.spec.restart_time for _, peering in sides),
        filters=tuple(
            sorted(
                {
                    f.metadata.name
                    for _, peering in sides
                    for f in peering.filters
                    if f.spec.export_v4 or f.spec.export_v6
                }
            )
        ),
    )


def _grouped(alike: dict[Group, list[Neighbour]]) -> Iterable[Group]:
    """Yield the groups that listen, then the others, for which links and ASes make no difference."""
    listed: dict[Group, list[tuple[Prefix | None, Neighbour]]] = defaultdict(list)
    for group, neighbours in alike.items():
        by_as: dict[int, list[Neighbour]] = defaultdict(list)
        for neighbour in neighbours:
            by_as[neighbour.remote_as].append(neighbour)
        for same in by_as.values():
            if group.listen and len(same) >= RANGE_FROM:
                yield _with(group, same)
            else:
                listed[replace(group, link=None, listen=False)] += [(group.link, found) for found in same]
    for group, found in listed.items():
        links = {link for link, _ in found}
        yield _with(replace(group, link=links.pop() if len(links) == 1 else None), [n for _, n in found])


def _with(group: Group, neighbours: Iterable[Neighbour]) -> Group:
    return replace(
        group, neighbours=tuple(sorted(neighbours, key=lambda n: (address_order(n.address), n.name)))
    )


def _link(node: NodeEnd, peering: Peering) -> Prefix | None:
    ends = {peering.spec.peer, peering.spec.source}
    shared = [
        uplink.address.network
        for uplink in node.here.uplinks
        if all(end.version == uplink.address.version and end in uplink.address.network for end in ends)
    ]
    return max(shared, key=lambda net: net.prefixlen, default=None)


def _offered(accept: Iterable[Prefixes], families: Collection[int]) -> tuple[Prefixes, ...]:
    """The way out, and what all nodes announce; of pools also wholes and parts, as other racks' routers sum them up."""
    defaults: dict[int, Prefix] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
    found = [Prefixes(defaults[family], 0, 0) for family in sorted(families)]
    return (*found, *(replace(p, low=p.within.prefixlen) if p.low < p.high else p for p in accept))
