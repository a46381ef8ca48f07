"""NAT, published ports and the guards of tunnels with real packets, on both backends, through the agent's own parts."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from fabric.errors import ConfigError, Taken
from fabric.model.felixconfiguration import FelixConfiguration
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.ippool import IPPool
from fabric.model.policy import NetworkPolicy
from fabric.model.workloadendpoint import EndpointPort, WorkloadEndpoint
from fabric.plan.encap import IPIP, VXLAN, VXLAN6
from fabric.plan.guards import PROBE_PORT
from fabric.plan.tunnels import Far, Tunnel
from policy.marks import CUT
from tests.contract.netns import Namespace
from tests.contract.whole_node import (
    N1,
    N1_V6,
    N2,
    N2_V6,
    POOLS,
    QUIET,
    REMOTE,
    REMOTE_V6,
    SPARE,
    STRANGER,
    STRANGER_V6,
    WAIT,
    Seen,
    WholeNode,
    asks,
    tcp_server,
    tells,
    udp_socket,
)
from tests.fakes.node import pool


@pytest.fixture(params=["nft", "legacy"])
def node(request: pytest.FixtureRequest) -> Iterator[WholeNode]:
    with WholeNode(request.param) as found:
        yield found


def addresses(endpoint: WorkloadEndpoint) -> tuple[str, str]:
    v4, v6 = (str(prefix.network_address) for prefix in endpoint.spec.ip_networks)
    return v4, v6


def seen_by(server: socket.socket, space: Namespace, to: str, port: int = 8080) -> str | None:
    found = asks(space, to, port, server)
    return found.address if found else None


def closed(server: socket.socket, space: Namespace, to: str, port: int = 8080) -> bool:
    return asks(space, to, port, server, wait=QUIET) is None


def felix(**spec: object) -> FelixConfiguration:
    return FelixConfiguration.model_validate({"metadata": {"name": "default"}, "spec": spec})


def _link_local_neighbour(router: Namespace) -> tuple[str, int]:
    """Port 8080 of the other end of eth0, by its link's own address."""
    [address] = re.findall(r"fe80:[0-9a-f:]+", router.command("ip", "-6", "address", "show", "dev", "eth0"))
    return f"{address}%eth0", 8080


def test_a_published_port_of_tcp_is_reached_from_everywhere(node: WholeNode) -> None:
    web, other = node.container(), node.container()
    theirs = addresses(node.attach("other", other))
    server = tcp_server(web, 80)
    with server:
        own = addresses(node.attach("web", web, "8080:80"))
        for at, there, neighbour, me in ((N1, N2, theirs[0], own[0]), (N1_V6, N2_V6, theirs[1], own[1])):
            assert seen_by(server, node.outside, at) == there
            assert seen_by(server, node.router, at) == at
            assert seen_by(server, other, at) == neighbour
            assert seen_by(server, web, at) == at  # it would answer itself, past the NAT
            assert seen_by(server, other, me, 80) == neighbour  # nothing is translated that is not published
        assert seen_by(server, node.router, "127.0.0.1") == N1
        assert seen_by(server, node.outside, SPARE) == N2
        link_local = _link_local_neighbour(node.router)
        for space, own_only in ((node.router, ("::1", 8080)), (node.outside, link_local)):
            with pytest.raises(ConnectionRefusedError):  # at once: led away, no answer would ever come
                space.call(partial(socket.create_connection, own_only, WAIT))
        node.detach("web")
        for space in (node.outside, node.router, other):
            assert closed(server, space, N1)
            assert closed(server, space, N1_V6)
        assert closed(server, node.router, "127.0.0.1")


def test_a_published_port_of_udp_is_reached_from_everywhere(node: WholeNode) -> None:
    web, other = node.container(), node.container()
    theirs = addresses(node.attach("other", other))
    node.attach("web", web, "8053:53/udp")
    with udp_socket(web, 53) as server:
        for at, there, neighbour in ((N1, N2, theirs[0]), (N1_V6, N2_V6, theirs[1])):
            for space, expected in ((node.outside, there), (node.router, at), (other, neighbour), (web, at)):
                with udp_socket(space) as client:
                    found = tells(client, at, 8053, server)
                    assert (found.address if found else None) == expected
        with udp_socket(node.router) as client:
            assert tells(client, "127.0.0.1", 8053, server) == Seen(N1, client.getsockname()[1])


def test_udp_that_goes_on_is_led_to_what_is_published_now(node: WholeNode) -> None:
    first, second = node.container(), node.container()
    with (
        udp_socket(node.outside) as client,
        udp_socket(node.router) as inside,
        udp_socket(first, 53) as one,
        udp_socket(second, 53) as two,
    ):
        senders = ((client, N1), (inside, "127.0.0.1"))
        for sender, to in senders:  # of a port that is not there yet, conntrack has heard
            sender.sendto(b"?", (f"::ffff:{to}", 8053))
        node.attach("first", first, "8053:53/udp")
        for sender, to in senders:
            assert tells(sender, to, 8053, one)
        node.detach("first")
        node.attach("second", second, "8053:53/udp")
        for sender, to in senders:
            assert tells(sender, to, 8053, two)
        node.detach("second")
        for sender, to in senders:
            assert tells(sender, to, 8053, two, QUIET) is None


def test_udp_to_a_port_that_went_while_the_agent_was_away_is_led_nowhere(node: WholeNode) -> None:
    web = node.container()
    made = node.attach("web", web, "8053:53/udp")
    with udp_socket(node.outside) as client, udp_socket(web, 53) as server:
        assert tells(client, N1, 8053, server)
        node.restart()
        client.sendto(b"?", (f"::ffff:{N1}", 8053))
        assert server.recv(1)
        assert "dport=8053" in node.router.command("conntrack", "-L")
        node.restart(gone=[made])
        assert "dport=8053" not in node.router.command("conntrack", "-L")


def test_ports_written_to_the_datastore_are_published_while_they_stand_there(node: WholeNode) -> None:
    web = node.container()
    made = node.attach("web", web)
    port = EndpointPort(name="http", protocol="TCP", port=80, host_port=8080)
    published = made.model_copy(update={"spec": made.spec.model_copy(update={"ports": (port,)})})
    localnet = f"net.ipv4.conf.{made.spec.interface_name}.route_localnet"
    with tcp_server(web, 80) as server:
        for endpoint, expected in ((published, N1), (made, None), (published, N1)):
            node.change(endpoint)
            assert node.router.command("sysctl", "-n", localnet).strip() == str(int(bool(expected)))
            if expected:
                assert seen_by(server, node.router, "127.0.0.1") == expected
            else:
                assert closed(server, node.router, "127.0.0.1")
                assert closed(server, node.outside, N1)


def test_a_port_is_published_at_the_address_it_names(node: WholeNode) -> None:
    web, local = node.container(), node.container()
    with tcp_server(web, 80) as server, tcp_server(local, 80) as other:
        node.attach("web", web, f"{SPARE}:8080:80")
        node.attach("local", local, "127.0.0.1:8080:80")
        assert seen_by(server, node.outside, SPARE) == N2
        assert closed(server, node.outside, N1)
        assert seen_by(other, node.router, "127.0.0.1") == N1
        assert closed(other, node.router, N1)


def test_policy_sees_the_port_of_the_container_and_the_address_of_the_client(node: WholeNode) -> None:
    web, other = node.container(), node.container()
    node.attach("other", other)
    spec = {
        "selector": "app == 'web'",
        "types": ["Ingress"],
        "ingress": [
            {"action": "Deny", "protocol": "TCP", "destination": {"ports": [8080]}},
            {
                "action": "Allow",
                "protocol": "TCP",
                "source": {"nets": [f"{N2}/32"]},
                "destination": {"ports": [80]},
            },
        ],
    }
    policy = NetworkPolicy.model_validate({"metadata": {"name": "web", "namespace": "default"}, "spec": spec})
    node.change(policy)
    with tcp_server(web, 80) as server:
        node.attach("web", web, "8080:80", labels={"app": "web"})
        assert seen_by(server, node.outside, N1) == N2
        assert closed(server, other, N1)
        assert closed(server, web, N1)  # it is not among its own clients


def test_the_hosts_own_127_is_closed_to_what_comes_by_a_link(node: WholeNode) -> None:
    node.change(felix(defaultEndpointToHostAction="Accept"))
    web = node.container()
    node.attach("web", web, "8080:80")
    web.ip("address", "flush", "dev", "lo")
    web.command("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    with tcp_server(node.router, 9000) as server:
        assert seen_by(server, web, N1, 9000)
        assert closed(server, web, "127.0.0.1", 9000)
        # What the guard is for.
        tool = "iptables-legacy" if node.rules.tables.backend == "legacy" else "iptables-nft"
        node.router.command(tool, "-t", "raw", "-F", "fab-loopback")
        assert seen_by(server, web, "127.0.0.1", 9000)


def test_127_stays_closed_until_the_link_is_gone(node: WholeNode) -> None:
    web = node.container()
    node.attach("web", web, "8080:80")
    assert node.passes.localnet
    node.detach("web")
    assert node.state.policing
    assert node.state.policing.translated.guarded  # its link went after the rules
    node.change()
    assert not node.state.policing.translated.guarded


def test_a_port_that_is_taken_is_refused_and_its_holder_named(node: WholeNode) -> None:
    web, other = node.container(), node.container()
    node.attach("web", web, "8080:80", f"{N1}:8081:80", "8082:80/udp")
    for wanted in ("8080:81", f"{N1}:8080:81", "127.0.0.1:8080:80", "8081:80"):
        with pytest.raises(Taken, match="published by workload default/web"):
            node.attach("other", other, wanted)
    with tcp_server(node.router, 9000), udp_socket(node.router, 9001):
        for wanted, what in (("9000:80", "9000/tcp"), ("9001:80/udp", "9001/udp")):
            with pytest.raises(Taken, match=rf"port {what} is taken on node n1: by \S+ \(pid [0-9]+\)"):
                node.attach("other", other, wanted)
    with pytest.raises(ConfigError, match="is no address of node n1"):
        node.attach("other", other, "203.0.113.9:8080:80")
    with pytest.raises(ConfigError, match="asked for twice"):
        node.attach("other", other, "9000:80", "9000:81")
    node.attach("other", other, f"{SPARE}:8081:80", "8082:80", "9000:80", "9000:80/udp")
    assert node.attach("web", web, f"{N1}:8081:80", "8080:80", "8082:80/udp") == node.attach("web", web)
    with pytest.raises(Taken, match="published at 8080->80/tcp"):
        node.attach("web", web, "9090:80")


def test_an_attach_that_publishes_nothing_writes_no_rule(node: WholeNode) -> None:
    node.attach("web", node.container(), "8080:80")
    before = dict(node.rules.restores)
    node.attach("other", node.container())
    assert node.rules.restores == before


@pytest.mark.parametrize(
    ("spec", "toward", "expected"),
    [
        pytest.param({}, STRANGER, N1, id="a stranger"),
        pytest.param({}, N2, N1, id="another node"),
        pytest.param({}, REMOTE, None, id="within the pools"),
        pytest.param({}, STRANGER_V6, N1_V6, id="a stranger, IPv6"),
        pytest.param({}, REMOTE_V6, None, id="within the pools, IPv6"),
        pytest.param({"natOutgoingAddress": SPARE}, STRANGER, SPARE, id="another address"),
        pytest.param({"natOutgoingExclusions": "IPPoolsAndHostIPs"}, N2, None, id="nodes spared"),
        pytest.param({"natOutgoingExclusions": "IPPoolsAndHostIPs"}, STRANGER, N1, id="but no strangers"),
        pytest.param(
            {"iptablesNATOutgoingInterfaceFilter": "eth+"}, STRANGER, N1, id="by a link that is named"
        ),
        pytest.param({"iptablesNATOutgoingInterfaceFilter": "ens+"}, STRANGER, None, id="by another link"),
    ],
)
def test_what_leaves_the_pools_leaves_with_the_nodes_address(
    spec: dict[str, object], toward: str, expected: str | None, node: WholeNode
) -> None:
    if spec:
        node.change(felix(**spec))
    web = node.container()
    own = addresses(node.attach("web", web))
    with tcp_server(node.outside, 80) as server:
        assert seen_by(server, web, toward, 80) == (expected or own[":" in toward])


@pytest.mark.parametrize("more", [{}, {"natOutgoingAddress": SPARE}], ids=["masquerade", "address"])
def test_source_ports_are_of_the_range(more: dict[str, object], node: WholeNode) -> None:
    node.change(felix(natPortRange="30000:30099", **more))
    web = node.container()
    node.attach("web", web)
    with tcp_server(node.outside, 80) as tcp, udp_socket(node.outside, 53) as udp, udp_socket(web) as client:
        for found in (asks(web, N2, 80, tcp), tells(client, N2, 53, udp)):
            assert found
            assert found.address == (SPARE if more else N1)
            assert 30000 <= found.port <= 30099


def test_only_pools_that_ask_for_it_are_translated(node: WholeNode) -> None:
    node.change(pool("10.65.0.0/16", "v4", blockSize=26))
    web = node.container()
    own, _ = addresses(node.attach("web", web))
    with tcp_server(node.outside, 80) as server:
        assert seen_by(server, web, STRANGER, 80) == own
        node.change(*POOLS)
        assert seen_by(server, web, STRANGER, 80) == N1
        # Of one for load balancers alone, the addresses are outside.
        lb = {"cidr": f"{STRANGER}/32", "blockSize": 32, "allowedUses": ["LoadBalancer"]}
        node.change(IPPool.model_validate({"metadata": {"name": "lb"}, "spec": lb}))
        assert seen_by(server, web, STRANGER, 80) == N1


VXLAN_END = Tunnel(VXLAN, ip_address("10.65.200.1"), ip_address(N1), 1400, "66:00:00:00:00:01", 4096, 4789)
VXLAN6_END = Tunnel(
    VXLAN6, ip_address("fd00:65::c8"), ip_address(N1_V6), 1400, "66:00:00:00:00:02", 4096, 4789
)
IPIP_END = Tunnel(IPIP, ip_address("10.65.200.2"), ip_address(N1), 1400)


def _sends(space: Namespace, source: str, to: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with space.call(partial(socket.socket, family, socket.SOCK_DGRAM)) as client:
        client.bind((source, 0))
        client.sendto(b"?", (to, port))


def _raw(space: Namespace) -> socket.socket:
    made = space.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 4))
    made.settimeout(QUIET)
    return made


def _hears(server: socket.socket) -> bool:
    try:
        server.recv(2048)
    except TimeoutError:
        return False
    return True


def test_a_tunnels_packets_are_taken_from_nodes_alone(node: WholeNode) -> None:
    web = node.container()
    own, _ = addresses(node.attach("web", web))

    with (
        udp_socket(node.router, 4789) as vxlan,
        _raw(node.router) as ipip,
        _raw(node.outside) as sender,
    ):
        for guarded in (False, True):
            if guarded:
                node.tunnels(VXLAN_END, IPIP_END, VXLAN6_END)
            for source in (N2, STRANGER):
                sender.bind((source, 0))
                sender.sendto(b"x" * 20, (N1, 0))
                assert _hears(ipip) == (source == N2 or not guarded)
                _sends(node.outside, source, N1, 4789)
                assert _hears(vxlan) == (source == N2 or not guarded)
            for source in (N2_V6, STRANGER_V6):
                _sends(node.outside, source, N1_V6, 4789)
                assert _hears(vxlan) == (source == N2_V6 or not guarded)
        # Not even as a node's.
        web.ip("address", "add", N2, "dev", "eth0")
        for source in (own, N2):
            _sends(web, source, N1, 4789)
            assert not _hears(vxlan)


def test_the_probe_of_checksums_gets_out_whatever_a_host_endpoint_says(node: WholeNode) -> None:
    far = node.container()
    end = Far(ip_address("10.65.7.1"), "66:00:00:00:00:02", ip_address(N2))
    node.tunnels(replace(VXLAN_END, far=frozenset({end})))
    _stands_in(node, VXLAN_END, far)
    link = {"node": "n1", "interfaceName": "*"}
    node.change(HostEndpoint.model_validate({"metadata": {"name": "every"}, "spec": link}))
    with tcp_server(far, PROBE_PORT) as server, tcp_server(far, 80) as other:
        assert seen_by(server, node.router, "10.65.7.1", PROBE_PORT) == "10.65.200.1"
        assert closed(other, node.router, "10.65.7.1", 80)


def test_a_tunnels_packets_get_out_to_nodes_whatever_a_host_endpoint_says(node: WholeNode) -> None:
    link = {"node": "n1", "interfaceName": "eth0", "expectedIPs": [N1, N1_V6]}
    # Without these the tunnels' packets were open by themselves.
    node.change(
        felix(failsafeOutboundHostPorts=[], failsafeInboundHostPorts=[]),
        HostEndpoint.model_validate({"metadata": {"name": "eth0"}, "spec": link}),
    )
    with (
        udp_socket(node.router) as sender,
        _raw(node.router) as ipip,
        udp_socket(node.outside, 4789) as far,
        _raw(node.outside) as far_ipip,
    ):
        for tunnels in (False, True):
            if tunnels:
                node.tunnels(VXLAN_END, IPIP_END, VXLAN6_END)
            for to in (N2, STRANGER):
                found = tunnels and to == N2
                assert _arrives(sender, (f"::ffff:{to}", 4789), far) is found
                assert _arrives(ipip, (to, 0), far_ipip) is found
            for to in (N2_V6, STRANGER_V6):
                assert _arrives(sender, (to, 4789), far) is (tunnels and to == N2_V6)
            assert not _arrives(sender, (f"::ffff:{N2}", 4790), far)
        node.judge()
        flows = "-p", "udp", "-d", N2, "--dport", "4789"
        assert f"mark={CUT}" not in node.router.command("conntrack", "-L", *flows)
        # Nor is one that was cut before there was a tunnel.
        node.router.command("conntrack", "-U", *flows, "-m", f"{CUT:#x}/{CUT:#x}")
        assert f"mark={CUT}" in node.router.command("conntrack", "-L", *flows)
        assert _arrives(sender, (f"::ffff:{N2}", 4789), far)


def _arrives(sender: socket.socket, to: tuple[str, int], server: socket.socket) -> bool:
    try:
        sender.sendto(b"x" * 20, to)
    except PermissionError:  # the packet was dropped here
        return False
    return _hears(server)


def _stands_in(node: WholeNode, tunnel: Tunnel, far: Namespace) -> None:
    """A veth in the place of the device, which not every kernel has: iptables asks for the name."""
    name = tunnel.name
    node.router.ip("link", "add", name, "mtu", "1400", "type", "veth", "peer", "far0", "netns", far.path)
    node.router.ip("address", "add", f"{tunnel.address}/32", "dev", name)
    node.router.ip("link", "set", name, "up")
    far.ip("link", "set", "far0", "mtu", "9000", "up")
    far.ip("address", "add", "10.65.7.1/32", "dev", "far0")
    far.ip("route", "add", "default", "dev", "far0")
    far.ip("route", "add", "10.65.0.0/16", "dev", "far0", "src", "10.65.7.1")
    node.router.ip("route", "add", "10.65.7.1", "dev", name)
    node.router.command(
        "sysctl", "-qw", f"net/ipv4/conf/{name}/proxy_arp=1", f"net/ipv4/neigh/{name}/proxy_delay=0"
    )


def test_what_goes_through_a_tunnel_fits_and_comes_from_its_end(node: WholeNode) -> None:
    web, far = node.container(), node.container()
    node.tunnels(IPIP_END)
    _stands_in(node, IPIP_END, far)
    own, _ = addresses(node.attach("web", web))
    with tcp_server(far, 80) as server:
        for source in ("", N1):
            found = asks(node.router, "10.65.7.1", 80, server, source)
            assert (found.address if found else None) == "10.65.200.2"
        assert seen_by(server, web, "10.65.7.1", 80) == own
        with web.call(lambda: socket.create_connection(("10.65.7.1", 80), 1)) as client:
            heard, _ = server.accept()
            with heard:
                for end in (client, heard):
                    assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1360
