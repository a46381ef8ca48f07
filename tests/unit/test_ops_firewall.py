"""What a packet filter lets through, decided from its own listing."""

from typing import Any

import pytest

from fabric.ops.firewall import Packet, blocker, count_rules, from_iptables, from_nft

BGP = Packet("tcp", 179, in_link="eth0")
IPIP = Packet("ipencap", in_link="eth0")
VXLAN = Packet("udp", 4789, in_link="eth0")
OPEN = ""


def stopped(rules: str, packet: Packet = BGP, policy: str = "ACCEPT", *, hook: str = "input") -> str:
    chains = f":INPUT {policy} [0:0]\n:FORWARD {policy} [0:0]\n:OUTPUT {policy} [0:0]\n:mine - [0:0]\n"
    table = from_iptables(f"*nat\n-A INPUT -j DROP\nCOMMIT\n*filter\n{chains}{rules}\nCOMMIT\n", "it", 4)
    return blocker(table, hook, packet)


@pytest.mark.parametrize(
    "rules",
    [
        "-A INPUT -p tcp -m tcp --dport 179 -j ACCEPT",
        "-A INPUT -p tcp -m multiport --dports 22,170:180 -j ACCEPT",
        "-A INPUT -s 192.0.2.1/32 -j ACCEPT",
        "-A INPUT -i eth+ -j ACCEPT",
        "-A INPUT ! -i lo -j ACCEPT",
        '-A INPUT -m comment --comment "-p udp, and a ! in it" -j ACCEPT',
        "-A INPUT -m conntrack --ctstate NEW,RELATED -j ACCEPT",
        "-A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT",
        "-A INPUT -j mine\n-A mine -p 6 -j ACCEPT",
        "-A INPUT -m set --match-set peers src -g mine\n-A mine -j ACCEPT",
        "-A INPUT -p tcp -j LOG --log-prefix x\n-A INPUT -p all -j ACCEPT",
    ],
)
def test_a_rule_that_lets_some_peer_in_opens_a_dropping_policy(rules: str) -> None:
    assert stopped(rules, policy="DROP") == OPEN


@pytest.mark.parametrize(
    "rules",
    [
        "",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
        "-A INPUT -p udp -m udp --dport 179 -j ACCEPT",
        "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -o eth0 -j ACCEPT",
        "-A INPUT -j mine\n-A mine -j RETURN\n-A mine -j ACCEPT",
        "-A INPUT -g mine\n-A INPUT -j ACCEPT",
    ],
)
def test_without_one_the_policy_stops_it(rules: str) -> None:
    assert stopped(rules, policy="DROP") == "policy DROP of INPUT"


@pytest.mark.parametrize(
    ("rules", "culprit"),
    [
        ("-A INPUT -p tcp -m tcp --dport 179 -j DROP", 0),
        ("-A INPUT -p tcp -m tcp --dport 1:1023 -j REJECT --reject-with tcp-reset", 0),
        ("-A INPUT -j mine\n-A mine -p tcp -j DROP\n-A INPUT -j ACCEPT", 1),
        ("-A INPUT -i lo -j ACCEPT\n-A INPUT -j DROP", 1),
    ],
)
def test_a_rule_that_stops_every_such_packet_is_named(rules: str, culprit: int) -> None:
    assert stopped(rules) == rules.splitlines()[culprit]


@pytest.mark.parametrize(
    "rules",
    [
        "-A INPUT -s 203.0.113.0/24 -j DROP",
        "-A INPUT -p tcp -m tcp --dport 179 -m limit --limit 1/s -j DROP",
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "-A INPUT -m socket -j mine\n-A mine -j DROP",
        "-A INPUT -p tcp -m tcp ! --dport 179 -j DROP",
        "-A INPUT -m recent --name bad -g mine\n-A mine -j DROP",
    ],
)
def test_a_rule_that_stops_only_some_is_not_held_against_a_firewall(rules: str) -> None:
    assert stopped(rules) == OPEN


def test_protocols_are_known_by_name_and_by_number() -> None:
    for rule in ("-A INPUT -p 4 -j DROP", "-A INPUT -p ipencap -j DROP"):
        assert (stopped(rule, IPIP), stopped(rule, VXLAN)) == (rule, OPEN)
    rule = "-A INPUT -p udp -m udp --dport 4789 -j DROP"
    assert (stopped(rule, IPIP), stopped(rule, VXLAN)) == (OPEN, rule)


def test_a_forwarded_packet_is_judged_by_both_its_links() -> None:
    out = Packet("tcp", in_link="fab0123456789ab", out_link="eth0")
    docker = "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT"
    assert stopped(docker, out, "DROP", hook="forward") == "policy DROP of FORWARD"
    assert stopped(f"{docker}\n-A FORWARD -i fab+ -j ACCEPT", out, "DROP", hook="forward") == OPEN


def test_rules_are_counted_a_table_and_a_dropping_policy_is_one() -> None:
    text = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j X\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"
    )
    assert count_rules(text) == {"nat": 1, "filter": 1}
    assert count_rules(":INPUT ACCEPT [0:0]\nCOMMIT\n") == {}


def nft(*rules: list[Any], policy: str = "accept", name: str = "in", family: str = "inet") -> list[Any]:
    where = {"family": family, "table": "t"}
    hook = {"type": "filter", "hook": "input", "prio": 0, "policy": policy}
    return [
        {"metainfo": {"version": "1"}},
        {"chain": {**where, "name": name, **hook}},
        {"chain": {**where, "name": "sub"}},
        *({"rule": {**where, "chain": name, "handle": at, "expr": rule}} for at, rule in enumerate(rules)),
        {"rule": {**where, "chain": "sub", "handle": 99, "expr": [PORT(179), {"accept": None}]}},
    ]


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def PORT(right: Any, op: str = "==") -> dict[str, Any]:  # noqa: N802  reads as one of nft's words
    return match({"payload": {"protocol": "tcp", "field": "dport"}}, right, op)


STATE = {"ct": {"key": "state"}}
DROP, ACCEPT, REJECT = {"drop": None}, {"accept": None}, {"reject": {"type": "icmpx"}}


@pytest.mark.parametrize(
    ("rules", "policy", "want"),
    [
        ([], "accept", OPEN),
        ([], "drop", "policy DROP of in"),
        ([[PORT({"set": [22, {"range": [170, 180]}]}), ACCEPT]], "drop", OPEN),
        ([[PORT(22), ACCEPT]], "drop", "policy DROP of in"),
        ([[PORT(22, "!="), {"counter": None}, DROP]], "accept", "rule 0 of chain in"),
        ([[match({"meta": {"key": "iifname"}}, "lo"), ACCEPT], [REJECT]], "accept", "rule 1 of chain in"),
        ([[match({"meta": {"key": "iifname"}}, "eth*"), ACCEPT]], "drop", OPEN),
        ([[match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), ACCEPT]], "drop", OPEN),
        ([[match({"meta": {"key": "l4proto"}}, "icmp"), ACCEPT]], "drop", "policy DROP of in"),
        ([[match(STATE, {"set": ["established"]}, "in"), ACCEPT]], "drop", "policy DROP of in"),
        ([[match({"payload": {"protocol": "ip", "field": "saddr"}}, "192.0.2.1"), ACCEPT]], "drop", OPEN),
        ([[match({"payload": {"protocol": "ip", "field": "saddr"}}, "@bad"), DROP]], "accept", OPEN),
        ([[{"jump": {"target": "sub"}}], [DROP]], "accept", OPEN),
        ([[{"vmap": {"key": STATE, "data": {"set": [["established", ACCEPT]]}}}], [DROP]], "accept",
         "rule 1 of chain in"),
        ([[{"vmap": {"key": STATE, "data": {"set": [["new", {"goto": {"target": "sub"}}]]}}}]], "drop", OPEN),
        ([[{"vmap": {"key": STATE, "data": "@elsewhere"}}]], "drop", OPEN),
        ([[{"limit": {"rate": 1}}, DROP]], "accept", OPEN),
    ],
)  # fmt: skip
def test_native_nft_tables_are_read_the_same_way(rules: list[list[Any]], policy: str, want: str) -> None:
    [table] = from_nft(nft(*rules, policy=policy))
    assert blocker(table, "input", BGP) == want


def test_tables_of_iptables_nft_and_of_other_families_are_left_to_others() -> None:
    assert from_nft(nft([DROP], name="INPUT", family="ip")) == []
    assert from_nft(nft([DROP], family="bridge")) == []
    assert [table.versions for table in from_nft(nft(family="ip6"))] == [(6,)]
