"""What is likely wrong with a session, from what this end sees of it."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from bgp.diagnosis import Seen, Signature, diagnose
from bgp.peering import Peering, Source
from bgp.rib import Notification, SessionSpec, SessionState, SessionStatus

TOR, ME = ip_address("10.1.0.0"), IPv4Address("10.1.0.1")
EXTERNAL = Peering(SessionSpec(TOR, 65000, ME, 65001, ME), "tor-a")
INTERNAL = replace(EXTERNAL, spec=replace(EXTERNAL.spec, peer_as=65001))
UP = SessionStatus(SessionState.ESTABLISHED, 100.0, synced=True, peer_id=IPv4Address("1.1.1.1"))
DOWN = SessionStatus(SessionState.CONNECT, 100.0, "connection refused")


def up(peering: Peering = EXTERNAL, **more: Any) -> Seen:
    return replace(Seen(peering, UP, 30.0, received=5, advertised=2), **more)


def down(peering: Peering = EXTERNAL, **more: Any) -> Seen:
    return replace(Seen(peering, DOWN, 30.0), **more)


def told(seen: Seen) -> str:
    """All of the one diagnosis there must be."""
    (found,) = diagnose(seen)
    return f"{found.id} {found.cause}; {found.cure}"


def said(peering: Peering, code: int, subcode: int, by_us: bool = False) -> str:
    status = replace(DOWN, notification=Notification(code, subcode, by_us, 100.0))
    return told(down(peering, status=status, age=14.0))


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(up(), id="it does its work"),
        pytest.param(
            up(received=0, status=replace(UP, synced=False), age=3.0), id="it has only just come up"
        ),
        pytest.param(up(advertised=0), id="this node has nothing to announce"),
        pytest.param(
            up(replace(INTERNAL, source=Source.MESH), received=0, others=True),
            id="a mesh peer without blocks",
        ),
        pytest.param(up(INTERNAL, received=0), id="the only internal peer, and no other node"),
        pytest.param(down(age=2.0), id="it is coming up"),
        pytest.param(
            down(status=SessionStatus(SessionState.IDLE, 0.0, "not started yet")),
            id="it has not been started",
        ),
        pytest.param(
            down(age=2.0, status=replace(DOWN, notification=Notification(6, 4, False, 100.0))),
            id="reset by the peer",
        ),
        pytest.param(up(dropped=frozenset(Signature)), id="another session's signatures are wrong"),
    ],
)
def test_nothing_is_said_where_nothing_is_wrong(seen: Seen) -> None:
    assert diagnose(seen) == ()


def test_an_external_router_that_sends_nothing_lacks_an_export_policy() -> None:
    text = told(up(received=0))
    assert text.startswith("FAB1802 the router sends nothing: likely its export policy")
    assert "no bgp ebgp-requires-policy" in text


def test_an_internal_router_that_sends_nothing_does_not_reflect() -> None:
    assert "neighbor 10.1.0.1 route-reflector-client" in told(up(INTERNAL, received=0, others=True))


def test_prefixes_that_only_come_with_the_own_as_in_their_path_want_as_override_or_leave() -> None:
    text = told(up(looped=3))
    assert "3 prefixes of others refused, for this node's AS 65001 in the path" in text
    assert "neighbor 10.1.0.1 as-override" in text
    assert "1 prefix of others refused" in told(up(looped=1))
    assert "numAllowedLocalASNumbers: 1 in BGPPeer tor-a" in text


def test_next_hops_that_nothing_reaches_want_next_hop_self_of_an_internal_router() -> None:
    text = told(up(INTERNAL, unreached=4, next_hop=ip_address("10.99.0.9")))
    assert "4 prefixes cannot be used: the next hop (10.99.0.9)" in text
    assert "next-hop-self force" in text
    assert "next-hop-self" not in told(up(unreached=4, next_hop=ip_address("10.99.0.9")))


def test_why_nothing_goes_out_is_told() -> None:
    assert "FAB1803 nothing goes out: rejected by BGPFilter f, exportV4[0]" in told(
        up(advertised=0, withheld="rejected by BGPFilter f, exportV4[0]")
    )


@pytest.mark.parametrize(("received", "warned"), [(74, False), (75, True), (100, True)])
def test_three_quarters_of_the_limit_is_a_warning(received: int, warned: bool) -> None:
    found = diagnose(up(replace(EXTERNAL, max_prefixes=100), received=received))
    assert [d.id for d in found] == (["FAB1804"] if warned else [])
    assert diagnose(up(replace(EXTERNAL, max_prefixes=0), received=received)) == ()


def test_a_link_without_carrier_is_reason_enough() -> None:
    reset = replace(DOWN, notification=Notification(6, 4, True, 100.0))
    assert "its link eth1 has no carrier" in told(down(status=reset, dead_link="eth1"))


def test_a_session_closed_for_its_prefixes_says_how_to_open_it() -> None:
    text = told(down(status=replace(DOWN, state=SessionState.IDLE, idle_until=1000.0)))
    assert "more than 10000 prefixes" in text
    assert "fabricctl bgp reset 10.1.0.0" in text


def test_no_answer_names_address_firewall_and_md5() -> None:
    text = told(down())
    assert "no answer from 10.1.0.0 port 179: connection refused" in text
    for knob in (
        "address is wrong",
        "firewall",
        "MD5 differs: the router may have a password for this node",
    ):
        assert knob in text


def test_no_answer_since_this_node_changed_its_own_settings_is_no_answer() -> None:
    changed = replace(DOWN, notification=Notification(6, 6, True, 100.0))
    assert "MD5 differs" in told(down(status=changed))


@pytest.mark.parametrize(
    ("password", "dropped", "md5"),
    [
        ("", {Signature.UNEXPECTED}, True),
        ("", {Signature.MISSING, Signature.WRONG}, False),  # of another session
        ("hush", {Signature.WRONG}, True),
        ("hush", {Signature.MISSING}, True),
        ("hush", {Signature.UNEXPECTED}, False),
    ],
)
def test_md5_is_named_where_the_kernel_dropped_what_this_session_would_not_take(
    password: str, dropped: set[Signature], md5: bool
) -> None:
    peering = replace(EXTERNAL, spec=replace(EXTERNAL.spec, password=password))
    text = told(down(peering, dropped=frozenset(dropped)))
    assert ("the kernel drops" in text) == md5
    assert "hush" not in text


def test_with_gtsm_a_ttl_is_one_more_suspect_and_a_passive_end_waits() -> None:
    assert "a TTL below 255" in told(down(replace(EXTERNAL, spec=replace(EXTERNAL.spec, ttl_security=1))))
    passive = told(down(replace(EXTERNAL, spec=replace(EXTERNAL.spec, passive=True, listen_port=1790))))
    assert "waits for the peer to connect" in passive
    assert "10.1.0.1 port 1790" in passive


@pytest.mark.parametrize(
    ("code", "by_us", "text"),
    [
        ((2, 2), False, "must have remote AS 65001"),
        ((2, 2), True, "the peer's AS is not 65000: correct asNumber of BGPPeer tor-a"),
        ((2, 3), False, "two routers have the id 10.1.0.1"),
        ((6, 5), False, "does not know this node"),
        ((6, 3), False, "does not know this node"),
        ((6, 2), False, "shut down on the router"),
        ((6, 1), False, "raise its maximum"),
        ((4, 0), True, "nothing came from the peer for the hold time"),
        ((4, 0), False, "nothing came from this node for the hold time"),
        ((3, 11), False, "the peer ended it: malformed AS_PATH (3/11)"),
    ],
)
def test_a_notification_says_which_end_to_mend(code: tuple[int, int], by_us: bool, text: str) -> None:
    assert text in said(EXTERNAL, *code, by_us)


@pytest.mark.parametrize("by_us", [False, True])
@pytest.mark.parametrize("subcode", [4, 6, 7, 8, 9])
def test_after_an_end_that_both_come_back_from_only_silence_says_more(subcode: int, by_us: bool) -> None:
    ended = replace(DOWN, notification=Notification(6, subcode, by_us, 100.0))
    assert diagnose(down(status=ended, age=14.0)) == ()
    assert "no answer" in told(down(status=ended, age=15.0))


@pytest.mark.parametrize(
    ("code", "by_us"), [((4, 0), True), ((6, 6), False), ((6, 3), False), ((2, 2), False)]
)
def test_silence_after_a_notification_is_no_answer_and_the_notification_is_history(
    code: tuple[int, int], by_us: bool
) -> None:
    word = "sent" if by_us else "received"
    status = replace(DOWN, reason=f"notification {word} ({code[0]},{code[1]})")
    status = replace(status, notification=Notification(*code, by_us, 100.0))
    text = told(down(status=status, age=70.0))
    who = "this node" if by_us else "the peer"
    assert text.startswith(f"FAB1801 no answer from 10.1.0.0 port 179 (before that, {who} ended it: ")
    assert f"({code[0]}/{code[1]}))" in text
    assert f"notification {word}" not in text
    assert "a firewall is between" in text


def test_a_refusal_that_is_repeated_stays_the_diagnosis_however_long_it_is_down() -> None:
    status = replace(DOWN, notification=Notification(2, 2, False, at=690.0))
    assert "must have remote AS" in told(down(status=status, age=600.0))


def test_silence_of_a_router_that_shut_the_session_may_be_just_that() -> None:
    status = replace(DOWN, notification=Notification(6, 2, False, 100.0))
    assert "the router still keeps it shut" in told(down(status=status, age=70.0))


def test_a_notification_of_an_earlier_end_is_not_why_it_is_down_now() -> None:
    old = Notification(2, 2, False, at=10.0)
    assert "no answer" in told(down(status=replace(DOWN, notification=old)))
