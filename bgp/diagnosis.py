"""Decide what is likely wrong with a session that does not do its work, and which knob mends it.

From this end alone: what the peer sends, what became of it, and how it says no. Guesses are said to be guesses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from bgp.notifications import words
from bgp.peering import Peering, Source
from bgp.rib import Address, Notification, SessionState, SessionStatus

PATIENCE = 5.0  # seconds for a session to come up before its silence means anything
QUIET = 15.0  # seconds after a NOTIFICATION in which a peer that still talks is heard again: it is tried every ten
SETTLED = 10.0  # seconds for an Established one to send what it has, where it owes no End-of-RIB
NEARLY = 0.75  # of the largest number of prefixes


class Signature(StrEnum):
    """What the kernel dropped TCP segments for (RFC 2385)."""

    MISSING = "unsigned"
    UNEXPECTED = "signed"
    WRONG = "signed otherwise"


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to see of one session.

    `age` is for how many seconds it has been in its state; `received`, `advertised` count prefixes. `looped` and
    `unreached` count those of others that this node has no path to because the peer's has the own AS in it, or a next
    hop, such as `next_hop`, that nothing reaches. `dead_link` is the session's link where that has no carrier.
    `withheld` says why nothing of ours goes out where something might. `others` tells that there are other nodes or
    sessions. `dropped` is of this host, not of this session alone.
    """

    peering: Peering
    status: SessionStatus
    age: float
    received: int = 0
    advertised: int = 0
    looped: int = 0
    unreached: int = 0
    next_hop: Address | None = None
    dead_link: str = ""
    withheld: str = ""
    others: bool = False
    dropped: frozenset[Signature] = frozenset()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`id` is that of docs/reference/findings.md."""

    id: str
    cause: str
    cure: str


def diagnose(seen: Seen) -> tuple[Diagnosis, ...]:
    """Return what is likely wrong with the session, nothing where it does its work."""
    found = _established(seen) if seen.status.state is SessionState.ESTABLISHED else _down(seen)
    return tuple(found)


def _down(seen: Seen) -> Iterator[Diagnosis]:
    spec, status = seen.peering.spec, seen.status
    last = status.notification
    if seen.dead_link:
        yield Diagnosis(
            "FAB1801",
            f"its link {seen.dead_link} has no carrier",
            "look at the cable, and at the other end's port",
        )
    elif status.idle_until:
        yield Diagnosis(
            "FAB1801",
            f"it sent more than {_prefixes(seen.peering.max_prefixes)}, and was closed",
            f"look at what the router sends; `fabricctl bgp reset {spec.peer}` tries it again at once, the annotation "
            "fabricctl.io/max-prefix allows more",
        )
    elif last and last.at >= status.since - PATIENCE and not _quiet(seen, last):
        if said := _refusal(seen, last):
            yield said
    elif status.state is SessionState.CONNECT and seen.age >= PATIENCE:
        yield _silence(seen)


def _quiet(seen: Seen, last: Notification) -> bool:
    """The peer has said nothing since `last`, for so long that this no longer is why the session is down."""
    return seen.status.state is SessionState.CONNECT and seen.status.since + seen.age - last.at >= QUIET


def _refusal(seen: Seen, last: Notification) -> Diagnosis | None:
    """What a NOTIFICATION means; None where the session comes up again by itself, or does not for another reason."""
    spec = seen.peering.spec
    on_router = f"the router's neighbour {spec.source} must have remote AS {spec.local_as}"
    match (last.code, last.subcode), last.sent_by_us:
        # Resets and changes, from which both come back.
        case ((6, 4 | 6 | 7 | 8 | 9), _) | ((6, 2 | 3), True):
            return None
        case (2, 2), True:
            cure = f"the peer's AS is not {spec.peer_as}: correct asNumber of {_asked_by(seen.peering)}"
        case (2, 2), False:
            cure = f"{on_router}; or give this node the AS that the router expects"
        case (2, 3), _:
            cure = f"two routers have the id {spec.router_id}: each needs its own"
        case (6, 3 | 5), False:
            cure = f"the router does not know this node: {on_router}, or a listen range with it"
        case (6, 2), False:
            cure = "the session is shut down on the router: take the shutdown away there"
        case (6, 1), False:
            cure = "the router takes fewer prefixes than this node sends: raise its maximum"
        case (4, _), by_us:
            silent = "the peer" if by_us else "this node"
            cure = (
                f"nothing came from {silent} for the hold time: look at the link between them, and the load"
            )
        case _:
            cure = "compare both ends' settings of this session"
    return Diagnosis("FAB1801", _ended(last), cure)


def _ended(last: Notification) -> str:
    who = "this node" if last.sent_by_us else "the peer"
    return f"{who} ended it: {words(last.code, last.subcode)} ({last.code}/{last.subcode})"


def _silence(seen: Seen) -> Diagnosis:
    spec, last = seen.peering.spec, seen.status.notification
    before = f" (before that, {_ended(last)})" if last else ""
    telling = {Signature.MISSING, Signature.WRONG} if spec.password else {Signature.UNEXPECTED}
    if dropped := seen.dropped & telling:
        cause = f"no answer, and the kernel drops TCP segments that come {' or '.join(sorted(dropped))}: likely MD5"
        cure = (
            f"give both ends the same password, or neither ({_asked_by(seen.peering)}: password.secretKeyRef)"
        )
        return Diagnosis("FAB1801", cause + before, cure)
    if spec.passive:
        return Diagnosis(
            "FAB1801",
            f"this node waits for the peer to connect, and it does not{before}",
            f"the router must connect to {spec.source} port {spec.listen_port}: it must not be passive as well, and no "
            "firewall be between",
        )
    suspects = [
        "the address is wrong or no BGP runs there",
        f"a firewall is between (TCP {spec.port}, both ways)",
        "MD5 differs: the router may have a password for this node",
    ]
    if spec.password:
        suspects = ["MD5 differs: the router may have another password for this node, or none", *suspects[:2]]
    if spec.ttl_security:
        suspects.append(f"what comes has a TTL below {256 - spec.ttl_security}")
    if last and (last.code, last.subcode) in ((6, 1), (6, 2)) and not last.sent_by_us:
        suspects.append("the router still keeps it shut, as it said last")
    reason = seen.status.reason
    why = f": {reason}" if reason and "notification" not in reason else ""  # that one is what was before
    return Diagnosis(
        "FAB1801",
        f"no answer from {spec.peer} port {spec.port}{why}{before}",
        f"likely {'; or '.join(suspects)}",
    )


def _established(seen: Seen) -> Iterator[Diagnosis]:
    spec, peering = seen.peering.spec, seen.peering
    limit = peering.max_prefixes
    if limit and seen.received >= NEARLY * limit:
        yield Diagnosis(
            "FAB1804",
            f"it has sent {_prefixes(seen.received)}, and at more than {limit} it is closed",
            "have the router send less, or allow more by the annotation fabricctl.io/max-prefix",
        )
    if seen.looped:
        yield Diagnosis(
            "FAB1802",
            f"{_prefixes(seen.looped)} of others refused, for this node's AS {spec.local_as} in the path",
            f"nodes behind this router have one AS: as-override for {spec.source} on the router (FRR: neighbor "
            f"{spec.source} as-override), or numAllowedLocalASNumbers: 1 in {_asked_by(peering)}",
        )
    if seen.unreached:
        mend = (
            f"the router must set itself as next hop towards {spec.source} (FRR: next-hop-self force, which covers "
            "what it reflects; BIRD: next hop self)"
            if not spec.external
            else "the router must send a next hop on a link of this host, or this host needs a route to it"
        )
        yield Diagnosis(
            "FAB1802",
            f"{_prefixes(seen.unreached)} cannot be used: the next hop ({seen.next_hop}) is reached by no route",
            mend,
        )
    if not seen.received and (seen.age >= SETTLED or seen.status.synced):
        yield from _nothing_received(seen)
    if not seen.advertised and seen.withheld:
        yield Diagnosis(
            "FAB1803", f"nothing goes out: {seen.withheld}", "`fabricctl bgp route PREFIX` has each of them"
        )


def _nothing_received(seen: Seen) -> Iterator[Diagnosis]:
    spec = seen.peering.spec
    if spec.external:
        yield Diagnosis(
            "FAB1802",
            "the router sends nothing: likely its export policy",
            "let it send what this node is to reach; FRR refuses both ways as long as an external neighbour has no "
            "policy: give it route-maps in and out, or `no bgp ebgp-requires-policy`",
        )
    elif seen.others and seen.peering.source is not Source.MESH:
        yield Diagnosis(
            "FAB1802",
            "the router sends nothing: likely it does not pass on what it has from other internal peers",
            f"make this node its client (FRR: neighbor {spec.source} route-reflector-client; BIRD: rr client), with "
            "itself as next hop (FRR: next-hop-self force; BIRD: next hop self)",
        )


def _prefixes(count: int) -> str:
    return "1 prefix" if count == 1 else f"{count} prefixes"


def _asked_by(peering: Peering) -> str:
    return f"BGPPeer {peering.name}" if peering.name else "BGPConfiguration default"
