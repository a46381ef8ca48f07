"""Make this host a node: check it, register it, start its processes, wait until it is ready.

Nothing is changed before every check has passed. What a new cluster lacks is created only if absent, so
nodes may join at the same moment; joining again changes what was asked to change and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from fabric import config as configuration
from fabric.api import client
from fabric.config import Config
from fabric.errors import AgentError, ConfigError, FabricError, Taken
from fabric.ipam.types import Address, Prefix
from fabric.kernel import facts
from fabric.kernel.facts import HostAddress
from fabric.kernel.routes import NetlinkFib
from fabric.model import namespaces
from fabric.model.base import API_VERSION, Resource, Tree
from fabric.model.base import tree as as_tree
from fabric.model.change import merge_patch
from fabric.model.clusterinformation import ClusterInformation
from fabric.model.ippool import IPPool
from fabric.model.kinds import lookup
from fabric.model.node import Node
from fabric.model.wire import from_json
from fabric.ops import check, resources, supervise
from fabric.store.kv import KeyValueStore

ID_ANNOTATION = "fabricctl.io/node-id"
DEFAULT_POOL = {4: "default-ipv4-ippool", 6: "default-ipv6-ippool"}
READY_WITHIN = 30.0  # seconds for agent and speaker to start and read everything
ESTABLISHED_WITHIN = 15.0  # seconds for the sessions asked for to come up
POLL = 0.1


@dataclass(frozen=True, slots=True)
class Peer:
    """One `--peer IP=AS`."""

    address: Address
    as_number: int


@dataclass(frozen=True)
class Request:
    """What `node join` asks for; `ip` is "auto" or an address of this host."""

    etcd: tuple[str, ...]
    name: str
    ip: str = "auto"
    as_number: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    peers: tuple[Peer, ...] = ()
    pools: tuple[Prefix, ...] = ()


@dataclass(frozen=True)
class Registered:
    """What registering did: one line a resource that was created or changed, and warnings."""

    changes: tuple[str, ...]
    warnings: tuple[str, ...]


async def register(request: Request, kv: KeyValueStore) -> Registered:
    """Check the host, then write the node and what the cluster lacks.

    What others have set on the Node or on a peer stays: only what was asked for is written.

    Raises:
        ConfigError: the host or the request will not do; nothing was changed, and everything is listed.
        Taken: the name or the address is another node's; nothing was changed.
        StoreError: etcd did not answer.
    """
    check.need_root()
    node_id = _known_id() or str(uuid.uuid4())
    nodes = await resources.listing(kv, Node, lookup("node"))
    _check_host_is_free(request.name)
    addresses = await facts.addresses()
    warnings = [*nodes.unreadable, *await _check(kv)]
    address = check.choose_address(
        request.ip, addresses, 4 if _has(addresses, 4) or request.ip != "auto" else 6
    )
    check.peer_problems([peer.address for peer in request.peers], addresses)
    for node in nodes.resources:
        check.claim_problems(request.name, node_id, address, node, ID_ANNOTATION)
    pools = (await resources.listing(kv, IPPool, lookup("ippool"))).resources
    warnings += _unused_pools(request, pools)
    cluster = await _cluster(request, pools, addresses)
    changes = [_node(request, node_id, address, addresses)]
    changes += [_bgp_peer(request.name, node_id, peer) for peer in request.peers]
    for tree in changes:
        _resource(tree)  # refuses a bad name or label before anything is written
    _remember_id(node_id)
    done = [
        f"{r.kind} {r.metadata.name}: created" for r in cluster if await resources.create_if_absent(kv, r)
    ]
    for tree in changes:
        done += await _write(kv, tree, node_id)
    return Registered(tuple(done), tuple(warnings))


async def _write(kv: KeyValueStore, tree: Tree, node_id: str) -> list[str]:
    """Merge `tree` into what is stored; the check for another's name is repeated on what is replaced."""
    wanted = _resource(tree)

    def merged(stored: Resource | None) -> Resource:
        if stored is None:
            return wanted
        if isinstance(stored, Node):
            check.name_problem(stored, node_id, ID_ANNOTATION)
        result = _resource(merge_patch(as_tree(stored), tree))
        return stored if as_tree(result) == as_tree(stored) else result

    verb = (await resources.change(kv, resources.key_of(wanted), merged)).verb
    return [] if verb == "unchanged" else [f"{wanted.kind} {wanted.metadata.name}: {verb}"]


def _has(addresses: list[HostAddress], version: int) -> bool:
    return bool(check.candidates(addresses, version))


def _known_id() -> str:
    try:
        return configuration.NODE_ID.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _remember_id(node_id: str) -> None:
    if _known_id() != node_id:
        configuration.NODE_ID.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = configuration.NODE_ID.with_suffix(".new")
        fresh.write_text(f"{node_id}\n", encoding="utf-8")
        fresh.replace(configuration.NODE_ID)


def _check_host_is_free(name: str) -> None:
    joined = configuration.load(env={}).node
    if joined and joined != name:
        raise Taken(
            f'this host is node "{joined}" already; nothing was changed; join with --name {joined}, or run '
            "`fabricctl node leave` first"
        )


async def _check(kv: KeyValueStore) -> list[str]:
    """Return warnings; raise for everything that is in the way."""
    problems = await check.host_problems()
    if supervise.running() is None:
        problems += await check.port_problems()
    clusters = (await resources.listing(kv, ClusterInformation, lookup("clusterinformation"))).resources
    cluster = next(iter(clusters), None)
    problems += check.clock_problems(cluster, datetime.now(UTC))
    check.refuse(problems)
    return await check.warnings()


async def _cluster(request: Request, there: Sequence[IPPool], addresses: list[HostAddress]) -> list[Resource]:
    """What a new cluster lacks, in the order to create it; pools only where there are none."""
    mesh = {"nodeToNodeMeshEnabled": False} if request.peers else {}
    made = [
        _resource(
            _tree("ClusterInformation", "default", {"clusterGUID": uuid.uuid4().hex, "datastoreReady": True})
        ),
        _resource(_tree("BGPConfiguration", "default", mesh)),
        namespaces.profile("default"),
    ]
    if not there:
        pools = request.pools or (check.default_pool(addresses, await _prefixes()),)
        made += [
            _resource(_tree("IPPool", DEFAULT_POOL[pool.version], {"cidr": str(pool), "natOutgoing": False}))
            for pool in pools
        ]
    return made


def _unused_pools(request: Request, there: Sequence[IPPool]) -> list[str]:
    has = {pool.spec.cidr for pool in there}
    named = ", ".join(sorted(map(str, has)))
    return [
        f"--pool {pool}: not created, since the cluster has pools ({named}); add one with `fabricctl apply`"
        for pool in request.pools
        if there and pool not in has
    ]


async def _prefixes() -> list[Prefix]:
    with NetlinkFib() as fib:
        return [route.key.prefix for route in await fib.foreign_routes()]


def _node(
    request: Request, node_id: str, address: IPv4Interface | IPv6Interface, addresses: list[HostAddress]
) -> Tree:
    """What is to stand in the Node; an IPv6 address, where there is exactly one, comes beside the IPv4 one."""
    bgp: Tree = {f"ipv{address.version}Address": str(address)}
    others = check.candidates(addresses, 6)
    if address.version == 4 and len(others) == 1:
        bgp["ipv6Address"] = str(others[0].address)
    if request.as_number is not None:
        bgp["asNumber"] = request.as_number
    metadata: Tree = {"annotations": {ID_ANNOTATION: node_id}}
    if request.labels:
        metadata["labels"] = dict(request.labels)
    return _tree("Node", request.name, {"bgp": bgp}, metadata)


def _bgp_peer(node: str, node_id: str, peer: Peer) -> Tree:
    """The identity says that the peer came with the node, and goes with it."""
    name = f"{node}-{str(peer.address).replace(':', '-').strip('-')}"
    spec = {"node": node, "peerIP": str(peer.address), "asNumber": peer.as_number}
    return _tree("BGPPeer", name, spec, {"annotations": {ID_ANNOTATION: node_id}})


def _tree(kind: str, name: str, spec: Tree, metadata: Tree | None = None) -> Tree:
    return {
        "kind": kind,
        "apiVersion": API_VERSION,
        "metadata": {"name": name} | (metadata or {}),
        "spec": spec,
    }


def _resource(tree: object) -> Resource:
    """Through the reader of stored values, so that a bad name or label is refused with its rule."""
    try:
        return from_json(json.dumps(tree))
    except ConfigError as err:
        raise ConfigError(f"{err}; nothing was changed") from err


def start(config: Config, *, foreground: bool = False) -> subprocess.Popen[bytes] | None:
    """Start the supervisor and return it; None where one runs already with this configuration.

    One with another configuration is replaced, under graceful restart. In the foreground it shares our
    output and our death; else it leaves this terminal, and logs to LOG, the last run's log kept beside it.

    Raises:
        Taken: the foreground was asked for, and one runs already.
    """
    pid = supervise.running()
    if pid is not None and foreground:
        raise Taken(
            f"supervisor: runs already as pid {pid}; it was left alone; stop it to run in the foreground"
        )
    if pid is not None and configuration.load(env={}) == config:
        return None
    supervise.stop()
    configuration.save(config)
    command = [sys.executable, "-m", "fabric.ops.supervise"]
    if foreground:
        return subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *command], stdin=subprocess.DEVNULL)
    log = configuration.LOG
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def wait_ready(process: subprocess.Popen[bytes] | None, peers: Set[str]) -> dict[str, Any]:
    """Return the agent's status once it is ready, its sessions, those to `peers` among them, up or out of time.

    Raises:
        FabricError: it did not become ready; the message has the last lines of its log.
    """
    deadline = time.monotonic() + READY_WITHIN
    while not (status := _status()) or not status["ready"]:
        if (process and process.poll() is not None) or time.monotonic() > deadline:
            raise FabricError(
                "node: its processes did not become ready; they are left as they are; the end of "
                f"{configuration.LOG}:\n{_log_tail()}"
            )
        time.sleep(POLL)
    deadline = time.monotonic() + ESTABLISHED_WITHIN
    while not _sessions_up(status, peers) and time.monotonic() < deadline:
        time.sleep(POLL)
        status = _status() or status
    return status


def _sessions_up(status: dict[str, Any], peers: Set[str]) -> bool:
    up = {s["peer"]: s["state"] == "Established" for s in status["sessions"]}
    return peers <= up.keys() and all(up.values())


def _status() -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = client.call("GET", "/v1/status", timeout=5)
    except AgentError:
        return None
    return status


def _log_tail(lines: int = 8) -> str:
    try:
        return "\n".join(
            configuration.LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        )
    except FileNotFoundError:
        return "(no log)"


def run_register(request: Request) -> Registered:
    """`register` on a connection of its own."""
    from fabric.store.etcd import Etcd

    async def connected() -> Registered:
        kv = Etcd(request.etcd)
        try:
            return await register(request, kv)
        finally:
            await kv.close()

    return asyncio.run(connected())
