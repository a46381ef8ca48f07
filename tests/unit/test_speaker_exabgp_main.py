"""What is amended in ExaBGP, on its own classes; how it then behaves as a whole is in tests/contract."""

import socket
import struct
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from exabgp.bgp.message import Action
from exabgp.bgp.neighbor import Neighbor
from exabgp.environment import getenv
from exabgp.logger import log
from exabgp.protocol.family import AFI, SAFI
from exabgp.reactor.api import API
from exabgp.reactor.delay import Delay
from exabgp.rib.outgoing import OutgoingRIB

from bgp.speaker import exabgp_main
from bgp.speaker.exabgp_main import guard

LIMITS = [("10.0.0.2", 255), ("10.0.0.3", 254)]
LIMITS6 = [("2001:db8::2", 255), ("2001:db8::1:2", 253)]


def passes(limits: list[tuple[str, int]], source: str, ttl: int) -> bool:
    """Run the filter as the kernel does, on an IP header."""
    address = ip_address(source)
    header = (
        struct.pack("!8xB3x4s4x", ttl, address.packed)
        if address.version == 4
        else struct.pack("!7xB16s16x", ttl, address.packed)
    )
    program, step, value = guard(limits), 0, 0
    while True:
        code, if_true, if_false, operand = program[step]
        step += 1
        match code:
            case exabgp_main.LOAD_WORD:
                (value,) = struct.unpack_from("!I", header, operand - exabgp_main.IP_HEADER)
            case exabgp_main.LOAD_BYTE:
                value = header[operand - exabgp_main.IP_HEADER]
            case exabgp_main.EQUAL:
                step += if_true if value == operand else if_false
            case exabgp_main.AT_LEAST:
                step += if_true if value >= operand else if_false
            case exabgp_main.RETURN:
                return operand != 0


@pytest.mark.parametrize(
    ("limits", "source", "least"),
    [
        (LIMITS, "10.0.0.2", 255),
        (LIMITS, "10.0.0.3", 254),
        (LIMITS, "10.0.0.4", 0),
        ([], "10.0.0.2", 0),
        (LIMITS6, "2001:db8::2", 255),
        (LIMITS6, "2001:db8::1:2", 253),
        (LIMITS6, "2001:db8::3", 0),
        (LIMITS6, "2001:db9::2", 0),
    ],
)
def test_the_filter_has_a_limit_for_each_of_its_peers_and_none_for_others(
    limits: list[tuple[str, int]], source: str, least: int
) -> None:
    assert [ttl for ttl in range(256) if passes(limits, source, ttl)] == list(range(least, 256))


def test_an_accepted_connection_gets_its_minimum_ttl_once_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            connection = SimpleNamespace(io=accepted, afi=AFI.ipv4, peer="127.0.0.1", local="127.0.0.1")
            neighbor = {"incoming-ttl": 254, "outgoing-ttl": 255, "md5-password": None}
            exabgp_main._secure_accepted(connection, neighbor)
            assert accepted.getsockopt(socket.IPPROTO_IP, 21) == 254  # IP_MINTTL
            assert accepted.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 255


def table() -> Any:
    log.init(getenv())
    amended = {"_update_rib": exabgp_main._last_word(OutgoingRIB._update_rib)}
    return type("Amended", (OutgoingRIB,), amended)(True, [(AFI.ipv4, SAFI.unicast)])


def add(table: Any, command: str) -> None:
    withdraw = command.startswith("withdraw")
    for change in API(None).api_attributes(command, []):
        change.nlri.action = Action.WITHDRAW if withdraw else Action.ANNOUNCE
        table.add_to_rib(change)


def sent(table: Any) -> list[tuple[str, str, bool]]:
    """Each prefix that goes out, in order, with its attributes and whether it is a withdrawal."""
    return [
        (str(nlri.cidr.prefix()), str(update.attributes).strip(), nlri.action == Action.WITHDRAW)
        for update in table.updates(True)
        for nlri in update.nlris
    ]


ANNOUNCE = "announce attributes next-hop 10.0.0.1 med %d nlri %s"
WITHDRAW = "withdraw attributes next-hop 10.0.0.1 nlri %s"


def test_of_many_changes_of_a_prefix_that_wait_only_the_last_goes_out() -> None:
    rib = table()
    for med in (5, 6, 5, 7, 6):
        add(rib, ANNOUNCE % (med, "10.1.0.0/24"))
    assert [(prefix, text) for prefix, text, _ in sent(rib)] == [("10.1.0.0/24", "med 6")]


def test_a_withdrawal_is_not_overtaken_by_the_announcement_before_it() -> None:
    rib = table()
    add(rib, WITHDRAW % "10.9.0.0/24")
    add(rib, ANNOUNCE % (5, "10.1.0.0/24"))
    add(rib, WITHDRAW % "10.1.0.0/24")
    assert [(prefix, gone) for prefix, _, gone in sent(rib)] == [("10.9.0.0/24", True), ("10.1.0.0/24", True)]


def test_the_first_batch_has_its_withdrawals() -> None:
    asked = []
    amended = exabgp_main._with_withdrawals(lambda _, include: asked.append(include) or iter(()))  # type: ignore[func-returns-value]
    amended(None, False)
    assert asked == [True]


def test_an_end_of_rib_outlives_a_reload_and_not_its_session() -> None:
    before, after = Neighbor(), Neighbor()
    before.eor.append("ipv4")
    peer = SimpleNamespace(neighbor=before)
    exabgp_main._keeping_end_of_rib(lambda self, new: setattr(self, "neighbor", new))(peer, after)
    assert list(peer.neighbor.eor) == ["ipv4"]
    exabgp_main._forgetting_end_of_rib(lambda _: None)(after)
    assert not after.eor


def test_only_what_sent_too_many_prefixes_ends_for_good() -> None:
    told: list[tuple[int, bool]] = []
    teardown = exabgp_main._ends_for_good(lambda _, code, restart: told.append((code, restart)))
    for code in (1, 2, 4):
        teardown(None, code)
    assert told == [(1, False), (2, True), (4, True)]


def test_a_peer_that_was_away_for_long_is_tried_each_ten_seconds() -> None:
    increase, delay = exabgp_main._capped(Delay.increase), Delay()
    for _ in range(30):
        increase(delay)
    assert delay._next == 10


def test_who_was_accepted_beside_a_stranger_is_served() -> None:
    incoming = exabgp_main._forgetting_nobody(lambda _: False)
    assert incoming(SimpleNamespace(_accepted={"socket": "connection"}))
    assert not incoming(SimpleNamespace(_accepted={}))
