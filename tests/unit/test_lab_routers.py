"""What routers print is read into the same words, whoever printed it.

The answers are recordings of FRR 8.4.4, BIRD 2.0.12, GoBGP 3.10 and a node of ours. In the lab of the first
three, each had two eBGP neighbours of AS 65010 in both families, N.1.2 and N.2.2 (fd00:N:1::2, fd00:N:2::2;
N is 1 for FRR, 2 for BIRD, 3 for GoBGP), which both announced 10.50.0.0/24 and fd50::/64, and one of them
10.51/24 or 10.52/24, 10.60.0.1/32 or .2, fd51::/64 or fd52::/64, and 10.61.1.0/24 or .2 by a next hop that
leads nowhere. BIRD filtered 10.52.0.0/24. Each originated a prefix of its own and had a peer that is away.
"""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest

from fabric.lab.profiles import builtin
from fabric.lab.routers import (
    ADAPTERS,
    Session,
    Table,
    read_bird_sessions,
    read_frr_sessions,
    read_frr_table,
    read_gobgp_sessions,
    read_kernel,
    speaks_bgp,
)
from fabric.lab.topology import Node

RECORDED = Path(__file__).with_name("golden") / "routers"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def table(routes: Mapping[str, set[str]]) -> Table:
    return {ip_network(prefix): frozenset(hops) for prefix, hops in routes.items()}


def learned(n: int) -> dict[str, set[str]]:
    """What each of the three routers learned from its neighbours."""
    first, second = f"10.{n}.1.2", f"10.{n}.2.2"
    six_first, six_second = f"fd00:{n}:1::2", f"fd00:{n}:2::2"
    return {
        "10.50.0.0/24": {first, second},
        "10.51.0.0/24": {first},
        "10.52.0.0/24": {second},
        "10.60.0.1/32": {first},
        "10.60.0.2/32": {second},
        "fd50::/64": {six_first, six_second},
        "fd51::/64": {six_first},
        "fd52::/64": {six_second},
    }


def sessions(n: int, received: tuple[int, int]) -> set[Session]:
    """Return the four sessions that stand, with the prefixes of IPv4 that were accepted from each."""
    return {
        *(Session(f"10.{n}.{x}.2", "Established", 65010, count) for x, count in enumerate(received, 1)),
        *(Session(f"fd00:{n}:{x}::2", "Established", 65010, 2) for x in (1, 2)),
    }


@pytest.mark.parametrize(
    ("router", "want"),
    [
        (
            "frr",
            sessions(1, (4, 4))
            | {Session("10.1.1.98", "Idle", 65099, 0), Session("10.1.1.99", "Active", 65099, 0)},
        ),
        (
            "bird",  # disabled, passive, and away; what stands for a whole range is no session
            sessions(2, (4, 3))
            | {
                Session("10.2.1.97", "Active", 65099, 0),
                Session("10.2.1.98", "Idle", 65099, 0),
                Session("10.2.1.99", "Connect", 65099, 0),
            },
        ),
        ("gobgp", sessions(3, (4, 4)) | {Session("10.3.1.99", "Active", 65099, 0)}),
        ("node", {Session("10.10.1.1", "Established", 65000, 2)}),
    ],
)
def test_sessions(router: str, want: set[Session]) -> None:
    found = ADAPTERS[router].sessions([recorded(f"{router}-sessions")])
    assert set(found) == want
    assert len(found) == len(want)


@pytest.mark.parametrize(
    ("router", "want"),
    [
        ("frr", learned(1)),
        ("bird", {prefix: hops for prefix, hops in learned(2).items() if prefix != "10.52.0.0/24"}),
        # It has no next hops to check: no kernel stands behind it.
        ("gobgp", learned(3) | {"10.61.1.0/24": {"192.0.2.1"}, "10.61.2.0/24": {"192.0.2.1"}}),
        # Its own block, which came back, is refused for the loop.
        ("node", {"0.0.0.0/0": {"10.10.1.1"}, "10.77.9.0/26": {"10.10.1.1"}}),
    ],
)
def test_a_table_has_every_usable_path_from_a_peer_and_nothing_of_the_routers_own(
    router: str, want: Mapping[str, set[str]]
) -> None:
    answers = [recorded(path.stem) for path in sorted(RECORDED.glob(f"{router}-table*.txt"))]
    assert ADAPTERS[router].table(answers) == table(want)


def test_the_kernels_table_has_gateways_devices_and_refusals() -> None:
    assert read_kernel(recorded("node-kernel4"), 4) == table(
        {
            "0.0.0.0/0": {"10.10.1.1"},
            "10.10.1.0/24": {"eth1"},
            "10.10.3.0/24": {"10.10.1.1"},
            "10.77.9.0/26": {"10.10.1.1"},
            "10.77.77.192/26": {"blackhole"},
            "10.77.77.192/32": {"fab5887b1109c74"},
        }
    )


def test_multipath_counts_each_gateway_in_both_families() -> None:
    four, six = (read_kernel(recorded(f"frr-kernel{family}"), family) for family in (4, 6))
    assert four[ip_network("10.50.0.0/24")] == {"10.1.1.2", "10.1.2.2"}
    assert four[ip_network("10.71.0.0/16")] == {"blackhole"}
    assert len(six[ip_network("fd50::/64")]) == 2
    assert six[ip_network("fe80::/64")] == {"eth1", "eth2"}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("", {}, id="an empty table prints nothing"),
        pytest.param(
            '[{"dst":"10.0.0.0/24","gateway":"192.0.2.1","dev":"eth1","metric":20,"flags":[]},'
            '{"dst":"10.0.0.0/24","gateway":"192.0.2.2","dev":"eth1","flags":[]}]',
            {"10.0.0.0/24": {"192.0.2.2"}},
            id="the lowest metric counts, and none is 0",
        ),
        pytest.param(
            '[{"dst":"10.0.0.0/24","protocol":"bgp","flags":[],"nexthops":['
            '{"gateway":"192.0.2.1","dev":"eth1","weight":1,"flags":["dead","linkdown"]},'
            '{"via":{"family":"inet6","host":"fe80::1"},"dev":"eth2","weight":1,"flags":[]}]}]',
            {"10.0.0.0/24": {"fe80::1"}},
            id="a dead next hop does not count, a gateway of the other family does",
        ),
    ],
)
def test_kernel_tables(text: str, want: Mapping[str, set[str]]) -> None:
    assert read_kernel(text, 4) == table(want)


def test_daemons_without_any_bgp_have_neither_sessions_nor_paths() -> None:
    assert read_frr_sessions(["{}"]) == []
    assert read_frr_table(['{\n  "warning":"Default BGP instance not found"\n}', '{ "routes": {  }  }']) == {}
    assert read_bird_sessions(["BIRD 2.0.12 ready.\nAccess restricted\n"]) == []
    assert read_gobgp_sessions(["[]"]) == []


def test_a_peer_of_two_families_is_one_session() -> None:
    peer = '{"remoteAs":65010,"state":"Established","pfxRcd":%d}'
    both = (
        f'{{"ipv4Unicast":{{"peers":{{"eth1":{peer % 3}}}}},"ipv6Unicast":{{"peers":{{"eth1":{peer % 2}}}}}}}'
    )
    assert read_frr_sessions([both]) == [Session("eth1", "Established", 65010, 5)]


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ("quay.io/frrouting/frr:8.4.1", True),
        ("pierky/bird:2.13", True),
        ("alpine", False),
        ("nobody/knows", False),
    ],
)
def test_which_images_can_be_asked(image: str, want: bool) -> None:
    assert speaks_bgp(Node(name="x", image=image, profile=builtin().of(image))) is want
