"""Sysctls of a namespace of its own; then what the monitor and the host facts say in one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_interface
from pathlib import Path

import pytest

from fabric.errors import DataplaneError
from fabric.kernel.facts import HostAddress, Listener, addresses, clock, has_ipv6, has_module, listeners
from fabric.kernel.monitor import Change, Monitor
from fabric.kernel.sysctls import restore, set_recorded
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


def test_an_unknown_sysctl_is_named(host: Namespace, tmp_path: Path) -> None:
    with pytest.raises(DataplaneError, match=r"net\.ipv4\.no_such"):
        host.run(set_recorded({"net.ipv4.no_such": "1"}, tmp_path / "sysctls.json"))


async def _hear(monitor: Monitor, wanted: Change) -> set[Change]:
    """Return the kinds heard up to the first `wanted`."""
    heard: set[Change] = set()
    async with asyncio.timeout(10):
        async for change in monitor.changes():
            heard.add(change)
            if change is wanted:
                return heard
    raise AssertionError("the monitor ended")


EVENTS = {
    Change.LINK: ("link", "add", "veth8", "type", "veth", "peer", "name", "veth9"),
    Change.ADDRESS: ("address", "add", "192.0.2.9/32", "dev", "lo"),
    Change.ROUTE: ("route", "add", "blackhole", "198.51.100.0/24"),
    Change.NEIGHBOUR: ("neighbour", "add", "192.0.2.5", "lladdr", "02:00:00:00:00:01", "dev", "veth0"),
}


@pytest.mark.parametrize(("kind", "words"), EVENTS.items(), ids=[kind.value for kind in EVENTS])
def test_the_monitor_says_what_kind_changed(host: Namespace, kind: Change, words: tuple[str, ...]) -> None:
    host.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    host.ip("link", "set", "veth0", "up")
    with host.call(Monitor) as monitor:
        host.ip(*words)
        assert kind in host.run(_hear(monitor, kind))


def test_our_own_routes_make_no_echo_but_their_loss_is_heard(host: Namespace) -> None:
    with host.call(Monitor) as monitor:
        host.ip("route", "add", "blackhole", "198.51.100.0/24", "proto", "143")
        host.ip("link", "add", "veth8", "type", "veth", "peer", "name", "veth9")
        assert Change.ROUTE not in host.run(_hear(monitor, Change.LINK))
        host.ip("route", "del", "blackhole", "198.51.100.0/24", "proto", "143")
        assert Change.ROUTE in host.run(_hear(monitor, Change.ROUTE))


def test_lost_events_are_a_resync_and_the_monitor_goes_on(host: Namespace) -> None:
    with host.call(Monitor) as monitor:
        # The default receive buffer (208 KiB) holds some 270 events.
        words = "for i in $(seq 250); do echo route add blackhole 198.18.$i.0/24; done | ip -batch -"
        host.command("sh", "-c", f"for round in 1 2 3; do {words}; ip route flush type blackhole; done")
        assert Change.RESYNC in host.run(_hear(monitor, Change.RESYNC))
        host.ip("link", "add", "veth8", "type", "veth", "peer", "name", "veth9")
        assert Change.LINK in host.run(_hear(monitor, Change.LINK))


def test_addresses_say_link_state_and_kind(host: Namespace) -> None:
    host.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    host.ip("address", "add", "192.0.2.1/24", "dev", "veth0")
    found = host.run(addresses())
    assert HostAddress("lo", ip_interface("127.0.0.1/8"), True, "", 65536) in found
    assert HostAddress("veth0", ip_interface("192.0.2.1/24"), False, "veth", 1500) in found


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_holder_of_a_port_is_named(host: Namespace, family: socket.AddressFamily, address: str) -> None:
    assert host.run(listeners(179)) == []
    with host.call(partial(socket.create_server, (address, 179), family=family)):
        name = Path("/proc/self/comm").read_text().strip()
        assert host.run(listeners(179)) == [Listener(os.getpid(), name)]


async def test_clock_and_kernel_can_be_asked_without_changing_anything() -> None:
    assert (await clock()).error >= 0
    assert await has_ipv6() in (True, False)
    assert await has_module("no_such_module") is not True
