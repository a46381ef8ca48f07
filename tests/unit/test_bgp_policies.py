"""What holds for all sessions of a node, from pools and BGPConfigurations."""

from ipaddress import ip_network
from typing import Any

from bgp import policies
from fabric.model.bgp import BGPConfiguration
from tests.fakes.node import pool


def configuration(name: str, **spec: Any) -> BGPConfiguration:
    return BGPConfiguration.model_validate({"metadata": {"name": name}, "spec": spec})


def advertisement(cidr: str, *communities: str) -> dict[str, object]:
    return {"cidr": cidr, "communities": list(communities)}


RACK = {"communities": [{"name": "rack", "value": "65000:7"}]}


def test_pools_with_disable_bgp_export_are_closed() -> None:
    found = policies.export_policy(
        "n1", [pool("10.1.0.0/16", "a"), pool("10.2.0.0/16", "b", disableBGPExport=True)], []
    )
    assert found.pools == {ip_network("10.1.0.0/16")}
    assert found.closed == {ip_network("10.2.0.0/16")}


def test_names_of_communities_become_their_values() -> None:
    cluster = configuration(
        "default", **RACK, prefixAdvertisements=[advertisement("10.1.0.0/16", "rack", "1:2:3")]
    )
    found = policies.export_policy("n1", [], [cluster])
    assert found.advertisements == ((ip_network("10.1.0.0/16"), ("65000:7", "1:2:3")),)


def test_a_nodes_own_list_replaces_the_clusters_for_its_family() -> None:
    cluster = configuration(
        "default",
        prefixAdvertisements=[advertisement("10.1.0.0/16", "1:1"), advertisement("fd00::/64", "1:6")],
    )
    own = configuration("node.n1", **RACK, prefixAdvertisements=[advertisement("10.0.0.0/8", "rack")])
    found = policies.export_policy("n1", [], [cluster, own, configuration("node.n2")])
    assert found.advertisements == (
        (ip_network("10.0.0.0/8"), ("65000:7",)),
        (ip_network("fd00::/64"), ("1:6",)),
    )


def test_normal_priorities_are_the_clusters_or_calicos() -> None:
    assert policies.export_policy("n1", [], []).priorities == {4: 1024, 6: 1024}
    found = policies.export_policy("n1", [], [configuration("default", ipv4NormalRoutePriority=100)])
    assert found.priorities == {4: 100, 6: 1024}
