"""What every `Conntrack` promises, run on the fake and on the kernel; then what only a kernel can show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

import pytest

from fabric.kernel.conntrack import NetlinkConntrack
from policy.flows import Conntrack, Ends, Flow
from policy.form import ICMP, ICMPV6, SCTP, TCP, UDP, Address, Icmp
from tests.contract.netns import Namespace
from tests.fakes.conntrack import FakeConntrack

BIT: Final = 0x80000000
GRE: Final = 47


class Bench:
    def __init__(self, conntrack: Conntrack, host: Namespace) -> None:
        self.conntrack, self.host = conntrack, host

    def insert(self, *flows: Flow) -> None:
        for flow in flows:
            if isinstance(self.conntrack, FakeConntrack):
                self.conntrack.insert(flow)
            else:
                self.host.command("conntrack", "-I", *_words(flow))

    def flows(self, *addresses: str, bits: int = 0) -> set[Flow]:
        wanted: frozenset[Address] = frozenset(map(ip_address, addresses))
        found = self.host.run(_flows(self.conntrack, wanted, bits))
        assert all(flow.handle for flow in found)
        assert len({flow.handle for flow in found}) == len(found)
        return {replace(flow, handle=b"") for flow in found}

    def set_mark(self, *addresses: str, value: int, mask: int) -> None:
        wanted: frozenset[Address] = frozenset(map(ip_address, addresses))
        flows = self.host.run(_flows(self.conntrack, wanted, 0))
        self.host.run(self.conntrack.set_mark(flows, value, mask))


async def _flows(conntrack: Conntrack, addresses: frozenset[Address], bits: int) -> list[Flow]:
    return list(await conntrack.flows(addresses, bits))


def _words(flow: Flow) -> list[str]:
    """How conntrack(8) is told to make the entry."""
    first, answer = flow.original, flow.reply
    words: list[object] = [
        "-s",
        first.source,
        "-d",
        first.destination,
        "-r",
        answer.source,
        "-q",
        answer.destination,
    ]
    words += ["-p", first.protocol, "-t", 600, "-m", flow.mark]
    if first.protocol == TCP:
        words += ["--state", "ESTABLISHED"]
    if first.protocol == SCTP:
        words += ["--state", "ESTABLISHED", "--orig-vtag", 1, "--reply-vtag", 2]
    if first.icmp:
        words += ["--icmp-type" if first.protocol == ICMP else "--icmpv6-type", first.icmp.type]
        words += ["--icmp-code" if first.protocol == ICMP else "--icmpv6-code", first.icmp.code]
        words += ["--icmp-id" if first.protocol == ICMP else "--icmpv6-id", 7]
    elif first.source_port:
        words += ["--sport", first.source_port, "--dport", first.destination_port]
        words += ["--reply-port-src", answer.source_port, "--reply-port-dst", answer.destination_port]
    return list(map(str, words))


def flow(
    source: str, destination: str, protocol: int = TCP, ports: tuple[int, int] = (0, 0), mark: int = 0
) -> Flow:
    first = Ends(ip_address(source), ip_address(destination), protocol, ports[0], ports[1])
    return Flow(first, Ends(first.destination, first.source, protocol, ports[1], ports[0]), mark)


def echo(source: str, destination: str) -> Flow:
    protocol, asks, answers = (ICMP, 8, 0) if "." in source else (ICMPV6, 128, 129)
    base = flow(source, destination, protocol)
    return replace(
        base,
        original=base.original._replace(icmp=Icmp(asks, 0)),
        reply=base.reply._replace(icmp=Icmp(answers, 0)),
    )


def nat(base: Flow, to: str, port: int, source: str = "", source_port: int = 0) -> Flow:
    """DNAT `base` to another destination, and SNAT it too where a source is given."""
    reply = base.reply._replace(source=ip_address(to), source_port=port)
    if source:
        reply = reply._replace(destination=ip_address(source), destination_port=source_port)
    return replace(base, reply=reply)


FLOWS = (
    flow("10.0.0.1", "10.0.0.2", TCP, (40000, 80)),
    flow("10.0.0.1", "10.0.0.3", UDP, (40000, 53), mark=0x5),
    flow("10.0.0.4", "10.0.0.2", SCTP, (40000, 80)),
    echo("10.0.0.1", "10.0.0.2"),
    nat(flow("10.0.0.5", "192.0.2.1", TCP, (40001, 8080)), "10.0.0.2", 80),
    nat(flow("10.0.0.5", "192.0.2.1", TCP, (40002, 8080)), "10.0.0.3", 80, "192.0.2.9", 61000),
    flow("fd00::1", "fd00::2", TCP, (40000, 80)),
    flow("fd00::1", "fd00::3", UDP, (40000, 53), mark=BIT | 0x7),
    echo("fd00::4", "fd00::2"),
    nat(flow("fd00::5", "2001:db8::1", TCP, (40001, 8080)), "fd00::2", 80),
)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as space:
        yield space


@pytest.fixture(params=["fake", "kernel"])
def bench(request: pytest.FixtureRequest, host: Namespace) -> Iterator[Bench]:
    if request.param == "fake":
        yield Bench(FakeConntrack(), host)
    else:
        with host.call(NetlinkConntrack) as conntrack:
            yield Bench(conntrack, host)


@pytest.fixture
def real(host: Namespace) -> Iterator[Bench]:
    with host.call(NetlinkConntrack) as conntrack:
        yield Bench(conntrack, host)


def test_entries_are_found_by_who_sends_who_is_addressed_and_who_is_reached(bench: Bench) -> None:
    assert bench.flows("10.0.0.1", bits=BIT) == set()
    bench.insert(*FLOWS)
    assert bench.flows() == set()
    assert bench.flows("10.0.0.9") == set()
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1", "fd00::1", "fd00::2", "2001:db8::1"):
        ends = ip_address(address)
        touching = {
            one for one in FLOWS if ends in {one.original.source, one.original.destination, one.reply.source}
        }
        assert bench.flows(address) == touching
    everyone = {str(one.original.source) for one in FLOWS}
    assert bench.flows(*everyone) == set(FLOWS)


def test_entries_are_found_by_their_mark(bench: Bench) -> None:
    bench.insert(*FLOWS)
    marked = flow("fd00::1", "fd00::3", UDP, (40000, 53), mark=BIT | 0x7)
    assert bench.flows(bits=BIT) == {marked}
    assert bench.flows("fd00::3", bits=BIT) == {marked}
    assert bench.flows("10.0.0.4", bits=BIT) == {marked, FLOWS[2]}


def test_only_the_bits_of_the_mask_are_set_and_cleared(bench: Bench) -> None:
    bench.insert(*FLOWS)
    bench.set_mark("10.0.0.1", "fd00::1", value=BIT, mask=BIT)
    touched = {one for one in FLOWS if ip_address("10.0.0.1") == one.original.source} | set(FLOWS[6:8])
    assert bench.flows(bits=BIT) == {replace(one, mark=one.mark | BIT) for one in touched}
    bench.set_mark("10.0.0.1", "fd00::1", value=0, mask=BIT)
    everyone = {str(one.original.source) for one in FLOWS}
    assert bench.flows(*everyone) == {replace(one, mark=one.mark & ~BIT) for one in FLOWS}


def test_an_entry_that_is_gone_is_no_error(bench: Bench) -> None:
    bench.insert(*FLOWS)
    old = bench.host.run(_flows(bench.conntrack, frozenset({ip_address("10.0.0.1")}), 0))
    if isinstance(bench.conntrack, FakeConntrack):
        del bench.conntrack.entries[FLOWS[0].original]
    else:
        bench.host.command("conntrack", "-D", "-p", "tcp", "-s", "10.0.0.1")
    bench.host.run(bench.conntrack.set_mark(old, BIT, BIT))
    assert {one.original for one in bench.flows(bits=BIT)} == {
        one.original for one in (*FLOWS[1:2], FLOWS[3], FLOWS[7])
    }


def test_entries_are_deleted_and_no_others(bench: Bench) -> None:
    bench.insert(*FLOWS)
    old = bench.host.run(
        _flows(bench.conntrack, frozenset({ip_address("10.0.0.3"), ip_address("fd00::5")}), 0)
    )
    assert len(old) == 3
    bench.host.run(bench.conntrack.forget(old))
    assert bench.flows("10.0.0.3", "fd00::5") == set()
    everyone = {str(one.original.source) for one in FLOWS}
    assert len(bench.flows(*everyone)) == len(FLOWS) - 3
    bench.host.run(bench.conntrack.forget(old))  # which are gone


# From here on the kernel only.


def test_protocols_without_ports_are_read_too(real: Bench) -> None:
    for words in (
        ("-s", "10.0.0.1", "-d", "10.0.0.2", "-p", "4", "-t", "60"),
        ("-s", "fd00::1", "-d", "fd00::2", "-p", "50", "-t", "60"),
    ):
        real.host.command("conntrack", "-I", *words)
    assert real.flows("10.0.0.1", "fd00::1") == {
        flow("10.0.0.1", "10.0.0.2", 4),
        flow("fd00::1", "fd00::2", 50),
    }


def test_zones_are_told_apart_and_entries_with_one_for_a_direction_passed_over(real: Bench) -> None:
    words = ("-s", "10.0.0.1", "-d", "10.0.0.2", "-p", "udp", "--dport", "2", "-t", "60", "--sport")
    for more in (("1",), ("1", "--zone", "5"), ("3", "--orig-zone", "7")):
        real.host.command("conntrack", "-I", *words, *more)
    flows = real.host.run(_flows(real.conntrack, frozenset({ip_address("10.0.0.1")}), 0))
    assert len(flows) == 2
    (zoned,) = (flow for flow in flows if len(flow.handle) != min(len(one.handle) for one in flows))
    real.host.run(real.conntrack.set_mark([zoned], 0x11, 0xFF))
    marked = real.host.command("conntrack", "-L", "--mark", "0x11").splitlines()
    assert [("zone=5" in line, "mark=17" in line) for line in marked] == [(True, True)]
