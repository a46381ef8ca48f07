"""Take this host out of the fabric: give back its blocks and names, stop its processes, leave the kernel as it was.

The datastore comes first: the running agent then withdraws and removes by its ordinary pass, and the
routers hear a withdrawal instead of losing a peer. What it could not remove is swept after it stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fabric import config as configuration
from fabric.api import client
from fabric.config import Config
from fabric.errors import AgentError, ConfigError, DataplaneError, FabricError
from fabric.ipam import block as blocks
from fabric.ipam.assign import Stored
from fabric.kernel import sysctls
from fabric.kernel.links import NetlinkLinks
from fabric.kernel.routes import NetlinkFib
from fabric.model.bgp import BGPPeer
from fabric.model.kinds import lookup
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops import check, resources, supervise
from fabric.ops.join import ID_ANNOTATION
from fabric.store import ipam, keys
from fabric.store.kv import Delete, KeyValueStore, Txn

WITHDRAWN_WITHIN = 40.0  # seconds for the speaker to say that its sessions have withdrawn and are gone
POLL = 0.1


@dataclass(frozen=True, slots=True)
class Left:
    """What was given back and removed, one line each."""

    lines: tuple[str, ...]


def joined(config: Config) -> Config:
    """Return `config` if there is something to leave, and one may.

    Raises:
        ConfigError: this is not root, or the host is no node; nothing was changed.
    """
    check.need_root()
    if not config.node:
        raise ConfigError("this host is not a node; nothing was changed")
    return config


async def leave(config: Config, kv: KeyValueStore) -> Left:
    """Undo `node join`.

    Raises:
        ConfigError: the host has workloads; nothing was changed.
        StoreError: etcd did not answer; what was not done yet is done by running it again.
    """
    await _refuse_with_workloads(config.node, kv, "nothing was changed")
    # The Node first: without it the agent attaches nothing more; and what it attached just before is seen.
    lines = await _forget(config.node, kv)
    await _refuse_with_workloads(config.node, kv, "its Node was deleted, and the agent still serves them")
    lines += await _hand_back(config.node, kv)
    _wait_withdrawn()
    if supervise.stop():
        lines.append("processes: stopped")
    lines += await _sweep()
    for path in (configuration.CONFIG, configuration.NODE_ID):
        path.unlink(missing_ok=True)
    return Left(tuple(lines))


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


async def _hand_back(node: str, kv: KeyValueStore) -> list[str]:
    lines = []
    for item in (await kv.list(keys.BLOCKS)).items:
        try:
            stored = Stored(blocks.from_json(item.value), item.revision)
        except ConfigError as err:
            lines.append(f"{item.key}: left alone: {err}")
            continue
        if stored.block.node == node:
            await kv.commit(ipam.hand_back(stored, node))
            lines.append(f"block {stored.block.prefix}: handed back")
    return lines


async def _forget(node: str, kv: KeyValueStore) -> list[str]:
    """Delete the Node, and the peers that came with it; one that an operator made stays."""
    peers = (await resources.listing(kv, BGPPeer, lookup("bgppeer"))).resources
    mine = [p for p in peers if p.spec.node == node and ID_ANNOTATION in p.metadata.annotations]
    gone = [*(("BGPPeer", "bgppeers", p.metadata.name) for p in mine), ("Node", "nodes", node)]
    txn = Txn((), tuple(Delete(keys.ResourceKey(plural, None, name).path) for _, plural, name in gone))
    await kv.commit(txn)
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


async def _sweep() -> list[str]:
    """Remove what is ours from the kernel and put the sysctls back."""
    lines, refused = [], []
    with NetlinkFib() as fib:
        for route in await fib.owned_routes():
            try:
                await fib.delete(route.key)
                lines.append(f"route {route.key.prefix}: removed")
            except DataplaneError as err:
                refused.append(str(err))
    links = NetlinkLinks()
    for link in await links.owned_links():
        try:
            await links.remove(link.name)
            lines.append(f"link {link.name}: removed")
        except DataplaneError as err:
            refused.append(str(err))
    lines += [f"sysctl {name}: put back" for name in await sysctls.restore(configuration.SYSCTLS)]
    if refused:
        raise FabricError("left over on this host:\n  " + "\n  ".join(refused))
    return lines
