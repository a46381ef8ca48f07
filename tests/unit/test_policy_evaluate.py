"""What becomes of packets: one list, and from end to end. Each world is the files that an operator has."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from policy import words
from policy.evaluate import Passage, evaluate, verdicts
from policy.form import ICMP, TCP, UDP, Icmp, Key, Packet
from policy.scene import Scene
from tests.unit.scenes import sent, stage, workload

WEB = workload("shop/web", "app: web", address="10.0.0.1/32")
DB = workload("shop/db", "app: db", address="10.0.0.2/32")
FAR = workload("shop/far", "app: far", node="n2", address="10.0.1.1/32")
ENDS = (WEB, DB, FAR)


def policy(
    rules: str, *, name: str = "p", tier: str = "default", order: int = 1, kind: str = "", more: str = ""
) -> str:
    return f"""
kind: {kind}GlobalNetworkPolicy
metadata: {{name: {name}}}
spec: {{tier: {tier}, order: {order}, selector: app == 'db', ingress: [{rules}]{more}}}
"""


def tier(name: str, order: int, default: str = "Deny") -> str:
    return f"""
kind: Tier
metadata: {{name: {name}}}
spec: {{order: {order}, defaultAction: {default}}}
"""


def by(passage: Passage) -> list[str]:
    """Who said what at each end."""
    return [
        f"{'allow' if one.verdict.allowed else 'deny'} by {words.of_origin(one.verdict.origin)}"
        if one.verdict.origin
        else "goes on"
        for one in passage.asked
    ]


def to_db(*texts: str, asked: str = "tcp/80", source: str = "shop/web") -> str:
    """What the database's ingress says to a packet from `source`."""
    return by(sent(stage(*ENDS, *texts), source, "shop/db", asked))[-1]


KNS = "allow by Profile kns.shop ingress rule 0"
P0, P1 = "GlobalNetworkPolicy p ingress rule 0", "GlobalNetworkPolicy p ingress rule 1"
LATER = tier("later", 2_000_000)
FIRST = tier("first", 10)


@pytest.mark.parametrize(
    ("texts", "want"),
    [
        pytest.param([], KNS, id="nothing selects it: its namespace's profile allows"),
        pytest.param([policy("{action: Allow}")], f"allow by {P0}", id="allow"),
        pytest.param([policy("{action: Deny}")], f"deny by {P0}", id="deny"),
        pytest.param([policy("")], "deny by end of tier default", id="no rules: the end of the tier"),
        pytest.param([policy("{action: Log}, {action: Allow}")], f"allow by {P1}", id="log goes on"),
        pytest.param([policy("{action: Log}")], "deny by end of tier default", id="log decides nothing"),
        pytest.param([policy("{action: Pass}")], KNS, id="passed out of the last tier: profiles"),
        pytest.param(
            [policy("{action: Pass}"), policy("{action: Deny}", name="q", order=2)],
            KNS,
            id="pass leaves the tier, not the policy",
        ),
        pytest.param(
            [FIRST, policy("{action: Pass}", tier="first"), policy("{action: Deny}", name="q")],
            "deny by GlobalNetworkPolicy q ingress rule 0",
            id="pass asks the next tier",
        ),
        pytest.param(
            [tier("first", 10, "Pass"), policy("{action: Deny, protocol: UDP}", tier="first")],
            KNS,
            id="end of a tier that passes",
        ),
        pytest.param(
            [FIRST, policy("", tier="first", more=", types: [Egress]")],
            KNS,
            id="a tier that has nothing for this direction is not asked",
        ),
        pytest.param([policy("{action: Deny}", kind="Staged")], KNS, id="staged decides nothing"),
        pytest.param([policy("", kind="Staged")], KNS, id="nor does the end of a tier of staged ones"),
        pytest.param(
            [policy("{action: Allow}", kind="Staged"), policy("", name="q")],
            "deny by end of tier default",
            id="a staged one does not keep the tier's end from denying",
        ),
    ],
)
def test_the_order_of_asking(texts: list[str], want: str) -> None:
    assert to_db(*texts) == want


@pytest.mark.parametrize(
    ("rules", "asked", "matches"),
    [
        ("{action: Allow, protocol: TCP}", "tcp/1", True),
        ("{action: Allow, protocol: TCP}", "udp/1", False),
        ("{action: Allow, notProtocol: TCP}", "udp/1", True),
        ("{action: Allow, notProtocol: TCP}", "tcp/1", False),
        ("{action: Allow, protocol: 47}", "47", True),
        ("{action: Allow, protocol: TCP, destination: {ports: [80, '90:99']}}", "tcp/80", True),
        ("{action: Allow, protocol: TCP, destination: {ports: [80, '90:99']}}", "tcp/99", True),
        ("{action: Allow, protocol: TCP, destination: {ports: [80, '90:99']}}", "tcp/89", False),
        ("{action: Allow, protocol: TCP, destination: {notPorts: [80]}}", "tcp/80", False),
        ("{action: Allow, protocol: TCP, destination: {notPorts: [80]}}", "tcp/81", True),
        ("{action: Allow, protocol: TCP, destination: {ports: ['1:99'], notPorts: [80]}}", "tcp/80", False),
        ("{action: Allow, protocol: TCP, source: {ports: [49152]}}", "tcp/80", True),
        ("{action: Allow, protocol: ICMP, icmp: {type: 8}}", "icmp", True),
        ("{action: Allow, protocol: ICMP, icmp: {type: 8, code: 1}}", "icmp", False),
        ("{action: Allow, protocol: ICMP, notICMP: {type: 8}}", "icmp/0", True),
        ("{action: Allow, protocol: ICMP, notICMP: {type: 8}}", "icmp/8/3", False),
        ("{action: Allow, ipVersion: 4}", "tcp/1", True),
        ("{action: Allow, ipVersion: 6}", "tcp/1", False),
        ("{action: Allow, source: {nets: [10.0.0.0/24]}}", "tcp/1", True),
        ("{action: Allow, source: {nets: [10.9.0.0/24, 10.8.0.0/24]}}", "tcp/1", False),
        ("{action: Allow, source: {notNets: [10.0.0.0/24]}}", "tcp/1", False),
        ("{action: Allow, source: {notNets: [10.9.0.0/24]}}", "tcp/1", True),
        ("{action: Allow, source: {nets: [2001:db8::/32]}}", "tcp/1", False),
        ("{action: Allow, source: {notNets: [2001:db8::/32]}}", "tcp/1", False),
        ("{action: Allow, source: {selector: app == 'web'}}", "tcp/1", True),
        ("{action: Allow, source: {selector: app == 'far'}}", "tcp/1", False),
        ("{action: Allow, source: {notSelector: app == 'far'}}", "tcp/1", True),
        ("{action: Allow, source: {notSelector: app == 'web'}}", "tcp/1", False),
    ],
)
def test_a_rule_matches_what_all_of_it_matches(rules: str, asked: str, matches: bool) -> None:
    want = f"allow by {P0}" if matches else "deny by end of tier default"
    assert to_db(policy(rules), asked=asked) == want


def test_an_address_outside_is_in_no_set() -> None:
    outside = "198.51.100.7"
    assert to_db(policy("{action: Allow, source: {selector: all()}}"), source=outside).startswith("deny")
    assert to_db(policy("{action: Allow, source: {notSelector: all()}}"), source=outside) == f"allow by {P0}"


def test_a_named_port_is_that_of_endpoints_that_have_it() -> None:
    named = workload(
        "shop/db", "app: db", address="10.0.0.2/32", more=", ports: [{name: sql, protocol: TCP, port: 5432}]"
    )
    for rule, asked, want in (
        ("ports: [sql]", "tcp/5432", True),
        ("ports: [sql, 22]", "tcp/22", True),
        ("ports: [sql]", "tcp/5433", False),
        ("notPorts: [sql]", "tcp/5432", False),
        ("notPorts: [sql]", "tcp/5433", True),
    ):
        of = stage(WEB, named, policy(f"{{action: Allow, protocol: TCP, destination: {{{rule}}}}}"))
        assert sent(of, "shop/web", "shop/db", asked).allowed is want, (rule, asked)


def test_staged_policies_are_asked_as_if_they_counted_and_the_first_answer_of_a_tier_is_theirs() -> None:
    def staged(*texts: str) -> list[str]:
        asked = sent(stage(*ENDS, *texts), "shop/web", "shop/db", "tcp/80").asked[-1]
        return [words.of_origin(one) for one in asked.verdict.staged]

    deny, allow = "{action: Deny}", "{action: Allow}"
    s0, t0 = "StagedGlobalNetworkPolicy s ingress rule 0", "StagedGlobalNetworkPolicy t ingress rule 0"
    first = policy(deny, name="s", kind="Staged", order=1)
    assert staged(first) == [s0]
    assert staged(first, policy(allow, name="t", kind="Staged", order=2)) == [s0]
    assert staged(policy(allow), policy(deny, name="s", kind="Staged", order=2)) == []
    assert staged(policy("", name="s", kind="Staged")) == ["end of tier default"]
    assert staged(policy("", name="s", kind="Staged"), policy(allow, order=2)) == []
    both = policy(deny, name="s", kind="Staged", tier="first"), policy(deny, name="t", kind="Staged")
    assert staged(FIRST, *both) == [s0, t0]
    assert staged(tier("first", 10, "Pass"), policy("", name="s", kind="Staged", tier="first")) == []


def test_every_tier_policy_and_rule_that_was_asked_is_a_step() -> None:
    of = stage(
        *ENDS,
        FIRST,
        policy("{action: Deny, protocol: UDP}, {action: Pass}", tier="first"),
        policy("", name="none", order=1),
        policy("{action: Allow, protocol: UDP}", name="udp", order=2),
    )
    asked = sent(of, "shop/web", "shop/db", "tcp/80").asked[-1]
    assert [(s.tier, s.origin.name, s.origin.rule, s.did, s.matched) for s in asked.verdict.steps] == [
        ("first", "GlobalNetworkPolicy p", 0, "Deny", False),
        ("first", "GlobalNetworkPolicy p", 1, "Pass", True),
        ("default", "GlobalNetworkPolicy none", None, "", False),
        ("default", "GlobalNetworkPolicy udp", 0, "Allow", False),
        ("default", "default", None, "Deny", True),
    ]


def test_profiles_are_asked_in_order_and_a_pass_leaves_one_of_them() -> None:
    profile = """
kind: Profile
metadata: {name: NAME}
spec: {ingress: [RULES]}
"""
    endpoint = DB.replace("[kns.shop]", "[a, gone, b]")
    for a, b, want in (
        ("{action: Pass}", "{action: Allow}", "allow by Profile b ingress rule 0"),
        ("{action: Deny}", "{action: Allow}", "deny by Profile a ingress rule 0"),
        ("", "{action: Log}", "deny by end of profiles"),
    ):
        profiles = [profile.replace("NAME", n).replace("RULES", rules) for n, rules in (("a", a), ("b", b))]
        assert by(sent(stage(WEB, endpoint, *profiles), "shop/web", "shop/db", "tcp/80"))[-1] == want


HOST = """
kind: Node
metadata: {name: NAME}
spec:
  bgp: {ipv4Address: ADDRESS/24}
  interfaces: [{name: eth0, addresses: [ADDRESS/24]}]
"""
N1, N2 = (
    HOST.replace("NAME", name).replace("ADDRESS", address)
    for name, address in (("n1", "192.0.2.11"), ("n2", "192.0.2.12"))
)


def hep(node: str, more: str = "") -> str:
    return f"""
kind: HostEndpoint
metadata: {{name: {node}-eth0, labels: {{host: '{node}'}}}}
spec: {{node: {node}, interfaceName: eth0{more}}}
"""


def felix(spec: str, name: str = "default") -> str:
    return f"""
kind: FelixConfiguration
metadata: {{name: {name}}}
spec: {{{spec}}}
"""


def on_host(rules: str, *, node: str = "n2", types: str = "Ingress", more: str = "", name: str = "h") -> str:
    return f"""
kind: GlobalNetworkPolicy
metadata: {{name: {name}}}
spec: {{selector: host == '{node}', types: [{types}], {types.lower()}: [{rules}]{more}}}
"""


H0, HE0 = "GlobalNetworkPolicy h ingress rule 0", "GlobalNetworkPolicy h egress rule 0"
EGRESS = "allow by Profile kns.shop egress rule 0"
ANY = "allow by no endpoint"
FORWARD = ", applyOnForward: true"
PRE_DNAT = ", applyOnForward: true, preDNAT: true"
UNTRACKED = ", applyOnForward: true, doNotTrack: true"


@pytest.mark.parametrize(
    ("texts", "source", "destination", "asked", "want"),
    [
        pytest.param([], "shop/web", "shop/far", "tcp/1", [EGRESS, KNS], id="two nodes"),
        pytest.param([], "shop/web", "shop/db", "tcp/1", [EGRESS, KNS], id="one node: both ends"),
        pytest.param([], "shop/web", "shop/web", "tcp/1", [], id="to itself: it never leaves"),
        pytest.param([], "shop/web", "198.51.100.7", "tcp/1", [EGRESS, ANY], id="out"),
        pytest.param([], "198.51.100.7", "shop/web", "tcp/1", [ANY, KNS], id="in"),
        pytest.param(
            [], "shop/web", "n1", "tcp/1", [EGRESS, "deny by defaultEndpointToHostAction Drop"], id="to host"
        ),
        pytest.param(
            [felix("defaultEndpointToHostAction: Accept")],
            "shop/web",
            "n1",
            "tcp/1",
            [EGRESS, "allow by defaultEndpointToHostAction Accept"],
            id="to host, accepted",
        ),
        pytest.param(
            [felix("defaultEndpointToHostAction: Return", "node.n1"), hep("n1")],
            "shop/web",
            "n1-eth0",
            "tcp/1",
            [EGRESS, "allow by defaultEndpointToHostAction Return"],
            id="to host: its host endpoint is not asked",
        ),
        pytest.param(
            [felix("defaultEndpointToHostAction: Return", "node.n2")],
            "shop/web",
            "n1",
            "tcp/1",
            [EGRESS, "deny by defaultEndpointToHostAction Drop"],
            id="to host: the setting of another node",
        ),
        pytest.param([], "shop/web", "n2", "tcp/1", [EGRESS, ANY], id="to another host"),
        pytest.param(
            [hep("n1"), policy("{action: Deny}")],
            "n1",
            "shop/db",
            "tcp/1",
            ["allow by from-host rule", "allow by from-host rule"],
            id="from host: nobody is asked",
        ),
        pytest.param([], "n2", "shop/db", "tcp/1", [ANY, KNS], id="from another host"),
        pytest.param([hep("n2")], "n1", "n2", "tcp/1", [ANY, "deny by end of profiles"], id="a closed host"),
        pytest.param([hep("n2")], "n1", "n2", "tcp/22", [ANY, "allow by failsafe ports"], id="failsafe in"),
        pytest.param([hep("n1")], "n1", "n2", "udp/53", ["allow by failsafe ports", ANY], id="failsafe out"),
        pytest.param([hep("n1")], "n1", "n2", "udp/3784", ["allow by failsafe ports", ANY], id="BFD"),
        pytest.param([hep("n2")], "n1", "n2", "4", [ANY, "allow by failsafe ports"], id="IPIP of a node"),
        pytest.param(
            [hep("n2")],
            "198.51.100.7",
            "n2",
            "udp/4789",
            [ANY, "deny by end of profiles"],
            id="VXLAN of no node",
        ),
        pytest.param(
            [hep("n2"), felix("failsafeInboundHostPorts: []")],
            "n1",
            "n2",
            "tcp/22",
            [ANY, "deny by end of profiles"],
            id="no failsafe at all",
        ),
        pytest.param(
            [hep("n2"), felix("failsafeInboundHostPorts: []")],
            "n1",
            "n2",
            "udp/4789",
            [ANY, "deny by end of profiles"],
            id="no failsafe: no tunnel either",
        ),
        pytest.param(
            [hep("n2"), felix("failsafeInboundHostPorts: [{protocol: TCP, port: 22, net: 198.51.100.0/24}]")],
            "n1",
            "n2",
            "tcp/22",
            [ANY, "deny by end of profiles"],
            id="failsafe for others",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Allow}")],
            "n1",
            "n2",
            "tcp/1",
            [ANY, f"allow by {H0}"],
            id="host in",
        ),
        pytest.param(
            [hep("n1"), on_host("{action: Allow}", node="n1", types="Egress")],
            "n1",
            "n2",
            "tcp/1",
            [f"allow by {HE0}", ANY],
            id="host out",
        ),
        pytest.param(
            [hep("n2", ", profiles: [projectcalico-default-allow]")],
            "n1",
            "n2",
            "tcp/1",
            [ANY, "allow by Profile projectcalico-default-allow ingress rule 0"],
            id="the profile that is built in",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Deny}")],
            "shop/web",
            "shop/far",
            "tcp/1",
            [EGRESS, KNS],
            id="forwarded: a plain policy is not asked",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Deny}", more=FORWARD)],
            "shop/web",
            "shop/far",
            "tcp/1",
            [EGRESS, f"deny by {H0}", KNS],
            id="forwarded in",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Deny}", more=FORWARD)],
            "198.51.100.7",
            "shop/far",
            "tcp/22",
            [ANY, f"deny by {H0}", KNS],
            id="forwarded: no failsafe",
        ),
        pytest.param(
            [hep("n1"), on_host("{action: Deny}", node="n1", types="Egress", more=FORWARD)],
            "shop/web",
            "198.51.100.7",
            "tcp/1",
            [EGRESS, f"deny by {HE0}", ANY],
            id="forwarded out",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Pass}", more=FORWARD)],
            "shop/web",
            "shop/far",
            "tcp/1",
            [EGRESS, "goes on", KNS],
            id="forwarded: undecided goes on",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Deny, protocol: UDP}", more=PRE_DNAT)],
            "n1",
            "n2",
            "tcp/1",
            [ANY, "goes on", "deny by end of profiles"],
            id="pre-DNAT undecided",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Allow}", more=PRE_DNAT)],
            "n1",
            "n2",
            "tcp/1",
            [ANY, f"allow by {H0}"],
            id="pre-DNAT allow is the host endpoint's last word",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Deny}", more=PRE_DNAT)],
            "198.51.100.7",
            "n2",
            "tcp/22",
            [ANY, "allow by failsafe ports"],
            id="pre-DNAT failsafe",
        ),
        pytest.param(
            [hep("n2"), on_host("{action: Deny}", more=UNTRACKED)],
            "198.51.100.7",
            "shop/far",
            "tcp/1",
            [ANY, f"deny by {H0}", KNS],
            id="untracked meets what is forwarded, too",
        ),
        pytest.param(
            [hep("n1"), on_host("{action: Deny}", node="n1", types="Egress", more=UNTRACKED)],
            "shop/web",
            "n2",
            "tcp/1",
            [EGRESS, ANY],
            id="untracked out: only what the host makes",
        ),
        pytest.param([], "shop/web", "shop/db", "udp/4789", ["deny by tunnel guard", KNS], id="VXLAN within"),
        pytest.param([], "shop/web", "shop/far", "4", ["deny by tunnel guard", KNS], id="IPIP within"),
        pytest.param(
            [felix("allowVXLANPacketsFromWorkloads: true")],
            "shop/web",
            "shop/db",
            "udp/4789",
            [EGRESS, KNS],
            id="VXLAN within, allowed",
        ),
    ],
)
def test_who_is_asked_from_end_to_end(
    texts: list[str], source: str, destination: str, asked: str, want: list[str]
) -> None:
    assert by(sent(stage(*ENDS, N1, N2, *texts), source, destination, asked)) == want


def test_every_end_is_asked_also_behind_one_that_denies_and_the_first_of_these_decides() -> None:
    of = stage(
        *ENDS, policy("{action: Deny}"), policy("", name="out", more=", types: [Egress]").replace("db", "web")
    )
    passage = sent(of, "shop/web", "shop/db", "tcp/1")
    assert by(passage) == ["deny by end of tier default", f"deny by {P0}"]
    assert [one.direction for one in passage.decisive] == ["Egress"]


def test_a_workload_sends_from_its_own_addresses_only() -> None:
    of = stage(*ENDS)
    spoofed = Packet(ip_address("10.0.9.9"), ip_address("10.0.0.2"), TCP, 1, 2)
    web = next(key for key in of.world.endpoints if "web" in key.name)
    passage = verdicts(of.world, spoofed, of.sites, sender=web)
    assert by(passage) == ["deny by anti-spoofing", KNS]
    allowed = workload(
        "shop/web", "app: web", address="10.0.0.1/32", more=", allowSpoofedSourcePrefixes: [10.0.9.0/24]"
    )
    felix = """
kind: FelixConfiguration
metadata: {name: default}
spec: {workloadSourceSpoofing: Any}
"""
    for texts, want in (([allowed, DB], False), ([allowed, DB, felix], True)):
        of = stage(*texts)
        assert verdicts(of.world, spoofed, of.sites, sender=web).allowed is want


def test_what_answers_a_failsafe_port_passes_the_untracked_hook_and_no_more() -> None:
    of = stage(*ENDS, N1, N2, hep("n2"), on_host("{action: Deny}", more=UNTRACKED))
    answer = Packet(ip_address("198.51.100.7"), ip_address("192.0.2.12"), UDP, 53, 5000)
    assert by(verdicts(of.world, answer, of.sites)) == [ANY, "deny by end of profiles"]
    assert by(verdicts(of.world, replace(answer, source_port=54), of.sites)) == [ANY, f"deny by {H0}"]


def test_a_list_that_has_no_end_has_no_staged_end_either() -> None:
    of = stage(*ENDS, N1, N2, hep("n2"), on_host("{action: Deny, protocol: UDP}", more=PRE_DNAT))
    [before_dnat] = [one for one in sent(of, "n1", "n2", "tcp/1").asked if one.hook == "pre-dnat"]
    assert before_dnat.verdict.staged == ()


def test_a_host_endpoint_of_a_node_whose_links_nobody_tells_goes_by_its_addresses() -> None:
    of = stage(*ENDS, hep("n2", ", expectedIPs: [192.0.2.12]"))
    packet = Packet(ip_address("198.51.100.7"), ip_address("192.0.2.12"), TCP, 1, 2)
    assert by(verdicts(of.world, packet, {})) == [ANY, "deny by end of profiles"]


def test_neighbours_are_found_whatever_policy_says() -> None:
    of = stage(
        workload("shop/web", "app: web", address="2001:db8:1::1/128"),
        """
kind: Node
metadata: {name: n1}
spec: {bgp: {ipv6Address: "2001:db8::11/64"}}
""",
        policy("", more=", types: [Egress]").replace("db", "web"),
    )
    assert sent(of, "shop/web", "n1", "icmpv6/135").allowed
    assert not sent(of, "shop/web", "n1", "icmpv6/128").allowed


def test_a_host_endpoint_of_every_link_stands_where_no_other_does() -> None:
    every = hep("n2").replace("eth0", '"*"', 1).replace("interfaceName: eth0", "interfaceName: '*'")
    every = every.replace('n2-"*"', "n2-all")
    assert by(sent(stage(*ENDS, N1, N2, every), "n1", "n2", "tcp/1")) == [ANY, "deny by end of profiles"]
    both = stage(*ENDS, N1, N2, every, hep("n2"))
    asked = sent(both, "n1", "n2", "tcp/1").asked[-1]
    assert asked.endpoint is not None
    assert asked.endpoint.key == Key("HostEndpoint", "", "n2-eth0")


def test_an_address_of_the_host_that_is_on_no_link_is_reached_by_its_uplinks() -> None:
    looped = N2.replace("interfaces: [", "interfaces: [{name: lo, addresses: [203.0.113.2/32]}, ")
    of = stage(*ENDS, N1, looped, hep("n2"))
    assert by(sent(of, "n1", "203.0.113.2", "tcp/1")) == [ANY, "deny by end of profiles"]


def test_one_list_can_be_asked_by_itself() -> None:
    of: Scene = stage(*ENDS, policy("{action: Allow, protocol: UDP}"))
    db = next(key for key in of.world.endpoints if "db" in key.name)
    applied = of.world.applied(db, "Ingress")
    packet = Packet(ip_address("10.0.0.1"), ip_address("10.0.0.2"), UDP, 1, 2)
    assert evaluate(of.world, applied, "Ingress", packet).allowed
    assert not evaluate(of.world, applied, "Ingress", replace(packet, protocol=ICMP, icmp=Icmp(8, 0))).allowed
