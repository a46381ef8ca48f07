"""Decides what is in an ipset, written as ipset writes it, in one family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import Final, TypeAlias

from policy.form import Address, Endpoint, IPSet, PortMember, Prefix
from policy.render_match import PROTOCOL, Version

Members: TypeAlias = frozenset[Prefix] | frozenset[PortMember]

_HALVES: Final = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}  # hash:net has no /0
_LINKS_A_NET: Final = 32  # the kernel's limit is some 60, less where other prefixes hash alike
_WHOLE: Final = frozenset((ip_network("0.0.0.0/0"), ip_network("::/0")))


def nets(version: Version, prefixes: Iterable[Prefix | Address]) -> IPSet:
    """Return the set of those of `prefixes` that are of this family."""
    return IPSet("hash:net", version, frozenset(text for net in prefixes for text in _net(version, net)))


def selected(
    version: Version, wanted: frozenset[Prefix], before: tuple[frozenset[Prefix], IPSet] | None
) -> IPSet:
    """Return the set of a selector; `before` is what it held and its set, so that only what differs is written."""
    # A whole family is written as what may be there by itself, too.
    if before is None or not _WHOLE.isdisjoint(wanted) or not _WHOLE.isdisjoint(before[0]):
        return nets(version, wanted)
    held, ipset = before
    gone = {text for one in held - wanted for text in _net(version, one)}
    come = {text for one in wanted - held for text in _net(version, one)}
    return IPSet("hash:net", version, (ipset.members - gone) | come) if gone or come else ipset


def named(version: Version, wanted: frozenset[PortMember]) -> IPSet:
    """Return the set of a named port."""
    texts = (
        f"{one.address},{PROTOCOL[one.protocol]}:{one.port}"
        for one in wanted
        if one.address.version == version
    )
    return IPSet("hash:ip,port", version, frozenset(texts))


def pairs(version: Version, endpoint: Endpoint, *, spoofing: bool) -> tuple[str, ...]:
    """Return what a workload may send from: each address with its link; nothing while no link is known."""
    if not endpoint.interface:
        return ()
    sources = (*endpoint.addresses, *endpoint.other_sources(spoofing=spoofing))
    return tuple(f"{text},{endpoint.interface}" for one in sources for text in _net(version, one))


def linked(version: Version, pairs: list[str]) -> list[IPSet]:
    """Return `pairs` in as many sets as it takes, at least one; those of single addresses come first.

    In one set the kernel looks no further than the longest prefix that an address is in, whatever its link, so that one
    link's address would hide a shorter prefix of another link. Nor does it hold more than some links of one prefix.
    """
    spread: dict[tuple[int, int], list[str]] = {}
    seen = Counter[str]()
    for pair in sorted(pairs):
        net = pair.partition(",")[0]
        length = int(net.partition("/")[2] or 0)  # a single address is written without
        spread.setdefault((length, seen[net] // _LINKS_A_NET), []).append(pair)
        seen[net] += 1
    members = [frozenset(spread[place]) for place in sorted(spread)] or [frozenset[str]()]
    return [IPSet("hash:net,iface", version, one) for one in members]


def _net(version: Version, net: Prefix | Address) -> Iterator[str]:
    if net.version != version:
        return
    if not isinstance(net, Prefix):
        yield str(net)
    elif net.prefixlen == net.max_prefixlen:
        yield str(net.network_address)
    elif net.prefixlen:
        yield str(net)
    else:
        yield from _HALVES[version]
