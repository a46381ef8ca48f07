import errno
from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv4Address

from fabric.errors import DataplaneError
from fabric.plan.tunnels import HostTunnel, Tunnel


class FakeTunnels:
    """Behaves like the kernel's tunnel devices, refusals included; it does not record calls.

    `foreign` are (VNI, port, version) of VXLAN devices that somebody else has; `lacks` kinds that the kernel has not.
    """

    def __init__(self, refuse: dict[str, int] | None = None, lacks: Collection[str] = ()) -> None:
        self.tunnels: dict[str, HostTunnel] = {}
        self.foreign: set[tuple[int, int, int]] = set()
        self.lacks = set(lacks)
        self.refuse = refuse or {}  # device name -> errno, spent on the first attempt

    async def owned(self) -> list[HostTunnel]:
        return list(self.tunnels.values())

    async def create(self, tunnel: Tunnel) -> None:
        self._maybe_refuse(tunnel.name)
        kind, version = tunnel.encap
        if kind in self.lacks:
            raise DataplaneError(
                f"tunnel {tunnel.name}", errno.EOPNOTSUPP, f"this kernel has no module {kind}"
            )
        if kind == "vxlan" and (tunnel.vni, tunnel.port, version) in self.foreign:
            raise DataplaneError(
                f"tunnel {tunnel.name}", errno.EEXIST, f"VNI {tunnel.vni} is held by another device"
            )
        held = self.tunnels.get(tunnel.name)
        if held and (held.tunnel.vni, held.tunnel.port) != (tunnel.vni, tunnel.port):
            raise DataplaneError(f"tunnel {tunnel.name}", errno.EOPNOTSUPP, "remove it first")
        # From where tunl0 sends cannot be read back.
        local = tunnel.local if kind == "vxlan" else IPv4Address(0)
        self.tunnels[tunnel.name] = HostTunnel(replace(tunnel, local=local))

    async def remove(self, name: str) -> None:
        self._maybe_refuse(name)
        self.tunnels.pop(name, None)

    def _maybe_refuse(self, name: str) -> None:
        if code := self.refuse.pop(name, 0):
            raise DataplaneError(f"tunnel {name}", code)
