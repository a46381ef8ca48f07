"""A node's policy out of the datastore: what a whole pass works out, and what an attach adds to it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from fabric.agent.policing import Policing, policing, with_own
from fabric.agent.routing import Host
from fabric.agent.snapshot import Snapshot, fold
from fabric.model import namespaces
from fabric.model.base import Resource
from fabric.model.extensions import FORWARDING
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.networkset import GlobalNetworkSet
from fabric.model.node import Node
from fabric.model.policy import GlobalNetworkPolicy
from fabric.model.wire import to_json
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops.resources import key_of
from fabric.plan.tables import VERSIONS, Place, Version
from fabric.store.kv import Changes, KeyValue
from tests.fakes.node import pool

HOST = Host(links={"eth0": frozenset({ip_address("192.0.2.1")})}, routed_before=frozenset({6}))
POLICIES = "/calico/resources/v3/projectcalico.org/globalnetworkpolicies"


def node(name: str = "n1", number: int = 1, annotations: Mapping[str, str] | None = None) -> Node:
    return Node.model_validate(
        {
            "metadata": {"name": name, "annotations": annotations or {}},
            "spec": {"bgp": {"ipv4Address": f"192.0.2.{number}/24"}},
        }
    )


def workload(
    name: str, number: int, on: str = "n1", namespace: str = "default", ipv6: bool = False, **labels: str
) -> WorkloadEndpoint:
    return WorkloadEndpoint.model_validate(
        {
            "metadata": {"name": f"{on}-fabricctl-{name}-eth0", "namespace": namespace, "labels": labels},
            "spec": {
                "node": on,
                "orchestrator": "fabricctl",
                "workload": name,
                "endpoint": "eth0",
                "ipNetworks": [f"10.0.0.{number}/32", *([f"fd00::{number}/128"] if ipv6 else [])],
                "profiles": [f"kns.{namespace}"],
                "interfaceName": f"fab{number:012x}",
            },
        }
    ).as_written()


def deny(name: str, selector: str, source: str, order: float = 1) -> GlobalNetworkPolicy:
    return GlobalNetworkPolicy.model_validate(
        {
            "metadata": {"name": name},
            "spec": {
                "selector": selector,
                "order": order,
                "ingress": [{"action": "Deny", "source": {"selector": source}}, {"action": "Allow"}],
            },
        }
    ).as_written()


STORED = (
    node(),
    node("n2", 2),
    pool("10.0.0.0/24"),
    namespaces.profile("default"),
    workload("web", 1, app="web"),
    workload("db", 2, app="db"),
    workload("far", 3, on="n2", app="web"),
    deny("first", "app == 'db'", "app == 'web'"),
)


def stored(snapshot: Snapshot, *resources: Resource, gone: Iterable[Resource] = ()) -> Snapshot:
    revision = snapshot.revision + 1
    puts = tuple(KeyValue(key_of(r), to_json(r), revision) for r in resources)
    return fold(snapshot, Changes(revision, puts, tuple(map(key_of, gone))))


SNAPSHOT = stored(Snapshot(), *STORED)
KNOWN = policing("n1", SNAPSHOT, HOST, None)
LATER = [
    pytest.param([workload("db", 2, app="db", tier="back")], [], id="a label"),
    pytest.param([workload("new", 4, app="web")], [], id="a workload here"),
    pytest.param([workload("new", 4, on="n2", app="web")], [], id="a workload elsewhere"),
    pytest.param([], [workload("db", 2)], id="a workload gone"),
    pytest.param([deny("second", "all()", "app == 'db'", 2)], [], id="a policy"),
    pytest.param([deny("first", "app == 'db'", "app == 'x'")], [], id="another rule"),
    pytest.param([], [deny("first", "all()", "all()")], id="a policy gone"),
    pytest.param([node("n3", 3), pool("10.9.0.0/16", "second")], [], id="what the site is made of"),
    pytest.param(
        [
            GlobalNetworkSet.model_validate(
                {"metadata": {"name": "ext", "labels": {"app": "web"}}, "spec": {"nets": ["198.51.100.0/24"]}}
            )
        ],
        [],
        id="a network set",
    ),
]


def alike(one: Policing, other: Policing) -> bool:
    return (one.composed.rulesets, one.composed.sets) == (other.composed.rulesets, other.composed.sets)


@pytest.mark.parametrize(("puts", "gone"), LATER)
def test_what_is_kept_gives_the_same_as_from_scratch(puts: list[Resource], gone: list[Resource]) -> None:
    after = stored(SNAPSHOT, *puts, gone=gone)
    kept = policing("n1", after, HOST, KNOWN)
    assert alike(policing("n1", after, HOST, kept, tidy=True), policing("n1", after, HOST, None))
    there_and_back = policing("n1", SNAPSHOT, HOST, kept)
    assert alike(policing("n1", SNAPSHOT, HOST, there_and_back, tidy=True), KNOWN)


def test_where_nothing_changed_it_is_the_same_object() -> None:
    again = stored(SNAPSHOT, pool("10.0.0.0/24"))  # written again, to the same effect
    assert policing("n1", SNAPSHOT, replace(HOST, mtu=9000), KNOWN) is KNOWN
    assert policing("n1", again, HOST, KNOWN) is KNOWN


def test_an_attach_adds_its_own_endpoint_alone() -> None:
    here, elsewhere = workload("new", 4, app="web"), workload("late", 5, on="n2", app="web")
    after = stored(SNAPSHOT, here, elsewhere, deny("second", "all()", "app == 'db'"))
    attached = with_own("n1", after, KNOWN)
    assert alike(attached, policing("n1", stored(SNAPSHOT, here), HOST, None))
    assert with_own("n1", after, attached) is attached
    # What it left out, the next whole pass makes up for.
    assert alike(policing("n1", after, HOST, attached), policing("n1", after, HOST, None))


def test_the_first_workload_of_a_namespace_is_not_closed_for_lack_of_its_profile() -> None:
    after = stored(SNAPSHOT, namespaces.profile("shop"), workload("till", 4, namespace="shop"))
    assert alike(with_own("n1", after, KNOWN), policing("n1", after, HOST, None))


def test_an_attach_to_a_group_that_is_there_touches_only_sets() -> None:
    after = with_own("n1", stored(SNAPSHOT, workload("web2", 4, app="web")), KNOWN)
    assert after.composed.rulesets == KNOWN.composed.rulesets
    assert after.composed.sets != KNOWN.composed.sets


def test_a_container_that_comes_as_another_goes_costs_no_restore() -> None:
    alone = policing("n1", stored(SNAPSHOT, gone=[workload("db", 2)]), HOST, None)
    without = stored(SNAPSHOT, gone=[workload("db", 2), workload("web", 1)])
    gone = with_own("n1", without, alone)
    assert gone.composed.rulesets == alone.composed.rulesets
    assert not {
        member for ipset in gone.composed.sets.values() for member in ipset.members if "fab" in member
    }
    again = with_own("n1", stored(without, workload("next", 7, app="web")), gone)
    assert again.composed.rulesets == alone.composed.rulesets
    assert alike(policing("n1", without, HOST, gone, tidy=True), policing("n1", without, HOST, None))
    # What a policy says by now is not what it said to those of lately.
    changed = stored(without, deny("first", "app == 'db'", "app == 'x'"))
    assert alike(policing("n1", changed, HOST, gone), policing("n1", changed, HOST, None))


def end_of_forward(found: Policing, version: Version) -> tuple[str, ...]:
    return found.composed.rulesets[version].chains[Place("filter", "fab-forward-end")]


@pytest.mark.parametrize(
    ("said", "closed"), [({}, {4}), ({FORWARDING: "accept"}, set()), ({FORWARDING: "keep"}, {4})]
)
def test_a_host_that_did_not_route_before_does_not_begin_to(said: dict[str, str], closed: set[int]) -> None:
    found = policing("n1", stored(SNAPSHOT, node(annotations=said)), HOST, KNOWN)
    assert {v for v in VERSIONS if "-j DROP" in end_of_forward(found, v)} == closed


def test_settings_come_from_felix_configuration() -> None:
    spec = {"defaultEndpointToHostAction": "Accept", "vxlanPort": 8472}
    felix = FelixConfiguration.model_validate({"metadata": {"name": "default"}, "spec": spec})
    found = policing("n1", stored(SNAPSHOT, felix), HOST, KNOWN)
    assert {site.to_host for site in found.sites.values()} == {"Accept"}
    assert found.sites[4].vxlan_port == 8472
    assert found.sites[4].pools == {ip_network("10.0.0.0/24")}


BAD = """{"kind": "GlobalNetworkPolicy", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "bad"},
"spec": {"selector": "app == 'web'", "order": 0, "types": ["Ingress"], "ingress": [{"action": "Perhaps"}]}}"""


def test_a_stored_policy_that_cannot_be_read_denies_what_it_selects() -> None:
    bad = KeyValue(f"{POLICIES}/bad", BAD, SNAPSHOT.revision + 1)
    snapshot = fold(SNAPSHOT, Changes(bad.revision, (bad,)))
    assert bad.key in snapshot.problems
    found = policing("n1", snapshot, HOST, KNOWN)
    web = next(key for key in found.world.endpoints if key.name.startswith("n1-fabricctl-web"))
    [tier] = found.world.applied(web, "Ingress").tiers
    assert [(policy.key.name, bool(policy.broken)) for policy in tier.policies] == [("bad", True)]
    mended = fold(snapshot, Changes(bad.revision + 1, deletes=(bad.key,)))
    assert not mended.unread
    assert alike(policing("n1", mended, HOST, found), KNOWN)


def test_what_is_named_here_and_is_not_there_is_told() -> None:
    card = HostEndpoint.model_validate(
        {"metadata": {"name": "card"}, "spec": {"node": "n1", "interfaceName": "ens3"}}
    )
    assert KNOWN.problems == {}
    found = policing("n1", stored(SNAPSHOT, card, gone=[namespaces.profile("default")]), HOST, KNOWN)
    assert found.problems == {
        "HostEndpoint card": "node n1 has no link ens3, or that is a port of a bridge: it acts on nothing",
        "Profile kns.default": "does not exist, and is one of WorkloadEndpoint default/n1-fabricctl-db-eth0, and 1 "
        "more of this node: it allows nothing, and gives no labels",
    }
    again = policing("n1", stored(SNAPSHOT), replace(HOST, links={"ens3": frozenset()}), found)
    assert again.problems == {}
