import pytest

from policy import unread
from policy.form import Key, Policy
from policy.unread import Unread

NP, GNP = Key("NetworkPolicy", "prod", "p"), Key("GlobalNetworkPolicy", "", "p")
PROD = 'projectcalico.org/namespace == "prod"'


def left(key: Key, spec: object) -> Policy | None:
    return unread.policy(Unread(key, {"metadata": {"name": "p"}, "spec": spec}, "why")).policy


@pytest.mark.parametrize(
    ("key", "spec", "selector"),
    [
        (NP, {}, PROD),
        (NP, {"selector": "has(a)"}, f"({PROD} && has(a))"),
        (NP, {"selector": None, "namespaceSelector": "="}, PROD),
        (NP, {"serviceAccountSelector": "has(a)"}, f"({PROD} && has(pcsa.a))"),
        (GNP, {"selector": "has(a)", "namespaceSelector": "has(b)"}, "(has(a) && has(pcns.b))"),
        (GNP, {}, "all()"),
        (
            Key("NetworkPolicy", "prod", "knp.default.p"),
            {"selector": "projectcalico.org/orchestrator == 'k8s'"},
            f"({PROD} && has(projectcalico.org/orchestrator))",
        ),
    ],
)
def test_a_policy_that_cannot_be_read_denies_what_it_selects(key: Key, spec: object, selector: str) -> None:
    assert left(key, spec) == Policy(
        key,
        "default",
        None,
        selector,
        (),
        (),
        apply_on_forward=key == NP or bool(key.namespace),
        broken="why",
    )


@pytest.mark.parametrize(
    ("spec", "tier", "order", "types"),
    [
        ({"tier": "t", "order": 5, "types": ["Ingress"]}, "t", 5, (True, False)),
        ({"tier": "", "order": 1.5, "types": ["Egress"]}, "default", 1.5, (False, True)),
        ({"tier": 3, "order": "x", "types": ["Ingres"]}, "default", None, (True, True)),
        ({"order": True, "types": [["Ingress"]]}, "default", None, (True, True)),
        ({"order": float("nan"), "types": []}, "default", None, (True, True)),
        ({"order": float("-inf")}, "default", None, (True, True)),
        ({"order": 10**400}, "default", None, (True, True)),
        ({"order": None, "types": {}}, "default", None, (True, True)),
    ],
)
def test_where_it_stands_as_far_as_that_can_be_read(
    spec: object, tier: str, order: float | None, types: tuple[bool, bool]
) -> None:
    found = left(GNP, spec)
    assert found
    assert (found.tier, found.order, (found.ingress is not None, found.egress is not None)) == (
        tier,
        order,
        types,
    )


@pytest.mark.parametrize("flag", ["doNotTrack", "preDNAT", "applyOnForward"])
@pytest.mark.parametrize("value", [True, "true"])
def test_its_flags(flag: str, value: object) -> None:
    found = left(GNP, {flag: value})
    assert found
    told = {
        "doNotTrack": found.do_not_track,
        "preDNAT": found.pre_dnat,
        "applyOnForward": found.apply_on_forward,
    }
    assert told == dict.fromkeys(told, False) | {flag: value is True}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        {"spec": []},
        {"spec": {"selector": "a = 'b'"}},
        {"spec": {"selector": 5}},
        {"spec": {"selector": "global()"}},
        {"spec": {"namespaceSelector": ["x"]}},
        {"spec": {"serviceAccountSelector": "("}},
    ],
)
def test_of_what_it_selects_nothing_is_guessed(value: object) -> None:
    found = unread.policy(Unread(GNP, value, "why"))
    assert (found.policy, found.problem) == (
        None,
        "why; it decides nothing: what it selects cannot be told",
    )


def test_it_says_what_it_does_instead() -> None:
    found = unread.policy(Unread(GNP, {"spec": {}}, "why"))
    assert found.problem == "why; it denies what it selects"
    host = Unread(
        Key("HostEndpoint", "", "h"), {"spec": {"node": "n", "interfaceName": "eth0", "x": []}}, "why"
    )
    assert unread.instead(host) == "what of it can be read stands"
    assert unread.instead(Unread(Key("HostEndpoint", "", "h"), None, "")).startswith("which link it closes")
    assert unread.instead(Unread(Key("IPPool", "", "a"), {}, "")) == "it counts as absent"


def test_an_exported_policy_of_kubernetes_that_cannot_be_read_denies_every_workload() -> None:
    spec = {"selector": "projectcalico.org/orchestrator == 'k8s'", "ingress": "x"}
    found = unread.policy(Unread(Key("NetworkPolicy", "prod", "p"), {"spec": spec}, "why")).policy
    assert found
    assert found.selector == (
        '(projectcalico.org/namespace == "prod" && has(projectcalico.org/orchestrator))'
    )


def test_a_staged_policy_that_cannot_be_read_counts_nothing() -> None:
    found = unread.policy(Unread(Key("StagedNetworkPolicy", "prod", "p"), {"spec": {}}, "why"))
    assert (found.policy, found.problem) == (None, "why; it counts nothing")


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ({"spec": {"labelsToApply": {"a": "b", "c": 5}, "ingress": "x"}}, {"a": "b"}),
        ({"spec": {"labelsToApply": []}}, {}),
        ({"spec": 1}, {}),
        (None, {}),
    ],
)
def test_a_profile_that_cannot_be_read_hands_on_its_labels_and_allows_nothing(
    value: object, labels: dict[str, str]
) -> None:
    found = unread.profile(Unread(Key("Profile", "", "kns.a"), value, "why"))
    assert (found.profile.name, found.profile.ingress, found.profile.egress) == ("kns.a", (), ())
    assert (found.labels, found.problem) == (labels, "why; it allows nothing")


@pytest.mark.parametrize(
    ("value", "order", "place"),
    [
        ({"spec": {"order": 5, "defaultAction": "Pas"}}, 5, "by its order 5"),
        ({"spec": {"order": "5"}}, None, "last"),
    ],
)
def test_a_tier_that_cannot_be_read_stands_where_it_says_and_denies(
    value: object, order: float | None, place: str
) -> None:
    found = unread.tier(Unread(Key("Tier", "", "t"), value, "why"))
    assert (found.name, found.order, found.default) == ("t", order, "Deny")
    assert found.problem == f"why; it stands {place}, and denies at its end"


ETH0 = {"node": "n1", "interfaceName": "eth0"}


@pytest.mark.parametrize(
    ("spec", "labels", "want"),
    [
        ({**ETH0, "ports": [{"name": "x", "port": -1}]}, {"a": "b"}, ("eth0", (), {"a": "b"})),
        ({**ETH0, "profiles": ["kns.a"], "expectedIPs": ["?"]}, {"a": ["b"]}, ("eth0", ("kns.a",), {})),
        ({**ETH0, "profiles": "kns.a"}, "?", ("eth0", (), {})),
        ({"node": "n1", "interfaceName": 7, "expectedIPs": ["192.0.2.1"]}, {}, (None, (), {})),
        ({"node": "n1", "interfaceName": 7}, {}, None),
        ({"node": 1, "interfaceName": "eth0"}, {}, None),
        ({"interfaceName": "eth0"}, {}, None),
        (None, None, None),
    ],
)
def test_a_host_endpoint_that_cannot_be_read_closes_its_link(
    spec: object, labels: object, want: tuple[str | None, tuple[str, ...], dict[str, str]] | None
) -> None:
    value = {"metadata": {"name": "other", "labels": labels}, "spec": spec}
    found = unread.host(Unread(Key("HostEndpoint", "", "h"), value, "why"))
    if want is None:
        assert found is None
    else:
        assert found
        assert found.metadata.name == "h"
        assert (found.spec.interface_name, found.spec.profiles, dict(found.metadata.labels)) == want


def test_of_a_host_endpoint_that_is_no_json_nothing_is_left() -> None:
    assert unread.host(Unread(Key("HostEndpoint", "", "h"), None, "why")) is None
    assert unread.host(Unread(Key("HostEndpoint", "", "Not a name"), {"spec": ETH0}, "why")) is None
