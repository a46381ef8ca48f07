"""What is read of the packet filter's tables, from the real kernel: iptables on both backends, and nft."""

from __future__ import annotations

import pytest

from fabric.kernel.tables import native, saved
from tests.contract.netns import Namespace

TABLE = "table inet mine { chain in { type filter hook input priority 0; policy drop; }; }"


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize(("version", "tool"), [(4, "iptables"), (6, "ip6tables")])
def test_the_tables_of_each_backend_and_family_are_read(backend: str, version: int, tool: str) -> None:
    with Namespace() as host:
        host.command(f"{tool}-{backend}", "-P", "FORWARD", "DROP")
        [found] = [s for s in host.run(saved()) if (s.backend, s.version) == (backend, version)]
        assert "*filter" in found.text
        assert ":FORWARD DROP" in found.text


def test_native_tables_are_read() -> None:
    with Namespace() as host:
        host.command("nft", TABLE)
        [chain] = [entry["chain"] for entry in host.run(native()) if "chain" in entry]
        assert (chain["table"], chain["hook"], chain["policy"]) == ("mine", "input", "drop")


def test_looking_makes_no_table() -> None:
    with Namespace() as host:
        assert host.run(saved()) == ()
        assert [entry for entry in host.run(native()) if "metainfo" not in entry] == []
        assert host.command("cat", "/proc/thread-self/net/ip_tables_names") == ""
        assert host.command("nft", "list", "tables") == ""
