"""Do to sessions what an operator asks for: reset one, drain it, take it back.

What is drained is an annotation of the Node, so that it survives a reboot. The ordinary pass does the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set

import structlog

from bgp.peering import Peering
from bgp.rib import Address, address_order
from bgp.speaker.seam import Reset
from fabric.agent import endpoint as endpoints
from fabric.agent import peers
from fabric.agent.speaker import SpeakerLink
from fabric.agent.state import State
from fabric.errors import Conflict, NotFound, NotInSync, SpeakerError
from fabric.model import extensions
from fabric.model.node import Node
from fabric.model.wire import to_json
from fabric.store.kv import Guard, KeyValueStore, Put, Txn

log = structlog.get_logger()

ATTEMPTS = 10  # lost races before giving up; each waits for the watch to show what won
CATCH_UP = 2.0  # seconds the watch is given to show it
HANDED_DOWN = 10.0  # seconds for the announcements to reach the speaker


class Sessions:
    """This node's sessions, as an operator may act on them; `peer` is an address or a BGPPeer's name."""

    def __init__(
        self, state: State, kv: KeyValueStore, link: SpeakerLink, patience: float = HANDED_DOWN
    ) -> None:
        self._state, self._kv, self._link, self._patience = state, kv, link, patience

    async def reset(self, peer: str) -> tuple[Peering, ...]:
        """End the sessions, and let them come up again at once, one that idles for its number of prefixes too.

        Raises:
            NotFound: there is no such peer.
            SpeakerError: the speaker did not take it.
        """
        found = peers.named(self._state.desired.peerings.peerings, peer)
        if (speaker := self._link.speaker) is None:
            raise SpeakerError(f"reset of {peer}: the speaker does not answer; nothing was done; try again")
        for peering in found:
            await speaker.reset(Reset(peering.spec.peer))
            log.info("session reset", peer=str(peering.spec.peer))
        return found

    async def drain(self, peer: str, *, drained: bool) -> tuple[Peering, ...]:
        """Make paths over the sessions the last choice both ways, or no longer; return once the speaker was told.

        Raises:
            NotFound: there is no such peer, or this node has no Node.
            NotInSync: the datastore is not in sync, or locked; nothing was changed.
            StoreError: etcd did not take it.
            SpeakerError: the Node says so now, and the speaker has not taken what follows from it.
        """
        addresses = {p.spec.peer for p in peers.named(self._state.desired.peerings.peerings, peer)}
        await self._annotate(addresses, drained)
        try:
            async with asyncio.timeout(self._patience):
                await self._state.until(lambda: self._handed_down(addresses, drained))
        except TimeoutError:
            raise SpeakerError(
                f"drain of {peer}: Node {self._state.node} says so now, and the speaker has not taken it within "
                f"{self._patience:.0f} s; it will when it answers; look at `fabricctl node status`"
            ) from None
        return tuple(p for p in self._state.desired.peerings.peerings if p.spec.peer in addresses)

    async def _annotate(self, addresses: Set[Address], drained: bool) -> None:
        for _ in range(ATTEMPTS):
            snapshot = self._state.snapshot
            if not snapshot.whole:
                raise NotInSync(
                    "drain: the datastore is not in sync, or locked; nothing was changed; try again when "
                    "`fabricctl node status` is ready"
                )
            stored = snapshot.stored(Node, self._state.node)
            if stored is None or not isinstance(stored.resource, Node):
                raise NotFound(f"Node {self._state.node}: is not in the datastore; nothing was changed")
            after = annotated(stored.resource, addresses, drained)
            if after == stored.resource:
                return
            key = endpoints.node_key(self._state.node)
            txn = Txn((Guard(key, stored.revision),), (Put(key, to_json(after)),))
            try:
                revision = await self._kv.commit(txn)
            except Conflict:
                await self._caught_up(snapshot.revision)
                continue
            self._state.wrote(txn, revision)
            return
        raise Conflict(
            f"Node {self._state.node}: others write it at the same moment; nothing was changed; try again"
        )

    async def _caught_up(self, revision: int) -> None:
        try:
            async with asyncio.timeout(CATCH_UP):
                await self._state.until(lambda: self._state.snapshot.revision > revision)
        except TimeoutError:
            return

    def _handed_down(self, addresses: Set[Address], drained: bool) -> bool:
        desired = self._state.desired
        now = {p.spec.peer: p.drained for p in desired.peerings.peerings if p.spec.peer in addresses}
        return all(is_so == drained for is_so in now.values()) and self._link.told == desired.wanted


def annotated(node: Node, addresses: Set[Address], drained: bool) -> Node:
    """Return `node` with `addresses` among what is drained, or without them: itself where nothing changes."""
    given = node.metadata.annotations
    none: frozenset[Address] = frozenset()
    before = extensions.value(given, extensions.DRAINED, extensions.addresses, none)
    after = before | addresses if drained else before - addresses
    if after == before:
        return node
    text = ",".join(str(a) for a in sorted(after, key=address_order))
    others = {key: value for key, value in given.items() if key != extensions.DRAINED}
    marked = others | ({extensions.DRAINED: text} if text else {})
    return node.model_copy(update={"metadata": node.metadata.model_copy(update={"annotations": marked})})
