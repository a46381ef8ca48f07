"""The decision process step by step; section numbers are RFC 4271's."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.decision import MULTIPATH_LIMIT, Candidate, decide, drop_worse_med, select
from bgp.nexthop import Resolved
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
) -> Candidate:
    peer = ip_address(f"192.0.2.{last}")
    session = SessionSpec(peer, 64501 if external else LOCAL_AS, ME, LOCAL_AS, ME)
    path = Path(PREFIX, peer, peer, origin, as_path, med=med, local_pref=local_pref)
    return Candidate(path, session, Resolved(peer, "eth1", metric))


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
            candidate(9, as_path=(64501,)),
            candidate(2, as_path=(64501, 64502), local_pref=500),
            id="5.1.5: LOCAL_PREF from an external peer is ignored",
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


def test_the_lowest_peer_address_is_best_but_equal_paths_share_the_load() -> None:
    # 9.1.2.2 g; numerically: as text 192.0.2.10 would come first.
    low, high = candidate(9), candidate(10)
    chosen = select([high, low])
    assert chosen.best == low
    assert chosen.multipath == (low, high)


def test_med_is_not_compared_between_neighbouring_ases() -> None:
    a, b = candidate(2, as_path=(64501,), med=500), candidate(3, as_path=(64502,), med=1)
    assert select([a, b]).multipath == (a, b)


def test_med_of_paths_that_began_in_the_own_as_is_compared_among_them() -> None:
    a, b = (candidate(n, as_path=(), external=False, med=n) for n in (2, 3))
    assert drop_worse_med([b, a]) == [a]


def test_a_prefix_without_candidates_is_a_withdrawal_and_not_to_be_asked_about() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        select([])
    assert decide([]) == {}


def test_multipath_is_limited_and_keeps_the_best() -> None:
    many = [candidate(n) for n in range(2, 3 * MULTIPATH_LIMIT)]
    chosen = select(many[::-1])
    assert chosen.multipath == tuple(many[:MULTIPATH_LIMIT])
    assert chosen.best == many[0]


def test_the_loc_rib_has_one_entry_a_prefix() -> None:
    here = candidate(2)
    elsewhere = replace(here, path=replace(here.path, prefix=ip_network("10.244.2.0/26")))
    rib = decide([here, elsewhere, candidate(3)])
    assert {prefix: len(best.multipath) for prefix, best in rib.items()} == {
        PREFIX: 2,
        elsewhere.path.prefix: 1,
    }


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
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda c: c.path.peer,
)


@given(candidates, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_arrival(found: list[Candidate], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types it as Random, not exported
    assert select(shuffled) == select(found)


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
