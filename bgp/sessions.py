"""Decide what each of this node's BGP sessions is, from the resources (calico-semantics §7).

Who asks for a session is in `bgp.claims`; here is what a claim becomes: addresses, AS numbers, timers, secrets,
policies, or a problem that says why there is none. The agent's alone: it reads Calico's kinds, which the speaker
must not import.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bgp.claims import Claim, claims, is_global
from bgp.members import Member, Members, members
from bgp.peering import MAX_PREFIXES, Here, NextHopMode, Peering, Policy, StaticRoute
from bgp.rib import Address, SessionSpec, address_order
from fabric.model import extensions
from fabric.model.bgp import BGPConfiguration, BGPPeer, BGPPeerSpec, Password
from fabric.model.bgpfilter import BGPFilter
from fabric.model.fields import seconds
from fabric.model.node import Node

HOLD_TIME = 90
MIN_HOLD_TIME, MAX_HOLD_TIME = 3, 65535  # RFC 4271 §§4.2, 6.2
RESTART_TIME = 120
MAX_RESTART_TIME = 4095  # RFC 4724 §3
SECRETS = "/etc/fabricctl/secrets"
SECRET_BYTES = 80  # at most: linux/tcp.h, TCP_MD5SIG_MAXKEYLEN


@dataclass(frozen=True)
class Resources:
    """The resources that sessions are made of; `node` is the name of this one."""

    node: str
    nodes: tuple[Node, ...] = ()
    configurations: tuple[BGPConfiguration, ...] = ()
    peers: tuple[BGPPeer, ...] = ()
    filters: tuple[BGPFilter, ...] = ()


@dataclass(frozen=True)
class Peerings:
    """What this node's BGP should be.

    `peerings` are by the peer's address, one each, since everything that follows knows a peer by its address.
    `problems` says, by object ("BGPPeer tor1"), what of it this node does not do and why. `required` are the BGPPeers
    that ask for a session here without which this node is not ready, also where none could be made.
    """

    peerings: tuple[Peering, ...] = ()
    static_routes: tuple[StaticRoute, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    required: frozenset[str] = frozenset()


def peerings(resources: Resources, here: Here) -> Peerings:
    """Return this node's sessions, which are none where its Node has no BGP part."""
    found = members(resources.nodes, resources.configurations)
    if (me := found.by_name.get(resources.node)) is None:
        return Peerings()
    if isinstance(me.as_number, str):
        return Peerings(problems={f"Node {me.name}": f"{me.as_number}: it has no AS number, so no session"})
    of_node = next(n for n in resources.nodes if n.metadata.name == me.name).metadata.annotations
    settings = found.settings
    context = _Context(
        me=me,
        found=found,
        here=here,
        mesh=BGPPeerSpec().model_copy(
            update={
                "password": settings.node_mesh_password,
                "max_restart_time": settings.node_mesh_max_restart_time,
            }
        ),
        filters={f.metadata.name: f for f in resources.filters},
        drained=extensions.value(of_node, extensions.DRAINED, extensions.addresses, frozenset()),
    )
    claimed = claims(me, found, resources.peers, here.gateways)
    said: defaultdict[str, dict[str, None]] = defaultdict(dict)  # by object, in order, each once
    for kind, name, given in (("Node", me.name, of_node), ("BGPConfiguration", "default", found.annotations)):
        said[f"{kind} {name}"] |= dict.fromkeys(_bad(kind, given, {}))
    said |= {f"BGPPeer {name}": {why: None} for name, why in claimed.problems.items()}
    own = {*here.loopback, *(uplink.address.ip for uplink in here.uplinks)}
    made: dict[Address, Peering] = {}
    static: list[StaticRoute] = []
    for address, claim in sorted(claimed.standing.items(), key=lambda item: address_order(item[0])):
        if address in own:
            continue
        asked_by = said[f"BGPPeer {claim.peer.metadata.name}" if claim.peer else "BGPConfiguration default"]
        asked_by |= dict.fromkeys(_notes(claim, context))
        try:
            made[address] = _peering(claim, context)
        except _NoSession as why:
            asked_by[f"{why}: no session"] = None
        else:
            static += _static_route(claim)
    problems = {name: "; ".join(whys) for name, whys in sorted(said.items()) if whys}
    asking = {c.peer.metadata.name for at, c in claimed.standing.items() if c.peer and at not in own}
    asking |= claimed.problems.keys()
    required = {p.metadata.name for p in resources.peers if p.metadata.name in asking and _required(p)}
    return Peerings(tuple(made.values()), tuple(static), problems, frozenset(required))


def _required(peer: BGPPeer) -> bool:
    return extensions.value(peer.metadata.annotations, extensions.REQUIRED, extensions.flag, default=False)


def secret_place(name: str, key: str) -> tuple[str, str]:
    """Return where a secret is looked for: a file, and an environment variable."""
    variable = "".join(c if c.isascii() and c.isalnum() else "_" for c in f"{name}_{key}").upper()
    return f"{SECRETS}/{name}/{key}", f"FABRICCTL_SECRET_{variable}"


def secret_refs(resources: Resources) -> frozenset[tuple[str, str]]:
    """Return name and key of every secret that a session may need."""
    cluster = [c.spec.node_mesh_password for c in resources.configurations if c.metadata.name == "default"]
    passwords = [*cluster, *(peer.spec.password for peer in resources.peers)]
    return frozenset(ref for password in passwords if password and (ref := _ref(password)))


def _ref(password: Password) -> tuple[str, str] | None:
    ref = password.secret_key_ref or {}
    name, key = ref.get("name"), ref.get("key")
    return (name, key) if isinstance(name, str) and isinstance(key, str) and name and key else None


@dataclass(frozen=True)
class _Context:
    """`mesh` is the mesh's sessions as a BGPPeer would have them."""

    me: Member
    found: Members
    here: Here
    mesh: BGPPeerSpec
    filters: Mapping[str, BGPFilter]
    drained: frozenset[Address]


class _NoSession(Exception):
    """A claim cannot become a session; the text says why."""


def _peering(claim: Claim, context: _Context) -> Peering:
    if isinstance(claim.local_as, str) or isinstance(claim.peer_as, str):
        raise _NoSession(claim.local_as if isinstance(claim.local_as, str) else claim.peer_as)
    me = context.me
    spec = claim.peer.spec if claim.peer else context.mesh
    said = claim.peer.metadata.annotations if claim.peer else {}
    own = me.addresses.get(claim.address.version)
    restart = spec.max_restart_time
    session = SessionSpec(
        peer=claim.address,
        peer_as=claim.peer_as,
        source=_source(claim, context),
        local_as=claim.local_as,
        router_id=me.router_id,
        port=claim.port,
        passive=bool(_one_calls(claim) and own and str(claim.address) > str(own)),
        hold_time=_hold_time(spec.keepalive_time) if spec.keepalive_time else HOLD_TIME,
        restart_time=min(_whole(restart), MAX_RESTART_TIME) if restart else RESTART_TIME,
        listen_port=me.port,
        ttl_security=spec.ttl_security or 0,
        password=_password(spec.password, context.here),
        extended_next_hop=claim.address.version == 6 and _flag(said, extensions.EXTENDED_NEXT_HOP),
    )
    theirs = claim.other.cluster_id if claim.other else None
    return Peering(
        spec=session,
        name=claim.peer.metadata.name if claim.peer else "",
        source=claim.source,
        reflector_client=bool(me.cluster_id) and not session.external and theirs != me.cluster_id,
        cluster_id=me.cluster_id,
        allow_own_as=max(0, spec.num_allowed_local_as_numbers or 0),
        next_hop=_next_hop_mode(spec, session),
        filters=tuple(context.filters[name] for name in spec.filters if name in context.filters),
        import_policy=_policy(extensions.IMPORT, said, context),
        export_policy=_policy(extensions.EXPORT, said, context),
        max_prefixes=_max_prefixes(said, context),
        required=_flag(said, extensions.REQUIRED),
        drained=claim.address in context.drained,
    )


def _one_calls(claim: Claim) -> bool:
    """Whether of the two nodes the one with the lower address, as text, waits for the other: where Calico has it so."""
    by_address = claim.peer is not None and is_global(claim.peer) and claim.peer.spec.peer_ip is not None
    return claim.other is not None and (claim.peer is None or (by_address and not claim.reverse))


def _source(claim: Claim, context: _Context) -> Address:
    """The session's source and next hop: the node's address, or by leave that of the link which the peer is on."""
    own = context.me.addresses.get(claim.address.version)
    if claim.peer and not claim.reverse and by_link(claim.peer):
        own = _on_link(claim.address, context.here, own) or own
    if own is None:
        raise _NoSession(f"this node has no IPv{claim.address.version} address to meet {claim.address} from")
    return own


def by_links(made: Iterable[Peering], peers: Iterable[BGPPeer]) -> list[Peering]:
    """Return those of `made` whose source is that of a link, which the BGPPeers that ask for them say."""
    names = {peer.metadata.name for peer in peers if by_link(peer)}
    return [peering for peering in made if peering.name in names]


def by_link(peer: BGPPeer) -> bool:
    """Whether its sessions have the address of the link that the peer is on for their source."""
    said = peer.metadata.annotations
    # A peer of `node join --peer` of a version that did not write `source` was met from its link, and still is.
    source = said.get(extensions.SOURCE, extensions.UPLINK if extensions.NODE_ID in said else "")
    return source == extensions.UPLINK or peer.spec.source_address == "None"


def _on_link(peer: Address, here: Here, own: Address | None) -> Address | None:
    """This host's address with the longest prefix around `peer`; of equal ones `own`, the node's, if it is one."""
    around = [
        uplink.address
        for uplink in here.uplinks
        if uplink.address.version == peer.version
        and peer in uplink.address.network
        and peer != uplink.address.ip
    ]
    return max(around, key=lambda i: (i.network.prefixlen, i.ip == own, int(i.ip))).ip if around else None


def _hold_time(keepalive: str) -> int:
    return min(max(3 * _whole(keepalive), MIN_HOLD_TIME), MAX_HOLD_TIME)


def _whole(duration: str) -> int:
    return int(seconds(duration) + 0.5)


def _password(password: Password | None, here: Here) -> str:
    if password is None:
        return ""
    if (ref := _ref(password)) is None:
        raise _NoSession("password has no secretKeyRef with a name and a key")
    if ref not in here.secrets:
        file, variable = secret_place(*ref)
        raise _NoSession(
            f"password: no secret of 1 to 80 bytes in {file}, nor in the agent's environment as {variable}"
        )
    return here.secrets[ref]


def _flag(said: Mapping[str, str], key: str) -> bool:
    return extensions.value(said, key, extensions.flag, default=False)


def _next_hop_mode(spec: BGPPeerSpec, session: SessionSpec) -> NextHopMode:
    if spec.next_hop_mode:
        return NextHopMode(spec.next_hop_mode.lower())
    return NextHopMode.KEEP if spec.keep_original_next_hop and session.external else NextHopMode.AUTO


def _policy(key: str, said: Mapping[str, str], context: _Context) -> Policy:
    cluster = extensions.value(context.found.annotations, key, Policy, Policy.SAFE)
    # A bad one on the BGPPeer was written to deviate from the cluster's: the safe one it is, not that.
    return extensions.value(said, key, Policy, Policy.SAFE if key in said else cluster)


def _max_prefixes(said: Mapping[str, str], context: _Context) -> int:
    key = extensions.MAX_PREFIX
    cluster = extensions.value(context.found.annotations, key, extensions.count, MAX_PREFIXES)
    return extensions.value(said, key, extensions.count, MAX_PREFIXES if key in said else cluster)


def _static_route(claim: Claim) -> Iterable[StaticRoute]:
    gateway = claim.peer.spec.reachable_by if claim.peer and not claim.reverse else None
    return [StaticRoute(claim.address, gateway)] if gateway else []


def _notes(claim: Claim, context: _Context) -> Iterator[str]:
    """What of the claim is not done, though there may be a session."""
    if claim.peer is None:
        return
    spec, said = claim.peer.spec, claim.peer.metadata.annotations
    fields = type(spec).model_fields
    yield from _bad(
        "BGPPeer", said, {field.alias or name: getattr(spec, name) for name, field in fields.items()}
    )
    for name in spec.filters:
        if name not in context.filters:
            yield f"filter {name}: there is no BGPFilter of that name; the others hold"
    restart, keepalive = spec.max_restart_time, spec.keepalive_time
    if restart and _whole(restart) > MAX_RESTART_TIME:
        yield f"maxRestartTime {restart}: {MAX_RESTART_TIME} s, the most that BGP can say, is used"
    if keepalive and _hold_time(keepalive) != 3 * _whole(keepalive):
        yield f"keepaliveTime {keepalive}: the hold time, three times that, is {MIN_HOLD_TIME} to {MAX_HOLD_TIME} s"


def _bad(kind: str, given: Mapping[str, str], spec: Mapping[str, object]) -> Iterator[str]:
    for key, rule in extensions.problems(kind, given, spec).items():
        yield f'annotation {key}: "{given[key]}": {rule}'
