"""Touches etcd: writes or removes a node's claim on a block in one transaction, and prints when it asked, in ns.

python -m tests.bench.claim ETCD NODE PREFIX add|del
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from ipaddress import ip_network

from fabric.config import Config
from fabric.ipam import block as blocks
from fabric.ipam.records import AFFINITY_CONFIRMED
from fabric.store import keys
from fabric.store.etcd import connect
from fabric.store.kv import Delete, Put, Txn


async def main(etcd: str, node: str, text: str, verb: str) -> int:
    prefix = ip_network(text)
    affinity, block = keys.AffinityKey(node, prefix).path, keys.BlockKey(prefix).path
    fresh = blocks.to_json(blocks.new(prefix, node, datetime.now(UTC)))
    writes: dict[str, tuple[Put | Delete, ...]] = {
        "add": (Put(affinity, AFFINITY_CONFIRMED), Put(block, fresh)),
        "del": (Delete(affinity), Delete(block)),
    }
    kv = connect(Config(etcd=(etcd,)))
    try:
        await kv.get(affinity)  # so that the connection is there
        began = time.time_ns()
        await kv.commit(Txn((), writes[verb]))
    finally:
        await kv.close()
    return began


if __name__ == "__main__":
    print(asyncio.run(main(*sys.argv[1:])))
