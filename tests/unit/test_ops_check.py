"""What `node join` looks at before it changes anything."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from fabric.errors import ConfigError, Taken
from fabric.kernel.facts import HostAddress
from fabric.model.node import Node
from fabric.ops.check import choose_address, claim_problems, default_pool, peer_problems, refuse
from fabric.ops.findings import Finding

ID = "fabricctl.io/node-id"


def on(link: str, address: str, *, up: bool = True) -> HostAddress:
    return HostAddress(link, ip_interface(address), up, "", 1500)


LO = on("lo", "127.0.0.1/8")
ETH0, ETH1 = on("eth0", "192.0.2.1/24"), on("eth1", "198.51.100.1/24")
V6, LINK_LOCAL = on("eth0", "2001:db8::1/64"), on("eth0", "fe80::1/64")


@pytest.mark.parametrize(
    "others",
    [
        [LO],
        [V6, LINK_LOCAL],
        [on("docker0", "172.17.0.1/16"), on("br-1a2b", "172.18.0.1/16")],
        [on("fab0123456789ab", "169.254.7.1/32"), on("tunl0", "10.244.1.0/32")],
        [on("eth9", "203.0.113.1/24", up=False)],
    ],
)
def test_auto_takes_the_only_address_that_can_be_the_nodes(others: list[HostAddress]) -> None:
    assert choose_address("auto", [*others, ETH0]) == ip_interface("192.0.2.1/24")


def test_auto_looks_for_the_family_it_is_told() -> None:
    assert choose_address("auto", [ETH0, V6, LINK_LOCAL], 6) == ip_interface("2001:db8::1/64")


def test_auto_without_a_candidate_says_how_to_name_one() -> None:
    with pytest.raises(
        ConfigError, match="no link that is up has an IPv4 address of its own; nothing was changed"
    ):
        choose_address("auto", [LO, V6])


def test_auto_with_two_candidates_lists_both_and_does_not_guess() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_address("auto", [ETH0, ETH1])
    assert "2 candidates (192.0.2.1/24 on eth0, 198.51.100.1/24 on eth1)" in str(caught.value)
    assert "--ip 192.0.2.1" in str(caught.value)


def test_a_given_address_comes_with_its_prefix_length_on_whatever_link() -> None:
    assert choose_address("198.51.100.1", [ETH0, ETH1]) == ip_interface("198.51.100.1/24")


def test_a_given_address_that_the_host_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"on no link of this host \(it has 192\.0\.2\.1\)"):
        choose_address("203.0.113.9", [LO, ETH0])
    with pytest.raises(ConfigError, match='--ip "eth0": neither "auto" nor an address'):
        choose_address("eth0", [ETH0])


def node(name: str, node_id: str | None, address: str) -> Node:
    annotations = {ID: node_id} if node_id else {}
    return Node.model_validate(
        {
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"bgp": {"ipv4Address": f"{address}/24"}},
        }
    )


def claim(*nodes: Node) -> None:
    for node in nodes:
        claim_problems("n1", "my-id", ip_interface("192.0.2.1/24"), node, ID)


def test_a_free_name_and_address_may_be_claimed_and_ones_own_again() -> None:
    claim(node("n2", "other", "192.0.2.2"))
    claim(node("n1", "my-id", "192.0.2.1"))
    claim(node("n1", "my-id", "192.0.2.77"))
    claim(Node.model_validate({"metadata": {"name": "n3"}}))


@pytest.mark.parametrize(("theirs", "said"), [("other", "other"), (None, "not a fabricctl node")])
def test_a_name_of_another_node_is_taken_and_both_are_named(theirs: str | None, said: str) -> None:
    with pytest.raises(Taken, match=rf'node name "n1": taken by .*{said}.* this host has id my-id'):
        claim(node("n1", theirs, "192.0.2.9"))


def test_an_address_of_another_node_is_taken_and_both_are_named() -> None:
    with pytest.raises(
        Taken, match=r"192\.0\.2\.1: node n2 \(id other\) has it already, this host has id my-id"
    ):
        claim(node("n2", "other", "192.0.2.1"))


@pytest.mark.parametrize(
    ("addresses", "routes", "want"),
    [
        pytest.param([ETH0], ["0.0.0.0/0", "::/0"], "192.168.0.0/16", id="a default route is in no way"),
        pytest.param([on("eth0", "192.168.1.5/24")], [], "172.16.0.0/16", id="an address is"),
        pytest.param([], ["192.168.128.0/17", "172.16.0.0/15"], "172.18.0.0/16", id="routes are"),
        pytest.param([], ["192.0.0.0/8"], "172.16.0.0/16", id="also those around it"),
    ],
)
def test_the_default_pool_meets_nothing_the_host_uses(
    addresses: list[HostAddress], routes: list[str], want: str
) -> None:
    assert default_pool(addresses, map(ip_network, routes)) == ip_network(want)


def test_where_every_default_pool_clashes_the_operator_has_to_choose() -> None:
    with pytest.raises(ConfigError, match="name a free prefix with --pool"):
        default_pool([], map(ip_network, ["192.168.0.0/16", "172.16.0.0/12"]))


def test_every_error_is_said_at_once_and_warnings_stop_nothing() -> None:
    warning = Finding("FAB1201", "seen", "do that")
    assert refuse([]) == []
    assert refuse([warning]) == [str(warning)]
    errors = [Finding("FAB1101", "held by bird (pid 812)", "stop it"), Finding("FAB1202", "late", "set it")]
    with pytest.raises(ConfigError) as caught:
        refuse([errors[0], warning, errors[1]])
    assert str(caught.value).splitlines() == [
        "this host cannot join yet; nothing was changed:",
        "  - FAB1101 port 179 is in use: held by bird (pid 812); stop it",
        "  - FAB1202 the clock is wrong: late; set it",
    ]


@pytest.mark.parametrize(
    ("peers", "said"),
    [(["192.0.2.1"], "is an address of this host"), (["192.0.2.9", "192.0.2.9"], "given more than once")],
)
def test_a_peer_is_another_host_and_given_once(peers: list[str], said: str) -> None:
    own = [on("eth0", "192.0.2.1/24")]
    with pytest.raises(ConfigError, match=said):
        peer_problems([ip_address(p) for p in peers], own)
    peer_problems([ip_address("192.0.2.9")], own)


@pytest.mark.parametrize("wanted", ["127.0.0.1", "fe80::1"])
def test_an_address_that_no_other_host_can_reach_is_not_the_nodes(wanted: str) -> None:
    with pytest.raises(ConfigError, match="no other host can reach it; nothing was changed"):
        choose_address(wanted, [on("lo", f"{wanted}/64" if ":" in wanted else f"{wanted}/8")])
