"""Touches TCP and ICMP through a VXLAN: sends a far end a payload and wants it back, and answers others that ask.

More than one segment each way, so that what the link makes of large packets is asked too.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections.abc import Collection
from contextlib import closing, suppress
from enum import Enum
from functools import partial
from ipaddress import ip_address
from typing import Final

from fabric.errors import DataplaneError
from fabric.kernel import icmp
from fabric.kernel.netlink import family
from fabric.plan.encap import Address
from fabric.plan.guards import PROBE_PORT
from fabric.plan.tunnels import Tunnel

SIZE: Final = 5000  # bytes each way
PATIENCE: Final = 5.0  # seconds for the whole of it: TCP asks a second time after 1, a third after 3


class Answer(Enum):
    """What came back: all of it by TCP; an echo, but nothing by TCP; or neither, or a refusal, which tells nothing."""

    WHOLE = "whole"
    ECHO_ONLY = "echo only"
    UNKNOWN = "unknown"


async def ask(tunnel: Tunnel, far: Address, patience: float = PATIENCE) -> Answer:
    """Return what `far`, an end of `tunnel`, answers; TCP has so many seconds."""
    payload = secrets.token_bytes(SIZE)
    try:
        async with asyncio.timeout(patience):
            back = await _echoed(tunnel, far, payload)
    except TimeoutError:
        answered = await icmp.usable(far, icmp.SMALLEST[far.version]) is not None
        return Answer.ECHO_ONLY if answered else Answer.UNKNOWN
    except OSError:  # refused: it has no such listener, as Calico's nodes; or nobody is to be reached
        return Answer.UNKNOWN
    # Nothing: it does not know of us yet. Something else: of a listener that is not ours.
    return Answer.WHOLE if back == payload else Answer.UNKNOWN


async def _echoed(tunnel: Tunnel, far: Address, payload: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with _socket(tunnel, 0) as sock:
        await loop.sock_connect(sock, (str(far), PROBE_PORT))
        await loop.sock_sendall(sock, payload)
        sock.shutdown(socket.SHUT_WR)
        back = b""
        while len(back) <= SIZE and (part := await loop.sock_recv(sock, SIZE)):
            back += part
        return back


async def listen(tunnel: Tunnel, patience: float = 2 * PATIENCE) -> asyncio.Server:
    """Answer what the far ends of `tunnel` ask, until the server is closed; others are not answered.

    One that asks for longer than `patience` seconds, in which it should have given up, is left.

    Raises DataplaneError if refused.
    """
    known = {far.address for far in tunnel.far}
    try:
        sock = _socket(tunnel, PROBE_PORT)
    except OSError as err:
        what = f"listen on {tunnel.address}, TCP port {PROBE_PORT}"
        raise DataplaneError(
            what, err.errno or errno.EIO, "other nodes cannot ask whether checksums arrive"
        ) from err
    return await asyncio.start_server(partial(_answer, known, patience), sock=sock)


async def _answer(
    known: Collection[Address],
    patience: float,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    peer = writer.get_extra_info("peername")  # None: it has gone already
    with closing(writer), suppress(OSError, EOFError):
        if peer and ip_address(peer[0]) in known:
            async with asyncio.timeout(patience):
                writer.write(await reader.readexactly(SIZE))
                await writer.drain()


def _socket(tunnel: Tunnel, port: int) -> socket.socket:
    sock = socket.socket(family(tunnel.address), socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Bound to the device as well: what other links carry is not asked, and not answered.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, tunnel.name.encode())
        sock.bind((str(tunnel.address), port))
    except OSError:
        sock.close()
        raise
    return sock
