"""What a node puts right on each pass, and the addresses of its tunnels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from fabric.ipam import block as blocks
from fabric.ipam.block import Block, Owner
from fabric.ipam.config import IPAMConfig
from fabric.ipam.records import Affinity, Handle
from fabric.ipam.types import Address, Prefix
from fabric.ipam.upkeep import Observed, Step, Upkeep, observe, tunnel_addresses, upkeep
from fabric.ipam.view import Stored, View, after, joined
from fabric.model.base import Metadata
from fabric.model.ippool import IPPool

NOW = datetime(2026, 11, 21, 4, 16, 27, tzinfo=UTC)
A, B, C = (ip_network(f"10.0.0.{n}/30") for n in (0, 4, 8))


def pool(cidr: str = "10.0.0.0/24", name: str = "pool", **spec: object) -> IPPool:
    size = {"blockSize": 30} if ":" not in cidr else {}
    return IPPool.model_validate({"metadata": {"name": name}, "spec": {"cidr": cidr, **size, **spec}})


def empty(prefix: Prefix, node: str = "n1") -> Block:
    return blocks.new(prefix, node, NOW - timedelta(days=1))


def in_use(prefix: Prefix, node: str = "n1", handle: str = "web") -> Block:
    return blocks.allocate(empty(prefix, node), Owner(handle))[0]


def cooling(prefix: Prefix, since: datetime) -> Block:
    held = in_use(prefix)
    return blocks.release(held, prefix.network_address, "web", at=since, cooldown=60)


def view(*held: Block, pools: tuple[IPPool, ...] | None = None, **more: Any) -> View:
    """What n1 sees, in order: each block with its node's affinity, each handle with its counts."""
    handles: dict[str, dict[Prefix, int]] = {}
    for block in held:
        for owner in block.owners:
            if owner and owner.handle:
                counts = handles.setdefault(owner.handle, {})
                counts[block.prefix] = counts.get(block.prefix, 0) + 1
    return View(
        node="n1",
        labels={"rack": "a"},
        pools=(pool(),) if pools is None else pools,
        blocks={b.prefix: Stored(b, 7) for b in held},
        affinities={(b.node, b.prefix): Affinity("confirmed", 5) for b in held if b.node},
        **{"config": IPAMConfig(), "handles": {h: Handle(c, 6) for h, c in handles.items()}, **more},
    )


def ours(handle: str) -> bool:
    return handle.startswith("ours.")


def run(seen: View, observed: Observed | None = None, at: datetime = NOW) -> tuple[Upkeep, View]:
    """Return what the first pass puts right, and the view after as many as it takes: two, and then all is well."""
    first = upkeep(seen, observed or {}, at, ours)
    then = stored(stored(seen, first), upkeep(stored(seen, first), observed or {}, at, ours))
    assert upkeep(then, observed or {}, at, ours).steps == ()
    return first, then


def stored(seen: View, done: Upkeep) -> View:
    change = joined(step.change for step in done.steps)
    counts = {handle: Counter(known.counts) for handle, known in seen.handles.items()}
    for handle, rises in change.handles.items():
        counts.setdefault(handle, Counter()).update(rises)
    left = {handle: {p: n for p, n in of.items() if n} for handle, of in counts.items()}
    return replace(after(seen, change), handles={h: Handle(of, 8) for h, of in left.items() if of})


def records(seen: View) -> set[tuple[str, Prefix, str]]:
    return {(node, prefix, record.state) for (node, prefix), record in seen.affinities.items()}


def test_a_node_with_nothing_wrong_does_nothing() -> None:
    assert upkeep(view(in_use(A), empty(B), in_use(C, "n2")), {}, NOW, ours) == Upkeep()


# What a claim or a release that broke off leaves behind, ours or that of Calico's agent under our name.


@pytest.mark.parametrize("state", ["pending", "pendingDeletion", "confirmed"])
def test_an_affinity_without_its_block_goes(state: str) -> None:
    _, then = run(replace(view(), affinities={("n1", A): Affinity(state, 5)}))
    assert then.affinities == {}


@pytest.mark.parametrize("affinity", ["host:n2", "virtual:load-balancer", None])
def test_an_affinity_beside_a_block_of_anothers_goes_and_the_block_stays(affinity: str | None) -> None:
    theirs = replace(in_use(A), affinity=affinity)
    _, then = run(replace(view(theirs), affinities={("n1", A): Affinity("confirmed", 5)}))
    assert then.affinities == {}
    assert then.blocks[A].block == theirs


@pytest.mark.parametrize("record", [{}, {("n1", A): Affinity("pending", 5)}], ids=["no record", "pending"])
def test_a_block_of_ours_gets_its_affinity_confirmed_and_is_written_so_that_others_lose_the_race(
    record: dict[Any, Affinity],
) -> None:
    held = in_use(A)
    _, then = run(replace(view(held), affinities=record))
    assert records(then) == {("n1", A, "confirmed")}
    assert then.blocks[A].block.sequence == held.sequence + 1


def test_what_other_nodes_left_half_way_is_theirs() -> None:
    seen = replace(
        view(in_use(A, "n2")),
        affinities={("n2", A): Affinity("pending", 5), ("n3", B): Affinity("pending", 5)},
    )
    assert upkeep(seen, {}, NOW, ours).steps == ()


def test_an_empty_block_of_nobodys_goes() -> None:
    _, then = run(view(blocks.without_affinity(empty(A)), blocks.without_affinity(in_use(B))))
    assert set(then.blocks) == {B}


# Own blocks that are not wanted any more.


@pytest.mark.parametrize(
    ("pools", "why"),
    [
        ((), "in no pool"),
        ((pool(disabled=True),), "pool pool is disabled"),
        ((pool(nodeSelector="rack == 'b'"),), "pool pool does not select this node"),
    ],
)
def test_an_empty_block_goes_when_its_pool_does_and_one_in_use_stays(
    pools: tuple[IPPool, ...], why: str
) -> None:
    done, then = run(view(empty(A), in_use(B), pools=pools))
    assert [step.what for step in done.steps] == [f"block {A}: released, it is empty and {why}"]
    assert set(then.blocks) == {B}
    assert records(then) == {("n1", B, "confirmed")}


def test_a_pool_for_requests_only_keeps_the_nodes_empty_blocks() -> None:
    assert upkeep(view(empty(A), pools=(pool(assignmentMode="Manual"),)), {}, NOW, ours).steps == ()


@pytest.mark.parametrize(
    ("held", "gone"),
    [
        pytest.param([empty(A)], set(), id="the only one stays"),
        pytest.param([empty(A), empty(B), empty(C)], {B, C}, id="the first of several stays"),
        pytest.param([empty(A), in_use(B), empty(C)], {A, C}, id="none stays beside one in use"),
        pytest.param([empty(A), in_use(B, "n2")], set(), id="another node's does not count"),
    ],
)
def test_surplus_empty_blocks_go_when_they_stay_empty(held: list[Block], gone: set[Prefix]) -> None:
    seen = view(*held)
    first = observe(seen, {}, NOW)
    later = NOW + timedelta(seconds=60)
    assert upkeep(seen, observe(seen, first, NOW), NOW + timedelta(seconds=59), ours).steps == ()
    _, then = run(seen, observe(seen, first, later), later)
    assert {b.prefix for b in held} - set(then.blocks) == gone


def test_each_family_keeps_a_block() -> None:
    six = empty(ip_network("fd00::/122"))
    seen = view(in_use(A), six, pools=(pool(), pool("fd00::/64", "v6")))
    assert upkeep(seen, observe(seen, {}, NOW), NOW + timedelta(hours=1), ours).steps == ()


def test_a_block_that_was_used_in_between_is_observed_anew() -> None:
    seen = view(empty(A), in_use(B))
    first = observe(seen, {}, NOW)
    used, address = blocks.allocate(empty(A), Owner("web"))
    again = view(blocks.release(used, address, "web", at=NOW), in_use(B))
    later = NOW + timedelta(seconds=90)
    assert upkeep(again, observe(again, first, later), later, ours).steps == ()


# Cooled addresses.


def test_addresses_are_free_once_they_have_cooled_down() -> None:
    config = IPAMConfig(cooldown=60)
    seen = view(cooling(A, NOW), config=config, handles={})
    assert upkeep(seen, {}, NOW + timedelta(seconds=59), ours).steps == ()
    _, then = run(seen, at=NOW + timedelta(seconds=60))
    assert then.blocks[A].block.empty


def test_a_block_of_nobodys_goes_once_its_last_address_has_cooled_down() -> None:
    seen = view(blocks.without_affinity(cooling(A, NOW)), config=IPAMConfig(cooldown=60), handles={})
    _, then = run(seen, at=NOW + timedelta(seconds=60))
    assert then.blocks == {}


# Handles.


@pytest.mark.parametrize(
    ("counts", "want"),
    [
        pytest.param({}, {}, id="it has no counts"),
        pytest.param({B: 1}, {}, id="a block that is not there"),
        pytest.param({A: 1}, {}, id="a block that does not know it"),
    ],
)
def test_a_handle_of_ours_that_no_block_knows_goes(
    counts: dict[Prefix, int], want: dict[str, Handle]
) -> None:
    seen = replace(view(in_use(A)), handles={"ours.x": Handle(counts, 6), "web": Handle({A: 1}, 6)})
    first, then = run(seen)
    assert [set(step.change.handles) for step in first.steps] == [{"ours.x"}]
    assert set(then.handles) == {"web"}


@pytest.mark.parametrize("counts", [{A: 2}, {A: 1, B: 1}, {B: 1}, {}])
def test_a_handle_of_ours_says_what_the_blocks_say(counts: dict[Prefix, int]) -> None:
    seen = replace(view(in_use(A, handle="ours.x")), handles={"ours.x": Handle(counts, 6)} if counts else {})
    _, then = run(seen)
    assert then.handles["ours.x"].counts == {A: 1}


def test_others_handles_are_theirs_as_calico_writes_them_before_the_block() -> None:
    seen = replace(view(), handles={"k8s-pod-network.abc": Handle({A: 1}, 6)})
    assert upkeep(seen, {}, NOW, ours).steps == ()


# Tunnels.

IPIP = pool("10.1.0.0/24", "ipip", ipipMode="Always")
VXLAN = pool("10.2.0.0/24", "vxlan", vxlanMode="CrossSubnet")
SIX = pool("fd00::/64", "six", vxlanMode="Always")


def addresses(seen: View) -> dict[str, Address]:
    return {name: address for name, address in tunnel_addresses(seen).items() if address}


def test_a_node_gets_an_address_for_each_kind_of_tunnel_that_a_pool_of_its_own_wants() -> None:
    _, then = run(view(pools=(pool(), IPIP, VXLAN, SIX)))
    found = addresses(then)
    assert found["ipip"] in ip_network("10.1.0.0/24")
    assert found["vxlan"] in ip_network("10.2.0.0/24")
    assert found["vxlan-v6"] in ip_network("fd00::/64")
    assert set(then.handles) == {"ipip-tunnel-addr-n1", "vxlan-tunnel-addr-n1", "vxlan-v6-tunnel-addr-n1"}
    kinds = {o.handle: o.secondary for s in then.blocks.values() for o in s.block.owners if o}
    assert kinds["ipip-tunnel-addr-n1"] == {"node": "n1", "type": "ipipTunnelAddress"}


@pytest.mark.parametrize("spec", [{"nodeSelector": "rack == 'b'"}, {"ipipMode": "Never"}], ids=str)
def test_an_address_goes_when_no_pool_wants_the_tunnel_any_more(spec: dict[str, Any]) -> None:
    _, first = run(view(pools=(IPIP,)))
    _, then = run(replace(first, pools=(pool("10.1.0.0/24", "ipip", **{"ipipMode": "Always", **spec}),)))
    assert addresses(first)
    assert addresses(then) == {}
    assert then.handles == {}


def test_an_address_moves_when_its_pool_goes_and_another_wants_the_tunnel() -> None:
    _, first = run(view(pools=(IPIP,)))
    other = pool("10.3.0.0/24", "other", ipipMode="CrossSubnet")
    _, then = run(replace(first, pools=(other,)))
    assert addresses(then)["ipip"] in other.spec.cidr
    assert first.blocks.keys().isdisjoint(then.blocks)


def test_an_address_stays_where_it_is_while_its_pool_wants_it() -> None:
    _, first = run(view(pools=(IPIP,)))
    before = pool("10.0.0.0/24", "before", ipipMode="Always")
    assert upkeep(replace(first, pools=(before, IPIP)), {}, NOW, ours).steps == ()


def test_a_disabled_pool_gives_no_address_and_takes_none_from_those_who_still_use_its_tunnels() -> None:
    closed = pool("10.1.0.0/24", "ipip", ipipMode="Always", disabled=True)
    assert run(view(pools=(closed,)))[0].steps == ()
    _, first = run(view(pools=(IPIP,)))
    assert upkeep(replace(first, pools=(closed,)), {}, NOW, ours).steps == ()


def test_where_ipip_may_fall_back_on_vxlan_a_node_gets_an_end_of_both_and_one_that_lacks_ipip_of_vxlan() -> (
    None
):
    fallback = IPIP.model_copy(
        update={"metadata": Metadata(name="ipip", annotations={"fabricctl.io/tunnel-fallback": "vxlan"})}
    )
    _, first = run(view(pools=(fallback,)))
    assert set(addresses(first)) == {"ipip", "vxlan"}
    then = stored(first, upkeep(first, {}, NOW, ours, frozenset({"ipip"})))
    assert set(addresses(then)) == {"vxlan"}


def test_an_address_that_no_pool_wants_any_more_stays_for_as_long_as_the_device_that_has_it() -> None:
    _, first = run(view(pools=(IPIP,)))
    held = addresses(first)["ipip"]
    changed = replace(first, pools=(pool("10.1.0.0/24", "ipip", vxlanMode="Always"),))
    then = stored(changed, upkeep(changed, {}, NOW, ours, standing={held}))
    assert set(addresses(then)) == {"ipip", "vxlan"}
    assert set(addresses(stored(then, upkeep(then, {}, NOW, ours)))) == {"vxlan"}


def test_an_address_stays_where_its_pool_wants_no_tunnel_any_more_and_another_does() -> None:
    _, first = run(view(pools=(IPIP,)))
    changed, other = pool("10.1.0.0/24", "ipip"), pool("10.3.0.0/24", "other", ipipMode="Always")
    assert upkeep(replace(first, pools=(changed, other)), {}, NOW, ours).steps == ()


def test_two_tunnels_out_of_one_block_are_one_transaction() -> None:
    _, then = run(view(pools=(pool("10.1.0.0/24", "a", ipipMode="Always"),)))
    done, then = run(replace(then, pools=(pool("10.1.0.0/24", "a", vxlanMode="Always"),)))
    [step] = done.steps
    assert "vxlan tunnel: address" in step.what
    assert set(addresses(then)) == {"vxlan"}


def test_a_pool_that_allows_no_tunnels_is_a_problem_that_is_named_and_the_rest_goes_on() -> None:
    closed = pool("10.1.0.0/24", "closed", ipipMode="Always", allowedUses=["Workload"])
    done, then = run(view(pools=(closed, VXLAN)))
    [problem] = done.problems
    assert problem.startswith("ipip tunnel: node n1: none of the pools asked for (closed) has IPv4 addresses")
    assert set(addresses(then)) == {"vxlan"}


def test_steps_never_write_one_key_twice() -> None:
    seen = replace(
        view(
            empty(A),
            in_use(B),
            cooling(C, NOW),
            pools=(pool(ipipMode="Always"),),
            config=IPAMConfig(cooldown=60),
        ),
        affinities={("n1", A): Affinity("pending", 5), ("n1", C): Affinity("pending", 5)},
    )
    steps = upkeep(seen, {}, NOW + timedelta(minutes=2), ours).steps
    _no_key_twice(steps)
    assert len(steps) > 2


def test_a_tunnels_address_whose_handle_is_lost_is_one_address_again_in_the_end() -> None:
    lost = replace(view(in_use(A, handle="ipip-tunnel-addr-n1"), pools=(IPIP,)), handles={})
    _no_key_twice(upkeep(lost, {}, NOW, ours).steps)
    then = lost
    for _ in range(4):
        then = stored(then, upkeep(then, {}, NOW, ours))
    held = [o.handle for s in then.blocks.values() for o in s.block.owners if o]
    assert held == ["ipip-tunnel-addr-n1"]
    assert addresses(then)["ipip"] in IPIP.spec.cidr


def _no_key_twice(steps: Sequence[Step]) -> None:
    touched = [key for s in steps for key in (*s.change.blocks, *s.change.affinities, *s.change.handles)]
    assert len(touched) == len(set(touched))


def test_an_address_that_a_workload_holds_is_no_tunnels() -> None:
    assert addresses(view(in_use(A), pools=())) == {}
    assert ip_address("10.0.0.0") in in_use(A).held_by("web")
