"""Publish in etcd what this node says of its sessions, where any machine can read it without being root here.

On a change, though not more often than every few seconds, and once a minute, so that a reader sees that the node is
still there. Guarded by the Node: one that has left publishes nothing more. That etcd is away is no error.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import random
import time

import structlog

from fabric.agent import endpoint as endpoints
from fabric.agent import report_bgp
from fabric.agent.state import State
from fabric.errors import Forbidden, StoreError
from fabric.store import keys
from fabric.store.kv import Guard, KeyValueStore, Put, Txn

log = structlog.get_logger()

AT_MOST = 5.0  # seconds between two of them
AT_LEAST = 60.0
COUNTERS = ("updates_in", "updates_out")  # what always changes, and is no reason to publish


async def publish(state: State, kv: KeyValueStore) -> None:
    """Publish for ever."""
    publisher = Publisher(state, kv)
    while True:
        await publisher.look(time.time())
        await asyncio.sleep(AT_MOST)


class Publisher:
    """Remembers what was published, and when it is due again. Times are seconds of the Unix epoch."""

    def __init__(self, state: State, kv: KeyValueStore) -> None:
        self._state, self._kv = state, kv
        self._said: object = None
        self._due = -math.inf
        self._forbidden = False  # and that was said

    async def look(self, now: float) -> bool:
        """Publish if something changed, or it is due again; return whether it was done."""
        snapshot, key = self._state.snapshot, endpoints.node_key(self._state.node)
        if not (snapshot.whole and self._state.registered):
            return False
        sessions = await asyncio.to_thread(report_bgp.sessions, copy.copy(self._state), now)
        lasting = [{name: value for name, value in s.items() if name not in COUNTERS} for s in sessions]
        if lasting == self._said and now < self._due:
            return False
        text = json.dumps({"at": now, "sessions": sessions}, separators=(",", ":"))
        txn = Txn((Guard(key, snapshot.seen[key]),), (Put(f"{keys.PUBLISHED}{self._state.node}", text),))
        try:
            await self._kv.commit(txn)
        except StoreError as err:
            tell = log.warning if isinstance(err, Forbidden) and not self._forbidden else log.debug
            self._forbidden |= isinstance(err, Forbidden)
            tell("sessions not published; tried again", error=str(err))
            return False
        self._said, self._due = lasting, now + AT_LEAST * random.uniform(0.9, 1.0)  # noqa: S311  spreads load
        return True
