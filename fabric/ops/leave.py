"""Take this host out of the fabric: give back its blocks and names, stop its processes, leave the kernel as it was.

The datastore comes first: the running agent then withdraws and removes by its ordinary pass, and the
routers hear a withdrawal instead of losing a peer. What it could not remove is swept after it stopped.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fabric import config as configuration
from fabric.api import client
from fabric.config import Config
from fabric.errors import (
    AgentError,
    ConfigError,
    Conflict,
    DataplaneError,
    FabricError,
    Forbidden,
    StoreError,
    Taken,
)
from fabric.ipam import assign
from fabric.ipam import block as blocks
from fabric.ipam import config as ipam_config
from fabric.ipam.config import IPAMConfig
from fabric.ipam.records import Affinity, Handle, affinity_from_json, handle_from_json
from fabric.ipam.types import Address, Prefix
from fabric.ipam.view import Change, Stored, View, after
from fabric.kernel import sysctls
from fabric.kernel.conntrack import NetlinkConntrack
from fabric.kernel.ipsets import NetlinkIPSets
from fabric.kernel.links import NetlinkLinks
from fabric.kernel.routes import NetlinkFib
from fabric.kernel.tables import BACKENDS, KernelTables
from fabric.kernel.tunnels import NetlinkTunnels
from fabric.model.bgp import BGPPeer
from fabric.model.kinds import lookup
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops import resources, supervise
from fabric.ops.join import ID_ANNOTATION
from fabric.plan.endpoints import is_handle_of
from fabric.plan.links import is_ours
from fabric.plan.routes import Route
from fabric.plan.tables import VERSIONS, Place, clear
from fabric.store import cache, cluster, ipam, keys
from fabric.store.cache import Journal
from fabric.store.kv import Delete, KeyValueStore, Txn
from policy.marks import CUT

ATTEMPTS = 10  # rounds without progress, each on a listing of its own
TOGETHER = 100  # addresses freed in one transaction: etcd takes 128 operations
WITHDRAWN_WITHIN = 40.0  # seconds for the speaker to say that its sessions have withdrawn and are gone
POLL = 0.1


@dataclass(frozen=True, slots=True)
class Left:
    """What was given back and removed, one line each."""

    lines: tuple[str, ...]


async def leave(config: Config, kv: KeyValueStore) -> Left:
    """Undo `node join`.

    Raises:
        ConfigError: the host has workloads, or etcd another cluster; nothing was changed.
        Taken: the Node of this name is another host's; nothing was changed.
        StoreError: etcd did not answer; what was not done yet is done by running it again.
    """
    try:
        await refuse_elsewhere(cache.own(configuration.CACHE, config), kv)
        await _refuse_with_workloads(config.node, kv, "nothing was changed")
    except StoreError as err:
        raise type(err)(f"node {config.node}: has not left, runs on and serves its workloads: {err}") from err
    # The Node first: without it the agent attaches nothing more; and what it attached just before is seen.
    lines = await _forget(config.node, kv)
    await _refuse_with_workloads(config.node, kv, "its Node was deleted, and the agent still serves them")
    lines += await hand_back(config.node, kv)
    _wait_withdrawn()
    if supervise.stop():
        lines.append("processes: stopped")
    lines += await sweep(configuration.SYSCTLS)
    # The configuration last: without it there is nothing to leave, and this could not be run again.
    for path in (configuration.CACHE, configuration.NODE_ID, configuration.CONFIG):
        path.unlink(missing_ok=True)
    return Left(tuple(lines))


async def refuse_elsewhere(journal: Journal, kv: KeyValueStore) -> None:
    """Refuse to leave where this host has not joined: it would take from others, and cut off its own workloads.

    `journal` is this host's; without a copy that can be read, which cluster it joined is not known.

    Raises:
        ConfigError: etcd has another cluster than the one this host joined, and that does not know it.
        Taken: the Node of this name is another host's.
    """
    node, node_id = journal.origin.node, journal.origin.node_id
    mine = await kv.get(keys.ResourceKey("nodes", None, node).path)
    information = await kv.get(cluster.INFORMATION)
    home = theirs = ""
    with suppress(ConfigError):  # a copy that cannot be read says nothing
        home = cluster.identity(copy.listing.items) if (copy := journal.read()) else ""
    if why := cluster.strangeness(filter(None, (information, mine)), node, home):
        raise ConfigError(
            f"node {node}: {why}; nothing was changed; restore etcd's data, or run `fabricctl node join` to begin anew "
            "there, and leave again"
        )
    with suppress(ConfigError):  # nor does a Node
        theirs = resources.decode(mine).metadata.annotations.get(ID_ANNOTATION, "") if mine else ""
    if theirs not in ("", node_id):
        raise Taken(
            f"Node {node}: of the host with id {theirs}, this host has id {node_id or '(none)'}; nothing was changed; "
            "is the right etcd configured?"
        )


async def _refuse_with_workloads(node: str, kv: KeyValueStore, state: str) -> None:
    found = await resources.listing(kv, WorkloadEndpoint, lookup("workloadendpoint"))
    mine = [f"{w.metadata.namespace}/{w.spec.workload}" for w in found.resources if w.spec.node == node]
    # The name of an endpoint begins with its node's, each "-" doubled.
    begins = f"{node.replace('-', '--')}-"
    mine += [key for key in found.unreadable if key.rpartition("/")[2].startswith(begins)]
    if mine:
        named = ", ".join(sorted(mine)[:5])
        more = " …" if len(mine) > 5 else ""
        count = "1 workload is" if len(mine) == 1 else f"{len(mine)} workloads are"
        raise ConfigError(
            f"node {node}: {count} attached ({named}{more}); {state}; remove them with "
            "`fabricctl workload del` and leave again"
        )


async def hand_back(node: str, kv: KeyValueStore) -> list[str]:
    """Give back all that IPAM has in the name of `node`; return one line for each.

    Blocks with their affinities, whatever state those were left in, tunnels' addresses, and addresses of
    workloads whose endpoint is gone. A lost race is decided again; running it again goes on where it stopped.

    Raises:
        StoreError: etcd did not answer, or others were faster without end.
    """
    lines: list[str] = []
    in_vain = 0
    while in_vain < ATTEMPTS:
        view, unreadable = await _view(node, kv)
        due = list(_due(view))
        if not due:
            return lines + unreadable
        in_vain += 1
        for what, changes in due:
            try:
                await kv.commit(ipam.transaction(view.handles, *changes))
            except Conflict:
                continue
            lines.append(what)
            in_vain = 0
    raise StoreError(
        f"node {node}: {len(due)} of its blocks and handles are still there after {ATTEMPTS} attempts in vain, since "
        "others write them; its Node was deleted; run `fabricctl node leave` again"
    )


def _due(view: View) -> Iterator[tuple[str, list[Change]]]:
    """What is left in the node's name, one transaction each."""
    held: set[str] = set()
    for prefix, stored in view.blocks.items():
        changes: list[Change] = []
        now = view
        for handle in {owner.handle for owner in stored.block.owners if owner and owner.handle}:
            if not _is_own(view.node, handle):
                continue
            held.add(handle)
            for address in stored.block.held_by(handle):
                changes.append(assign.release(now, address, handle, at=datetime.now(UTC)))
                now = after(now, changes[-1])
        if len(changes) > TOGETHER:
            yield f"block {prefix}: {TOGETHER} addresses freed", changes[:TOGETHER]
            continue
        if stored.block.node == view.node or (view.node, prefix) in view.affinities:
            changes.append(assign.hand_back(now, view.node, prefix))
        if changes:
            yield f"block {prefix}: handed back", changes
    for _, prefix in view.affinities.keys() - {(view.node, p) for p in view.blocks}:
        yield f"affinity to {prefix}: deleted", [assign.hand_back(view, view.node, prefix)]
    for handle in view.handles.keys() - held:
        if _is_own(view.node, handle):
            counts = view.handles[handle].counts
            gone = Change(handles={handle: {prefix: -count for prefix, count in counts.items()}})
            yield f"handle {handle}: deleted", [gone]


def _is_own(node: str, handle: str) -> bool:
    # Of Calico's agent as well, WireGuard's included: the node may have been one of Calico's.
    return is_handle_of(node, handle) or handle.endswith(f"-tunnel-addr-{node}")


async def _view(node: str, kv: KeyValueStore) -> tuple[View, list[str]]:
    """Return what IPAM has, of affinities the node's own; and a line for what of it cannot be read."""
    found: dict[Prefix, Stored] = {}
    records: dict[tuple[str, Prefix], Affinity] = {}
    handles: dict[str, Handle] = {}
    config, unreadable = IPAMConfig(), []
    for item in (await kv.list(keys.IPAM)).items:
        try:
            match keys.parse(item.key):
                case keys.BlockKey(prefix):
                    found[prefix] = Stored(blocks.from_json(item.value), item.revision)
                case keys.AffinityKey(owner, prefix) if owner == node:
                    records[owner, prefix] = affinity_from_json(item.value, item.revision)
                case keys.HandleKey(handle):
                    handles[handle] = handle_from_json(item.value, item.revision)
                case None if item.key == keys.IPAM_CONFIG:
                    config = ipam_config.from_json(item.value)
        except ConfigError as err:
            unreadable.append(f"{item.key}: left alone: {err}")
    return View(node, {}, (), found, records, config=config, handles=handles), unreadable


async def _forget(node: str, kv: KeyValueStore) -> list[str]:
    """Delete the Node, and the peers that came with it; one that an operator made stays."""
    peers = (await resources.listing(kv, BGPPeer, lookup("bgppeer"))).resources
    mine = [p for p in peers if p.spec.node == node and ID_ANNOTATION in p.metadata.annotations]
    gone = [*(("BGPPeer", "bgppeers", p.metadata.name) for p in mine), ("Node", "nodes", node)]
    txn = Txn((), tuple(Delete(keys.ResourceKey(plural, None, name).path) for _, plural, name in gone))
    await kv.commit(txn)
    with suppress(Forbidden):  # who may not write there has published nothing
        await kv.commit(Txn((), (Delete(f"{keys.PUBLISHED}{node}"),)))
    return [f"{kind} {name}: deleted" for kind, _, name in gone]


def _wait_withdrawn() -> None:
    deadline = time.monotonic() + WITHDRAWN_WITHIN
    while time.monotonic() < deadline:
        try:
            status = client.call("GET", "/v1/status", timeout=2)
        except AgentError:
            return
        if not (status["registered"] or status["blocks"] or status["speaker"]["sessions"]):
            return
        time.sleep(POLL)


async def sweep(record: Path) -> list[str]:
    """Remove what is ours from the kernel, policy last of all, and put back the sysctls that `record` has.

    Raises:
        FabricError: with what the kernel would not let go, a line each; the rest is gone.
    """
    lines, refused = [], []
    with NetlinkFib() as fib:
        routes = await fib.owned_routes()
        for route in routes:
            try:
                await fib.delete(route.key)
                lines.append(f"route {route.key.prefix}: removed")
            except DataplaneError as err:
                refused.append(str(err))
    links = NetlinkLinks()
    try:
        names = [link.name for link in await links.owned_links()]
        await links.remove(names)
        lines += [f"link {name}: removed" for name in names]
    except DataplaneError as err:
        refused.append(str(err))
    tunnels = NetlinkTunnels()
    try:
        ends = [held.tunnel.name for held in await tunnels.owned()]
    except DataplaneError as err:
        ends = []
        refused.append(str(err))
    for name in ends:
        try:
            await tunnels.remove(name)
            lines.append(f"tunnel {name}: removed")
        except DataplaneError as err:
            refused.append(str(err))
    try:
        # Before the rules go, which say what this host forwards.
        lines += [f"sysctl {name}: put back" for name in await sysctls.restore(record)]
    except DataplaneError as err:
        refused.append(str(err))
    for backend in BACKENDS:
        try:
            lines += await _sweep_rules(KernelTables(backend))
        except DataplaneError as err:
            if err.code != errno.ENOENT:  # where there is no such tool, nothing was made by it
                refused.append(str(err))
    with NetlinkIPSets() as sets, NetlinkConntrack() as conntrack:
        for name in await sets.owned():
            try:
                await sets.destroy(name)
                lines.append(f"ipset {name}: removed")
            except DataplaneError as err:
                refused.append(str(err))
        try:
            gone = _containers(routes)
            flows = await conntrack.flows(gone, CUT)
            # Nobody asks for it any more; an agent that comes back must not find connections cut that it allows.
            await conntrack.set_mark([flow for flow in flows if flow.mark & CUT], 0, CUT)
            # Those to a published port go on, else, to where its container was.
            led = (flow for flow in flows if flow.reply.source != flow.original.destination)
            await conntrack.forget([flow for flow in led if flow.reply.source in gone])
        except DataplaneError as err:
            refused.append(str(err))
    if refused:
        raise FabricError("left over on this host:\n  " + "\n  ".join(refused))
    return lines


def _containers(routes: Iterable[Route]) -> frozenset[Address]:
    """Return the addresses that are routed to containers by `routes`."""
    return frozenset(
        route.key.prefix.network_address
        for route in routes
        if any(hop.device and is_ours(hop.device) for hop in route.next_hops)
    )


async def _sweep_rules(tables: KernelTables) -> list[str]:
    """Remove our chains and jumps from one backend; others' rules stay."""
    found = [await tables.read(version) for version in VERSIONS]
    chains = {place for held in found for place in held.chains if place.is_ours}
    hooked = any(any(chain.marks) for held in found for chain in held.chains.values())
    await clear(tables)
    kept = frozenset[Place]().union(*(held.wanted_by_others for held in found)) & chains
    lines = [f"rules of {tables.backend}: {len(chains - kept)} chains removed"] if chains or hooked else []
    return lines + [f"{place}: emptied, and left: a rule of others jumps to it" for place in sorted(kept)]
