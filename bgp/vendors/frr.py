"""Decide how FRR is told its side of the sessions: lines for `vtysh -f` or frr.conf, as of FRR 8.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bgp.router import MAX_PREFIXES, MULTIPATH, Group, Neighbour, Prefixes, Router
from bgp.vendors import words

FAMILIES = {4: ("ip", "ipv4 unicast", ""), 6: ("ipv6", "ipv6 unicast", "-6")}
LISTEN_LIMIT = 100  # FRR's own


def render(router: Router) -> str:
    """Return the configuration, which adds to what the router has."""
    return "\n".join((*_head(router), *_policy(router), *_bgp(router), ""))


def _head(router: Router) -> Iterator[str]:
    yield f"! {words.head(router)}"
    yield "! It adds to what the router has: `vtysh -f FILE`, or append it to frr.conf."
    ports = {group.port for group in router.groups} - {179}
    for port in sorted(ports):
        yield f"! Nodes connect to port {port}: start bgpd with `-p {port}`."
    yield "! To keep forwarding while FRR itself restarts, zebra needs `-K 60` (zebra_options in /etc/frr/daemons)."


def _policy(router: Router) -> Iterator[str]:
    yield "!"
    yield f"! {words.ACCEPT}"
    yield from (f"! {line}" for line in words.filters(router))
    yield from _prefix_lists("FABRIC-IN", router.accept)
    yield f"! {words.OFFER}"
    yield from _prefix_lists("FABRIC-OUT", router.offer)
    yield "!"
    yield f"! {words.DRAINED}"
    yield "bgp community-list standard FABRIC-DRAINED seq 5 permit graceful-shutdown"
    for family in router.families:
        ip, _, suffix = FAMILIES[family]
        yield f"route-map FABRIC-IN{suffix} permit 10"
        yield f" match {ip} address prefix-list FABRIC-IN{suffix}"
        yield " match community FABRIC-DRAINED"
        yield " set local-preference 0"
        yield "exit"
        yield f"route-map FABRIC-IN{suffix} permit 20"
        yield f" match {ip} address prefix-list FABRIC-IN{suffix}"
        yield "exit"
        yield f"route-map FABRIC-OUT{suffix} permit 10"
        yield f" match {ip} address prefix-list FABRIC-OUT{suffix}"
        yield "exit"


def _prefix_lists(name: str, listed: Iterable[Prefixes]) -> Iterator[str]:
    for at, prefixes in enumerate(listed, 1):
        ip, _, suffix = FAMILIES[prefixes.within.version]
        yield f"{ip} prefix-list {name}{suffix} seq {5 * at} permit {prefixes.within}{_lengths(prefixes)}"


def _lengths(prefixes: Prefixes) -> str:
    length = prefixes.within.prefixlen
    if prefixes.low > length:
        return f" ge {prefixes.low}"  # and up to single addresses, unless `le` says less
    return f" le {prefixes.high}" if prefixes.high > length else ""


def _bgp(router: Router) -> Iterator[str]:
    yield "!"
    yield f"router bgp {router.local_as}"
    if router.identifier is None:
        yield f" ! {words.NO_IDENTIFIER}"
        yield " ! bgp router-id 192.0.2.1"
    yield " ! Paths of equal length share the load, whichever ASes they lead through."
    yield " bgp bestpath as-path multipath-relax"
    yield f" ! {words.RESTART}"
    yield " ! Whoever is back has 360 s to send all of it again. Sessions that are up have to be cleared once to know."
    yield " bgp graceful-restart"
    yield f" bgp graceful-restart restart-time {router.restart_time}"
    yield " bgp graceful-restart stalepath-time 360"
    yield " bgp graceful-restart preserve-fw-state"
    if any(group.direct and not group.external for group in router.groups):
        yield " ! An internal session ends with its link's carrier, as an external one does anyway."
        yield " bgp fast-convergence"
    most = 2 * sum(len(group.neighbours) for group in router.groups if group.listen)
    if most > LISTEN_LIMIT:
        yield f" bgp listen limit {most}"
    named = list(_named(router))
    for name, group in named:
        yield from _group(name, group)
    yield " !"
    for family in router.families:
        _, text, suffix = FAMILIES[family]
        yield f" address-family {text}"
        for name, group in named:
            yield from _activation(name, group, family, suffix)
        yield f"  ! Where this router has no default route in BGP: neighbor {named[0][0]} default-originate"
        yield f"  maximum-paths {MULTIPATH}"
        yield f"  maximum-paths ibgp {MULTIPATH}"
        yield " exit-address-family"
    if 4 not in router.families:
        yield " address-family ipv4 unicast"
        yield from (f"  no neighbor {name} activate" for name, _ in named)
        yield " exit-address-family"
    yield "exit"


def _named(router: Router) -> Iterator[tuple[str, Group]]:
    for at, group in enumerate(router.groups, 1):
        yield f"FABRIC-{at}" if len(router.groups) > 1 else "FABRIC", group


def _group(name: str, group: Group) -> Iterator[str]:
    yield " !"
    yield f" neighbor {name} peer-group"
    if group.listen:
        yield f" neighbor {name} remote-as {group.remote_as}"
    yield f" neighbor {name} timers connect 5"
    if group.password:
        yield f" ! {words.secret(group)}"
        yield f" neighbor {name} password {group.password}"
    if group.hops:
        yield f" neighbor {name} ttl-security hops {group.hops}"
    elif group.external and not group.direct:
        yield f" neighbor {name} ebgp-multihop"
    if group.extended_next_hop:
        yield f" neighbor {name} capability extended-nexthop"
    yield f" ! {words.bfd(f'neighbor {name} bfd')}"
    if group.listen:
        yield f" ! {words.listening(group)}"
        yield f" bgp listen range {group.link} peer-group {name}"
        return
    for neighbour in group.neighbours:
        yield from _neighbour(name, neighbour, direct=group.direct)


def _neighbour(group: str, neighbour: Neighbour, *, direct: bool) -> Iterator[str]:
    yield f" neighbor {neighbour.address} remote-as {neighbour.remote_as}"
    yield f" neighbor {neighbour.address} peer-group {group}"
    yield f" neighbor {neighbour.address} description {neighbour.name}"
    if neighbour.port != 179:
        yield f" neighbor {neighbour.address} port {neighbour.port}"
    if not direct:
        yield f" neighbor {neighbour.address} update-source {neighbour.ours}"


def _activation(name: str, group: Group, family: int, suffix: str) -> Iterator[str]:
    if family not in group.families:
        if family == 4:  # on by default
            yield f"  no neighbor {name} activate"
        return
    yield f"  neighbor {name} activate"
    yield f"  neighbor {name} route-map FABRIC-IN{suffix} in"
    yield f"  neighbor {name} route-map FABRIC-OUT{suffix} out"
    yield f"  neighbor {name} maximum-prefix {MAX_PREFIXES} 75 restart 15"
    if group.client:
        yield f"  ! {words.CLIENTS}"
        yield f"  neighbor {name} route-reflector-client"
    if not group.external:
        yield f"  neighbor {name} next-hop-self{' force' if group.client else ''}"
    if group.as_override:
        yield f"  ! {words.SHARED_AS}"
        yield f"  neighbor {name} as-override"
