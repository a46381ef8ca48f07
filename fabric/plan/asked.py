"""Read what pools and nodes say of tunnels into the values that `fabric.plan.encap` decides by. Pure."""

from __future__ import annotations

from fabric.model import extensions
from fabric.model.ippool import IPPool
from fabric.model.node import Node as NodeResource
from fabric.plan.encap import IPIP, VXLAN, VXLAN6, Address, Encap, Kind, Node, Pool, mac


def node(resource: NodeResource) -> Node:
    """Return what a Node says of tunnels."""
    name, spec, said = resource.metadata.name, resource.spec, resource.metadata.annotations
    ends: dict[Encap, Address | None] = {
        IPIP: spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp else None,
        VXLAN: spec.ipv4_vxlan_tunnel_addr,
        VXLAN6: spec.ipv6_vxlan_tunnel_addr,
    }
    macs = {VXLAN: spec.vxlan_tunnel_mac_addr, VXLAN6: spec.vxlan_tunnel_mac_addr_v6}
    return Node(
        name=name,
        addresses=resource.addresses,
        ends={encap: address for encap, address in ends.items() if address},
        # Calico's agents go by the name's hash where a Node carries none.
        macs={encap: (found or mac(name, encap)).lower() for encap, found in macs.items()},
        lacks=extensions.value(said, extensions.LACKS, extensions.tunnels, frozenset()),
        bgp=extensions.value(said, extensions.BGP, extensions.switch, default=True),
    )


def pool(resource: IPPool) -> Pool:
    """Return what an IPPool says of tunnels."""
    spec, said = resource.spec, resource.metadata.annotations
    kind: Kind | None = (
        "ipip" if spec.ipip_mode != "Never" else "vxlan" if spec.vxlan_mode != "Never" else None
    )
    return Pool(
        prefix=spec.cidr,
        kind=kind,
        mode=spec.ipip_mode if kind == "ipip" else spec.vxlan_mode,
        fallback=bool(extensions.value(said, extensions.TUNNEL_FALLBACK, extensions.tunnel_fallback, "")),
        name=resource.metadata.name,
    )
