"""The socket that writes go through, where the kernel's answers do not fit into it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from fabric.errors import DataplaneError
from fabric.kernel.netlink import BATCH, Rtnl, link_delete
from tests.contract.netns import Namespace


class Small(Rtnl):
    """One with the smallest buffer there is."""

    def __init__(self) -> None:
        super().__init__()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as space:
        yield space


def test_lost_answers_are_an_error_and_the_next_batch_has_its_own(host: Namespace) -> None:
    with host.call(Small) as rtnl:
        many = [link_delete(f"none{number}") for number in range(BATCH)]
        with pytest.raises(DataplaneError, match=r"remove link none0: .*ENOBUFS.*answers were lost"):
            host.call(partial(rtnl.run, many))
        [refused] = host.call(partial(rtnl.attempt, [link_delete("none")]))
        assert (refused.request.what, refused.code) == ("remove link none", errno.ENODEV)
