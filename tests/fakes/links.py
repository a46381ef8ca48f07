import errno
from collections.abc import Collection
from itertools import count

from fabric.errors import DataplaneError
from fabric.plan.links import HostLink, Veth, as_made


class FakeLinks:
    """Behaves like the kernel's veths, refusals included; it does not record calls.

    `foreign` are (namespace, interface) pairs somebody else has made; `gone` namespaces that are no more.
    """

    def __init__(self, refuse: dict[str, int] | None = None) -> None:
        self.links: dict[str, HostLink] = {}
        self.inside: dict[str, tuple[str, str]] = {}
        self.foreign: set[tuple[str, str]] = set()
        self.gone: set[str] = set()
        self.refuse = refuse or {}  # host name -> errno, spent on the first attempt
        self._index = count(2)

    async def owned_links(self) -> list[HostLink]:
        return list(self.links.values())

    async def create(self, veth: Veth) -> None:
        self._maybe_refuse(veth.name)
        if veth.netns in self.gone:
            raise DataplaneError(f"network namespace {veth.netns}", errno.ENOENT)
        place = (veth.netns, veth.interface)
        others = {where for name, where in self.inside.items() if name != veth.name}
        if place in self.foreign | others:
            raise DataplaneError(
                f"link {veth.name}: interface {veth.interface} in {veth.netns}", errno.EEXIST
            )
        old = self.links.get(veth.name) if self.inside.get(veth.name) == place else None
        index = old.index if old else next(self._index)
        self.links[veth.name] = as_made(veth, index)
        self.inside[veth.name] = place

    async def remove(self, names: Collection[str]) -> None:
        for name in names:
            self._maybe_refuse(name)
        for name in names:
            self.links.pop(name, None)
            self.inside.pop(name, None)

    def _maybe_refuse(self, name: str) -> None:
        if code := self.refuse.pop(name, 0):
            raise DataplaneError(f"link {name}", code)
