"""The expectations of a lab: what each section means, and how a mistake is told."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fabric.errors import ConfigError
from fabric.lab import source as sources
from fabric.lab.expect import (
    Door,
    Encapsulated,
    Endpoint,
    Expectations,
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
    beside,
    load,
    resolve,
)
from fabric.lab.profiles import builtin
from fabric.lab.topology import Endpoint as End
from fabric.lab.topology import Link, Node, Topology

FILE = Path("rack.verify.yml")


def node(name: str, image: str) -> Node:
    return Node(name=name, image=image, profile=builtin().of(image))


RACK = Topology(
    name="rack",
    nodes=(
        node("tor", "frrouting/frr:v8.4.1"),
        node("node1", "fabricctl/node"),
        node("node2", "fabricctl/node"),
        node("outside", "alpine"),
    ),
    links=(Link(End("tor", "eth1"), End("node1", "eth1")),),
)
WEB, DB = Endpoint("web", "node1", "web"), Endpoint("db", "node2", "db")
OUTSIDE, NODE1 = Endpoint("outside", "outside"), Endpoint("node1", "node1")
DOOR = Door(ip_address("10.10.1.2"), 8080)
ENDPOINTS = "endpoints:\n  web: {node: node1, netns: web}\n  db: {node: node2, netns: db}\n"


def expectations(text: str) -> Expectations:
    return resolve(sources.parse(text, FILE, state="nothing was asked"), RACK)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param(
            "sessions:\n- {node: tor, peers: 10.0.0.2}\n- node: node1\n  peers:\n  - fd00::1\n  - eth1\n",
            [
                SessionUp(2, "tor", "10.0.0.2"),
                SessionUp(5, "node1", "fd00::1"),
                SessionUp(6, "node1", "eth1"),
            ],
            id="a session for each peer",
        ),
        pytest.param(
            "routes:\n- {node: tor, table: bgp, present: [10.77.9.0/26], absent: ['::/0']}\n"
            "- node: outside\n  next-hops:\n    0.0.0.0/0: 1\n    fd77::/64: 2\n",
            [
                Route(2, "tor", "bgp", ip_network("10.77.9.0/26"), present=True),
                Route(2, "tor", "bgp", ip_network("::/0"), present=False),
                NextHops(5, "outside", "kernel", ip_network("0.0.0.0/0"), 1),
                NextHops(6, "outside", "kernel", ip_network("fd77::/64"), 2),
            ],
            id="routes, in the kernel unless it says bgp",
        ),
        pytest.param(
            ENDPOINTS + "reach:\n- {from: [web, outside], to: [web, db]}\n"
            "- {from: web, to: outside, tcp: 80, expect: refused}\n- {from: web, to: db, udp: 53, expect: reached}\n",
            [
                Reach(5, Flow(WEB, DB), refused=False),
                Reach(5, Flow(OUTSIDE, WEB), refused=False),
                Reach(5, Flow(OUTSIDE, DB), refused=False),
                Reach(6, Flow(WEB, OUTSIDE, "tcp", 80), refused=True),
                Reach(7, Flow(WEB, DB, "udp", 53), refused=False),
            ],
            id="every from with every to, but not with itself",
        ),
        pytest.param(
            ENDPOINTS + "mtu:\n- {from: web, to: [db, node1], bytes: 1500}\nuntranslated:\n"
            "- {from: web, to: db, udp: 4000}\n",
            [
                Mtu(5, Flow(WEB, DB), 1500),
                Mtu(5, Flow(WEB, NODE1), 1500),
                Untranslated(7, Flow(WEB, DB, "udp", 4000)),
            ],
            id="a node's name stands for the node",
        ),
        pytest.param(
            ENDPOINTS + "encapsulated:\n- {from: web, to: db, as: vxlan, on: 'tor:eth1'}\n"
            "- {from: db, to: web, tcp: 80, as: native, on: 'node1:eth1'}\n",
            [
                Encapsulated(5, Flow(WEB, DB), "vxlan", "tor", "eth1"),
                Encapsulated(6, Flow(DB, WEB, "tcp", 80), "native", "node1", "eth1"),
            ],
            id="what carries packets on a link",
        ),
        pytest.param(
            ENDPOINTS + "translated:\n- {from: web, to: outside, tcp: 80, as: 10.10.1.2}\n",
            [Translated(5, Flow(WEB, OUTSIDE, "tcp", 80), ip_address("10.10.1.2"))],
            id="as whom the target sees the sender",
        ),
        pytest.param(
            ENDPOINTS + "published:\n- {from: [outside, web], to: 10.10.1.2, tcp: 8080, at: web, port: 80}\n"
            "- {from: node1, to: 127.0.0.1, udp: 53, at: db, port: 5353, sees: 10.10.1.2}\n"
            "- {from: outside, to: 10.10.1.3, tcp: 8080, at: web, port: 80, expect: refused}\n",
            [
                Published(5, Flow(OUTSIDE, WEB, "tcp", 80, DOOR), None, refused=False),
                Published(5, Flow(WEB, WEB, "tcp", 80, DOOR), None, refused=False),
                Published(
                    6,
                    Flow(NODE1, DB, "udp", 5353, Door(ip_address("127.0.0.1"), 53)),
                    ip_address("10.10.1.2"),
                    refused=False,
                ),
                Published(
                    7, Flow(OUTSIDE, WEB, "tcp", 80, Door(ip_address("10.10.1.3"), 8080)), None, refused=True
                ),
            ],
            id="ports that lead elsewhere, also from behind them",
        ),
        pytest.param(
            "leaks: none\n",
            [NoLeaks(1, place) for place in ("host", "node1", "node2", "ipam")],
            id="leaks on the host and the nodes of the fabric",
        ),
    ],
)
def test_a_section_is_as_many_expectations_as_it_names_things(text: str, want: list[object]) -> None:
    assert list(expectations(text).all) == want


def test_an_endpoint_says_where_it_is_and_which_of_its_addresses_counts() -> None:
    text = (
        "within: 7.5\nendpoints:\n  a: {node: node1}\n  b: {node: node1, netns: x-1, family: 6}\n"
        "  c: {node: tor, address: 192.0.2.1}\nleaks: none\n"
    )
    found = expectations(text)
    assert found.within == 7.5
    assert found.endpoints == (
        Endpoint("a", "node1"),
        Endpoint("b", "node1", "x-1", family=6),
        Endpoint("c", "tor", address=ip_address("192.0.2.1")),
    )


def test_two_names_for_one_place_are_no_pair() -> None:
    text = "endpoints: {a: {node: tor, address: 192.0.2.1}}\nreach: [{from: [tor, outside], to: a}]\n"
    assert [str(each.where) for each in expectations(text).all] == ["outside -> a"]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param(
            "", "1: file: expects nothing, so it would always hold; write what should be true", id="empty"
        ),
        pytest.param(
            "reach: []\nwithin: 3\n",
            "1: file: expects nothing, so it would always hold; write what should be true",
            id="nothing expected",
        ),
        pytest.param("- a\n", "1: file: must be a mapping of fields", id="a list"),
        pytest.param("leaks: [", "not YAML", id="no YAML"),
        pytest.param(
            "leak: none\n", '1: leak: is no field here (did you mean "leaks"?); remove it', id="field"
        ),
        pytest.param(
            "leaks: none\nwithin: soon\n",
            "2: within: input should be a valid number, unable to parse string as a number",
            id="within",
        ),
        pytest.param(
            "endpoints:\n  web:\n    node: node9\nleaks: none\n",
            '3: endpoints.web.node: the topology has no node "node9" (did you mean "node2"?)',
            id="endpoint of an unknown node",
        ),
        pytest.param(
            "endpoints: {web: {node: node1, netns: /run/netns/web}}\n",
            '1: endpoints.web.netns: "/run/netns/web": name it as `ip netns` does',
            id="namespace by its path",
        ),
        pytest.param(
            "endpoints: {web: {node: node1, family: 5}}\n",
            '1: endpoints.web.family: "5": 4 or 6',
            id="family",
        ),
        pytest.param(
            "endpoints: {web: {node: node1, address: 10.0.0.256}}\n",
            "1: endpoints.web.address: '10.0.0.256' does not appear to be an IPv4 or IPv6 address",
            id="address",
        ),
        pytest.param(
            "sessions:\n- {node: outside, peers: [10.0.0.1]}\n",
            "2: sessions.0.node: outside is alpine, whose BGP cannot be asked",
            id="sessions of a node without BGP",
        ),
        pytest.param(
            "sessions:\n- {node: tor, peers: []}\n",
            "2: sessions.0.peers: names nothing",
            id="no peers",
        ),
        pytest.param(
            "routes:\n- {node: outside, table: bgp, present: ['::/0']}\n",
            "2: routes.0.node: outside is alpine, whose BGP cannot be asked",
            id="BGP table of a node without BGP",
        ),
        pytest.param(
            "routes:\n- {node: tor, present: [10.77.9.9/26]}\n",
            "2: routes.0.present.0: 10.77.9.9/26 has host bits set",
            id="prefix with host bits",
        ),
        pytest.param(
            "routes:\n- {node: tor, table: main, present: ['::/0']}\n",
            "2: routes.0.table: input should be 'bgp' or 'kernel'",
            id="table",
        ),
        pytest.param(
            "routes:\n- {node: tor}\n",
            "2: routes.0: names no prefix: give it `present`, `absent` or `next-hops`",
            id="route without a prefix",
        ),
        pytest.param(
            "routes:\n- {node: tor, next-hops: {10.0.0.0/24: 0}}\n",
            "2: routes.0.next-hops.10.0.0.0/24: input should be greater than or equal to 1",
            id="no next hop is absent",
        ),
        pytest.param(
            ENDPOINTS + "reach:\n- {from: webb, to: db}\n",
            '5: reach.0.from: there is no endpoint "webb", and no such node (did you mean "web"?)',
            id="unknown endpoint",
        ),
        pytest.param(
            ENDPOINTS + "reach:\n- {from: web, to: web}\n",
            "5: reach.0: is from an endpoint to itself",
            id="itself",
        ),
        pytest.param(
            ENDPOINTS + "reach:\n- {from: web, to: db, tcp: 80, udp: 53}\n",
            "5: reach.0: tcp and udp are two expectations: write two",
            id="two protocols",
        ),
        pytest.param(
            ENDPOINTS + "reach:\n- {from: web, to: db, tcp: 70000}\n",
            "5: reach.0.tcp: input should be less than or equal to 65535",
            id="port",
        ),
        pytest.param(
            ENDPOINTS + "untranslated:\n- {from: web, to: db, expect: refused}\n",
            "5: untranslated.0.expect: is no field here",
            id="a refusal is not seen",
        ),
        pytest.param(
            ENDPOINTS + "mtu:\n- {from: web, to: db}\n", "5: mtu.0.bytes: is required", id="no size"
        ),
        pytest.param(
            ENDPOINTS + "encapsulated:\n- {from: web, to: db, as: gre, on: 'tor:eth1'}\n",
            "5: encapsulated.0.as: input should be 'ipip', 'vxlan' or 'native'",
            id="encapsulation",
        ),
        pytest.param(
            ENDPOINTS + "encapsulated:\n- {from: web, to: db, as: ipip, on: tor}\n",
            '5: encapsulated.0.on: "tor": name an end of a link, as NODE:INTERFACE',
            id="a link by its node",
        ),
        pytest.param(
            ENDPOINTS + "encapsulated:\n- {from: web, to: db, as: ipip, on: 'tor:eth2'}\n",
            '5: encapsulated.0.on: no link of the topology ends at tor:eth2 (did you mean "tor:eth1"?)',
            id="a link that is not there",
        ),
        pytest.param(
            ENDPOINTS + "translated:\n- {from: web, to: outside, as: 10.10.1.2}\n",
            "5: translated.0: who answers a ping cannot be asked whom it saw: give it tcp or udp",
            id="a translated ping",
        ),
        pytest.param(
            ENDPOINTS + "published:\n- {from: db, to: 10.10.1.2, at: web, port: 80}\n",
            "5: published.0: give it tcp or udp, the port that is published",
            id="published without a port",
        ),
        pytest.param(
            ENDPOINTS + "published:\n- {from: db, to: 10.10.1.2, tcp: 80, at: webb, port: 80}\n",
            '5: published.0.at: there is no endpoint "webb", and no such node (did you mean "web"?)',
            id="published for nobody",
        ),
        pytest.param("leaks: some\n", "1: leaks: input should be 'none'", id="leaks"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, want: str) -> None:
    with pytest.raises(ConfigError) as refused:
        expectations(text)
    said = str(refused.value)
    assert want in said
    assert said.startswith(f"{FILE}:")
    assert said.endswith("nothing was asked")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        expectations("sessions: [{node: x, peers: [a]}]\nroutes: [{node: y}]\nreach: [{from: p, to: q}]\n")
    assert [line.split(":")[1] for line in str(refused.value).splitlines()[:-1]] == ["1", "2", "2", "3", "3"]


def test_no_expectations_are_a_mistake_that_names_where_they_would_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "rack.clab.yml", RACK)
    assert str(refused.value).startswith(f"{tmp_path}/rack.verify.yml: there is no such file")


@pytest.mark.parametrize("name", ["rack.clab.yml", "rack.clab.yaml", "rack.yml", "rack"])
def test_expectations_are_beside_the_topology(name: str) -> None:
    assert beside(Path("labs") / name) == Path("labs/rack.verify.yml")
