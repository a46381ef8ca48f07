"""Put an IP pool into the datastore beside the others there, and take one out as Calico's client does.

A pool that goes is disabled, its blocks lose their nodes, then it is deleted; addresses in use stay valid.
Whatever ends this half way leaves a disabled pool, and deleting it again does the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_interface

from fabric.errors import ConfigError, Conflict, FabricError
from fabric.ipam import block as blocks
from fabric.ipam import pools, records
from fabric.ipam.records import Affinity
from fabric.ipam.types import Prefix
from fabric.ipam.view import Stored, View
from fabric.kernel import facts
from fabric.model.base import Resource
from fabric.model.ippool import IPPool
from fabric.model.kinds import lookup
from fabric.model.node import Node
from fabric.ops import resources
from fabric.plan.encap import DEVICES
from fabric.store import ipam, keys
from fabric.store.kv import Delete, Guard, KeyValueStore, Put, Txn, Unwritten

ROUNDS = 5  # of releasing blocks, where nodes claim more meanwhile
MOMENT = 0.5  # seconds for allocations that were decided before the pool was disabled

# Their addresses are out of pools: they are ours or Calico's, and no subnet of the host.
_TUNNELS = DEVICES | {"vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali"}


async def read(kv: KeyValueStore) -> View:
    """Return pools, blocks and affinities, of every node.

    Raises:
        ConfigError: one cannot be read: what it covers is unknown.
    """
    found: dict[Prefix, Stored] = {}
    claims: dict[tuple[str, Prefix], Affinity] = {}
    for prefix in (keys.BLOCKS, keys.AFFINITIES):
        for item in (await kv.list(prefix)).items:
            try:
                match keys.parse(item.key):
                    case keys.BlockKey(block):
                        found[block] = Stored(blocks.from_json(item.value), item.revision)
                    case keys.AffinityKey(node, block):
                        claims[node, block] = records.affinity_from_json(item.value, item.revision)
            except ConfigError as err:
                raise ConfigError(f"{item.key}: {err}; mend or delete it first") from err
    return View("", {}, await resources.pools(kv), found, claims)


async def fit(
    kv: KeyValueStore, before: Resource | None, pool: IPPool, beside: Sequence[IPPool]
) -> tuple[Unwritten, ...]:
    """Check that `pool` may be stored in place of `before`, and return what must hold until it is.

    So of two who add pools over one another at the same moment one is refused, and no block is claimed between
    the check of a resize and the resize.

    Args:
        beside: pools that the same command writes, whether it has done so or not.

    Raises:
        ConfigError: it may not, with the reasons; it was not written.
    """
    if isinstance(before, IPPool) and not pools.resized(before, pool):
        return ()
    at = (await kv.list(keys.resources("ippools"))).revision
    name = pool.metadata.name
    wanted = [*(other for other in beside if other.metadata.name != name), pool]
    if reasons := pools.refusals(await read(kv), wanted).get(name):
        raise ConfigError(f"IPPool {name}: {'; '.join(reasons)}; it was not written")
    under = (keys.BLOCKS, keys.AFFINITIES) if before else ()
    return tuple(Unwritten(prefix, at) for prefix in (keys.resources("ippools"), *under))


async def delete(kv: KeyValueStore, key: str, pool: IPPool, revision: int, moment: float = MOMENT) -> None:
    """Disable `pool`, stored at `revision`, release its blocks `moment` seconds later, delete it.

    Raises:
        Conflict: somebody wrote it since `revision`; nothing was written.
        FabricError: something came between later; the pool is still there, disabled unless somebody wrote it.
    """
    if not pool.spec.disabled:
        off = resources.encode(pools.disabled(pool))
        revision = await kv.commit(Txn((Guard(key, revision),), (Put(key, off),)))
    await asyncio.sleep(moment)
    try:
        await _release(kv, pool)
        await kv.commit(Txn((Guard(key, revision),), (Delete(key),)))
    except (Conflict, ConfigError) as err:
        raise FabricError(f"{err}; the pool is still there; look at it, and delete it again") from err


async def _release(kv: KeyValueStore, pool: IPPool) -> None:
    for _ in range(ROUNDS):
        now = await read(kv)
        changes = pools.releases(now, pool)
        if not changes:
            return
        for change in changes:
            with suppress(Conflict):  # a node has just used the block: the next round looks again
                await kv.commit(ipam.transaction({}, change))
    raise Conflict(f"nodes keep writing the blocks of {pool.spec.cidr}")


async def host_subnets() -> list[tuple[str, Prefix]]:
    """Return the subnets of this host, its loopback's too, each with its interface."""
    return [
        (f"interface {a.link} of this host", a.address.network)
        for a in await facts.addresses()
        if not (a.address.is_link_local or a.link in _TUNNELS)
    ]


async def node_subnets(kv: KeyValueStore) -> list[tuple[str, Prefix]]:
    """Return the subnets that nodes say they are in, each with its node, and the interface where that is said."""
    found: dict[tuple[str, Prefix], str] = {}
    for node in (await resources.listing(kv, Node, lookup("node"))).resources:
        name = node.metadata.name
        found |= {(name, held.network): f"node {name}" for held in node.addresses}
        for link in node.spec.interfaces:
            for text in link.addresses:
                with suppress(ValueError):  # it may be any text, and is others' to write
                    found[name, ip_interface(text).network] = f"interface {link.name} of node {name}"
    return [(where, subnet) for (_, subnet), where in found.items()]
