from ipaddress import ip_address, ip_network

import pytest

from fabric.model.base import Resource
from fabric.model.workloadendpoint import WorkloadEndpoint
from policy import rules
from policy.form import Endpoint, Key, NamedPort, Profile
from policy.items import Item, Selectable, item, key
from tests.unit.policing import (
    global_net_set,
    host,
    namespace,
    net_set,
    policy,
    profile,
    read,
    workload,
    workload_key,
)

NS, ORCHESTRATOR, SA = (
    f"projectcalico.org/{name}" for name in ("namespace", "orchestrator", "serviceaccount")
)
PROFILES = {
    "kns.default": rules.profile(namespace("default", env="test")),
    "ksa.default.web": rules.profile(profile("ksa.default.web", {"pcsa.role": "web"})),
}


def item_of(resource: Selectable) -> Item:
    return item(resource, PROFILES, frozenset())


def endpoint_of(resource: Selectable) -> Endpoint:
    found = item_of(resource).endpoint
    assert found
    return found


@pytest.mark.parametrize(
    ("resource", "want"),
    [
        (workload("a"), workload_key("a")),
        (host("h", interfaceName="eth0"), Key("HostEndpoint", "", "h")),
        (net_set("s", namespace="x"), Key("NetworkSet", "x", "s")),
        (global_net_set("s"), Key("GlobalNetworkSet", "", "s")),
        (policy("p", "x"), Key("NetworkPolicy", "x", "p")),
        (read(WorkloadEndpoint, "n-o-w-e", {}), Key("WorkloadEndpoint", "default", "n-o-w-e")),
    ],
)
def test_keys(resource: Resource, want: Key) -> None:
    assert key(resource) == want


def test_a_workload() -> None:
    found = endpoint_of(
        workload(
            "w",
            "10.0.0.1",
            "fd00::1",
            labels={"app": "w"},
            serviceAccountName="web",
            profiles=("kns.default", "ksa.default.web", "missing"),
            ports={"http": 80},
            allowSpoofedSourcePrefixes=["192.0.2.0/24"],
        )
    )
    assert found == Endpoint(
        key=workload_key("w"),
        node="n1",
        interface="fabweth0",
        addresses=frozenset((ip_address("10.0.0.1"), ip_address("fd00::1"))),
        labels={
            "app": "w",
            "pcns.env": "test",
            "pcns.projectcalico.org/name": "default",
            "pcsa.role": "web",
            NS: "default",
            ORCHESTRATOR: "fabricctl",
            SA: "web",
        },
        profiles=("kns.default", "ksa.default.web", "missing"),
        ports=(NamedPort("http", 6, 80),),
        spoofed=(ip_network("192.0.2.0/24"),),
    )


def test_a_workload_is_in_its_own_namespace_whatever_its_labels_say() -> None:
    claimed = {NS: "kube-system", ORCHESTRATOR: "k8s", "pcns.env": "prod"}
    found = endpoint_of(workload("w", labels=claimed, profiles=()))
    assert found.labels == {NS: "default", ORCHESTRATOR: "fabricctl"}


def test_a_service_account_on_the_label_counts_where_the_field_is_empty() -> None:
    assert endpoint_of(workload("w", labels={SA: "old"})).labels[SA] == "old"
    assert endpoint_of(workload("w", labels={SA: "old"}, serviceAccountName="new")).labels[SA] == "new"


def test_a_workload_of_no_orchestrator_is_one_all_the_same() -> None:
    assert endpoint_of(workload("w", orchestrator="")).labels[ORCHESTRATOR] == ""


def test_ports_are_those_that_have_a_name() -> None:
    ports = [
        {"protocol": "TCP", "port": 8080, "hostPort": 80},
        {"name": "dns", "protocol": "UDP", "port": 53},
        {"name": "m3ua", "protocol": 132, "port": 2905},
    ]
    found = workload("w")
    spec = type(found.spec).model_validate({**found.spec.model_dump(by_alias=True), "ports": ports})
    assert endpoint_of(found.model_copy(update={"spec": spec})).ports == (
        NamedPort("dns", 17, 53),
        NamedPort("m3ua", 132, 2905),
    )


def test_a_host_endpoint() -> None:
    found = item_of(
        host(
            "h",
            labels={"role": "gw", "pcns.env": "odd"},
            expectedIPs=["192.0.2.1", "2001:db8::1"],
            profiles=["kns.default"],
            ports=[{"name": "ssh", "protocol": "TCP", "port": 22}],
        )
    )
    assert found.nets == {ip_network("192.0.2.1/32"), ip_network("2001:db8::1/128")}
    assert found.endpoint == Endpoint(
        key=Key("HostEndpoint", "", "h"),
        node="n1",
        interface="",
        addresses=frozenset((ip_address("192.0.2.1"), ip_address("2001:db8::1"))),
        labels={"role": "gw", "pcns.env": "odd", "pcns.projectcalico.org/name": "default"},
        profiles=("kns.default",),
        ports=(NamedPort("ssh", 6, 22),),
    )


def test_a_network_set_has_the_labels_of_its_namespace() -> None:
    found = item_of(net_set("s", "10.0.0.0/24", "10.0.1.1", labels={"a": "b", "pcns.env": "prod"}))
    assert found.endpoint is None
    assert found.nets == {ip_network("10.0.0.0/24"), ip_network("10.0.1.1/32")}
    assert found.labels == {
        "a": "b",
        NS: "default",
        "pcns.env": "test",
        "pcns.projectcalico.org/name": "default",
    }


def test_a_global_network_set_is_in_no_namespace() -> None:
    assert item_of(global_net_set("s", labels={"a": "b"})).labels == {"a": "b"}


LOGGED = rules.ProfileForm(Profile("kns.default"), drop_log=True)


@pytest.mark.parametrize(
    ("resource", "want"),
    [
        pytest.param(workload("w"), True, id="in the namespace"),
        pytest.param(
            workload("w", profiles=()), True, id="that is where it is, and not which profiles it has"
        ),
        pytest.param(workload("w", namespace="other", profiles=("kns.default",)), False, id="in another"),
        pytest.param(workload("w", namespace="other", node="n2"), True, id="on the node"),
        pytest.param(host("h", "n2", interfaceName="*"), True, id="the node's own"),
        pytest.param(host("h", interfaceName="*", profiles=["kns.default"]), False, id="another's"),
    ],
)
def test_drops_are_named_by_namespace_or_node(resource: Selectable, want: bool) -> None:
    found = item(resource, {"kns.default": LOGGED}, frozenset({"n2"})).endpoint
    assert found
    assert found.drop_log is want


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"orchestrator": "cni", "containerID": "c", "workload": ""}, ("default", "n1", "cni", "c")),
        ({"orchestrator": "k8s", "pod": "p"}, ("default", "n1", "k8s", "p")),
        ({"orchestrator": "k8s", "containerID": "c"}, None),
        ({}, ("default", "n1", "fabricctl", "w")),
        # All of its endpoints are called alike.
        ({"orchestrator": "libnetwork"}, None),
    ],
)
def test_whose_endpoint_it_is(spec: dict[str, object], want: tuple[str, ...] | None) -> None:
    resource = workload("w")
    changed = type(resource.spec).model_validate({**resource.spec.model_dump(by_alias=True), **spec})
    assert item_of(resource.model_copy(update={"spec": changed})).container == want
