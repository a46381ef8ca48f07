"""Walks of the speaker's state machine; section numbers are RFC 4724's."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.rib import (
    Announcement,
    Notification,
    Path,
    Prefix,
    SessionSpec,
    SessionState,
    SessionStatus,
    Traffic,
)
from bgp.speaker.exabgp_wire import (
    Announce,
    Down,
    EndOfRib,
    Heard,
    Opened,
    Received,
    SendEndOfRib,
    Sent,
    Teardown,
    Unreadable,
    Up,
    Withdraw,
)
from bgp.speaker.seam import Counted, Reset, SessionChanged, SessionGone, Snapshot, Update, Wanted
from bgp.speaker.tables import IDLE_SECONDS, Effects, Tables

PEER = ip_address("10.0.0.2")
SPEC = SessionSpec(PEER, 65002, ip_address("10.0.0.1"), 65001, IPv4Address("10.0.0.1"), restart_time=120)
OURS = [ip_network(f"10.1.0.{64 * n}/26") for n in range(3)]
A, B, C = (Path(ip_network(f"192.0.{n}.0/24"), PEER, PEER) for n in range(3))
FAMILIES = frozenset({4})


def opened(graceful: bool = True, *, forwarding_lost: bool = False, restart_time: int = 120) -> Opened:
    return Opened(
        peer=PEER,
        peer_id=IPv4Address("10.0.0.2"),
        families=FAMILIES,
        graceful=FAMILIES if graceful else frozenset(),
        forwarding_lost=FAMILIES if forwarding_lost else frozenset(),
        restart_time=restart_time,
    )


OPENED = opened()
LOST = Down(PEER, "closing connection")


def announcing(*prefixes: Prefix) -> frozenset[Announcement]:
    return frozenset(map(Announcement, prefixes))


def wanting(*prefixes: Prefix, spec: SessionSpec = SPEC) -> Wanted:
    return Wanted(frozenset({spec}), {PEER: announcing(*prefixes)})


def established(
    *paths: Path, by: Opened = OPENED, ours: list[Prefix] | None = None, limit: int = 0
) -> Tables:
    tables = Tables()
    tables.want(replace(wanting(*(ours or OURS[:1])), max_prefixes={PEER: limit}), 0)
    tables.in_force([SPEC], 0)
    tables.take([by, Up(PEER), Received(PEER, paths), EndOfRib(PEER, 4)], 1)
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
        SendEndOfRib(PEER, 4),
    ]


def test_up_with_nothing_to_announce_still_sends_end_of_rib() -> None:
    tables = Tables()
    tables.want(Wanted(frozenset({SPEC})), 0)
    tables.in_force([SPEC], 0)
    assert tables.take([OPENED, Up(PEER)], 1).commands == [SendEndOfRib(PEER, 4)]


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
    assert effects.commands == [Withdraw(PEER, frozenset({OURS[0]})), SendEndOfRib(PEER, 4)]
    assert effects.events() == [], "the withdrawals have not left yet"
    assert PEER in tables.leaving
    assert PEER in tables.snapshot().sessions, "a returning agent must not take it for gone"
    tables.take([EndOfRib(PEER, 4, ours=True)], 3)
    assert PEER in tables.leaving, "that was the End-of-RIB behind the replay, not behind the withdrawal"
    tables.take([EndOfRib(PEER, 4, ours=True)], 4)
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
            [LOST, OPENED, Up(PEER), Received(PEER, (B,)), EndOfRib(PEER, 4)],
            {B},
            id="End-of-RIB sweeps (4.2)",
        ),
        pytest.param([LOST, OPENED, Up(PEER), Received(PEER, (B,)), LOST], {B}, id="lost twice: stale goes"),
        pytest.param([Down(PEER, "notification sent (4,0)", (4, 0))], set(), id="hold timer flushes"),
        pytest.param([Down(PEER, "notification received (6,2)", (6, 2))], set(), id="NOTIFICATION flushes"),
        pytest.param(
            [LOST, opened(forwarding_lost=True), Up(PEER)],
            set(),
            id="restarted without its forwarding state (4.2)",
        ),
        pytest.param(
            [LOST, opened(graceful=False), Up(PEER)],
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
    tables = established(A, by=opened(graceful=False))
    assert withdrawn(tables.take([LOST], 10)) == {A.prefix}


@pytest.mark.parametrize("graceful", [True, False])
def test_a_lost_exabgp_keeps_what_was_learned_whatever_the_peer_offers(graceful: bool) -> None:
    by = opened(graceful, forwarding_lost=True)
    tables = established(A, B, by=by)
    effects = tables.daemon_lost("ExaBGP ended with exit status -9", 10)
    assert [event.status.reason for event in effects.events() if isinstance(event, SessionChanged)] == [
        "ExaBGP ended with exit status -9"
    ]
    tables.in_force([SPEC], 11)
    tables.take([by, Up(PEER), Received(PEER, (B,))], 12)
    assert learned(tables) == {A, B}
    tables.take([EndOfRib(PEER, 4)], 13)
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
    update, whole = tables.take([Received(PEER, (A,)), EndOfRib(PEER, 4)], 2).events()
    assert update == Update(PEER, (A,))
    assert whole == SessionChanged(PEER, replace(up.status, synced=True))
    tables.take([LOST], 3)
    assert not tables.snapshot().sessions[PEER].synced


def test_a_peer_without_graceful_restart_owes_no_end_of_rib() -> None:
    tables = Tables()
    tables.want(wanting(), 0)
    tables.in_force([SPEC], 0)
    tables.take([opened(graceful=False), Up(PEER)], 1)
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
        SendEndOfRib(PEER, 4),
    ]


def status(tables: Tables) -> SessionStatus:
    return tables.snapshot().sessions[PEER]


def test_a_stale_path_goes_when_the_peer_is_away_for_longer_than_it_said() -> None:
    """4.2: the time is the one that the peer advertised."""
    tables = established(A, by=opened(restart_time=20))
    tables.take([LOST], 10)
    assert tables.expire(29.9).events() == []
    assert withdrawn(tables.expire(30)) == {A.prefix}


def test_what_exabgp_would_send_again_unasked_is_withdrawn_once_a_session_is_up() -> None:
    tables = established(ours=OURS[:2])
    tables.take([LOST], 2)
    assert tables.want(wanting(OURS[0]), 3).commands == []
    assert tables.take([OPENED, Up(PEER)], 4).commands == [
        Announce(PEER, announcing(OURS[0])),
        Withdraw(PEER, frozenset({OURS[1]})),
        SendEndOfRib(PEER, 4),
    ]
    tables.daemon_lost("killed", 5)
    tables.in_force([SPEC], 6)
    assert tables.take([OPENED, Up(PEER)], 7).commands == [
        Announce(PEER, announcing(OURS[0])),
        SendEndOfRib(PEER, 4),
    ]


def test_a_reset_flushes_at_once_and_hears_nothing_until_the_session_has_ended() -> None:
    tables = established(A, B)
    effects = tables.reset(Reset(PEER, 4), 5)
    assert effects.commands == [Teardown(PEER, 4)]
    assert withdrawn(effects) == {A.prefix, B.prefix}
    want = SessionStatus(
        SessionState.CONNECT,
        since=5,
        reason="notification sent (6,4) administrative reset",
        flaps=1,
        peer_id=IPv4Address("10.0.0.2"),
        notification=Notification(6, 4, True, 5),
    )
    assert status(tables) == want
    ended = Down(PEER, "notification sent (6,4) administrative reset", (6, 4), True)
    assert tables.take([Received(PEER, (C,)), EndOfRib(PEER, 4), ended, LOST], 6).events() == []
    assert status(tables) == want
    tables.take([OPENED, Up(PEER), Received(PEER, (A,))], 7)
    assert (status(tables).state, learned(tables)) == (SessionState.ESTABLISHED, {A})


def test_a_reset_of_what_is_not_up_flushes_what_is_kept_for_its_restart() -> None:
    tables = established(A)
    tables.take([LOST], 2)
    effects = tables.reset(Reset(PEER), 3)
    assert (effects.commands, withdrawn(effects), learned(tables)) == ([], {A.prefix}, set())
    assert tables.expire(1000) == Effects(), "nothing is due any more"
    assert Tables().reset(Reset(PEER), 3) == Effects()


def over_its_limit() -> Tables:
    tables = established(A, B, limit=2)
    effects = tables.take([Received(PEER, (C,))], 10)
    assert effects.commands == [Teardown(PEER, 1)]
    assert effects.reconfigure
    assert withdrawn(effects) == {A.prefix, B.prefix, C.prefix}
    return tables


def test_over_its_limit_a_session_idles_for_a_quarter_of_an_hour() -> None:
    tables = over_its_limit()
    assert status(tables) == SessionStatus(
        state=SessionState.IDLE,
        since=10,
        reason="sent 3 prefixes and 2 is the limit: notification sent (6,1) maximum number of prefixes reached; "
        "idle for 15 minutes, or until it is reset or its limit raised",
        flaps=1,
        peer_id=IPv4Address("10.0.0.2"),
        notification=Notification(6, 1, True, 10),
        idle_until=10 + IDLE_SECONDS,
    )
    assert tables.idle() == {SPEC}
    assert tables.renewed([SPEC]) == {SPEC}, "ExaBGP has to drop it"
    ended = Down(PEER, "notification sent (6,1) maximum number of prefixes reached", (6, 1), True)
    assert tables.take([Received(PEER, (A,)), ended, OPENED, Up(PEER)], 11).events() == []
    assert tables.expire(10 + IDLE_SECONDS - 0.1) == Effects()
    assert tables.expire(10 + IDLE_SECONDS).reconfigure
    assert (status(tables).state, status(tables).idle_until) == (SessionState.CONNECT, 0)
    assert tables.idle() == frozenset()
    tables.in_force([SPEC], 1000)
    tables.take([OPENED, Up(PEER), Received(PEER, (A,))], 1001)
    assert learned(tables) == {A}


@pytest.mark.parametrize("limit", [3, 0], ids=["raised", "taken away"])
def test_a_limit_that_leaves_room_has_an_idle_session_tried_again(limit: int) -> None:
    tables = over_its_limit()
    assert tables.want(replace(wanting(*OURS[:1]), max_prefixes={PEER: limit}), 11).reconfigure
    assert tables.idle() == frozenset()


@pytest.mark.parametrize("limit", [2, 1], ids=["the same", "lowered"])
def test_an_agent_that_comes_back_or_lowers_the_limit_leaves_an_idle_session_idle(limit: int) -> None:
    tables = over_its_limit()
    before = status(tables)
    assert tables.want(replace(wanting(*OURS[:1]), max_prefixes={PEER: limit}), 11) == Effects()
    assert tables.daemon_lost("killed", 12).events() == []
    assert status(tables) == before


def test_a_reset_has_an_idle_session_tried_again() -> None:
    tables = over_its_limit()
    effects = tables.reset(Reset(PEER), 11)
    assert (effects.reconfigure, effects.commands, tables.idle()) == (True, [], frozenset())


def test_a_changed_limit_touches_only_who_is_over_it() -> None:
    tables = established(A, B)
    for limit in (9, 0, 2):
        assert tables.want(replace(wanting(*OURS[:1]), max_prefixes={PEER: limit}), 5) == Effects()
    effects = tables.want(replace(wanting(*OURS[:1]), max_prefixes={PEER: 1}), 6)
    assert effects.commands == [Teardown(PEER, 1)]


def test_stale_paths_and_repeated_ones_do_not_count_against_the_limit() -> None:
    tables = established(A, B, limit=2)
    better = replace(A, med=7)
    assert tables.take([Received(PEER, (better, B))], 2).commands == []
    tables.take([LOST, OPENED, Up(PEER), Received(PEER, (C,)), Received(PEER, (A,))], 3)
    assert learned(tables) == {A, B, C}
    assert not tables.idle()


def test_updates_are_counted_and_told_where_they_changed() -> None:
    tables = established(A)
    assert tables.counted() == [Counted(PEER, Traffic(2, 0))], "one, and the End-of-RIB"
    tables.take([Sent(PEER), EndOfRib(PEER, 4, ours=True), LOST], 2)
    assert tables.snapshot().traffic == {PEER: Traffic(2, 2)}
    assert tables.counted() == [Counted(PEER, Traffic(2, 2))]
    assert tables.counted() == []


def test_the_last_notification_stays_and_a_collision_is_none() -> None:
    tables = established()
    tables.take([Down(PEER, "notification sent (4,0) hold timer expired", (4, 0), True)], 5)
    tables.take([Down(PEER, "notification received (6,7) connection collision resolution", (6, 7))], 6)
    tables.take([OPENED, Up(PEER)], 7)
    assert status(tables).notification == Notification(4, 0, True, 5)


PEER6 = ip_address("2001:db8::2")
MIXED = replace(SPEC, peer=PEER6, source=ip_address("2001:db8::1"), extended_next_hop=True)
BOTH = frozenset({4, 6})
OPENED6 = Opened(PEER6, IPv4Address("10.0.0.2"), BOTH, graceful=BOTH, restart_time=120)
V4, V6 = Path(A.prefix, PEER6, PEER6), Path(ip_network("2001:db8:9::/48"), PEER6, PEER6)
OUR6 = ip_network("2001:db8:1::/64")


def mixed(by: Opened = OPENED6) -> tuple[Tables, Effects]:
    tables = Tables()
    tables.want(Wanted(frozenset({MIXED}), {PEER6: announcing(OURS[0], OUR6)}), 0)
    tables.in_force([MIXED], 0)
    return tables, tables.take([by, Up(PEER6), Received(PEER6, (V4, V6))], 1)


def test_ipv4_goes_over_ipv6_with_our_ipv6_address_as_its_next_hop() -> None:
    """RFC 8950 §4."""
    out = frozenset({Announcement(OURS[0], MIXED.source), Announcement(OUR6)})
    assert mixed()[1].commands == [Announce(PEER6, out), SendEndOfRib(PEER6, 4), SendEndOfRib(PEER6, 6)]


def test_ipv4_stays_out_where_the_peer_does_not_take_it_so() -> None:
    _, effects = mixed(replace(OPENED6, families=frozenset({6})))
    assert effects.commands == [Announce(PEER6, announcing(OUR6)), SendEndOfRib(PEER6, 6)]


def test_end_of_rib_is_by_family() -> None:
    tables, _ = mixed()
    tables.take(
        [EndOfRib(PEER6, 4), EndOfRib(PEER6, 6), Down(PEER6, "closing connection"), OPENED6, Up(PEER6)], 2
    )
    assert withdrawn(tables.take([EndOfRib(PEER6, 6)], 3)) == {V6.prefix}
    assert not tables.snapshot().sessions[PEER6].synced
    assert withdrawn(tables.take([EndOfRib(PEER6, 4)], 4)) == {V4.prefix}
    assert tables.snapshot().sessions[PEER6].synced


def test_what_is_kept_is_by_family() -> None:
    """4.2: what the capability does not list is not kept, nor what it says was lost."""
    tables, _ = mixed(replace(OPENED6, graceful=frozenset({6})))
    assert withdrawn(tables.take([Down(PEER6, "closing connection")], 2)) == {V4.prefix}
    tables, _ = mixed()
    tables.take([Down(PEER6, "closing connection")], 2)
    back = replace(OPENED6, forwarding_lost=frozenset({4}))
    assert withdrawn(tables.take([back, Up(PEER6)], 3)) == {V4.prefix}
