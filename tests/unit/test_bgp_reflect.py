"""Route reflection (RFC 4456): who is told what, with which attributes, and that whole fabrics of it settle."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.decision import Best, Candidate, select
from bgp.export import ExportPolicy, Own, adj_rib_out, passed_on
from bgp.filters import ImportPolicy, importer
from bgp.nexthop import Resolved
from bgp.peering import Peering, Policy
from bgp.rib import Announcement, Attributes, Path, Prefix, SessionSpec
from tests.unit.test_bgp_rules import bgp_filter

AS = 65001
ME, OTHER, ANOTHER = map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.3"))
CLUSTER, ELSEWHERE, FAR = map(IPv4Address, ("244.0.0.1", "244.0.0.2", "244.0.0.3"))
POOL = ip_network("10.244.0.0/16")
POLICY = ExportPolicy(pools=frozenset({POOL}))
REMOTE = ip_network("10.244.2.0/26")


def peering(
    peer: IPv4Address, *, client: bool = False, cluster: IPv4Address | None = CLUSTER, peer_as: int = AS
) -> Peering:
    return Peering(SessionSpec(peer, peer_as, ME, AS, ME), reflector_client=client, cluster_id=cluster)


def best(source: Peering, path: Path | None = None, peer_id: IPv4Address | None = None) -> dict[Prefix, Best]:
    sent = path or Path(REMOTE, source.spec.peer, source.spec.peer, local_pref=100)
    candidate = Candidate(sent, source, Resolved(sent.next_hop, "eth1"), peer_id)
    return {sent.prefix: Best(candidate, (candidate,))}


@pytest.mark.parametrize(
    ("source", "to", "goes"),
    [
        pytest.param(peering(OTHER, client=True), peering(ANOTHER, client=True), True, id="client to client"),
        pytest.param(peering(OTHER, client=True), peering(ANOTHER), True, id="client to non-client"),
        pytest.param(peering(OTHER), peering(ANOTHER, client=True), True, id="non-client to client"),
        pytest.param(peering(OTHER), peering(ANOTHER), False, id="not non-client to non-client"),
        pytest.param(
            peering(OTHER, client=True), peering(OTHER, client=True), False, id="never back to the client"
        ),
        pytest.param(
            peering(OTHER, cluster=None),
            peering(ANOTHER, cluster=None),
            False,
            id="never where nothing is reflected",
        ),
        pytest.param(
            peering(OTHER, client=True), peering(ANOTHER, peer_as=65000), False, id="outside is no reflection"
        ),
        pytest.param(
            peering(OTHER, peer_as=65000), peering(ANOTHER, client=True), False, id="nor is from outside"
        ),
    ],
)
def test_who_is_told_what(source: Peering, to: Peering, goes: bool) -> None:
    """RFC 4456 §6, under a safe export, which passes on nothing but this."""
    exported = adj_rib_out(to, Own(), POLICY, best(source))
    assert ({a.prefix for a in exported.announcements} == {REMOTE}) == goes
    assert (REMOTE in exported.refused) != goes


@pytest.mark.parametrize("policy", list(Policy))
def test_no_filter_makes_up_for_reflection(policy: Policy) -> None:
    accepting = replace(
        peering(ANOTHER), filters=(bgp_filter(exportV4=[{"action": "Accept"}]),), export_policy=policy
    )
    assert not adj_rib_out(accepting, Own(), POLICY, best(peering(OTHER))).announcements


@pytest.mark.parametrize(
    ("prefix", "policy", "goes"),
    [
        pytest.param("10.244.2.0/26", Policy.SAFE, True, id="safe: in a pool"),
        pytest.param("192.0.2.7/32", Policy.SAFE, True, id="safe: a node's address"),
        pytest.param("10.250.2.0/26", Policy.SAFE, False, id="safe: not in a closed pool"),
        pytest.param("10.244.2.0/26", Policy.CALICO, True, id="calico: in a pool"),
        pytest.param("192.0.2.7/32", Policy.CALICO, False, id="calico: nothing else"),
        pytest.param("10.250.2.0/26", Policy.CALICO, False, id="calico: not in a closed pool"),
    ],
)
def test_what_is_reflected(prefix: str, policy: Policy, goes: bool) -> None:
    closed = replace(POLICY, closed=frozenset({ip_network("10.250.0.0/16")}))
    path = Path(ip_network(prefix), OTHER, OTHER, local_pref=100)
    to = replace(peering(ANOTHER, client=True), export_policy=policy)
    assert bool(adj_rib_out(to, Own(), closed, best(peering(OTHER), path)).announcements) == goes


def test_a_filter_may_keep_a_route_from_being_reflected() -> None:
    to = replace(
        peering(ANOTHER, client=True),
        filters=(bgp_filter(exportV4=[{"action": "Reject", "peerType": "iBGP"}]),),
    )
    assert not adj_rib_out(to, Own(), POLICY, best(peering(OTHER))).announcements


@pytest.mark.parametrize(
    ("path", "peer_id", "originator", "clusters"),
    [
        pytest.param(
            Path(REMOTE, OTHER, OTHER, local_pref=100),
            ANOTHER,
            ANOTHER,
            (CLUSTER,),
            id="the originator is the BGP identifier of the peer, which need not be its address",
        ),
        pytest.param(
            Path(REMOTE, OTHER, OTHER, originator_id=ME, local_pref=100, cluster_list=(ELSEWHERE,)),
            ANOTHER,
            ME,
            (CLUSTER, ELSEWHERE),
            id="one that is there stays, and our cluster comes before those that are there",
        ),
        pytest.param(
            Path(REMOTE, OTHER, OTHER, local_pref=100), None, None, (CLUSTER,), id="an identifier not known"
        ),
    ],
)
def test_the_attributes_of_reflection(
    path: Path, peer_id: IPv4Address | None, originator: IPv4Address | None, clusters: tuple[IPv4Address, ...]
) -> None:
    """RFC 4456 §8."""
    (sent,) = adj_rib_out(
        peering(ANOTHER, client=True), Own(), POLICY, best(peering(OTHER), path, peer_id)
    ).announcements
    assert (sent.attributes.originator_id, sent.attributes.cluster_list) == (originator, clusters)


def test_reflection_leaves_all_other_attributes_and_the_next_hop_as_they_are() -> None:
    """RFC 4456 §10: they must not be modified."""
    path = Path(REMOTE, ANOTHER, OTHER, as_path=(65009,), med=5, local_pref=200, communities=("65000:1",))
    (sent,) = adj_rib_out(
        peering(ANOTHER, client=True), Own(), POLICY, best(peering(OTHER), path, OTHER)
    ).announcements
    assert sent == Announcement(
        REMOTE,
        ANOTHER,
        Attributes(
            as_path=(65009,),
            med=5,
            local_pref=200,
            communities=("65000:1",),
            originator_id=OTHER,
            cluster_list=(CLUSTER,),
        ),
    )


def test_a_route_from_outside_gets_no_originator_and_no_cluster() -> None:
    to = replace(peering(ANOTHER, client=True), export_policy=Policy.CALICO)
    (sent,) = adj_rib_out(to, Own(), POLICY, best(peering(OTHER, peer_as=65000), peer_id=OTHER)).announcements
    assert (sent.attributes.originator_id, sent.attributes.cluster_list) == (None, ())


@given(
    st.dictionaries(st.integers(1, 8), st.booleans(), min_size=2),
    st.dictionaries(st.integers(0, 30), st.integers(1, 8)),
)
def test_a_reflector_never_sends_a_path_back_to_where_it_came_from(
    clients: dict[int, bool], routes: dict[int, int]
) -> None:
    peerings = {n: peering(IPv4Address("192.0.2.100") + n, client=client) for n, client in clients.items()}
    learned: dict[Prefix, Best] = {}
    for index, n in routes.items():
        if n in peerings:
            peer = peerings[n].spec.peer
            path = Path(ip_network(f"10.244.{index}.0/26"), peer, peer, local_pref=100)
            learned |= best(peerings[n], path)
    told = passed_on(list(peerings.values()), frozenset(), POLICY, learned)
    for each in peerings.values():
        sources = {learned[a.prefix].best.path.peer for a in told[each.spec.peer].announcements}
        assert each.spec.peer not in sources
        assert len(told[each.spec.peer].announcements) == sum(
            found.best.path.peer != each.spec.peer
            and (each.reflector_client or found.best.peering.reflector_client)
            for found in learned.values()
        )


@dataclass
class Router:
    """A node in one AS, with a prefix of its own; `cluster` None where it reflects nothing."""

    number: int
    cluster: IPv4Address | None = None
    peerings: dict[int, Peering] = field(default_factory=dict)
    received: dict[int, tuple[Path, ...]] = field(default_factory=dict)
    loc_rib: Mapping[Prefix, Best] = field(default_factory=dict)

    @property
    def address(self) -> IPv4Address:
        return IPv4Address("192.0.2.0") + self.number

    @property
    def prefix(self) -> Prefix:
        return ip_network(f"10.244.{self.number}.0/26")

    def decide(self) -> None:
        policy = ImportPolicy(frozenset({POOL}), frozenset({self.prefix}), frozenset())
        found: dict[Prefix, list[Candidate]] = {}
        for sender, paths in self.received.items():
            for sent in paths:
                if path := importer(self.peerings[sender], policy)(sent, "").path:
                    via = Resolved(path.next_hop, "eth0")
                    candidate = Candidate(path, self.peerings[sender], via, IPv4Address(path.peer))
                    found.setdefault(path.prefix, []).append(candidate)
        self.loc_rib = {prefix: select(candidates) for prefix, candidates in found.items()}

    def paths_for(self, other: int) -> tuple[Path, ...]:
        exported = adj_rib_out(self.peerings[other], Own(frozenset({self.prefix})), POLICY, self.loc_rib)
        return tuple(self._on_the_wire(a) for a in sorted(exported.announcements, key=lambda a: a.prefix))

    def _on_the_wire(self, sent: Announcement) -> Path:
        a = sent.attributes
        return Path(
            *(sent.prefix, sent.next_hop or self.address, self.address, a.origin, a.as_path or ()),
            local_pref=a.local_pref,
            originator_id=a.originator_id,
            cluster_list=a.cluster_list,
        )


def connect(routers: Mapping[int, Router], links: Iterable[tuple[int, int]]) -> None:
    """Set up internal sessions as calico-semantics §7 makes clients: of a reflector, who is not in its cluster."""
    for one, two in links:
        for me, peer in ((routers[one], routers[two]), (routers[two], routers[one])):
            me.peerings[peer.number] = Peering(
                SessionSpec(peer.address, AS, me.address, AS, me.address),
                cluster_id=me.cluster,
                reflector_client=me.cluster is not None and peer.cluster != me.cluster,
            )


def settle(routers: Mapping[int, Router]) -> bool:
    """Let all of them talk in turns until nothing changes; False where that does not come about."""
    for _ in range(4 * len(routers) + 4):
        told = {
            (number, other): router.paths_for(other)
            for number, router in routers.items()
            for other in router.peerings
        }
        before = [dict(router.received) for router in routers.values()]
        for (sender, receiver), paths in told.items():
            routers[receiver].received[sender] = paths
        if before == [router.received for router in routers.values()]:
            return True
        for router in routers.values():
            router.decide()
    return False


def missing(routers: Mapping[int, Router], among: Iterable[int]) -> set[tuple[int, int]]:
    """Return who of `among` has no path to whom."""
    return {
        (a, b)
        for one, two in combinations(among, 2)
        for a, b in ((one, two), (two, one))
        if routers[b].prefix not in routers[a].loc_rib
    }


CLIENTS = (1, 2, 3, 4)


@pytest.mark.parametrize("same", [True, False], ids=["one cluster id", "two cluster ids"])
def test_two_reflectors_for_all_clients(same: bool) -> None:
    """RFC 4456 §7, in both of its ways; each client stays reachable by each other one."""
    routers = {n: Router(n) for n in CLIENTS}
    routers |= {11: Router(11, CLUSTER), 12: Router(12, CLUSTER if same else ELSEWHERE)}
    connect(routers, [(11, 12), *((client, reflector) for client in CLIENTS for reflector in (11, 12))])
    assert settle(routers)
    assert missing(routers, routers) == set()
    for client in CLIENTS:
        for other in set(CLIENTS) - {client}:
            path = routers[client].loc_rib[routers[other].prefix].best.path
            # The next hop is the other client: no reflector forwards for them.
            assert (path.next_hop, path.originator_id) == (routers[other].address, routers[other].address)
    # With one id, each of the two hears of the clients from them alone.
    policy = ImportPolicy(frozenset({POOL}), frozenset(), frozenset())
    reflected = [path for path in routers[11].received[12] if path.cluster_list]
    refused = {importer(routers[11].peerings[12], policy)(path, "").path is None for path in reflected}
    assert refused == {same}


def test_a_client_that_lost_one_of_two_reflectors_of_a_cluster_is_still_reached() -> None:
    routers = {n: Router(n) for n in CLIENTS}
    routers |= {11: Router(11, CLUSTER), 12: Router(12, CLUSTER)}
    half = [(1, 11), *((client, reflector) for client in CLIENTS[1:] for reflector in (11, 12))]
    connect(routers, [(11, 12), *half])
    assert settle(routers)
    assert missing(routers, CLIENTS) == set()


def test_clusters_in_a_row() -> None:
    """RFC 4456 §7: reflectors of reflectors."""
    routers = {
        1: Router(1),
        2: Router(2),
        11: Router(11, CLUSTER),
        12: Router(12, ELSEWHERE),
        13: Router(13, FAR),
    }
    connect(routers, [(1, 11), (11, 12), (12, 13), (13, 2)])
    assert settle(routers)
    assert missing(routers, routers) == set()
    path = routers[1].loc_rib[routers[2].prefix].best.path
    assert (path.cluster_list, path.originator_id) == ((CLUSTER, ELSEWHERE, FAR), routers[2].address)


NUMBERS = range(1, 8)


@given(
    st.dictionaries(st.sampled_from(NUMBERS), st.sampled_from([None, CLUSTER, ELSEWHERE]), min_size=2),
    st.sets(st.sampled_from(list(combinations(NUMBERS, 2)))),
)
def test_reflectors_in_any_arrangement_settle_without_loops(
    clusters: dict[int, IPv4Address | None], links: set[tuple[int, int]]
) -> None:
    routers = {n: Router(n, cluster) for n, cluster in clusters.items()}
    connect(routers, [(a, b) for a, b in sorted(links) if a in routers and b in routers])
    assert settle(routers)
    for router in routers.values():
        for found in router.loc_rib.values():
            path = found.best.path
            assert path.originator_id != router.address
            assert router.cluster is None or router.cluster not in path.cluster_list
            assert len(set(path.cluster_list)) == len(path.cluster_list)
