"""Write what every cluster has: whoever writes to an empty datastore first makes it, as Calico's tools do.

Source: calico-wire (the first write to an empty datastore); calico-semantics §2.1 (tiers).
"""

from __future__ import annotations

import uuid

from fabric.model.base import Metadata, Resource
from fabric.model.clusterinformation import ClusterInformation, ClusterInformationSpec
from fabric.model.tier import BUILT_IN, Tier, TierSpec
from fabric.ops import change, resources
from fabric.store import keys
from fabric.store.kv import KeyValueStore


async def found(kv: KeyValueStore) -> list[Resource]:
    """Create the ClusterInformation and the built-in tiers where they are absent, and return those created.

    Raises:
        Forbidden: our user may not read or create them.
        StoreError: etcd did not answer; what is absent still is made by the next write.
    """
    spec = ClusterInformationSpec(cluster_guid=uuid.uuid4().hex, datastore_ready=True)
    wanted: list[Resource] = [ClusterInformation(metadata=Metadata(name="default"), spec=spec)]
    for name, (order, action) in BUILT_IN.items():
        wanted.append(Tier(metadata=Metadata(name=name), spec=TierSpec(order=order, default_action=action)))
    there = {item.key for item in (await kv.list(keys.resources("tiers"))).items}
    if await kv.get(resources.key_of(wanted[0])):
        there.add(resources.key_of(wanted[0]))
    absent = [resource for resource in wanted if resources.key_of(resource) not in there]
    return [resource for resource in absent if await change.create_if_absent(kv, resource)]
