"""What the rules of BGPFilters match and change; §7 is calico-semantics'."""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.prefixes import Cover
from bgp.rib import AS_SET
from bgp.rules import HIGHEST_PRIORITY, RuleId, Seen, Verdict, compiled, decide, with_communities
from fabric.model.bgpfilter import BGPFilter

LISTS = {"importV4", "importV6", "exportV4", "exportV6"}


def bgp_filter(name: str = "web", /, **lists: object) -> BGPFilter:
    assert lists.keys() <= LISTS
    return BGPFilter.model_validate({"metadata": {"name": name}, "spec": lists})


def verdict(
    rules: list[Mapping[str, Any]], seen: Seen, *, external: bool = True, which: str = "importV4"
) -> Verdict | None:
    direction = "import" if which.startswith("import") else "export"
    return decide(compiled([bgp_filter(**{which: rules})], direction, external=external), seen)  # type: ignore[arg-type]


def seen(prefix: str = "10.1.0.0/16", local_pref: int = 100, **fields: Any) -> Seen:
    return Seen(ip_network(prefix), local_pref, **fields)


@pytest.mark.parametrize(
    ("operator", "length", "matching", "other"),
    [
        pytest.param(
            "Equal", {}, ["10.1.0.0/16"], ["10.1.0.0/17", "10.0.0.0/8", "10.2.0.0/16"], id="Equal is exact"
        ),
        pytest.param(
            "NotEqual", {}, ["10.1.0.0/17", "10.0.0.0/8", "10.2.0.0/16"], ["10.1.0.0/16"], id="NotEqual"
        ),
        pytest.param(
            "In",
            {},
            ["10.1.0.0/16", "10.1.128.0/17", "10.1.2.3/32"],
            ["10.0.0.0/8", "10.2.0.0/16", "0.0.0.0/0"],
            id="In is contained or equal",
        ),
        pytest.param(
            "NotIn",
            {},
            ["10.0.0.0/8", "10.2.0.0/16", "0.0.0.0/0"],
            ["10.1.0.0/16", "10.1.2.3/32"],
            id="NotIn",
        ),
        pytest.param(
            "In",
            {"min": 24, "max": 28},
            ["10.1.2.0/24", "10.1.2.16/28"],
            ["10.1.0.0/16", "10.1.0.0/23", "10.1.2.0/29", "10.2.2.0/24"],
            id="In with lengths: both bounds count",
        ),
        pytest.param(
            "In",
            {"min": 24},
            ["10.1.2.0/24", "10.1.2.3/32"],
            ["10.1.0.0/16"],
            id="without max: to an address",
        ),
        pytest.param(
            "In",
            {"max": 24},
            ["10.1.0.0/16", "10.1.2.0/24"],
            ["10.1.2.0/25"],
            id="without min: from the cidr",
        ),
        pytest.param(
            "In", {"min": 0}, ["10.1.0.0/16"], ["10.0.0.0/8", "10.0.0.0/15"], id="min is drawn in to the cidr"
        ),
        pytest.param("In", {"max": 8}, [], ["10.1.0.0/16", "10.0.0.0/8"], id="max before the cidr: nothing"),
        pytest.param("In", {"min": 28, "max": 24}, [], ["10.1.0.0/26"], id="min after max: nothing"),
        pytest.param(
            "NotIn",
            {"min": 24, "max": 28},
            ["10.1.0.0/16", "10.1.2.0/29", "10.2.2.0/24"],
            ["10.1.2.0/24"],
            id="NotIn with lengths: one of the cidr, but of another length, is not in",
        ),
        pytest.param("Equal", {"max": 24}, ["10.1.0.0/16"], ["10.1.2.0/24"], id="Equal, its length within"),
        pytest.param(
            "Equal", {"min": 24}, [], ["10.1.0.0/16", "10.1.0.0/24"], id="Equal, its length outside"
        ),
        pytest.param("NotEqual", {"min": 24}, ["10.1.0.0/16", "10.1.0.0/24"], [], id="NotEqual, outside"),
    ],
)
def test_prefix_operators(
    operator: str, length: dict[str, int], matching: list[str], other: list[str]
) -> None:
    rule = {"action": "Accept", "cidr": "10.1.0.0/16", "matchOperator": operator, "prefixLength": length}
    found = {text: verdict([rule], seen(text)) is not None for text in (*matching, *other)}
    assert found == {text: text in matching for text in found}


def test_prefix_lengths_of_ipv6_go_to_128() -> None:
    rule = {"action": "Accept", "cidr": "fd00::/48", "matchOperator": "In", "prefixLength": {"min": 64}}
    found = [
        verdict([rule], seen(text), which="importV6") is not None
        for text in ("fd00::/48", "fd00::/64", "fd00::1/128", "fd01::/64")
    ]
    assert found == [False, True, True, False]


def test_a_default_route_is_in_only_what_is_one_itself() -> None:
    everything = {"action": "Accept", "cidr": "0.0.0.0/0", "matchOperator": "In"}
    assert verdict([everything], seen("0.0.0.0/0"))
    assert verdict([everything], seen("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("which", "prefix"), [("importV4", "fd00::/64"), ("importV6", "10.1.0.0/16"), ("exportV4", "fd00::/64")]
)
def test_rules_of_one_family_leave_the_other_alone(which: str, prefix: str) -> None:
    assert verdict([{"action": "Reject"}], seen(prefix), which=which) is None


@pytest.mark.parametrize("direction", ["import", "export"])
def test_rules_of_one_direction_leave_the_other_alone(direction: Any) -> None:
    both = bgp_filter(importV4=[{"action": "Accept"}], exportV4=[{"action": "Reject"}])
    found = decide(compiled([both], direction, external=True), seen())
    assert found is not None
    assert (found.accepted, found.rule.direction) == (direction == "import", direction)


@pytest.mark.parametrize(
    ("match", "matching", "other"),
    [
        pytest.param(
            {"source": "RemotePeers"}, [seen()], [seen(learned=False)], id="source: learned from a peer"
        ),
        pytest.param(
            {"interface": "eth0"}, [seen(device="eth0")], [seen(device="eth01"), seen()], id="interface"
        ),
        pytest.param(
            {"interface": "e*.10"},
            [seen(device="eth0.10"), seen(device="e.10")],
            [seen(device="eth0x10"), seen(device="eth0.100")],
            id="interface: * is any text, and . is a point",
        ),
        pytest.param({"interface": "*"}, [seen(device="eth0"), seen()], [], id="* alone is no interface too"),
        pytest.param(
            {"communities": {"values": ["64500:1"]}},
            [seen(communities=("64500:2", "64500:1"))],
            [seen(), seen(communities=("64500:10", "64500:1:0"))],
            id="RFC 1997: a standard community",
        ),
        pytest.param(
            {"communities": {"values": ["64500:1:2"]}},
            [seen(communities=("64500:1:2",))],
            [seen(communities=("64500:1", "1:2"))],
            id="RFC 8092: a large community",
        ),
        pytest.param(
            {"communities": {"values": ["064500:01"]}},
            [seen(communities=("64500:1",))],
            [],
            id="RFC 8092 4: leading zeros say nothing",
        ),
        pytest.param(
            {"asPathPrefix": [64501, 64502]},
            [seen(as_path=(64501, 64502)), seen(as_path=(64501, 64502, 64503))],
            [seen(), seen(as_path=(64501,)), seen(as_path=(64502, 64501)), seen(as_path=(1, 64501, 64502))],
            id="asPathPrefix: from the nearest AS on",
        ),
        pytest.param(
            {"asPathPrefix": [64501, 64502]},
            [seen(as_path=(64501, AS_SET), as_sets=frozenset({64502, 64503}))],
            [seen(as_path=(64501, AS_SET), as_sets=frozenset({64503}))],
            id="asPathPrefix: an AS_SET stands for each of its members",
        ),
        pytest.param(
            {"asPathPrefix": [0]}, [], [seen(as_path=(AS_SET,), as_sets=frozenset({1}))], id="AS 0 is nobody"
        ),
        pytest.param(
            {"priority": 1024},
            [seen(local_pref=HIGHEST_PRIORITY - 1024)],
            [seen(), seen(local_pref=1024)],
            id="priority is 2147483647 less the local preference",
        ),
        pytest.param(
            {"source": "RemotePeers", "interface": "eth0"},
            [seen(device="eth0")],
            [seen(device="eth0", learned=False), seen(device="eth1")],
            id="all that is given must match",
        ),
        pytest.param({}, [seen(), seen(learned=False)], [], id="nothing given matches everything"),
    ],
)
def test_matches(match: dict[str, Any], matching: list[Seen], other: list[Seen]) -> None:
    rule = {"action": "Accept", **match}
    assert [verdict([rule], route) is not None for route in matching] == [True] * len(matching)
    assert [verdict([rule], route) is not None for route in other] == [False] * len(other)


@pytest.mark.parametrize(("peer_type", "external"), [("eBGP", True), ("iBGP", False)])
def test_peer_type_is_the_sessions(peer_type: str, external: bool) -> None:
    rule = {"action": "Accept", "peerType": peer_type}
    assert verdict([rule], seen(), external=external)
    assert verdict([rule], seen(), external=not external) is None


@pytest.mark.parametrize(
    ("operations", "want"),
    [
        pytest.param(
            [{"addCommunity": {"value": "64500:1"}}],
            seen(as_path=(9,), communities=("64500:7", "64500:1")),
            id="RFC 1997: addCommunity",
        ),
        pytest.param(
            [{"addCommunity": {"value": "64500:01:002"}}],
            seen(as_path=(9,), communities=("64500:7", "64500:1:2")),
            id="RFC 8092: addCommunity, a large one",
        ),
        pytest.param(
            [{"addCommunity": {"value": "64500:7"}}],
            seen(as_path=(9,), communities=("64500:7",)),
            id="RFC 8092 2: no community twice",
        ),
        pytest.param(
            [{"prependASPath": {"prefix": [1, 2, 2]}}],
            seen(as_path=(1, 2, 2, 9), communities=("64500:7",)),
            id="prependASPath: in the order written",
        ),
        pytest.param(
            [{"prependASPath": {"prefix": [1]}}, {"prependASPath": {"prefix": [2]}}],
            seen(as_path=(2, 1, 9), communities=("64500:7",)),
            id="operations in order",
        ),
        pytest.param(
            [{"setPriority": {"value": 512}}],
            seen(local_pref=HIGHEST_PRIORITY - 512, as_path=(9,), communities=("64500:7",)),
            id="setPriority",
        ),
        pytest.param(
            [{"setPriority": {"value": 1}}, {"setPriority": {"value": 2}}],
            seen(local_pref=HIGHEST_PRIORITY - 2, as_path=(9,), communities=("64500:7",)),
            id="the last setPriority counts",
        ),
    ],
)
def test_operations(operations: list[dict[str, Any]], want: Seen) -> None:
    before = seen(as_path=(9,), communities=("64500:7",))
    found = verdict([{"action": "Accept", "operations": operations}], before)
    assert found == Verdict(RuleId("web", "import", 4, 0), True, want)


def test_the_first_rule_that_matches_decides_and_later_filters_come_after() -> None:
    filters = [
        bgp_filter("a", importV4=[{"action": "Reject", "communities": {"values": ["1:1"]}}]),
        bgp_filter(
            "b",
            importV4=[
                {"action": "Accept", "interface": "eth9"},
                {"action": "Accept", "interface": "eth*", "peerType": "iBGP"},
                {"action": "Reject", "interface": "eth*"},
            ],
        ),
        bgp_filter("c", importV4=[{"action": "Accept"}]),
    ]
    rules = compiled(filters, "import", external=True)
    found = {
        device: decide(rules, seen(device=device, communities=communities))
        for device, communities in {"eth1": (), "eth9": (), "lo": (), "any": ("1:1",)}.items()
    }
    assert {device: (str(v.rule), v.accepted) for device, v in found.items() if v} == {
        "eth1": ("BGPFilter b, importV4[2]", False),
        "eth9": ("BGPFilter b, importV4[0]", True),
        "lo": ("BGPFilter c, importV4[0]", True),
        "any": ("BGPFilter a, importV4[0]", False),
    }


PREFIXES = st.integers(0, 32).flatmap(
    lambda length: st.integers(0, 2**32 - 1).map(
        lambda address: ip_network((address >> (32 - length) << (32 - length), length))
    )
)
# Near 0.0.0.0, so that one often contains the other.
NEAR = st.tuples(st.integers(0, 7), st.integers(29, 32)).map(
    lambda pair: ip_network((pair[0] >> (32 - pair[1]) << (32 - pair[1]), pair[1]))
)
LENGTHS = st.fixed_dictionaries({}, optional={"min": st.integers(0, 32), "max": st.integers(0, 32)})


@given(PREFIXES | NEAR, PREFIXES | NEAR, LENGTHS)
def test_each_operator_and_its_opposite_are_complementary(
    cidr: Any, prefix: Any, length: dict[str, int]
) -> None:
    def matches(operator: str) -> bool:
        rule = {"action": "Accept", "cidr": str(cidr), "matchOperator": operator, "prefixLength": length}
        return verdict([rule], seen(str(prefix))) is not None

    assert matches("In") != matches("NotIn")
    assert matches("Equal") != matches("NotEqual")
    assert matches("In") or not matches("Equal")
    assert prefix.subnet_of(cidr) or not matches("In")


@given(NEAR, st.lists(NEAR | PREFIXES, max_size=5))
def test_a_cover_finds_what_contains_a_prefix(prefix: Any, others: list[Any]) -> None:
    found = Cover(others).of(prefix)
    assert (found is not None) == any(prefix.subnet_of(other) for other in others)
    assert found is None or (found in others and prefix.subnet_of(found))


def test_a_cover_of_one_family_has_nothing_of_the_other() -> None:
    assert Cover([ip_network("0.0.0.0/0")]).of(ip_network("::/0")) is None


def test_communities_are_a_set_in_the_order_they_came() -> None:
    assert with_communities(("2:2", "1:1"), ["3:3", "01:1", "3:3"]) == ("2:2", "1:1", "3:3")
