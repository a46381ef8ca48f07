from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import replace

from fabric.errors import DataplaneError
from policy.flows import Ends, Flow
from policy.form import Address


class FakeConntrack:
    """Behaves like the kernel's connection tracking, refusals included; it does not record calls.

    `refuse` is an errno, spent on the first entry that is marked or deleted.
    """

    def __init__(self, refuse: int = 0) -> None:
        self.entries: dict[Ends, Flow] = {}
        self.refuse = refuse

    def insert(self, flow: Flow) -> None:
        """Have a connection."""
        self.entries[flow.original] = replace(flow, handle=repr(flow.original).encode())

    async def flows(self, addresses: AbstractSet[Address], bits: int) -> list[Flow]:
        return [
            flow
            for flow in self.entries.values()
            if addresses & {flow.original.source, flow.original.destination, flow.reply.source}
            or flow.mark & bits
        ]

    async def set_mark(self, flows: Collection[Flow], value: int, mask: int) -> None:
        for flow in flows:
            if held := self._held(flow, "mark"):
                self.entries[flow.original] = replace(held, mark=held.mark & ~mask | value & mask)

    async def forget(self, flows: Collection[Flow]) -> None:
        for flow in flows:
            if self._held(flow, "delete"):
                del self.entries[flow.original]

    def _held(self, flow: Flow, verb: str) -> Flow | None:
        if code := self.refuse:
            self.refuse = 0
            raise DataplaneError(f"{verb} connection {flow.original}", code)
        held = self.entries.get(flow.original)
        return held if held and held.handle == flow.handle else None
