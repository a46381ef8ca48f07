"""Decide the rules around this node's tunnel devices: who may send through them, and what fits. Pure.

    filter INPUT        protocol 4 and the VXLAN port, from the nodes alone; the probe of checksums, from far ends
    filter OUTPUT       the same, out to these: policy of a host endpoint is not asked about what carries packets that
                        had their own, and a probe that it kept back would pass for a broken link
    mangle FORWARD      TCP's segments fit the tunnel
    nat    POSTROUTING  what the host sends through a tunnel comes from the tunnel's address: answers come by it too

Source: calico-semantics §9 (filter INPUT, OUTPUT, nat).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from fabric.plan.produced import LINKS, Address, Hook, Produced, nets, produced
from fabric.plan.tables import Version
from fabric.plan.tunnels import Tunnel

PROBE_PORT: Final = 14789  # TCP, on the VXLAN devices: what asks whether checksums survive the tunnel
IPIP: Final = 4  # the protocol's number
_SYN: Final = "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"


def produce(version: Version, tunnels: Collection[Tunnel], nodes: frozenset[Address]) -> Produced:
    """Return the rules of one family for those of `tunnels` that are of it; `nodes` are the addresses of all nodes."""
    here = sorted((one for one in tunnels if one.encap.version == version), key=lambda one: one.name)
    if not here:
        return Produced(version)
    sets = {
        f"fab{version}-tunnel-nodes": nets(version, nodes),
        f"fab{version}-tunnel-ends": nets(version, (far.address for one in here for far in one.far)),
    }
    hooks = (
        Hook("filter", "INPUT", "fab-tunnels", tuple(line for one in here for line in _taken(version, one))),
        Hook(
            "filter", "OUTPUT", "fab-tunnels-out", tuple(line for one in here for line in _sent(version, one))
        ),
        Hook("mangle", "FORWARD", "fab-tunnel-mss", tuple(line for one in here for line in _fitting(one))),
        Hook(
            "nat",
            "POSTROUTING",
            "fab-tunnel-source",
            tuple(f"-o {t.name} ! -s {t.address} -j SNAT --to-source {t.address}" for t in here),
            "-m addrtype --src-type LOCAL",
        ),
    )
    return produced(version, hooks, sets)


def _taken(version: Version, tunnel: Tunnel) -> Iterator[str]:
    # A workload that took a node's address is not let in here: whether it may send from it is asked later.
    match = _outer(tunnel)
    known = f"-m set --match-set fab{version}-tunnel-nodes src -m addrtype --dst-type LOCAL"
    yield f"! -i {LINKS} {match} {known} -j ACCEPT"
    yield f"{match} -j DROP"
    yield from _probe(version, tunnel, "-i", "src")


def _sent(version: Version, tunnel: Tunnel) -> Iterator[str]:
    known = f"-m set --match-set fab{version}-tunnel-nodes dst -m addrtype --src-type LOCAL"
    yield f"{_outer(tunnel)} {known} -j ACCEPT"
    yield from _probe(version, tunnel, "-o", "dst")


def _outer(tunnel: Tunnel) -> str:
    """Return the match of what the tunnel's packets are carried in."""
    return f"-p udp -m udp --dport {tunnel.port}" if tunnel.encap.kind == "vxlan" else f"-p {IPIP}"


def _probe(version: Version, tunnel: Tunnel, way: str, end: str) -> Iterator[str]:
    if tunnel.encap.kind == "vxlan":
        known = f"-m set --match-set fab{version}-tunnel-ends {end}"
        yield f"{way} {tunnel.name} -p tcp -m tcp --dport {PROBE_PORT} {known} -j ACCEPT"


def _fitting(tunnel: Tunnel) -> Iterator[str]:
    for way in ("-i", "-o"):
        yield f"{way} {tunnel.name} {_SYN}"
