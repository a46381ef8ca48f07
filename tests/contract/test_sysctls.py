"""Sysctls of a namespace of its own; then what the monitor and the host facts say in one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from fabric.errors import DataplaneError
from fabric.kernel.facts import HostAddress, Listener, addresses, clock, listeners
from fabric.kernel.monitor import Monitor
from fabric.kernel.sysctls import before, restore, set_recorded
from tests.contract.netns import Namespace

FORWARD = "net.ipv4.ip_forward"
FORWARD6 = "net.ipv6.conf.all.forwarding"


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as space:
        yield space


def value(host: Namespace, name: str) -> str:
    path = Path("/proc/sys", *name.split("."))
    return host.call(path.read_text).strip()


def write(host: Namespace, name: str, text: str) -> None:
    path = Path("/proc/sys", *name.split("."))
    host.call(partial(path.write_text, text))


def test_what_was_set_goes_back(host: Namespace, tmp_path: Path) -> None:
    record = tmp_path / "sysctls.json"
    host.run(set_recorded({FORWARD: "1", FORWARD6: "1"}, record))
    assert (value(host, FORWARD), value(host, FORWARD6)) == ("1", "1")
    assert host.run(restore(record)) == [FORWARD, FORWARD6]
    assert (value(host, FORWARD), value(host, FORWARD6)) == ("0", "0")
    assert not record.exists()


def test_what_had_the_value_already_is_not_ours_to_restore(host: Namespace, tmp_path: Path) -> None:
    record = tmp_path / "sysctls.json"
    write(host, FORWARD, "1")
    host.run(set_recorded({FORWARD: "1"}, record))
    assert host.run(restore(record)) == []
    assert value(host, FORWARD) == "1"


def test_the_first_value_found_is_the_one_kept(host: Namespace, tmp_path: Path) -> None:
    record = tmp_path / "sysctls.json"
    host.run(set_recorded({FORWARD: "1"}, record))
    write(host, FORWARD, "0")
    host.run(set_recorded({FORWARD: "1"}, record))
    assert json.loads(record.read_text()) == {FORWARD: {"before": "0", "set": "1"}}


def test_what_was_before_is_what_is_recorded_or_else_what_is(host: Namespace, tmp_path: Path) -> None:
    record, names = tmp_path / "sysctls.json", (FORWARD, FORWARD6, "net.ipv4.no_such")
    write(host, FORWARD6, "1")
    assert host.run(before(names, record)) == {FORWARD: "0", FORWARD6: "1", "net.ipv4.no_such": ""}
    host.run(set_recorded({FORWARD: "1", FORWARD6: "1"}, record))
    assert host.run(before(names, record)) == {FORWARD: "0", FORWARD6: "1", "net.ipv4.no_such": ""}


def test_a_crash_between_record_and_change_is_harmless(host: Namespace, tmp_path: Path) -> None:
    record = tmp_path / "sysctls.json"
    record.write_text(json.dumps({FORWARD: {"before": "0", "set": "1"}}))
    assert host.run(restore(record)) == []
    assert value(host, FORWARD) == "0"


def test_what_somebody_changed_since_is_left_alone(host: Namespace, tmp_path: Path) -> None:
    record = tmp_path / "sysctls.json"
    host.run(set_recorded({"net.ipv4.conf.all.rp_filter": "1"}, record))
    write(host, "net.ipv4.conf.all.rp_filter", "2")
    assert host.run(restore(record)) == []
    assert value(host, "net.ipv4.conf.all.rp_filter") == "2"


def test_a_record_that_is_not_ours_is_named_and_nothing_is_set(host: Namespace, tmp_path: Path) -> None:
    (tmp_path / "record").write_text('{"net.ipv4')
    was = value(host, FORWARD)
    with pytest.raises(DataplaneError, match=r"record.*no sysctl was changed.*remove it"):
        host.run(set_recorded({FORWARD: "1"}, tmp_path / "record"))
    assert value(host, FORWARD) == was


def test_an_unknown_sysctl_is_named(host: Namespace, tmp_path: Path) -> None:
    with pytest.raises(DataplaneError, match=r"net\.ipv4\.no_such"):
        host.run(set_recorded({"net.ipv4.no_such": "1"}, tmp_path / "sysctls.json"))


async def _hears(monitor: Monitor) -> bool:
    """Whether anything is heard; what `ip` has done by the time it ends is waiting already."""
    try:
        async with asyncio.timeout(0.2):
            await anext(aiter(monitor.changes()))
    except TimeoutError:
        return False
    return True


EVENTS = {
    "link": ("link", "add", "veth8", "type", "veth", "peer", "name", "veth9"),
    "address": ("address", "add", "192.0.2.9/32", "dev", "lo"),
    "route": ("route", "add", "blackhole", "198.51.100.0/24"),
    "neighbour": ("neighbour", "add", "192.0.2.5", "lladdr", "02:00:00:00:00:01", "dev", "veth0"),
}


@pytest.mark.parametrize("words", EVENTS.values(), ids=EVENTS)
def test_the_monitor_hears_of_every_kind_of_change_once(host: Namespace, words: tuple[str, ...]) -> None:
    host.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    host.ip("link", "set", "veth0", "up")
    with host.call(Monitor) as monitor:
        host.ip(*words)
        assert host.run(_hears(monitor))
        assert not host.run(_hears(monitor))


def test_our_own_routes_make_no_echo_but_their_loss_is_heard(host: Namespace) -> None:
    with host.call(Monitor) as monitor:
        host.ip("route", "add", "blackhole", "198.51.100.0/24", "proto", "143")
        assert not host.run(_hears(monitor))
        host.ip("route", "del", "blackhole", "198.51.100.0/24", "proto", "143")
        assert host.run(_hears(monitor))


def test_lost_events_are_heard_as_a_change_and_the_monitor_goes_on(host: Namespace) -> None:
    with host.call(Monitor) as monitor:
        # The default receive buffer (208 KiB) holds some 270 events; none of these alone would be heard.
        words = "for i in $(seq 250); do echo route add blackhole 198.$net.$i.0/24 proto 143; done"
        host.command("sh", "-c", f"for net in 18 19 20; do {words}; done | ip -batch -")
        assert host.run(_hears(monitor))
        assert not host.run(_hears(monitor))
        host.ip("link", "add", "veth8", "type", "veth", "peer", "name", "veth9")
        assert host.run(_hears(monitor))


def test_addresses_say_link_state_and_kind(host: Namespace) -> None:
    host.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    host.ip("address", "add", "192.0.2.1/24", "dev", "veth0")
    found = host.run(addresses())
    assert HostAddress("lo", ip_interface("127.0.0.1/8"), True, "", 65536) in found
    assert HostAddress("veth0", ip_interface("192.0.2.1/24"), False, "veth", 1500, carrier=False) in found


def test_a_link_that_is_up_has_a_carrier_while_its_other_end_is_up(host: Namespace) -> None:
    host.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    host.ip("address", "add", "192.0.2.1/24", "dev", "veth0")
    host.ip("link", "set", "veth0", "up")
    for state, carrier in ("up", True), ("down", False):
        host.ip("link", "set", "veth1", state)
        address = HostAddress("veth0", ip_interface("192.0.2.1/24"), True, "veth", 1500, carrier)
        assert address in host.run(addresses())


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_holder_of_a_port_is_named(host: Namespace, family: socket.AddressFamily, address: str) -> None:
    assert host.run(listeners(179)) == []
    with host.call(partial(socket.create_server, (address, 179), family=family)):
        name = Path("/proc/self/comm").read_text().strip()
        assert host.run(listeners(179)) == [Listener(os.getpid(), name)]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("held", "asked", "takes"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("0.0.0.0", "127.0.0.2", True),
        ("0.0.0.0", "::1", False),
        ("::1", "::1", True),
        ("::1", "127.0.0.1", False),
        ("::", "::1", True),
        ("::", "127.0.0.1", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
    ],
)
def test_who_holds_a_port_is_asked_of_one_address(
    host: Namespace, held: str, asked: str, takes: bool, protocol: str
) -> None:
    family = socket.AF_INET6 if ":" in held else socket.AF_INET

    def taken() -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        made.bind((held, 179))
        if protocol == "tcp":
            made.listen()
        return made

    with host.call(taken):
        assert bool(host.run(listeners(179, protocol, ip_address(asked)))) is takes
        assert host.run(listeners(179, protocol))
        assert not host.run(listeners(179, "udp" if protocol == "tcp" else "tcp"))


async def test_the_clock_can_be_asked_without_changing_it() -> None:
    assert (await clock()).error >= 0
