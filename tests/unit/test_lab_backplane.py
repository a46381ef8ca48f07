"""A wire carries the loss of a carrier across, and nothing that somebody cut is put together by it."""

import struct

import pytest

from fabric.lab.backplane import (
    CUT,
    IFF_LOWER_UP,
    IFF_UP,
    IFINFO,
    NLMSG,
    RTM_DELLINK,
    RTM_NEWLINK,
    Message,
    Wires,
    links,
)

DOWN, DEAD, LIVE = 0, IFF_UP, IFF_UP | IFF_LOWER_UP
INDEX = {"a": 1, "b": 2}


class Kernel:
    """Two ends of a wire: what is set comes back as a message, as netlink does it."""

    def __init__(self, **flags: int | None) -> None:
        self.wires = Wires([("a", "b")])
        self.flags: dict[str, int | None] = {}
        self.lit = {"a": True, "b": True}  # the interfaces in the nodes are up
        self.group = 0
        self.change(**flags)

    def change(self, **flags: int | None) -> None:
        """Let these messages come in, one after the other, before those that they bring about."""
        queue = list(flags.items())
        self.flags |= flags
        while queue:
            name, value = queue.pop(0)
            for index, up in self.wires.told(Message(name, INDEX[name], value, self.group)):
                far = "a" if index == INDEX["a"] else "b"
                self.flags[far] = (LIVE if self.lit[far] else DEAD) if up else DOWN
                queue.append((far, self.flags[far]))


@pytest.mark.parametrize("gone", [DEAD, None], ids=["its interface is down", "its node ended"])
def test_an_end_without_carrier_takes_it_from_the_other_and_gives_it_back(gone: int | None) -> None:
    kernel = Kernel(a=LIVE, b=LIVE)
    kernel.change(a=gone)
    assert kernel.flags == {"a": gone, "b": DOWN}
    kernel.change(a=LIVE)
    assert kernel.flags == {"a": LIVE, "b": LIVE}


def test_a_cut_wire_stays_cut_until_it_is_mended() -> None:
    kernel = Kernel(a=LIVE, b=LIVE)
    kernel.group = CUT
    kernel.change(a=LIVE, b=LIVE)
    kernel.change(a=DOWN)
    kernel.change(b=DOWN)
    kernel.change(a=LIVE)
    assert kernel.flags == {"a": LIVE, "b": DOWN}
    kernel.group = 0
    kernel.change(a=LIVE, b=LIVE)
    assert kernel.flags == {"a": LIVE, "b": LIVE}


def test_a_wire_whose_second_end_comes_later_has_no_carrier_until_then() -> None:
    kernel = Kernel(a=LIVE)
    assert kernel.flags == {"a": DOWN}
    kernel.change(b=LIVE)
    assert kernel.flags == {"a": LIVE, "b": LIVE}


def test_two_ends_that_lose_it_at_the_same_time_do_not_wait_for_each_other_for_ever() -> None:
    kernel = Kernel(a=LIVE, b=LIVE)
    kernel.lit = {"a": False, "b": False}
    kernel.change(a=DEAD, b=DEAD)
    assert set(kernel.flags.values()) == {DOWN, DEAD}
    kernel.lit = {"a": True, "b": True}
    kernel.change(**{name: LIVE for name, flags in kernel.flags.items() if flags == DEAD})
    assert kernel.flags == {"a": LIVE, "b": LIVE}


def test_what_was_told_before_it_was_set_does_not_keep_an_end_down() -> None:
    kernel = Kernel(a=LIVE, b=LIVE)
    # The second message of b is older than what the first of a brings about.
    kernel.change(a=DEAD, b=LIVE)
    kernel.change(a=LIVE)
    assert kernel.flags == {"a": LIVE, "b": LIVE}


def test_an_end_that_comes_back_to_a_dead_one_gets_no_carrier() -> None:
    kernel = Kernel(a=LIVE, b=LIVE)
    kernel.lit["a"] = False
    kernel.change(a=DEAD)
    kernel.change(b=LIVE)  # its node was started again
    assert kernel.flags == {"a": DEAD, "b": DOWN}


def test_a_wire_of_which_all_is_told_at_once_is_judged_as_a_whole() -> None:
    wires = Wires([("a", "b")])
    for name in ("a", "b"):
        wires.fold(Message(name, INDEX[name], LIVE))
    assert [wires.judge(name) for name in wires.pairs] == [[], []]


def test_other_interfaces_are_left_alone() -> None:
    assert Wires([("a", "b")]).told(Message("lo", 9, DEAD)) == []


def test_links_are_read_out_of_netlink_messages() -> None:
    def message(kind: int, index: int, flags: int, name: bytes) -> bytes:
        address = b"\x05\x00\x01\x00x\0\0\0"
        group = struct.pack("=HHI", 8, 27, CUT)
        attributes = address + group + struct.pack("=HH", 5 + len(name), 3) + name + b"\0"
        body = IFINFO.pack(0, 1, index, flags, 0) + attributes
        padding = bytes(-len(body) % 4)
        return NLMSG.pack(NLMSG.size + len(body), kind, 0, 0, 0) + body + padding

    data = (
        message(RTM_NEWLINK, 3, LIVE, b"w0a")
        + message(3, 0, 0, b"done")
        + message(RTM_DELLINK, 4, 0, b"w12b")
    )
    assert list(links(data)) == [Message("w0a", 3, LIVE, CUT), None, Message("w12b", 4, None, CUT)]
