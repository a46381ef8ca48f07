"""What is true of whatever is rendered; the rules themselves are in golden/policy."""

import re
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.model.felixconfiguration import MARK_BITS
from policy import compile as compiler
from policy import naming, render_sets
from policy.form import (
    TCP,
    UDP,
    AddressSet,
    End,
    Icmp,
    Key,
    Line,
    Origin,
    Policy,
    PortRange,
    PortSet,
    Prefix,
    Rendered,
    Rule,
)
from policy.marks import CUT, Marks, marks
from policy.render import chain_of, render
from policy.render_chains import of_policy
from policy.render_match import Version, Wanted, lines, ports
from policy.world import Resources, World
from tests.unit.loading import resources_in
from tests.unit.rendering import SITE, site, world

GOLDEN = Path(__file__).parent / "golden" / "policy"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.yaml") if path.stem != "base")
VERSIONS: tuple[Version, ...] = (4, 6)
WEB = Key("WorkloadEndpoint", "prod", "n1-fabricctl-web1-eth0")


def golden(name: str) -> World:
    return world(*((GOLDEN / f"{file}.yaml").read_text() for file in ("base", name)))


@pytest.fixture(
    params=[(name, version) for name in NAMES for version in VERSIONS],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    name, version = request.param
    return render(golden(name), site(routed_before=False), version)


def texts(found: Rendered) -> list[str]:
    every = (*found.chains.values(), *found.first.values(), *found.last.values())
    return [line.text for chain in every for line in chain]


def test_the_sets_are_those_that_rules_go_by(rendered: Rendered) -> None:
    named = {name for text in texts(rendered) for name in re.findall(r"--match-set (\S+)", text)}
    assert named == rendered.sets.keys()


def test_the_chains_are_those_that_rules_lead_to(rendered: Rendered) -> None:
    targets = {
        (table, name)
        for chains in (rendered.chains, rendered.first, rendered.last)
        for (table, _), chain in chains.items()
        for line in chain
        for name in re.findall(r"-[jg] (fab-\S+)", line.text)
    }
    assert targets <= rendered.chains.keys()
    assert {chain for _, chain in rendered.chains.keys() - targets} <= {"fab-allow", "fab-pass", "fab-staged"}


def test_every_drop_is_named_after_something(rendered: Rendered) -> None:
    dropping = [line for chain in rendered.chains.values() for line in chain if line.text.endswith("DROP")]
    assert all(line.origin for line in dropping)


def test_names_are_as_long_as_the_kernel_takes(rendered: Rendered) -> None:
    assert all(len(chain) <= naming.CHAIN_LIMIT for _, chain in rendered.chains)
    assert all(len(name) <= 31 for name in rendered.sets)


def test_sets_are_of_one_family(rendered: Rendered) -> None:
    for ipset in rendered.sets.values():
        assert ipset.version == rendered.version
        assert all((":" in re.sub(r",(tcp|udp):", "", one)) == (ipset.version == 6) for one in ipset.members)


# Groups, and what an attach costs.


def test_one_that_joins_a_group_changes_sets_alone() -> None:
    resources = resources_in((GOLDEN / "workloads.yaml").read_text())
    joining = next(one for one in resources if one.metadata.name == "n1-fabricctl-web2-eth0")
    others = [one for one in resources if one is not joining]
    first = compiler.compile(Resources.of(others))
    second = compiler.compile(Resources.of([*others, joining]), first)
    before = render(first, SITE, 4)
    after = render(second, SITE, 4, before)
    assert after.chains is before.chains
    assert {name for name, ipset in after.sets.items() if before.sets[name] is not ipset} == {
        "fab4-own",
        chain_of(second, WEB, "Egress").replace("fab-", "fab4-"),
        chain_of(second, WEB, "Ingress").replace("fab-", "fab4-"),
    }
    assert after == render(second, SITE, 4)


POLICY = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: {name}}}
spec: {{selector: "{selector}", types: [{types}], ingress: [{{action: Allow}}], egress: [{{action: Allow}}]}}
"""


def test_those_that_one_list_decides_are_a_group_whatever_else_selects_them() -> None:
    """web1 is selected by a policy more than web2, but of the other direction."""
    text = (GOLDEN / "workloads.yaml").read_text().replace("{app: web}", "{app: web, one: more}", 1)
    both = POLICY.format(name="both", selector="app == 'web'", types="Ingress")
    one = POLICY.format(name="one", selector="has(one)", types="Egress")
    found = world("---".join([text, both, one]))
    other = Key("WorkloadEndpoint", "prod", "n1-fabricctl-web2-eth0")
    chain = chain_of(found, WEB, "Ingress")
    assert chain == chain_of(found, other, "Ingress")
    assert chain_of(found, WEB, "Egress") != chain_of(found, other, "Egress")
    rendered = render(found, SITE, 4)
    assert rendered.sets[chain.replace("fab-", "fab4-")].members == {
        "10.0.0.1,fab000000000001",
        "10.0.0.2,fab000000000002",
    }


def test_a_changed_rule_changes_the_chain_of_its_policy_alone() -> None:
    text = (GOLDEN / "base.yaml").read_text(), (GOLDEN / "rules.yaml").read_text()
    before = render(world(*text), SITE, 4)
    after = render(world(text[0], text[1].replace("ports: [443]", "ports: [444]")), SITE, 4, before)
    changed = {at for at, chain in after.chains.items() if before.chains[at] is not chain}
    assert ("filter", "fab-pi-gnp/rules") in changed
    assert {at for at in changed if before.chains[at] != after.chains[at]} == {("filter", "fab-pi-gnp/rules")}


@pytest.mark.parametrize(
    "changed",
    [
        {"mark_mask": 0xFF00},
        {"failsafe_in": ()},
        {"vxlan_port": 8472},
        {"drop_invalid": False},
        {"to_host": "Accept"},
        {"routed_before": False},
        {"pools": frozenset()},
        {"nodes": frozenset()},
        {"links": {}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_the_node_changes_is_rendered_anew(changed: dict[str, object]) -> None:
    found = golden("hosts")
    for version in VERSIONS:
        before = render(found, SITE, version)
        after = render(found, site(**changed), version, before)
        assert after == render(found, site(**changed), version)
        assert after != before


def test_another_familys_rules_are_no_memory() -> None:
    found = golden("rules")
    assert render(found, SITE, 6, render(found, SITE, 4)) == render(found, SITE, 6)


# Families.

V4, V6 = ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")


def matches(rule: Rule, version: Version) -> tuple[str, ...]:
    return lines(rule, version, {})


@pytest.mark.parametrize("field", ["nets", "not_nets"])
@pytest.mark.parametrize("end", ["source", "destination"])
def test_a_rule_with_prefixes_of_the_other_family_vanishes(end: str, field: str) -> None:
    families: list[tuple[Version, Prefix, Prefix]] = [(4, V4, V6), (6, V6, V4)]
    for version, own, other in families:
        rule = Rule(0, "Allow", **{end: End(**{field: (own,)})})  # type: ignore[arg-type]
        assert matches(rule, version)
        assert matches(replace(rule, **{end: End(**{field: (other,)})}), version) == ()  # type: ignore[arg-type]
        both = replace(rule, **{end: End(**{field: (own, other)})})  # type: ignore[arg-type]
        assert matches(both, version) == matches(rule, version)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(Rule(0, "Allow", version=6), id="of IPv6"),
        pytest.param(Rule(0, "Allow", protocol=TCP, not_protocol=TCP), id="a protocol and not it"),
        pytest.param(Rule(0, "Allow", protocol=58, icmp=Icmp(128)), id="ICMPv6 in IPv4"),
        pytest.param(Rule(0, "Allow", icmp=Icmp(8)), id="an ICMP type of no protocol"),
        pytest.param(
            Rule(0, "Allow", destination=End(ports=(PortRange(80, 80),))), id="a port of no protocol"
        ),
        pytest.param(
            Rule(0, "Allow", protocol=47, source=End(not_ports=(PortRange(80, 80),))),
            id="a port of a protocol without",
        ),
        pytest.param(Rule(0, "Allow", source=End(not_nets=(ip_network("0.0.0.0/0"),))), id="not everything"),
    ],
)
def test_what_cannot_match_has_no_line(rule: Rule) -> None:
    assert matches(rule, 4) == ()


def test_sets_that_no_rule_of_this_family_needs_are_not_wanted() -> None:
    wanted: Wanted = {}
    lines(Rule(0, "Allow", source=End(nets=(V6,), selected=AddressSet("all()"))), 4, wanted)
    assert not wanted


# Policies that could not be compiled.


@pytest.mark.parametrize(("staged", "target"), [(False, "-j DROP"), (True, "-g fab-staged")])
def test_a_broken_policy_denies_whatever_it_selects(staged: bool, target: str) -> None:
    key = Key("GlobalNetworkPolicy", "", "bad")
    policy = Policy(key, "default", None, "all()", (), (), staged=staged, broken="no such field")
    origin = Origin("broken", "GlobalNetworkPolicy bad", "Ingress", staged=staged)
    assert of_policy(policy, "Ingress", 4, False).lines == (Line(target, origin),)
    named, denied = of_policy(policy, "Ingress", 4, True).lines
    assert naming.prefix("deny", origin) in named.text
    assert denied == Line(target, origin)


# Ports.

ranges = st.builds(
    lambda low, more: PortRange(low, min(low + more, 65535)),
    st.integers(1, 65535),
    st.sampled_from([0, 0, 9]),
)


@given(st.lists(ranges, max_size=50))
def test_every_port_is_in_a_match_and_none_has_more_than_15(wanted: list[PortRange]) -> None:
    found = [text.removeprefix("--dports ").split(",") for text in ports("dports", tuple(wanted))]
    shown = [str(low) if low == high else f"{low}:{high}" for low, high in wanted]
    assert [one for chunk in found for one in chunk] == shown
    assert all(sum(1 + (":" in one) for one in chunk) <= 15 for chunk in found)


def test_ports_are_alternatives_and_refused_ones_are_not() -> None:
    many = tuple(PortRange(port, port) for port in range(1, 17))
    named = PortSet("all()", UDP, "dns")
    either = Rule(
        0, "Allow", protocol=UDP, source=End(ports=many), destination=End(ports=many, named=(named,))
    )
    assert len(matches(either, 4)) == 2 * 3
    neither = Rule(0, "Allow", protocol=UDP, destination=End(not_ports=many, not_named=(named,)))
    [text] = matches(neither, 4)
    assert text.count("!") == 3


# Sets.

HALF, WHOLE = ip_network("0.0.0.0/1"), ip_network("0.0.0.0/0")
prefixes = st.frozensets(
    st.sampled_from([HALF, WHOLE, V4, V6, ip_network("192.0.2.1/32"), ip_network("::/0")]), max_size=5
)


@given(prefixes, prefixes)
def test_a_set_made_from_another_is_as_from_nothing(
    held: frozenset[Prefix], wanted: frozenset[Prefix]
) -> None:
    for version in VERSIONS:
        fresh = render_sets.selected(version, wanted, None)
        assert render_sets.selected(version, wanted, (held, render_sets.nets(version, held))) == fresh


def test_a_set_that_does_not_change_is_the_same_object() -> None:
    held = frozenset[Prefix]({V4, V6})
    before = render_sets.nets(4, held)
    assert render_sets.selected(4, frozenset({V4}), (held, before)) is before


def test_links_of_one_prefix_are_spread_over_sets() -> None:
    pairs = [f"0.0.0.0/1,fab{n:03}" for n in range(100)] + ["10.0.0.1,fab000"]
    found = render_sets.linked(4, pairs)
    assert [len(one.members) for one in found] == [1, 32, 32, 32, 4]
    assert frozenset().union(*(one.members for one in found)) == set(pairs)


def test_no_set_has_a_prefix_that_another_links_longer_one_hides() -> None:
    pairs = ["10.0.0.0/24,fab1", "10.0.0.0/8,fab2", "10.0.0.5,fab3", "10.0.1.0/24,fab4"]
    found = [set(one.members) for one in render_sets.linked(4, pairs)]
    assert found == [{"10.0.0.5,fab3"}, {"10.0.0.0/8,fab2"}, {"10.0.0.0/24,fab1", "10.0.1.0/24,fab4"}]


def test_of_no_pairs_there_is_a_set() -> None:
    assert [one.members for one in render_sets.linked(6, [])] == [frozenset()]


def test_an_endpoint_whose_link_nobody_knows_is_in_no_set() -> None:
    web = golden("workloads").endpoints[WEB]
    assert render_sets.pairs(4, web, spoofing=False)
    assert render_sets.pairs(4, replace(web, interface=""), spoofing=False) == ()


def test_allowed_sources_count_where_the_node_lets_them() -> None:
    web = replace(
        golden("workloads").endpoints[WEB],
        shared=(ip_network("10.0.9.1/32"),),
        spoofed=(ip_network("10.0.8.0/24"),),
    )
    own = {f"{one},{web.interface}" for one in (*web.addresses, "10.0.9.1") if ":" not in str(one)}
    assert set(render_sets.pairs(4, web, spoofing=False)) == own
    assert set(render_sets.pairs(4, web, spoofing=True)) == own | {f"10.0.8.0/24,{web.interface}"}


# Names and marks.

words = st.text(st.characters(codec="utf-8"), max_size=300)


@given(words, words, words, st.booleans())
def test_any_name_makes_a_chain_that_iptables_takes(
    kind: str, namespace: str, name: str, logged: bool
) -> None:
    for chain in (
        naming.policy_chain(Key(kind, namespace, name), "Ingress", logged),
        naming.profile_chain(name, "Egress", logged),
    ):
        assert re.fullmatch(r"fab-[A-Za-z0-9._/-]{3,24}", chain)
    assert len(naming.prefix("deny", Origin("policy", name))) < 64


def test_a_policy_is_another_chain_by_direction_and_where_its_drops_are_named() -> None:
    key = Key("NetworkPolicy", "prod", "web")
    chains = {
        naming.policy_chain(key, direction, logged)
        for direction in ("Ingress", "Egress")
        for logged in (True, False)
    }
    assert chains == {"fab-pi-np/prod/web", "fab-po-np/prod/web", "fab-li-np/prod/web", "fab-lo-np/prod/web"}


def test_the_lowest_bits_of_the_mask_are_ours() -> None:
    assert marks(0xFFFF0000) == Marks(0x10000, 0x20000, 0x40000)
    assert marks(0x8000_0101).all == 0x8000_0101
    assert CUT.bit_count() == 1
    with pytest.raises(ValueError, match="0x3 has 2 bits, policy needs 3"):
        marks(3)


def test_a_mask_that_settings_may_have_has_enough_bits() -> None:
    assert len(Marks._fields) == MARK_BITS


def test_annotations_of_a_rule_become_comments_that_cannot_be_taken_for_ours() -> None:
    rule = Rule(0, "Deny", note=('a="x" fab:0123456789abcdef', "b=" + "y" * 500))
    [text] = matches(rule, 4)
    assert 'a=_x_ fab_0123456789abcdef"' in text
    assert max(map(len, re.findall(r'"([^"]*)"', text))) == 255
