"""Which address a workload gets; see calico-semantics §§5 and 6."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from fabric.errors import ConfigError, Exhausted, NotFound, Taken
from fabric.ipam import block as blocks
from fabric.ipam.assign import (
    Assignment,
    Demand,
    automatic,
    candidate_pools,
    exact,
    hand_back,
    own_blocks,
    release,
    walk,
)
from fabric.ipam.block import Block, Owner
from fabric.ipam.config import IPAMConfig
from fabric.ipam.records import Affinity
from fabric.ipam.types import Prefix
from fabric.ipam.view import Change, Stored, View, after, joined
from fabric.model.ippool import IPPool

WEB = Demand(Owner("web", {"node": "n1"}))
NOW = datetime(2026, 11, 21, 4, 16, 27, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=1)


def pool(cidr: str, name: str = "pool", **spec: object) -> IPPool:
    size = {"blockSize": 30} if ":" not in cidr else {}
    return IPPool.model_validate({"metadata": {"name": name}, "spec": {"cidr": cidr, **size, **spec}})


def full(block: Block) -> Block:
    while block.free:
        block, _ = blocks.allocate(block, Owner("other", {"node": "n2"}))
    return block


def in_use(block: Block) -> Block:
    return blocks.allocate(block, Owner("other"))[0]


def block(prefix: str, node: str = "n1", at: datetime = LONG_AGO) -> Block:
    return blocks.new(ip_network(prefix), node, at)


def view(pools: list[IPPool], *held: Block, state: str = "confirmed", **more: Any) -> View:
    """What n1 sees: the blocks at revision 7, their nodes' affinities at 5, n1's in `state`."""
    records = {
        (b.node, b.prefix): Affinity(state if b.node == "n1" else "confirmed", 5) for b in held if b.node
    }
    return View(
        node="n1",
        labels={"rack": "a"},
        pools=tuple(pools),
        blocks={b.prefix: Stored(b, 7) for b in held},
        affinities=records,
        **more,
    )


def auto(seen: View, version: int = 4, demand: Demand = WEB) -> Assignment:
    return automatic(seen, version, demand, NOW)


def prefix_of(made: Assignment) -> Prefix:
    [prefix] = made.change.blocks
    return prefix


def test_an_own_block_serves_before_a_new_one_is_claimed() -> None:
    made = auto(view([pool("10.0.0.0/28")], block("10.0.0.8/30")))
    [(after_it, revision)] = made.change.blocks.values()
    assert made.address == ip_address("10.0.0.8")
    assert after_it is not None
    assert after_it.held_by("web") == (made.address,)
    assert (revision, made.change.affinities) == (7, {})
    assert made.change.handles == {"web": {ip_network("10.0.0.8/30"): 1}}


def test_a_full_own_block_leads_to_a_claim_of_one_nobody_has() -> None:
    made = auto(view([pool("10.0.0.0/29")], full(block("10.0.0.4/30"))))
    prefix = ip_network("10.0.0.0/30")
    [(claimed, revision)] = made.change.blocks.values()
    assert claimed is not None
    assert (claimed.prefix, claimed.node, claimed.claimed_at, revision) == (
        prefix,
        "n1",
        "2026-11-21T04:16:27Z",
        0,
    )
    assert made.change.affinities == {("n1", prefix): (True, 0)}


def test_a_claim_that_somebody_has_only_begun_stops_nobody() -> None:
    prefix = ip_network("10.0.0.0/30")
    seen = replace(view([pool("10.0.0.0/30")]), affinities={("n2", prefix): Affinity("pending", 9)})
    assert auto(seen).change.affinities == {("n1", prefix): (True, 0)}


def test_an_own_affinity_left_without_its_block_is_claimed_over_at_its_revision() -> None:
    prefix = ip_network("10.0.0.0/30")
    seen = replace(view([pool("10.0.0.0/30")]), affinities={("n1", prefix): Affinity("pending", 9)})
    assert auto(seen).change.affinities == {("n1", prefix): (True, 9)}


@pytest.mark.parametrize("state", ["pending", "pendingDeletion"])
def test_a_block_whose_affinity_is_not_confirmed_is_not_announced_and_confirmed_by_its_first_use(
    state: str,
) -> None:
    seen = view([pool("10.0.0.0/29")], block("10.0.0.0/30"), state=state)
    assert own_blocks(seen) == ()
    made = auto(seen)
    assert made.change.affinities == {("n1", ip_network("10.0.0.0/30")): (True, 5)}
    assert [s.block.prefix for s in own_blocks(after(seen, made.change))] == [ip_network("10.0.0.0/30")]


def test_another_nodes_block_is_left_alone_while_there_is_one_to_claim() -> None:
    assert prefix_of(auto(view([pool("10.0.0.0/29")], block("10.0.0.0/30", "n2")))) == ip_network(
        "10.0.0.4/30"
    )


def test_an_own_block_outside_every_candidate_pool_is_not_used() -> None:
    made = auto(view([pool("10.0.0.0/30")], block("10.9.0.0/30")))
    assert made.address == ip_address("10.0.0.0")


def test_the_next_pool_serves_when_the_first_is_full() -> None:
    pools = [pool("10.1.0.0/30", "b"), pool("10.0.0.0/30", "a")]
    assert auto(view(pools)).address == ip_address("10.0.0.0")
    assert auto(view(pools, full(block("10.0.0.0/30")))).address == ip_address("10.1.0.0")


# What is left when nothing is free and nothing unclaimed: another node's empty block, then its spare addresses.


def test_an_empty_block_of_another_node_is_taken_over_with_its_affinity() -> None:
    theirs = block("10.0.0.4/30", "n2")
    seen = view([pool("10.0.0.0/29")], full(block("10.0.0.0/30")), theirs)
    made = auto(seen)
    [(taken, revision)] = made.change.blocks.values()
    assert taken is not None
    assert (taken.node, taken.claimed_at, revision) == ("n1", "2026-11-21T04:16:27Z", 7)
    assert taken.sequence > theirs.sequence
    assert made.change.affinities == {("n1", theirs.prefix): (True, 0), ("n2", theirs.prefix): (False, 5)}


@pytest.mark.parametrize(("seconds", "taken"), [(59, False), (60, True)])
def test_another_nodes_block_is_empty_once_its_last_address_has_cooled_down(
    seconds: int, taken: bool
) -> None:
    theirs = in_use(block("10.0.0.0/30", "n2"))
    theirs = blocks.release(
        theirs, ip_address("10.0.0.0"), "other", at=NOW - timedelta(seconds=seconds), cooldown=60
    )
    seen = view([pool("10.0.0.0/30")], theirs, config=IPAMConfig(strict_affinity=True, cooldown=60))
    if taken:
        [(now, revision)] = auto(seen).change.blocks.values()
        assert now
        assert (now.node, revision) == ("n1", 7)
    else:
        with pytest.raises(Exhausted):
            auto(seen)


def test_a_claim_holds_only_while_its_pool_stands_as_read_and_a_block_that_is_there_needs_no_pool() -> None:
    pools = [pool("10.0.0.0/30", "a"), pool("10.1.0.0/30", "b")]
    revisions = {"a": 3, "b": 4}
    new = auto(view(pools, full(block("10.0.0.0/30")), pool_revisions=revisions))
    taken = auto(
        view(pools, full(block("10.0.0.0/30")), block("10.1.0.0/30", "n2"), pool_revisions=revisions)
    )
    wanted = exact(view(pools, pool_revisions=revisions), ip_address("10.1.0.1"), WEB, NOW)
    for made in (new, taken, wanted):
        assert made.change.pools == joined([Change(), made.change]).pools == {"b": 4}
    for held in (block("10.0.0.0/30"), in_use(block("10.0.0.0/30", "n2"))):
        alone = view(pools[:1], held, pool_revisions=revisions)
        assert auto(alone).change.pools == exact(alone, ip_address("10.0.0.3"), WEB, NOW).change.pools == {}


def test_the_numbers_of_a_block_taken_over_go_on_from_those_it_had() -> None:
    ahead = block("10.0.0.0/30", "n2", NOW - timedelta(seconds=60))
    ahead = replace(ahead, sequence=ahead.sequence + 10**12)  # that node's clock is fast
    [(taken, _)] = auto(view([pool("10.0.0.0/30")], ahead)).change.blocks.values()
    assert taken is not None
    assert min(taken.sequences.values()) > ahead.sequence


@pytest.mark.parametrize(
    "theirs",
    [
        pytest.param(block("10.0.0.4/30", "n2", NOW - timedelta(seconds=59)), id="just claimed"),
        pytest.param(in_use(block("10.0.0.4/30", "n2")), id="in use"),
        pytest.param(
            replace(block("10.0.0.4/30"), affinity="virtual:load-balancer"), id="of a load balancer"
        ),
        pytest.param(blocks.without_affinity(block("10.0.0.4/30")), id="of nobody"),
    ],
)
def test_from_any_other_block_one_address_is_borrowed_and_its_affinity_stays(theirs: Block) -> None:
    made = auto(view([pool("10.0.0.0/29")], full(block("10.0.0.0/30")), theirs))
    [(lent, revision)] = made.change.blocks.values()
    assert lent is not None
    assert (lent.affinity, revision, made.change.affinities) == (theirs.affinity, 7, {})
    assert made.address in theirs.prefix


def test_borrowing_goes_round_the_pool_from_the_nodes_own_place() -> None:
    whole = pool("10.0.0.0/27")
    others = [in_use(block(str(prefix), "n2")) for prefix in ip_network("10.0.0.0/27").subnets(new_prefix=30)]
    assert prefix_of(auto(view([whole], *others))) == next(walk(whole, "n1"))


def test_an_old_block_of_another_size_lends_too() -> None:
    old = in_use(block("10.0.0.0/29", "n2"))
    assert prefix_of(auto(view([pool("10.0.0.0/29")], old))) == old.prefix


@pytest.mark.parametrize("affinity", ["host:n2", None])
def test_with_strict_affinity_nothing_is_borrowed(affinity: str | None) -> None:
    rest = replace(in_use(block("10.0.0.4/30", "n2")), affinity=affinity)
    strict = view([pool("10.0.0.0/29")], full(block("10.0.0.0/30")), rest, config=IPAMConfig(True))
    with pytest.raises(Exhausted, match="strict affinity forbids to borrow; nothing was allocated"):
        auto(strict)
    with pytest.raises(Taken, match=r"10\.0\.0\.4/30 is (of host:n2|nobody's), and strict affinity"):
        exact(strict, ip_address("10.0.0.6"), WEB, NOW)


def test_without_automatic_claims_a_node_lives_on_the_blocks_it_has() -> None:
    manual = IPAMConfig(strict_affinity=True, auto_allocate=False)
    assert auto(view([pool("10.0.0.0/29")], block("10.0.0.4/30"), config=manual)).address
    with pytest.raises(Exhausted, match=r"auto_allocate_blocks is off; .*patch ipamconfiguration default"):
        auto(view([pool("10.0.0.0/29")], full(block("10.0.0.4/30")), config=manual))


@pytest.mark.parametrize(("configured", "limit"), [(0, 20), (3, 3)])
def test_at_the_limit_nothing_is_claimed_and_nothing_borrowed(configured: int, limit: int) -> None:
    config = IPAMConfig(max_blocks=configured)
    prefixes = [str(p) for p in ip_network("10.0.0.0/24").subnets(new_prefix=30)]
    mine = [full(block(prefix)) for prefix in prefixes[:limit]]
    lender = in_use(block(prefixes[-1], "n2"))
    with pytest.raises(
        Exhausted, match=f"its {limit} IPv4 blocks in .* {limit} is the most .*nothing is borrowed"
    ):
        auto(view([pool("10.0.0.0/24")], *mine, lender, config=config))
    assert auto(view([pool("10.0.0.0/24")], *mine[1:], lender, config=config)).change.affinities


def test_an_exact_address_claims_its_block_at_the_limit_too() -> None:
    seen = view([pool("10.0.0.0/24")], block("10.0.0.0/30"), config=IPAMConfig(True, max_blocks=1))
    assert exact(seen, ip_address("10.0.0.9"), WEB, NOW).change.affinities


def test_blocks_in_pools_that_do_not_count_here_do_not_count_to_the_limit() -> None:
    elsewhere = [full(block(f"10.9.0.{4 * n}/30")) for n in range(3)]
    seen = view([pool("10.0.0.0/24")], *elsewhere, config=IPAMConfig(strict_affinity=True, max_blocks=3))
    assert auto(seen).change.affinities


def test_exhaustion_says_which_pools_were_looked_at_and_what_to_do() -> None:
    seen = view([pool("10.0.0.0/29", "small")], full(block("10.0.0.0/30")), full(block("10.0.0.4/30", "n2")))
    with pytest.raises(Exhausted, match=r"node n1: no address left in small \(10\.0\.0\.0/29\).*add a pool"):
        auto(seen)


@pytest.mark.parametrize("old", ["10.0.0.0/29", "10.0.0.2/31"])
def test_a_block_of_another_size_left_by_an_older_pool_is_never_claimed_over(old: str) -> None:
    theirs = full(block(old, "n2"))
    assert not prefix_of(auto(view([pool("10.0.0.0/28")], theirs))).overlaps(ip_network(old))
    with pytest.raises(Exhausted):
        auto(view([pool("10.0.0.0/30")], theirs))


@pytest.mark.timeout(10)  # a node answers nothing else meanwhile; looking at each pair would take minutes
def test_thousands_of_old_blocks_and_of_small_reservations_are_looked_through_at_once() -> None:
    old = [full(block(str(prefix))) for prefix in ip_network("10.0.0.0/15").subnets(new_prefix=26)]
    kept = tuple(ip_network("10.2.0.0/15").subnets(new_prefix=28))
    pools = [pool("10.0.0.0/15", "a", blockSize=32), pool("10.2.0.0/15", "b")]
    with pytest.raises(Exhausted):
        auto(view(pools, *old, reserved=kept, config=IPAMConfig(max_blocks=4000)))


# Reservations.


def test_reserved_addresses_are_passed_over() -> None:
    kept = (ip_network("10.0.0.0/31"), ip_network("10.0.0.2/32"))
    assert auto(view([pool("10.0.0.0/30")], block("10.0.0.0/30"), reserved=kept)).address == ip_address(
        "10.0.0.3"
    )
    assert auto(view([pool("10.0.0.0/30")], reserved=kept)).address == ip_address("10.0.0.3")


def test_a_wholly_reserved_block_is_neither_used_nor_claimed_nor_taken_over() -> None:
    kept = (ip_network("10.0.0.0/29"),)
    seen = view([pool("10.0.0.0/28")], block("10.0.0.0/30"), block("10.0.0.4/30", "n2"), reserved=kept)
    assert prefix_of(auto(seen)) in {ip_network("10.0.0.8/30"), ip_network("10.0.0.12/30")}
    with pytest.raises(Exhausted, match="reserved addresses left out"):
        auto(replace(seen, pools=(pool("10.0.0.0/29"),)))


@pytest.mark.parametrize(("first", "rest"), [("10.0.0.0/30", "10.0.0.4/30"), ("10.0.0.4/30", "10.0.0.0/30")])
def test_small_reservations_that_fill_a_block_together_keep_it_from_being_claimed(
    first: str, rest: str
) -> None:
    kept = tuple(ip_network(first).subnets())
    assert auto(view([pool("10.0.0.0/29")], reserved=kept)).address in ip_network(rest)
    theirs = block(first, "n2")
    assert auto(view([pool("10.0.0.0/29")], theirs, reserved=kept)).address in ip_network(rest)


def test_half_an_ipv6_pool_reserved_is_not_walked_through() -> None:
    for half in ip_network("fd00::/64").subnets():
        made = auto(view([pool("fd00::/64")], reserved=(half,)), 6)
        assert made.address not in half


def test_an_exact_address_may_be_a_reserved_one() -> None:
    seen = view([pool("10.0.0.0/28")], reserved=(ip_network("10.0.0.0/28"),))
    assert exact(seen, ip_address("10.0.0.5"), WEB, NOW).address == ip_address("10.0.0.5")


# Pools.


@pytest.mark.parametrize(
    ("spec", "serves"),
    [
        pytest.param({}, True, id="as it comes"),
        pytest.param({"nodeSelector": "rack == 'a'"}, True, id="nodeSelector matches"),
        pytest.param({"nodeSelector": "rack == 'b'"}, False, id="nodeSelector does not"),
        pytest.param({"disabled": True}, False, id="disabled"),
        pytest.param({"assignmentMode": "Manual"}, False, id="Manual"),
        pytest.param({"allowedUses": ["Tunnel"]}, False, id="for tunnels only"),
        pytest.param({"allowedUses": ["Workload"]}, True, id="for workloads only"),
        pytest.param(
            {"namespaceSelector": "team == 'x'", "allowedUses": ["Workload"]}, True, id="namespace matches"
        ),
        pytest.param(
            {"namespaceSelector": "team == 'y'", "allowedUses": ["Workload"]}, False, id="namespace does not"
        ),
    ],
)
def test_which_pools_serve_automatically(spec: dict[str, Any], serves: bool) -> None:
    seen = view([pool("10.0.0.0/28", **spec)])
    demand = replace(WEB, namespace_labels={"team": "x"})
    assert bool(candidate_pools(seen, 4, demand)) == serves
    if not serves:
        with pytest.raises(ConfigError, match="node n1: no IPv4 pool may serve it"):
            auto(seen, demand=demand)


def test_a_pool_that_is_being_deleted_serves_nobody() -> None:
    going = IPPool.model_validate(
        {
            "metadata": {"name": "p", "deletionTimestamp": "2026-11-21T04:16:27Z"},
            "spec": {"cidr": "10.0.0.0/26"},
        }
    )
    assert candidate_pools(view([going]), 4, WEB) == ()


@pytest.mark.parametrize("asked", ["b", "10.1.0.0/28"])
@pytest.mark.parametrize(
    "spec",
    [{}, {"assignmentMode": "Manual"}, {"nodeSelector": "rack == 'b'"}],
    ids=["open", "manual", "others"],
)
def test_a_pool_that_is_asked_for_serves_whomever_it_selects(asked: str, spec: dict[str, Any]) -> None:
    seen = view([pool("10.0.0.0/28", "a"), pool("10.1.0.0/28", "b", **spec)], block("10.0.0.0/30"))
    assert auto(seen, demand=replace(WEB, pools=(asked,))).address in ip_network("10.1.0.0/28")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("nope", r'pool "nope": there is no such pool \(pools: a \(10\.0\.0\.0/28\)'),
        ("10.9.0.0/16", r'pool "10\.9\.0\.0/16": there is no such pool'),
        ("off", r"pool off \(10\.2\.0\.0/28\): is disabled"),
        ("v6", r"none of the pools asked for \(v6\) has IPv4 addresses for Workload"),
        ("tunnels", r"none of the pools asked for \(tunnels\) has IPv4 addresses for Workload"),
    ],
)
def test_a_pool_that_cannot_serve_and_is_asked_for_is_an_error(asked: str, why: str) -> None:
    pools = [
        pool("10.0.0.0/28", "a"),
        pool("10.2.0.0/28", "off", disabled=True),
        pool("fd00::/120", "v6"),
        pool("10.3.0.0/28", "tunnels", allowedUses=["Tunnel"]),
    ]
    with pytest.raises(ConfigError, match=why):
        auto(view(pools), demand=replace(WEB, pools=(asked,)))


def test_families_do_not_mix() -> None:
    seen = view([pool("10.0.0.0/28"), pool("fd00::/120", "v6")])
    assert auto(seen, 6).address in ip_network("fd00::/120")
    assert auto(seen, 4).address in ip_network("10.0.0.0/28")


@pytest.mark.parametrize("cidr", ["10.0.0.7/32", "fd00::7/128"])
def test_a_pool_may_be_one_block_of_one_address(cidr: str) -> None:
    one = pool(cidr, blockSize=int(cidr.partition("/")[2]))
    made = auto(view([one]), ip_network(cidr).version)
    assert made.address == ip_network(cidr).network_address
    with pytest.raises(Exhausted):
        auto(after(view([one]), made.change), ip_network(cidr).version)


# Exact addresses.


@pytest.mark.parametrize(
    ("spec", "taken"),
    [({"disabled": True}, False), ({"allowedUses": ["Tunnel"]}, False), ({"assignmentMode": "Manual"}, True)],
)
def test_an_exact_address_may_come_from_a_manual_pool_but_not_from_a_closed_one(
    spec: dict[str, Any], taken: bool
) -> None:
    seen = view([pool("10.0.0.0/28", **spec)])
    if taken:
        assert exact(seen, ip_address("10.0.0.5"), WEB, NOW).address == ip_address("10.0.0.5")
    else:
        with pytest.raises(ConfigError, match="in no enabled pool for Workload"):
            exact(seen, ip_address("10.0.0.5"), WEB, NOW)


def test_an_exact_address_in_no_pool_names_the_pools() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1: in no enabled pool .*10\.0\.0\.0/28"):
        exact(view([pool("10.0.0.0/28")]), ip_address("192.0.2.1"), WEB, NOW)


@pytest.mark.parametrize(
    ("held", "claims", "affinity"),
    [
        pytest.param([block("10.0.0.4/30")], False, "host:n1", id="in an own block"),
        pytest.param(
            [block("10.0.0.4/30", "n2")], False, "host:n2", id="borrowed: that node keeps its block"
        ),
        pytest.param([blocks.without_affinity(block("10.0.0.4/30"))], False, None, id="in nobody's block"),
        pytest.param([block("10.0.0.0/29", "n2")], False, "host:n2", id="in a block of another size"),
        pytest.param([], True, "host:n1", id="where there is no block yet"),
    ],
)
def test_an_exact_address(held: list[Block], claims: bool, affinity: str | None) -> None:
    made = exact(view([pool("10.0.0.0/28")], *held), ip_address("10.0.0.5"), WEB, NOW)
    [(stored, revision)] = made.change.blocks.values()
    assert stored is not None
    assert stored.held_by("web") == (ip_address("10.0.0.5"),)
    assert (bool(made.change.affinities), revision, stored.affinity) == (claims, 7 if held else 0, affinity)


def test_an_exact_address_that_is_held_is_refused() -> None:
    with pytest.raises(Taken, match="held by other on n2"):
        exact(view([pool("10.0.0.0/28")], full(block("10.0.0.4/30"))), ip_address("10.0.0.5"), WEB, NOW)


def test_an_exact_address_in_a_block_whose_deletion_is_announced_is_refused() -> None:
    going = replace(block("10.0.0.4/30"), deleted=True)
    with pytest.raises(Taken, match=r"its block 10\.0\.0\.4/30 is being deleted; nothing was allocated"):
        exact(view([pool("10.0.0.0/28")], going), ip_address("10.0.0.5"), WEB, NOW)


def test_an_exact_address_never_claims_over_a_block_of_another_size() -> None:
    seen = view([pool("10.0.0.0/16", blockSize=24)], block("10.0.0.64/26"))
    with pytest.raises(Taken, match=r"10\.0\.0\.0/24, but 10\.0\.0\.64/26 of an older block size"):
        exact(seen, ip_address("10.0.0.1"), WEB, NOW)


# Release, cooldown, handing back.


def released(held: Block, cooldown: int = 0) -> tuple[View, Change]:
    seen = view([pool("10.0.0.0/30")], held, config=IPAMConfig(cooldown=cooldown))
    address = ip_address("10.0.0.0")
    return seen, release(seen, address, "other", at=NOW)


def test_what_is_released_falls_from_its_handle_and_its_block_stays() -> None:
    seen, change = released(in_use(block("10.0.0.0/30")))
    prefix = ip_network("10.0.0.0/30")
    assert change.handles == {"other": {prefix: -1}}
    assert after(seen, change).blocks[prefix].block.empty


def test_a_block_of_nobodys_goes_with_its_last_address() -> None:
    orphan = blocks.without_affinity(in_use(block("10.0.0.0/30")))
    seen, change = released(orphan)
    assert after(seen, change).blocks == {}
    assert after(seen, released(orphan, cooldown=60)[1]).blocks  # its addresses cool down first


def test_what_cools_down_is_freed_by_the_next_write_of_its_block() -> None:
    seen, change = released(full(block("10.0.0.0/30")), cooldown=60)
    cooling = after(seen, change)
    assert change.handles == {"other": {ip_network("10.0.0.0/30"): -1}}
    with pytest.raises(Exhausted, match=r"are full \(released and still in cooldown: 1, for 50 s at most\)"):
        automatic(cooling, 4, WEB, NOW + timedelta(seconds=10))
    with pytest.raises(Taken, match="still cooling down"):
        exact(cooling, ip_address("10.0.0.0"), WEB, NOW)
    later = NOW + timedelta(seconds=60)
    assert automatic(cooling, 4, WEB, later).address == ip_address("10.0.0.0")
    assert exact(cooling, ip_address("10.0.0.0"), WEB, later).address == ip_address("10.0.0.0")


@pytest.mark.parametrize(
    ("node", "strict"), [("n1", True), ("n2", False)], ids=["of an own block", "borrowed"]
)
def test_what_has_cooled_down_is_given_out(node: str, strict: bool) -> None:
    lent = blocks.release(
        full(block("10.0.0.0/31", node)),
        ip_address("10.0.0.1"),
        "other",
        at=NOW - timedelta(seconds=60),
        cooldown=60,
    )
    seen = view([pool("10.0.0.0/31", blockSize=31)], lent, config=IPAMConfig(strict, cooldown=60))
    assert auto(seen).address == ip_address("10.0.0.1")
    with pytest.raises(Exhausted):
        automatic(seen, 4, WEB, NOW - timedelta(seconds=1))


def test_an_address_of_no_block_is_held_by_nobody() -> None:
    with pytest.raises(NotFound, match="in no block"):
        release(view([pool("10.0.0.0/30")]), ip_address("10.0.0.1"), "web", at=NOW)


@pytest.mark.parametrize(
    ("held", "left"),
    [
        pytest.param(block("10.0.0.0/30"), None, id="an empty block goes"),
        pytest.param(in_use(block("10.0.0.0/30")), "nobody's", id="one in use stays, with no node"),
        pytest.param(in_use(block("10.0.0.0/30", "n2")), "host:n2", id="another's is left alone"),
    ],
)
def test_handing_back(held: Block, left: str | None) -> None:
    prefix = held.prefix
    seen = replace(
        view([pool("10.0.0.0/30")], held),
        affinities={("n1", prefix): Affinity("confirmed", 5), ("n2", prefix): Affinity("confirmed", 6)},
    )
    then = after(seen, hand_back(seen, "n1", prefix))
    assert ("n1", prefix) not in then.affinities
    assert ("n2", prefix) in then.affinities
    assert [s.block.affinity or "nobody's" for s in then.blocks.values()] == ([left] if left else [])


# Several decisions in one transaction.


def test_decisions_made_one_after_the_other_join_into_one_that_is_guarded_by_what_was_read() -> None:
    seen = view([pool("10.0.0.0/29")], block("10.0.0.0/30"))
    changes: list[Change] = []
    addresses = []
    for name in ("a", "b", "c", "d", "e"):
        now = after(seen, joined(changes))
        made = automatic(now, 4, Demand(Owner(name)), NOW)
        changes.append(made.change)
        addresses.append(made.address)
    changes.append(release(after(seen, joined(changes)), addresses[1], "b", at=NOW))
    whole = joined(changes)
    assert len(set(addresses)) == 5
    old, new = ip_network("10.0.0.0/30"), ip_network("10.0.0.4/30")
    assert {prefix: revision for prefix, (_, revision) in whole.blocks.items()} == {old: 7, new: 0}
    assert whole.affinities == {("n1", new): (True, 0)}
    assert whole.handles == {
        "a": {old: 1}, "b": {old: 0}, "c": {old: 1}, "d": {old: 1}, "e": {new: 1},
    }  # fmt: skip
    then = after(seen, whole)
    assert then.blocks[old].block.held_by("a") == (addresses[0],)
    assert then.blocks[old].block.held_by("b") == ()
    assert then.confirmed(new)


@pytest.mark.parametrize(("cidr", "count"), [("10.0.0.0/26", 16), ("fd00::/116", 64), ("10.0.0.0/30", 1)])
def test_the_circle_visits_each_block_of_the_pool_once(cidr: str, count: int) -> None:
    around = list(walk(pool(cidr), "n1"))
    assert len(set(around)) == len(around) == count
    assert all(prefix.subnet_of(ip_network(cidr)) for prefix in around)  # type: ignore[arg-type]
    assert around == list(walk(pool(cidr), "n1"))


@pytest.mark.parametrize(
    "reserved",
    [
        "10.0.0.0/27",
        "10.0.0.4/30",
        "10.0.0.48/28",
        "10.0.0.5/32",
        "10.0.0.0/8",
        "fd00::/8",
        "10.0.0.16/28 10.0.0.20/30 10.0.0.4/30",
    ],
)
@pytest.mark.parametrize("node", ["n1", "n2", "n3"])
def test_the_circle_less_a_reservation_is_the_circle_without_the_blocks_within(
    reserved: str, node: str
) -> None:
    whole, kept = pool("10.0.0.0/26"), [ip_network(r) for r in reserved.split()]

    def within(prefix: Prefix) -> bool:
        return any(k.version == 4 and prefix.subnet_of(k) for k in kept)  # type: ignore[arg-type]

    wanted = [prefix for prefix in walk(whole, node) if not within(prefix)]
    assert list(walk(whole, node, kept)) == wanted


def test_nodes_start_at_places_of_their_own() -> None:
    def first(node: str) -> Prefix:
        return next(walk(pool("10.0.0.0/16"), node))

    assert len({first(f"n{i}") for i in range(50)}) > 45


@pytest.mark.parametrize(
    ("address", "held", "found"),
    [
        ("10.0.0.5", ["10.0.0.4/30", "10.0.0.0/30"], "10.0.0.4/30"),
        ("10.0.0.5", ["10.0.0.5/32"], "10.0.0.5/32"),
        ("10.0.15.255", ["10.0.0.0/20"], "10.0.0.0/20"),
        ("fd00::fff", ["fd00::/116"], "fd00::/116"),
        ("10.0.0.8", ["10.0.0.4/30", "fd00::/116"], None),
    ],
)
def test_an_address_is_found_in_the_block_that_has_it(
    address: str, held: list[str], found: str | None
) -> None:
    stored = view([], *(block(p) for p in held)).block_of(ip_address(address))
    assert (stored and str(stored.block.prefix)) == found
