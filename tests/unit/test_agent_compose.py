"""Several producers' rules as one; what is the same stays the same object."""

from fabric.agent.compose import compose
from fabric.plan.tables import Place, Version
from policy import naming
from policy.form import IPSet, Line, Origin, Rendered

FORWARD = ("filter", "FORWARD")
DENIED = Origin("policy", "NetworkPolicy prod/web", "Ingress", 0)
ENDED = Origin("tier", "default", "Ingress")


def producer(name: str, *lines: Line, version: Version = 4, members: tuple[str, ...] = ()) -> Rendered:
    return Rendered(
        version,
        {("filter", f"fab-{name}"): lines},
        {FORWARD: (Line(f"-j fab-{name}"),)},
        {FORWARD: (Line(f"-j fab-{name}-end", ENDED),), ("filter", "INPUT"): ()},
        {f"fab{version}-{name}": IPSet("hash:net", version, frozenset(members))},
    )


POLICY = producer("policy", Line("-j DROP", DENIED), Line("-j ACCEPT"), members=("10.0.0.1",))
OTHER = producer("other", Line("-j RETURN"))


def test_hooks_stand_in_the_order_of_their_producers() -> None:
    found = compose([POLICY, OTHER])
    ruleset = found.rulesets[4]
    assert ruleset.first == {FORWARD: ("-j fab-policy", "-j fab-other")}
    assert ruleset.last[Place(*FORWARD)] == ("-j fab-policy-end", "-j fab-other-end")
    assert ruleset.chains == {
        ("filter", "fab-policy"): ("-j DROP", "-j ACCEPT"),
        ("filter", "fab-other"): ("-j RETURN",),
    }
    assert found.sets.keys() == {"fab4-policy", "fab4-other"}


def test_families_are_rulesets_of_their_own() -> None:
    found = compose([POLICY, producer("policy", version=6)])
    assert {version: len(ruleset.chains) for version, ruleset in found.rulesets.items()} == {4: 1, 6: 1}
    assert found.sets.keys() == {"fab4-policy", "fab6-policy"}


def test_a_rule_is_named_by_its_place() -> None:
    found = compose([POLICY, OTHER])
    chain = Place("filter", "fab-policy")
    assert found.origin(4, chain, 0) == DENIED
    assert found.origin(4, chain, 1) is None
    assert found.origin(4, chain, 2) is None
    assert found.origin(6, chain, 0) is None
    # In a chain of others, last ones go on where first ones end, as their counters do.
    assert [found.origin(4, Place(*FORWARD), index) for index in range(4)] == [None, None, ENDED, ENDED]


def test_what_is_logged_is_named_by_its_prefix() -> None:
    prefix = naming.prefix("deny", DENIED)
    chain = (Line(f"-j NFLOG --nflog-prefix {prefix}"), Line("-j DROP", DENIED))
    assert compose([producer("policy", *chain)]).logged[prefix] == DENIED
    assert compose([POLICY]).logged == {}


def test_what_is_the_same_stays_the_same_object() -> None:
    before = compose([POLICY, OTHER])
    again = compose([POLICY, OTHER], before)
    assert again == before
    assert again.sets is before.sets
    assert again.rulesets[4] is before.rulesets[4]
    equal = compose(
        [producer("policy", *POLICY.chains["filter", "fab-policy"], members=("10.0.0.1",)), OTHER], before
    )
    assert equal.sets is before.sets
    assert equal.rulesets[4] is before.rulesets[4]


def test_only_what_changed_is_another_object() -> None:
    before = compose([POLICY, OTHER])
    changed = producer("policy", Line("-j DROP", ENDED), members=("10.0.0.2",))
    after = compose([changed, OTHER], before)
    assert after == compose([changed, OTHER])
    other = Place("filter", "fab-other")
    assert after.rulesets[4].chains[other] is before.rulesets[4].chains[other]
    assert after.sets["fab4-other"] is before.sets["fab4-other"]
    assert after.sets["fab4-policy"].members == {"10.0.0.2"}


def test_another_origin_is_no_other_rule() -> None:
    before = compose([POLICY])
    renamed = producer("policy", Line("-j DROP", ENDED), Line("-j ACCEPT"), members=("10.0.0.1",))
    after = compose([renamed], before)
    assert after.rulesets[4] is before.rulesets[4]
    assert after.origin(4, Place("filter", "fab-policy"), 0) == ENDED


def test_what_nobody_wants_any_more_is_gone() -> None:
    before = compose([POLICY, OTHER, producer("policy", version=6)])
    assert compose([OTHER], before) == compose([OTHER])
    assert compose([], before) == compose([])
