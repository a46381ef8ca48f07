"""Decide how GoBGP is told its side of the sessions: a whole configuration file in TOML, as of GoBGP 3."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from bgp.router import MAX_PREFIXES, MULTIPATH, Group, Neighbour, Prefixes, Router
from bgp.vendors import words


def render(router: Router) -> str:
    """Return the configuration."""
    return "\n".join((*_head(router), *_sets(router), *_policies(router), *_sessions(router), ""))


def _head(router: Router) -> Iterator[str]:
    yield f"# {words.head(router)}"
    yield "# A file for `gobgpd -f` as it stands. Start it again with -r, and nodes keep its paths meanwhile."
    yield ""
    yield "[global.config]"
    yield f"  as = {router.local_as}"
    if router.identifier is None:
        yield f"  # {words.NO_IDENTIFIER}"
    yield f'  router-id = "{router.identifier or "192.0.2.1"}"'
    for port in sorted({group.port for group in router.groups} - {179}):
        yield f"  port = {port}"
    yield "[global.use-multiple-paths.config]"
    yield "  enabled = true"
    for kind in ("ebgp", "ibgp"):
        yield f"[global.use-multiple-paths.{kind}.config]"
        yield f"  maximum-paths = {MULTIPATH}"
    yield "# GoBGP itself forwards nothing. Beside FRR's zebra it fills the kernel:"
    yield "# [zebra.config]"
    yield "#   enabled = true"
    yield '#   url = "unix:/run/frr/zserv.api"'
    yield "#   version = 6"
    yield "# Of the neighbours, this policy is about the nodes alone."
    yield "[global.apply-policy.config]"
    yield '  import-policy-list = ["fabric-in"]'
    yield '  export-policy-list = ["fabric-out"]'


def _listens(group: Group) -> bool:
    # On a listen range GoBGP takes unsigned connections and refuses signed ones, and replaces no AS.
    return group.listen and not group.password and not group.shared_as


def _sets(router: Router) -> Iterator[str]:
    yield ""
    yield f"# {words.ACCEPT}"
    yield from (f"# {line}" for line in words.filters(router))
    for family in router.families:
        yield from _prefix_set(f"fabric-in-{family}", router.accept, family)
    yield f"# {words.OFFER}"
    for family in router.families:
        yield from _prefix_set(f"fabric-out-{family}", router.offer, family)
    yield "[[defined-sets.neighbor-sets]]"
    yield '  neighbor-set-name = "fabric-nodes"'
    addresses = [
        text
        for group in router.groups
        for text in ([str(group.link)] if _listens(group) else [str(n.address) for n in group.neighbours])
    ]
    yield f"  neighbor-info-list = {json.dumps(addresses)}"
    yield "[[defined-sets.bgp-defined-sets.community-sets]]"
    yield '  community-set-name = "fabric-drained"'
    yield '  community-list = ["65535:0"]'


def _prefix_set(name: str, listed: Iterable[Prefixes], family: int) -> Iterator[str]:
    yield "[[defined-sets.prefix-sets]]"
    yield f'  prefix-set-name = "{name}"'
    for prefixes in listed:
        if prefixes.within.version == family:
            yield "  [[defined-sets.prefix-sets.prefix-list]]"
            yield f'    ip-prefix = "{prefixes.within}"'
            yield f'    masklength-range = "{prefixes.low}..{prefixes.high}"'


def _policies(router: Router) -> Iterator[str]:
    yield ""
    yield "[[policy-definitions]]"
    yield '  name = "fabric-in"'
    yield f"  # {words.DRAINED} GoBGP cannot set 0."
    for family in router.families:
        yield from _statement(f"fabric-in-{family}", "set-local-pref = 1", drained=True)
    for family in router.families:
        yield from _statement(f"fabric-in-{family}")
    yield from _statement("")
    yield "[[policy-definitions]]"
    yield '  name = "fabric-out"'
    for family in router.families:
        if _between_nodes(router):
            yield "  # All nodes are on one link, and reach one another without this router. Leave this out where it"
            yield "  # has other neighbours too."
            yield from _statement(f"fabric-in-{family}", 'set-next-hop = "unchanged"')
        yield from _statement(f"fabric-out-{family}")
    yield from _statement("")


def _between_nodes(router: Router) -> bool:
    links = {group.link for group in router.groups}
    return len(links) == 1 and None not in links and all(group.external for group in router.groups)


def _statement(prefixes: str, action: str = "", *, drained: bool = False) -> Iterator[str]:
    """One that accepts what is in a set of prefixes, or refuses the rest."""
    conditions = "policy-definitions.statements.conditions"
    yield "  [[policy-definitions.statements]]"
    if prefixes:
        yield f"    [{conditions}.match-prefix-set]"
        yield f'      prefix-set = "{prefixes}"'
    yield f"    [{conditions}.match-neighbor-set]"
    yield '      neighbor-set = "fabric-nodes"'
    if drained:
        yield f"    [{conditions}.bgp-conditions.match-community-set]"
        yield '      community-set = "fabric-drained"'
    if action:
        yield "    [policy-definitions.statements.actions.bgp-actions]"
        yield f"      {action}"
    yield "    [policy-definitions.statements.actions]"
    yield f'      route-disposition = "{"accept" if prefixes else "reject"}-route"'


def _sessions(router: Router) -> Iterator[str]:
    yield ""
    yield f"# {words.RESTART}"
    for at, group in enumerate(router.groups, 1):
        if _listens(group):
            yield from _listening(router, group, f"fabric-{at}")
            continue
        if group.shared_as:  # where their own AS is allowed, too: GoBGP would not send such a path
            yield f"# {words.SHARED_AS}"
        if group.password:
            yield f"# {words.secret(group)}"
        for neighbour in group.neighbours:
            yield from _neighbour(router, group, neighbour)


def _listening(router: Router, group: Group, name: str) -> Iterator[str]:
    yield "[[peer-groups]]"
    yield "  [peer-groups.config]"
    yield f'    peer-group-name = "{name}"'
    yield f"    peer-as = {group.remote_as}"
    yield from _settings("peer-groups", router, group)
    yield f"# {words.listening(group)}"
    yield "[[dynamic-neighbors]]"
    yield "  [dynamic-neighbors.config]"
    yield f'    prefix = "{group.link}"'
    yield f'    peer-group = "{name}"'


def _neighbour(router: Router, group: Group, neighbour: Neighbour) -> Iterator[str]:
    # Not by a peer group: that would take the neighbour's AS away, and let it come with any.
    yield "[[neighbors]]"
    yield "  [neighbors.config]"
    yield f'    neighbor-address = "{neighbour.address}"'
    yield f"    peer-as = {neighbour.remote_as}"
    yield f'    description = "{neighbour.name}"'
    if group.password:
        yield f'    auth-password = "{group.password}"'
    yield "  [neighbors.timers.config]"
    yield "    connect-retry = 10"
    if neighbour.port != 179 or not group.direct:
        yield "  [neighbors.transport.config]"
        if neighbour.port != 179:
            yield f"    remote-port = {neighbour.port}"
        if not group.direct:
            yield f'    local-address = "{neighbour.ours}"'
    yield from _settings("neighbors", router, group)


def _settings(scope: str, router: Router, group: Group) -> Iterator[str]:
    if group.hops:
        yield f"  [{scope}.ttl-security.config]"
        yield "    enabled = true"
        yield f"    ttl-min = {256 - group.hops}"
    elif group.external and not group.direct:
        yield f"  [{scope}.ebgp-multihop.config]"
        yield "    enabled = true"
        yield "    multihop-ttl = 255"
    if group.client:
        yield f"  [{scope}.route-reflector.config]"
        yield "    route-reflector-client = true"
        yield f'    route-reflector-cluster-id = "{router.identifier or "192.0.2.1"}"'
    if group.shared_as:
        yield f"  [{scope}.as-path-options.config]"
        yield "    replace-peer-as = true"
    yield f"  [{scope}.graceful-restart.config]"
    yield "    enabled = true"
    yield f"    restart-time = {router.restart_time}"
    for family in group.families:
        yield f"  [[{scope}.afi-safis]]"
        yield f"    [{scope}.afi-safis.config]"
        yield f'      afi-safi-name = "ipv{family}-unicast"'
        yield f"    [{scope}.afi-safis.mp-graceful-restart.config]"
        yield "      enabled = true"
        yield f"    [{scope}.afi-safis.prefix-limit.config]"
        yield f"      max-prefixes = {MAX_PREFIXES}"
        yield "      shutdown-threshold-pct = 75"
