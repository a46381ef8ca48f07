"""Walks of the speaker's state machine; section numbers are RFC 4724's."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.rib import Announcement, Path, Prefix, SessionSpec, SessionState
from bgp.speaker.exabgp_wire import (
    Announce,
    Down,
    EndOfRib,
    Heard,
    Opened,
    Received,
    SendEndOfRib,
    Unreadable,
    Up,
    Withdraw,
)
from bgp.speaker.seam import SessionChanged, SessionGone, Snapshot, Update, Wanted
from bgp.speaker.tables import Effects, Tables

PEER = ip_address("10.0.0.2")
SPEC = SessionSpec(PEER, 65002, ip_address("10.0.0.1"), 65001, IPv4Address("10.0.0.1"), restart_time=120)
OURS = [ip_network(f"10.1.0.{64 * n}/26") for n in range(3)]
A, B, C = (Path(ip_network(f"192.0.{n}.0/24"), PEER, PEER) for n in range(3))
OPENED = Opened(PEER, graceful=True, forwarding_lost=False)
LOST = Down(PEER, "closing connection")


def announcing(*prefixes: Prefix) -> frozenset[Announcement]:
    return frozenset(map(Announcement, prefixes))


def wanting(*prefixes: Prefix, spec: SessionSpec = SPEC) -> Wanted:
    return Wanted(frozenset({spec}), {PEER: announcing(*prefixes)})


def established(*paths: Path, opened: Opened = OPENED, ours: list[Prefix] | None = None) -> Tables:
    tables = Tables()
    tables.want(wanting(*(ours or OURS[:1])), 0)
    tables.in_force([SPEC], 0)
    tables.take([opened, Up(PEER), Received(PEER, paths), EndOfRib(PEER)], 1)
    return tables


def learned(tables: Tables) -> set[Path]:
    return set(tables.snapshot().adj_rib_in.get(PEER, ()))


def withdrawn(effects: Effects) -> set[Prefix]:
    return {p for event in effects.events() if isinstance(event, Update) for p in event.withdrawn}


def test_up_sends_the_whole_adj_rib_out_and_only_then_end_of_rib() -> None:
    tables = Tables()
    assert tables.want(wanting(*OURS), 0).commands == [], "nothing is sent to a session that is down"
    tables.in_force([SPEC], 0)
    assert tables.take([OPENED, Up(PEER)], 1).commands == [
        Announce(PEER, announcing(*OURS)),
        SendEndOfRib(PEER),
    ]


def test_up_with_nothing_to_announce_still_sends_end_of_rib() -> None:
    tables = Tables()
    tables.want(Wanted(frozenset({SPEC})), 0)
    tables.in_force([SPEC], 0)
    assert tables.take([Up(PEER)], 1).commands == [SendEndOfRib(PEER)]


def test_only_the_difference_is_sent_while_up() -> None:
    tables = established(ours=OURS[:2])
    effects = tables.want(wanting(*OURS[1:]), 2)
    assert effects.commands == [Announce(PEER, announcing(OURS[2])), Withdraw(PEER, frozenset({OURS[0]}))]
    assert tables.want(wanting(*OURS[1:]), 2).commands == []


def test_a_changed_next_hop_is_an_announcement_and_no_withdrawal() -> None:
    moved = frozenset({Announcement(OURS[0], ip_address("10.0.0.7"))})
    effects = established().want(Wanted(frozenset({SPEC}), {PEER: moved}), 2)
    assert effects.commands == [Announce(PEER, moved)]


def test_the_other_family_stays_out_of_a_session() -> None:
    effects = established().want(wanting(OURS[0], ip_network("2001:db8::/64")), 2)
    assert effects.commands == []


def test_a_removed_session_is_withdrawn_before_it_goes() -> None:
    tables = established(A)
    effects = tables.want(Wanted(), 2)
    assert effects.commands == [Withdraw(PEER, frozenset({OURS[0]})), SendEndOfRib(PEER)]
    assert effects.events() == [], "the withdrawals have not left yet"
    assert PEER in tables.leaving
    assert PEER in tables.snapshot().sessions, "a returning agent must not take it for gone"
    tables.take([EndOfRib(PEER, ours=True)], 3)
    assert PEER in tables.leaving, "that was the End-of-RIB behind the replay, not behind the withdrawal"
    tables.take([EndOfRib(PEER, ours=True)], 4)
    assert PEER not in tables.leaving
    assert tables.gone([SPEC]).events() == [], "ExaBGP has it still"
    assert tables.gone([]).events() == [SessionGone(PEER)], "its adj-RIB-in went with it"
    assert tables.snapshot() == Snapshot()


def test_a_session_wanted_again_before_it_was_gone_has_lost_nothing() -> None:
    tables = established(A)
    tables.want(Wanted(), 2)
    assert tables.want(wanting(*OURS[:2]), 3).commands == [Announce(PEER, announcing(*OURS[:2]))]
    assert tables.gone([]).events() == []
    status = tables.snapshot().sessions[PEER]
    assert (status.state, status.flaps, learned(tables)) == (SessionState.ESTABLISHED, 0, {A})


def test_what_cannot_be_read_is_withdrawn() -> None:
    tables = established(A, B)
    effects = tables.take([Unreadable("update", "?", PEER, (A.prefix, C.prefix)), Unreadable("line", "?")], 2)
    assert effects.events() == [Update(PEER, (), (A.prefix,))]
    assert tables.snapshot().sessions[PEER].state is SessionState.ESTABLISHED


def test_what_exabgp_says_of_a_session_not_yet_in_force_is_about_another_one() -> None:
    tables = established(A)
    other = replace(SPEC, peer_as=65003)
    effects = tables.want(wanting(spec=other), 2)
    assert withdrawn(effects) == {A.prefix}
    assert tables.take([Received(PEER, (B,)), Up(PEER)], 3).events() == []
    tables.in_force([other], 4)
    assert tables.take([Up(PEER)], 5).events() != []


def test_a_flood_is_one_update_with_the_last_word_on_each_prefix() -> None:
    better = replace(A, med=7)
    effects = established().take(
        [Received(PEER, (A, B)), Received(PEER, (better,)), Received(PEER, (C,), (B.prefix,))], 2
    )
    assert effects.events() == [Update(PEER, (better, C), (B.prefix,))]


def test_the_same_path_again_is_no_news() -> None:
    assert established(A).take([Received(PEER, (A,), (B.prefix,))], 2).events() == []


@pytest.mark.parametrize(
    ("walk", "kept"),
    [
        pytest.param([LOST], {A, B}, id="connection lost: kept (4.2)"),
        pytest.param([LOST, OPENED, Up(PEER)], {A, B}, id="up again: still kept"),
        pytest.param(
            [LOST, OPENED, Up(PEER), Received(PEER, (B,)), EndOfRib(PEER)], {B}, id="End-of-RIB sweeps (4.2)"
        ),
        pytest.param([LOST, OPENED, Up(PEER), Received(PEER, (B,)), LOST], {B}, id="lost twice: stale goes"),
        pytest.param([Down(PEER, "notification sent (4,0)", (4, 0))], set(), id="hold timer flushes"),
        pytest.param([Down(PEER, "notification received (6,2)", (6, 2))], set(), id="NOTIFICATION flushes"),
        pytest.param(
            [LOST, Opened(PEER, graceful=True, forwarding_lost=True), Up(PEER)],
            set(),
            id="restarted without its forwarding state (4.2)",
        ),
        pytest.param(
            [LOST, Opened(PEER, graceful=False, forwarding_lost=False), Up(PEER)],
            set(),
            id="came back without graceful restart (4.2)",
        ),
        pytest.param([LOST, LOST, LOST], {A, B}, id="refused attempts are no losses"),
    ],
)
def test_what_outlives_the_session(walk: list[Heard], kept: set[Path]) -> None:
    whole, stepwise = established(A, B), established(A, B)
    whole.take(walk, 10)
    for message in walk:
        stepwise.take([message], 10)
    assert learned(whole) == learned(stepwise) == kept


def test_without_graceful_restart_a_lost_connection_flushes() -> None:
    tables = established(A, opened=Opened(PEER, graceful=False, forwarding_lost=False))
    assert withdrawn(tables.take([LOST], 10)) == {A.prefix}


@pytest.mark.parametrize("graceful", [True, False])
def test_a_lost_exabgp_keeps_what_was_learned_whatever_the_peer_offers(graceful: bool) -> None:
    opened = Opened(PEER, graceful, forwarding_lost=True)
    tables = established(A, B, opened=opened)
    effects = tables.daemon_lost("ExaBGP ended with exit status -9", 10)
    assert [event.status.reason for event in effects.events() if isinstance(event, SessionChanged)] == [
        "ExaBGP ended with exit status -9"
    ]
    tables.in_force([SPEC], 11)
    tables.take([opened, Up(PEER), Received(PEER, (B,))], 12)
    assert learned(tables) == {A, B}
    tables.take([EndOfRib(PEER)], 13)
    assert learned(tables) == {B}


def test_stale_paths_go_when_the_restart_time_is_over() -> None:
    tables = established(A, B)
    tables.take([LOST], 10)
    assert tables.expire(129.9).events() == []
    assert withdrawn(tables.expire(130)) == {A.prefix, B.prefix}
    assert tables.expire(131).events() == []


def test_the_restart_time_starts_anew_when_the_session_is_up_again() -> None:
    tables = established(A)
    tables.take([LOST, OPENED, Up(PEER)], 100)
    assert tables.expire(219).events() == []
    assert withdrawn(tables.expire(220)) == {A.prefix}
    assert tables.snapshot().sessions[PEER].synced, "the time to wait for End-of-RIB has passed"


def test_synced_is_told_with_end_of_rib_and_after_the_paths_it_speaks_of() -> None:
    tables = Tables()
    tables.want(wanting(), 0)
    tables.in_force([SPEC], 0)
    *_, up = tables.take([OPENED, Up(PEER)], 1).events()
    assert isinstance(up, SessionChanged)
    assert not up.status.synced
    update, whole = tables.take([Received(PEER, (A,)), EndOfRib(PEER)], 2).events()
    assert update == Update(PEER, (A,))
    assert whole == SessionChanged(PEER, replace(up.status, synced=True))
    tables.take([LOST], 3)
    assert not tables.snapshot().sessions[PEER].synced


def test_a_peer_without_graceful_restart_owes_no_end_of_rib() -> None:
    tables = Tables()
    tables.want(wanting(), 0)
    tables.in_force([SPEC], 0)
    tables.take([Opened(PEER, graceful=False, forwarding_lost=False), Up(PEER)], 1)
    tables.expire(10)
    assert not tables.snapshot().sessions[PEER].synced
    tables.expire(11)
    assert tables.snapshot().sessions[PEER].synced


def statuses(tables: Tables, walk: list[Heard]) -> list[tuple[SessionState, float, str]]:
    told = []
    for second, message in enumerate(walk, start=10):
        for event in tables.take([message], second).events():
            assert isinstance(event, SessionChanged)
            told.append((event.status.state, event.status.since, event.status.reason))
    return told


def test_refused_attempts_are_told_once_and_leave_since_alone() -> None:
    tables = established()
    assert statuses(tables, [LOST] * 5) == [(SessionState.CONNECT, 10, "closing connection")]


def test_a_notification_is_told_once_and_not_hidden_by_refused_attempts() -> None:
    received = Down(PEER, "notification received (2,2) bad peer AS", (2, 2))
    sent = Down(PEER, "notification sent (2,2) bad peer AS", (2, 2))
    tables = established()
    tables.take([LOST], 5)
    assert statuses(tables, [received, LOST, sent, received, LOST]) == [
        (SessionState.CONNECT, 5, "notification received (2,2) bad peer AS")
    ]
    assert statuses(tables, [Up(PEER)]) == [(SessionState.ESTABLISHED, 10, "")]
    assert tables.snapshot().sessions[PEER].flaps == 1


def test_a_session_that_cannot_be_configured_says_why_until_it_can() -> None:
    tables = Tables()
    tables.want(wanting(), 0)
    tables.refuse({PEER: "cannot listen"}, 1)
    assert tables.snapshot().sessions[PEER].state is SessionState.IDLE
    assert tables.refuse({PEER: "cannot listen"}, 2).events() == []
    tables.in_force([SPEC], 3)
    assert tables.snapshot().sessions[PEER].reason == "connecting"


@pytest.mark.parametrize("still_wanted", [True, False])
def test_a_session_that_leaves_force_is_down_with_nothing_learned(still_wanted: bool) -> None:
    tables = established(A, B)
    if not still_wanted:
        tables.want(Wanted(), 2)
    effects = tables.in_force([], 3)
    assert withdrawn(effects) == {A.prefix, B.prefix}
    status = tables.snapshot().sessions[PEER]
    assert (status.state, status.synced, learned(tables)) == (SessionState.CONNECT, False, set())
    assert tables.want(wanting(*OURS), 4).commands == [], "ExaBGP does not have it"
    tables.in_force([SPEC], 5)
    assert tables.take([OPENED, Up(PEER)], 6).commands == [
        Announce(PEER, announcing(*OURS)),
        SendEndOfRib(PEER),
    ]
