"""The ExaBGP process: version 5.0.15, amended where it would break a promise of ours.

Each amendment replaces one of its functions and says what is wrong with that one. They lean on its insides, so
any other version is refused. Run as a file, `python -P exabgp_main.py`, with the arguments of `exabgp`.

How listening is secured: ExaBGP has one socket for all peers of a local address and port. MD5 keys are by peer, so
they go together on it; a minimum TTL is not: with one, a peer without GTSM cannot connect, and without, one with
GTSM can from anywhere. So each such socket has a filter that drops segments from a GTSM peer with too low a TTL,
the first SYN included, and no minimum. Keys and filter stand before the socket listens, each reload brings them up
to date, and what is accepted gets its own once more: its SYN may have come before the peer was configured. What
cannot be secured is not listened on. A connection of our own has key and minimum TTL before its SYN.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Any, TypeAlias

import exabgp.reactor.listener
import exabgp.reactor.network.outgoing
from exabgp.application.main import main
from exabgp.bgp.fsm import FSM
from exabgp.bgp.message import Notify
from exabgp.bgp.neighbor import Neighbor
from exabgp.reactor.delay import Delay
from exabgp.reactor.listener import Listener, set_accepted_ttl, set_listener_options
from exabgp.reactor.loop import Reactor
from exabgp.reactor.network.error import NetworkError
from exabgp.reactor.network.tcp import asynchronous, md5, set_minimum_ttl
from exabgp.reactor.peer import Peer
from exabgp.reactor.protocol import Protocol
from exabgp.rib.outgoing import OutgoingRIB
from exabgp.version import release

VERSION = "5.0.15"
CEASE = 6
MAXIMUM_PREFIXES, DECONFIGURED, CHANGED = 1, 3, 6  # its subcodes (RFC 4486 §3)
NOTIFICATION_SECONDS = 1.0
RETRY_SECONDS = 10
SYN_RETRIES = 3  # 15 s
BACKLOG = 200
KERNEL_DEFAULT = -1

SO_ATTACH_FILTER = 26
# Classic BPF (linux/filter.h): load a byte or word, compare, return. Offsets are from the IP header on.
LOAD_BYTE, LOAD_WORD, EQUAL, AT_LEAST, RETURN = 0x30, 0x20, 0x15, 0x35, 0x06
IP_HEADER = 0x100000000 - 0x100000
TTL_AND_SOURCE = {4: (8, 12), 6: (7, 8)}
PASS, DROP = 0xFFFFFFFF, 0

Instruction: TypeAlias = tuple[int, int, int, int]  # code, jump where true, jump where false, operand
Turns: TypeAlias = Iterator[Any]


def amend() -> None:
    Peer._establish = _says_why(Peer._establish)
    Peer._main = _says_why(Peer._main)
    Peer.teardown = _ends_for_good(Peer.teardown)
    Peer.reestablish = _takes_effect(Peer.reestablish)
    Peer.remove = _takes_leave(Peer.remove)
    Protocol.new_notification = _in_time(Protocol.new_notification)
    Delay.increase = _capped(Delay.increase)
    exabgp.reactor.network.outgoing.asynchronous = _give_up_early

    OutgoingRIB._update_rib = _last_word(OutgoingRIB._update_rib)
    Protocol.new_update = _with_withdrawals(Protocol.new_update)
    Peer.reconfigure = _keeping_end_of_rib(Peer.reconfigure)
    Neighbor.reset_rib = _forgetting_end_of_rib(Neighbor.reset_rib)

    Reactor._pending_adjribout = lambda _: False  # while routes were waiting to be sent, a reload was lost
    Reactor._wait_for_io = _wait_for_io
    Peer.cli_data = _described(Peer.cli_data)

    Reactor._listen_for_neighbors = _listen
    Listener.incoming = _forgetting_nobody(Listener.incoming)
    exabgp.reactor.listener.set_accepted_ttl = _secure_accepted


# How sessions end, and come again.


def _says_why(turns: Callable[[Any], Turns]) -> Callable[[Any], Turns]:
    """A session that is told to end says so, and at once.

    With graceful restart it was closed without a word, and the peer held what it knew; one that waited for the
    peer's OPEN went on waiting for a minute.
    """

    def amended(self: Any) -> Turns:
        for action in turns(self):
            yield action
            if self._teardown:
                changed = self._neighbor and self._teardown == DECONFIGURED
                raise Notify(CEASE, CHANGED if changed else self._teardown)

    return amended


def _takes_effect(reestablish: Callable[[Any, Any], None]) -> Callable[..., None]:
    """A changed peer that has no connection takes its new configuration at once.

    A passive one never did: it got no turn before its next connection, which then ended.
    """

    def amended(self: Any, restart_neighbor: Any = None) -> None:
        reestablish(self, restart_neighbor)
        if self.proto is None and self.generator is None:
            self._reset()

    return amended


def _ends_for_good(teardown: Callable[[Any, int, bool], None]) -> Callable[..., None]:
    """A peer that sent too much does not come again until it is configured anew."""

    def amended(self: Any, code: int, restart: bool = True) -> None:
        teardown(self, code, restart and code != MAXIMUM_PREFIXES)

    return amended


def _takes_leave(remove: Callable[[Any], None]) -> Callable[[Any], None]:
    """A peer that is removed is told so; it was just closed."""

    def amended(self: Any) -> None:
        if self.fsm == FSM.ESTABLISHED:
            self.teardown(DECONFIGURED, restart=False)
            self.neighbor.rib.uncache()
        else:
            remove(self)

    return amended


def _in_time(new_notification: Callable[[Any, Any], Turns]) -> Callable[[Any, Any], Turns]:
    """A peer that reads nothing cannot keep its session from ending; it was waited for without end, at full CPU."""

    def amended(self: Any, notification: Any) -> Turns:
        end = time.monotonic() + NOTIFICATION_SECONDS
        for sent in new_notification(self, notification):
            yield sent
            if time.monotonic() > end:
                return

    return amended


def _capped(increase: Callable[[Any], None]) -> Callable[[Any], None]:
    """A router that was away for long is tried again within RETRY_SECONDS; it was a minute."""

    def amended(self: Any) -> None:
        increase(self)
        self._next = min(self._next, RETRY_SECONDS)

    return amended


def _give_up_early(io: Any, ip: str) -> None:
    """An attempt ends after 15 s; the kernel's own SYNs are up to a minute apart, whoever is back meanwhile."""
    asynchronous(io, ip)
    io.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, SYN_RETRIES)


# What is sent.


def _last_word(update_rib: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Of what waits to be sent about one prefix, the last word goes out alone.

    All of them did, grouped by their attributes: so the last to be sent could be an older one.
    """

    def amended(self: Any, change: Any) -> None:
        index = change.index()
        if (earlier := self._new_nlri.get(index)) is not None:
            by_family = self._new_attr_af_nlri[earlier.attributes.index()]
            by_family[earlier.nlri.family().afi_safi()].pop(index, None)
        update_rib(self, change)

    return amended


def _with_withdrawals(new_update: Callable[[Any, bool], Turns]) -> Callable[[Any, bool], Turns]:
    """The first batch of a session has its withdrawals too: they were left out, and what they were of stayed."""

    def amended(self: Any, _: bool) -> Turns:
        return new_update(self, True)

    return amended


def _keeping_end_of_rib(reconfigure: Callable[[Any, Any], None]) -> Callable[..., None]:
    """A reload does not lose the End-of-RIB that waits behind a replay; it did, and the peer waited for it."""

    def amended(self: Any, restart_neighbor: Any = None) -> None:
        if restart_neighbor:
            restart_neighbor.eor = self.neighbor.eor
        reconfigure(self, restart_neighbor)

    return amended


def _forgetting_end_of_rib(reset_rib: Callable[[Any], None]) -> Callable[[Any], None]:
    """An End-of-RIB that a lost session left behind is not sent on the next one, where it would come too early."""

    def amended(self: Any) -> None:
        reset_rib(self)
        self.eor.clear()

    return amended


# What the speaker sees of it, and how it sleeps.


def _wait_for_io(self: Any, milliseconds: int) -> Iterable[int]:
    """Sleep until there is something to do, not while there is, and forget the descriptors that are closed.

    It slept between each 50 prefixes of a command. And a closed descriptor was kept: poll() returns at once with
    one, which was made up for by a sleep of 10 ms for each message. After a session had been removed, 2,000
    UPDATEs took 22 s in place of 0.5.
    """
    for descriptor, event in self._poller.poll(milliseconds if self.asynchronous.ready() else 0):
        if event & select.POLLNVAL:
            self._poller.unregister(descriptor)
    return ()  # what became of them had no effect


def _described(cli_data: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """`show neighbor json` has each neighbor's description, so that it can be told which configuration it has."""

    def amended(self: Any) -> dict[str, Any]:
        data = cli_data(self)
        data["capabilities"]["description"] = (self.neighbor["description"], None)
        return data

    return amended


# Listening.


def _listen(self: Any) -> bool:
    """Listen once for each local address and port; return whether that worked for all."""
    wanted: dict[tuple[str, int], list[Any]] = {}
    for neighbor in self.configuration.neighbors.values():
        wanted.setdefault((neighbor["md5-ip"].top(), neighbor["listen"]), []).append(neighbor)
    self.listener.close_unwanted(wanted)
    sockets = {(address, port): sock for sock, (address, port, _, _) in self.listener._sockets.items()}
    listening = [_listen_at(self, place, sockets.get(place), peers) for place, peers in wanted.items()]
    return all(listening)


def _listen_at(self: Any, place: tuple[str, int], there: socket.socket | None, peers: list[Any]) -> bool:
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    sock = there or socket.socket(family, socket.SOCK_STREAM)
    try:
        _secure(sock, peers)
        if not there:
            set_listener_options(sock, family == socket.AF_INET6)
            sock.setblocking(False)
            sock.bind(place)
            sock.listen(BACKLOG)
            self.listener._sockets[sock] = (*place, None, None)
            self.listener.serving = True
            self._poller.register(sock, select.POLLIN)
    except (OSError, NetworkError) as err:
        print(f"ExaBGP: cannot listen on {place[0]} port {place[1]}: {err}", file=sys.stderr)
        self.listener._sockets.pop(sock, None)
        sock.close()
        return False
    return True


def _forgetting_nobody(incoming: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """What was accepted beside a stranger's connection, which ends the round, gets the next one.

    It waited until another socket had a connection, and its own socket took none meanwhile.
    """

    def amended(self: Any) -> bool:
        return incoming(self) or bool(self._accepted)

    return amended


def _secure(sock: socket.socket, peers: Iterable[Any]) -> None:
    limits = []
    for peer in peers:
        address = peer["peer-address"].top()
        md5(sock, address, 0, peer["md5-password"], peer["md5-base64"])
        if peer["incoming-ttl"]:
            limits.append((address, peer["incoming-ttl"]))
    # Its SYN-ACK has to be from here too, for a peer that checks; to others 255 is as good as any.
    hops = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS), (socket.IPPROTO_IP, socket.IP_TTL)
    sock.setsockopt(*hops[sock.family == socket.AF_INET], 255 if limits else KERNEL_DEFAULT)
    program = guard(limits)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
    )


def guard(limits: Iterable[tuple[str, int]]) -> list[Instruction]:
    """Return a filter that drops segments which come from one of these addresses with a lower TTL than its own."""
    program: list[Instruction] = []
    for text, least in limits:
        address = ip_address(text)
        ttl, source = TTL_AND_SOURCE[address.version]
        words = struct.unpack(f"!{len(address.packed) // 4}I", address.packed)
        left = 2 * len(words) + 4  # instructions from here to the next peer's
        for number, word in enumerate(words):
            left -= 2
            program += [(LOAD_WORD, 0, 0, IP_HEADER + source + 4 * number), (EQUAL, 0, left, word)]
        program += [(LOAD_BYTE, 0, 0, IP_HEADER + ttl), (AT_LEAST, 0, 1, least)]
        program += [(RETURN, 0, 0, PASS), (RETURN, 0, 0, DROP)]
    return [*program, (RETURN, 0, 0, PASS)]


def _secure_accepted(connection: Any, neighbor: Any) -> None:
    set_accepted_ttl(connection, neighbor)
    set_minimum_ttl(connection.io, connection.afi, connection.local, neighbor["incoming-ttl"])
    if neighbor["md5-password"]:
        address = neighbor["peer-address"].top()
        md5(connection.io, address, 0, neighbor["md5-password"], neighbor["md5-base64"])


if __name__ == "__main__":
    if release != VERSION:
        sys.exit(f"ExaBGP is {release}; only {VERSION} is known to do what is needed of it: install that one")
    amend()
    main()
