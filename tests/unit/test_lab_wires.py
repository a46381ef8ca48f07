"""What `ip` and `tc` are told, for each kind of link."""

from ipaddress import ip_interface

from fabric.lab import wires
from fabric.lab.topology import HOST, MGMT, Endpoint, Link, Node, Topology

ADDRESS = ip_interface("172.20.20.2/24")
LAB = Topology(
    name="rack",
    nodes=(
        Node(name="a", image="alpine", network="none"),
        Node(name="b", image="alpine", addresses=(ADDRESS,)),
    ),
    links=(
        Link(Endpoint("a", "eth1"), Endpoint("b", "eth1", mac="02:00:00:00:00:01"), 1500),
        Link(Endpoint("b", "eth2"), Endpoint(HOST, "rack0"), 1500),
        Link(Endpoint("a", "eth2"), Endpoint(MGMT, "rack1"), 1400),
    ),
)


def test_each_node_has_its_ends_and_the_host_has_its_own() -> None:
    shown = {
        node: [(e.interface, e.far, e.mtu, e.bridged) for e in wires.ends(LAB, node)]
        for node in ("a", "b", HOST)
    }
    assert shown == {
        "a": [("eth1", "w0a", 1500, False), ("eth2", "rack1", 1400, True)],
        "b": [("eth0", "m1", 1500, True), ("eth1", "w0b", 1500, False), ("eth2", "w1a", 1500, False)],
        HOST: [("rack0", "w1b", 1500, False)],
    }
    assert wires.ends(LAB, "b")[0].addresses == (ADDRESS,)


def test_no_two_far_sides_have_one_index() -> None:
    numbers = [end.number for node in ("a", "b", HOST) for end in wires.ends(LAB, node)]
    assert len(set(numbers)) == len(numbers)


def test_a_mac_is_the_one_given_or_one_that_is_the_same_each_time_and_nowhere_else() -> None:
    macs = [end.mac for node in ("a", "b", HOST) for end in wires.ends(LAB, node)]
    assert macs == [end.mac for node in ("a", "b", HOST) for end in wires.ends(LAB, node)]
    assert len(set(macs)) == len(macs)
    assert wires.ends(LAB, "b")[1].mac == "02:00:00:00:00:01"


def test_an_end_is_made_in_the_backplane_with_its_other_side_in_the_node() -> None:
    eth0, eth1, _ = wires.ends(LAB, "b")
    assert wires.attach(eth0, 7)[1] == "link set dev m1 master mgmt up"
    peer = "name eth1 address 02:00:00:00:00:01 mtu 1500 netns 7"
    assert wires.attach(eth1, 7) == [
        f"link add dev w0b index {wires.FIRST + 3} mtu 1500 type veth peer {peer}",
        "link set dev w0b up",
    ]


def test_a_wire_redirects_each_end_to_the_other() -> None:
    lines = wires.join(0)
    assert [line.split()[3] for line in lines if line.startswith("qdisc")] == ["w0a", "w0b"]
    assert [(line.split()[3], line.split()[-1]) for line in lines if line.startswith("filter")] == [
        ("w0a", "w0b"),
        ("w0b", "w0a"),
    ]


def test_the_management_network_is_made_only_for_who_is_on_it() -> None:
    alone = Topology("x", (Node(name="a", image="alpine", network="none"),))
    assert wires.managed(LAB)
    assert not wires.managed(alone)
    assert "address add 172.20.20.1/24 dev mgmt" in wires.bridge(LAB)
    assert "address add 3fff:172:20:20::1/64 dev mgmt nodad" in wires.bridge(LAB)
