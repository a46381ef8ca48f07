import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import ConfigError
from fabric.model.wire import from_json, to_json


def resource(kind: str, spec: object, **metadata: object) -> str:
    return json.dumps(
        {
            "kind": kind,
            "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": "x", **metadata},
            "spec": spec,
        }
    )


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    return str(caught.value)


COPY = "projectcalico.org/metadata"


def rewritten(text: str) -> dict[str, Any]:
    value = json.loads(to_json(from_json(text)))
    assert isinstance(value, dict)
    return value


ALLOW = {"action": "Allow"}
SERVICE = {"services": {"name": "db", "namespace": "prod"}}


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, ["Ingress"]),
        ({"ingress": [ALLOW]}, ["Ingress"]),
        ({"egress": [ALLOW]}, ["Egress"]),
        ({"ingress": [ALLOW], "egress": [ALLOW]}, ["Ingress", "Egress"]),
        ({"types": ["Egress"], "ingress": [ALLOW]}, ["Egress"]),
        ({"types": []}, ["Ingress"]),
    ],
)
@pytest.mark.parametrize(
    "kind", ["NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"]
)
def test_types_follow_from_the_rules_where_none_are_given(kind: str, spec: object, types: list[str]) -> None:
    written = rewritten(resource(kind, spec))["spec"]
    assert isinstance(written, dict)
    assert written["types"] == types


@pytest.mark.parametrize("tier", [{}, {"tier": ""}, {"tier": "default"}])
def test_a_policy_without_a_tier_is_of_the_default_one(tier: dict[str, str]) -> None:
    written = rewritten(resource("NetworkPolicy", tier, labels={"a": "b", "projectcalico.org/tier": "old"}))
    assert written["spec"] == {"tier": "default", "types": ["Ingress"]}
    assert written["metadata"]["labels"] == {"a": "b", "projectcalico.org/tier": "default"}


@pytest.mark.parametrize(
    ("kind", "copied"),
    [
        ("NetworkPolicy", True),
        ("GlobalNetworkPolicy", True),
        ("StagedNetworkPolicy", True),
        ("StagedGlobalNetworkPolicy", True),
        ("StagedKubernetesNetworkPolicy", False),
        ("Profile", False),
    ],
)
def test_policies_of_a_tier_are_written_with_a_copy_of_their_name(kind: str, copied: bool) -> None:
    annotations = rewritten(resource(kind, {}, annotations={"note": "y"}))["metadata"]["annotations"]
    assert annotations == {"note": "y", **({COPY: '{"name":"x"}'} if copied else {})}


@pytest.mark.parametrize(
    ("copy", "written"),
    [('{"name":"old"}', '{"name":"x"}'), ('{"name":"old","uid":"u"}', '{"name":"old","uid":"u"}')],
)
def test_a_copy_of_another_name_alone_is_mended_and_one_that_holds_more_is_kept(
    copy: str, written: str
) -> None:
    value = rewritten(resource("NetworkPolicy", {}, annotations={COPY: copy}))
    assert value["metadata"]["annotations"] == {COPY: written}


@pytest.mark.parametrize(
    ("order", "written"), [(0, "0"), (1000000.0, "1000000"), (-1.5, "-1.5"), (1e21, "1000000000000000000000")]
)
def test_an_order_is_written_as_go_writes_a_float(order: float, written: str) -> None:
    assert f'"order":{written}' in to_json(from_json(resource("Tier", {"order": order})))


GLOBAL_ALONE = "global() stands alone, with no other term and no parentheses"
GLOBAL_HERE = "global() has a meaning in the namespaceSelector of a rule's source or destination only"

WRONG_RULES = [
    ({**ALLOW, "protocol": "ICMP", "ipVersion": 6}, '.protocol: "ICMP"', "needs ipVersion 4"),
    ({**ALLOW, "notProtocol": 58, "ipVersion": 4}, ".notProtocol: 58", "needs ipVersion 6"),
    ({**ALLOW, "icmp": {"type": 8}}, ".icmp", "needs protocol ICMP or ICMPv6"),
    ({**ALLOW, "protocol": "ICMP", "icmp": {"code": 0}}, ".icmp.code: 0", "needs type"),
    ({**ALLOW, "http": {}, "protocol": "UDP"}, ".http", "needs protocol TCP, or none"),
    ({"action": "Deny", "http": {}}, ".http", "needs action Allow"),
    ({**ALLOW, "http": {"methods": ["GET", "GET"]}}, ".http.methods", "holds a value more than once"),
    ({**ALLOW, "http": {"paths": [{}]}}, ".http.paths[0]", "needs either exact or prefix"),
    (
        {**ALLOW, "http": {"paths": [{"exact": "/a?b"}]}},
        ".http.paths[0]",
        'a path begins with "/" and has no "?", "#" or blank',
    ),
    (
        {**ALLOW, "source": {"nets": ["10.0.0.1/8"]}},
        '.source.nets[0]: "10.0.0.1/8"',
        "has host bits set; the prefix around it is 10.0.0.0/8",
    ),
    (
        {**ALLOW, "source": {"notNets": ["::/0"]}},
        ".source.notNets",
        "must not hold a whole address family: the rule could never match",
    ),
    ({**ALLOW, "source": {"selector": "a == 'b' && global()"}}, ".source.selector: …", GLOBAL_HERE),
    ({**ALLOW, "source": {"notSelector": "!global()"}}, ".source.notSelector: …", GLOBAL_HERE),
    ({**ALLOW, "source": {"namespaceSelector": "(global())"}}, ".source.namespaceSelector: …", GLOBAL_ALONE),
    (
        {**ALLOW, "source": {"namespaceSelector": "global() || has(a)"}},
        ".source.namespaceSelector: …",
        GLOBAL_ALONE,
    ),
    (
        {**ALLOW, "source": {**SERVICE, "selector": "all()"}},
        ".source.services",
        "exclude nets, selectors and serviceAccounts",
    ),
    ({**ALLOW, "source": {"services": {"namespace": "a"}}}, ".source.services.name", "is required"),
    (
        {**ALLOW, "destination": SERVICE},
        ".destination.services",
        "an ingress rule has services as its source only",
    ),
]


@pytest.mark.parametrize(("rule", "where", "why"), WRONG_RULES)
@pytest.mark.parametrize("kind", ["NetworkPolicy", "GlobalNetworkPolicy"])
def test_an_ingress_rule_that_cannot_mean_anything_is_refused(
    kind: str, rule: dict[str, object], where: str, why: str
) -> None:
    where, shown = where.removesuffix(": …"), where.endswith(": …")
    said = refusal(resource(kind, {"ingress": [rule]}))
    assert said.startswith(f"{kind} x: spec.ingress[0]{where}: ")
    assert said.endswith(f": {why}")
    assert shown or said == f"{kind} x: spec.ingress[0]{where}: {why}"


@pytest.mark.parametrize(
    ("rule", "where", "why"),
    [
        ({**ALLOW, "http": {}}, ".http", "only ingress rules have http"),
        (
            {**ALLOW, "source": SERVICE},
            ".source.services",
            "an egress rule has services as its destination only",
        ),
        (
            {**ALLOW, "protocol": "TCP", "destination": {**SERVICE, "ports": [80]}},
            ".destination.services",
            "as the destination exclude ports and notPorts: a service has its own",
        ),
    ],
)
def test_an_egress_rule_that_cannot_mean_anything_is_refused(
    rule: dict[str, object], where: str, why: str
) -> None:
    said = refusal(resource("NetworkPolicy", {"egress": [rule]}))
    assert said == f"NetworkPolicy x: spec.egress[0]{where}: {why}"


def test_services_are_the_source_of_ingress_with_ports_and_the_destination_of_egress() -> None:
    spec = {
        "ingress": [{**ALLOW, "protocol": "TCP", "source": SERVICE, "destination": {"ports": [80]}}],
        "egress": [{**ALLOW, "source": {}, "destination": SERVICE}],
    }
    assert rewritten(resource("GlobalNetworkPolicy", spec))["spec"] == {
        "tier": "default",
        **spec,
        "types": ["Ingress", "Egress"],
    }


def test_only_a_global_policy_must_say_the_namespace_of_a_service() -> None:
    spec = {"ingress": [{**ALLOW, "source": {"services": {"name": "db"}}}]}
    from_json(resource("NetworkPolicy", spec))
    assert refusal(resource("GlobalNetworkPolicy", spec)) == (
        "GlobalNetworkPolicy x: spec.ingress[0].source.services.namespace: "
        "is required: a global policy has no namespace of its own"
    )


def test_every_wrong_rule_is_told_at_once() -> None:
    wrong = {**ALLOW, "destination": SERVICE}
    said = refusal(resource("NetworkPolicy", {"ingress": [wrong, ALLOW, wrong], "order": "first"}))
    assert [line.split(": ")[0] for line in said.removeprefix("NetworkPolicy x: ").split("; ")] == [
        "spec.order",
        "spec.ingress[0].destination.services",
        "spec.ingress[2].destination.services",
    ]


@pytest.mark.parametrize(
    ("kind", "spec", "why"),
    [
        (
            "GlobalNetworkPolicy",
            {"doNotTrack": True, "preDNAT": True, "applyOnForward": True},
            "spec.preDNAT: excludes doNotTrack",
        ),
        (
            "GlobalNetworkPolicy",
            {"doNotTrack": True},
            "spec.doNotTrack: needs applyOnForward: true",
        ),
        (
            "StagedGlobalNetworkPolicy",
            {"preDNAT": True, "applyOnForward": True, "egress": [ALLOW]},
            "spec.preDNAT: excludes egress rules and the type Egress: it acts before routing",
        ),
        (
            "GlobalNetworkPolicy",
            {"preDNAT": True, "applyOnForward": True, "types": ["Egress"]},
            "spec.preDNAT: excludes egress rules and the type Egress: it acts before routing",
        ),
        (
            "GlobalNetworkPolicy",
            {"namespaceSelector": "global()"},
            f'spec.namespaceSelector: "global()": {GLOBAL_HERE}',
        ),
        ("NetworkPolicy", {"selector": "global()"}, f'spec.selector: "global()": {GLOBAL_HERE}'),
        ("NetworkPolicy", {"types": ["Egress", "Egress"]}, "spec.types: holds a value more than once"),
        ("NetworkPolicy", {"order": True}, "spec.order: true: must be a number"),
        ("NetworkPolicy", {"order": 10**400}, f"spec.order: {str(10**400)[:60]}…: must be a number"),
        ("NetworkPolicy", {"doNotTrack": True}, None),
        (
            "StagedNetworkPolicy",
            {"stagedAction": "Delete", "tier": "a", "selector": "all()"},
            "spec.selector: stagedAction Delete takes nothing beside it but the tier",
        ),
        (
            "StagedKubernetesNetworkPolicy",
            {"stagedAction": "Delete", "policyTypes": ["Ingress"]},
            "spec.policyTypes: stagedAction Delete takes nothing beside it but the tier",
        ),
    ],
)
def test_a_policy_whose_settings_contradict_one_another_is_refused(
    kind: str, spec: object, why: str | None
) -> None:
    text = resource(kind, spec)
    if why is None:
        from_json(text)
    else:
        assert refusal(text) == f"{kind} x: {why}"


ONE_DOT = "a policy's name is lower-case letters, digits and '-', with at most one '.'"


@pytest.mark.parametrize(
    ("kind", "name", "rule"),
    [
        ("NetworkPolicy", "tier.web", None),
        ("NetworkPolicy", "knp.default.a.b.c", None),
        ("NetworkPolicy", "a.b.c", ONE_DOT),
        ("GlobalNetworkPolicy", "knp.default.a", ONE_DOT),
        ("StagedGlobalNetworkPolicy", "default.web", None),
        ("StagedNetworkPolicy", "a.b.c", ONE_DOT),
        ("Tier", "a" * 63, None),
        ("Tier", "a.b", "a tier's name is at most 63 lower-case letters, digits and '-'"),
        ("IPAMConfiguration", "other", 'there is one IPAMConfiguration, called "default"'),
    ],
)
def test_some_kinds_ask_more_of_a_name(kind: str, name: str, rule: str | None) -> None:
    text = resource(kind, {}, name=name)
    if rule is None:
        from_json(text)
    else:
        assert refusal(text) == f'{kind} {name}: metadata.name: "{name}": {rule}'


@pytest.mark.parametrize("namespace", ["Prod", "a.b", "a/b", " ", "a" * 64])
def test_a_namespace_is_one_label(namespace: str) -> None:
    said = refusal(resource("NetworkPolicy", {}, namespace=namespace))
    assert said.endswith("must be at most 63 lower-case letters, digits and '-'")


def test_a_tier_is_called_by_one_label() -> None:
    assert "a tier's name is at most 63" in refusal(resource("Tier", {}, name="a" * 64))
    assert "a tier's name is at most 63" in refusal(resource("NetworkPolicy", {"tier": "a" * 64}))


@pytest.mark.parametrize(
    ("name", "spec", "stays"),
    [
        ("default", {"order": 1000000, "defaultAction": "Deny"}, True),
        ("default", {"order": 1000000}, True),
        ("default", {"order": 1}, False),
        ("kube-admin", {"order": 1000}, False),
        ("kube-baseline", {"order": 10000000.0, "defaultAction": "Pass"}, True),
        ("kube-baseline", {"defaultAction": "Pass"}, False),
        ("own", {"defaultAction": "Pass"}, True),
    ],
)
def test_the_built_in_tiers_stay_as_they_are(name: str, spec: object, stays: bool) -> None:
    text = resource("Tier", spec, name=name)
    if stays:
        from_json(text)
    else:
        assert f"Tier {name}: spec: the built-in tier {name} has order" in refusal(text)


def test_a_network_set_is_not_told_its_namespace_by_a_label() -> None:
    said = refusal(resource("NetworkSet", {}, labels={"projectcalico.org/namespace": "a"}))
    assert said == (
        'NetworkSet x: metadata.labels.projectcalico.org/namespace: "a": '
        "is derived from metadata.namespace and cannot be given"
    )


labels = st.sampled_from(["", "all()", "a == 'b'", "has(x) && !has(y)", "role in {'b', 'a'}"])
nets4 = st.lists(
    st.sampled_from(["10.0.0.0/8", "192.0.2.1", "192.0.2.0/24", "203.0.113.7/32"]), max_size=3, unique=True
)
ports = st.lists(st.sampled_from([53, "80", "8000:8080", "dns"]), max_size=3)
ends = st.fixed_dictionaries(
    {},
    optional={
        "nets": nets4,
        "notNets": nets4,
        "selector": labels,
        "notSelector": labels,
        "namespaceSelector": st.sampled_from(["", "all()", "global()", "env == 'prod'"]),
        "ports": ports,
        "notPorts": ports,
        "serviceAccounts": st.fixed_dictionaries({}, optional={"selector": labels}),
    },
)
rules = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["Allow", "Deny", "Log", "Pass"]),
        "protocol": st.sampled_from(["tcp", "UDP", 132]),
    },
    optional={
        "ipVersion": st.just(4),
        "source": ends,
        "destination": ends,
        "metadata": st.just({"annotations": {"a": "b"}}),
        "later": st.just({"unknown": [None]}),
    },
)


@given(
    st.lists(rules, max_size=3),
    st.lists(rules, max_size=3),
    st.sampled_from(["NetworkPolicy", "GlobalNetworkPolicy"]),
)
def test_reading_what_was_written_changes_nothing(
    ingress: list[object], egress: list[object], kind: str
) -> None:
    once = to_json(from_json(resource(kind, {"ingress": ingress, "egress": egress})))
    assert to_json(from_json(once)) == once
    spec = json.loads(once)["spec"]
    assert [rule.get("later") for rule in spec.get("ingress", [])] == [
        rule.get("later") for rule in ingress if isinstance(rule, dict)
    ]
