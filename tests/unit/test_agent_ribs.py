"""What the speaker says, folded; and when a missing path means that it is gone."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

from bgp.rib import Path, SessionSpec, SessionState, SessionStatus
from bgp.speaker.seam import SessionChanged, SessionGone, Snapshot, Update, Wanted
from fabric.agent.ribs import Ribs, fold, lost, settle

PATIENCE = 120.0
A, B = ip_address("192.0.2.1"), ip_address("192.0.2.2")
PATH = Path(ip_network("10.244.1.0/26"), A, A)
OTHER = Path(ip_network("10.244.2.0/26"), A, A)
ME = IPv4Address("192.0.2.9")
WANTED = Wanted(frozenset(SessionSpec(peer, 65000, ME, 65001, ME) for peer in (A, B)))
UP = SessionStatus(SessionState.ESTABLISHED, 5.0)
WHOLE = replace(UP, synced=True)


def connected(*statuses: SessionStatus) -> Ribs:
    return fold(Ribs(), Snapshot(dict(zip((A, B), statuses, strict=False))), 10.0, PATIENCE)


def test_a_snapshot_replaces_what_was_known_of_peers_whose_table_is_whole() -> None:
    before = fold(connected(WHOLE), Update(A, (PATH,)), 11.0, PATIENCE)
    after = fold(before, Snapshot({A: WHOLE, B: UP}, {B: frozenset({OTHER})}, WANTED), 20.0, PATIENCE)
    assert after.sessions == {A: WHOLE, B: UP}
    assert after.adj_rib_in == {B: {OTHER.prefix: OTHER}}
    assert (after.connected, after.settled, after.settle_by) == (True, False, 140.0)


def begun_anew() -> Ribs:
    """A has said two prefixes to the speaker before this one, which has heard nothing yet."""
    known = replace(WHOLE, peer_id=ME)
    before = fold(connected(known), Update(A, (PATH, OTHER)), 11.0, PATIENCE)
    return fold(lost(before, 19.0), Snapshot(), 20.0, PATIENCE)


def test_what_an_earlier_speaker_told_stands_until_its_peer_has_said_all_of_it() -> None:
    # RFC 4724 §4.1: what is passed on must not shrink before End-of-RIB is heard.
    ribs = fold(begun_anew(), SessionChanged(A, UP), 21.0, PATIENCE)
    assert ribs.adj_rib_in == {A: {PATH.prefix: PATH, OTHER.prefix: OTHER}}
    better = replace(PATH, med=5)
    ribs = fold(ribs, Update(A, (better,)), 22.0, PATIENCE)
    assert ribs.adj_rib_in[A] == {PATH.prefix: better, OTHER.prefix: OTHER}
    ribs = fold(ribs, SessionChanged(A, WHOLE), 23.0, PATIENCE)
    assert (ribs.adj_rib_in[A], ribs.remembered) == ({PATH.prefix: better}, {})


def test_a_peer_keeps_its_id_while_it_has_not_connected_again() -> None:
    ribs = fold(begun_anew(), SessionChanged(A, replace(UP, state=SessionState.CONNECT)), 21.0, PATIENCE)
    assert ribs.sessions[A].peer_id == ME


def test_what_nobody_says_again_is_gone_once_all_is_settled() -> None:
    ribs = settle(begun_anew(), Wanted(), 21.0)
    assert (ribs.settled, ribs.adj_rib_in, ribs.remembered) == (True, {A: {}}, {})
    assert settle(begun_anew(), WANTED, 20.0 + PATIENCE).adj_rib_in == {A: {}}


def test_an_update_replaces_by_prefix_and_withdraws() -> None:
    ribs = fold(connected(UP), Update(A, (PATH, OTHER)), 11.0, PATIENCE)
    better = replace(PATH, med=5)
    ribs = fold(ribs, Update(A, (better,), (OTHER.prefix,)), 12.0, PATIENCE)
    assert ribs.adj_rib_in == {A: {PATH.prefix: better}}


def test_a_prefix_withdrawn_and_announced_in_one_update_is_announced() -> None:
    # RFC 4271 §4.3: an UPDATE should not carry both, and one that does announces.
    ribs = fold(connected(UP), Update(A, (PATH,), (PATH.prefix,)), 11.0, PATIENCE)
    assert ribs.adj_rib_in == {A: {PATH.prefix: PATH}}


def test_withdrawing_what_was_never_there_is_nothing() -> None:
    assert fold(connected(UP), Update(B, (), (PATH.prefix,)), 11.0, PATIENCE).adj_rib_in == {B: {}}


def test_a_session_that_goes_down_keeps_its_paths_until_they_are_withdrawn() -> None:
    ribs = fold(connected(UP), Update(A, (PATH,)), 11.0, PATIENCE)
    down = SessionStatus(SessionState.CONNECT, 12.0, "closing connection", flaps=1)
    ribs = fold(ribs, SessionChanged(A, down), 12.0, PATIENCE)
    assert (ribs.sessions[A], ribs.adj_rib_in[A]) == (down, {PATH.prefix: PATH})


def test_a_session_that_is_no_longer_configured_takes_its_paths_along() -> None:
    ribs = fold(connected(UP), Update(A, (PATH,)), 11.0, PATIENCE)
    ribs = fold(ribs, SessionGone(A), 12.0, PATIENCE)
    assert (ribs.sessions, ribs.adj_rib_in) == ({}, {})


def test_the_picture_settles_when_every_wanted_session_is_whole() -> None:
    assert not settle(connected(WHOLE, UP), WANTED, 11.0).settled
    assert not settle(connected(WHOLE), WANTED, 11.0).settled
    assert settle(connected(WHOLE, WHOLE), WANTED, 11.0).settled


def test_it_settles_when_patience_with_a_silent_peer_has_ended() -> None:
    ribs = connected(WHOLE, UP)
    assert not settle(ribs, WANTED, 10.0 + PATIENCE - 1).settled
    assert settle(ribs, WANTED, 10.0 + PATIENCE).settled


def test_without_sessions_it_settles_at_once_but_never_without_a_speaker() -> None:
    assert settle(connected(), Wanted(), 11.0).settled
    assert not settle(Ribs(), Wanted(), 1e9).settled


def test_a_lost_speaker_leaves_the_paths_and_unsettles() -> None:
    ribs = settle(fold(connected(WHOLE, WHOLE), Update(A, (PATH,)), 11.0, PATIENCE), WANTED, 12.0)
    gone = lost(ribs, 1000.0)
    assert (gone.connected, gone.settled, gone.adj_rib_in) == (False, False, ribs.adj_rib_in)


def test_without_a_speaker_no_session_is_known_to_be_established() -> None:
    gone = lost(connected(WHOLE, UP), 1000.0)
    assert {(s.state, s.since, s.reason, s.synced) for s in gone.sessions.values()} == {
        (SessionState.IDLE, 1000.0, "the speaker does not answer", False)
    }


def test_once_settled_a_new_session_does_not_unsettle() -> None:
    ribs = settle(connected(WHOLE, WHOLE), WANTED, 12.0)
    assert settle(fold(ribs, SessionChanged(B, UP), 13.0, PATIENCE), WANTED, 13.0).settled
