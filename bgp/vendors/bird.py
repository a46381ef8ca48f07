"""Decide how BIRD is told its side of the sessions: a whole bird.conf, as of BIRD 2.0."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from bgp.router import MAX_PREFIXES, MULTIPATH, Group, Neighbour, Prefixes, Router
from bgp.vendors import words


def render(router: Router) -> str:
    """Return the configuration."""
    return "\n".join((*_head(router), *_itself(router), *_policy(router), *_sessions(router), ""))


def _head(router: Router) -> Iterator[str]:
    yield f"# {words.head(router)}"
    yield "# A bird.conf as it stands. To keep forwarding while BIRD itself restarts, start it with -R."
    yield ""


def _itself(router: Router) -> Iterator[str]:
    yield "# The router itself: leave out what yours has already, but for `merge paths`."
    if router.identifier is None:
        yield f"# {words.NO_IDENTIFIER}"
    yield f"router id {router.identifier or '192.0.2.1'};"
    yield "protocol device { }"
    if not all(group.direct for group in router.groups):
        yield "# Nodes that are on none of its links are found by these routes, and by an IGP in the same table."
        yield f"protocol direct {{ {' '.join(f'ipv{family};' for family in router.families)} }}"
    for family in router.families:
        yield f"protocol kernel kernel{family} {{"
        yield f"  ipv{family} {{ import none; export where source = RTS_BGP; }};"
        yield f"  merge paths on limit {MULTIPATH};"
        yield "  graceful restart on;"
        yield "}"


def _policy(router: Router) -> Iterator[str]:
    yield ""
    yield f"# {words.ACCEPT}"
    yield from (f"# {line}" for line in words.filters(router))
    for family in router.families:
        yield f"define FABRIC_IN{family} = {_set(router.accept, family)};"
    yield f"# {words.OFFER}"
    for family in router.families:
        yield f"define FABRIC_OUT{family} = {_set(router.offer, family)};"
    for family in router.families:
        yield f"filter fabric_in{family} {{"
        yield f"  if net !~ FABRIC_IN{family} then reject;"
        yield f"  # {words.DRAINED}"
        yield "  if (65535, 0) ~ bgp_community then bgp_local_pref = 0;"
        yield "  accept;"
        yield "}"
    for number in sorted({n.remote_as for g in router.groups if g.as_override for n in g.neighbours}):
        yield f"# {words.SHARED_AS}"
        for family in router.families:
            yield f"filter fabric_out{family}_{number} {{"
            yield f"  if net !~ FABRIC_OUT{family} then reject;"
            yield f"  if bgp_path ~ [= * {number} * =] then {{"
            yield f"    bgp_path.delete({number});"
            yield f"    bgp_path.prepend({router.local_as});"
            yield "  }"
            yield "  accept;"
            yield "}"


def _set(listed: Iterable[Prefixes], family: int) -> str:
    texts = [
        f"{p.within}{{{p.low},{p.high}}}" if p.high > p.within.prefixlen else str(p.within)
        for p in listed
        if p.within.version == family
    ]
    # BIRD knows no empty set of prefixes.
    return f"[ {', '.join(texts)} ]" if texts else f"[ {'0.0.0.0/32' if family == 4 else '::/128'} ]"


def _sessions(router: Router) -> Iterator[str]:
    taken: set[str] = set()
    for at, group in enumerate(router.groups, 1):
        template = f"fabric{at}" if len(router.groups) > 1 else "fabric"
        yield ""
        yield f"template bgp {template} {{"
        yield from (f"  {line}" for line in _template(router, group))
        yield "}"
        if group.listen:
            yield f"# {words.listening(group)}"
            yield f"protocol bgp {template}_nodes from {template} {{"
            yield f"  neighbor range {group.link} as {group.remote_as};"
            yield f'  dynamic name "{template}_node";'
            yield from _channels(group, group.remote_as)
            yield "}"
            continue
        for neighbour in group.neighbours:
            yield f"protocol bgp {_named(neighbour.name, taken)} from {template} {{"
            yield from (f"  {line}" for line in _neighbour(router, group, neighbour))
            yield from _channels(group, neighbour.remote_as)
            yield "}"


def _named(name: str, taken: set[str]) -> str:
    """Return a word of BIRD's for a node that is none yet."""
    word = found = "node_" + re.sub(r"[^a-zA-Z0-9]", "_", name)
    number = 2
    while found in taken:
        found, number = f"{word}_{number}", number + 1
    taken.add(found)
    return found


def _template(router: Router, group: Group) -> Iterator[str]:
    port = f" port {group.port}" if group.port != 179 else ""
    yield f"local{port} as {router.local_as};"
    if group.direct and group.hops <= 1:
        yield "direct;"
    else:
        yield f"multihop {max(group.hops, 2)};" if group.hops else "multihop;"
    if group.hops:
        yield "ttl security on;"
    if group.password:
        yield f"# {words.secret(group)}"
        yield f'password "{group.password}";'
    yield f"# {words.RESTART}"
    yield "graceful restart on;"
    yield f"graceful restart time {router.restart_time};"
    yield "# With it, paths would outlive the hold time."
    yield "long lived graceful restart off;"
    yield "connect delay time 1;"
    yield "error wait time 1, 30;"
    yield f"# {words.bfd('bfd on;')}"
    if group.client:
        yield f"# {words.CLIENTS}"
        yield "rr client;"


def _neighbour(router: Router, group: Group, neighbour: Neighbour) -> Iterator[str]:
    if not group.direct:
        port = f" port {group.port}" if group.port != 179 else ""
        yield f"local {neighbour.ours}{port} as {router.local_as};"
    port = f" port {neighbour.port}" if neighbour.port != 179 else ""
    yield f"neighbor {neighbour.address}{port} as {neighbour.remote_as};"


def _channels(group: Group, remote_as: int) -> Iterator[str]:
    for family in group.families:
        override = f"_{remote_as}" if group.as_override else ""
        export = f"filter fabric_out{family}{override}" if override else f"where net ~ FABRIC_OUT{family}"
        yield f"  ipv{family} {{"
        yield f"    import filter fabric_in{family};"
        yield f"    export {export};"
        yield f"    import limit {MAX_PREFIXES} action restart;"
        if not group.external:
            yield "    next hop self;"
        if family == 4 and group.extended_next_hop:
            yield "    extended next hop on;"
        yield "  };"
