"""Touches raw ICMP sockets: asks an address how large a packet may be that reaches it whole.

An echo request has DF set, and no IPv6 router fragments; the size is found by bisection. What this host has learned
of the way is put aside (PMTUDISC_PROBE), as it may be out of date; what routers answer to a probe is heeded.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fabric.errors import DataplaneError
from fabric.kernel.netlink import Address, family

SMALLEST: Final = {4: 68, 6: 1280}  # RFC 791 §3.2, RFC 8200 §5: every link takes as much
TRIES = 3  # a probe that is lost is no sign of its size
PATIENCE = 1.0  # seconds for an answer, until it is known how long one takes
LEAST_PATIENCE = 0.2
# linux/in.h, linux/in6.h, linux/errqueue.h
IP_MTU_DISCOVER, IP_RECVERR, IPV6_MTU_DISCOVER, IPV6_RECVERR, IPV6_DONTFRAG = 10, 11, 23, 25, 62
PMTUDISC_PROBE = 3
EXTENDED_ERR = struct.Struct("=IBBBxII")  # errno, origin, type, code, info, data
ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
HEADER = {4: 20, 6: 40}


@dataclass(frozen=True, slots=True)
class Way:
    """The link by which packets to an address leave, and its MTU."""

    link: str
    mtu: int


async def way(address: Address) -> Way | None:
    """Return the way to `address` by this host's routes, None where there is none."""
    try:
        async with AsyncIPRoute() as ipr:
            [route] = await ipr.route("get", dst=str(address), family=family(address))
            [link] = await ipr.link("get", index=route.get_attr("RTA_OIF"))
    except NetlinkError as err:
        if err.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            return None
        raise DataplaneError(f"route to {address}", err.code, "nothing was changed") from err
    return Way(link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU"))


async def usable(address: Address, most: int) -> int | None:
    """Return the size of the largest packet, its IP header included, that `address` answers, None if it answers none.

    `most` is the largest to try, the MTU of the link by which it leaves.

    Raises:
        DataplaneError: no raw socket can be had.
    """
    with closing(_Echo(address)) as echo:
        least, asked = SMALLEST[address.version], most
        if least > most or not await echo.fits(least):
            return None
        while least < most:
            if await echo.fits(asked):
                least = asked
            else:
                most = min(asked - 1, echo.told or most)
            # What a router says is tried next; one that says nothing leaves bisection.
            asked = most if echo.told == most else (least + most + 1) // 2
        return least


class _Echo:
    """A socket that hears the answers of one address alone, and the errors that its own requests meet on the way.

    `told` is what the last of those errors said would fit, 0 where none did.
    """

    def __init__(self, address: Address) -> None:
        self._version = address.version
        self._identifier, self._sequence = secrets.randbelow(1 << 16), 0
        self._patience, self.told = PATIENCE, 0
        protocol = socket.IPPROTO_ICMP if self._version == 4 else socket.IPPROTO_ICMPV6
        try:
            self._socket = socket.socket(family(address), socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as err:
            what = "open a raw socket for ICMP"
            raise DataplaneError(what, err.errno or errno.EIO, "nothing was sent; this needs root") from err
        self._socket.setblocking(False)
        if self._version == 4:
            self._socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
            self._socket.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        else:
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        self._address = str(address)

    def close(self) -> None:
        self._socket.close()

    async def fits(self, size: int) -> bool:
        """Whether an echo request of `size` is answered."""
        self.told = 0
        for _ in range(TRIES):
            try:
                started = asyncio.get_running_loop().time()
                async with asyncio.timeout(self._patience):
                    await self._exchange(size)
            except TimeoutError:
                continue
            except OSError:  # too large for a link here or there, or nobody is to be reached
                return False
            took = asyncio.get_running_loop().time() - started
            self._patience = min(PATIENCE, max(LEAST_PATIENCE, 4 * took))
            return True
        return False

    async def _exchange(self, size: int) -> None:
        """Return once the request was answered. Raises OSError where it cannot be delivered."""
        loop = asyncio.get_running_loop()
        if not self._sequence:
            self._socket.connect((self._address, 0))
        for _ in self._errors():  # that one of the last request came more than once, say
            pass
        self._sequence = self._sequence % 0xFFFF + 1
        request = ECHO.pack(REQUEST[self._version], 0, 0, self._identifier, self._sequence)
        if self._version == 4:  # of ICMPv6 the kernel fills it in
            request = ECHO.pack(REQUEST[4], 0, _checksum(request), self._identifier, self._sequence)
        self._socket.send(request + bytes(size - HEADER[self._version] - ECHO.size))
        while True:
            try:
                answer = await loop.sock_recv(self._socket, 1 << 16)
            except OSError as err:
                told = [mtu for mtu in self._errors() if mtu < size]
                # One about an earlier, larger request may come late.
                if err.errno != errno.EMSGSIZE or told:
                    self.told = min(told, default=0)
                    raise
                continue
            if self._version == 4:
                answer = answer[(answer[0] & 0xF) * 4 :]
            kind, _, _, identifier, sequence = ECHO.unpack_from(answer)
            if (kind, identifier, sequence) == (REPLY[self._version], self._identifier, self._sequence):
                return

    def _errors(self) -> Iterator[int]:
        """Empty the queue of errors, and yield what each says would fit."""
        while True:
            try:
                _, ancillary, _, _ = self._socket.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            for _, _, data in ancillary:
                code, _, _, _, info, _ = EXTENDED_ERR.unpack_from(data)
                if code == errno.EMSGSIZE:
                    yield info


def _checksum(message: bytes) -> int:
    """RFC 1071; zeros that follow change nothing."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
