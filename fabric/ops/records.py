"""Show IPAM's own records as the resources that Calico calls them; nobody writes them as such.

Source: calico-features §1 (fields), calico's libcalico-go/lib/names (a CIDR in a name).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network

from fabric.errors import ConfigError
from fabric.ipam.records import read_object
from fabric.model.base import Metadata, Resource, Unknown
from fabric.store import keys
from fabric.store.kv import KeyValue

PREFIXES: Mapping[str, str] = {
    "BlockAffinity": keys.AFFINITIES,
    "IPAMBlock": keys.BLOCKS,
    "IPAMHandle": keys.HANDLES,
}


def resource(item: KeyValue) -> Resource:
    """Return the record in `item` as a resource.

    Raises:
        ConfigError: it is no record of IPAM's.
    """
    stored = read_object("record of IPAM", item.value)
    match keys.parse(item.key):
        case keys.BlockKey(prefix):
            claimed = {"affinityClaimTime" if k == "affinity_claim_time" else k: v for k, v in stored.items()}
            return _resource("IPAMBlock", _dashed(prefix), claimed)
        case keys.AffinityKey(node, prefix):
            spec = {"node": node, "type": "host", "cidr": str(prefix)} | stored
            return _resource("BlockAffinity", f"{node}-{_dashed(prefix)}", spec)
        case keys.HandleKey(handle):
            return _resource("IPAMHandle", handle, {"handleID": handle} | stored)
    raise ConfigError("is no key of a block, an affinity or a handle")


def _resource(kind: str, name: str, spec: Mapping[str, object]) -> Resource:
    # Unchecked: a handle may be called what no other resource may.
    return Unknown.model_construct(kind=kind, metadata=Metadata.model_construct(name=name), spec=dict(spec))


def _dashed(prefix: IPv4Network | IPv6Network) -> str:
    return re.sub("[.:/]", "-", str(prefix))
