"""Decide what of the workloads' own packets leaves with this node's address (natOutgoing). Pure.

A packet from a pool with natOutgoing to an address in no pool; what stays within the fabric keeps its addresses.
Source: calico-semantics §§6 (natOutgoing and its settings), 9 (nat).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from fabric.plan.produced import LINKS, Address, Hook, Prefix, Produced, nets, produced
from fabric.plan.tables import Version

PORTED = ("tcp", "udp")  # of which the source port is kept in a range


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What natOutgoing is made of: `pools` ask for it, `inside` are all whose addresses are never its destination.

    `spared` are the addresses of nodes, where those are no destination either. `address` (IPv4) stands in for the one
    that the kernel would choose, `ports` ("30000-30999") for its source ports, and `interfaces` limits it to links, as
    iptables writes them.
    """

    pools: frozenset[Prefix] = frozenset()
    inside: frozenset[Prefix] = frozenset()
    spared: frozenset[Address] = frozenset()
    address: IPv4Address | None = None
    ports: str = ""
    interfaces: str = ""


def produce(version: Version, outgoing: Outgoing) -> Produced:
    """Return the rules of one family; nothing where no pool of it asks."""
    name = f"fab{version}-nat"
    sets = {
        f"{name}-pools": nets(version, outgoing.pools),
        f"{name}-inside": nets(version, outgoing.inside | outgoing.pools),
    }
    if not sets[f"{name}-pools"].members:
        return Produced(version)
    match = f"-o {outgoing.interfaces}" if outgoing.interfaces else f"! -o {LINKS}"
    match += f" -m set --match-set {name}-pools src -m set ! --match-set {name}-inside dst"
    if (spared := nets(version, outgoing.spared)).members:
        sets[f"{name}-spared"] = spared
        match += f" -m set ! --match-set {name}-spared dst"
    hook = Hook("nat", "POSTROUTING", "fab-nat-outgoing", tuple(_lines(version, outgoing)), match)
    return produced(version, [hook], sets)


def _lines(version: Version, outgoing: Outgoing) -> list[str]:
    # Fully random, since two packets that choose the same port at once would lose one of them.
    if outgoing.address and version == 4:
        target, ports = f"-j SNAT --to-source {outgoing.address}", f":{outgoing.ports}"
    else:
        target, ports = "-j MASQUERADE", f" --to-ports {outgoing.ports}"
    ranged = PORTED if outgoing.ports else ()
    return [
        *(f"-p {protocol} {target}{ports} --random-fully" for protocol in ranged),
        f"{target} --random-fully",
    ]
