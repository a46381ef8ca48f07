"""Decide which received paths may be used, and as what.

First loops and what else must never be, which ExaBGP does not check and no filter lets in (RFC 4271 §9.1.2, RFC 4456
§8); then the session's BGPFilters; then the built-in import. `safe` takes prefixes inside our pools and, where it is
asked for, a default route; nothing else, so that a mis-set router cannot give this host a route it did not want.
`calico` takes everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bgp import rules
from bgp.decision import DEFAULT_LOCAL_PREF
from bgp.peering import Peering, Policy
from bgp.prefixes import Cover
from bgp.rib import Path, Prefix
from bgp.rules import RuleId, Rules, Seen

OWN_AS = "AS loop"  # how a refusal for the own AS in the path begins
GRACEFUL_SHUTDOWN = "65535:0"  # RFC 8326 §5


@dataclass(frozen=True, slots=True)
class ImportPolicy:
    """What may come in. `default_routes` has the families (4, 6) whose default route is wanted here."""

    pools: frozenset[Prefix]
    own_blocks: frozenset[Prefix]
    default_routes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Imported:
    """What import made of a path: `path` as it goes on, None where it is refused and `why` says by what.

    `rule` is the rule of a BGPFilter that decided, None where a built-in one did.
    """

    path: Path | None
    why: str = ""
    rule: RuleId | None = None


Importer = Callable[[Path, str], Imported]


def importer(peering: Peering, policy: ImportPolicy) -> Importer:
    """Return what decides the paths received on one session, prepared once for all of them.

    It takes a path, and the link to which its next hop leads by routes that BGP did not make, "" where none does.
    The path it returns is the one to use: a rule's operations have changed it, and its local preference is the one
    that counts, None for 100.
    """
    session = peering.spec
    filters = rules.compiled(peering.filters, "import", external=session.external)
    pools = Cover(policy.pools)

    def take(path: Path, device: str = "") -> Imported:
        if session.external:
            path = _as_from_outside(path)
        if why := _never(path, peering, policy):
            return Imported(None, why)
        path, rule, accepted = _filtered(path, filters, device)
        if rule and not accepted:
            return Imported(None, f"rejected by {rule}", rule)
        if (
            not rule
            and peering.import_policy is Policy.SAFE
            and (why := _outside(path.prefix, pools, policy))
        ):
            return Imported(None, why)
        if peering.drained or GRACEFUL_SHUTDOWN in path.communities:
            path = replace(path, local_pref=0)
        return Imported(path, rule=rule)

    return take


def _as_from_outside(path: Path) -> Path:
    """Without what only means something within an AS (RFC 4271 §5.1.5; RFC 7606 §7.5, §7.9, §7.10): it is discarded."""
    if path.local_pref is None and path.originator_id is None and not path.cluster_list:
        return path
    return replace(path, local_pref=None, originator_id=None, cluster_list=())


def _never(path: Path, peering: Peering, policy: ImportPolicy) -> str:
    session = peering.spec
    if path.next_hop == session.source:
        # RFC 4271 §6.3; the kernel would refuse it too.
        return "the next hop is this node"
    # Own is the AS that this session shows, as with BIRD: where it is not the node's (localASNumber), the node's own
    # never reached this peer from here, and in a path it is another node's.
    seen = path.as_path.count(session.local_as) + (session.local_as in path.as_sets)
    if seen > peering.allow_own_as:
        return f"{OWN_AS}: own AS {session.local_as} in the path"
    if path.originator_id == session.router_id:
        return "loop: this node is the originator"
    if path.cluster_list and (
        session.router_id in path.cluster_list or peering.cluster_id in path.cluster_list
    ):
        return "loop: own id in the cluster list"
    if path.prefix in policy.own_blocks:
        # Not even by a filter: this node holds it, with a blackhole for what is free of it.
        return "own block"
    return ""


def _filtered(path: Path, filters: Rules, device: str) -> tuple[Path, RuleId | None, bool]:
    if not filters[path.prefix.version]:
        return path, None, False
    local_pref = DEFAULT_LOCAL_PREF if path.local_pref is None else path.local_pref
    seen = Seen(path.prefix, local_pref, True, device, path.as_path, path.as_sets, path.communities)
    verdict = rules.decide(filters, seen)
    if verdict is None:
        return path, None, False
    if verdict.seen is not seen:
        after = verdict.seen
        path = replace(
            path, local_pref=after.local_pref, as_path=after.as_path, communities=after.communities
        )
    return path, verdict.rule, verdict.accepted


def _outside(prefix: Prefix, pools: Cover, policy: ImportPolicy) -> str:
    if prefix.prefixlen == 0:
        return "" if prefix.version in policy.default_routes else "the host has a default route of its own"
    return "" if pools.of(prefix) else "in no pool"
