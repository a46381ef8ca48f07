from ipaddress import ip_network

import pytest

from fabric.model.policy import (
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
)
from fabric.model.profile import Profile
from policy import rules
from policy.form import AddressSet, Icmp, Key, Policy, PortRange, PortSet, Rule
from policy.items import key
from policy.rules import Compiled, PolicyResource
from policy.selector import parse
from tests.unit.policing import ALLOW, global_policy, policy, read, staged

NS = "projectcalico.org/namespace"
SA = "projectcalico.org/serviceaccount"
HERE = f'{NS} == "default"'


def compiled(resource: PolicyResource) -> Compiled:
    return rules.policy(resource, key(resource))


def form_of(resource: PolicyResource) -> Policy:
    found = compiled(resource).policy
    assert found
    return found


def only_rule(resource: PolicyResource) -> Rule:
    found = form_of(resource)
    assert not found.broken
    (rule,) = found.ingress or ()
    return rule


def rule_of(rule: dict[str, object], *, everywhere: bool = False) -> Rule:
    make = global_policy if everywhere else policy
    return only_rule(make("p", types=["Ingress"], ingress=[{"action": "Allow", **rule}]))


def source(end: dict[str, object], *, everywhere: bool = False) -> tuple[str | None, str | None]:
    """Return what a rule's source must be selected by, and must not."""
    found = rule_of({"source": end}, everywhere=everywhere).source
    return text_of(found.selected), text_of(found.not_selected)


def text_of(wanted: AddressSet | None) -> str | None:
    return wanted.selector if wanted else None


# --- what a policy is for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({}, HERE),
        ({"selector": "all()"}, f"({HERE} && all())"),
        ({"selector": "a == 'b'"}, f'({HERE} && a == "b")'),
        ({"selector": "a == 'b' || has(c)"}, f'({HERE} && (a == "b" || has(c)))'),
        ({"serviceAccountSelector": "role == 'x'"}, f'({HERE} && pcsa.role == "x")'),
        ({"selector": "has(a)", "serviceAccountSelector": "has(b)"}, f"({HERE} && has(a) && has(pcsa.b))"),
        ({"serviceAccountSelector": "all()"}, f"({HERE} && all())"),
    ],
)
def test_a_network_policy_is_for_its_namespace(spec: dict[str, object], want: str) -> None:
    assert form_of(read(NetworkPolicy, "p", spec, namespace="default")).selector == want


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({}, "all()"),
        ({"selector": " "}, "all()"),
        ({"selector": "a == 'b'"}, 'a == "b"'),
        ({"namespaceSelector": "all()"}, f"has({NS})"),
        ({"namespaceSelector": "env == 'x'"}, 'pcns.env == "x"'),
        ({"selector": "has(a)", "namespaceSelector": "!all()"}, f"(has(a) && !has({NS}))"),
        ({"serviceAccountSelector": "all()"}, f"has({SA})"),
        (
            {"selector": "has(a)", "namespaceSelector": "has(b)", "serviceAccountSelector": "has(c)"},
            "(has(a) && has(pcns.b) && has(pcsa.c))",
        ),
    ],
)
def test_a_global_policy_is_for_everything_that_it_does_not_exclude(
    spec: dict[str, object], want: str
) -> None:
    assert form_of(global_policy("p", **spec)).selector == want


K8S = "projectcalico.org/orchestrator == 'k8s'"
ANY_WORKLOAD = "has(projectcalico.org/orchestrator)"


def test_a_policy_of_kubernetes_is_for_every_workload() -> None:
    peer = {"source": {"selector": f"{K8S} && app == 'c'"}}
    found = policy("knp.default.web", selector=f"{K8S} && app == 'w'", ingress=[{**ALLOW, **peer}])
    assert form_of(found).selector == f'({HERE} && ({ANY_WORKLOAD} && app == "w"))'
    assert only_rule(found).source.selected == AddressSet(f'({HERE} && ({ANY_WORKLOAD} && app == "c"))')


def test_one_that_was_exported_or_converted_means_the_same_under_any_name() -> None:
    peer = {"source": {"selector": f"{K8S} && app == 'c'"}}
    found = policy("web", selector=f"({K8S}) && app == 'w'", ingress=[{**ALLOW, **peer}])
    assert form_of(found).selector == f'({HERE} && ({ANY_WORKLOAD} && app == "w"))'
    assert only_rule(found).source.selected == AddressSet(f'({HERE} && ({ANY_WORKLOAD} && app == "c"))')
    assert form_of(policy("web", selector=K8S)).selector == f"({HERE} && {ANY_WORKLOAD})"
    soon = form_of(read(StagedNetworkPolicy, "web", {"selector": K8S}, namespace="default"))
    assert soon.selector == f"({HERE} && {ANY_WORKLOAD})"


@pytest.mark.parametrize(
    "text", [f"{K8S} || has(a)", f"!({K8S})", "projectcalico.org/orchestrator in {'k8s'}", "has(a)"]
)
def test_another_policy_means_kubernetes_where_it_says_so(text: str) -> None:
    peer = {"source": {"selector": K8S}}
    found = policy("web", selector=text, ingress=[{**ALLOW, **peer}])
    assert form_of(found).selector == f"({HERE} && {parse(text)})"
    assert only_rule(found).source.selected == AddressSet(f"({HERE} && {parse(K8S)})")
    assert form_of(global_policy("web", selector=K8S)).selector == str(parse(K8S))


# --- types and flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "ingress", "egress"),
    [
        ([], True, True),
        (["Ingress"], True, False),
        (["Egress"], False, True),
        (["Egress", "Ingress"], True, True),
    ],
)
def test_types_say_which_rules_act(types: list[str], ingress: bool, egress: bool) -> None:
    found = form_of(policy("p", types=types, ingress=[ALLOW], egress=[ALLOW, ALLOW]))
    assert (found.ingress is not None, found.egress is not None) == (ingress, egress)
    assert (len(found.ingress or "-"), len(found.egress or "--")) == (1, 2)


def test_of_a_type_without_rules_there_is_an_empty_list() -> None:
    assert form_of(policy("p", types=["Ingress"])).ingress == ()


def test_flags_are_a_global_policys() -> None:
    found = form_of(global_policy("p", doNotTrack=True, applyOnForward=True))
    assert (found.do_not_track, found.pre_dnat, found.apply_on_forward) == (True, False, True)
    found = form_of(global_policy("p", preDNAT=True, applyOnForward=True, types=["Ingress"]))
    assert (found.do_not_track, found.pre_dnat, found.apply_on_forward) == (False, True, True)
    assert not form_of(global_policy("p")).apply_on_forward
    assert form_of(policy("p")).apply_on_forward


def test_tier_order_and_key() -> None:
    found = form_of(global_policy("t.p", tier="t", order=3.5))
    assert (found.tier, found.order, found.key) == ("t", 3.5, Key("GlobalNetworkPolicy", "", "t.p"))
    assert (form_of(policy("p")).tier, form_of(policy("p")).order) == ("default", None)


@pytest.mark.parametrize(
    ("annotations", "keep", "drop_log"),
    [
        ({}, False, False),
        ({"fabricctl.io/on-change": "keep", "fabricctl.io/drop-log": "on"}, True, True),
        ({"fabricctl.io/on-change": "cut", "fabricctl.io/drop-log": "off"}, False, False),
    ],
)
def test_annotations(annotations: dict[str, str], keep: bool, drop_log: bool) -> None:
    found = form_of(read(NetworkPolicy, "p", {}, namespace="default", annotations=annotations))
    assert (found.keep, found.drop_log) == (keep, drop_log)


# --- who a rule means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "selected", "excluded"),
    [
        ({}, None, None),
        ({"nets": ["10.0.0.0/8"]}, None, None),
        ({"selector": "has(a)"}, f"({HERE} && has(a))", None),
        ({"notSelector": "has(a)"}, f"({HERE} && !has(a))", None),
        ({"selector": "has(a)", "notSelector": "has(b)"}, f"({HERE} && has(a) && !has(b))", None),
        ({"selector": "has(a)", "notSelector": "!has(b)"}, f"({HERE} && has(a) && has(b))", None),
        ({"namespaceSelector": "has(n)"}, "has(pcns.n)", None),
        ({"namespaceSelector": "all()"}, f"has({NS})", None),
        ({"namespaceSelector": "global()"}, f"!has({NS})", None),
        ({"namespaceSelector": "all()", "selector": "has(a)"}, f"(has({NS}) && has(a))", None),
        ({"namespaceSelector": "has(n)", "notSelector": "has(a)"}, "(has(pcns.n) && !has(a))", None),
        ({"serviceAccounts": {"names": ["b", "a"]}}, f'({HERE} && {SA} in {{"a", "b"}})', None),
        ({"serviceAccounts": {"selector": "has(r)"}}, f"({HERE} && has(pcsa.r))", None),
        ({"serviceAccounts": {"selector": "all()"}}, f"({HERE} && all())", None),
        ({"serviceAccounts": {}}, None, None),
        (
            {"serviceAccounts": {"names": ["a"], "selector": "has(r)"}, "selector": "has(x)"},
            f'({HERE} && has(pcsa.r) && {SA} in {{"a"}} && has(x))',
            None,
        ),
        (
            {"serviceAccounts": {"names": ["a"]}, "namespaceSelector": "has(n)"},
            f'(has(pcns.n) && {SA} in {{"a"}})',
            None,
        ),
    ],
)
def test_whom_a_network_policys_rule_means(
    end: dict[str, object], selected: str | None, excluded: str | None
) -> None:
    assert source(end) == (selected, excluded)


@pytest.mark.parametrize(
    ("end", "selected", "excluded"),
    [
        ({"selector": "has(a)"}, "has(a)", None),
        ({"selector": "all()"}, "all()", None),
        ({"notSelector": "has(a)"}, None, "has(a)"),
        ({"selector": "has(a)", "notSelector": "b == 'c'"}, '(has(a) && !b == "c")', None),
        ({"namespaceSelector": "all()"}, f"has({NS})", None),
        ({"namespaceSelector": "global()", "selector": "has(a)"}, f"(!has({NS}) && has(a))", None),
        ({"serviceAccounts": {"names": ["a"]}}, f'{SA} in {{"a"}}', None),
    ],
)
def test_whom_a_global_policys_rule_means(
    end: dict[str, object], selected: str | None, excluded: str | None
) -> None:
    assert source(end, everywhere=True) == (selected, excluded)


def test_a_rules_selectors_are_handed_on_as_they_would_be_read() -> None:
    end = {"selector": "has(a)", "notSelector": "b == 'c' || has(d)", "ports": [1, "http"]}
    rule = {
        **ALLOW,
        "protocol": "TCP",
        "source": end,
        "destination": {"notSelector": "has(z)", "notPorts": ["x"]},
    }
    found = compiled(global_policy("p", ingress=[rule]))
    assert {*found.peers} == {'(has(a) && !(b == "c" || has(d)))', "has(z)", "all()"}
    assert all(parse(text) == term for text, term in found.peers.items())


# --- what a rule matches otherwise ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, (None, None)),
        ({"protocol": "tcp"}, (6, None)),
        ({"protocol": "UDPLite"}, (136, None)),
        ({"protocol": "SCTP"}, (132, None)),
        ({"protocol": 47}, (47, None)),
        ({"protocol": "ICMPv6"}, (58, None)),
        ({"notProtocol": "UDP"}, (None, 17)),
        ({"protocol": "TCP", "notProtocol": 17}, (6, 17)),
    ],
)
def test_protocols_are_numbers(given: dict[str, object], want: tuple[int | None, int | None]) -> None:
    found = rule_of(given)
    assert (found.protocol, found.not_protocol) == want


@pytest.mark.parametrize(
    ("given", "icmp", "not_icmp"),
    [
        ({"protocol": "ICMP", "icmp": {"type": 8}}, Icmp(8), None),
        ({"protocol": 58, "icmp": {"type": 0, "code": 0}}, Icmp(0, 0), None),
        ({"protocol": "ICMPv6", "notICMP": {"type": 128, "code": 1}}, None, Icmp(128, 1)),
        ({"protocol": "ICMP", "icmp": {}}, None, None),
    ],
)
def test_icmp(given: dict[str, object], icmp: Icmp | None, not_icmp: Icmp | None) -> None:
    found = rule_of(given)
    assert (found.icmp, found.not_icmp) == (icmp, not_icmp)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, None),
        ({"ipVersion": 4}, 4),
        ({"ipVersion": 6}, 6),
        ({"protocol": "ICMP"}, 4),
        ({"protocol": 1}, 4),
        ({"protocol": "ICMPv6"}, 6),
        ({"notProtocol": "ICMP"}, None),
        ({"source": {"nets": ["10.0.0.0/8"]}}, 4),
        ({"destination": {"notNets": ["fd00::/8"]}}, 6),
        ({"protocol": "ICMP", "source": {"nets": ["fd00::/8"]}}, 6),
    ],
)
def test_the_family_that_a_rule_is_of(given: dict[str, object], want: int | None) -> None:
    assert rule_of(given).version == want


def test_nets() -> None:
    found = rule_of({"source": {"nets": ["10.0.0.0/8", "192.0.2.1"], "notNets": ["10.1.0.0/16"]}}).source
    assert found.nets == (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"))
    assert found.not_nets == (ip_network("10.1.0.0/16"),)


def test_ports_are_ranges_and_names() -> None:
    end = {"ports": [80, "8000:8080", "53", "http"], "notPorts": ["8001:8002", "admin"]}
    found = rule_of({"protocol": "TCP", "destination": end}).destination
    assert found.ports == (PortRange(80, 80), PortRange(8000, 8080), PortRange(53, 53))
    assert found.not_ports == (PortRange(8001, 8002),)
    assert found.named == (PortSet("all()", 6, "http"),)
    assert found.not_named == (PortSet("all()", 6, "admin"),)


@pytest.mark.parametrize(
    ("protocol", "want"),
    [(None, 6), ("TCP", 6), ("UDP", 17), (17, 17), ("SCTP", 132), ("ICMP", 6), ("UDPLite", 6)],
)
def test_a_named_port_is_of_tcp_unless_the_rule_says_udp_or_sctp(protocol: object, want: int) -> None:
    given = {"protocol": protocol} if protocol else {}
    assert rule_of({**given, "destination": {"ports": ["http"]}}).destination.named == (
        PortSet("all()", want, "http"),
    )


SELECTED = f"({HERE} && has(a))"


@pytest.mark.parametrize(
    ("end", "selected", "named", "not_named"),
    [
        pytest.param(
            {"ports": ["x"]}, None, [SELECTED], [], id="names alone are looked up among the selected"
        ),
        pytest.param({"ports": ["x", "y"]}, None, [SELECTED, SELECTED], [], id="each of them"),
        pytest.param({"ports": ["x", 80]}, SELECTED, [SELECTED], [], id="a number needs the selected too"),
        pytest.param({"notPorts": ["x"]}, SELECTED, [], [SELECTED], id="what must not be needs them too"),
        pytest.param({"ports": ["x"], "notPorts": ["y"]}, None, [SELECTED], [SELECTED], id="both"),
    ],
)
def test_named_ports_are_those_of_the_selected(
    end: dict[str, object], selected: str | None, named: list[str], not_named: list[str]
) -> None:
    found = rule_of({"protocol": "TCP", "source": {"selector": "has(a)", **end}}).source
    assert text_of(found.selected) == selected
    assert [each.selector for each in found.named] == named
    assert [each.selector for each in found.not_named] == not_named


def test_named_ports_are_everybodys_where_only_an_exclusion_is_given() -> None:
    found = rule_of({"source": {"notSelector": "has(a)", "ports": ["x"]}}, everywhere=True).source
    assert (found.named, found.selected, found.not_selected) == (
        (PortSet("all()", 6, "x"),),
        None,
        AddressSet("has(a)"),
    )


def test_both_ends_actions_places_and_notes() -> None:
    noted = {"metadata": {"annotations": {"b": "2", "a": "1"}}}
    listed = [
        {"action": "Log"},
        {"action": "Pass", "destination": {"selector": "has(d)"}},
        {"action": "Deny", **noted},
    ]
    found = form_of(global_policy("p", ingress=listed)).ingress or ()
    assert [(rule.index, rule.action) for rule in found] == [(0, "Log"), (1, "Pass"), (2, "Deny")]
    assert found[1].destination.selected == AddressSet("has(d)")
    assert [rule.note for rule in found] == [(), (), ("a=1", "b=2")]


# --- what cannot be enforced ------------------------------------------------------------------------------------------

SERVICES = {**ALLOW, "source": {"services": {"name": "db", "namespace": "prod"}}}
HTTP = {**ALLOW, "http": {"methods": ["GET"]}}


@pytest.mark.parametrize(
    ("spec", "broken"),
    [
        (
            {"ingress": [ALLOW, SERVICES]},
            "spec.ingress[1].source.services: is not enforced here: services are Kubernetes'",
        ),
        (
            {"egress": [{**ALLOW, "destination": SERVICES["source"]}]},
            "spec.egress[0].destination.services: is not enforced here: services are Kubernetes'",
        ),
        (
            {"ingress": [HTTP]},
            "spec.ingress[0].http: is not enforced here: nothing reads what is inside of connections",
        ),
        (
            {"ingress": [{**ALLOW, "source": {"serviceAccounts": {"names": ["it's"]}}}]},
            """spec.ingress[0].source.serviceAccounts: "it's" is no service account's name""",
        ),
    ],
)
def test_a_policy_that_cannot_be_enforced_denies_what_it_selects(
    spec: dict[str, object], broken: str
) -> None:
    found = compiled(global_policy("p", selector="has(a)", order=1, **spec))
    assert found.policy == Policy(
        Key("GlobalNetworkPolicy", "", "p"), "default", 1, "has(a)", (), (), broken=broken
    )
    assert found.problem == f"{broken}; it denies what it selects"
    assert not found.peers


def test_a_broken_policy_acts_in_the_directions_that_it_is_of() -> None:
    found = form_of(policy("p", types=["Ingress"], ingress=[HTTP]))
    assert (found.broken != "", found.ingress, found.egress) == (True, (), None)


def test_rules_that_do_not_act_break_nothing() -> None:
    found = form_of(policy("p", types=["Egress"], ingress=[HTTP]))
    assert (found.broken, found.ingress, found.egress) == ("", None, ())


def test_a_profile_that_cannot_be_enforced_allows_nothing_and_hands_on_its_labels() -> None:
    spec = {"ingress": [ALLOW, HTTP], "egress": [ALLOW], "labelsToApply": {"a": "b"}}
    found = rules.profile(read(Profile, "p", spec))
    assert (found.profile.ingress, found.profile.egress, found.labels) == ((), (), {"a": "b"})
    assert found.problem.endswith("inside of connections; it allows nothing")


# --- staged -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [StagedNetworkPolicy, StagedGlobalNetworkPolicy])
def test_a_staged_policy_says_what_it_would(
    cls: type[StagedNetworkPolicy | StagedGlobalNetworkPolicy],
) -> None:
    found = form_of(staged(cls, "p", selector="has(a)", ingress=[ALLOW], types=["Ingress"]))
    assert (found.staged, found.key.kind, found.ingress) == (True, cls.__name__, (Rule(0, "Allow"),))


@pytest.mark.parametrize("action", ["Delete", "Learn", "Ignore"])
@pytest.mark.parametrize(
    "cls", [StagedNetworkPolicy, StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy]
)
def test_what_is_not_to_be_set_takes_no_part(
    cls: type[StagedNetworkPolicy | StagedGlobalNetworkPolicy | StagedKubernetesNetworkPolicy], action: str
) -> None:
    assert compiled(staged(cls, "p", stagedAction=action)).policy is None


def test_a_staged_policy_of_kubernetes_is_converted() -> None:
    resource = staged(
        StagedKubernetesNetworkPolicy,
        "web",
        podSelector={"matchLabels": {"app": "w"}},
        policyTypes=["Ingress"],
        ingress=[{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}],
    )
    found = form_of(resource)
    assert (found.key, found.order, found.staged) == (
        Key("StagedKubernetesNetworkPolicy", "default", "web"),
        1000,
        True,
    )
    assert found.selector == f'({HERE} && ({ANY_WORKLOAD} && app == "w"))'
    (rule,) = found.ingress or ()
    assert rule.source.selected == AddressSet(f"({HERE} && {ANY_WORKLOAD})")
    assert (rule.protocol, rule.destination.ports, found.egress) == (6, (PortRange(80, 80),), None)


def test_a_staged_policy_of_kubernetes_that_has_no_counterpart_counts_nothing() -> None:
    labels = {f"a{n:04}": "x" * 60 for n in range(20)}
    resource = staged(StagedKubernetesNetworkPolicy, "web", podSelector={"matchLabels": labels})
    found = compiled(resource)
    assert found.policy is None
    assert found.problem.startswith("spec.podSelector: has no counterpart in Calico: ")
    assert found.problem.endswith("; it counts nothing")


def test_a_broken_staged_policy_counts_what_it_selects_as_denied() -> None:
    found = compiled(staged(StagedGlobalNetworkPolicy, "p", ingress=[HTTP]))
    assert found.policy
    assert (found.policy.staged, found.policy.broken != "") == (True, True)
    assert found.problem.endswith("; it counts what it selects as denied")
