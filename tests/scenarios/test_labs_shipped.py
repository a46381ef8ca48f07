"""Every lab in containerlab/ does what stands beside it, and what README.md promises of it when something breaks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.lab import expect, faults
from fabric.lab.expect import Endpoint
from fabric.lab.lab import Lab
from tests.scenarios.fabric import BIRD, FRR, NODE1, NODE2, SHIPPED, Router, until, up
from tests.scenarios.shipped import cost, missed, outage, quiet, shipped

LABS = sorted(SHIPPED.glob("*.clab.yml"))
NAMES = [file.name.removesuffix(".clab.yml") for file in LABS]
IMAGE = SHIPPED / "images" / "Dockerfile"
AT_ONCE = 1_000.0  # ms: what a loss of carrier may cost; 10 to 300 on a quiet machine
FLOWS = (
    Endpoint("web", "node1", "web"),
    Endpoint("db", "node2", "db"),
    Endpoint("cache", "node2", "cache"),
    Endpoint("outside", "outside"),
)


# What the files are


@pytest.mark.parametrize("file", LABS, ids=NAMES)
def test_a_lab_has_expectations_and_a_paragraph(file: Path) -> None:
    lab = Lab.load(file)
    assert expect.load(file, lab.topology).all
    assert f"\n## {lab.topology.name}\n" in (SHIPPED / "README.md").read_text()


@pytest.mark.parametrize("file", LABS, ids=NAMES)
def test_a_lab_is_one_for_containerlab_as_well(file: Path) -> None:
    topology = Lab.load(file).topology
    # containerlab would replace it by a variable of the caller's.
    assert "$" not in file.read_text()
    # A management network would be a way round the lab's own.
    assert {node.network.partition(":")[0] for node in topology.nodes} <= {"none", "container"}
    # etcd's own image has neither a shell nor `ip`.
    assert not [n.name for n in topology.nodes if n.exec and n.image.startswith("quay.io/coreos/etcd")]


def test_the_node_image_is_built_of_what_is_there_and_what_namespace_labs_use_too() -> None:
    text = IMAGE.read_text().replace("\\\n", " ")
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"fabric", "bgp", "policy", "pyproject.toml"} <= {*sources}
    assert [source for source in sources if not (SHIPPED.parent / source).exists()] == []
    ignored = IMAGE.with_name(f"{IMAGE.name}.dockerignore").read_text()
    assert [source for source in sources if f"\n!{source}\n" not in ignored] == []
    packages = {
        word
        for line in re.findall(r"apt-get install -y --no-install-recommends (.*?)&&", text)
        for word in line.split()
    }
    makefile = (SHIPPED.parent / "Makefile").read_text().replace("\\\n", " ")
    installed = re.search(r"^APT := (.*)$", makefile, re.MULTILINE)
    assert installed
    # tini is the image's first process; a namespace node has one of ours.
    assert packages - {*installed[1].split()} == {"tini"}


# What they do


@pytest.mark.parametrize("router", [FRR, BIRD], ids=["quickstart", "quickstart-bird"])
def test_the_quickstarts_meet_their_expectations(router: Router) -> None:
    with up(router, "verify") as fabric:
        fabric.join(NODE1, NODE2)
        fabric.attach("node1", "web")
        fabric.attach("node2", "db", "--ip", "10.77.9.9")
        assert missed(fabric.lab) == []


def test_the_fabric_attaches_and_forwards_with_a_member_of_its_datastore_dead() -> None:
    with shipped("three-etcd") as lab:
        assert missed(lab) == []
        faults.kill(lab, "etcd", "etcd1")
        for node in ("node1", "node2", "node3"):
            until(lambda node=node: not run(lab, node, "fabricctl node status"))  # type: ignore[misc]
            lab.exec(node, ["ip", "netns", "add", "late"])
            lab.exec(node, ["fabricctl", "workload", "add", "late", "--netns", "late"])
        assert missed(lab) == []
        faults.restore(lab, quiet)
        until(lambda: not run(lab, "node1", "etcdctl endpoint health --cluster"))


def test_a_node_that_went_down_with_its_member_comes_back_with_it() -> None:
    with shipped("three-etcd") as lab:
        assert "etcd2" in faults.power_off(lab, "node2")
        until(lambda: not run(lab, "node1", "fabricctl node status"))
        faults.restore(lab, quiet)
        assert missed(lab) == []


def run(lab: Lab, node: str, command: str) -> int:
    """Return the exit status of a command in a node."""
    return lab.exec(node, command.split(), check=False).returncode


# What it costs to break two-tors; two-racks (test_labs_bgp1.py) breaks the rest


@pytest.fixture(scope="module")
def two_tors() -> Iterator[Lab]:
    """One lab for all of the tests below, each of which leaves it whole."""
    with shipped("two-tors") as lab:
        assert missed(lab) == []
        assert not lab.up()
        yield lab


@pytest.mark.alone
def test_a_cut_link_of_an_external_session_is_noticed_at_once(two_tors: Lab) -> None:
    assert outage(cost(two_tors, FLOWS, lambda: faults.cut(two_tors, "tor1:eth2-node1:eth1"))) < AT_ONCE


@pytest.mark.alone
@pytest.mark.parametrize("tor", ["tor1", "tor2"])
def test_a_tor_outside_the_nodes_as_may_die(two_tors: Lab, tor: str) -> None:
    assert outage(cost(two_tors, FLOWS, lambda: faults.power_off(two_tors, tor))) < AT_ONCE


@pytest.mark.alone
def test_a_node_comes_back_with_its_containers(two_tors: Lab) -> None:
    faults.power_off(two_tors, "node1")
    until(lambda: "10.77.1.0" not in two_tors.exec("node2", ["ip", "route"]).stdout)
    faults.restore(two_tors, quiet)
    assert missed(two_tors) == []
