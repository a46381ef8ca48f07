"""What NAT, published ports and tunnels want of a node: what it is made of, and which connections it ends."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations

import pytest

from fabric.agent import translation
from fabric.agent.policing import policing
from fabric.agent.policing import with_own as policy_with_own
from fabric.agent.snapshot import Snapshot
from fabric.agent.translation import Publishing, Translation, astray, policed, touched
from fabric.model.base import Resource
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.workloadendpoint import EndpointPort, WorkloadEndpoint
from fabric.plan.encap import IPIP, VXLAN, Address
from fabric.plan.publish import Published
from fabric.plan.tables import Place
from fabric.plan.tunnels import Tunnel
from policy.flows import Ends, Flow
from policy.form import TCP, UDP
from tests.fakes.node import pool
from tests.unit.test_agent_policing import HOST, KNOWN, SNAPSHOT, alike, stored, workload

TUNNEL = Tunnel(IPIP, ip_address("10.0.0.200"), ip_address("192.0.2.1"), 1480)


def publishing(name: str, number: int, at: int, protocol: str = "TCP") -> WorkloadEndpoint:
    made = workload(name, number)
    port = EndpointPort(protocol=protocol, port=80, host_port=at)
    return made.model_copy(update={"spec": made.spec.model_copy(update={"ports": (port,)})})


def of(
    snapshot: Snapshot, *tunnels: Tunnel, known: Translation | None = None, localnet: bool = False
) -> Translation:
    return translation.translation("n1", snapshot, HOST, tunnels, known, localnet=localnet)


def felix(**spec: object) -> FelixConfiguration:
    return FelixConfiguration.model_validate({"metadata": {"name": "default"}, "spec": spec})


def test_nothing_is_wanted_of_a_node_that_needs_none() -> None:
    assert of(SNAPSHOT).rendered == ()


def test_pools_and_settings() -> None:
    balancer = {"cidr": "203.0.113.0/26", "allowedUses": ["LoadBalancer"]}
    said = (
        pool("10.0.0.0/24", natOutgoing=True),
        pool("10.9.0.0/16", "second", disabled=True),
        IPPool.model_validate({"metadata": {"name": "lb"}, "spec": balancer}),
        felix(
            natPortRange="30000:30099",
            natOutgoingAddress="192.0.2.77",
            natOutgoingExclusions="IPPoolsAndHostIPs",
            iptablesNATOutgoingInterfaceFilter="eth+",
        ),
    )
    outgoing = of(stored(SNAPSHOT, *said)).outgoing
    assert set(map(str, outgoing.pools)) == {"10.0.0.0/24"}
    assert set(map(str, outgoing.inside)) == {"10.0.0.0/24", "10.9.0.0/16"}
    assert set(map(str, outgoing.spared)) == {"192.0.2.1", "192.0.2.2"}
    assert (str(outgoing.address), outgoing.ports, outgoing.interfaces) == (
        "192.0.2.77",
        "30000-30099",
        "eth+",
    )
    one = of(stored(SNAPSHOT, *said[:1], felix(natPortRange=30000))).outgoing
    assert (one.ports, one.address, one.spared) == ("30000", None, frozenset())


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"natOutgoingAddress": "192.0.2.1"}, ""),
        ({"natOutgoingAddress": "192.0.2.2"}, "natOutgoingAddress 192.0.2.2 is no address of n1"),
        ({"iptablesNATOutgoingInterfaceFilter": "eth0"}, ""),
        ({"iptablesNATOutgoingInterfaceFilter": "e+"}, ""),
        ({"iptablesNATOutgoingInterfaceFilter": "eth9"}, "eth9 matches no link of n1"),
    ],
)
def test_what_nat_outgoing_names_and_the_node_has_not_is_a_problem(spec: dict[str, str], told: str) -> None:
    asks, settings = pool("10.0.0.0/24", natOutgoing=True), felix(**spec)
    found = of(stored(SNAPSHOT, asks, settings))
    assert told in found.problems.get("FelixConfiguration", "")
    assert bool(found.problems) == bool(told)
    assert translation.with_own(found, [publishing("web", 1, 8080)]).problems == found.problems
    assert of(stored(SNAPSHOT, settings)).problems == {}  # no pool asks for it


def test_the_port_by_which_tunnels_come_in_is_not_published() -> None:
    snapshot = stored(SNAPSHOT, publishing("web", 1, 4789, "UDP"), publishing("db", 2, 4789, "TCP"))
    before, after = of(snapshot), of(snapshot, replace(TUNNEL, encap=VXLAN, port=4789))
    assert {one.protocol for one in before.publishing.ports} == {"udp", "tcp"}
    assert {one.protocol for one in after.publishing.ports} == {"tcp"}
    [told] = after.problems.values()
    assert "4789/udp" in told
    assert "vxlanPort" in told
    again = translation.with_own(after, snapshot.endpoints("n1"))
    assert again is after


def test_a_tunnel_is_open_to_every_address_that_a_node_sends_from() -> None:
    two_uplinks = Node.model_validate(
        {
            "metadata": {"name": "n9"},
            "spec": {
                "bgp": {"ipv4Address": "192.0.2.9/32"},
                "addresses": [{"address": "198.51.100.9"}],
                "interfaces": [{"name": "eth1", "addresses": ["203.0.113.9/30", "2001:db8::9/64"]}],
            },
        }
    )
    nodes = of(stored(SNAPSHOT, two_uplinks), TUNNEL).nodes
    assert set(map(str, nodes)) == {
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.9",
        "198.51.100.9",
        "203.0.113.9",
        "2001:db8::9",
    }


def test_guards_stand_before_policy() -> None:
    found = policing("n1", SNAPSHOT, HOST, None, tunnels=[TUNNEL]).composed
    assert found.rulesets[4].first[Place("filter", "INPUT")] == ("-j fab-tunnels", "-j fab-INPUT")


def test_an_attach_that_publishes_nothing_leaves_it_the_same_object() -> None:
    with_port = stored(SNAPSHOT, publishing("web", 1, 8080), pool("10.0.0.0/24", natOutgoing=True))
    known = policing("n1", with_port, HOST, None, tunnels=[TUNNEL])
    more = stored(with_port, workload("new", 4, app="web"))
    attached = policy_with_own("n1", more, known)
    assert attached.translated is known.translated
    assert attached.composed.publishing is known.composed.publishing
    nat = [place for place in known.composed.chains[4] if place.table != "filter"]
    assert nat
    assert all(attached.composed.chains[4][place] is known.composed.chains[4][place] for place in nat)
    assert policing("n1", more, HOST, attached, tunnels=[TUNNEL]).translated is known.translated


WALK: tuple[tuple[Resource, ...], ...] = (
    (workload("web", 1, app="web"), pool("10.0.0.0/24")),
    (publishing("web", 1, 8080), pool("10.0.0.0/24", natOutgoing=True)),
    (publishing("web", 1, 8081), publishing("db", 2, 8080, "UDP")),
    (publishing("web", 1, 8080), publishing("db", 2, 8080)),
)


@pytest.mark.parametrize("walk", list(permutations(WALK, 3)))
def test_what_is_kept_gives_the_same_as_from_scratch(walk: tuple[tuple[Resource, ...], ...]) -> None:
    snapshot, known = SNAPSHOT, KNOWN
    for step in walk:
        snapshot = stored(snapshot, *step)
        known = policing("n1", snapshot, HOST, policy_with_own("n1", snapshot, known))
        fresh = policing("n1", snapshot, HOST, None)
        assert (known.composed.publishing, known.problems) == (fresh.composed.publishing, fresh.problems)
        assert alike(policing("n1", snapshot, HOST, known, tidy=True), fresh)


def test_127_stays_closed_after_the_last_port_until_the_links_are_gone() -> None:
    known = of(stored(SNAPSHOT, publishing("web", 1, 8080)))
    assert known.guarded
    gone = translation.with_own(known, SNAPSHOT.endpoints("n1"))
    assert gone.guarded
    assert of(SNAPSHOT, known=gone, localnet=True).guarded
    assert of(SNAPSHOT, localnet=True).guarded  # a restarted agent
    assert not of(SNAPSHOT, known=gone).guarded


def test_a_port_that_is_taken_is_a_problem_of_the_node() -> None:
    twice = stored(SNAPSHOT, publishing("web", 1, 8080), publishing("db", 2, 8080))
    [(name, why)] = policing("n1", twice, HOST, None).problems.items()
    assert name == "WorkloadEndpoint default/n1-fabricctl-web-eth0"
    assert "is published by workload default/db" in why


LOCAL = frozenset(map(ip_address, ("192.0.2.1", "127.0.0.1", "2001:db8::1")))
OLD, NEW = ip_address("10.0.0.1"), ip_address("10.0.0.2")


def led(protocol: int, to: object, port: int, host: str = "192.0.2.1", at: int = 53) -> Flow:
    asked = Ends(ip_address("198.51.100.1"), ip_address(host), protocol, 40000, at)
    return Flow(asked, Ends(to, asked.source, protocol, port, 40000))  # type: ignore[arg-type]


def ports(*made: tuple[str, object], host: str = "") -> Publishing:
    at = ip_address(host) if host else None
    return Publishing(
        tuple(Published(protocol, at, 53, to, 5353, "default/web") for protocol, to in made),  # type: ignore[arg-type]
        LOCAL,
        frozenset({ip_network("10.0.0.0/24")}),
    )


NONE, ONE, OTHER = ports(), ports(("udp", OLD), ("tcp", OLD)), ports(("udp", NEW), ("tcp", NEW))
HERE = ip_address("192.0.2.1")


@pytest.mark.parametrize(
    ("before", "now", "flow", "goes"),
    [
        pytest.param(ONE, NONE, led(UDP, OLD, 5353), True, id="gone"),
        pytest.param(ONE, NONE, led(TCP, OLD, 5353), True, id="gone, TCP"),
        pytest.param(ONE, OTHER, led(UDP, OLD, 5353), True, id="another has it now"),
        pytest.param(ONE, OTHER, led(UDP, NEW, 5353), False, id="led there by now"),
        pytest.param(NONE, ONE, led(UDP, HERE, 53), True, id="new, and the host's before"),
        pytest.param(NONE, ONE, led(TCP, HERE, 53), False, id="the host's own TCP goes on"),
        pytest.param(
            NONE, ONE, led(UDP, ip_address("192.0.2.9"), 53, "192.0.2.9"), False, id="forwarded elsewhere"
        ),
        pytest.param(NONE, ONE, led(UDP, HERE, 54, at=54), False, id="another port"),
        pytest.param(ONE, NONE, led(UDP, NEW, 5353), False, id="led by somebody else's rule"),
        pytest.param(ONE, ONE, led(UDP, OLD, 5353), False, id="no change"),
        pytest.param(None, NONE, led(UDP, OLD, 5353), True, id="restarted, gone"),
        pytest.param(None, NONE, led(TCP, OLD, 80, at=8080), False, id="restarted, TCP"),
        pytest.param(None, OTHER, led(UDP, OLD, 5353), True, id="restarted, another has it now"),
        pytest.param(None, ONE, led(UDP, OLD, 5353), False, id="restarted, led there still"),
        pytest.param(None, ONE, led(UDP, HERE, 53), True, id="restarted, new"),
        pytest.param(None, NONE, led(UDP, HERE, 53), False, id="restarted, the host's"),
        pytest.param(
            None, NONE, led(UDP, ip_address("172.17.0.2"), 53), False, id="restarted, led by somebody else"
        ),
        pytest.param(
            None, NONE, led(UDP, OLD, 53, host=str(OLD)), False, id="restarted, to the container itself"
        ),
        pytest.param(
            NONE,
            ports(("udp", OLD), host="127.0.0.1"),
            led(UDP, HERE, 53),
            False,
            id="published at another address",
        ),
    ],
)
def test_which_connections_go_astray(
    before: Publishing | None, now: Publishing, flow: Flow, goes: bool
) -> None:
    assert astray(before, now, [flow]) == ([flow] if goes else [])


def test_only_who_may_be_concerned_is_looked_at() -> None:
    assert touched(ONE, ONE) == frozenset()
    assert touched(ONE, replace(ONE, local=frozenset())) == frozenset()
    assert touched(None, NONE) == LOCAL
    assert touched(ONE, NONE) == {OLD}
    assert touched(NONE, ports(("tcp", OLD))) == {OLD}
    assert touched(NONE, ONE) == {OLD, *LOCAL}


VTEP = Tunnel(VXLAN, ip_address("10.0.0.0"), HERE, 1450, port=4789)
TUNL0 = Tunnel(IPIP, ip_address("10.0.0.1"), HERE, 1480)
THERE, STRANGE = ip_address("192.0.2.2"), ip_address("198.51.100.1")


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "port", "tunnels", "is_asked"),
    [
        (HERE, THERE, UDP, 4789, (VTEP,), False),
        (THERE, HERE, UDP, 4789, (VTEP,), False),
        (HERE, THERE, 4, 0, (VTEP, TUNL0), False),
        (HERE, THERE, 4, 0, (VTEP,), True),
        (HERE, THERE, UDP, 4789, (), True),
        (HERE, THERE, UDP, 4790, (VTEP,), True),
        (HERE, THERE, TCP, 4789, (VTEP,), True),
        (HERE, STRANGE, UDP, 4789, (VTEP,), True),
        (STRANGE, HERE, UDP, 4789, (VTEP,), True),
        (THERE, ip_address("192.0.2.3"), UDP, 4789, (VTEP,), True),
    ],
)
def test_policy_is_not_asked_about_what_carries_tunnels_packets_between_nodes(
    source: Address,
    destination: Address,
    protocol: int,
    port: int,
    tunnels: tuple[Tunnel, ...],
    is_asked: bool,
) -> None:
    nodes = frozenset({HERE, THERE, ip_address("192.0.2.3")})
    wanted = Translation(tunnels=tunnels, nodes=nodes, publishing=Publishing(local=frozenset({HERE})))
    ends = Ends(source, destination, protocol, port and 40000, port)
    flow = Flow(ends, Ends(destination, source, protocol, port, port and 40000))
    assert list(policed(wanted, [flow])) == [flow] * is_asked
