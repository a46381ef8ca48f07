from ipaddress import ip_address

from bgp.speaker.outbox import WINDOW, Outbox

A, B, C = map(ip_address, ("10.0.0.2", "10.0.0.3", "2001:db8::2"))


def drain(outbox: Outbox) -> list[str]:
    """All that goes out when each line is answered at once."""
    lines = []
    while taken := list(outbox.take()):
        lines += taken
        for _ in taken:
            outbox.answered()
    return lines


def test_peers_come_in_turn_and_each_has_its_order() -> None:
    outbox = Outbox()
    outbox.put(A, ["a1", "a2", "a3"])
    outbox.put(B, ["b1"])
    outbox.put(C, ["c1", "c2"])
    outbox.put(B, ["b2"])
    assert drain(outbox) == ["a1", "b1", "c1", "a2", "b2", "c2", "a3"]


def test_no_more_are_under_way_than_the_window() -> None:
    outbox = Outbox()
    outbox.put(A, map(str, range(10)))
    assert len(list(outbox.take())) == WINDOW
    assert not list(outbox.take())
    outbox.answered()
    assert len(list(outbox.take())) == 1


def test_a_line_that_waits_for_nobody_counts_as_well_since_its_answer_looks_the_same() -> None:
    outbox = Outbox()
    outbox.put(A, map(str, range(10)))
    for _ in range(WINDOW + 1):
        outbox.gone_out()
    outbox.answered()
    assert not list(outbox.take())
    outbox.answered()
    assert len(list(outbox.take())) == 1


def test_what_waits_for_a_lost_peer_is_forgotten_and_nobody_else_s() -> None:
    outbox = Outbox()
    outbox.put(A, ["a1"])
    outbox.put(B, ["b1"])
    outbox.drop(A)
    outbox.drop(C)
    assert drain(outbox) == ["b1"]


def test_an_answer_too_many_makes_no_room() -> None:
    outbox = Outbox()
    outbox.answered()
    outbox.put(A, map(str, range(10)))
    assert len(list(outbox.take())) == WINDOW
