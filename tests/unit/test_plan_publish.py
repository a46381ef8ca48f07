"""Published ports: what is written, who has them, and the rules, as tables."""

from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from fabric.errors import ConfigError
from fabric.model.workloadendpoint import EndpointPort, WorkloadEndpoint
from fabric.plan import publish
from fabric.plan.publish import Published, localnet, parse, published, words
from fabric.plan.tables import Place
from tests.unit.policing import workload


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", "8080->80/tcp"),
        ("8080:80/udp", "8080->80/udp"),
        ("8080:80/sctp", "8080->80/sctp"),
        ("10.10.1.2:8080:80", "10.10.1.2:8080->80/tcp"),
        ("0.0.0.0:8080:80", "0.0.0.0:8080->80/tcp"),
        ("127.0.0.1:8080:80", "127.0.0.1:8080->80/tcp"),
        ("[2001:DB8::1]:53:5353/udp", "[2001:db8::1]:53->5353/udp"),
        ("[::]:53:5353/udp", "[::]:53->5353/udp"),
    ],
)
def test_what_is_written_is_read(text: str, expected: str) -> None:
    assert words(parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must be"),
        ("80", "must be"),
        ("8080:", "must be"),
        ("8080:80/", "must be"),
        ("2001:db8::1:8080:80", "must be"),
        ("eth0:8080:80", "must be"),
        ("8080:80/icmp", "must be"),
        ("0:80", "HOSTPORT must be 1 to 65535"),
        ("8080:0", '": PORT must be 1 to 65535'),
        ("8080:65536", '": PORT must be 1 to 65535'),
        ("700000:80", "HOSTPORT must be 1 to 65535"),
        ("10.0.0.256:8080:80", "10.0.0.256 is not an address"),
        ("[::1]:8080:80", "::1 cannot be published: .* publish at 127.0.0.1"),
        ("[fe80::1]:8080:80", "fe80::1 cannot be published: .* publish at another IPv6 address"),
    ],
)
def test_what_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        parse(text)
    assert str(refused.value).startswith(f'publish "{text}": ')
    assert str(refused.value).endswith("nothing was attached")


def port(at: int, to: int = 80, host: str = "", protocol: object = "TCP") -> dict[str, object]:
    return {"protocol": protocol, "port": to, "hostPort": at, "hostIP": host}


def endpoint(
    name: str, number: int, *ports: dict[str, object], six: bool = False, second: int = 0
) -> WorkloadEndpoint:
    addresses = (f"10.65.0.{number}", *([f"fd00:65::{number}"] if six else []))
    made = workload(name, *addresses)
    spec = made.spec.model_copy(update={"ports": tuple(map(EndpointPort.model_validate, ports))})
    born = made.metadata.model_copy(
        update={"creation_timestamp": datetime(2026, 11, 29, second=second, tzinfo=UTC)}
    )
    return made.model_copy(update={"spec": spec, "metadata": born})


def test_a_port_is_of_each_family_that_the_workload_has_and_the_host_address_is_of() -> None:
    ports = (
        port(1),
        port(2, host="10.10.1.2"),
        port(3, host="2001:db8::1"),
        port(4, host="0.0.0.0"),
        port(5, host="::"),
    )
    found, problems = published([endpoint("web", 1, *ports, six=True)])
    assert not problems
    assert [(one.host_port, str(one.address), str(one.host or "")) for one in found] == [
        (1, "10.65.0.1", ""),
        (1, "fd00:65::1", ""),
        (2, "10.65.0.1", "10.10.1.2"),
        (3, "fd00:65::1", "2001:db8::1"),
        (4, "10.65.0.1", ""),
        (5, "fd00:65::1", ""),
    ]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (port(1, host="2001:db8::1"), "has no address of that family"),
        (port(1, host="::1"), "cannot be published"),
        (port(1, host="node1"), 'hostIP "node1" is not an address'),
    ],
)
def test_what_is_stored_and_cannot_be_is_a_problem_and_spares_the_rest(
    asked: dict[str, object], why: str
) -> None:
    found, problems = published([endpoint("web", 1, asked, port(2))])
    assert [one.host_port for one in found] == [2]
    assert why in problems["WorkloadEndpoint default/n1-fabricctl-web-eth0"]


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (port(1), port(1), True),
        (port(1), port(1, 81), True),
        (port(1), port(2), False),
        (port(1), port(1, protocol="UDP"), False),
        (port(1, protocol="UDP"), port(1, protocol=17), True),
        (port(1), port(1, host="10.10.1.2"), True),
        (port(1, host="0.0.0.0"), port(1, host="10.10.1.2"), True),
        (port(1, host="10.10.1.2"), port(1, host="10.10.1.3"), False),
        (port(1, host="10.10.1.2"), port(1, host="2001:db8::1"), False),
        (port(1, host="0.0.0.0"), port(1, host="::"), False),
    ],
)
def test_of_two_that_want_the_same_the_older_has_it(
    one: dict[str, object], other: dict[str, object], meet: bool
) -> None:
    first, second = endpoint("b", 1, one, six=True, second=1), endpoint("a", 2, other, six=True, second=2)
    for order in ((first, second), (second, first)):
        found, problems = published(order)
        assert bool(problems) is meet
        if meet:
            assert {item.holder for item in found} == {"default/b"}
            assert (
                "is published by workload default/b"
                in problems["WorkloadEndpoint default/n1-fabricctl-a-eth0"]
            )


def test_one_endpoint_that_asks_for_a_port_twice_has_it_once_and_is_told_so() -> None:
    found, problems = published([endpoint("web", 1, port(1), port(1, 81))])
    assert [one.port for one in found] == [80]
    assert problems == {
        "WorkloadEndpoint default/n1-fabricctl-web-eth0": (
            "port 1/tcp of every IPv4 address of the node is asked for twice"
        )
    }


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("", ""),
        ("0.0.0.0", ""),
        ("127.0.0.2", ""),
        ("192.0.2.1", ""),
        ("1.2.3.4", "1.2.3.4 is no address of node n1, which has 192.0.2.1"),
        ("2001:db8::1", "2001:db8::1 is no address of node n1, which has none of that family"),
    ],
)
def test_a_host_address_is_one_that_the_node_has_and_those_that_could_be_published_are_named(
    host: str, why: str
) -> None:
    local = [*map(ip_address, ("127.0.0.1", "192.0.2.1", "::1", "fe80::1"))]
    assert publish.strange(EndpointPort.model_validate(port(1, host=host)), "n1", local) == why


def test_a_port_that_is_not_there_in_a_family_of_the_node_is_told() -> None:
    web = endpoint("web", 1, port(1), port(2, host="10.10.1.2"))
    assert publish.alone(web, (4, 6)) == (
        "1->80/tcp: not at the node's IPv6 addresses, since the workload has no IPv6 address"
    )
    assert publish.alone(web, (4,)) == publish.alone(endpoint("web", 1, port(1), six=True), (4, 6)) == ""
    assert publish.alone(endpoint("web", 1), (4, 6)) == ""


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ((), False),
        ((port(1),), True),
        ((port(1, host="127.0.0.1"),), True),
        ((port(1, host="0.0.0.0"),), True),
        ((port(1, host="10.10.1.2"),), False),
        ((port(1, host="::"),), False),
    ],
)
def test_a_link_carries_127_only_where_a_port_is_published_there(
    ports: tuple[dict[str, object], ...], expected: bool
) -> None:
    assert localnet(endpoint("web", 1, *ports, six=True)) is expected


def made(
    *ports: Published, version: int = 4, own: str = "192.0.2.1", guarded: bool = False
) -> dict[Place, tuple[str, ...]]:
    address = ip_address(own) if own else None
    produced = publish.produce(version, ports, address, guarded=guarded)  # type: ignore[arg-type]
    assert not produced.sets
    return {**produced.chains, **produced.first}


WEB = ip_address("10.65.0.1")
WEB6 = ip_address("fd00:65::1")


def test_rules() -> None:
    found = made(
        Published("udp", ip_address("10.10.1.2"), 53, WEB, 5353, "default/web"),
        Published("tcp", None, 8080, WEB, 80, "default/web"),
        Published("tcp", None, 8080, WEB6, 80, "default/web"),
    )
    assert found == {
        Place("raw", "PREROUTING"): ("! -i lo -j fab-loopback",),
        Place("raw", "fab-loopback"): ("-s 127.0.0.0/8 -j DROP", "-d 127.0.0.0/8 -j DROP"),
        Place("nat", "PREROUTING"): ("-m addrtype --dst-type LOCAL -j fab-published",),
        Place("nat", "OUTPUT"): ("-m addrtype --dst-type LOCAL -j fab-published",),
        Place("nat", "fab-published"): (
            "-p tcp -m multiport --dports 8080 -j DNAT --to-destination 10.65.0.1:80",
            "-p udp -d 10.10.1.2 -m multiport --dports 53 -j DNAT --to-destination 10.65.0.1:5353",
        ),
        Place("nat", "POSTROUTING"): ("-o fab+ -m conntrack --ctstate DNAT -j fab-published-source",),
        Place("nat", "fab-published-source"): (
            "-s 127.0.0.0/8 -j SNAT --to-source 192.0.2.1",
            "-s 10.65.0.1 -d 10.65.0.1 -j SNAT --to-source 192.0.2.1",
        ),
    }


def test_rules_of_ipv6() -> None:
    found = made(Published("tcp", None, 8080, WEB6, 80, "default/web"), version=6, own="")
    local = "-m addrtype --dst-type LOCAL ! -d ::1 -j fab-published"
    assert found == {
        Place("nat", "PREROUTING"): (local,),
        Place("nat", "OUTPUT"): (local,),
        Place("nat", "fab-published"): (
            "-d fe80::/10 -j RETURN",
            "-p tcp -m multiport --dports 8080 -j DNAT --to-destination [fd00:65::1]:80",
        ),
        Place("nat", "POSTROUTING"): ("-o fab+ -m conntrack --ctstate DNAT -j fab-published-source",),
        Place("nat", "fab-published-source"): ("-s fd00:65::1 -d fd00:65::1 -j MASQUERADE",),
    }


def test_without_ports_there_is_no_rule_but_a_guard_that_lingers() -> None:
    assert made() == {}
    assert made(guarded=True).keys() == {Place("raw", "PREROUTING"), Place("raw", "fab-loopback")}
    assert made(version=6, guarded=True) == {}
