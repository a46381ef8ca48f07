"""Kubernetes' NetworkPolicies: which are valid, Calico's form of them, and that both mean the same."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import product
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.model.base import Resource, tree
from fabric.model.convert import converted
from fabric.model.k8s import KubernetesNetworkPolicy
from fabric.model.wire import from_tree
from policy.selector import parse

Tree: TypeAlias = dict[str, Any]

OURS = "projectcalico.org/orchestrator == 'k8s'"
ANY: Tree = {"action": "Allow", "source": {}, "destination": {}}


def policy(spec: Tree, **metadata: object) -> KubernetesNetworkPolicy:
    value = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec}
    read = from_tree(value | {"metadata": {"name": "p", **metadata}}, unknown="forbid")
    assert isinstance(read, KubernetesNetworkPolicy), [str(problem) for problem in read]
    return read


def calico(spec: Tree, **metadata: object) -> Tree:
    read = converted(policy(spec, **metadata))
    assert isinstance(read, Resource), [str(problem) for problem in read]
    return tree(read)


def ingress(*rules: Tree) -> list[Tree]:
    found: list[Tree] = calico({"ingress": list(rules)})["spec"]["ingress"]
    return found


def test_the_form_is_calicos() -> None:
    spec = {"podSelector": {"matchLabels": {"role": "db"}}, "ingress": [{"ports": [{"port": 80}]}]}
    assert calico(spec, namespace="shop", labels={"a": "b"}, uid="u", resourceVersion="7") == {
        "kind": "NetworkPolicy",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {
            "tier": "default",
            "order": 1000,
            "ingress": [ANY | {"protocol": "TCP", "destination": {"ports": [80]}}],
            "selector": f"{OURS} && role == 'db'",
            "types": ["Ingress"],
        },
    }


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({}, OURS),
        (
            {"matchLabels": {"z": "1", "a": "2", "empty": ""}},
            f"{OURS} && a == '2' && empty == '' && z == '1'",
        ),
        (
            {
                "matchExpressions": [
                    {"key": "z", "operator": "In", "values": ["b", "a"]},
                    {"key": "y", "operator": "NotIn", "values": ["c"]},
                    {"key": "x.example/y", "operator": "Exists"},
                    {"key": "a", "operator": "DoesNotExist", "values": []},
                ],
                "matchLabels": {"k": "v"},
            },
            f"{OURS} && k == 'v' && z in {{ 'b', 'a' }} && y not in {{ 'c' }} && has(x.example/y) && ! has(a)",
        ),
    ],
)
def test_labels_are_matched_by_a_selector_in_kubernetes_order(selector: Tree, text: str) -> None:
    assert calico({"podSelector": selector})["spec"]["selector"] == text


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, ["Ingress"]),
        ({"policyTypes": []}, ["Ingress"]),
        ({"ingress": [{}]}, ["Ingress"]),
        ({"egress": [{}]}, ["Ingress", "Egress"]),
        ({"egress": []}, ["Ingress"]),
        ({"policyTypes": ["Egress"]}, ["Egress"]),
        ({"policyTypes": ["Egress", "Ingress"]}, ["Ingress", "Egress"]),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, ["Ingress"]),
    ],
)
def test_types_are_those_that_the_api_server_would_set(spec: Tree, types: list[str]) -> None:
    assert calico(spec)["spec"]["types"] == types


@pytest.mark.parametrize(
    ("peer", "entity"),
    [
        ({"podSelector": {}}, {"selector": OURS}),
        ({"namespaceSelector": {}}, {"selector": OURS, "namespaceSelector": "all()"}),
        (
            {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {"matchLabels": {"c": "d"}}},
            {"selector": f"{OURS} && c == 'd'", "namespaceSelector": "a == 'b'"},
        ),
        ({"ipBlock": {"cidr": "10.1.2.3/8"}}, {"nets": ["10.0.0.0/8"]}),
        (
            {"ipBlock": {"cidr": "fd00::/8", "except": ["fd01::1/64", "fd02::/64"]}},
            {"nets": ["fd00::/8"], "notNets": ["fd01::/64", "fd02::/64"]},
        ),
    ],
)
def test_a_peer_is_the_other_end_of_the_traffic(peer: Tree, entity: Tree) -> None:
    spec = {
        "ingress": [{"from": [peer]}],
        "egress": [{"to": [peer], "ports": [{"port": 53, "protocol": "UDP"}]}],
    }
    rules = calico(spec)["spec"]
    assert rules["ingress"] == [ANY | {"source": entity}]
    assert rules["egress"] == [ANY | {"protocol": "UDP", "destination": entity | {"ports": [53]}}]


@pytest.mark.parametrize(
    ("ports", "want"),
    [
        ([{}], [("TCP", None)]),
        ([{"protocol": "SCTP"}], [("SCTP", None)]),
        ([{"port": 80}, {"port": "http"}], [("TCP", [80, "http"])]),
        ([{"port": 80}, {"port": "http"}, {"port": 82}], [("TCP", ["http", 80, 82])]),
        ([{"port": 82}, {"port": 80}, {"port": 81}, {"port": 80}, {"port": 90}], [("TCP", ["80:82", 90])]),
        ([{"port": 80, "endPort": 80}], [("TCP", [80])]),
        ([{"port": 80, "endPort": 90}], [("TCP", ["80:90"])]),
        (
            [{"port": 80, "endPort": 90}, {"port": "a"}, {"port": 85, "endPort": 91}],
            [("TCP", ["a", "80:91"])],
        ),
        ([{"port": 1, "endPort": 65535}, {"port": 7}], [("TCP", ["1:65535"])]),
        ([{"port": 80}, {}, {"port": 81}], [("TCP", None)]),
        (
            [{"port": 53, "protocol": "UDP"}, {"port": 53}, {"protocol": "SCTP"}],
            [("SCTP", None), ("TCP", [53]), ("UDP", [53])],
        ),
    ],
)
def test_ports_are_grouped_by_protocol_and_merged(ports: list[Tree], want: list[tuple[str, Any]]) -> None:
    found = ingress({"ports": ports})
    assert [(rule["protocol"], rule["destination"].get("ports")) for rule in found] == want


def test_a_rule_is_multiplied_by_protocols_and_then_by_peers() -> None:
    peers = [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"podSelector": {}}]
    found = ingress({"from": peers, "ports": [{"protocol": "UDP"}, {"protocol": "TCP"}]}, {})
    assert [(rule.get("protocol"), *rule["source"]) for rule in found] == [
        ("TCP", "nets"),
        ("TCP", "selector"),
        ("UDP", "nets"),
        ("UDP", "selector"),
        (None,),
    ]


def block(count: int) -> Tree:
    return {
        "ipBlock": {"cidr": "10.0.0.0/8", "except": [f"10.{n // 256}.{n % 256}.0/24" for n in range(count)]}
    }


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"ingress": [{}, {"from": [{"podSelector": {}}, block(257)]}]}, "spec.ingress[1]"),
        ({"egress": [{"ports": [{}, {"protocol": "UDP"}]}, {"to": [block(257)]}]}, "spec.egress[1]"),
        ({"ingress": [{"ports": [{"port": n} for n in range(1, 103, 2)]}]}, "spec.ingress[0]"),
        ({"podSelector": {"matchLabels": {f"{n:060}": "v" for n in range(20)}}}, "spec.podSelector"),
        ({"ingress": [{"from": [{"podSelector": {}}] * 1025}]}, "spec.ingress"),
    ],
    ids=["nets", "nets of egress", "ports", "selector", "rules"],
)
def test_what_is_beyond_calicos_limits_is_refused_where_it_stands(spec: Tree, path: str) -> None:
    problems = converted(policy(spec))
    assert isinstance(problems, tuple)
    assert [str(problem).partition(": has no counterpart in Calico: ")[0] for problem in problems] == [path]


PORT = (
    "must be a number from 1 to 65535, or a port's name: up to 15 lower-case letters, digits and '-', "
    "with a letter among them"
)
KEY = "is not [prefix/]name, with a name of 1 to 63 characters"
PEER = "needs podSelector, namespaceSelector or both, or else ipBlock alone"


def of_port(port: Tree) -> Tree:
    return {"ingress": [{"ports": [port]}]}


def of_peer(peer: Tree) -> Tree:
    return {"egress": [{"to": [peer]}]}


def selecting(**expression: object) -> Tree:
    return {"podSelector": {"matchExpressions": [expression]}}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (of_port({"port": 0}), f"spec.ingress[0].ports[0].port: 0: {PORT}"),
        (of_port({"port": 65536}), f"spec.ingress[0].ports[0].port: 65536: {PORT}"),
        (of_port({"port": "80"}), f'spec.ingress[0].ports[0].port: "80": {PORT}'),
        (of_port({"port": "8080:53"}), f'spec.ingress[0].ports[0].port: "8080:53": {PORT}'),
        (of_port({"port": "x" * 16}), f'spec.ingress[0].ports[0].port: "{"x" * 16}": {PORT}'),
        (of_port({"port": "a--b"}), f'spec.ingress[0].ports[0].port: "a--b": {PORT}'),
        (of_port({"port": True}), f"spec.ingress[0].ports[0].port: true: {PORT}"),
        (
            of_port({"port": 80, "endPort": 79}),
            "spec.ingress[0].ports[0].endPort: 79: must not be below port 80",
        ),
        (
            of_port({"port": "a", "endPort": 80}),
            "spec.ingress[0].ports[0].endPort: 80: needs port, and that a number",
        ),
        (of_port({"endPort": 80}), "spec.ingress[0].ports[0].endPort: 80: needs port, and that a number"),
        (
            of_port({"port": 80, "endPort": 65536}),
            "spec.ingress[0].ports[0].endPort: 65536: must be at most 65535",
        ),
        (
            of_port({"protocol": "tcp"}),
            "spec.ingress[0].ports[0].protocol: \"tcp\": must be 'TCP', 'UDP' or 'SCTP'",
        ),
        (of_port({"ports": 80}), "spec.ingress[0].ports[0].ports: no such field; did you mean port?"),
        ({"ingress": [{"to": []}]}, "spec.ingress[0].to: no such field"),
        ({"ingress": [None]}, "spec.ingress[0]: must be a mapping"),
        ({"ingress": {}}, "spec.ingress: must be a list"),
        (of_peer({}), f"spec.egress[0].to[0]: {PEER}"),
        (of_peer({"podSelector": None}), f"spec.egress[0].to[0]: {PEER}"),
        (of_peer({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}), f"spec.egress[0].to[0]: {PEER}"),
        (of_peer({"ipBlock": {}}), "spec.egress[0].to[0].ipBlock.cidr: is required"),
        (
            of_peer({"ipBlock": {"cidr": "10.0.0.1"}}),
            'spec.egress[0].to[0].ipBlock.cidr: "10.0.0.1": must be a prefix, such as 10.0.0.0/16 or fd00::/48',
        ),
        (
            of_peer({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}),
            (
                'spec.egress[0].to[0].ipBlock.except[0]: "10.0.0.0/8": '
                "must be a part of cidr 10.0.0.0/8, and not all of it"
            ),
        ),
        (
            of_peer({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/8"]}}),
            'spec.egress[0].to[0].ipBlock.except[0]: "fd00::/8": must be a part of cidr 10.0.0.0/8, and not all of it',
        ),
        (
            selecting(key="a", operator="in", values=["b"]),
            "spec.podSelector.matchExpressions[0].operator: \"in\": must be 'In', 'NotIn', 'Exists' or 'DoesNotExist'",
        ),
        (
            selecting(key="a", operator="In"),
            "spec.podSelector.matchExpressions[0]: In and NotIn need values, Exists and DoesNotExist have none",
        ),
        (
            selecting(key="a", operator="Exists", values=["b"]),
            "spec.podSelector.matchExpressions[0]: In and NotIn need values, Exists and DoesNotExist have none",
        ),
        (
            selecting(key="a", operator="In", values=["b'"]),
            'spec.podSelector.matchExpressions[0]: label a: "b\'" is not up to 63 letters, digits, "-", "_" and "."',
        ),
        (
            selecting(key="a b", operator="Exists"),
            f'spec.podSelector.matchExpressions[0]: label key "a b" {KEY}',
        ),
        (
            {"podSelector": {"matchLabels": {"a": 1}}},
            "spec.podSelector.matchLabels.a: 1: must be text; put it in quotes",
        ),
        ({"policyTypes": ["ingress"]}, "spec.policyTypes[0]: \"ingress\": must be 'Ingress' or 'Egress'"),
        ({"podselector": {}}, "spec.podselector: no such field; did you mean podSelector?"),
    ],
)
def test_what_the_api_server_refuses_is_refused_here(spec: Tree, problem: str) -> None:
    value = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p"},
        "spec": spec,
    }
    read = from_tree(value, unknown="forbid")
    assert isinstance(read, tuple)
    assert [str(one) for one in read] == [problem]


# That both policies mean the same: an evaluator of each, written from its own documentation.

Address: TypeAlias = IPv4Address | IPv6Address
Labels: TypeAlias = Mapping[str, str]

HERE = "here"


@dataclass(frozen=True)
class Peer:
    """A pod, or something outside of the cluster, which has no namespace and no labels."""

    address: Address
    namespace: str = ""
    labels: Labels | None = None
    ports: Mapping[str, tuple[str, int]] | None = None


@dataclass(frozen=True)
class Traffic:
    direction: str
    pod: Peer
    peer: Peer
    protocol: str
    port: int

    @property
    def server(self) -> Peer:
        return self.pod if self.direction == "Ingress" else self.peer


def k8s_selects(selector: Tree, labels: Labels) -> bool:
    def holds(wanted: Tree) -> bool:
        match wanted["operator"]:
            case "In":
                return labels.get(wanted["key"]) in wanted["values"]
            case "NotIn":
                return labels.get(wanted["key"]) not in wanted["values"]
            case "Exists":
                return wanted["key"] in labels
        return wanted["key"] not in labels

    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        map(holds, selector.get("matchExpressions", ()))
    )


def k8s_verdict(spec: Tree, traffic: Traffic) -> bool | None:
    """True and False where the policy isolates the pod, None where it does not."""
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    pod = traffic.pod
    selected = pod.namespace == HERE and k8s_selects(spec.get("podSelector", {}), pod.labels or {})
    if not selected or traffic.direction not in types:
        return None
    rules, peers = ("ingress", "from") if traffic.direction == "Ingress" else ("egress", "to")
    return any(
        (not rule.get(peers) or any(k8s_peer(peer, traffic.peer) for peer in rule[peers]))
        and (not rule.get("ports") or any(k8s_port(port, traffic) for port in rule["ports"]))
        for rule in spec.get(rules, ())
    )


def k8s_peer(wanted: Tree, peer: Peer) -> bool:
    if "ipBlock" in wanted:
        inside = [ip_network(text, strict=False) for text in [wanted["ipBlock"]["cidr"]]]
        outside = [ip_network(text, strict=False) for text in wanted["ipBlock"].get("except", ())]
        return any(peer.address in net for net in inside) and all(peer.address not in net for net in outside)
    if peer.labels is None:
        return False
    if "namespaceSelector" not in wanted:
        return peer.namespace == HERE and k8s_selects(wanted["podSelector"], peer.labels)
    return k8s_selects(wanted["namespaceSelector"], NAMESPACES[peer.namespace]) and k8s_selects(
        wanted.get("podSelector", {}), peer.labels
    )


def k8s_port(wanted: Tree, traffic: Traffic) -> bool:
    if wanted.get("protocol", "TCP") != traffic.protocol:
        return False
    match wanted.get("port"):
        case None:
            return True
        case str(name):
            return (traffic.server.ports or {}).get(name) == (traffic.protocol, traffic.port)
        case int(port):
            return port <= traffic.port <= int(wanted.get("endPort", port))
    raise AssertionError(wanted)


def calico_verdict(spec: Tree, traffic: Traffic) -> bool | None:
    pod = traffic.pod
    selected = pod.namespace == HERE and calico_selects(spec["selector"], pod)
    if not selected or traffic.direction not in spec["types"]:
        return None
    return any(calico_rule(rule, traffic) for rule in spec.get(traffic.direction.lower(), ()))


def calico_selects(text: str, peer: Peer) -> bool:
    if peer.labels is None:
        return False
    return parse(text).matches({**peer.labels, "projectcalico.org/orchestrator": "k8s"})


def calico_rule(rule: Tree, traffic: Traffic) -> bool:
    source, destination = traffic.peer, traffic.pod
    if traffic.direction == "Egress":
        source, destination = destination, source
    return (
        rule["action"] == "Allow"
        and rule.get("protocol", traffic.protocol) == traffic.protocol
        and calico_entity(rule["source"], source, traffic)
        and calico_entity(rule["destination"], destination, traffic)
    )


def calico_entity(entity: Tree, peer: Peer, traffic: Traffic) -> bool:
    if "namespaceSelector" in entity:
        inside = peer.labels is not None and parse(entity["namespaceSelector"]).matches(
            NAMESPACES[peer.namespace]
        )
    else:
        inside = "selector" not in entity or peer.namespace == HERE
    return (
        inside
        and ("selector" not in entity or calico_selects(entity["selector"], peer))
        and ("nets" not in entity or any(peer.address in ip_network(net) for net in entity["nets"]))
        and not any(peer.address in ip_network(net) for net in entity.get("notNets", ()))
        and ("ports" not in entity or any(calico_port(port, peer, traffic) for port in entity["ports"]))
    )


def calico_port(wanted: int | str, peer: Peer, traffic: Traffic) -> bool:
    if isinstance(wanted, int):
        return wanted == traffic.port
    low, colon, high = wanted.partition(":")
    if colon:
        return int(low) <= traffic.port <= int(high)
    return (peer.ports or {}).get(wanted) == (traffic.protocol, traffic.port)


NAMESPACES: Mapping[str, Labels] = {HERE: {"x": "u"}, "there": {"x": "v", "in": ""}, "bare": {}}
PODS = [
    Peer(ip_address("10.1.2.3"), HERE, {"x": "u"}, {"web": ("TCP", 80)}),
    Peer(ip_address("10.1.9.9"), HERE, {"x": "v", "a.b/c-d": "u"}, {"web": ("UDP", 80), "dns": ("UDP", 53)}),
    Peer(ip_address("10.2.0.1"), "there", {}, {"web": ("TCP", 81)}),
    Peer(ip_address("fd00:1::7"), "bare", {"in": "", "x": "u"}),
]
OUTSIDE = [Peer(ip_address("192.0.2.1")), Peer(ip_address("10.1.0.1")), Peer(ip_address("fd00:2::1"))]


def all_traffic() -> Iterator[Traffic]:
    ports = ((80, "TCP"), (80, "UDP"), (81, "TCP"), (53, "UDP"), (82, "SCTP"), (0, "ICMP"))
    for direction, pod, peer in product(("Ingress", "Egress"), PODS, [*PODS, *OUTSIDE]):
        for port, protocol in ports:
            yield Traffic(direction, pod, peer, protocol, port)


def some(optional: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Tree]:
    return st.fixed_dictionaries({}, optional=optional)


keys, label_values = st.sampled_from(["x", "in", "a.b/c-d"]), st.sampled_from(["", "u", "v"])
expressions = st.builds(
    lambda key, operator, values: (
        {"key": key, "operator": operator} | ({"values": values} if "In" in operator else {})
    ),
    keys,
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    st.lists(label_values, min_size=1, max_size=2),
)
selectors = some(
    {
        "matchLabels": st.dictionaries(keys, label_values, max_size=2),
        "matchExpressions": st.lists(expressions, max_size=2),
    }
)
blocks = st.sampled_from(
    [
        {"cidr": "0.0.0.0/0"},
        {"cidr": "10.1.2.3/8", "except": ["10.1.0.0/16", "10.2.3.4/31"]},
        {"cidr": "10.1.2.0/24", "except": []},
        {"cidr": "10.1.2.3/32"},
        {"cidr": "fd00::/8", "except": ["fd00:2::/32"]},
    ]
)
peers = (
    st.fixed_dictionaries({"podSelector": selectors}, optional={"namespaceSelector": selectors})
    | st.fixed_dictionaries({"namespaceSelector": selectors})
    | st.fixed_dictionaries({"ipBlock": blocks})
)
matched = some({"port": st.sampled_from(["web", "dns", 53, 80, 81, 82])}) | st.fixed_dictionaries(
    {"port": st.sampled_from([1, 80]), "endPort": st.sampled_from([80, 81, 65535])}
)
ports = st.builds(dict.__or__, matched, some({"protocol": st.sampled_from(["TCP", "UDP", "SCTP"])}))


def rules(side: str) -> st.SearchStrategy[list[Tree]]:
    return st.lists(
        some({side: st.lists(peers, max_size=2), "ports": st.lists(ports, max_size=4)}), max_size=2
    )


specs = some(
    {
        "podSelector": selectors,
        "ingress": rules("from"),
        "egress": rules("to"),
        "policyTypes": st.lists(st.sampled_from(["Ingress", "Egress"]), max_size=2, unique=True),
    }
)


@settings(max_examples=300, deadline=None)
@given(specs)
def test_the_converted_policy_gives_every_traffic_the_verdict_of_the_first(spec: Tree) -> None:
    twin = calico(spec)["spec"]
    for traffic in all_traffic():
        assert calico_verdict(twin, traffic) is k8s_verdict(spec, traffic), traffic
