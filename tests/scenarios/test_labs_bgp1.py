"""Labs of BGP with top-of-rack routers: what stands beside each, what that cannot say, and what breaking it costs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from fabric.lab import faults, routers
from fabric.lab.expect import Endpoint
from fabric.lab.lab import Lab
from tests.scenarios.fabric import SHIPPED, until
from tests.scenarios.shipped import cost, missed, outage, quiet, shipped

HOLD_TIME = 9_000.0  # ms, of every session in two-racks
AT_ONCE = 1_000.0  # ms: what a loss of carrier may cost; 10 to 200 on a quiet machine
FLOWS = (
    Endpoint("web", "node1", "web"),
    Endpoint("api", "node2", "api"),
    Endpoint("db", "node3", "db"),
    Endpoint("outside", "outside"),
)


def session(lab: Lab, node: str) -> Any:
    """Return the node's only session, as `bgp peers` has it."""
    (only,) = json.loads(lab.exec(node, ["fabricctl", "bgp", "peers", "-o", "json"]).stdout)
    return only


def hints(lab: Lab, node: str) -> str:
    """Return what is likely wrong with the node's only session, and what would mend it."""
    return "; ".join(f"{hint['cause']}: {hint['cure']}" for hint in session(lab, node)["hints"])


def reaches(lab: Lab, node: str, workload: str, address: str) -> bool:
    inside = ["fabricctl", "workload", "exec", workload, "--"]
    return not lab.exec(node, [*inside, "ping", "-c1", "-W1", address], check=False).returncode


def next_hops(lab: Lab, node: str, prefix: str) -> set[str]:
    """Return the next hops of all paths to the prefix that the node has learned by BGP."""
    return {*routers.bgp_table(lab, node).get(ip_network(prefix), ())}


# two-racks


@pytest.fixture(scope="module")
def two_racks() -> Iterator[Lab]:
    """One lab for all of the tests below, each of which leaves it whole."""
    with shipped("two-racks") as lab:
        assert missed(lab) == []
        assert not lab.up()
        yield lab


@pytest.mark.alone
def test_each_uplink_is_the_source_and_the_next_hop_of_its_session(two_racks: Lab) -> None:
    assert next_hops(two_racks, "tor1", "10.77.1.0/26") == {"10.10.11.2"}
    assert next_hops(two_racks, "tor2", "10.77.1.0/26") == {"10.10.12.2"}
    # And a ToR is the next hop of what it reflects.
    assert next_hops(two_racks, "node2", "10.77.1.0/26") == {"10.10.21.1", "10.10.22.1"}


@pytest.mark.alone
@pytest.mark.parametrize("link", ["tor1:eth2-node1:eth1", "tor2:eth2-node1:eth2", "spine:eth1-tor1:eth1"])
def test_a_cut_link_is_noticed_at_once(two_racks: Lab, link: str) -> None:
    assert outage(cost(two_racks, FLOWS, lambda: faults.cut(two_racks, link))) < AT_ONCE


@pytest.mark.alone
@pytest.mark.parametrize("link", ["tor1:eth2-node1:eth1", "spine:eth2-tor2:eth1"])
def test_a_link_that_is_cut_silently_costs_the_hold_time(two_racks: Lab, link: str) -> None:
    report = cost(two_racks, FLOWS, lambda: faults.cut(two_racks, link, silent=True))
    assert HOLD_TIME / 2 < outage(report) < HOLD_TIME + 1_000


@pytest.mark.alone
@pytest.mark.parametrize("tor", ["tor1", "tor2"])
def test_a_tor_may_die(two_racks: Lab, tor: str) -> None:
    assert outage(cost(two_racks, FLOWS, lambda: faults.power_off(two_racks, tor))) < AT_ONCE


@pytest.mark.alone
@pytest.mark.parametrize("tor", ["tor1", "tor2"])
@pytest.mark.parametrize("parting", [True, False], ids=["closes its connections", "is gone without a word"])
def test_a_tor_that_is_back_within_the_hold_time_is_used_once_it_has_routes(
    two_racks: Lab, tor: str, *, parting: bool
) -> None:
    def restart() -> str:
        for link in () if parting else two_racks.topology.links:
            if tor in (link.a.node, link.b.node):
                faults.cut(two_racks, f"{link.a}-{link.b}")
        faults.power_off(two_racks, tor)
        return " ".join(faults.restore(two_racks, quiet))

    assert outage(cost(two_racks, FLOWS, restart)) < AT_ONCE


@pytest.mark.alone
@pytest.mark.parametrize("tor", ["tor1", "tor2"])
def test_a_tor_whose_routing_daemons_die_goes_on_forwarding(two_racks: Lab, tor: str) -> None:
    assert outage(cost(two_racks, FLOWS, lambda: faults.kill(two_racks, "router", tor))) == 0


# same-as


@pytest.fixture
def same_as_bare(tmp_path: Path) -> Iterator[Lab]:
    """same-as as it is where nobody knows of the trouble: neither of the two ways out is taken."""
    for path in SHIPPED.glob("same-as*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    for file, line in (
        ("tor.conf", "  neighbor 10.10.1.2 as-override\n"),
        ("fabric.yml", "  numAllowedLocalASNumbers: 1\n"),
    ):
        path = tmp_path / "same-as" / file
        assert path.read_text().count(line) == 1
        path.write_text(path.read_text().replace(line, ""))
    with Lab.load(tmp_path / "same-as.clab.yml", name=f"same-as-bare-{os.getpid()}") as lab:
        yield lab


def test_same_as_meets_its_expectations() -> None:
    with shipped("same-as") as lab:
        assert missed(lab) == []


def test_nodes_of_one_as_are_told_what_keeps_them_apart_and_either_knob_mends_it(same_as_bare: Lab) -> None:
    lab = same_as_bare
    for node in ("node1", "node2"):
        # Both ways, with the router's in its own words.
        until(lambda node=node: "as-override" in hints(lab, node))  # type: ignore[misc]
        assert "numAllowedLocalASNumbers" in hints(lab, node)
        assert "as-override" in lab.exec(node, ["fabricctl", "node", "check"], check=False).stdout
    assert not reaches(lab, "node1", "web", "10.77.2.1")

    override = ("router bgp 65000", "address-family ipv4 unicast", "neighbor 10.10.1.2 as-override")
    lab.exec("tor", ["vtysh", "-c", "configure", *(word for line in override for word in ("-c", line))])
    until(lambda: next_hops(lab, "node1", "10.77.2.0/26"))
    # node1 sends there now, and has no answer: node2 has been left as it was.
    assert "as-override" in hints(lab, "node2")

    allow = {"spec": {"numAllowedLocalASNumbers": 1}}
    lab.exec(
        "etcd",
        ["fabricctl", "--etcd", "127.0.0.1:2379", "patch", "bgppeer", "node2-tor", "-p", json.dumps(allow)],
    )
    assert missed(lab) == []
    assert [hints(lab, node) for node in ("node1", "node2")] == ["", ""]


# unknown-tor


def test_a_router_without_a_policy_is_found_out_and_one_with_it_works() -> None:
    with shipped("unknown-tor") as lab:
        assert missed(lab) == []
        for node in ("node1", "node2"):
            until(lambda node=node: "ebgp-requires-policy" in hints(lab, node))  # type: ignore[misc]
            assert session(lab, node)["received"] == 0
            assert (
                "ebgp-requires-policy" in lab.exec(node, ["fabricctl", "node", "check"], check=False).stdout
            )

        lab.exec("tor", ["vtysh", "-f", "/etc/frr/policy.conf"])
        until(lambda: reaches(lab, "node1", "web", "10.77.2.1") and reaches(lab, "node1", "web", "10.10.4.2"))
        until(lambda: reaches(lab, "node2", "db", "10.10.4.2"))
        assert [hints(lab, node) for node in ("node1", "node2")] == ["", ""]
