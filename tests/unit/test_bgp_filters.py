from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.filters import ImportPolicy, inside, refusal
from bgp.rib import Path, SessionSpec

ME, PEER = IPv4Address("192.0.2.1"), ip_address("192.0.2.254")
SESSION = SessionSpec(PEER, 65000, ME, 65001, ME)
POLICY = ImportPolicy(
    pools=frozenset({ip_network("10.244.0.0/16"), ip_network("fd00:10::/48")}),
    own_blocks=frozenset({ip_network("10.244.1.0/26")}),
    default_routes=frozenset({4}),
)
PATH = Path(ip_network("10.244.2.0/26"), PEER, PEER, as_path=(65000, 65002))


def to(prefix: str) -> Path:
    return replace(PATH, prefix=ip_network(prefix))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param(PATH, "", id="another node's block"),
        pytest.param(to("10.244.2.7/32"), "", id="a borrowed address"),
        pytest.param(to("10.244.1.7/32"), "", id="an address of an own block that another node borrowed"),
        pytest.param(to("fd00:10::/122"), "", id="IPv6"),
        pytest.param(to("0.0.0.0/0"), "", id="the default route where it is wanted"),
        pytest.param(to("::/0"), "the host has a default route of its own", id="and where not"),
        pytest.param(to("10.244.1.0/26"), "own block", id="own block"),
        pytest.param(to("10.245.0.0/26"), "in no pool", id="a stranger's prefix"),
        pytest.param(to("10.0.0.0/8"), "in no pool", id="a prefix around the pool"),
        pytest.param(
            replace(PATH, as_path=(65000, 65001, 65002)),
            "AS loop: own AS 65001 in the path",
            id="RFC 4271 9.1.2: own AS",
        ),
        pytest.param(
            replace(PATH, as_sets=frozenset({65001, 65003})),
            "AS loop: own AS 65001 in the path",
            id="own AS in an AS_SET",
        ),
        pytest.param(
            replace(PATH, originator_id=ME), "loop: this node is the originator", id="RFC 4456 8: originator"
        ),
        pytest.param(
            replace(PATH, cluster_list=(IPv4Address("9.9.9.9"), ME)),
            "loop: own id in the cluster list",
            id="RFC 4456 8: cluster list",
        ),
        pytest.param(
            replace(PATH, next_hop=ME), "the next hop is this node", id="RFC 4271 6.3: own next hop"
        ),
    ],
)
def test_refusal(path: Path, why: str) -> None:
    assert refusal(path, SESSION, POLICY) == why


def test_a_default_route_is_checked_for_loops_too() -> None:
    looping = replace(to("0.0.0.0/0"), as_path=(65001,))
    assert "AS loop" in refusal(looping, SESSION, POLICY)


@pytest.mark.parametrize(
    ("prefix", "want"),
    [("10.244.0.0/16", True), ("10.244.9.0/24", True), ("10.0.0.0/8", False), ("fd00::/122", False)],
)
def test_inside(prefix: str, want: bool) -> None:
    assert inside(ip_network(prefix), [ip_network("10.244.0.0/16")]) == want
