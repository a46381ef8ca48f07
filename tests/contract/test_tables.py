"""The FORWARD policies that `node join` warns of, read from the real kernel, both backends."""

from __future__ import annotations

import pytest

from fabric.kernel.tables import ForwardPolicy, forward_policies
from tests.contract.netns import Namespace


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize(("version", "tool"), [(4, "iptables"), (6, "ip6tables")])
def test_a_dropping_forward_chain_is_seen(backend: str, version: int, tool: str) -> None:
    with Namespace() as host:
        host.command(f"{tool}-{backend}", "-P", "FORWARD", "DROP")
        assert ForwardPolicy(backend, version, "DROP") in host.run(forward_policies())


def test_looking_makes_no_legacy_table() -> None:
    with Namespace() as host:
        found = host.run(forward_policies())
        assert {policy.backend for policy in found} <= {"nft"}
        assert host.command("cat", "/proc/thread-self/net/ip_tables_names") == ""
