"""Which encapsulation carries a pool's packets to a next hop: mode x subnet x family x fallback."""

from itertools import product

import pytest

from fabric.plan.encap import (
    DEVICES,
    ENCAPS,
    IPIP,
    VXLAN,
    VXLAN6,
    Encap,
    Kind,
    Mode,
    Node,
    Pool,
    encapsulation,
    mac,
    possible,
    same_subnet,
)
from tests.unit.overlays import address, interface, network

HERE = Node("n1", (interface("10.1.0.1/24"), interface("2001:db8:1::1/64")))
NEAR = Node("n2", (interface("10.1.0.2/24"), interface("2001:db8:1::2/64")))
FAR = Node("n3", (interface("10.2.0.3/24"), interface("2001:db8:2::3/64")))
POOLS = {4: network("10.244.0.0/16"), 6: network("fd00:10::/48")}
KINDS: list[tuple[Kind, int]] = [("ipip", 4), ("vxlan", 4), ("vxlan", 6)]
MODES: list[Mode] = ["Never", "Always", "CrossSubnet"]


@pytest.mark.parametrize(("kind", "version"), KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("near", [True, False], ids=["same subnet", "other subnet"])
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("lacking", ["", "here", "there", "both"])
def test_encapsulation(
    kind: Kind, version: int, mode: Mode, near: bool, fallback: bool, lacking: str
) -> None:
    lacks = frozenset[Kind]({"ipip"})
    other = NEAR if near else FAR
    here = Node(HERE.name, HERE.addresses, lacks=lacks if lacking in ("here", "both") else frozenset())
    there = Node(other.name, other.addresses, lacks=lacks if lacking in ("there", "both") else frozenset())
    own = there.address(version)
    assert own
    pool = Pool(POOLS[version], kind, mode, fallback)

    tunnelled = {"Never": False, "Always": True, "CrossSubnet": not near}[mode]
    falls_back = kind == "ipip" and fallback and lacking != ""
    want = Encap("vxlan" if falls_back else kind, 4 if version == 4 else 6) if tunnelled else None
    assert encapsulation(pool, here, there, own.ip) == want


def test_a_pool_that_asks_for_nothing_has_none() -> None:
    assert encapsulation(Pool(POOLS[4]), HERE, FAR, address("10.2.0.3")) is None
    assert possible(Pool(POOLS[4])) == frozenset()


@pytest.mark.parametrize(("kind", "version"), KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fallback", [True, False])
def test_whatever_carries_a_pools_packets_was_possible(
    kind: Kind, version: int, mode: Mode, fallback: bool
) -> None:
    pool = Pool(POOLS[version], kind, mode, fallback)
    own = FAR.address(version)
    assert own
    lacking = Node(FAR.name, FAR.addresses, lacks=frozenset({"ipip"}))
    carriers = {encapsulation(pool, HERE, there, own.ip) for there in (FAR, lacking)} - {None}
    assert carriers == possible(pool)


@pytest.mark.parametrize(
    ("own", "other", "want"),
    [
        ("10.1.0.1/24", "10.1.0.2", True),
        ("10.1.0.1/24", "10.1.1.2", False),
        ("10.1.0.1/32", "10.1.0.2", False),
        ("10.1.0.0/31", "10.1.0.1", True),
        ("2001:db8::1/64", "2001:db8::2", True),
        ("2001:db8::1/128", "2001:db8::2", False),
        ("10.1.0.1/24", "2001:db8::2", False),
    ],
)
def test_the_subnet_is_that_of_this_nodes_own_address(own: str, other: str, want: bool) -> None:
    assert same_subnet(Node("n1", (interface(own),)), address(other)) == want


def test_each_encapsulation_has_a_device_whose_name_the_kernel_takes() -> None:
    assert {encap.device for encap in ENCAPS} == DEVICES
    assert all(len(name) <= 15 for name in DEVICES)
    assert [encap.overhead for encap in (IPIP, VXLAN, VXLAN6)] == [20, 50, 70]


def test_the_mac_is_calicos_and_everybodys_own() -> None:
    # Calico's agents make it so of a node whose Node carries none: "f", and 5 bytes of the name's SHA-1.
    assert mac("node-1", VXLAN) == "66:b3:68:28:39:8e"
    made = {mac(f"n{number}", encap) for number, encap in product(range(500), (VXLAN, VXLAN6))}
    assert len(made) == 1000
    assert all(int(one[:2], 16) & 3 == 2 for one in made)  # local, and of one host
