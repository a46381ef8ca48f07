import errno

from fabric.errors import DataplaneError
from fabric.plan.ipsets import PREFIXES, Create, Held, IPSet, done


class FakeIPSets:
    """Behaves like the kernel's ipsets, refusals included; it does not record calls.

    `refuse` are errnos by name of a set, each spent on the first attempt. `in_use` are sets that rules go by.
    """

    def __init__(self, refuse: dict[str, int] | None = None) -> None:
        self.sets: dict[str, Held] = {}
        self.refuse = refuse or {}
        self.in_use: set[str] = set()

    async def owned(self) -> dict[str, Held]:
        return {name: held for name, held in self.sets.items() if name.startswith(tuple(PREFIXES.values()))}

    async def sizes(self) -> dict[str, int]:
        return {name: len(held.ipset.members) for name, held in (await self.owned()).items()}

    async def create(self, name: str, ipset: IPSet) -> None:
        self._maybe_refuse(name)
        if name in self.sets:
            raise DataplaneError(f"ipset {name}", errno.EEXIST)
        self._check(name, ipset)
        self.sets = done(self.sets, [Create(name, ipset)])

    async def add(self, name: str, part: IPSet) -> None:
        held = self._held(name, part)
        self._check(name, part)
        members = held.ipset.members | part.members
        if held.room is not None and len(members) > held.room:
            raise DataplaneError(f"member to ipset {name}", errno.ENOSPC)
        self.sets[name] = Held(IPSet(part.kind, part.version, members), held.room)

    async def delete(self, name: str, part: IPSet) -> None:
        held = self._held(name, part)
        self.sets[name] = Held(IPSet(part.kind, part.version, held.ipset.members - part.members), held.room)

    async def rewrite(self, name: str, ipset: IPSet) -> None:
        self._held(name, ipset)
        self._check(name, ipset)
        self.sets = done(self.sets, [Create(name, ipset)])

    async def destroy(self, name: str) -> None:
        self._maybe_refuse(name)
        if name in self.in_use:
            raise DataplaneError(f"remove ipset {name}", errno.EBUSY)
        self.sets.pop(name, None)

    def _held(self, name: str, ipset: IPSet) -> Held:
        self._maybe_refuse(name)
        held = self.sets.get(name)
        if held is None:
            raise DataplaneError(f"ipset {name}", errno.ENOENT)
        if (held.ipset.kind, held.ipset.version) != (ipset.kind, ipset.version):
            raise DataplaneError(f"ipset {name}", errno.EINVAL)
        return held

    def _check(self, name: str, ipset: IPSet) -> None:
        if ipset.kind == "hash:net" and ipset.members & {"0.0.0.0/0", "::/0"}:
            raise DataplaneError(f"member of length 0 to ipset {name}", errno.EINVAL)

    def _maybe_refuse(self, name: str) -> None:
        if code := self.refuse.pop(name, 0):
            raise DataplaneError(f"ipset {name}", code)
