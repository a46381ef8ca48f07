"""What `policy show` is made of: every list in its order, with counters of both families added up."""

from typing import Any

import pytest

from fabric.agent import report_policy
from fabric.agent.policing import Policing, policing
from fabric.errors import NotFound
from fabric.model import namespaces
from fabric.model.base import Resource
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.policy import GlobalNetworkPolicy, StagedGlobalNetworkPolicy
from fabric.model.tier import Tier
from fabric.plan.tables import VERSIONS, Counter
from tests.unit.test_agent_policing import HOST, KNOWN, SNAPSHOT, deny, stored, workload

FIRST = "GlobalNetworkPolicy first"
TIER = Tier.model_validate({"metadata": {"name": "sec"}, "spec": {"order": 5, "defaultAction": "Deny"}})
STAGED = StagedGlobalNetworkPolicy.model_validate(
    {
        "metadata": {"name": "sec.maybe"},
        "spec": {"tier": "sec", "selector": "app == 'db'", "ingress": [{"action": "Deny"}]},
    }
).as_written()
ON_FORWARD = GlobalNetworkPolicy.model_validate(
    {
        "metadata": {"name": "through"},
        "spec": {"selector": "has(host)", "applyOnForward": True, "egress": [{"action": "Allow"}]},
    }
).as_written()
CARD = HostEndpoint.model_validate(
    {
        "metadata": {"name": "n1-eth0", "labels": {"host": "n1"}},
        "spec": {"node": "n1", "interfaceName": "eth0"},
    }
)


def made(*resources: Resource) -> Policing:
    return policing("n1", stored(SNAPSHOT, *resources), HOST, None)


def counted(found: Policing) -> report_policy.Counters:
    """Every rule counted a packet of 100 bytes, in each family."""
    return {
        version: {
            (place, index): Counter(1, 100)
            for place, lines in found.composed.rulesets[version].chains.items()
            for index in range(len(lines))
        }
        for version in VERSIONS
    }


def shape(layers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(layer["what"], layer["name"]) for layer in layers]


def test_layers_come_in_the_order_in_which_they_are_asked() -> None:
    found = made(TIER, STAGED, deny("zz", "app == 'db'", "all()", 2))
    told = report_policy.workload(found, "default", "db", counted(found))
    assert shape(told["ingress"]) == [
        ("policy", "StagedGlobalNetworkPolicy sec.maybe"),
        ("tier", "sec"),
        ("policy", FIRST),
        ("policy", "GlobalNetworkPolicy zz"),
        ("tier", "default"),
        ("profile", "kns.default"),
        ("no-profile", ""),
    ]
    staged, end_of_staged, first, *_ = told["ingress"]
    assert (staged["staged"], end_of_staged["staged"], first["staged"]) == (True, True, False)
    assert end_of_staged["end"]["action"] == "Deny"  # once it is enforced
    assert shape(told["egress"]) == [("profile", "kns.default"), ("no-profile", "")]


def test_a_policys_counters_are_of_both_families_and_an_ends_of_its_own_list() -> None:
    found = made(workload("db", 2, ipv6=True, app="db"), deny("second", "app == 'web'", "app == 'db'"))
    told = report_policy.workload(found, "default", "db", counted(found))
    [first, end, *_] = told["ingress"]
    assert [(rule["action"], rule["packets"], rule["bytes"]) for rule in first["rules"]] == [
        ("Deny", 2, 200),
        ("Allow", 2, 200),
    ]
    assert first["rules"][0]["match"] == 'from app == "web"'
    assert (end["what"], end["end"]) == ("tier", {"action": "Deny", "packets": 2, "bytes": 200})


def test_without_counters_they_are_null() -> None:
    told = report_policy.workload(KNOWN, "default", "db", {})
    assert {rule["packets"] for layer in told["ingress"] for rule in layer["rules"]} == {None}


def test_a_host_endpoint_has_a_list_at_each_hook() -> None:
    found = made(CARD, ON_FORWARD)
    told = report_policy.host(found, "n1-eth0", counted(found))
    assert (told["interface"], told["endpoint"]) == ("eth0", "HostEndpoint n1-eth0")
    assert (told["links"], told["inactive"]) == (["eth0"], "")
    assert [(layer["hook"], layer["what"]) for layer in told["egress"]] == [
        ("normal", "policy"),
        ("normal", "tier"),
        ("normal", "no-profile"),
        ("forward", "policy"),
        ("forward", "tier"),
    ]


@pytest.mark.parametrize(("found", "name"), [(KNOWN, "far"), (KNOWN, "nobody"), (None, "db")])
def test_what_is_not_here_is_not_found(found: Policing | None, name: str) -> None:
    with pytest.raises(NotFound, match="not on this node"):
        report_policy.workload(found, "default", name, {})
    with pytest.raises(NotFound, match="not on this node"):
        report_policy.host(found, name, {})


def test_a_host_endpoint_that_acts_on_nothing_says_why() -> None:
    lost = HostEndpoint.model_validate(
        {"metadata": {"name": "lost"}, "spec": {"node": "n1", "interfaceName": "ens3"}}
    )
    told = report_policy.host(made(lost, ON_FORWARD), "lost", {})
    assert told["links"] == []
    assert "node n1 has no link ens3" in told["inactive"]


def test_a_profile_that_does_not_exist_is_said_to_be_missing() -> None:
    found = policing("n1", stored(SNAPSHOT, gone=[namespaces.profile("default")]), HOST, None)
    told = report_policy.workload(found, "default", "db", {})
    assert [(layer["name"], layer["missing"]) for layer in told["egress"]] == [
        ("kns.default", True),
        ("", False),
    ]


def test_policies_in_force_are_those_that_select_somebody_here() -> None:
    elsewhere = deny("elsewhere", "app == 'nobody'", "all()")
    assert report_policy.in_force(made(TIER, STAGED, elsewhere)) == (1, 1)
    assert report_policy.in_force(made(ON_FORWARD)) == (1, 0)
    assert report_policy.in_force(made(ON_FORWARD, CARD)) == (2, 0)
    assert report_policy.in_force(None) == (0, 0)
