"""Register this host as a node: check it, then write the node and what a new cluster lacks.

Nothing is changed before every check has passed. What a new cluster lacks is created only if absent, so
nodes may join at the same moment; joining again changes what was asked to change and nothing else.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fabric import config as configuration
from fabric.errors import ConfigError, Taken
from fabric.ipam.types import Address, Prefix
from fabric.kernel import facts
from fabric.kernel.facts import HostAddress
from fabric.model import extensions, namespaces
from fabric.model.base import API_VERSION, Resource, Tree
from fabric.model.base import tree as as_tree
from fabric.model.change import merge_patch
from fabric.model.ippool import IPPool
from fabric.model.kinds import lookup
from fabric.model.node import Node
from fabric.model.wire import from_json
from fabric.ops import change, check, findings, resources
from fabric.ops import cluster as founding
from fabric.ops.check import Interface
from fabric.store import keys
from fabric.store.kv import KeyValueStore

ID_ANNOTATION = extensions.NODE_ID
DEFAULT_POOL = {4: "default-ipv4-ippool", 6: "default-ipv6-ippool"}


@dataclass(frozen=True, slots=True)
class Peer:
    """One `--peer IP=AS`."""

    address: Address
    as_number: int


@dataclass(frozen=True)
class Request:
    """What `node join` asks for; `ip` is "auto" or an address of this host, `etcd` has the endpoints.

    Without `bgp` the node has no session.
    """

    name: str
    etcd: tuple[str, ...] = ()
    ip: str = "auto"
    as_number: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    peers: tuple[Peer, ...] = ()
    pools: tuple[Prefix, ...] = ()
    bgp: bool = True


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
    own_key = keys.ResourceKey("nodes", None, request.name).path
    if why := nodes.unreadable.get(own_key):
        raise ConfigError(f"{own_key}: cannot be read: {why}; nothing was changed; mend or delete it first")
    _check_host_is_free(request.name)
    addresses = await facts.addresses()
    address = check.choose_address(
        request.ip, addresses, 4 if _has(addresses, 4) or request.ip != "auto" else 6
    )
    check.peer_problems([peer.address for peer in request.peers], addresses)
    for node in nodes.resources:
        check.claim_problems(request.name, node_id, address, node, ID_ANNOTATION)
    pools = await resources.pools(kv)
    cluster = await _cluster(request, pools, addresses)
    stored = next((node for node in nodes.resources if node.metadata.name == request.name), None)
    changes = [node_tree(request, node_id, address, addresses, stored)]
    changes += [peer_tree(request.name, node_id, peer) for peer in request.peers]
    wanted = [_merged(tree, stored if tree["kind"] == "Node" else None) for tree in changes]
    warnings = [
        *nodes.warnings,
        *await _check(kv, request.etcd, [*cluster, *wanted]),
        *_unused_pools(request, pools),
    ]
    _remember_id(node_id)
    made = [*await founding.found(kv), *[r for r in cluster if await change.create_if_absent(kv, r)]]
    done = [f"{r.kind} {r.metadata.name}: created" for r in made]
    for tree in changes:
        done += await _write(kv, tree, node_id)
    return Registered(tuple(done), tuple(warnings))


async def _write(kv: KeyValueStore, tree: Tree, node_id: str) -> list[str]:
    """Merge `tree` into what is stored; the check for another's name is repeated on what is replaced."""
    wanted = _merged(tree, None)

    def merged(stored: Resource | None) -> Resource:
        if isinstance(stored, Node):
            check.name_problem(stored, node_id, ID_ANNOTATION)
        result = _merged(tree, stored)
        return stored if stored and as_tree(result) == as_tree(stored) else result

    verb = (await change.change(kv, resources.key_of(wanted), merged)).verb
    return [] if verb == "unchanged" else [f"{wanted.kind} {wanted.metadata.name}: {verb}"]


def _merged(tree: Tree, stored: Resource | None) -> Resource:
    """Return `stored` with what `tree` says, a null of which removes; a bad name or label is refused."""
    return _resource(merge_patch(as_tree(stored) if stored else {}, tree))


def _has(addresses: list[HostAddress], version: int) -> bool:
    return bool(findings.candidates(addresses, version))


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
    joined = configuration.saved().node
    if joined and joined != name:
        raise Taken(
            f'this host is node "{joined}" already; nothing was changed; join with --name {joined}, or run '
            "`fabricctl node leave` first"
        )


async def _check(kv: KeyValueStore, etcd: Sequence[str], made: Sequence[Resource]) -> list[str]:
    """Return warnings; raise for everything that is in the way, once what is `made` stands as well."""
    node = next((one for one in made if isinstance(one, Node)), None)
    cluster = await check.read_cluster(kv, node.metadata.name if node else "")
    pools = tuple(one for one in made if isinstance(one, IPPool))
    cluster = replace(cluster, pools=(*cluster.pools, *pools), node=node)
    return check.refuse(findings.judge(await check.read_host(cluster, etcd=etcd), cluster))


async def _cluster(request: Request, there: Sequence[IPPool], addresses: list[HostAddress]) -> list[Resource]:
    """What a new cluster lacks beside the foundation, in the order to create it; pools only where there are none."""
    mesh = {"nodeToNodeMeshEnabled": False} if request.peers else {}
    made = [
        _resource(_tree("BGPConfiguration", "default", mesh)),
        namespaces.profile("default"),
    ]
    if not there:
        pools = request.pools or (
            check.default_pool(addresses, [prefix for prefix, _ in await check.routes()]),
        )
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


def node_tree(
    request: Request,
    node_id: str,
    address: Interface,
    addresses: list[HostAddress],
    stored: Node | None,
) -> Tree:
    """What is to stand in the Node. An address that the host has lost is taken out: null removes (RFC 7396)."""
    other = 6 if address.version == 4 else 4
    bgp: Tree = {
        f"ipv{address.version}Address": str(address),
        f"ipv{other}Address": _other_address(other, address, addresses, stored),
    }
    if request.as_number is not None:
        bgp["asNumber"] = request.as_number
    said: dict[str, str | None] = {ID_ANNOTATION: node_id}
    if not request.bgp:
        said[extensions.BGP] = "off"
    elif stored and extensions.BGP in stored.metadata.annotations:
        said[extensions.BGP] = None
    metadata: Tree = {"annotations": said}
    if request.labels:
        metadata["labels"] = dict(request.labels)
    spec: Tree = {"bgp": bgp, "interfaces": interfaces(addresses, stored)}
    return _tree("Node", request.name, spec, metadata)


def interfaces(addresses: Sequence[HostAddress], stored: Node | None) -> list[Tree]:
    """What the Node says of the host's links, for those who plan its sessions from afar.

    Its uplinks, and lo where it has addresses of the host alone. What others say of further links that the host has
    stays, and so does what they say of these beside their addresses.
    """
    uplinks = findings.uplinks(addresses)
    ours: dict[str, list[str]] = {link: [] for link in uplinks}
    for a in addresses:
        if a.own_on_lo or (a.link in uplinks and not a.address.is_link_local):
            ours.setdefault(a.link, []).append(str(a.address))
    links = {a.link for a in addresses}
    kept = [as_tree(known) for known in (stored.spec.interfaces if stored else ())]
    merged = [
        known | {"addresses": ours.pop(known["name"])} if known.get("name") in ours else known
        for known in kept
    ]
    stays = [known for known in merged if known.get("name", "") in {"", *links}]
    return stays + [{"name": link, "addresses": held} for link, held in ours.items()]


def _other_address(
    version: int, chosen: Interface, addresses: list[HostAddress], stored: Node | None
) -> str | None:
    """The address of the other family: the only one there can be, or what stands there and the host still has.

    Where the address that was chosen is the host's own on lo, the other may be one there as well.
    """
    found = [a for a in addresses if a.address.version == version and a.own_on_lo]
    on_lo = any(a.address.ip == chosen.ip and a.own_on_lo for a in addresses)
    if on_lo and len(found) == 1:
        return str(found[0].address)
    found = findings.candidates(addresses, version)
    if version == 6 and len(found) == 1:
        return str(found[0].address)
    bgp = stored.spec.bgp if stored else None
    held = bgp and (bgp.ipv6_address if version == 6 else bgp.ipv4_address)
    return str(held) if held and held.ip in {a.address.ip for a in addresses} else None


def peer_tree(node: str, node_id: str, peer: Peer) -> Tree:
    """The identity says that the peer came with the node, and goes with it. A ToR on each of several uplinks is met
    from that uplink's address.
    """
    name = f"{node}-{str(peer.address).replace(':', '-').strip('-')}"
    spec = {"node": node, "peerIP": str(peer.address), "asNumber": peer.as_number}
    said = {ID_ANNOTATION: node_id, extensions.SOURCE: extensions.UPLINK}
    return _tree("BGPPeer", name, spec, {"annotations": said})


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
