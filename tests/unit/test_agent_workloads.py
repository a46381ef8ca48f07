"""Attach and detach over an etcd, FIB and links in memory, with the accidents that happen to them."""

import asyncio
import errno
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from itertools import combinations

import pytest

from fabric.agent import endpoint as endpoints
from fabric.agent import report, upkeep
from fabric.agent.endpoint import Request
from fabric.agent.workloads import ATTEMPTS
from fabric.errors import (
    ConfigError,
    DataplaneError,
    Exhausted,
    FabricError,
    NotFound,
    NotInSync,
    StoreError,
    Taken,
)
from fabric.ipam import config as ipam_config
from fabric.ipam.assign import walk
from fabric.ipam.config import IPAMConfig
from fabric.model.ipreservation import IPReservation
from fabric.model.profile import Profile
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.plan import publish
from fabric.plan.encap import VXLAN
from fabric.plan.links import host_name
from fabric.plan.routes import NextHop, Route, RouteKey
from fabric.plan.tables import Place
from fabric.plan.tunnels import Tunnel
from fabric.store import keys
from fabric.store.kv import Delete, Put, Txn
from tests.fakes.node import FakeNode, MuteEtcd, netns, pool, put, request, running

POOL = pool("10.0.0.0/24", blockSize=28)
V6_POOL = pool("fd00::/112", "v6")
WEB = host_name("default", "web")


async def etcd(*pools: object) -> MuteEtcd:
    kv = MuteEtcd()
    for resource in pools or (POOL,):
        await put(kv, resource)  # type: ignore[arg-type]
    return kv


def addresses(endpoint: WorkloadEndpoint) -> list[str]:
    return [str(prefix.network_address) for prefix in endpoint.spec.ip_networks]


async def keys_below(kv: MuteEtcd, prefix: str) -> list[str]:
    return [item.key for item in (await kv.list(prefix)).items]


async def nothing_is_attached(node: FakeNode) -> None:
    """Neither in the datastore, nor in the kernel, nor in the agent's own picture."""
    assert await keys_below(node.kv, keys.HANDLES) == []  # type: ignore[arg-type]
    assert await keys_below(node.kv, keys.resources("workloadendpoints")) == []  # type: ignore[arg-type]
    assert not any(not s.block.empty for s in node.state.snapshot.blocks.values())
    assert node.links.links == {}
    assert not [r for r in node.fib.routes.values() if not r.blackhole]


async def test_attach_is_one_transaction_and_ends_with_link_and_route_in() -> None:
    async with running(kv := await etcd()) as node:
        before = kv.revision
        endpoint = await node.workloads.attach(request("web", labels={"app": "web"}))
        assert kv.revision == before + 1
        [address] = endpoint.spec.ip_networks
        assert node.links.links.keys() == {WEB}
        assert node.fib.routes[RouteKey(address)] == Route(
            RouteKey(address), frozenset({NextHop(device=WEB)})
        )
        assert len(await keys_below(kv, keys.resources("profiles"))) == 1
        stored = node.state.snapshot.get(WorkloadEndpoint, endpoint.metadata.name, "default")
        assert stored is not None
        assert stored.metadata.labels["app"] == "web"
        assert stored.metadata.uid


async def test_the_same_request_again_is_answered_the_same_and_writes_nothing() -> None:
    async with running(kv := await etcd()) as node:
        first = await node.workloads.attach(request("web"))
        before = kv.revision
        again = await node.workloads.attach(request("web"))
        assert addresses(again) == addresses(first)
        assert kv.revision == before


async def test_a_name_in_use_elsewhere_is_taken_and_the_message_says_where() -> None:
    async with running(await etcd()) as node:
        first = await node.workloads.attach(request("web"))
        with pytest.raises(
            Taken, match=rf"default/web: already attached on node n1 as {addresses(first)[0]}"
        ):
            await node.workloads.attach(request("web", 1))
        with pytest.raises(Taken, match="already attached"):
            await node.workloads.attach(request("web", address=ip_address("10.0.0.77")))


async def test_of_two_at_once_that_want_a_port_one_has_it() -> None:
    async with running(await etcd()) as node:
        wanted = (publish.parse("18080:80"),)
        both = await asyncio.gather(
            *(node.workloads.attach(request(name, n, ports=wanted)) for n, name in enumerate(("web", "db"))),
            return_exceptions=True,
        )
        [refused] = [one for one in both if isinstance(one, Taken)]
        [made] = [one for one in both if isinstance(one, WorkloadEndpoint)]
        assert f"is published by workload default/{made.spec.workload} of node n1" in str(refused)
        assert len(node.state.snapshot.endpoints("n1")) == 1


async def test_a_port_that_is_not_there_in_a_family_of_its_node_is_warned_of() -> None:
    async with running(await etcd(V6_POOL)) as node:
        asked = request("web", ports=(publish.parse("18080:80"),))
        tunnel = Tunnel(VXLAN, ip_address("10.0.0.9"), ip_address("192.0.2.1"), 1450, port=18080)
        node.state.raised({tunnel.name: tunnel})
        with pytest.raises(Taken, match="port 18080/udp is the one by which tunnels come in"):
            await node.workloads.attach(request("web", ports=(publish.parse("18080:80/udp"),)))
        made = await node.workloads.attach(asked)
        assert endpoints.warnings(node.state.snapshot, "n1", asked, made) == (
            "18080->80/tcp: not at the node's IPv4 addresses, since the workload has no IPv4 address",
        )


async def test_a_port_leads_to_its_workload_as_long_as_that_is_attached() -> None:
    async with running(await etcd()) as node:
        chain = Place("nat", "fab-published")
        made = await node.workloads.attach(request("web", ports=(publish.parse("18080:80"),)))
        assert f"--to-destination {addresses(made)[0]}:80" in node.tables.rules[4][chain][0]
        assert node.links.links[made.spec.interface_name or ""].localnet
        await node.workloads.detach("default", "web")
        assert chain not in node.tables.rules[4]


async def test_an_address_in_use_is_taken_and_the_message_names_the_holder() -> None:
    async with running(await etcd()) as node:
        await node.workloads.attach(request("web", address=ip_address("10.0.0.77")))
        with pytest.raises(Taken, match=r"10\.0\.0\.77: held by .*web.* on n1"):
            await node.workloads.attach(request("db", 1, address=ip_address("10.0.0.77")))


async def test_the_address_asked_for_is_given() -> None:
    async with running(await etcd()) as node:
        endpoint = await node.workloads.attach(request("web", address=ip_address("10.0.0.77")))
        assert addresses(endpoint) == ["10.0.0.77"]


async def test_a_full_pool_is_exhausted_and_has_room_again_after_a_detach() -> None:
    async with running(await etcd(pool("10.0.0.0/31", blockSize=31))) as node:
        await node.workloads.attach(request("a"))
        second = await node.workloads.attach(request("b", 1))
        with pytest.raises(Exhausted, match="no address left in pool"):
            await node.workloads.attach(request("c", 2))
        await node.workloads.detach("default", "b")
        assert addresses(await node.workloads.attach(request("c", 2))) == addresses(second)


async def test_without_a_pool_nothing_is_attached_and_the_message_says_why() -> None:
    async with running(await etcd(pool("10.0.0.0/24", nodeSelector="rack == 'z'"))) as node:
        with pytest.raises(ConfigError, match="no IPv4 pool may serve it"):
            await node.workloads.attach(request("web"))
        await nothing_is_attached(node)


async def test_both_families_come_where_both_have_a_pool() -> None:
    async with running(kv := await etcd(POOL, V6_POOL)) as node:
        before = kv.revision
        endpoint = await node.workloads.attach(request("web"))
        v4, v6 = endpoint.spec.ip_networks
        assert (v4.version, v6.version) == (4, 6)
        assert {RouteKey(v4), RouteKey(v6)} <= node.fib.routes.keys()
        assert kv.revision == before + 1
        assert len(await keys_below(kv, keys.HANDLES)) == 1
        await node.workloads.detach("default", "web")
        await nothing_is_attached(node)


async def test_an_address_asked_for_comes_alone_unless_a_pool_of_the_other_family_is_asked_for_too() -> None:
    async with running(await etcd(POOL, V6_POOL)) as node:
        wanted = ip_address("fd00::7")
        assert addresses(await node.workloads.attach(request("web", address=wanted))) == ["fd00::7"]
        both = request("db", 1, address=ip_address("fd00::8"), pools=("v6", "10.0.0.0/24"))
        assert {p.version for p in (await node.workloads.attach(both)).spec.ip_networks} == {4, 6}


async def test_detach_releases_the_address_and_takes_link_and_route_away() -> None:
    async with running(kv := await etcd()) as node:
        await node.workloads.attach(request("web"))
        before = kv.revision
        await node.workloads.detach("default", "web")
        assert kv.revision == before + 1
        await nothing_is_attached(node)
        assert len(node.state.snapshot.blocks) == 1  # the node keeps its block
        with pytest.raises(NotFound, match="default/web: not on node n1"):
            await node.workloads.detach("default", "web")


@pytest.mark.parametrize("what", ["link", "route", "rules", "ipset"])
async def test_when_the_kernel_refuses_everything_is_undone(what: str) -> None:
    async with running(await etcd()) as node:
        match what:
            case "link":
                node.links.refuse[WEB] = errno.EPERM
            case "route":
                node.fib.refuse[RouteKey(ip_network("10.0.0.77/32"))] = errno.EPERM
            case "rules":
                node.tables.refuse = errno.EPERM
            case "ipset":
                node.sets.refuse["fab4-own"] = errno.EPERM
        with pytest.raises(DataplaneError, match=r"default/web: .*EPERM.*nothing was attached") as caught:
            await node.workloads.attach(request("web", address=ip_address("10.0.0.77")))
        assert caught.value.code == errno.EPERM
        await nothing_is_attached(node)
        await node.workloads.attach(request("web"))
        assert node.links.links.keys() == {WEB}


async def test_policy_is_in_force_before_the_answer() -> None:
    async with running(await etcd()) as node:
        endpoint = await node.workloads.attach(request("web"))
        [prefix] = endpoint.spec.ip_networks
        assert node.sets.sets["fab4-own"].ipset.members == {f"{prefix.network_address},{WEB}"}
        assert Place("filter", "fab-FORWARD") in node.tables.rules[4]
        await node.workloads.detach("default", "web")
        assert node.sets.sets["fab4-own"].ipset.members == set()


async def test_a_workload_that_comes_while_policy_is_worked_out_is_in_what_comes_of_it() -> None:
    async with running(await etcd()) as node:
        await node.workloads.attach(request("web"))
        seen = node.state.snapshot
        await node.workloads.attach(request("db", 1))
        came, node.state.snapshot = node.state.snapshot, seen
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.state.police())
            await asyncio.sleep(0)  # it is under way, by what was known then
            node.state.snapshot = came
        assert node.state.policing
        assert len(node.state.policing.world.local("n1")) == 2


async def test_an_interface_that_is_there_already_is_refused_and_undone() -> None:
    async with running(await etcd()) as node:
        node.links.foreign.add((netns(), "eth0"))
        with pytest.raises(DataplaneError, match="EEXIST"):
            await node.workloads.attach(request("web"))
        await nothing_is_attached(node)


async def test_what_cannot_be_undone_is_said() -> None:
    async with running(kv := await etcd()) as node:
        node.links.refuse[WEB] = errno.EPERM
        attach = asyncio.create_task(node.workloads.attach(request("web")))
        async with asyncio.timeout(5):
            await node.state.until(lambda: bool(node.state.snapshot.endpoints("n1")))
        kv.down = True
        with pytest.raises(FabricError, match=r"EPERM.*could not be undone either .*etcd is down"):
            await attach


async def test_without_etcd_nothing_changes_and_the_message_says_that_it_is_out_of_sync() -> None:
    async with running(kv := await etcd()) as node:
        await node.workloads.attach(request("web"))
        kv.down = True
        async with asyncio.timeout(5):
            await node.state.until(lambda: not node.state.snapshot.in_sync)
        with pytest.raises(NotInSync, match=r"not in sync on node n1 .*the stream ended"):
            await node.workloads.attach(request("db", 1))
        with pytest.raises(NotInSync, match=r"not in sync on node n1 .*it is still attached"):
            await node.workloads.detach("default", "web")
        assert node.links.links.keys() == {WEB}
        kv.down = False
        async with asyncio.timeout(5):
            await node.state.until(lambda: node.state.snapshot.in_sync)
        await node.workloads.detach("default", "web")
        await nothing_is_attached(node)


async def test_an_attach_whose_answer_was_lost_is_found_again_by_the_next_one() -> None:
    async with running(kv := await etcd()) as node:
        kv.lost = 1
        with pytest.raises(StoreError, match="may or may not"):
            await node.workloads.attach(request("web"))
        before = kv.revision
        endpoint = await node.workloads.attach(request("web"))
        assert kv.revision == before
        held = [owner for s in node.state.snapshot.blocks.values() for owner in s.block.owners if owner]
        assert len(held) == len(endpoint.spec.ip_networks) == 1
        assert node.links.links.keys() == {WEB}


async def test_also_while_the_watch_has_not_shown_it_yet() -> None:
    async with running(kv := await etcd()) as node:
        kv.flows.clear()
        kv.lost = 1
        with pytest.raises(StoreError, match="may or may not"):
            await node.workloads.attach(request("web"))
        before = kv.revision
        again = asyncio.create_task(node.workloads.attach(request("web")))
        async with asyncio.timeout(5):
            await kv.refused.wait()
        kv.flows.set()
        assert addresses(await again)
        assert kv.revision == before


async def test_a_detach_whose_answer_was_lost_is_done_when_asked_again() -> None:
    async with running(kv := await etcd()) as node:
        await node.workloads.attach(request("web"))
        kv.lost = 1
        with pytest.raises(StoreError):
            await node.workloads.detach("default", "web")
        await node.caught_up()
        with pytest.raises(NotFound):
            await node.workloads.detach("default", "web")
        await node.passes.run(node.state.compute)
        await nothing_is_attached(node)


async def test_a_hundred_at_once_get_a_hundred_addresses_and_share_transactions() -> None:
    async with running(kv := await etcd()) as node:
        found = await asyncio.gather(*(node.workloads.attach(request(f"w{n}", n)) for n in range(100)))
        assert len({address for endpoint in found for address in addresses(endpoint)}) == 100
        assert len(node.links.links) == 100
        assert kv.commits < 50
        await asyncio.gather(*(node.workloads.detach("default", f"w{n}") for n in range(100)))
        await nothing_is_attached(node)
        assert kv.commits < 100


async def test_one_that_cannot_be_served_fails_alone() -> None:
    async with running(await etcd()) as node:
        await node.workloads.attach(request("first", 9, address=ip_address("10.0.0.5")))
        asked = [
            request("good"),
            request("taken", 1, address=ip_address("10.0.0.5")),
            request("outside", 2, address=ip_address("192.0.2.1")),
            request("labelled", 3, labels={"no good": "x"}),
            request("pooled", 4, pools=("nowhere",)),
            request("fine", 5),
        ]
        found = await asyncio.gather(*map(node.workloads.attach, asked), return_exceptions=True)
        assert [type(answer) for answer in found] == [
            WorkloadEndpoint,
            Taken,
            ConfigError,
            ConfigError,
            ConfigError,
            WorkloadEndpoint,
        ]
        assert {e.spec.workload for e in node.state.snapshot.endpoints("n1")} == {"first", "good", "fine"}


async def test_those_for_whom_the_last_addresses_do_not_suffice_fail_and_the_others_do_not() -> None:
    async with running(await etcd(pool("10.0.0.0/30", blockSize=30))) as node:
        asked = [node.workloads.attach(request(f"w{n}", n)) for n in range(7)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(answer, WorkloadEndpoint) for answer in found].count(True) == 4
        assert [isinstance(answer, Exhausted) for answer in found].count(True) == 3


async def test_a_race_lost_without_end_is_given_up_and_costs_the_others_nothing() -> None:
    kv = await etcd()
    async with running(kv, "n1") as node, running(kv, "n2") as other:
        await other.workloads.attach(request("theirs"))
        [block] = other.state.snapshot.blocks.values()
        await node.caught_up()
        borrowed = block.block.address(block.block.free[0])
        kv.contested = keys.BlockKey(block.block.prefix).path
        asked = [request(f"w{n}", n, address=borrowed if n == 3 else None) for n in range(8)]
        found = await asyncio.gather(*map(node.workloads.attach, asked), return_exceptions=True)
        assert str(found.pop(3)).startswith(
            f"workload default/w3: lost {ATTEMPTS} races against other writers; nothing was attached"
        )
        assert all(isinstance(answer, WorkloadEndpoint) for answer in found)


@pytest.mark.parametrize("lost", range(1, 6))
async def test_lost_answers_amid_a_crowd_lose_and_double_nothing(lost: int) -> None:
    async with running(kv := await etcd()) as node:
        kv.lost = lost
        asked = [request(f"w{n}", n) for n in range(8)]
        first = await asyncio.gather(*map(node.workloads.attach, asked), return_exceptions=True)
        assert all(isinstance(answer, WorkloadEndpoint | StoreError) for answer in first)
        again = await asyncio.gather(*map(node.workloads.attach, asked))
        assert len({address for endpoint in again for address in addresses(endpoint)}) == 8
        held = [owner for s in node.state.snapshot.blocks.values() for owner in s.block.owners if owner]
        assert len(held) == 8


async def test_attach_and_detach_of_one_name_keep_their_order() -> None:
    async with running(await etcd()) as node:
        verbs = [
            node.workloads.attach(request("web")),
            node.workloads.attach(request("db", 1)),
        ]
        await asyncio.gather(*verbs)
        gone, _, back = await asyncio.gather(
            node.workloads.detach("default", "web"),
            node.workloads.detach("default", "db"),
            node.workloads.attach(request("cache", 2)),
        )
        assert gone.spec.workload == "web"
        assert {e.spec.workload for e in node.state.snapshot.endpoints("n1")} == {"cache"}
        assert len(node.links.links) == 1
        assert addresses(back)


async def test_who_asked_may_go_away_and_the_others_are_served() -> None:
    async with running(await etcd()) as node:
        tasks = [asyncio.create_task(node.workloads.attach(request(f"w{n}", n))) for n in range(6)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[3].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(answer, WorkloadEndpoint) for answer in found].count(True) == 4


async def test_the_same_request_twice_at_once_is_one_workload() -> None:
    async with running(await etcd()) as node:
        first, second = await asyncio.gather(*(node.workloads.attach(request("web")) for _ in range(2)))
        assert addresses(first) == addresses(second)


async def test_nodes_that_want_the_same_block_at_once_get_one_each() -> None:
    small = pool("10.0.0.0/29", blockSize=30)
    one, other = next(
        (a, b)
        for a, b in combinations([f"n{i}" for i in range(9)], 2)
        if next(walk(small, a)) == next(walk(small, b))
    )
    kv = await etcd(small)
    async with running(kv, one) as a, running(kv, other) as b:
        found = await asyncio.gather(a.workloads.attach(request("w")), b.workloads.attach(request("w")))
        first, second = (ip_network(addresses(e)[0]).supernet(new_prefix=30) for e in found)
        assert first != second


async def test_a_race_for_one_address_of_a_block_is_decided_again() -> None:
    kv = await etcd(pool("10.0.0.0/28", blockSize=28))
    async with running(kv, "n1") as owner, running(kv, "n2") as borrower:
        await owner.workloads.attach(request("first"))
        await borrower.caught_up()
        [block] = borrower.state.snapshot.blocks.values()
        wanted = block.block.address(block.block.free[0])
        mine, theirs = await asyncio.gather(
            owner.workloads.attach(request("w", 1)),
            borrower.workloads.attach(request("w", address=wanted)),
            return_exceptions=True,
        )
        assert isinstance(mine, WorkloadEndpoint)
        assert isinstance(theirs, WorkloadEndpoint | Taken)
        if isinstance(theirs, WorkloadEndpoint):
            assert addresses(mine) != addresses(theirs)


@pytest.mark.parametrize("cooldown", [0, 600])
@pytest.mark.parametrize("same", [False, True], ids=["any address", "the same address"])
async def test_what_a_deleted_endpoint_left_behind_is_freed_when_its_workload_comes_back(
    cooldown: int, same: bool
) -> None:
    async with running(kv := await etcd()) as node:
        config = ipam_config.to_json(IPAMConfig(cooldown=cooldown))
        await kv.commit(Txn((), (Put(keys.IPAM_CONFIG, config),)))
        await node.caught_up()
        before = await node.workloads.attach(request("web"))
        [key] = await keys_below(kv, keys.resources("workloadendpoints"))
        await kv.commit(Txn((), (Delete(key),)))
        await node.caught_up()
        [held] = before.spec.ip_networks
        again = await node.workloads.attach(request("web", address=held.network_address if same else None))
        assert (addresses(again) == addresses(before)) is same
        [stored] = node.state.snapshot.blocks.values()
        [handle] = node.state.snapshot.handles
        assert [str(address) for address in stored.block.held_by(handle)] == addresses(again)
        assert node.state.snapshot.handles[handle].counts == {stored.block.prefix: 1}


async def test_a_released_address_cools_down_before_it_is_given_out_again() -> None:
    async with running(kv := await etcd(pool("10.0.0.0/31", blockSize=31))) as node:
        await kv.commit(Txn((), (Put(keys.IPAM_CONFIG, ipam_config.to_json(IPAMConfig(cooldown=600))),)))
        await node.caught_up()
        first = await node.workloads.attach(request("a"))
        await node.workloads.detach("default", "a")
        second = await node.workloads.attach(request("b", 1))
        assert addresses(first) != addresses(second)
        with pytest.raises(Exhausted):
            await node.workloads.attach(request("c", 2))


async def test_the_pool_asked_for_serves_and_one_that_is_disabled_does_not() -> None:
    manual = pool("10.1.0.0/24", "manual", assignmentMode="Manual")
    off = pool("10.2.0.0/24", "off", disabled=True)
    async with running(await etcd(POOL, manual, off)) as node:
        assert addresses(await node.workloads.attach(request("a")))[0].startswith("10.0.")
        for number, text in enumerate(("manual", "10.1.0.0/24"), start=1):
            found = await node.workloads.attach(request(f"m{number}", number, pools=(text,)))
            assert addresses(found)[0].startswith("10.1.")
        with pytest.raises(ConfigError, match=r"pool off .* is disabled"):
            await node.workloads.attach(request("b", 3, pools=("off",)))


async def test_a_pool_for_some_namespaces_serves_those_alone() -> None:
    blue = pool("10.1.0.0/24", "blue", namespaceSelector="team == 'blue'", allowedUses=["Workload"])
    profile = Profile.model_validate(
        {"metadata": {"name": "kns.blue"}, "spec": {"labelsToApply": {"pcns.team": "blue"}}}
    )
    async with running(kv := await etcd(blue)) as node:
        await put(kv, profile)
        await node.caught_up()
        assert addresses(await node.workloads.attach(Request("web", "blue", netns())))[0].startswith("10.1.")
        with pytest.raises(ConfigError, match="namespaceSelector"):
            await node.workloads.attach(Request("web", "green", netns(1)))


async def test_a_reserved_address_is_not_given_out() -> None:
    reserved = IPReservation.model_validate(
        {"metadata": {"name": "r"}, "spec": {"reservedCIDRs": ["10.0.0.0/31"]}}
    )
    async with running(kv := await etcd(pool("10.0.0.0/30", blockSize=30))) as node:
        await put(kv, reserved)
        await node.caught_up()
        found = [addresses(await node.workloads.attach(request(f"w{n}", n))) for n in range(2)]
        assert found == [["10.0.0.2"], ["10.0.0.3"]]
        with pytest.raises(Exhausted, match="reserved"):
            await node.workloads.attach(request("w2", 2))


NODE_N2 = keys.ResourceKey("nodes", None, "n2").path
GARBAGE = {
    "another pool": keys.ResourceKey("ippools", None, "broken").path,
    "another node": NODE_N2,
    "a reservation": keys.ResourceKey("ipreservations", None, "r").path,
    "the namespace's profile": keys.ResourceKey("profiles", None, "kns.default").path,
    "the IPAM configuration": keys.IPAM_CONFIG,
    "the block it would claim": keys.BlockKey(next(walk(POOL, "n1"))).path,
    "the affinity to it": keys.AffinityKey("n1", next(walk(POOL, "n1"))).path,
    "the workload's handle": keys.HandleKey("fabricctl.default.n1-fabricctl-web-eth0").path,
    "another's endpoint": keys.ResourceKey("workloadendpoints", "default", "n1-cni-x-eth0").path,
    "the settings": keys.ResourceKey("felixconfigurations", None, "default").path,
}


@pytest.mark.parametrize("key", GARBAGE.values(), ids=GARBAGE)
async def test_beside_garbage_in_the_datastore_the_rest_works_and_the_garbage_is_named(key: str) -> None:
    async with running(kv := await etcd()) as node:
        await kv.commit(Txn((), (Put(key, "garbage"),)))
        await node.caught_up()
        assert [problem.split(": ")[0] for problem in report.status(node.state, 0.0)["problems"]] == [key]
        await upkeep.look_after(node.state, kv, {}, datetime.now(UTC))
        await node.workloads.attach(request("web"))
        await node.workloads.attach(request("db", 1))
        await node.workloads.detach("default", "web")
        assert len(node.links.links) == 1
        item = await kv.get(key)
        assert item is None or item.value == "garbage" or key in (GARBAGE["the affinity to it"],)


async def test_an_endpoint_that_cannot_be_read_holds_its_name_and_is_named() -> None:
    async with running(kv := await etcd()) as node:
        await node.workloads.attach(request("web"))
        [key] = await keys_below(kv, keys.resources("workloadendpoints"))
        await kv.commit(Txn((), (Put(key, "garbage"),)))
        await node.caught_up()
        with pytest.raises(Taken, match=r"endpoint of that name that cannot be read .*nothing was attached"):
            await node.workloads.attach(request("web"))
        await node.workloads.attach(request("db", 1))


async def test_garbage_for_the_node_itself_is_why_it_attaches_nothing() -> None:
    async with running(kv := await etcd()) as node:
        await kv.commit(Txn((), (Put(keys.ResourceKey("nodes", None, "n1").path, "garbage"),)))
        await node.caught_up()
        with pytest.raises(NotInSync, match=r"node n1 cannot be read: .*no JSON"):
            await node.workloads.attach(request("web"))


@pytest.mark.parametrize("name", ["", "Web", "-web", "web-", "a/b", "a" * 64, "w\n", "a..b"])
async def test_a_bad_name_is_refused(name: str) -> None:
    async with running(await etcd()) as node:
        with pytest.raises(ConfigError, match="nothing was"):
            await node.workloads.attach(request(name))
        await nothing_is_attached(node)


@pytest.mark.parametrize("name", ["a", "a-b--c", "0.1-x", "a" + "-" * 61 + "b"])
async def test_an_odd_but_good_name_is_taken(name: str) -> None:
    async with running(await etcd()) as node:
        await node.workloads.attach(request(name))
        await node.workloads.detach("default", name)
        await nothing_is_attached(node)


async def test_a_bad_label_is_refused_with_the_rule() -> None:
    async with running(await etcd()) as node:
        with pytest.raises(ConfigError, match='default/web: label key "no good"'):
            await node.workloads.attach(request("web", labels={"no good": "x"}))
        await nothing_is_attached(node)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/proc/self/ns/absent", "No such file"),
        ("/etc/passwd", "is not a network namespace"),
        ("/proc/self/ns", "is not a network namespace"),
    ],
)
async def test_a_path_that_is_no_namespace_is_refused(path: str, why: str) -> None:
    async with running(await etcd()) as node:
        with pytest.raises(ConfigError, match=why):
            await node.workloads.attach(Request("web", "default", path))
        await nothing_is_attached(node)


async def test_two_namespaces_may_have_a_workload_of_one_name() -> None:
    async with running(await etcd()) as node:
        one = await node.workloads.attach(Request("web", "blue", netns(0)))
        two = await node.workloads.attach(Request("web", "green", netns(1)))
        assert addresses(one) != addresses(two)
        assert len(node.links.links) == 2


async def test_the_same_request_again_never_undoes_what_was_attached_before() -> None:
    async with running(await etcd()) as node:
        endpoint = await node.workloads.attach(request("web"))
        del node.fib.routes[RouteKey(endpoint.spec.ip_networks[0])]
        await node.passes.run(node.state.compute, read_back=True)
        await node.links.remove([WEB])
        node.links.refuse[WEB] = errno.ENOBUFS
        await node.passes.run(node.state.compute, read_back=True)
        node.links.refuse[WEB] = errno.ENOBUFS
        with pytest.raises(DataplaneError, match="attached before, and the next pass retries"):
            await node.workloads.attach(request("web"))
        assert node.state.snapshot.endpoints("n1")


async def test_asked_for_from_another_pool_it_is_another_request() -> None:
    async with running(kv := await etcd()) as node:
        await put(kv, pool("10.9.0.0/24", "other", blockSize=28))
        await node.caught_up()
        held = addresses(await node.workloads.attach(request("web", pools=("other",))))
        for same in ((), ("other",), ("10.9.0.0/24",), ("pool", "other")):
            assert addresses(await node.workloads.attach(request("web", pools=same))) == held
        with pytest.raises(Taken, match=r"already attached .*nothing was changed"):
            await node.workloads.attach(request("web", pools=("pool",)))


async def test_a_node_without_its_resource_attaches_nothing() -> None:
    async with running(kv := await etcd()) as node:
        await kv.commit(Txn((), (Delete(keys.ResourceKey("nodes", None, "n1").path),)))
        await node.caught_up()
        with pytest.raises(NotInSync, match="node n1 is not registered"):
            await node.workloads.attach(request("web"))
        await nothing_is_attached(node)


async def test_no_two_resources_of_one_attach_have_one_uid() -> None:
    async with running(await etcd()) as node:
        await node.workloads.attach(Request("web", "blue", netns()))
        resources = [s.resource for found in node.state.snapshot.resources.values() for s in found.values()]
        uids = [resource.metadata.uid for resource in resources if resource.metadata.uid]
        assert len(uids) == len(set(uids)) == 2


async def test_an_attach_under_way_while_its_node_leaves_attaches_nothing() -> None:
    async with running(kv := await etcd()) as node:
        kv.flows.clear()
        await kv.commit(Txn((), (Delete(keys.ResourceKey("nodes", None, "n1").path),)))
        attach = asyncio.create_task(node.workloads.attach(request("web")))
        async with asyncio.timeout(5):
            await kv.refused.wait()
        kv.flows.set()
        with pytest.raises(NotInSync, match="node n1 is not registered"):
            await attach
        await nothing_is_attached(node)


async def test_the_same_request_again_may_carry_labels_that_every_endpoint_has() -> None:
    async with running(await etcd()) as node:
        asked = request("web", labels={"app": "web", "projectcalico.org/namespace": "default"})
        first = await node.workloads.attach(asked)
        assert (await node.workloads.attach(asked)).metadata.name == first.metadata.name


async def test_a_namespaces_profile_that_was_deleted_is_not_made_anew_while_endpoints_carry_it() -> None:
    key = keys.ResourceKey("profiles", None, "kns.default").path
    async with running(kv := await etcd()) as node:
        first = await node.workloads.attach(request("web"))
        assert endpoints.warnings(node.state.snapshot, "n1", request("web"), first) == ()
        await kv.commit(Txn((), (Delete(key),)))
        await node.caught_up()
        second = await node.workloads.attach(request("db", 1))
        assert await kv.get(key) is None
        [why] = endpoints.warnings(node.state.snapshot, "n1", request("db", 1), second)
        assert "Profile kns.default was deleted while endpoints carry it" in why
        for name in ("web", "db"):
            await node.workloads.detach("default", name)
        await node.workloads.attach(request("web"))  # the first of its namespace again
        assert await kv.get(key) is not None
