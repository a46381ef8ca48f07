"""The agent's inputs, each an immutable value that is replaced whole, and the wake-ups that follow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fabric.agent.desired import Desired, Host, desire
from fabric.agent.passes import Outcome
from fabric.agent.ribs import Ribs
from fabric.agent.snapshot import Snapshot
from fabric.model.node import Node


@dataclass
class State:
    """What this node knows, and what it last made of it.

    `fault` is why the last pass could not be completed, "" where it was; `copy_problem` why there is no copy
    of the datastore on disk to start from; `upkeep_problems` what IPAM could not give this node.

    `snapshot`, `ribs` and `host` change only through `update`, which wakes the pass loop and everyone
    who waits in `until`.
    """

    node: str
    snapshot: Snapshot = field(default_factory=Snapshot)
    ribs: Ribs = field(default_factory=Ribs)
    host: Host = field(default_factory=Host)
    desired: Desired = field(default_factory=Desired)
    outcome: Outcome = field(default_factory=Outcome)
    fault: str = ""
    copy_problem: str = ""
    upkeep_problems: tuple[str, ...] = ()
    passes: int = 0
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(
        self, *, snapshot: Snapshot | None = None, ribs: Ribs | None = None, host: Host | None = None
    ) -> None:
        """Replace what is given."""
        self.snapshot = snapshot or self.snapshot
        self.ribs = ribs or self.ribs
        self.host = host or self.host
        self.dirty.set()
        self._notify()

    def compute(self) -> Desired:
        """Return what the node should have now, and remember it."""
        self.desired = desire(self.node, self.snapshot, self.ribs, self.host, self.desired.loc_rib)
        return self.desired

    def passed(self, outcome: Outcome) -> None:
        """Note a whole pass."""
        self.outcome = outcome
        self.passes += 1
        self._notify()

    @property
    def ready(self) -> bool:
        """The datastore is in sync and has this node, the speaker answers, and a whole pass went through."""
        return self.snapshot.whole and self.registered and self.ribs.connected and self.passes > 0

    @property
    def registered(self) -> bool:
        """Whether the datastore has a Node of this name that can be read."""
        return self.snapshot.get(Node, self.node) is not None

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Return once `predicate` holds; it is looked at after each change."""
        while not predicate():
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
