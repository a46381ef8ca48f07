"""What a fault cost: gaps from the numbers of datagrams, routes from tables over time, and how it is told."""

import socket
import struct
from collections.abc import Iterable

import pytest

from fabric.lab import routewatch
from fabric.lab.report import (
    MS,
    Change,
    Flow,
    Gap,
    Report,
    Route,
    Window,
    flow,
    routes,
)
from fabric.lab.report_forms import as_json, flow_rows, route_rows
from fabric.lab.traffic import EVERY

EPOCH = 1_800_000_000 * 10**9
# The act is 3 ms after number 200 was due, and all is over 2 s later: 1 s before is number 101, the end 401.
ACT = EPOCH + 200 * EVERY + 3 * MS
WINDOW = Window(EPOCH, ACT, ACT + 2000 * MS)
ALL = range(500)


def stamps(numbers: Iterable[int], delay: int = 0) -> dict[int, int]:
    """Return when these are sent, or, `delay` ms later, come in."""
    return {number: EPOCH + number * EVERY + delay * MS for number in numbers}


def but(*gaps: range) -> list[int]:
    return [number for number in ALL if not any(number in gap for gap in gaps)]


@pytest.mark.parametrize(
    ("came_in", "want"),
    [
        pytest.param(ALL, {"lost": 0, "gaps": ()}, id="nothing is lost"),
        pytest.param(but(range(220, 221)), {"lost": 1, "gaps": (Gap(197.0, 207.0),)}, id="one datagram"),
        pytest.param(
            but(range(201, 250), range(300, 310)),
            {"lost": 59, "gaps": (Gap(7.0, 497.0), Gap(997.0, 1097.0))},
            id="two gaps",
        ),
        pytest.param(
            but(range(390, 500)),
            {"lost": 11, "gaps": (Gap(1897.0, 2007.0),), "back": False},
            id="down at the end",
        ),
        pytest.param(
            but(range(250)),
            {"lost": 49, "gaps": (Gap(-993.0, 497.0),), "ran_before": False},
            id="down before, then back",
        ),
        pytest.param(
            but(range(150, 152)),
            {"lost": 0, "gaps": (Gap(-503.0, -483.0),), "ran_before": False},
            id="a gap before the act is no loss of the act's",
        ),
        pytest.param(but(range(90)), {"lost": 0, "gaps": ()}, id="what was earlier is not looked at"),
        pytest.param(but(range(430, 440)), {"lost": 0, "gaps": ()}, id="nor what came later"),
    ],
)
def test_gaps_are_runs_of_numbers_that_did_not_come_in(came_in: list[int], want: dict[str, object]) -> None:
    got = flow("web", "db", stamps(ALL), stamps(came_in, 1), WINDOW)
    expected = {"ran_before": True, "back": True, "sent": 200, "delay": 1.0} | want
    assert got == Flow("web", "db", **expected)  # type: ignore[arg-type]


def test_what_was_held_up_until_the_fault_was_over_is_lost() -> None:
    received = stamps(but(range(210, 220))) | stamps(range(210, 215), 501) | stamps(range(215, 220), 499)
    got = flow("web", "db", stamps(ALL), received, WINDOW)
    assert (got.lost, got.gaps, got.delay) == (5, (Gap(97.0, 147.0),), 499.0)


def test_while_the_sender_is_away_the_flow_is_down_and_nothing_is_lost() -> None:
    sent = but(range(250, 300))
    got = flow("web", "db", stamps(sent), stamps(sent), WINDOW)
    assert (got.sent, got.lost, got.outage, got.longest) == (150, 0, 500.0, 500.0)


def test_an_outage_begins_with_the_act_at_the_earliest() -> None:
    got = flow("web", "db", stamps(ALL), stamps(but(range(250), range(260, 261))), WINDOW)
    assert (got.outage, got.longest) == (507.0, 497.0)


A, B = ("10.0.0.1",), ("10.0.0.2",)


def at(ms: float) -> int:
    return ACT + int(ms * MS)


@pytest.mark.parametrize(
    ("logs", "want"),
    [
        pytest.param([[(at(-500), {"P": A, "Q": A})]], [], id="nothing changed"),
        pytest.param(
            [[(at(-500), {"P": A, "Q": A}), (at(5), {"P": ()}), (at(80), {"P": B}), (at(90), {"Q": A + B})]],
            [
                Route("tor", "P", A, (Change(5.0, ()), Change(80.0, B))),
                Route("tor", "Q", A, (Change(90.0, A + B),)),
            ],
            id="withdrawn and back; other next hops",
        ),
        pytest.param(
            [[(at(-500), {"P": A}), (at(-100), {"P": B}), (at(1), {"R": A}), (at(2001), {"P": ()})]],
            [Route("tor", "R", (), (Change(1.0, A),))],
            id="only what is in the window",
        ),
        pytest.param(
            [[(at(-500), {"P": A, "Q": A})], [(at(700), {"Q": A}), (at(900), {"P": A})]],
            [Route("tor", "P", A, (Change(700.0, ()), Change(900.0, A)))],
            id="a node that comes up again has an empty table",
        ),
        pytest.param(
            [[(at(700), {"P": A})]],
            [Route("tor", "P", (), (Change(700.0, A),))],
            id="a node that was down before",
        ),
    ],
)
def test_routes_are_followed_through_the_changes_of_a_table(
    logs: list[list[tuple[int, dict[str, tuple[str, ...]]]]], want: list[Route]
) -> None:
    assert routes("tor", logs, WINDOW) == want


@pytest.mark.parametrize(
    ("before", "changes", "want"),
    [
        pytest.param(A, [(5, ())], (5, None, None), id="withdrawn"),
        pytest.param(A, [(5, ()), (80, B)], (5, 80, None), id="back by another way"),
        pytest.param(A, [(5, B), (80, A)], (None, None, 80), id="never gone"),
        pytest.param((), [(5, A)], (None, 5, None), id="new"),
        pytest.param(A, [(5, ()), (6, B), (9, ())], (5, None, None), id="back for a moment only"),
        pytest.param(A, [(5, ()), (6, B), (9, ()), (20, A), (30, B)], (5, 20, 30), id="flapped"),
    ],
)
def test_what_became_of_a_route_in_three_numbers(
    before: tuple[str, ...], changes: list[tuple[float, tuple[str, ...]]], want: tuple[float | None, ...]
) -> None:
    route = Route("tor", "P", before, tuple(Change(*change) for change in changes))
    assert (route.withdrawn, route.back, route.changed) == want


def ran(source: str, target: str, *gaps: Gap, **other: object) -> Flow:
    lost = sum(int(gap.length) for gap in gaps) // 10
    fields: dict[str, object] = {"ran_before": True, "back": True, "sent": 200, "delay": 0.1} | other
    return Flow(source, target, lost=lost, gaps=gaps, **fields)  # type: ignore[arg-type]


def report(*flows: Flow, control: tuple[Gap, ...] = (), routes: tuple[Route, ...] = ()) -> Report:
    quiet = ran("control b", "control a")
    return Report(
        "link cut", 1.8e9, 4.5, 2000.0, True, flows, (ran("control a", "control b", *control), quiet), routes
    )


def test_a_gap_in_the_control_makes_the_run_invalid() -> None:
    assert report(ran("web", "db", Gap(5.0, 205.0))).valid
    busy = report(ran("web", "db"), control=(Gap(-40.0, -20.0), Gap(5.0, 45.0)))
    assert not busy.valid
    assert "has gaps of up to 40 ms: this machine was too busy to measure" in busy.invalid


def test_the_worst_flow_is_one_that_ran_before() -> None:
    short, long = ran("web", "db", Gap(5.0, 15.0)), ran("db", "web", Gap(5.0, 205.0))
    denied = ran("x", "y", Gap(-1000.0, 2000.0), ran_before=False, back=False)
    assert report(short, long, denied).worst == long
    assert report(denied).worst == denied
    assert report(ran("web", "db")).worst is None


ROUTE = Route("tor", "10.77.0.0/26", ("10.0.0.1", "10.0.0.2"), (Change(5.0, ()), Change(80.4, ("10.0.0.2",))))


def test_a_report_is_told_in_two_tables() -> None:
    told = report(
        ran("web", "db", Gap(5.0, 205.0), Gap(300.0, 310.0)),
        ran("db", "web", Gap(-1000.0, 2000.0), ran_before=False, back=False),
        routes=(ROUTE,),
    )
    assert flow_rows(told) == [
        ("web to db", "200", "21", "210", "200", "5", "310", "worst"),
        ("db to web", "200", "200", "2000", "2000", "0", "2000", "down before, down at the end"),
        ("control a to control b", "200", "0", "0", "0", "-", "-", "control"),
        ("control b to control a", "200", "0", "0", "0", "-", "-", "control"),
    ]
    assert route_rows(told) == [("tor", "10.77.0.0/26", "5", "80", "-", "10.0.0.1, 10.0.0.2", "10.0.0.2")]


def test_the_json_form_has_the_keys_that_are_documented() -> None:
    told = as_json(report(ran("web", "db", Gap(5.0, 205.0)), routes=(ROUTE,)))
    assert told.pop("control")[0]["from"] == "control a"
    assert told == {
        "act": "link cut",
        "began": "2027-01-15T08:00:00.000+00:00",
        "act_ms": 4.5,
        "watched_ms": [-1000, 2000.0],
        "valid": True,
        "invalid": None,
        "settled": True,
        "interval_ms": 10,
        "worst": {"from": "web", "to": "db"},
        "flows": [
            {
                "from": "web",
                "to": "db",
                "ran_before": True,
                "back": True,
                "sent": 200,
                "lost": 20,
                "outage_ms": 200.0,
                "longest_ms": 200.0,
                "first_ms": 5.0,
                "last_ms": 205.0,
                "gaps": [[5.0, 205.0]],
                "delay_ms": 0.1,
            }
        ],
        "routes": [
            {
                "node": "tor",
                "prefix": "10.77.0.0/26",
                "before": ["10.0.0.1", "10.0.0.2"],
                "withdrawn_ms": 5.0,
                "back_ms": 80.4,
                "changed_ms": None,
                "changes": [
                    {"at_ms": 5.0, "next_hops": []},
                    {"at_ms": 80.4, "next_hops": ["10.0.0.2"]},
                ],
            }
        ],
    }


# The kernel's words


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def message(
    prefix: str, *attributes: bytes, metric: int = 0, kind: int = 1, table: int = 254, flags: int = 0
) -> bytes:
    address, _, length = prefix.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    destination = [attribute(routewatch.RTA_DST, packed(address))] if length != "0" else []
    return struct.pack("=8BI", family, int(length), 0, 0, 0, 0, 0, kind, flags) + b"".join(
        [
            *destination,
            attribute(routewatch.RTA_TABLE, u32(table)),
            attribute(routewatch.RTA_PRIORITY, u32(metric)),
            *attributes,
        ]
    )


def via(gateway: str) -> bytes:
    return attribute(routewatch.RTA_GATEWAY, packed(gateway)) + attribute(routewatch.RTA_OIF, u32(999_999))


def several(*hops: tuple[str, int]) -> bytes:
    """Return RTA_MULTIPATH: gateways and the flags of each."""
    data = b""
    for gateway, flags in hops:
        nested = attribute(routewatch.RTA_GATEWAY, packed(gateway))
        data += struct.pack("=HBBi", 8 + len(nested), flags, 0, 999_999) + nested
    return attribute(routewatch.RTA_MULTIPATH, data)


DEAD = routewatch.RTNH_F_DEAD


@pytest.mark.parametrize(
    ("messages", "want"),
    [
        ([message("10.0.0.0/24", via("10.9.0.1"))], {"10.0.0.0/24": ("10.9.0.1",)}),
        ([message("0.0.0.0/0", via("10.9.0.1"))], {"0.0.0.0/0": ("10.9.0.1",)}),
        ([message("::/0", via("fe80::1"))], {"::/0": ("fe80::1",)}),
        (
            [message("10.0.0.0/24", attribute(routewatch.RTA_OIF, u32(999_999)))],
            {"10.0.0.0/24": ("interface 999999",)},
        ),
        (
            [message("10.0.0.0/24", several(("10.9.0.2", 0), ("10.9.0.1", 0)))],
            {"10.0.0.0/24": ("10.9.0.1", "10.9.0.2")},
        ),
        (
            [message("10.0.0.0/24", several(("10.9.0.2", DEAD), ("10.9.0.1", 0)))],
            {"10.0.0.0/24": ("10.9.0.1",)},
        ),
        ([message("10.0.0.0/24", several(("10.9.0.2", DEAD)))], {}),
        ([message("10.0.0.0/24", via("10.9.0.1"), flags=DEAD)], {}),
        (
            [message("fd00::/64", via("fd01::1")), message("fd00::/64", via("fd01::2"))],
            {"fd00::/64": ("fd01::1", "fd01::2")},
        ),
        (
            [
                message("10.0.0.0/24", via("10.9.0.1"), metric=20),
                message("10.0.0.0/24", via("10.9.0.2"), metric=5),
                message("10.0.0.0/24", via("10.9.0.3"), metric=30),
            ],
            {"10.0.0.0/24": ("10.9.0.2",)},
        ),
        ([message("10.0.0.0/24", kind=6)], {"10.0.0.0/24": ("blackhole",)}),
        ([message("10.0.0.1/32", via("10.9.0.1"), kind=2)], {}),
        ([message("10.0.0.0/24", via("10.9.0.1"), table=99)], {}),
        ([message("fe80::/64", via("fe80::1")), message("ff00::/8", via("fe80::1"))], {}),
    ],
    ids=[
        *["gateway", "default", "IPv6 default", "an interface that has just gone", "ECMP", "ECMP, one dead"],
        *["all dead", "dead", "IPv6 ECMP in two messages", "the lowest metric", "blackhole", "local"],
        *["another table", "link-local and multicast"],
    ],
)
def test_the_main_table_is_read_from_route_messages(messages: list[bytes], want: routewatch.Table) -> None:
    assert routewatch.table(messages) == want


def test_what_changed_in_a_table_is_said_and_what_is_gone_has_no_next_hops() -> None:
    before: routewatch.Table = {"P": A, "Q": A, "R": A}
    after: routewatch.Table = {"P": A, "Q": B, "S": A}
    assert routewatch.difference(before, after) == {"Q": B, "R": (), "S": A}
    assert routewatch.difference(after, after) == {}
