"""A datastore as Calico's tools write it: key to JSON, made by hand from the few things a test is about.

The form is that of calico-wire; nothing here goes through our own encoders, so that they are tested too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from fabric.store.kv import KeyValue, Listing, Put, Txn
from tests.fakes.etcd import FakeEtcd

RESOURCES = "/calico/resources/v3/projectcalico.org"
IPAM = "/calico/ipam/v2"
OLD = "2026-11-21 04:16:27.334108857 +0000 UTC"
GUID = "5f3c0a6b1d2e4f708192a3b4c5d6e7f8"

Store = dict[str, str]


def dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def resource(kind: str, plural: str, name: str, spec: Mapping[str, Any], namespace: str = "") -> Store:
    where = "/".join(filter(None, [plural, namespace, name]))
    metadata = {"name": name, "uid": "6d7b5a3e-0f52-4f0c-9d3e-2b6f3f1f0a11"}
    metadata |= {"namespace": namespace} if namespace else {}
    document = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": dict(spec)}
    return {f"{RESOURCES}/{where}": dumps(document)}


def cluster(guid: str = GUID) -> Store:
    spec = {"clusterGUID": guid, "datastoreReady": True, "clusterType": "k8s"}
    return resource("ClusterInformation", "clusterinformations", "default", spec)


def pool(cidr: str, name: str = "pool", **more: Any) -> Store:
    family = {"blockSize": 30 if ":" not in cidr else 126}
    return resource("IPPool", "ippools", name, {"cidr": cidr, **family, "nodeSelector": "all()", **more})


def node(name: str, **spec: Any) -> Store:
    return resource("Node", "nodes", name, spec)


def endpoint(name: str, address: str, on: str = "n1") -> Store:
    length = 128 if ":" in address else 32
    spec = {"orchestrator": "cni", "node": on, "ipNetworks": [f"{address}/{length}"], "endpoint": "eth0"}
    return resource("WorkloadEndpoint", "workloadendpoints", f"{on}-cni-{name}-eth0", spec, "default")


def held(handle: str | None, on: str = "n1", timestamp: str = OLD, **more: str) -> dict[str, Any]:
    """One attribute: who holds an address."""
    return {"handle_id": handle, "secondary": {"node": on, "timestamp": timestamp, **more}}


def block(
    cidr: str, affinity: str | None, owners: Mapping[int, Mapping[str, Any]] | None = None, **more: Any
) -> Store:
    """A block whose `owners` (ordinal to attribute) hold addresses, each since sequence number 100 + ordinal."""
    network, owners = ip_network(cidr), owners or {}
    size = network.num_addresses
    document = {
        "cidr": cidr,
        "affinity": affinity,
        "affinity_claim_time": "2026-11-21T04:16:27Z",
        "allocations": [list(owners).index(i) if i in owners else None for i in range(size)],
        "unallocated": [i for i in range(size) if i not in owners],
        "attributes": list(owners.values()),
        "sequenceNumber": 1000,
        "sequenceNumberForAllocation": {str(i): 100 + i for i in owners},
        "deleted": False,
    }
    return {f"{IPAM}/assignment/{_block(cidr)}": dumps(document | more)}


def affinity(on: str, cidr: str, state: str = "confirmed") -> Store:
    return {f"{IPAM}/host/{on}/{_block(cidr)}": dumps({"state": state, "deleted": False})}


def handle(name: str, counts: Mapping[str, int]) -> Store:
    return {f"{IPAM}/handle/{name}": dumps({"block": dict(counts), "deleted": False})}


def config(**settings: Any) -> Store:
    return {f"{IPAM}/config": dumps(settings)}


def sound() -> Store:
    """Two nodes of one pool: w1 on n1 in its own block, w2 on n2 in its own, n1's tunnel address."""
    return (
        cluster()
        | pool("10.0.0.0/28")
        | node("n1", ipv4VXLANTunnelAddr="10.0.0.1")
        | node("n2")
        | endpoint("w1", "10.0.0.0")
        | endpoint("w2", "10.0.0.4", "n2")
        | block(
            "10.0.0.0/30",
            "host:n1",
            {0: held("k8s.w1"), 1: held("vxlan-tunnel-addr-n1", type="vxlanTunnelAddress")},
        )
        | block("10.0.0.4/30", "host:n2", {0: held("k8s.w2", "n2")})
        | affinity("n1", "10.0.0.0/30")
        | affinity("n2", "10.0.0.4/30")
        | handle("k8s.w1", {"10.0.0.0/30": 1})
        | handle("vxlan-tunnel-addr-n1", {"10.0.0.0/30": 1})
        | handle("k8s.w2", {"10.0.0.4/30": 1})
    )


def listing(store: Store) -> Listing:
    """The store as one listing, every key at revision 7."""
    return Listing(9, tuple(KeyValue(key, value, 7) for key, value in sorted(store.items())))


async def filled(kv: FakeEtcd, store: Store) -> FakeEtcd:
    for key, value in store.items():
        await kv.commit(Txn((), (Put(key, value),)))
    return kv


def _block(cidr: str) -> str:
    return f"ipv{ip_network(cidr).version}/block/{cidr.replace('/', '-')}"
