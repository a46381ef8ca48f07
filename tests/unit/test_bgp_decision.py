"""The decision process step by step; section numbers are RFC 4271's where no other is named."""

from ipaddress import IPv4Address, ip_address, ip_network
from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.decision import MULTIPATH_LIMIT, Candidate, explain, select
from bgp.nexthop import Hop, Resolved
from bgp.peering import Peering
from bgp.rib import Origin, Path, SessionSpec

PREFIX = ip_network("10.244.1.0/26")
ME = IPv4Address("192.0.2.1")
LOCAL_AS = 65001


def candidate(
    last: int,
    *,
    as_path: tuple[int, ...] = (64501,),
    origin: Origin = Origin.IGP,
    med: int | None = None,
    local_pref: int | None = None,
    external: bool = True,
    metric: int = 0,
    peer_id: int | None = 1,
    originator: int = 0,
    clusters: int = 0,
    gateway: int = 0,
    others: tuple[Hop, ...] = (),
) -> Candidate:
    """A path of the peer 192.0.2.`last`, whose BGP identifier and those of others are numbers here."""
    peer = ip_address(f"192.0.2.{last}")
    session = SessionSpec(peer, 64501 if external else LOCAL_AS, ME, LOCAL_AS, ME)
    path = Path(
        PREFIX,
        peer,
        peer,
        origin,
        as_path,
        med=med,
        local_pref=local_pref,
        originator_id=IPv4Address(originator) if originator else None,
        cluster_list=tuple(map(IPv4Address, range(1, clusters + 1))),
    )
    via = Resolved(ip_address(f"192.0.2.{gateway or last}"), "eth1", metric, others)
    return Candidate(path, Peering(session), via, None if peer_id is None else IPv4Address(peer_id))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(
            candidate(9, external=False, local_pref=200, as_path=(1, 2, 3)),
            candidate(2, external=False, local_pref=150),
            id="9.1.1: the highest LOCAL_PREF, before all else",
        ),
        pytest.param(
            candidate(9, external=False, local_pref=101, as_path=(1, 2, 3)),
            candidate(2, external=False),
            id="an absent LOCAL_PREF is 100",
        ),
        pytest.param(
            candidate(9, as_path=(64501, 64502), local_pref=500),
            candidate(2, as_path=(64501,)),
            id="9.1.1: one that import gave to an external path counts as any other (5.1.5 is import's)",
        ),
        pytest.param(
            candidate(9, as_path=(64501, 64502)),
            candidate(2, local_pref=0),
            id="RFC 8326 4.1: 0 is a LOCAL_PREF, and the last choice",
        ),
        pytest.param(
            candidate(9, as_path=(64501,), origin=Origin.INCOMPLETE),
            candidate(2, as_path=(64501, 64502)),
            id="9.1.2.2 a: the shortest AS_PATH",
        ),
        pytest.param(
            candidate(9, origin=Origin.IGP, med=9),
            candidate(2, origin=Origin.EGP, med=1),
            id="9.1.2.2 b: IGP before EGP",
        ),
        pytest.param(
            candidate(9, origin=Origin.EGP),
            candidate(2, origin=Origin.INCOMPLETE),
            id="9.1.2.2 b: EGP before INCOMPLETE",
        ),
        pytest.param(
            candidate(9, med=1, metric=50),
            candidate(2, med=2, metric=0),
            id="9.1.2.2 c: the lowest MED of one neighbouring AS",
        ),
        pytest.param(candidate(9), candidate(2, med=1), id="9.1.2.2 c: an absent MED is 0"),
        pytest.param(
            candidate(9, metric=50),
            candidate(2, external=False, metric=0),
            id="9.1.2.2 d: external before internal",
        ),
        pytest.param(
            candidate(9, metric=10), candidate(2, metric=20), id="9.1.2.2 e: the lowest interior cost"
        ),
    ],
)
def test_each_step_eliminates_whatever_the_later_steps_say(better: Candidate, worse: Candidate) -> None:
    for order in ([better, worse], [worse, better]):
        assert select(order).best == better
        assert select(order).multipath == (better,)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(candidate(9, peer_id=1), candidate(2, peer_id=2), id="9.1.2.2 f: the lowest identifier"),
        pytest.param(
            candidate(9, peer_id=2**32 - 1), candidate(2, peer_id=None), id="one not known is the last"
        ),
        pytest.param(
            candidate(9, peer_id=9, originator=1),
            candidate(2, peer_id=2),
            id="RFC 4456 9: the originator's in its place",
        ),
        pytest.param(
            candidate(9, peer_id=5, clusters=1),
            candidate(2, peer_id=5, clusters=2),
            id="RFC 4456 9: then the shortest cluster list",
        ),
        pytest.param(
            candidate(9, peer_id=5, clusters=2),
            candidate(2, peer_id=6, clusters=1),
            id="RFC 4456 9: after the identifier",
        ),
        # Numerically: as text 192.0.2.10 would come first.
        pytest.param(candidate(9), candidate(10), id="9.1.2.2 g: the lowest address of the peer"),
    ],
)
def test_what_follows_the_interior_cost_chooses_the_best_but_both_share_the_load(
    better: Candidate, worse: Candidate
) -> None:
    for order in ([better, worse], [worse, better]):
        assert select(order).best == better
        assert select(order).multipath == (better, worse)


def test_med_is_not_compared_between_neighbouring_ases() -> None:
    a, b = candidate(2, as_path=(64501,), med=500), candidate(3, as_path=(64502,), med=1)
    assert select([a, b]).multipath == (a, b)


def test_med_of_paths_that_began_in_the_own_as_is_compared_among_them() -> None:
    a, b = (candidate(n, as_path=(), external=False, med=n) for n in (2, 3))
    assert select([b, a]).multipath == (a,)


def test_med_eliminates_and_does_not_sort() -> None:
    """9.1.2.2 c: pair by pair each of these beats the next one: a by the identifier, b by it, c by MED. No order
    of comparing two at a time gives one answer; eliminating a first does.
    """
    a = candidate(2, as_path=(64501,), med=20, peer_id=1)
    b = candidate(3, as_path=(64502,), med=0, peer_id=2)
    c = candidate(4, as_path=(64501,), med=10, peer_id=3)
    assert [select(pair).best for pair in ((a, b), (b, c), (c, a))] == [a, b, c]
    assert {select(order) for order in permutations([a, b, c])} == {select([a, b, c])}
    assert select([a, b, c]).multipath == (b, c)


def test_external_and_internal_paths_are_not_mixed() -> None:
    external, internal = candidate(9), candidate(2, external=False)
    assert select([internal, external]).multipath == (external,)


def test_two_paths_through_one_router_are_one_next_hop() -> None:
    two = [candidate(n, external=False, gateway=254) for n in (2, 3)]
    assert select(two).multipath == tuple(two)
    assert select(two).next_hops == (Hop(ip_address("192.0.2.254"), "eth1"),)


def test_a_next_hop_behind_several_routers_brings_them_all() -> None:
    other = Hop(ip_address("192.0.2.8"), "eth2")
    assert select([candidate(2, others=(other,)), candidate(8)]).next_hops == (
        Hop(ip_address("192.0.2.2"), "eth1"),
        other,
        Hop(ip_address("192.0.2.8"), "eth1"),
    )


def test_a_prefix_without_candidates_is_a_withdrawal_and_not_to_be_asked_about() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        select([])
    assert explain([]) == {}


def test_multipath_is_limited_and_keeps_the_best() -> None:
    many = [candidate(n) for n in range(2, 3 * MULTIPATH_LIMIT)]
    chosen = select(many[::-1])
    assert chosen.multipath == tuple(many[:MULTIPATH_LIMIT])
    assert chosen.best == many[0]
    last = candidate(200, peer_id=0)
    assert select([*many, last]).multipath == (last, *many[: MULTIPATH_LIMIT - 1])


def test_the_limit_counts_next_hops_and_not_paths() -> None:
    many = [candidate(n, gateway=254) for n in range(2, 3 * MULTIPATH_LIMIT)]
    assert len(select(many).multipath) == len(many)
    wide = candidate(1, others=tuple(Hop(ip_address(f"198.51.100.{n}"), "eth2") for n in range(40)))
    assert select([wide, candidate(2)]).multipath == (wide,)
    assert len(select([wide]).next_hops) == MULTIPATH_LIMIT


# Few values each, so that ties reach every step; peers are distinct, as in an adj-RIB-in.
candidates = st.lists(
    st.builds(
        candidate,
        st.integers(2, 60),
        as_path=st.sampled_from([(), (64501,), (64502,), (64501, 64502), (64502, 64501)]),
        origin=st.sampled_from(Origin),
        med=st.sampled_from([None, 0, 1, 2]),
        local_pref=st.sampled_from([None, 100, 200]),
        external=st.booleans(),
        metric=st.integers(0, 2),
        peer_id=st.sampled_from([None, 1, 2]),
        originator=st.integers(0, 2),
        clusters=st.integers(0, 2),
        gateway=st.sampled_from([0, 0, 250]),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda c: c.path.peer,
)


@given(candidates, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_arrival(found: list[Candidate], random: Random) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert select(shuffled) == select(found)
    assert explain(shuffled) == explain(found)


@given(candidates)
def test_what_lost_does_not_matter(found: list[Candidate]) -> None:
    # Unless it took part in the MED step, which compares within one AS only: there the loser of a later
    # step may have removed a rival. So only what falls before that step is taken away here.
    chosen = select(found).best
    shorter = [c for c in found if len(c.path.as_path) <= len(chosen.path.as_path)]
    assert select(shorter) == select(found)


@given(candidates)
def test_the_best_path_is_the_first_of_the_multipath_set(found: list[Candidate]) -> None:
    chosen = select(found)
    assert chosen.multipath[0] == chosen.best
    assert set(chosen.multipath) <= set(found)


LOSERS = {
    "lower local preference (100 < 200)": candidate(3, local_pref=100),
    "longer AS path (3 > 1)": candidate(4, local_pref=200, as_path=(64501, 64502, 64503)),
    "worse origin (incomplete > igp)": candidate(5, local_pref=200, origin=Origin.INCOMPLETE),
    "higher MED (20 > 10) of those from AS 64501": candidate(6, local_pref=200, med=20),
    "internal (another path is external)": candidate(7, local_pref=200, as_path=(64502,), external=False),
    "higher interior cost (20 > 0)": candidate(8, local_pref=200, as_path=(64502,), metric=20),
    "multipath": candidate(9, local_pref=200, as_path=(64503,), med=300),
    "": candidate(2, local_pref=200, med=10),
}


def test_each_loser_is_told_the_step_at_which_it_lost() -> None:
    for order in (list(LOSERS.values()), list(LOSERS.values())[::-1]):
        assert explain(order) == {lost.path: why for why, lost in LOSERS.items()}


def test_med_is_explained_by_a_path_of_the_same_neighbour() -> None:
    found = [candidate(2, med=1), candidate(3, med=2)]
    found += [candidate(4, as_path=(64502,), med=0), candidate(5, as_path=(64502,), med=7)]
    assert list(explain(found).values()) == [
        "",
        "higher MED (2 > 1) of those from AS 64501",
        "multipath",
        "higher MED (7 > 0) of those from AS 64502",
    ]


def test_those_over_the_limit_are_told_so() -> None:
    fate = explain([candidate(n) for n in range(2, 20)])
    assert list(fate.values()) == ["", *["multipath"] * 15, *["over the limit of 16 next hops"] * 2]


@given(candidates)
def test_what_is_explained_is_what_is_chosen(found: list[Candidate]) -> None:
    chosen, fate = select(found), explain(found)
    assert list(fate) == [c.path for c in found]
    assert [path for path, why in fate.items() if not why] == [chosen.best.path]
    assert {path for path, why in fate.items() if why in ("", "multipath")} == {
        c.path for c in chosen.multipath
    }
