from bgp.diagnosis import Signature
from fabric.agent.md5 import LATELY, SignatureWatch


def watch() -> SignatureWatch:
    found = SignatureWatch()
    found.note({Signature.WRONG: 3, Signature.MISSING: 1}, 100.0)
    found.note({Signature.WRONG: 4, Signature.MISSING: 1}, 200.0)
    return found


def test_what_the_counters_were_at_first_is_nobodys_fault_and_a_rise_is_somebodys_for_a_while() -> None:
    assert watch().lately(210.0, since=0.0) == {Signature.WRONG}
    assert watch().lately(201.0 + LATELY, since=0.0) == set()


def test_what_was_dropped_before_a_session_went_down_is_not_its_fault() -> None:
    assert watch().lately(210.0, since=199.0) == {Signature.WRONG}
    assert watch().lately(210.0, since=201.0) == set()
