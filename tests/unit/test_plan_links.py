"""The plan of links as data; then walks over the fake, also under refusals."""

import errno
from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations

import pytest

from fabric.plan.links import (
    HOST_LINK_LOCAL,
    HOST_MAC,
    Create,
    HostLink,
    Op,
    Remove,
    Repair,
    Veth,
    apply,
    as_made,
    container_mac,
    host_name,
    is_ours,
    plan,
)
from fabric.plan.mtu import Mtus
from tests.fakes.links import FakeLinks


def veth(workload: str, *addresses: str) -> Veth:
    name, mac = host_name("default", workload), container_mac("default", workload)
    return Veth(
        name, f"/run/netns/{workload}", "eth0", mac, tuple(map(ip_address, addresses)), Mtus(1480, 1430)
    )


def sound(wanted: Veth) -> HostLink:
    return as_made(wanted, 7)


def named(*veths: Veth) -> dict[str, Veth]:
    return {each.name: each for each in veths}


WEB, DB = veth("web", "10.244.1.2", "fd00::2"), veth("db", "10.244.1.3")
FIRST, SECOND = sorted((WEB, DB), key=lambda each: each.name)
WEB_OK, DB_OK = sound(WEB), sound(DB)


@pytest.mark.parametrize(
    ("desired", "actual", "in_sync", "want"),
    [
        pytest.param([WEB], [WEB_OK], True, [], id="nothing to do"),
        pytest.param([WEB, DB], [], True, [Create(FIRST), Create(SECOND)], id="first boot"),
        pytest.param([WEB], [DB_OK], True, [Remove(DB.name), Create(WEB)], id="sweep, then add"),
        pytest.param([WEB], [DB_OK], False, [Create(WEB)], id="no sweep before in-sync"),
        pytest.param([WEB], [replace(WEB_OK, up=False)], True, [Repair(WEB)], id="down"),
        pytest.param([WEB], [replace(WEB_OK, sysctls=False)], True, [Repair(WEB)], id="sysctl"),
        pytest.param([WEB], [replace(WEB_OK, mac="02:00:00:00:00:01")], True, [Repair(WEB)], id="MAC"),
        pytest.param([WEB], [replace(WEB_OK, neighbours=frozenset())], True, [Repair(WEB)], id="neighbour"),
        pytest.param([WEB], [replace(WEB_OK, mtu=1500)], True, [Repair(WEB)], id="MTU"),
        pytest.param([WEB], [replace(WEB_OK, alias="")], True, [Repair(WEB)], id="alias"),
        pytest.param([WEB], [replace(WEB_OK, localnet=True)], True, [Repair(WEB)], id="localnet"),
        pytest.param([WEB], [replace(WEB_OK, index=9)], True, [], id="another index"),
    ],
)
def test_plan(desired: list[Veth], actual: list[HostLink], in_sync: bool, want: list[Op]) -> None:
    assert plan(named(*desired), {link.name: link for link in actual}, in_sync=in_sync) == want


def test_a_scope_hides_everything_else() -> None:
    assert plan(named(WEB), {DB.name: DB_OK}, scope={WEB.name}) == [Create(WEB)]
    assert plan(named(WEB), {DB.name: DB_OK}, scope={DB.name}) == [Remove(DB.name)]


def test_a_device_takes_the_larger_need_of_the_families_it_has_and_routes_hold_back_the_smaller() -> None:
    assert (WEB.mtu, WEB.route_mtu(4), WEB.route_mtu(6)) == (1480, 0, 1430)
    assert WEB.alias == "fab mtu4=1480 mtu6=1430"
    turned = replace(WEB, mtus=Mtus(1450, 1500))
    assert (turned.mtu, turned.route_mtu(4), turned.route_mtu(6)) == (1500, 1450, 0)
    four, six = veth("four", "10.244.1.2"), veth("six", "fd00::2")
    assert [(each.mtu, each.alias) for each in (four, six)] == [
        (1480, "fab mtu4=1480"),
        (1430, "fab mtu6=1430"),
    ]
    assert (four.route_mtu(4), six.route_mtu(6)) == (0, 0)


def test_what_another_family_needs_changes_no_link_without_it() -> None:
    assert replace(DB, mtus=Mtus(1480, 1500)).alias == DB.alias
    assert plan(named(replace(DB, mtus=Mtus(1480, 1500))), {DB.name: DB_OK}) == []


def test_names_fit_the_kernel_and_are_recognised() -> None:
    name = host_name("default", "a-workload-with-a-name-that-no-kernel-would-take")
    assert len(name) == 15
    assert is_ours(name)
    assert not any(map(is_ours, ("fabric0", "fab0123456789abc", "fab0123456789aX", "eth0")))
    assert host_name("a", "b-c") != host_name("a-b", "c")


def test_a_container_mac_is_stable_unicast_and_locally_administered() -> None:
    mac = container_mac("default", "web")
    assert mac == container_mac("default", "web") != container_mac("default", "db")
    assert len(mac.split(":")) == 6
    assert int(mac[:2], 16) & 0b11 == 0b10


def test_the_link_local_of_host_ends_is_what_their_mac_gives() -> None:
    octets = bytes.fromhex(HOST_MAC.replace(":", ""))
    derived = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    assert HOST_LINK_LOCAL.packed == b"\xfe\x80" + bytes(6) + derived


GOALS = [[], [WEB], [DB], [WEB, DB], [replace(WEB, mtus=Mtus(1400, 1400))]]
GOALS += [[replace(WEB, addresses=(ip_address("10.244.1.9"),))]]


@pytest.mark.parametrize("victim", [None, WEB, DB], ids=["no refusal", "web refused", "db refused"])
@pytest.mark.parametrize("walk", list(permutations(GOALS, 3)))
async def test_the_links_depend_on_the_goal_not_on_the_walk(
    walk: tuple[list[Veth], ...], victim: Veth | None
) -> None:
    links = FakeLinks(refuse={victim.name: errno.EBUSY} if victim else None)
    for goal in walk:
        refused = await apply(plan(named(*goal), links.links), links)
        assert plan(named(*goal), links.links) == list(refused)
        assert not await apply(plan(named(*goal), links.links), links)
        assert set(links.links) == set(named(*goal))
        assert plan(named(*goal), links.links) == []


async def test_a_refusal_spares_the_rest() -> None:
    links = FakeLinks()
    links.gone.add(WEB.netns)
    refused = await apply(plan(named(WEB, DB), {}), links)
    assert {op: err.code for op, err in refused.items()} == {Create(WEB): errno.ENOENT}
    assert set(links.links) == {DB.name}
