"""What every `Tunnels` promises, run on the fake and on the kernel; then what only a kernel can show.

What needs a kernel with the module ipip is run where there is one: on a host, or in user-mode Linux (tests/uml).
"""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fabric.errors import DataplaneError
from fabric.kernel.tunnels import NetlinkTunnels
from fabric.plan.encap import IPIP, VXLAN, VXLAN6
from fabric.plan.tunnels import Create, Far, HostTunnel, Op, Remove, Repair, Tunnel, Tunnels, apply, plan
from tests.contract.netns import Namespace
from tests.fakes.tunnels import FakeTunnels

V4 = Tunnel(
    VXLAN,
    ip_address("10.244.1.0"),
    ip_address("192.0.2.1"),
    1450,
    "66:00:00:00:00:01",
    4096,
    4789,
    frozenset({Far(ip_address("10.244.2.0"), "66:00:00:00:00:02", ip_address("192.0.2.2"))}),
)
V6 = Tunnel(
    VXLAN6,
    ip_address("fd00:244:1::"),
    ip_address("2001:db8::1"),
    1430,
    "66:00:00:00:00:11",
    4096,
    4789,
    frozenset({Far(ip_address("fd00:244:2::"), "66:00:00:00:00:12", ip_address("2001:db8::2"))}),
)
TUNL0 = Tunnel(IPIP, ip_address("10.244.1.1"), ip_address("192.0.2.1"), 1480)
FAR_TUNL0 = replace(TUNL0, address=ip_address("10.244.2.1"), local=ip_address("192.0.2.2"))
MORE = Far(ip_address("10.244.3.0"), "66:00:00:00:00:03", ip_address("192.0.2.3"))


class Bench:
    """A `Tunnels` and the namespace in which it works."""

    def __init__(self, tunnels: Tunnels, host: Namespace) -> None:
        self.tunnels, self.host = tunnels, host

    def actual(self) -> dict[str, HostTunnel]:
        return {held.tunnel.name: held for held in self.host.run(_owned(self.tunnels))}

    def plan(self, *tunnels: Tunnel) -> list[Op]:
        return plan({tunnel.name: tunnel for tunnel in tunnels}, self.actual())

    def heal(self, *tunnels: Tunnel) -> dict[Op, DataplaneError]:
        return self.host.run(apply(self.plan(*tunnels), self.tunnels))


async def _owned(tunnels: Tunnels) -> list[HostTunnel]:
    return list(await tunnels.owned())


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as space:
        space.ip("link", "set", "lo", "up")
        yield space


@pytest.fixture(params=[FakeTunnels, NetlinkTunnels], ids=["fake", "kernel"])
def bench(request: pytest.FixtureRequest, host: Namespace) -> Bench:
    return Bench(request.param(), host)


@pytest.fixture
def real(host: Namespace) -> Bench:
    return Bench(NetlinkTunnels(), host)


@pytest.fixture
def ipip(real: Bench) -> Bench:
    try:
        real.host.run(real.tunnels.create(TUNL0))
    except DataplaneError as err:
        if err.code != errno.EOPNOTSUPP:
            raise
        pytest.skip("this kernel has no module ipip")
    real.host.run(real.tunnels.remove("tunl0"))
    return real


@pytest.mark.parametrize("tunnel", [V4, V6, replace(V4, offload=False)], ids=["v4", "v6", "no offload"])
def test_one_pass_makes_what_is_wanted_and_the_next_has_nothing_to_do(bench: Bench, tunnel: Tunnel) -> None:
    assert bench.heal(tunnel) == {}
    assert bench.actual() == {tunnel.name: HostTunnel(tunnel)}
    assert bench.plan(tunnel) == []


def test_both_families_stand_beside_each_other(bench: Bench) -> None:
    assert bench.heal(V4, V6) == {}
    assert bench.plan(V4, V6) == []


def test_creating_again_changes_nothing(bench: Bench) -> None:
    bench.heal(V4)
    bench.host.run(bench.tunnels.create(V4))
    assert bench.actual() == {V4.name: HostTunnel(V4)}


CHANGES = {
    "address": replace(V4, address=ip_address("10.244.1.9")),
    "own address": replace(V4, local=ip_address("192.0.2.9")),
    "MTU": replace(V4, mtu=1350),
    "MAC": replace(V4, mac="66:00:00:00:00:99"),
    "offload": replace(V4, offload=False),
    "a node more": replace(V4, far=V4.far | {MORE}),
    "no node": replace(V4, far=frozenset()),
    "a node moved": replace(V4, far=frozenset(replace(far, node=MORE.node) for far in V4.far)),
    "a node's MAC": replace(V4, far=frozenset(replace(far, mac=MORE.mac) for far in V4.far)),
    "a node's end": replace(V4, far=frozenset(replace(far, address=MORE.address) for far in V4.far)),
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_a_repair_of_the_same_device_there_and_back(bench: Bench, changed: Tunnel) -> None:
    bench.heal(V4)
    assert bench.plan(changed) == [Repair(changed)]
    for goal in changed, V4:
        assert bench.heal(goal) == {}
        assert bench.actual() == {goal.name: HostTunnel(goal)}


@pytest.mark.parametrize("changed", [replace(V4, port=4790), replace(V4, vni=7)], ids=["port", "VNI"])
def test_another_port_or_vni_makes_the_device_anew(bench: Bench, changed: Tunnel) -> None:
    bench.heal(V4)
    assert bench.plan(changed) == [Remove(V4.name), Create(changed)]
    assert bench.heal(changed) == {}
    assert bench.plan(changed) == []


def test_an_unwanted_device_goes_and_may_go_twice(bench: Bench) -> None:
    bench.heal(V4, V6)
    assert bench.heal(V6) == {}
    assert bench.actual().keys() == {V6.name}
    bench.host.run(bench.tunnels.remove(V4.name))


# From here on the kernel only.


@pytest.mark.parametrize(("tunnel", "size"), [(V4, 1450 - 28), (V6, 1430 - 48)], ids=["v4", "v6"])
def test_packets_go_there_and_back(real: Bench, tunnel: Tunnel, size: int) -> None:
    """Two nodes with a cable between them, and by the tunnel from end to end, at its full size."""
    with Namespace() as other:
        _cable(real.host, other)
        _both_ends(real, tunnel, other, _mirrored(tunnel))
        real.host.command("ping", "-c1", "-W2", "-Mdo", f"-s{size}", str(_mirrored(tunnel).address))


def test_what_the_path_does_not_take_is_reported_to_the_sender(real: Bench) -> None:
    """Not cut up on the way: `node check mtu` and path MTU discovery see the outer path."""
    here = replace(V4, local=ip_address("192.0.1.1"), far=_at(V4, "192.0.2.1"))
    _over_a_smaller_path(real, here, _mirrored(here), 1350)


def _cable(host: Namespace, other: Namespace) -> None:
    host.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", _named(other))
    for space, number in (host, 1), (other, 2):
        space.ip("link", "set", "eth0", "up")
        space.ip("address", "add", f"192.0.2.{number}/24", "dev", "eth0")
        if Path("/proc/sys/net/ipv6").exists():
            space.ip("address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")


def _named(space: Namespace) -> str:
    return space.path.split("/")[-3]  # `ip link set netns` takes a thread's id


def _mirrored(tunnel: Tunnel) -> Tunnel:
    """Return the other end of a VXLAN."""
    [far] = tunnel.far
    back = frozenset({Far(tunnel.address, tunnel.mac, tunnel.local)})
    return replace(tunnel, address=far.address, local=far.node, mac=far.mac, far=back)


def _at(tunnel: Tunnel, node: str) -> frozenset[Far]:
    return frozenset(replace(far, node=ip_address(node)) for far in tunnel.far)


def _both_ends(real: Bench, here: Tunnel, other: Namespace, there: Tunnel) -> None:
    """Make the tunnel at both ends, and routes to each other's."""
    assert real.heal(here) == Bench(NetlinkTunnels(), other).heal(there) == {}
    for space, own, to in (real.host, here, there), (other, there, here):
        via = ("via", str(to.local), "onlink") if own.encap.kind == "ipip" else ()
        space.ip("route", "add", str(to.address), *via, "dev", own.name, "src", str(own.address))


def _over_a_smaller_path(real: Bench, here: Tunnel, there: Tunnel, size: int) -> None:
    """A router has 1,500 bytes on this side and 1,400 on the other, of which a packet in the tunnel may have `size`."""
    with Namespace() as router, Namespace() as other:
        for space, net, mtu in (real.host, 1, "1500"), (other, 2, "1400"):
            link = f"eth{net}"
            space.ip("link", "add", "eth0", "type", "veth", "peer", "name", link, "netns", _named(router))
            space.ip("address", "add", f"192.0.{net}.1/24", "dev", "eth0")
            router.ip("address", "add", f"192.0.{net}.254/24", "dev", link)
            for at, name in (space, "eth0"), (router, link):
                at.ip("link", "set", name, "mtu", mtu, "up")
            space.ip("route", "add", "default", "via", f"192.0.{net}.254")
        forwarding = Path("/proc/sys/net/ipv4/ip_forward")
        router.call(lambda: forwarding.write_text("1"))
        _both_ends(real, here, other, replace(there, mtu=size))
        ping = ["ping", "-c3", "-i0.2", "-W1", "-Mdo", f"-s{here.mtu - 28}", str(there.address)]
        said = real.host.call(lambda: subprocess.run(ping, capture_output=True, text=True, timeout=20))
        assert f"mtu={size}" in said.stdout + said.stderr or f"mtu = {size}" in said.stdout
        real.host.command("ping", "-c1", "-W2", "-Mdo", f"-s{size - 28}", str(there.address))


DRIFT = {
    "neighbour": "neighbour del 10.244.2.0 dev vxlan.fabric",
    "neighbour's MAC": "neighbour replace 10.244.2.0 lladdr 66:00:00:00:00:55 dev vxlan.fabric",
    "stranger's neighbour": "neighbour add 10.9.9.9 lladdr 66:00:00:00:00:55 dev vxlan.fabric",
    "another neighbour of the MAC": "neighbour add 10.9.9.9 lladdr 66:00:00:00:00:02 dev vxlan.fabric",
    "down": "link set vxlan.fabric down",
    "MAC": "link set vxlan.fabric address 66:00:00:00:00:55",
    "MTU": "link set vxlan.fabric mtu 1280",
    "address": "address del 10.244.1.0/32 dev vxlan.fabric",
    "stranger's address": "address add 10.9.9.9/24 dev vxlan.fabric",
    "prefix": "address add 10.244.1.0/24 dev vxlan.fabric",
    "learning": "link set vxlan.fabric type vxlan learning",
    "DF": "link set vxlan.fabric type vxlan df unset",
    "local": "link set vxlan.fabric type vxlan local 192.0.2.77",
    "deleted": "link del vxlan.fabric",
}


@pytest.mark.parametrize("change", DRIFT.values(), ids=DRIFT.keys())
def test_drift_is_found_and_healed_and_no_other_device_touched(real: Bench, change: str) -> None:
    assert real.heal(V4, V6) == {}
    real.host.ip(*change.split())
    assert real.plan(V4, V6) == [Create(V4) if "del vxlan" in change else Repair(V4)]
    assert real.heal(V4, V6) == {}
    assert real.plan(V4, V6) == []


FDB_DRIFT = {
    "gone": "fdb del 66:00:00:00:00:02 dev vxlan.fabric dst 192.0.2.2",
    "moved": "fdb replace 66:00:00:00:00:02 dev vxlan.fabric dst 192.0.2.7",
    "stranger's": "fdb add 66:00:00:00:00:55 dev vxlan.fabric dst 192.0.2.7",
    "for all": "fdb add 00:00:00:00:00:00 dev vxlan.fabric dst 192.0.2.7",
}


@pytest.mark.parametrize("change", FDB_DRIFT.values(), ids=FDB_DRIFT.keys())
def test_an_edited_forwarding_database_is_repaired(real: Bench, change: str) -> None:
    assert real.heal(V4) == {}
    real.host.command("bridge", *change.split())
    assert real.plan(V4) == [Repair(V4)]
    assert real.heal(V4) == {}
    assert real.plan(V4) == []


@pytest.mark.parametrize(
    "key", ["ipv4/conf/{}/forwarding", "ipv4/conf/{}/rp_filter", "ipv6/conf/{}/disable_ipv6"]
)
def test_a_changed_sysctl_is_repaired(real: Bench, key: str) -> None:
    real.heal(V4)
    path = Path("/proc/sys/net", key.format(V4.name))
    before = real.host.call(path.read_text)
    real.host.call(lambda: path.write_text("0" if before.strip() != "0" else "1"))
    assert real.plan(V4) == [Repair(V4)]
    real.heal(V4)
    assert real.host.call(path.read_text) == before
    assert real.plan(V4) == []


def test_a_thousand_far_ends_are_read_back_whole(real: Bench) -> None:
    many = frozenset(
        Far(
            ip_address((10 << 24) + n),
            f"66:00:00:00:{n // 256:02x}:{n % 256:02x}",
            ip_address((11 << 24) + n),
        )
        for n in range(1, 1001)
    )
    tunnel = replace(V4, far=many)
    assert real.heal(tunnel) == {}
    assert real.plan(tunnel) == []


def test_an_agent_with_no_memory_sweeps_only_ours(real: Bench) -> None:
    _vxlan(real.host, "vxlan9", 9)
    real.heal(V4)
    reborn = Bench(NetlinkTunnels(), real.host)
    assert reborn.plan() == [Remove(V4.name)]
    assert reborn.heal() == {}
    assert "vxlan9" in real.host.ip("-br", "link")


def _vxlan(host: Namespace, name: str, vni: int) -> None:
    host.ip("link", "add", name, "type", "vxlan", "id", f"{vni}", "dstport", "4789", "local", "192.0.2.1")


def test_who_has_the_vni_is_named_and_stays(real: Bench) -> None:
    _vxlan(real.host, "flannel.1", 4096)
    [why] = real.heal(V4).values()
    assert why.code == errno.EEXIST
    assert "VNI 4096 at UDP port 4789 is held by device flannel.1 (VXLAN, VNI 4096)" in str(why)
    assert real.actual() == {}
    real.host.ip("link", "del", "flannel.1")
    assert real.heal(V4) == {}


def test_who_has_the_port_is_named_and_nothing_is_left_behind(real: Bench) -> None:
    other = real.host.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with other:
        other.bind(("0.0.0.0", 4789))
        [why] = real.heal(V4).values()
        assert why.code == errno.EADDRINUSE
        assert "UDP port 4789 is held by process" in str(why)
        assert V4.name not in real.host.ip("link")
    assert real.heal(V4) == {}


def test_a_link_of_that_name_that_is_not_ours_is_left_alone(real: Bench) -> None:
    real.host.ip("link", "add", V4.name, "type", "veth", "peer", "name", "peer0")
    [why] = real.heal(V4).values()
    assert why.code == errno.EEXIST
    assert "the host has a link of that name, which is veth and not ours" in str(why)
    real.host.run(real.tunnels.remove(V4.name))
    assert V4.name in real.host.ip("link")


def test_a_kernel_without_ipip_is_told_as_that(real: Bench) -> None:
    refused = real.heal(TUNL0)
    for why in refused.values():  # none where it has the module
        assert (why.code, "has no module ipip" in str(why)) == (errno.EOPNOTSUPP, True)


def test_tunl0_is_taken_and_left_as_it_was_found(ipip: Bench) -> None:
    wanted, before = replace(TUNL0, mtu=1380), _tunl0(ipip.host)
    assert ipip.heal(wanted) == {}
    assert ipip.plan(wanted) == []
    assert "inet 10.244.1.1/32" in ipip.host.ip("address", "show", "tunl0")
    ipip.host.ip("link", "set", "tunl0", "down")
    assert ipip.plan(wanted) == [Repair(wanted)]
    assert ipip.heal(wanted) == {}
    assert ipip.heal() == {}
    assert _tunl0(ipip.host) == before


def _tunl0(host: Namespace) -> tuple[str, ...]:
    paths = (
        Path("/proc/sys/net", name) for name in ("ipv4/conf/tunl0/rp_filter", "ipv4/conf/tunl0/forwarding")
    )
    sysctls = [host.call(path.read_text) for path in paths]
    return host.ip("-d", "link", "show", "tunl0"), host.ip("address", "show", "tunl0"), *sysctls


def test_a_tunl0_that_others_use_is_left_alone(ipip: Bench) -> None:
    for words in ("address add 10.9.9.9/32 dev tunl0", "link set tunl0 up"):
        ipip.host.ip(*words.split())
    [why] = ipip.heal(TUNL0).values()
    assert "it has 10.9.9.9/32, which is not ours" in str(why)
    ipip.host.run(ipip.tunnels.remove("tunl0"))
    assert "10.9.9.9/32" in ipip.host.ip("address", "show", "tunl0")


def test_ipip_carries_packets_there_and_back(ipip: Bench) -> None:
    with Namespace() as other:
        _cable(ipip.host, other)
        _both_ends(ipip, TUNL0, other, FAR_TUNL0)
        ipip.host.command("ping", "-c1", "-W2", "-Mdo", f"-s{1480 - 28}", str(FAR_TUNL0.address))


def test_what_the_path_of_ipip_does_not_take_is_reported_to_the_sender(ipip: Bench) -> None:
    here = replace(TUNL0, local=ip_address("192.0.1.1"))
    _over_a_smaller_path(ipip, here, replace(FAR_TUNL0, local=ip_address("192.0.2.1")), 1380)
