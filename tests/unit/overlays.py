"""Nodes, pools and blocks of two subnets, for tests of what leads through tunnels.

n1 and n2 are in one subnet, n3 in another; node n7 has the blocks 10.244.7.0/26 and fd00:10:0:7::/122.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from bgp.peering import Here, Uplink
from fabric.agent.overlay import Ground, Overlay, overlay
from fabric.agent.settings import Settings
from fabric.agent.snapshot import Snapshot, fold
from fabric.ipam import block as blocks
from fabric.ipam.block import Owner
from fabric.ipam.records import AFFINITY_CONFIRMED, handle_to_json
from fabric.model.base import Resource
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.model.workloadendpoint import WorkloadEndpoint
from fabric.ops.resources import key_of
from fabric.plan.encap import IPIP, VXLAN, VXLAN6, Address, Encap, Interface, Prefix
from fabric.plan.routes import NextHop, Route, RouteKey
from fabric.store import keys
from fabric.store.kv import Changes, KeyValue

AT = datetime(2026, 11, 21, tzinfo=UTC)
_ORDINALS = {IPIP: 1, VXLAN: 2, VXLAN6: 1}
_HANDLES = {IPIP: "ipip-tunnel-addr-", VXLAN: "vxlan-tunnel-addr-", VXLAN6: "vxlan-v6-tunnel-addr-"}


def address(text: object) -> Address:
    return ip_address(str(text))


def interface(text: str) -> Interface:
    return ip_interface(text)


def network(text: object) -> Prefix:
    return ip_network(str(text))


def foreign(prefix: str, device: str, gateway: str = "", metric: int = 0) -> Route:
    return Route(
        RouteKey(network(prefix), metric), frozenset({NextHop(address(gateway) if gateway else None, device)})
    )


HERE = Here(
    uplinks=(Uplink("eth1", interface("10.1.0.1/24")), Uplink("eth1", interface("2001:db8:1::1/64"))),
)
LINKS = (foreign("10.1.0.0/24", "eth1"), foreign("2001:db8:1::/64", "eth1", metric=256))
DEFAULTS = (
    foreign("0.0.0.0/0", "eth1", "10.1.0.254"),
    foreign("::/0", "eth1", "2001:db8:1::fe", metric=1024),
)
GROUND = Ground(HERE, (*LINKS, *DEFAULTS), {"eth1": 1500}, 1500)


def own_address(number: int, version: int = 4) -> str:
    subnet = 1 if number < 3 else 2
    return f"10.{subnet}.0.{number}" if version == 4 else f"2001:db8:{subnet}::{number}"


def block(number: int, version: int = 4) -> Prefix:
    return network(f"10.244.{number}.0/26" if version == 4 else f"fd00:10:0:{number}::/122")


def end(number: int, encap: Encap) -> Address:
    """The address in its block at which a node's tunnel ends."""
    return block(number, encap.version)[_ORDINALS[encap]]


def node(number: int, *ends: Encap, **said: str) -> Node:
    """A Node that notes these ends; `said` are annotations of ours."""
    spec: dict[str, Any] = {
        "bgp": {"ipv4Address": f"{own_address(number)}/24", "ipv6Address": f"{own_address(number, 6)}/64"}
    }
    if IPIP in ends:
        spec["bgp"]["ipv4IPIPTunnelAddr"] = str(end(number, IPIP))
    if VXLAN in ends:
        spec |= {"ipv4VXLANTunnelAddr": str(end(number, VXLAN)), "vxlanTunnelMACAddr": mac(number)}
    if VXLAN6 in ends:
        spec |= {"ipv6VXLANTunnelAddr": str(end(number, VXLAN6)), "vxlanTunnelMACAddrV6": mac(number, 6)}
    annotations = {f"fabricctl.io/{key}": text for key, text in said.items()}
    return Node.model_validate({"metadata": {"name": f"n{number}", "annotations": annotations}, "spec": spec})


def mac(number: int, version: int = 4) -> str:
    return f"66:00:00:00:{version:02x}:{number:02x}"


def pool(version: int = 4, *, fallback: bool = False, **spec: object) -> IPPool:
    said = {"fabricctl.io/tunnel-fallback": "vxlan"} if fallback else {}
    prefix = "10.244.0.0/16" if version == 4 else "fd00:10::/48"
    return IPPool.model_validate(
        {"metadata": {"name": f"v{version}", "annotations": said}, "spec": {"cidr": prefix, **spec}}
    )


def endpoint(name: str, number: int, *addresses: str) -> WorkloadEndpoint:
    """A workload on node n`number`."""
    return WorkloadEndpoint.model_validate(
        {
            "metadata": {"name": f"n{number}-fabricctl-{name}-eth0", "namespace": "default"},
            "spec": {
                "node": f"n{number}",
                "workload": name,
                "endpoint": "eth0",
                "ipNetworks": [str(network(one)) for one in addresses],
            },
        }
    )


def stored(
    *resources: Resource,
    ends: Iterable[Encap] = (),
    blocks_of: Iterable[int] = (1, 2, 3),
    base: Snapshot | None = None,
    at: int = 1,
) -> Snapshot:
    """Return the datastore with these, the blocks of nodes, and n1's `ends` assigned."""
    puts = [(key_of(resource), to_json(resource)) for resource in resources]
    for number in blocks_of:
        for version in (4, 6):
            prefix = block(number, version)
            made = blocks.new(prefix, f"n{number}", AT)
            for encap in ends if number == 1 else ():
                if encap.version == version:
                    owner = Owner(f"{_HANDLES[encap]}n1")
                    made = blocks.allocate_exact(made, end(1, encap), owner)
                    puts.append((keys.HandleKey(f"{_HANDLES[encap]}n1").path, handle_to_json({prefix: 1})))
            puts.append((keys.BlockKey(prefix).path, blocks.to_json(made)))
            puts.append((keys.AffinityKey(f"n{number}", prefix).path, AFFINITY_CONFIRMED))
    changes = Changes(at, tuple(KeyValue(key, value, at) for key, value in puts))
    return fold(base or Snapshot(), changes)


def made(
    snapshot: Snapshot, ground: Ground = GROUND, known: Overlay | None = None, name: str = "n1"
) -> Overlay:
    return overlay(name, snapshot, Settings(), ground, known or Overlay())


def hops(found: Overlay, prefix: object) -> set[str] | None:
    """Return where a prefix leads by the datastore, None where it says nothing."""
    for route in found.routes:
        if route.key == RouteKey(network(prefix)):
            return {str(hop) for hop in route.next_hops}
    return None
