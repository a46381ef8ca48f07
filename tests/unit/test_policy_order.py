import pytest

from policy.form import Key, Policy
from policy.order import TierForm, head, ordered
from tests.unit.policing import tier


def of(
    tier: str, order: float | None, name: str, namespace: str = "", kind: str = "GlobalNetworkPolicy"
) -> Policy:
    return Policy(Key(kind, namespace, name), tier, order, "all()", (), ())


def names(found: tuple[TierForm, ...]) -> list[str]:
    return [each.name for each in found]


BUILT_IN = ["kube-admin", "default", "kube-baseline"]


def test_three_tiers_are_always_there() -> None:
    assert [(t.name, t.order, t.default) for t in ordered((), ())] == [
        ("kube-admin", 1_000, "Pass"),
        ("default", 1_000_000, "Deny"),
        ("kube-baseline", 10_000_000, "Pass"),
    ]


@pytest.mark.parametrize(
    ("tiers", "want"),
    [
        pytest.param([tier("z", 5), tier("a", 10)], ["z", "a", *BUILT_IN], id="by order"),
        pytest.param([tier("b", 5), tier("a", 5.0)], ["a", "b", *BUILT_IN], id="then by name"),
        pytest.param([tier("a"), tier("z", 2e7)], [*BUILT_IN, "z", "a"], id="no order is last"),
        pytest.param([tier("a", -1), tier("b", 0.5)], ["a", "b", *BUILT_IN], id="negative and broken orders"),
        pytest.param([tier("default", 1_000_000)], BUILT_IN, id="a resource of a built-in one adds nothing"),
    ],
)
def test_tiers_are_in_order(tiers: list[object], want: list[str]) -> None:
    assert names(ordered(map(head, tiers), ())) == want  # type: ignore[arg-type]


def test_a_tier_that_only_policies_name_is_behind_all_and_denies() -> None:
    found = ordered([head(tier("last"))], [of("ghost", 1, "x"), of("another", 1, "y")])
    assert names(found) == [*BUILT_IN, "last", "another", "ghost"]
    assert [(t.default, t.exists) for t in found[-3:]] == [("Deny", True), ("Deny", False), ("Deny", False)]


def test_a_tier_keeps_its_default() -> None:
    found = ordered([head(tier("a", 1, "Pass"))], [of("a", 1, "x")])
    assert (found[0].name, found[0].default, len(found[0].policies)) == ("a", "Pass", 1)


def test_policies_of_one_tier_are_by_order_then_by_name_namespace_and_kind() -> None:
    want = [
        of("default", -1, "z"),
        of("default", 1.5, "z"),
        of("default", 10, "a-b"),  # "-" is less than the "/" behind a name
        of("default", 10, "a", "", "GlobalNetworkPolicy"),
        of("default", 10, "a", "", "StagedGlobalNetworkPolicy"),
        of("default", 10, "a", "ns", "NetworkPolicy"),
        of("default", 10, "a", "ns", "StagedNetworkPolicy"),
        of("default", 10, "b", "aa", "NetworkPolicy"),
        of("default", None, "a"),
        of("default", None, "b"),
    ]
    assert list(ordered((), reversed(want))[1].policies) == want
