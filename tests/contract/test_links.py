"""What every `Links` promises, run on the fake and on the kernel; then what only a kernel can show."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

import pytest

from fabric.errors import DataplaneError
from fabric.kernel.links import NetlinkLinks
from fabric.plan.links import (
    HOST_MAC,
    Create,
    HostLink,
    Links,
    Op,
    Remove,
    Repair,
    Veth,
    apply,
    container_mac,
    host_name,
    plan,
)
from fabric.plan.mtu import Mtus
from tests.contract.netns import Namespace
from tests.fakes.links import FakeLinks

Desired: TypeAlias = dict[str, Veth]


class Bench:
    """A `Links` and the namespaces that it works between."""

    def __init__(self, links: Links, host: Namespace, container: Namespace) -> None:
        self.links, self.host, self.container = links, host, container

    def veth(self, workload: str = "web", interface: str = "eth0") -> Veth:
        name, mac = host_name("default", workload), container_mac("default", workload)
        addresses = (ip_address("10.244.1.2"), ip_address("fd00:244::2"))
        return Veth(name, self.container.path, interface, mac, addresses, Mtus(1480, 1430))

    def actual(self) -> dict[str, HostLink]:
        return {link.name: link for link in self.host.run(_owned(self.links))}

    def plan(self, *veths: Veth) -> list[Op]:
        return plan({veth.name: veth for veth in veths}, self.actual())

    def heal(self, *veths: Veth) -> dict[Op, DataplaneError]:
        return self.host.run(apply(self.plan(*veths), self.links))


async def _owned(links: Links) -> list[HostLink]:
    return list(await links.owned_links())


@pytest.fixture
def spaces() -> Iterator[tuple[Namespace, Namespace]]:
    with ExitStack() as stack:
        yield stack.enter_context(Namespace()), stack.enter_context(Namespace())


@pytest.fixture(params=[FakeLinks, NetlinkLinks], ids=["fake", "kernel"])
def bench(request: pytest.FixtureRequest, spaces: tuple[Namespace, Namespace]) -> Bench:
    return Bench(request.param(), *spaces)


@pytest.fixture
def real(spaces: tuple[Namespace, Namespace]) -> Bench:
    return Bench(NetlinkLinks(), *spaces)


def test_one_pass_makes_what_is_wanted_and_the_next_has_nothing_to_do(bench: Bench) -> None:
    veth = bench.veth()
    assert bench.heal(veth) == {}
    (link,) = bench.actual().values()
    assert (link.name, link.up, link.mac, link.sysctls) == (veth.name, True, HOST_MAC, True)
    assert link.neighbours == veth.neighbours
    assert bench.plan(veth) == []


def test_creating_again_changes_nothing(bench: Bench) -> None:
    veth = bench.veth()
    bench.heal(veth)
    before = bench.actual()
    bench.host.run(bench.links.create(veth))
    assert bench.actual() == before


def test_a_new_address_is_a_repair_of_the_same_link(bench: Bench) -> None:
    bench.heal(bench.veth())
    index = bench.actual()[bench.veth().name].index
    moved = replace(bench.veth(), addresses=(ip_address("10.244.1.9"),))
    assert bench.plan(moved) == [Repair(moved)]
    assert bench.heal(moved) == {}
    assert bench.plan(moved) == []
    assert bench.actual()[moved.name].index == index


def test_another_mtu_of_either_family_is_a_repair_of_the_same_link(bench: Bench) -> None:
    bench.heal(bench.veth())
    index = bench.actual()[bench.veth().name].index
    for mtus in (Mtus(1480, 1400), Mtus(1300, 1400), Mtus(9000, 8950)):
        other = replace(bench.veth(), mtus=mtus)
        assert bench.plan(other) == [Repair(other)]
        assert bench.heal(other) == {}
        assert bench.plan(other) == []
        (link,) = bench.actual().values()
        assert (link.index, link.mtu) == (index, max(mtus))


def test_localnet_comes_and_goes_with_the_link_standing(bench: Bench) -> None:
    published = replace(bench.veth(), localnet=True)
    assert bench.heal(published) == {}
    assert bench.plan(published) == []
    assert bench.plan(bench.veth()) == [Repair(bench.veth())]
    assert bench.heal(bench.veth()) == {}
    assert not bench.actual()[bench.veth().name].localnet


def test_an_unwanted_link_goes_and_may_go_twice(bench: Bench) -> None:
    bench.heal(bench.veth())
    assert bench.plan() == [Remove(bench.veth().name)]
    assert bench.heal() == {}
    assert bench.actual() == {}
    bench.host.run(bench.links.remove([bench.veth().name]))


def test_several_go_at_once_and_what_is_gone_already_does_not_matter(bench: Bench) -> None:
    one, two, kept = (replace(bench.veth(name), interface=name) for name in ("one", "two", "kept"))
    bench.heal(one, two, kept)
    bench.host.run(bench.links.remove([one.name, two.name, bench.veth("never").name]))
    assert set(bench.actual()) == {kept.name}


def test_a_successor_takes_over_the_interface_name_in_one_pass(bench: Bench) -> None:
    bench.heal(bench.veth("old"))
    assert bench.heal(bench.veth("new")) == {}
    assert set(bench.actual()) == {bench.veth("new").name}


def test_an_interface_of_that_name_is_refused(bench: Bench) -> None:
    bench.heal(bench.veth("first"))
    with pytest.raises(DataplaneError, match="interface eth0") as caught:
        bench.host.run(bench.links.create(bench.veth("second")))
    assert caught.value.code == errno.EEXIST
    assert set(bench.actual()) == {bench.veth("first").name}


# From here on the kernel only.


def test_a_container_reaches_the_host_without_any_default_route(real: Bench) -> None:
    for address in ("192.0.2.1/32", "2001:db8::1/128"):
        real.host.ip("address", "add", address, "dev", "lo")
    veth = real.veth()
    assert real.heal(veth) == {}
    real.host.ip("route", "add", "10.244.1.2/32", "dev", veth.name, "scope", "link")
    real.host.ip("route", "add", "fd00:244::2/128", "dev", veth.name)
    assert "default" not in real.host.ip("route") + real.host.ip("-6", "route")
    for address in ("192.0.2.1", "2001:db8::1"):
        real.container.command("ping", "-c1", "-W2", address)
    for address in ("10.244.1.2", "fd00:244::2"):
        real.host.command("ping", "-c1", "-W2", address)


DRIFT = {
    "neighbour": ("neighbour", "del", "10.244.1.2", "dev", "{name}"),
    "neighbour of IPv6": ("neighbour", "del", "fd00:244::2", "dev", "{name}"),
    "stranger's neighbour": ("neighbour", "add", "10.9.9.9", "lladdr", HOST_MAC, "dev", "{name}"),
    "down": ("link", "set", "{name}", "down"),
    "MTU": ("link", "set", "{name}", "mtu", "1400"),
    "alias": ("link", "set", "{name}", "alias", "mine"),
    "MAC": ("link", "set", "{name}", "address", "02:00:00:00:00:99"),
}


@pytest.mark.parametrize("change", DRIFT.values(), ids=DRIFT.keys())
def test_drift_of_one_link_is_found_and_healed_and_no_other_touched(
    real: Bench, change: tuple[str, ...]
) -> None:
    veth, other = real.veth(), replace(real.veth("other", "eth1"), addresses=(ip_address("10.244.1.3"),))
    assert real.heal(veth, other) == {}
    real.host.ip(*(word.format(name=veth.name) for word in change))
    assert real.plan(veth, other) == [Repair(veth)]
    assert real.heal(veth, other) == {}
    assert real.plan(veth, other) == []


def test_the_larger_family_has_the_device_and_the_smaller_a_route_mtu(real: Bench) -> None:
    assert real.heal(real.veth()) == {}
    assert " mtu 1480 " in real.container.ip("link", "show", "eth0")
    assert "mtu" not in real.container.ip("route", "show", "default")
    assert "mtu 1430 " in real.container.ip("-6", "route", "show", "default")
    assert real.heal(replace(real.veth(), mtus=Mtus(1350, 1400))) == {}
    assert " mtu 1400 " in real.container.ip("link", "show", "eth0")
    assert "mtu 1350" in real.container.ip("route", "show", "default")
    assert "mtu" not in real.container.ip("-6", "route", "show", "default")
    assert real.heal(replace(real.veth(), mtus=Mtus(1500, 1500))) == {}
    assert "mtu" not in real.container.ip("route", "show", "default") + real.container.ip(
        "-6", "route", "show", "default"
    )


def test_a_link_that_is_in_use_changes_its_mtu_without_losing_a_packet(real: Bench) -> None:
    for address in ("192.0.2.1/32", "2001:db8::1/128"):
        real.host.ip("address", "add", address, "dev", "lo")
    small, large = real.veth(), replace(real.veth(), mtus=Mtus(8000, 7000))
    assert real.heal(small) == {}
    real.host.ip("route", "add", "10.244.1.2/32", "dev", small.name, "scope", "link")
    real.host.ip("route", "add", "fd00:244::2/128", "dev", small.name)
    ends = [(real.container, "192.0.2.1"), (real.container, "2001:db8::1")]
    ends += [(real.host, "10.244.1.2"), (real.host, "fd00:244::2")]
    # What fits before and after; what is larger, and on its way just then, no order can save.
    pings = [
        space.call(partial(start, "ping", "-i", "0.001", "-c", "1000", "-s", "1380", "-q", address))
        for space, address in ends
    ]
    while any(ping.poll() is None for ping in pings):
        for veth in (large, small):
            assert real.heal(veth) == {}
    for said in (ping.communicate()[0] for ping in pings):
        assert "1000 packets transmitted, 1000 received" in said, said


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    "key", ["ipv4/conf/{}/proxy_arp", "ipv4/conf/{}/forwarding", "ipv6/conf/{}/proxy_ndp"]
)
def test_a_changed_sysctl_is_repaired(real: Bench, key: str) -> None:
    veth = real.veth()
    real.heal(veth)
    path = Path("/proc/sys/net", key.format(veth.name))
    real.host.call(lambda: path.write_text("0"))
    assert real.plan(veth) == [Repair(veth)]
    real.heal(veth)
    assert real.plan(veth) == []


def test_a_deleted_link_is_made_again(real: Bench) -> None:
    veth = real.veth()
    real.heal(veth)
    real.host.ip("link", "del", veth.name)
    assert real.plan(veth) == [Create(veth)]
    assert real.heal(veth) == {}
    assert real.plan(veth) == []


def test_a_link_left_half_made_is_completed(real: Bench) -> None:
    veth = real.veth()
    real.container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "late")
    real.container.ip("link", "set", "late", "netns", _named(real.host), "name", veth.name)
    assert real.plan(veth) == [Repair(veth)]
    assert real.heal(veth) == {}
    assert real.plan(veth) == []
    assert "10.244.1.2/32" in real.container.ip("address", "show", "eth0")
    assert "default via 169.254.1.1 dev eth0" in real.container.ip("route")


def _named(space: Namespace) -> str:
    return space.path.split("/")[-3]  # `ip link set netns` takes a thread's id


def test_only_the_new_address_is_left_in_the_container(real: Bench) -> None:
    real.heal(real.veth())
    real.heal(replace(real.veth(), addresses=(ip_address("10.244.1.9"),)))
    shown = real.container.ip("address", "show", "dev", "eth0")
    assert "10.244.1.9/32" in shown
    assert "10.244.1.2" not in shown
    assert "fd00:244::2" not in shown


def test_a_stale_link_of_the_name_in_a_dying_container_gives_way(real: Bench) -> None:
    veth = real.veth()
    with Namespace() as dying:
        assert real.heal(replace(veth, netns=dying.path)) == {}
        real.host.run(real.links.create(veth))
    assert "10.244.1.2/32" in real.container.ip("address", "show", "eth0")
    assert real.plan(veth) == []


def test_an_interface_that_is_not_ours_is_left_alone(real: Bench) -> None:
    real.container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    with pytest.raises(DataplaneError, match=r"eth0 .* has one of that name already") as caught:
        real.host.run(real.links.create(real.veth()))
    assert caught.value.code == errno.EEXIST
    assert real.actual() == {}
    assert "peer0" in real.container.ip("link")


def test_an_interface_of_ours_whose_other_end_was_renamed_is_told_as_that(real: Bench) -> None:
    veth = real.veth()
    assert real.heal(veth) == {}
    for command in (f"set {veth.name} down", f"set {veth.name} name mine0"):
        real.host.ip("link", *command.split())
    [why] = real.heal(veth).values()
    assert (
        "other end was renamed to mine0; `ip link set mine0 down`, then `ip link set mine0 name fab"
        in f"{why}"
    )
    real.host.ip("link", "set", "mine0", "name", veth.name)
    assert real.heal(veth) == {}
    assert real.plan(veth) == []
    with Namespace() as elsewhere:
        real.host.ip("link", "set", veth.name, "netns", _named(elsewhere))
        [why] = real.heal(veth).values()
        assert "its other end is not on this host any more" in str(why)
        real.container.ip("link", "delete", "eth0")
        assert real.heal(veth) == {}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/run/netns/never-was", errno.ENOENT),
        ("/etc/hostname", errno.EINVAL),
        ("/proc/self/ns/uts", errno.EINVAL),
    ],
)
def test_a_path_that_is_no_namespace_is_refused_by_name(real: Bench, path: str, code: int) -> None:
    with pytest.raises(DataplaneError, match=path) as caught:
        real.host.run(real.links.create(replace(real.veth(), netns=path)))
    assert caught.value.code == code
    assert real.actual() == {}


def test_what_a_recycled_descriptor_stands_for_is_not_opened(real: Bench, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    try:
        path = f"/proc/{os.getpid()}/fd/{writer}"
        with pytest.raises(DataplaneError, match="was not opened; nothing was changed") as caught:
            real.host.run(real.links.create(replace(real.veth(), netns=path)))
        assert caught.value.code == errno.EINVAL
    finally:
        os.close(writer)


def test_the_host_is_no_container(real: Bench) -> None:
    with pytest.raises(DataplaneError, match="host's own"):
        real.host.run(real.links.create(replace(real.veth(), netns=real.host.path)))
    assert "eth0" not in real.host.ip("link")


def test_a_refusal_half_way_leaves_nothing_behind(real: Bench) -> None:
    unfit = replace(real.veth(), addresses=(ip_address("224.0.0.1"), ip_address("ff02::1")))
    with pytest.raises(DataplaneError, match=r"ff02::1.* the link was removed again"):
        real.host.run(real.links.create(unfit))
    assert real.actual() == {}
    assert "eth0" not in real.container.ip("link")


def test_an_agent_with_no_memory_sweeps_only_ours(real: Bench) -> None:
    real.host.ip("link", "add", "fabric0", "type", "veth", "peer", "name", "fab-lab-1")
    real.host.ip("link", "add", "fab0123456789ab", "type", "bridge")
    real.heal(real.veth())
    reborn = Bench(NetlinkLinks(), real.host, real.container)
    assert reborn.plan() == [Remove(real.veth().name)]
    reborn.heal()
    left = real.host.ip("-br", "link")
    assert all(name in left for name in ("fabric0", "fab-lab-1", "fab0123456789ab"))


def test_a_vanished_container_takes_its_link_with_it(real: Bench) -> None:
    with Namespace() as short_lived:
        veth = replace(real.veth(), netns=short_lived.path)
        assert real.heal(veth) == {}
    refused = real.heal(veth)
    assert all(err.code == errno.ENOENT for err in refused.values())
