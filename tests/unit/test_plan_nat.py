"""The rules of natOutgoing and around tunnels, as tables: that they do what they say is in tests/contract."""

from ipaddress import ip_address, ip_network

import pytest

from fabric.plan import guards, nat
from fabric.plan.encap import IPIP, VXLAN, VXLAN6
from fabric.plan.nat import Outgoing
from fabric.plan.produced import Produced, nets
from fabric.plan.tables import VERSIONS, Place
from fabric.plan.tunnels import Far, Tunnel

POOL, OTHER, POOL6 = (ip_network(text) for text in ("10.65.0.0/16", "10.66.0.0/16", "fd00:65::/48"))
POST = Place("nat", "POSTROUTING")
CHAIN = Place("nat", "fab-nat-outgoing")
TO_OUTSIDE = "-m set --match-set fab4-nat-pools src -m set ! --match-set fab4-nat-inside dst"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "made",
    [
        lambda v: nat.produce(v, Outgoing(inside=frozenset({POOL, POOL6}))),
        lambda v: guards.produce(v, (), frozenset()),
    ],
    ids=["nat", "guards"],
)
def test_nothing_is_asked_for_where_nobody_needs_it(made: object, version: int) -> None:
    assert callable(made)
    assert made(version) == Produced(version)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outgoing", "jump", "lines"),
    [
        pytest.param(
            Outgoing(pools=frozenset({POOL})),
            f"! -o fab+ {TO_OUTSIDE} -j fab-nat-outgoing",
            ("-j MASQUERADE --random-fully",),
            id="plain",
        ),
        pytest.param(
            Outgoing(pools=frozenset({POOL}), ports="30000-30099"),
            f"! -o fab+ {TO_OUTSIDE} -j fab-nat-outgoing",
            (
                "-p tcp -j MASQUERADE --to-ports 30000-30099 --random-fully",
                "-p udp -j MASQUERADE --to-ports 30000-30099 --random-fully",
                "-j MASQUERADE --random-fully",
            ),
            id="ports",
        ),
        pytest.param(
            Outgoing(
                pools=frozenset({POOL}),
                spared=frozenset({ip_address("192.0.2.2")}),
                address=ip_address("192.0.2.77"),  # type: ignore[arg-type]
                ports="30000",
                interfaces="eth+",
            ),
            f"-o eth+ {TO_OUTSIDE} -m set ! --match-set fab4-nat-spared dst -j fab-nat-outgoing",
            (
                "-p tcp -j SNAT --to-source 192.0.2.77:30000 --random-fully",
                "-p udp -j SNAT --to-source 192.0.2.77:30000 --random-fully",
                "-j SNAT --to-source 192.0.2.77 --random-fully",
            ),
            id="everything",
        ),
    ],
)
def test_outgoing(outgoing: Outgoing, jump: str, lines: tuple[str, ...]) -> None:
    made = nat.produce(4, outgoing)
    assert made.first == {POST: (jump,)}
    assert made.chains == {CHAIN: lines}
    assert nat.produce(6, outgoing) == Produced(6)


def test_families_have_pools_of_their_own_and_the_address_is_of_ipv4() -> None:
    address = ip_address("192.0.2.77")
    both = Outgoing(frozenset({POOL, POOL6}), frozenset({POOL, OTHER, POOL6}), address=address)  # type: ignore[arg-type]
    assert {name: one.members for name, one in nat.produce(4, both).sets.items()} == {
        "fab4-nat-pools": {"10.65.0.0/16"},
        "fab4-nat-inside": {"10.65.0.0/16", "10.66.0.0/16"},
    }
    assert nat.produce(6, both).chains == {CHAIN: ("-j MASQUERADE --random-fully",)}


def test_members_are_written_as_ipset_writes_them() -> None:
    texts = (ip_network("10.0.0.1/32"), ip_address("10.0.0.2"), ip_network("10.1.0.0/16"), ip_address("::1"))
    assert nets(4, texts).members == {"10.0.0.1", "10.0.0.2", "10.1.0.0/16"}


NODES = frozenset(map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1")))
FAR = Far(ip_address("10.65.200.9"), "66:00:00:00:00:02", ip_address("192.0.2.2"))
ENDS = (
    Tunnel(
        VXLAN,
        ip_address("10.65.200.1"),
        ip_address("192.0.2.1"),
        1450,
        "66:00:00:00:00:01",
        4096,
        4790,
        frozenset({FAR}),
    ),
    Tunnel(IPIP, ip_address("10.65.200.2"), ip_address("192.0.2.1"), 1480),
    Tunnel(
        VXLAN6, ip_address("fd00:65::1"), ip_address("2001:db8::1"), 1430, "66:00:00:00:00:03", 4096, 4789
    ),
)


def test_each_tunnel_has_its_guards_in_its_own_family() -> None:
    made = guards.produce(4, ENDS, NODES)
    known = "-m set --match-set fab4-tunnel-nodes src -m addrtype --dst-type LOCAL -j ACCEPT"
    assert made.chains[Place("filter", "fab-tunnels")] == (
        f"! -i fab+ -p 4 {known}",
        "-p 4 -j DROP",
        f"! -i fab+ -p udp -m udp --dport 4790 {known}",
        "-p udp -m udp --dport 4790 -j DROP",
        "-i vxlan.fabric -p tcp -m tcp --dport 14789 -m set --match-set fab4-tunnel-ends src -j ACCEPT",
    )
    sent = "-m set --match-set fab4-tunnel-nodes dst -m addrtype --src-type LOCAL -j ACCEPT"
    assert made.first[Place("filter", "OUTPUT")] == ("-j fab-tunnels-out",)
    assert made.chains[Place("filter", "fab-tunnels-out")] == (
        f"-p 4 {sent}",
        f"-p udp -m udp --dport 4790 {sent}",
        "-o vxlan.fabric -p tcp -m tcp --dport 14789 -m set --match-set fab4-tunnel-ends dst -j ACCEPT",
    )
    assert made.chains[Place("nat", "fab-tunnel-source")] == (
        "-o tunl0 ! -s 10.65.200.2 -j SNAT --to-source 10.65.200.2",
        "-o vxlan.fabric ! -s 10.65.200.1 -j SNAT --to-source 10.65.200.1",
    )
    assert len(made.chains[Place("mangle", "fab-tunnel-mss")]) == 4
    assert {name: one.members for name, one in made.sets.items()} == {
        "fab4-tunnel-nodes": {"192.0.2.1", "192.0.2.2"},
        "fab4-tunnel-ends": {"10.65.200.9"},
    }
    six = guards.produce(6, ENDS, NODES)
    assert six.sets["fab6-tunnel-nodes"].members == {"2001:db8::1"}
    assert "-p 4" not in str(six.chains)
    assert guards.produce(4, ENDS[::-1], NODES) == made
