"""What goes out on a session, and with which attributes; the sections in the ids are those of the RFCs named."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.decision import Best, Candidate
from bgp.export import Exported, ExportPolicy, Own, adj_rib_out, originated, passed_on
from bgp.nexthop import Resolved
from bgp.peering import NextHopMode, Peering, Policy
from bgp.rib import AS_SET, Announcement, Attributes, Origin, Path, Prefix, SessionSpec
from bgp.rules import HIGHEST_PRIORITY, RuleId
from tests.unit.test_bgp_rules import bgp_filter

ME = IPv4Address("192.0.2.1")
PEER, SOURCE = (
    ip_address("192.0.2.254"),
    ip_address("192.0.2.9"),
)  # a path comes from SOURCE, and goes to PEER
EXTERNAL = Peering(SessionSpec(PEER, 65000, ME, 65001, ME))
INTERNAL = Peering(SessionSpec(PEER, 65001, ME, 65001, ME))
IPV6 = Peering(SessionSpec(ip_address("2001:db8::fe"), 65000, ip_address("2001:db8::1"), 65001, ME))
BOTH = replace(IPV6, spec=replace(IPV6.spec, extended_next_hop=True))
FROM_OUTSIDE = Peering(SessionSpec(SOURCE, 65002, ME, 65001, ME))
FROM_INSIDE = Peering(SessionSpec(SOURCE, 65001, ME, 65001, ME))

POOLS = frozenset({ip_network("10.244.0.0/16"), ip_network("fd00:10::/48")})
POLICY = ExportPolicy(pools=POOLS)
BLOCK, REMOTE = ip_network("10.244.1.0/26"), ip_network("10.244.2.0/26")
OWN = Own(frozenset({BLOCK}))
PATH = Path(REMOTE, SOURCE, SOURCE, as_path=(65002,))
NORMAL = HIGHEST_PRIORITY - 1024
ACCEPT, REJECT = {"action": "Accept"}, {"action": "Reject"}
RULE = RuleId("web", "export", 4, 0)


def own(blocks: Iterable[str] = (), workloads: Iterable[str] = (), loopback: Iterable[str] = ()) -> Own:
    return Own(
        frozenset(map(ip_network, blocks)),
        {ip_network(address): "fab1" for address in workloads},
        frozenset(map(ip_address, loopback)),
    )


def best(path: Path, source: Peering = FROM_OUTSIDE, peer_id: IPv4Address | None = None) -> Best:
    candidate = Candidate(path, source, Resolved(path.next_hop, "eth1"), peer_id)
    return Best(candidate, (candidate,))


def table(path: Path, source: Peering = FROM_OUTSIDE) -> Mapping[Prefix, Best]:
    return {path.prefix: best(path, source)}


def filtered(peering: Peering, *rules: dict[str, Any], which: str = "exportV4") -> Peering:
    return replace(peering, filters=(bgp_filter(**{which: rules}),))


def calico(peering: Peering) -> Peering:
    return replace(peering, export_policy=Policy.CALICO)


def sent(exported: Exported) -> list[str]:
    return sorted(str(announcement.prefix) for announcement in exported.announcements)


def one(exported: Exported) -> Announcement:
    (announcement,) = exported.announcements
    return announcement


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize(
    ("peering", "ours", "want"),
    [
        pytest.param(EXTERNAL, own(["10.244.1.0/26"]), ["10.244.1.0/26"], id="own blocks"),
        pytest.param(
            EXTERNAL,
            own(["10.244.1.0/26"], ["10.244.1.7", "10.244.9.7"]),
            ["10.244.1.0/26", "10.244.9.7/32"],
            id="not the addresses in them, but borrowed ones",
        ),
        pytest.param(
            EXTERNAL, own([], ["10.244.9.7"]), ["10.244.9.7/32"], id="and those without any own block"
        ),
        pytest.param(EXTERNAL, own(["10.245.1.0/26"]), ["10.245.1.0/26"], id="a block whose pool is gone"),
        pytest.param(EXTERNAL, own([], ["10.245.9.7"]), [], id="but no address outside the pools"),
        pytest.param(
            EXTERNAL, own(["10.250.1.0/26"], ["10.250.9.7"], ["10.250.0.1"]), [], id="a closed pool"
        ),
        pytest.param(EXTERNAL, own([], [], ["192.0.2.1"]), ["192.0.2.1/32"], id="the node's own address"),
        pytest.param(
            EXTERNAL, own(["10.244.1.7/32"], ["10.244.1.7"]), ["10.244.1.7/32"], id="a block of one address"
        ),
        pytest.param(
            EXTERNAL,
            own(["fd00:10::/122"], ["fd00:10::9:1"], ["2001:db8::7"]),
            [],
            id="no IPv6 on an IPv4 session",
        ),
        pytest.param(
            IPV6,
            own(
                ["fd00:10::/122", "10.244.1.0/26"],
                ["fd00:10::9:1", "10.244.9.7"],
                ["2001:db8::7", "192.0.2.1"],
            ),
            ["2001:db8::7/128", "fd00:10::/122", "fd00:10::9:1/128"],
            id="no IPv4 on an IPv6 session",
        ),
        pytest.param(
            BOTH,
            own(["fd00:10::/122", "10.244.1.0/26"]),
            ["10.244.1.0/26", "fd00:10::/122"],
            id="RFC 8950 4: both with an extended next hop",
        ),
    ],
)
def test_what_is_this_nodes_own(policy: Policy, peering: Peering, ours: Own, want: list[str]) -> None:
    closed = replace(POLICY, closed=frozenset({ip_network("10.250.0.0/16")}))
    exported = adj_rib_out(replace(peering, export_policy=policy), ours, closed, {})
    assert sent(exported) == want
    assert all(announcement.next_hop is None for announcement in exported.announcements)


@pytest.mark.parametrize(
    ("ours", "prefix", "why"),
    [
        (own(["10.244.1.0/26"], ["10.244.1.7"]), "10.244.1.7/32", "inside own block 10.244.1.0/26"),
        (own([], ["10.245.9.7"]), "10.245.9.7/32", "in no pool"),
        (own(["10.250.1.0/26"]), "10.250.1.0/26", "inside pool 10.250.0.0/16, whose disableBGPExport is set"),
    ],
)
def test_it_is_said_why_something_own_stays(ours: Own, prefix: str, why: str) -> None:
    closed = replace(POLICY, closed=frozenset({ip_network("10.250.0.0/16")}))
    assert why in originated(EXTERNAL, ours, closed).refused[ip_network(prefix)]


@pytest.mark.parametrize(
    ("peering", "attributes"),
    [
        pytest.param(EXTERNAL, Attributes(), id="RFC 4271 5.1.5: no local preference to an external peer"),
        pytest.param(
            INTERNAL, Attributes(local_pref=NORMAL), id="Calico's local preference to an internal one"
        ),
        pytest.param(
            replace(EXTERNAL, drained=True),
            Attributes(communities=("65535:0",)),
            id="RFC 8326 4: a drained session",
        ),
        pytest.param(
            replace(INTERNAL, drained=True),
            Attributes(local_pref=0, communities=("65535:0",)),
            id="RFC 8326 4: a drained session inside",
        ),
    ],
)
def test_the_attributes_of_an_own_route(peering: Peering, attributes: Attributes) -> None:
    assert one(originated(peering, OWN, POLICY)) == Announcement(BLOCK, None, attributes)


def test_the_normal_priority_is_that_of_the_family() -> None:
    policy = replace(POLICY, priorities={4: 100, 6: 200})
    inside = replace(BOTH, spec=replace(BOTH.spec, peer_as=65001))
    exported = originated(inside, own(["10.244.1.0/26", "fd00:10::/122"]), policy)
    found = {a.prefix.version: a.attributes.local_pref for a in exported.announcements}
    assert found == {4: HIGHEST_PRIORITY - 100, 6: HIGHEST_PRIORITY - 200}


ADVERTISED = replace(
    POLICY,
    advertisements=(
        (ip_network("10.244.0.0/16"), ("64500:1", "64500:1:2")),
        (BLOCK, ("64500:2", "64500:01")),
        (ip_network("10.244.1.0/27"), ("64500:3",)),
        (ip_network("fd00:10::/48"), ("64500:6",)),
    ),
)


@pytest.mark.parametrize(
    ("prefix", "want"),
    [
        pytest.param(
            "10.244.1.0/26", ("64500:1", "64500:1:2", "64500:2"), id="RFC 1997, RFC 8092: all around it"
        ),
        pytest.param("10.244.9.0/26", ("64500:1", "64500:1:2"), id="RFC 1997, RFC 8092: the pool's"),
        pytest.param("10.245.9.0/26", (), id="none around it"),
    ],
)
def test_prefix_advertisements_add_communities(prefix: str, want: tuple[str, ...]) -> None:
    assert one(originated(EXTERNAL, own([prefix]), ADVERTISED)).attributes.communities == want


def test_an_accepted_route_passes_over_prefix_advertisements_too() -> None:
    """As in Calico, where a filter's accept ends the BIRD filter of which they are a later part."""
    assert one(originated(filtered(EXTERNAL, ACCEPT), OWN, ADVERTISED)).attributes.communities == ()


@pytest.mark.parametrize(
    ("match", "want"),
    [
        pytest.param(
            {}, ["10.244.1.0/26", "10.244.1.7/32", "10.245.9.7/32", "192.0.2.1/32"], id="all there is"
        ),
        pytest.param({"interface": "fab*"}, ["10.244.1.7/32", "10.245.9.7/32"], id="workloads by their link"),
        pytest.param({"interface": "lo"}, ["192.0.2.1/32"], id="the node's own address is on lo"),
        pytest.param({"source": "RemotePeers"}, [], id="nothing is from RemotePeers"),
        pytest.param({"communities": {"values": ["64500:1"]}}, [], id="no community yet"),
        pytest.param({"asPathPrefix": [65001]}, [], id="no AS path yet"),
        pytest.param(
            {"priority": 1024},
            ["10.244.1.0/26", "10.244.1.7/32", "10.245.9.7/32", "192.0.2.1/32"],
            id="priority",
        ),
        pytest.param({"priority": 1025}, [], id="another priority"),
        pytest.param({"peerType": "iBGP"}, [], id="another type of peer"),
    ],
)
def test_what_a_filter_sees_of_own_routes(match: dict[str, Any], want: list[str]) -> None:
    ours = own(["10.244.1.0/26"], ["10.244.1.7", "10.245.9.7"], ["192.0.2.1"])
    peering = filtered(EXTERNAL, {**ACCEPT, **match}, REJECT)
    exported = originated(peering, ours, ADVERTISED)
    assert sent(exported) == want
    assert exported.hits.get(RULE, 0) == len(want)
    rejected = {ip_network(prefix) for prefix in ours.routes} - {a.prefix for a in exported.announcements}
    assert exported.refused == dict.fromkeys(rejected, "rejected by BGPFilter web, exportV4[1]")


def test_a_block_of_one_address_has_the_link_of_its_workload() -> None:
    """It has no blackhole, as in Calico."""
    peering = filtered(EXTERNAL, {**REJECT, "interface": "fab*"})
    assert sent(originated(peering, own(["10.244.1.7/32"], ["10.244.1.7"]), POLICY)) == []
    assert sent(originated(peering, own(["10.244.1.7/32"]), POLICY)) == ["10.244.1.7/32"]


def test_a_filter_opens_a_closed_pool() -> None:
    closed = ExportPolicy(closed=POOLS)
    assert sent(originated(EXTERNAL, OWN, closed)) == []
    assert sent(originated(filtered(EXTERNAL, ACCEPT), OWN, closed)) == [str(BLOCK)]


OPERATIONS = [
    {"addCommunity": {"value": "64500:1"}},
    {"addCommunity": {"value": "64500:1:2"}},
    {"prependASPath": {"prefix": [65001, 65009]}},
    {"setPriority": {"value": 512}},
]


@pytest.mark.parametrize(
    ("peering", "as_path", "local_pref"),
    [
        pytest.param(
            EXTERNAL,
            (65001, 65001, 65009),
            None,
            id="RFC 4271 5.1.2: the local AS stays first to external peers",
        ),
        pytest.param(
            INTERNAL, (65001, 65009), HIGHEST_PRIORITY - 512, id="and is not added to internal ones"
        ),
    ],
)
def test_operations_on_own_routes(peering: Peering, as_path: tuple[int, ...], local_pref: int | None) -> None:
    exported = originated(filtered(peering, {**ACCEPT, "operations": OPERATIONS}), OWN, POLICY)
    assert one(exported).attributes == Attributes(
        as_path=as_path, local_pref=local_pref, communities=("64500:1", "64500:1:2")
    )


@pytest.mark.parametrize(
    ("source", "peering", "safe", "under_calico"),
    [
        pytest.param(FROM_OUTSIDE, EXTERNAL, False, True, id="from outside to outside"),
        pytest.param(FROM_OUTSIDE, INTERNAL, False, True, id="from outside to inside"),
        pytest.param(FROM_INSIDE, EXTERNAL, False, True, id="from inside to outside"),
        pytest.param(FROM_INSIDE, INTERNAL, False, False, id="RFC 4271 9.2: never from inside to inside"),
    ],
)
def test_learned_routes(source: Peering, peering: Peering, safe: bool, under_calico: bool) -> None:
    for each, goes in ((peering, safe), (calico(peering), under_calico)):
        exported = adj_rib_out(each, OWN, POLICY, table(PATH, source))
        assert sent(exported) == [str(BLOCK), *([str(REMOTE)] if goes else [])]
        assert (REMOTE in exported.refused) != goes


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("10.244.2.0/26", ""),
        ("10.244.9.7/32", ""),
        ("10.244.1.7/32", "inside own block 10.244.1.0/26"),
        ("10.245.2.0/26", "in no pool"),
        ("0.0.0.0/0", "in no pool"),
        ("10.250.2.0/26", "inside pool 10.250.0.0/16, whose disableBGPExport is set"),
    ],
)
def test_calico_passes_on_what_is_inside_the_pools(prefix: str, why: str) -> None:
    path = replace(PATH, prefix=ip_network(prefix))
    closed = replace(POLICY, closed=frozenset({ip_network("10.250.0.0/16")}))
    exported = adj_rib_out(calico(EXTERNAL), OWN, closed, table(path))
    assert (path.prefix in {a.prefix for a in exported.announcements}) == (not why)
    assert exported.refused.get(path.prefix, "").startswith(why)


@pytest.mark.parametrize(
    ("source", "peering", "goes"),
    [
        pytest.param(FROM_OUTSIDE, EXTERNAL, True, id="from outside to outside"),
        pytest.param(FROM_INSIDE, EXTERNAL, True, id="from inside to outside"),
        pytest.param(FROM_INSIDE, INTERNAL, False, id="RFC 4271 9.2: not even so from inside to inside"),
    ],
)
def test_a_filter_lets_learned_routes_out(source: Peering, peering: Peering, goes: bool) -> None:
    path = replace(PATH, prefix=ip_network("0.0.0.0/0"))
    peering = filtered(peering, {**ACCEPT, "source": "RemotePeers", "interface": "eth1"})
    exported = adj_rib_out(peering, OWN, POLICY, table(path, source))
    assert ("0.0.0.0/0" in sent(exported)) == goes
    assert exported.hits == ({RULE: 1} if goes else {})


def test_a_rule_without_a_source_means_learned_routes_too_and_a_reject_keeps_all_of_them() -> None:
    assert sent(adj_rib_out(filtered(EXTERNAL, ACCEPT), OWN, POLICY, table(PATH))) == [
        str(BLOCK),
        str(REMOTE),
    ]
    rejecting = filtered(calico(EXTERNAL), {**REJECT, "source": "RemotePeers"})
    exported = adj_rib_out(rejecting, OWN, POLICY, table(PATH))
    assert sent(exported) == [str(BLOCK)]
    assert exported.refused == {REMOTE: "rejected by BGPFilter web, exportV4[0]"}


@pytest.mark.parametrize("policy", list(Policy))
def test_nothing_goes_back_to_the_peer_it_came_from(policy: Policy) -> None:
    back = filtered(replace(FROM_OUTSIDE, export_policy=policy), ACCEPT)
    exported = adj_rib_out(back, OWN, POLICY, table(PATH))
    assert sent(exported) == [str(BLOCK)]
    assert exported.refused == {REMOTE: "learned from this peer"}


@pytest.mark.parametrize(
    ("community", "external", "internal"),
    [
        pytest.param("65535:65281", False, True, id="RFC 1997: NO_EXPORT"),
        pytest.param("65535:65282", False, False, id="RFC 1997: NO_ADVERTISE"),
        pytest.param("65535:65283", False, True, id="RFC 1997: NO_EXPORT_SUBCONFED"),
        pytest.param("65535:65284", True, True, id="any other"),
    ],
)
def test_well_known_communities_hold_against_filters_too(
    community: str, external: bool, internal: bool
) -> None:
    path = replace(PATH, communities=("64500:1", community))
    for peering, goes in ((EXTERNAL, external), (INTERNAL, internal)):
        for each in (calico(peering), filtered(peering, ACCEPT)):
            assert (str(REMOTE) in sent(adj_rib_out(each, OWN, POLICY, table(path)))) == goes


def test_a_well_known_community_that_an_own_route_is_given_is_for_the_peer() -> None:
    policy = replace(POLICY, advertisements=((BLOCK, ("65535:65281",)),))
    assert one(originated(EXTERNAL, OWN, policy)).attributes.communities == ("65535:65281",)


FULL = replace(
    PATH,
    origin=Origin.EGP,
    as_path=(65002, AS_SET),
    as_sets=frozenset({65003}),
    med=7,
    local_pref=200,
    communities=("64500:1",),
    originator_id=IPv4Address("9.9.9.9"),
    cluster_list=(IPv4Address("8.8.8.8"),),
)


@pytest.mark.parametrize(
    ("source", "peering", "want"),
    [
        pytest.param(
            FROM_INSIDE,
            EXTERNAL,
            Announcement(
                REMOTE,
                None,
                Attributes(Origin.EGP, (65001, 65002, AS_SET), frozenset({65003}), communities=("64500:1",)),
            ),
            id="RFC 4271 5.1, RFC 4456 8: outside, the local AS in front, and no MED, preference or cluster",
        ),
        pytest.param(
            FROM_OUTSIDE,
            INTERNAL,
            Announcement(
                REMOTE,
                SOURCE,
                Attributes(
                    Origin.EGP,
                    (65002, AS_SET),
                    frozenset({65003}),
                    7,
                    local_pref=200,
                    communities=("64500:1",),
                ),
            ),
            id="RFC 4271 5.1: inside, as it came, its next hop too",
        ),
        pytest.param(
            FROM_INSIDE,
            replace(EXTERNAL, drained=True),
            Announcement(
                REMOTE,
                None,
                Attributes(
                    Origin.EGP,
                    (65001, 65002, AS_SET),
                    frozenset({65003}),
                    communities=("64500:1", "65535:0"),
                ),
            ),
            id="RFC 8326 4: on a drained session",
        ),
    ],
)
def test_the_attributes_of_a_route_that_is_passed_on(
    source: Peering, peering: Peering, want: Announcement
) -> None:
    assert one(adj_rib_out(calico(peering), Own(), POLICY, table(FULL, source))) == want


def test_a_path_without_a_local_preference_has_100_inside() -> None:
    """RFC 4271 §5.1.5: an internal peer is always told one."""
    assert one(adj_rib_out(calico(INTERNAL), Own(), POLICY, table(PATH))).attributes.local_pref == 100


def test_operations_on_a_route_that_is_passed_on() -> None:
    peering = filtered(EXTERNAL, {**ACCEPT, "operations": OPERATIONS})
    attributes = one(adj_rib_out(peering, Own(), POLICY, table(PATH))).attributes
    assert attributes.as_path == (65001, 65001, 65009, 65002)
    assert attributes.communities == ("64500:1", "64500:1:2")


def test_a_path_with_the_peers_as_is_sent_and_the_peer_judges() -> None:
    path = replace(PATH, as_path=(65002, 65000))
    assert sent(adj_rib_out(calico(EXTERNAL), Own(), POLICY, table(path))) == [str(REMOTE)]


@pytest.mark.parametrize(
    ("mode", "external", "internal"),
    [
        pytest.param(NextHopMode.AUTO, None, SOURCE, id="RFC 4271 5.1.3: auto"),
        pytest.param(NextHopMode.SELF, None, None, id="self"),
        pytest.param(NextHopMode.KEEP, SOURCE, SOURCE, id="keep"),
    ],
)
def test_the_next_hop_of_a_route_that_is_passed_on(
    mode: NextHopMode, external: object, internal: object
) -> None:
    for peering, want in ((EXTERNAL, external), (INTERNAL, internal)):
        each = replace(calico(peering), next_hop=mode)
        found = adj_rib_out(each, OWN, POLICY, table(PATH)).announcements
        assert {a.prefix: a.next_hop for a in found} == {BLOCK: None, REMOTE: want}


@pytest.mark.parametrize(
    ("peering", "goes"),
    [
        pytest.param(INTERNAL, False, id="RFC 8950 4: not where IPv4 needs an IPv4 next hop"),
        pytest.param(replace(INTERNAL, next_hop=NextHopMode.SELF), True, id="but as this node's"),
        pytest.param(replace(BOTH, spec=replace(BOTH.spec, peer_as=65001)), True, id="RFC 8950 4: extended"),
    ],
)
def test_ipv4_by_way_of_an_ipv6_next_hop(peering: Peering, goes: bool) -> None:
    path = replace(PATH, next_hop=ip_address("2001:db8::9"))
    exported = adj_rib_out(calico(peering), Own(), POLICY, table(path))
    assert (sent(exported) == [str(REMOTE)]) == goes
    assert ("RFC 8950" in exported.refused.get(REMOTE, "")) != goes


def test_an_own_prefix_that_was_learned_too_goes_out_as_our_own() -> None:
    path = replace(PATH, prefix=BLOCK)
    assert one(adj_rib_out(filtered(EXTERNAL, ACCEPT), OWN, POLICY, table(path))) == Announcement(BLOCK)


PREFIXES = st.sampled_from(
    [
        ip_network(text)
        for text in ("10.244.1.0/26", "10.244.2.0/26", "10.245.0.0/16", "0.0.0.0/0", "10.244.1.7/32")
    ]
)
SOURCES = [FROM_OUTSIDE, FROM_INSIDE, EXTERNAL, INTERNAL]


def tables(sources: list[Peering]) -> st.SearchStrategy[dict[Prefix, Best]]:
    bests = st.sampled_from(sources).map(lambda s: best(replace(PATH, peer=s.spec.peer), s))
    return st.dictionaries(PREFIXES, bests).map(
        lambda found: {
            prefix: best(replace(b.best.path, prefix=prefix), b.best.peering) for prefix, b in found.items()
        }
    )


@given(tables(SOURCES), st.sampled_from([EXTERNAL, INTERNAL, FROM_OUTSIDE]), st.booleans())
def test_a_safe_export_never_has_anything_learned(
    learned: dict[Prefix, Best], peering: Peering, drained: bool
) -> None:
    peering = replace(peering, drained=drained)
    exported = adj_rib_out(peering, OWN, POLICY, learned)
    assert exported.announcements == originated(peering, OWN, POLICY).announcements
    assert passed_on([peering], OWN.blocks, POLICY, learned) == {peering.spec.peer: Exported()}


class Untouched(dict[Prefix, Best]):
    """A loc-RIB that must not be walked."""

    def values(self) -> Any:
        raise AssertionError("walked")

    items = __iter__ = values


def test_where_nothing_learned_can_go_out_the_loc_rib_is_not_walked() -> None:
    passing_nothing = [
        EXTERNAL,
        INTERNAL,
        filtered(IPV6, REJECT, which="importV6"),
        replace(EXTERNAL, spec=replace(EXTERNAL.spec, peer=ip_address("192.0.2.7")), cluster_id=ME),
    ]
    passed_on(passing_nothing, OWN.blocks, POLICY, Untouched(table(PATH)))


ALIKE = replace(calico(INTERNAL), cluster_id=ME, reflector_client=True)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(ALIKE, drained=True), id="drained"),
        pytest.param(replace(ALIKE, next_hop=NextHopMode.SELF), id="next hop"),
        pytest.param(replace(ALIKE, export_policy=Policy.SAFE), id="policy"),
        pytest.param(replace(ALIKE, cluster_id=IPv4Address("9.9.9.9")), id="cluster"),
        pytest.param(replace(ALIKE, reflector_client=False), id="client"),
        pytest.param(filtered(ALIKE, REJECT), id="filters"),
        pytest.param(replace(ALIKE, spec=replace(ALIKE.spec, peer_as=65000)), id="external"),
        pytest.param(replace(ALIKE, spec=replace(ALIKE.spec, extended_next_hop=True)), id="families"),
    ],
)
@pytest.mark.parametrize("source", [FROM_INSIDE, FROM_OUTSIDE])
def test_sessions_that_differ_are_not_treated_alike(source: Peering, other: Peering) -> None:
    other = replace(other, spec=replace(other.spec, peer=ip_address("192.0.2.253")))
    path = Path(ip_network("fd00:10::/122"), SOURCE, SOURCE)
    learned = {**table(PATH, source), **table(path, source)}
    together = passed_on([ALIKE, other], frozenset(), POLICY, learned)
    for each in (ALIKE, other):
        alone = adj_rib_out(each, Own(), POLICY, learned)
        assert together[each.spec.peer].announcements == alone.announcements


def test_two_external_sessions_may_show_two_local_as() -> None:
    first = calico(EXTERNAL)
    second = replace(first, spec=replace(first.spec, peer=ip_address("192.0.2.253"), local_as=65100))
    found = passed_on([first, second], frozenset(), POLICY, table(PATH))
    paths = [one(exported).attributes.as_path for exported in found.values()]
    assert paths == [(65001, 65002), (65100, 65002)]


@given(
    tables(SOURCES),
    st.lists(
        st.builds(
            lambda peering, policy, drained, mode, rules: filtered(
                replace(peering, export_policy=policy, drained=drained, next_hop=mode), *rules
            ),
            st.sampled_from(SOURCES),
            st.sampled_from(Policy),
            st.booleans(),
            st.sampled_from(NextHopMode),
            st.lists(st.sampled_from([ACCEPT, {**REJECT, "interface": "eth1"}]), max_size=1),
        ),
        unique_by=lambda peering: peering.spec.peer,
    ),
)
def test_all_sessions_at_once_are_as_each_by_itself(
    learned: dict[Prefix, Best], peerings: list[Peering]
) -> None:
    learned = {prefix: found for prefix, found in learned.items() if prefix not in OWN.routes}
    together = passed_on(peerings, OWN.blocks, POLICY, learned)
    for peering in peerings:
        alone = adj_rib_out(peering, OWN, POLICY, learned)
        part = together[peering.spec.peer]
        mine = originated(peering, OWN, POLICY)
        assert alone.announcements == mine.announcements | part.announcements
        assert not part.refused
