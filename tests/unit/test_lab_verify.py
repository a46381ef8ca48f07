"""Whether what was found is what was expected; what is asked for it; how packets and leftovers are recognised."""

import socket
import struct
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from fabric.lab import leaks, probe
from fabric.lab.addresses import usable
from fabric.lab.asking import (
    Found,
    FoundLeaks,
    FoundRoutes,
    FoundSessions,
    FoundSize,
    Knock,
    Knocks,
    Largest,
    Leaks,
    Routes,
    Seen,
    Sessions,
    Sighting,
    Sightings,
    Unanswered,
)
from fabric.lab.expect import (
    Door,
    Encapsulated,
    Endpoint,
    Expectation,
    Flow,
    Mtu,
    NextHops,
    NoLeaks,
    Published,
    Reach,
    Route,
    SessionUp,
    Translated,
    Untranslated,
)
from fabric.lab.routers import Session
from fabric.lab.topology import CONTAINER, Node, Topology
from fabric.lab.verify import can_wait, judge, lasts, questions

WEB, DB, OUTSIDE = (
    Endpoint("web", "node1", "web"),
    Endpoint("db", "node2", "db"),
    Endpoint("outside", "outside"),
)
PING, TCP, UDP = Flow(WEB, DB), Flow(WEB, DB, "tcp", 80), Flow(WEB, DB, "udp", 53)
PREFIX = ip_network("10.77.9.0/26")
SESSION = SessionUp(1, "tor", "fd00::1")
PRESENT = Route(2, "tor", "bgp", PREFIX, present=True)
ABSENT = Route(3, "tor", "bgp", PREFIX, present=False)
TWO = NextHops(4, "tor", "bgp", PREFIX, 2)
REACHED, REFUSED = Reach(5, UDP, refused=False), Reach(6, UDP, refused=True)
IN_VXLAN = Encapsulated(10, PING, "vxlan", "tor", "eth1")
AS_NODE = Translated(11, TCP, ip_address("10.10.1.2"))
DOOR = Flow(OUTSIDE, DB, "tcp", 80, Door(ip_address("10.10.1.2"), 8080))
OPEN, SHUT = Published(12, DOOR, None, refused=False), Published(13, DOOR, None, refused=True)
HAIRPIN = Published(14, DOOR, ip_address("10.10.1.2"), refused=False)
MTU, OWN, NONE = Mtu(7, PING, 1500), Untranslated(8, PING), NoLeaks(9, "host")


def routes(*hops: str) -> FoundRoutes:
    return FoundRoutes({PREFIX: frozenset(hops)} if hops else {})


def sessions(*states: tuple[str, str]) -> FoundSessions:
    return FoundSessions(tuple(Session(peer, state, 65001, 0) for peer, state in states))


def seen(*sightings: tuple[str, str, str]) -> Seen:
    return Seen(
        frozenset({"10.77.1.1", "10.0.0.1"}),
        "10.77.9.9",
        tuple(Sighting(place, "eth1", source, destination) for place, source, destination in sightings),
    )


def carried(*ways: tuple[str, str], back: bool = False) -> Seen:
    """What was seen of web's packet to db: (device of tor, what carried it); of the answer, if `back`."""
    ends = ("10.77.9.9", "10.77.1.1") if back else ("10.77.1.1", "10.77.9.9")
    return Seen(
        frozenset({"10.77.1.1"}),
        "10.77.9.9",
        tuple(Sighting("tor", device, *ends, way) for device, way in ways),
    )


@pytest.mark.parametrize(
    ("expectation", "found", "holds", "words"),
    [
        (SESSION, sessions(("fd00:0::1", "Established")), True, "Established"),
        (SESSION, sessions(("fd00::1", "OpenSent")), False, "OpenSent"),
        (
            SESSION,
            sessions(("eth1", "Established"), ("fd00::2", "Idle")),
            False,
            "no such peer; there is eth1, fd00::2",
        ),
        (SESSION, sessions(), False, "no sessions"),
        (SESSION, Unanswered("node tor: bgpd is not running"), False, "node tor: bgpd is not running"),
        (PRESENT, routes("192.0.2.1", "eth1"), True, "via 192.0.2.1, dev eth1"),
        (PRESENT, routes(), False, "absent"),
        (PRESENT, routes("blackhole"), True, "blackhole"),
        (ABSENT, routes(), True, "absent"),
        (ABSENT, routes("192.0.2.1"), False, "via 192.0.2.1"),
        (ABSENT, Unanswered("node tor is not running"), False, "node tor is not running"),
        (TWO, routes("192.0.2.2", "192.0.2.1"), True, "2: via 192.0.2.1, via 192.0.2.2"),
        (TWO, routes("192.0.2.1"), False, "1: via 192.0.2.1"),
        (TWO, routes(), False, "absent"),
        (REACHED, Knock(""), True, "reached"),
        (REACHED, Knock("no answer"), False, "no answer"),
        (REACHED, Knock("no answer", heard=True), False, "arrived, but no answer"),
        (REFUSED, Knock("Connection refused"), True, "Connection refused"),
        (REFUSED, Knock("no answer"), True, "no answer"),
        (REFUSED, Knock("no answer", heard=True), False, "arrived, but no answer"),
        (REFUSED, Knock(""), False, "reached"),
        (REFUSED, Unanswered("node2/db has no global address"), False, "node2/db has no global address"),
        (MTU, FoundSize(1500), True, "1500"),
        (MTU, FoundSize(1400), False, "1400"),
        (MTU, FoundSize(9000), False, "9000"),
        (MTU, FoundSize(None), False, "no packet gets there"),
        (
            OWN,
            seen(("node1", "10.77.1.1", "10.77.9.9"), ("node2/db", "10.77.1.1", "10.77.9.9")),
            True,
            "own addresses at node1, node2/db",
        ),
        (
            OWN,
            seen(("node2/db", "10.77.1.1", "10.77.9.9"), ("node1", "10.77.9.9", "10.77.1.1")),
            True,
            "own addresses at node1, node2/db",
        ),
        (
            OWN,
            seen(("node1", "192.0.2.1", "10.77.9.9"), ("node2/db", "10.77.1.1", "10.77.9.9")),
            False,
            "192.0.2.1 -> 10.77.9.9 at node1",
        ),
        (
            OWN,
            seen(("node2/db", "10.77.1.1", "10.77.9.9"), ("tor", "10.77.1.1", "10.77.9.8")),
            False,
            "10.77.1.1 -> 10.77.9.8 at tor",
        ),
        (OWN, seen(("node1", "10.77.1.1", "10.77.9.9")), False, "did not arrive; seen at node1"),
        (OWN, seen(("node2/db", "10.77.9.9", "10.77.1.1")), False, "did not arrive; seen at node2/db"),
        (OWN, seen(), False, "did not arrive; seen at no node"),
        (IN_VXLAN, carried(("eth1", "vxlan 4096 at port 4789")), True, "vxlan 4096 at port 4789"),
        (IN_VXLAN, carried(("eth1", "native")), False, "native"),
        (
            IN_VXLAN,
            carried(("eth1", "vxlan 7 at port 8472"), ("eth1", "native")),
            False,
            "native, vxlan 7 at port 8472",
        ),
        (IN_VXLAN, carried(("eth2", "vxlan 4096 at port 4789")), False, "not seen there; seen at tor"),
        (
            IN_VXLAN,
            carried(("eth1", "vxlan 4096 at port 4789"), back=True),
            False,
            "not seen there; seen at tor",
        ),
        (IN_VXLAN, carried(), False, "not seen there; seen at no node"),
        (AS_NODE, Knock("", heard=True, client="10.10.1.2"), True, "as 10.10.1.2"),
        (AS_NODE, Knock("", heard=True, client="10.77.1.1"), False, "as 10.77.1.1"),
        (
            AS_NODE,
            Knock("no answer", heard=True, client="10.10.1.2"),
            False,
            "arrived as 10.10.1.2, but no answer",
        ),
        (AS_NODE, Knock("no answer"), False, "no answer"),
        (
            AS_NODE,
            Knock(""),
            False,
            "reached, but by another program, which cannot be asked whom it saw",
        ),
        (OPEN, Knock("", heard=True, client="10.10.4.2", own="10.10.4.2"), True, "as 10.10.4.2"),
        (OPEN, Knock("", heard=True, client="10.10.1.2", own="10.10.4.2"), False, "as 10.10.1.2"),
        (HAIRPIN, Knock("", heard=True, client="10.10.1.2", own="10.10.4.2"), True, "as 10.10.1.2"),
        (SHUT, Knock("", heard=True, client="10.10.1.2", own="10.10.4.2"), False, "reached"),
        (SHUT, Knock("Connection refused"), True, "Connection refused"),
        (SHUT, Knock("no answer", heard=True, client="10.10.4.2"), False, "arrived, but no answer"),
        (NONE, FoundLeaks(()), True, "none"),
        (NONE, FoundLeaks(("link a", "link b")), False, "link a; link b"),
    ],
)
def test_what_was_found_meets_what_is_expected(
    expectation: Expectation, found: Found, holds: bool, words: str
) -> None:
    assert judge(expectation, found) == (holds, words)


def test_one_question_decides_all_that_it_can() -> None:
    other = SessionUp(1, "tor", "fd00::2")
    kernel = Route(2, "tor", "kernel", PREFIX, present=True)
    back = Untranslated(8, Flow(DB, WEB))
    second = Reach(5, Flow(OUTSIDE, DB, "udp", 53), refused=False)
    tcp = Reach(5, TCP, refused=False)
    asked: list[Expectation] = [
        SESSION,
        PRESENT,
        ABSENT,
        TWO,
        REACHED,
        REFUSED,
        MTU,
        OWN,
        NONE,
        other,
        kernel,
        back,
        second,
        tcp,
        IN_VXLAN,
        AS_NODE,
        OPEN,
        SHUT,
        HAIRPIN,
    ]
    assert questions(asked) == {
        Sessions("tor"): [SESSION, other],
        Routes("tor", "bgp"): [PRESENT, ABSENT, TWO],
        Routes("tor", "kernel"): [kernel],
        Knocks((UDP, second.flow), refused=False): [REACHED, second],
        Knocks((UDP,), refused=True): [REFUSED],
        Knocks((TCP, DOOR), refused=False): [tcp, AS_NODE, OPEN, HAIRPIN],
        Knocks((DOOR,), refused=True): [SHUT],
        Largest(PING, 1500): [MTU],
        Sightings((PING, back.flow)): [OWN, back, IN_VXLAN],
        Leaks("host"): [NONE],
    }


@pytest.mark.parametrize("absence", [ABSENT, REFUSED, SHUT, NONE])
def test_what_is_met_by_an_absence_waits_for_the_rest_and_has_to_last(absence: Expectation) -> None:
    assert can_wait(absence)
    assert lasts(absence)


@pytest.mark.parametrize("state", [SESSION, PRESENT, TWO])
def test_a_state_has_to_last(state: Expectation) -> None:
    assert not can_wait(state)
    assert lasts(state)


@pytest.mark.parametrize("once", [REACHED, MTU, OWN, IN_VXLAN, AS_NODE, OPEN])
def test_what_needs_traffic_is_enough_once(once: Expectation) -> None:
    assert not can_wait(once)
    assert not lasts(once)


# Recognising packets

TOKEN = b"0123456789abcdef"
PAYLOAD = TOKEN + b"0007"


def ipv4(protocol: int, body: bytes, source: str = "10.77.1.1", destination: str = "10.77.9.9") -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0x4000, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(destination) + body


def vxlan(inner: bytes, port: int = 4789, vni: int = 4096) -> bytes:
    head = struct.pack("!HHHHBxxxI", 1, port, 16 + len(inner), 0, 8, vni << 8)
    return head + inner


def ipv6(protocol: int, body: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return head + ip_address("fd77::1").packed + ip_address("fd77::9").packed + body


ETHERNET = bytes(12) + b"\x08\x00"
UDP_HEADER = struct.pack("!HHHH", 1, 2, 8 + len(PAYLOAD), 0)
FOUR, SIX = ("0007", "10.77.1.1", "10.77.9.9", "native"), ("0007", "fd77::1", "fd77::9", "native")
INNER = ETHERNET + ipv4(17, UDP_HEADER + PAYLOAD)


def tcp(options: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 1, 2, 3, 4, (20 + options) // 4 << 4, 0x18, 512, 0, 0) + bytes(options)


@pytest.mark.parametrize(
    ("packet", "want"),
    [
        pytest.param(ETHERNET + ipv4(17, UDP_HEADER + PAYLOAD), [FOUR], id="udp"),
        pytest.param(ETHERNET + ipv4(1, bytes(8) + PAYLOAD), [FOUR], id="icmp"),
        pytest.param(ETHERNET + ipv4(6, tcp(12) + PAYLOAD), [FOUR], id="tcp with timestamps"),
        pytest.param(ipv4(6, tcp(0) + PAYLOAD), [FOUR], id="no link header"),
        pytest.param(ETHERNET + ipv6(58, bytes(8) + PAYLOAD), [SIX], id="icmp of ipv6"),
        pytest.param(ETHERNET + ipv6(6, tcp(12) + PAYLOAD + b"more"), [SIX], id="tcp over ipv6"),
        pytest.param(
            ETHERNET + ipv4(4, ipv4(17, UDP_HEADER + PAYLOAD), "192.0.2.1", "192.0.2.2"),
            [(*FOUR[:3], "ipip")],
            id="in IPIP",
        ),
        pytest.param(
            ipv4(4, ipv4(1, bytes(8) + PAYLOAD), "192.0.2.1", "192.0.2.2"),
            [(*FOUR[:3], "ipip")],
            id="in IPIP, no link header",
        ),
        pytest.param(
            ETHERNET + ipv4(17, vxlan(INNER), "192.0.2.1", "192.0.2.2"),
            [(*FOUR[:3], "vxlan 4096 at port 4789")],
            id="in VXLAN",
        ),
        pytest.param(
            ETHERNET + ipv6(17, vxlan(ETHERNET + ipv6(6, tcp(12) + PAYLOAD), 8472, 7)),
            [(*SIX[:3], "vxlan 7 at port 8472")],
            id="in VXLAN over IPv6, of other numbers",
        ),
        pytest.param(
            ETHERNET + ipv4(17, bytes(16) + INNER, "192.0.2.1", "192.0.2.2"),
            [FOUR],
            id="in UDP that is no VXLAN",
        ),
        pytest.param(
            bytes(12) + b"\x81\x00\x00\x07\x08\x00" + ipv4(17, UDP_HEADER + PAYLOAD), [FOUR], id="tagged"
        ),
        pytest.param(ETHERNET + ipv4(17, UDP_HEADER + b"something else"), [], id="another's packet"),
        pytest.param(PAYLOAD, [], id="no header at all"),
    ],
)
def test_a_packet_is_known_by_its_token_whatever_is_in_front(packet: bytes, want: list[object]) -> None:
    assert list(probe.sightings(packet, TOKEN)) == want


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff\xff\xff\xff", bytes(range(255))])
def test_the_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    """Summed up with its checksum, every message gives 0 (RFC 1071, section 1)."""
    padded = data + b"\0" * (len(data) % 2)
    assert probe.checksum(padded + struct.pack("!H", probe.checksum(data))) == 0


class Path:
    """A path that carries packets up to `limit` bytes, and nothing at all if that is 0."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rounds = 0

    def answered(self, sizes: Iterable[int]) -> set[int]:
        self.rounds += 1
        return {size for size in sizes if size <= self.limit}


@pytest.mark.parametrize("limit", [128, 576, 1280, 1399, 1400, 1499, 1500, 1501, 1502, 9500, 65535])
def test_the_largest_packet_is_found_in_a_few_rounds(limit: int) -> None:
    path = Path(limit)
    assert probe.largest(path.answered, 1500) == limit
    assert path.rounds <= 7


def test_a_path_that_carries_nothing_has_no_largest_packet() -> None:
    assert probe.largest(Path(0).answered, 1500) is None


# Recognising leftovers

WORKLOAD = {"interface": "fab0123456789ab", "addresses": ["10.77.1.1", "fd77::1"]}
HOST_END, TO_PEER = {"ifname": "fab0123456789ab"}, {"ifname": "eth1"}
BLOCK: Mapping[str, Any] = {"type": "blackhole", "dst": "10.77.1.0/26"}
LEARNED: Mapping[str, Any] = {"dst": "10.77.9.9", "gateway": "10.10.1.1", "dev": "eth1"}
BY_IPV6: Mapping[str, Any] = {
    "dst": "default",
    "via": {"family": "inet6", "host": "fd00:10:1::1"},
    "dev": "eth1",
}
OWN_ROUTES: list[Mapping[str, Any]] = [
    {"dst": "10.77.1.1", "dev": "fab0123456789ab"},
    {"dst": "fd77::1", "dev": "fab0123456789ab"},
]


@pytest.mark.parametrize(
    ("links", "routes", "workloads", "want"),
    [
        pytest.param(
            [TO_PEER, HOST_END], [BLOCK, LEARNED, *OWN_ROUTES], [WORKLOAD], [], id="all accounted for"
        ),
        pytest.param([TO_PEER], [BLOCK, LEARNED, BY_IPV6], [], [], id="no containers"),
        pytest.param([HOST_END], [], [], ["link fab0123456789ab"], id="link"),
        pytest.param([], OWN_ROUTES, [], ["route 10.77.1.1", "route fd77::1"], id="routes"),
        pytest.param(
            [TO_PEER], [{"dst": "10.77.9.64", "dev": "vxlan.fabric"}], [], [], id="a tunnel's far end"
        ),
        pytest.param(
            [{"ifname": "fabric0"}],
            [{"dst": "10.1.0.0/16", "dev": "eth1"}],
            [],
            [],
            id="strangers' names and routes",
        ),
    ],
)
def test_what_stands_on_a_node_for_no_workload_is_left_over(
    links: list[Mapping[str, Any]],
    routes: list[Mapping[str, Any]],
    workloads: list[Mapping[str, Any]],
    want: list[str],
) -> None:
    assert leaks.without_workload(links, routes, workloads) == want


def test_links_into_the_labs_namespaces_are_left_over_unless_asked_for() -> None:
    shown: list[Mapping[str, Any]] = [
        {"ifname": "lo"},
        {"ifname": "docker0", "link_netnsid": 3},
        {"ifname": "asked", "link_netnsid": 7},
        {"ifname": "leaked", "link_netnsid": 7},
    ]
    assert leaks.links_into({7, 8}, shown, {"asked"}) == ["link leaked"]


def member(node: str, pid: int, net: str, *sockets: str) -> leaks.Member:
    return leaks.Member(node, pid, "python3", net, frozenset(sockets))


def test_a_process_of_the_lab_in_the_hosts_network_is_left_over() -> None:
    members = [member("a", 7, "net:[1]"), member("a", 8, "net:[2]"), member(".backplane", 9, "net:[1]")]
    assert leaks.strays(members, "net:[1]") == [
        "process 7 (python3) of a",
        "process 9 (python3) of backplane",
    ]


def test_a_port_at_which_the_lab_listens_on_the_host_is_left_over_unless_it_is_published() -> None:
    listening = {"11": ("tcp", 80), "12": ("udp", 80), "13": ("tcp", 22)}
    members = [member(".backplane", 9, "net:[2]", "11", "12", "99"), member("a", 7, "net:[2]", "11")]
    assert leaks.ports_beyond({("tcp", 80)}, listening, members) == [
        "udp port 80 of process 9 (python3) of backplane"
    ]
    assert leaks.ports_beyond({("tcp", 80), ("udp", 80)}, listening, members) == []


# Addresses

SHOWN = """[
  {"ifname": "eth0", "addr_info": [{"local": "172.20.20.2"}, {"local": "3fff:172:20:20::2"}]},
  {"ifname": "eth1", "addr_info": [{"local": "fd00::1"}, {}, {"local": "fd00::2", "tentative": true}]},
  {"ifname": "eth2", "addr_info": [{"local": "10.0.0.2"}, {"local": "10.0.0.1"}]},
  {}
]"""
MANAGED = Topology(
    name="x",
    nodes=(
        Node(name="web", image="alpine", network=f"{CONTAINER}shared"),
        Node(
            name="shared",
            image="alpine",
            addresses=(ip_interface("172.20.20.2/24"), ip_interface("3fff:172:20:20::2/64")),
        ),
    ),
)


@pytest.mark.parametrize(
    ("shown", "family", "want"),
    [
        (SHOWN, None, ["10.0.0.2", "10.0.0.1", "fd00::1"]),
        (SHOWN, 4, ["10.0.0.2", "10.0.0.1"]),
        (SHOWN, 6, ["fd00::1"]),
        ("", None, []),
    ],
)
def test_an_endpoint_is_known_by_an_address_that_is_its_own_and_not_of_the_management_network(
    shown: str, family: int | None, want: list[str]
) -> None:
    assert usable(shown, MANAGED, family) == want
