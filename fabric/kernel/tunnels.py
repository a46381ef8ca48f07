"""Touches tunnel devices, their addresses, far ends, sysctls and checksums: the `Tunnels` behind `fabric.plan.tunnels`.

A device goes up last of all, so that one which is down was left half-made. What the kernel holds already is not
written again: of a thousand far ends only those cost something that changed.

Of a packet that says "don't fragment" the outer one says so too: the kernel does that of itself for IPIP, and here for
VXLAN over IPv4, so that what the path between the nodes does not take is reported rather than cut up. Over IPv6
routers never cut.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path
from typing import Final

from fabric.errors import DataplaneError
from fabric.kernel import facts, netlink
from fabric.kernel.netlink import IFADDR, NDMSG, NUD_PERMANENT, Device, Request, Rtnl, attr, attributes, u32
from fabric.kernel.threads import in_thread
from fabric.plan.encap import ENCAPS, IPIP, Address, Encap, Interface
from fabric.plan.tunnels import Far, HostTunnel, Tunnel

SYSCTLS = Path("/proc/sys/net")  # follows the namespace of the thread that opens a file in it
# rp_filter 2 is loose; of the device's and that of `all` the larger one counts. While a pool changes its mode, packets
# come by the tunnel whose answers still go past it.
WANTED: Final[Mapping[int, Mapping[str, str]]] = {
    4: {"ipv4/conf/{}/forwarding": "1", "ipv4/conf/{}/rp_filter": "2", "ipv6/conf/{}/disable_ipv6": "1"},
    6: {
        "ipv6/conf/{}/forwarding": "1",
        "ipv6/conf/{}/accept_ra": "0",
        "ipv6/conf/{}/accept_dad": "0",
        "ipv6/conf/{}/disable_ipv6": "0",
    },
}
# linux/if_link.h
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 1, 4, 7, 15, 17
IFLA_VXLAN_DF, DF_INHERIT = 29, b"\2"
SIOCETHTOOL, ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 0x8946, 0x16, 0x17
# tunl0 is there whoever uses it: its alias says that we do, and then how it was found, in words such as mtu=1480.
FOUND = "fabricctl found "
MTU = "mtu"


class _Taken(DataplaneError):
    """Somebody has the VNI or the port."""


class NetlinkTunnels:
    """The tunnel devices of the network namespace of the calling thread."""

    async def owned(self) -> list[HostTunnel]:
        return await in_thread(_owned)

    async def create(self, tunnel: Tunnel) -> None:
        try:
            await in_thread(partial(_create, tunnel))
        except _Taken as err:
            raise DataplaneError(
                err.what, err.code, f"{await _holder(tunnel, err.code)}; {err.hint}"
            ) from err

    async def remove(self, name: str) -> None:
        await in_thread(partial(_remove, name))


@dataclass(frozen=True, slots=True)
class _Entries:
    """What hangs on a device: its addresses, the MACs of its permanent neighbours, and at which nodes MACs are."""

    addresses: frozenset[Interface]
    macs: Mapping[Address, str]
    nodes: Mapping[str, set[Address]]

    @property
    def far(self) -> frozenset[Far]:
        found = self.macs.items()
        return frozenset(Far(to, mac, node) for to, mac in found for node in self.nodes.get(mac, ()))

    @property
    def whole(self) -> bool:
        """Whether `far` says all of it: each neighbour is at one node, and each node's MAC is a neighbour's."""
        return len(self.far) == len(self.macs) and {far.mac for far in self.far} == self.nodes.keys()


def _owned() -> list[HostTunnel]:
    with Rtnl() as rtnl:
        found = ((encap, rtnl.device(encap.device)) for encap in ENCAPS)
        ours = [(encap, device) for encap, device in found if device and _is_ours(encap, device)]
        return [held for encap, device in ours if (held := _read_or_gone(encap, device, rtnl))]


def _read_or_gone(encap: Encap, device: Device, rtnl: Rtnl) -> HostTunnel | None:
    """Read in several steps, between which somebody may remove it."""
    try:
        return _read(encap, device, rtnl)
    except (DataplaneError, OSError) as err:
        if rtnl.device(device.index) is None:
            return None
        if isinstance(err, DataplaneError):
            raise
        what = f"read tunnel {encap.device}: {err.filename or 'checksums'}"
        raise DataplaneError(what, err.errno or errno.EIO, "nothing was changed") from err


def _is_ours(encap: Encap, device: Device) -> bool:
    return device.kind == encap.kind and (encap.kind == "vxlan" or bool(_found(device)))


def _found(device: Device) -> dict[str, str]:
    """Return what tunl0 was like before it was ours: its MTU, and sysctls by path; nothing where it is not ours."""
    alias = device.text(netlink.IFLA_IFALIAS)
    if not alias.startswith(FOUND):
        return {}
    return dict(word.split("=") for word in alias.removeprefix(FOUND).split())


def _as_found(device: Device) -> str:
    """Return the alias that says what tunl0 is like now."""
    sysctls = {str(path.relative_to(SYSCTLS)): path.read_text().strip() for path in _sysctls(IPIP)}
    words = {MTU: str(device.number(netlink.IFLA_MTU)), **sysctls}
    return FOUND + " ".join(f"{name}={value}" for name, value in words.items())


def _read(encap: Encap, device: Device, rtnl: Rtnl) -> HostTunnel:
    entries = _entries(device, rtnl)
    nowhere: Address = IPv4Address(0) if encap.version == 4 else IPv6Address(0)
    own = sorted(held.ip for held in entries.addresses if held.network.num_addresses == 1)
    sound = device.up and len(own) == len(entries.addresses) == 1 and _sysctls_hold(encap)
    mtu, address = device.number(netlink.IFLA_MTU), own[0] if own else nowhere
    if encap.kind == "ipip":
        return HostTunnel(Tunnel(encap, address, nowhere, mtu), sound, _received(device))
    local = device.data.get(IFLA_VXLAN_LOCAL if encap.version == 4 else IFLA_VXLAN_LOCAL6)
    tunnel = Tunnel(
        encap,
        address,
        ip_address(local) if local else nowhere,
        mtu,
        mac=device.mac,
        vni=_vni(device),
        port=_port(device),
        far=entries.far,
        offload=_checksums(encap.device),
    )
    return HostTunnel(tunnel, sound and entries.whole and _is_as_made(encap, device), _received(device))


def _received(device: Device) -> int:
    # struct rtnl_link_stats64 begins with the packets that were received.
    return int(struct.unpack_from("=Q", device.attrs.get(netlink.IFLA_STATS64, bytes(8)))[0])


def _vni(device: Device) -> int:
    return int(struct.unpack("=I", device.data.get(IFLA_VXLAN_ID, bytes(4)))[0])


def _port(device: Device) -> int:
    return int.from_bytes(device.data.get(IFLA_VXLAN_PORT, b""), "big")


def _is_as_made(encap: Encap, device: Device) -> bool:
    """Whether it learns nothing of itself, and does of DF what the module says."""
    df = DF_INHERIT if encap.version == 4 else device.data.get(IFLA_VXLAN_DF)
    return device.data.get(IFLA_VXLAN_LEARNING) == b"\0" and device.data.get(IFLA_VXLAN_DF) == df


def _entries(device: Device, rtnl: Rtnl) -> _Entries:
    addresses = set()
    asked = IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, device.index)
    for payload in rtnl.dump("address", netlink.RTM_GETADDR, asked):
        attrs = dict(attributes(payload[IFADDR.size :]))
        packed = attrs.get(netlink.IFA_LOCAL) or attrs[netlink.IFA_ADDRESS]
        held = ip_interface((packed, IFADDR.unpack_from(payload)[1]))
        if not (held.version == 6 and held.is_link_local):  # the kernel's own
            addresses.add(held)
    macs: dict[Address, str] = {}
    nodes: dict[str, set[Address]] = {}
    for family in socket.AF_INET, socket.AF_INET6:
        macs |= {to: mac for to, mac in _neighbours(device, family, rtnl) if to}
    for node, mac in _neighbours(device, netlink.AF_BRIDGE, rtnl) if device.kind == "vxlan" else ():
        nodes.setdefault(mac, set()).update([node] if node else [])
    return _Entries(frozenset(addresses), macs, nodes)


def _neighbours(device: Device, family: int, rtnl: Rtnl) -> Iterator[tuple[Address | None, str]]:
    """Yield the permanent neighbours, or those of the forwarding database: where, and the MAC."""
    asked = NDMSG.pack(family, 0, 0, 0, 0) + u32(netlink.NDA_IFINDEX, device.index)
    for payload in rtnl.dump("neighbour", netlink.RTM_GETNEIGH, asked):
        found, index, state, _flags, _type = NDMSG.unpack_from(payload)
        if (found, index) == (family, device.index) and state & NUD_PERMANENT:
            attrs = dict(attributes(payload[NDMSG.size :]))
            there = attrs.get(netlink.NDA_DST)
            yield ip_address(there) if there else None, attrs.get(netlink.NDA_LLADDR, b"").hex(":")


def _create(tunnel: Tunnel) -> None:
    with Rtnl() as rtnl:
        found = rtnl.device(tunnel.name)
        if found and found.kind != tunnel.encap.kind:
            kind = found.kind or "no tunnel"
            hint = f"the host has a link of that name, which is {kind} and not ours; nothing was changed"
            raise DataplaneError(f"tunnel {tunnel.name}", errno.EEXIST, hint)
        try:
            device = found or _make(tunnel, rtnl)
            _settle(tunnel, device, rtnl)
        except (DataplaneError, OSError) as err:
            if not found and tunnel.encap.kind == "vxlan":
                rtnl.attempt([netlink.link_delete(tunnel.name)])
            state = "it is not as it should be; the next pass tries again" if found else "it was not made"
            raise _failure(tunnel, err, state) from err


def _failure(tunnel: Tunnel, err: DataplaneError | OSError, state: str) -> DataplaneError:
    if isinstance(err, DataplaneError):
        what, code, said = err.what, err.code, err.hint
    else:
        what, code, said = str(err.filename or "checksums"), err.errno or errno.EIO, ""
    taken = tunnel.encap.kind == "vxlan" and code in (errno.EEXIST, errno.EADDRINUSE)
    kind = _Taken if taken else DataplaneError
    return kind(f"tunnel {tunnel.name}: {what}", code, "; ".join(filter(None, [said, state])))


async def _holder(tunnel: Tunnel, code: int) -> str:
    """Return who has the VNI or the port that the kernel says is taken, and what may be done."""
    others = [
        f"device {one.name} (VXLAN, VNI {one.vni})"
        for one in await facts.vxlans()
        if one.name != tunnel.name and one.port == tunnel.port and one.version in (0, tunnel.encap.version)
    ]
    processes = [
        f"process {one.pid} ({one.name})" for one in await facts.listeners(tunnel.port, "udp") if one.pid
    ]
    thing = (
        f"UDP port {tunnel.port}"
        if code == errno.EADDRINUSE
        else f"VNI {tunnel.vni} at UDP port {tunnel.port}"
    )
    holders = " and ".join(others or processes) or "somebody else"
    return f"{thing} is held by {holders}; end that, or give FelixConfiguration another vxlanPort or vxlanVNI"


def _make(tunnel: Tunnel, rtnl: Rtnl) -> Device:
    """Make the device. The kernel makes tunl0 itself once it has the module, which this loads."""
    request = netlink.device_create(tunnel.name, tunnel.encap.kind, _data(tunnel, fresh=True))
    for refusal in rtnl.attempt([request]):
        if refusal.code == errno.EOPNOTSUPP:
            said = f"this kernel has no module {tunnel.encap.kind}"
            raise DataplaneError(refusal.request.what, refusal.code, said)
        if tunnel.encap.kind == "vxlan" or refusal.code != errno.EEXIST:
            raise DataplaneError(refusal.request.what, refusal.code, refusal.said)
    device = rtnl.device(tunnel.name)
    if device is None:
        raise DataplaneError(request.what, errno.ENODEV, "somebody removed it at once")
    return device


def _data(tunnel: Tunnel, *, fresh: bool) -> bytes:
    if tunnel.encap.kind == "ipip":
        return b""
    version4 = tunnel.encap.version == 4
    data = u32(IFLA_VXLAN_ID, tunnel.vni) + attr(IFLA_VXLAN_LEARNING, b"\0")
    data += attr(IFLA_VXLAN_LOCAL if version4 else IFLA_VXLAN_LOCAL6, tunnel.local.packed)
    data += attr(IFLA_VXLAN_DF, DF_INHERIT) if version4 else b""
    # The kernel refuses to be told the port again, even the same.
    return data + (attr(IFLA_VXLAN_PORT, tunnel.port.to_bytes(2, "big")) if fresh else b"")


def _settle(tunnel: Tunnel, device: Device, rtnl: Rtnl) -> None:
    """Every step may be repeated; the device goes up last (see the module's docstring)."""
    entries = _entries(device, rtnl)
    first = []
    if tunnel.encap.kind == "ipip" and not _found(device):
        _check_free(tunnel, device, entries)
        first = [netlink.link_alias(device.index, _as_found(device))]
    elif tunnel.encap.kind == "vxlan" and not _is_told(tunnel, device):
        if _port(device) != tunnel.port:
            raise DataplaneError(
                f"port {tunnel.port}", errno.EOPNOTSUPP, f"it has {_port(device)}; remove it first"
            )
        first = [netlink.device_change(device.index, "vxlan", _data(tunnel, fresh=False))]
    if tunnel.mtu != device.number(netlink.IFLA_MTU):
        first.append(netlink.link_mtu(device.index, tunnel.mtu))
    if tunnel.mac and tunnel.mac != device.mac:
        first.append(netlink.link_mac(device.index, tunnel.mac))
    if first:
        rtnl.run(first)
        entries = _entries(device, rtnl)
    _write_sysctls(tunnel.encap)
    changes = [*_address_changes(tunnel, device, entries), *_far_changes(tunnel, device, entries)]
    rtnl.run([*changes, netlink.link_up(device.index)])
    if tunnel.encap.kind == "vxlan" and _checksums(tunnel.name) != tunnel.offload:
        _set_checksums(tunnel.name, tunnel.offload)


def _is_told(tunnel: Tunnel, device: Device) -> bool:
    """Whether it has what `_data` says."""
    local = device.data.get(IFLA_VXLAN_LOCAL if tunnel.encap.version == 4 else IFLA_VXLAN_LOCAL6)
    known = (_vni(device), _port(device), local)
    return known == (tunnel.vni, tunnel.port, tunnel.local.packed) and _is_as_made(tunnel.encap, device)


def _check_free(tunnel: Tunnel, device: Device, entries: _Entries) -> None:
    """Raise DataplaneError where others use tunl0; an address that is wanted there is no other's."""
    others = sorted(str(held) for held in entries.addresses if held.ip != tunnel.address)
    if others:
        hint = f"it has {', '.join(others)}, which is not ours; where nobody needs that, `ip address flush dev tunl0`"
        raise DataplaneError(f"link {device.index}", errno.EBUSY, hint)


def _address_changes(tunnel: Tunnel, device: Device, entries: _Entries) -> list[Request]:
    wanted: Interface = ip_interface(tunnel.address)
    new = [] if wanted in entries.addresses else [netlink.address_set(device.index, wanted)]
    old = sorted(entries.addresses - {wanted}, key=str)
    return new + [netlink.address_delete(device.index, held) for held in old]


def _far_changes(tunnel: Tunnel, device: Device, entries: _Entries) -> list[Request]:
    """Nodes before the neighbours that lead to them, and what is not wanted any more last."""
    index, wanted = device.index, sorted(tunnel.far, key=lambda far: far.address.packed)
    macs, nodes = {far.address: far.mac for far in wanted}, {far.mac: far.node for far in wanted}
    return [
        *(netlink.fdb_set(index, mac, at) for mac, at in nodes.items() if entries.nodes.get(mac) != {at}),
        *(netlink.neighbour_set(index, to, mac) for to, mac in macs.items() if entries.macs.get(to) != mac),
        *(netlink.neighbour_delete(index, to) for to in entries.macs if to not in macs),
        *(
            netlink.fdb_delete(index, mac, at)
            for mac, places in entries.nodes.items()
            for at in sorted(places, key=str)
            if mac not in nodes
        ),
    ]


def _remove(name: str) -> None:
    encap = next(encap for encap in ENCAPS if encap.device == name)
    with Rtnl() as rtnl:
        device = rtnl.device(name)
        if device is None or not _is_ours(encap, device):
            return
        hint = "it may be there still; the next pass tries again"
        try:
            vxlan = encap.kind == "vxlan"
            rtnl.run([netlink.link_delete(name)] if vxlan else _give_back(device, rtnl), hint)
        except DataplaneError as err:
            if err.code != errno.ENODEV:
                raise
        except OSError as err:
            raise DataplaneError(f"give back {name}: {err.filename}", err.errno or errno.EIO, hint) from err


def _give_back(device: Device, rtnl: Rtnl) -> list[Request]:
    """Put tunl0's sysctls back, and return what brings the rest to how it was found."""
    found = _found(device)
    mtu = int(found.pop(MTU))
    for name, value in found.items():
        (SYSCTLS / name).write_text(value)
    held = _entries(device, rtnl).addresses
    requests = [netlink.link_down(device.index), netlink.link_mtu(device.index, mtu)]
    requests += [netlink.address_delete(device.index, address) for address in held]
    return [*requests, netlink.link_alias(device.index, "")]


def _sysctls(encap: Encap) -> dict[Path, str]:
    """A host without IPv6 has none of those; an IPv6 address is then refused by the kernel itself."""
    wanted = {SYSCTLS / name.format(encap.device): value for name, value in WANTED[encap.version].items()}
    return {path: value for path, value in wanted.items() if path.parent.exists()}


def _sysctls_hold(encap: Encap) -> bool:
    return all(path.read_text().strip() == value for path, value in _sysctls(encap).items())


def _write_sysctls(encap: Encap) -> None:
    for path, value in _sysctls(encap).items():
        if path.read_text().strip() != value:
            path.write_text(value)


def _checksums(name: str) -> bool:
    """Whether the device leaves checksums of what it is given to send to whom it gives it."""
    return bool(_ethtool(name, ETHTOOL_GTXCSUM, 0))


def _set_checksums(name: str, on: bool) -> None:
    _ethtool(name, ETHTOOL_STXCSUM, int(on))


def _ethtool(name: str, command: int, value: int) -> int:
    """One of ethtool's commands that have a number, by linux/ethtool.h; return what the number is then."""
    asked = (ctypes.c_uint32 * 2)(command, value)
    # struct ifreq: the name, and a pointer to the command.
    request = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(asked))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, request)
    return asked[1]
