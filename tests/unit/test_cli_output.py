"""Tables: which columns each kind has, and that what is printed into a pipe is whole and without colour."""

import subprocess
import sys
from typing import Any

import pytest

from fabric.cli import columns
from fabric.cli.columns import COLUMNS
from fabric.cli.output import table
from fabric.model import kinds

ENDPOINT = {
    "metadata": {"name": "n1-cni-c1-eth0", "namespace": "blue"},
    "spec": {
        "node": "n1",
        "pod": "web-0",
        "ipNetworks": ["10.0.0.1/32", "fd00::1/128"],
        "interfaceName": "fab0",
        "profiles": ["kns.blue"],
        "ipNATs": [{"internalIP": "10.0.0.1", "externalIP": "192.0.2.1"}],
    },
}


def shown(kind: str, tree: dict[str, Any], wide: bool = False, namespaces: bool = False) -> dict[str, str]:
    headings, [row] = columns.table(kind, [tree], wide=wide, namespaces=namespaces)
    return dict(zip(headings, row, strict=True))


@pytest.mark.parametrize(
    ("kind", "tree", "wide", "cells"),
    [
        ("IPPool", {"metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/8", "nodeSelector": "all()"}}, False,
         {"NAME": "a", "CIDR": "10.0.0.0/8", "SELECTOR": "all()"}),
        ("IPPool", {"metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/8", "natOutgoing": True}}, True,
         {"NAME": "a", "CIDR": "10.0.0.0/8", "NAT": "true", "IPIPMODE": "Never", "VXLANMODE": "Never",
          "DISABLED": "false", "DISABLEBGPEXPORT": "false", "SELECTOR": ""}),
        ("WorkloadEndpoint", ENDPOINT, False,
         {"WORKLOAD": "web-0", "NODE": "n1", "NETWORKS": "10.0.0.1/32,fd00::1/128", "INTERFACE": "fab0"}),
        ("WorkloadEndpoint", ENDPOINT, True,
         {"NAME": "n1-cni-c1-eth0", "WORKLOAD": "web-0", "NODE": "n1", "NETWORKS": "10.0.0.1/32,fd00::1/128",
          "INTERFACE": "fab0", "PROFILES": "kns.blue", "NATS": "10.0.0.1=192.0.2.1"}),
        ("BGPPeer", {"metadata": {"name": "p"}, "spec": {"peerIP": "192.0.2.1", "asNumber": 65000}}, False,
         {"NAME": "p", "PEERIP": "192.0.2.1", "NODE": "(global)", "ASN": "65000"}),
        ("BGPPeer", {"metadata": {"name": "p"}, "spec": {"nodeSelector": "has(x)"}}, False,
         {"NAME": "p", "PEERIP": "", "NODE": "has(x)", "ASN": ""}),
        ("NetworkPolicy", {"metadata": {"name": "p"}, "spec": {"tier": "sec", "order": 10.0, "selector": "all()"}},
         True, {"NAME": "p", "TIER": "sec", "ORDER": "10", "SELECTOR": "all()"}),
        ("Tier", {"metadata": {"name": "t"}, "spec": {"order": 2.5}}, False, {"NAME": "t", "ORDER": "2.5"}),
        ("BGPConfiguration", {"metadata": {"name": "default"}, "spec": {"nodeToNodeMeshEnabled": False}}, False,
         {"NAME": "default", "LOGSEVERITY": "", "MESHENABLED": "false", "ASNUMBER": "-"}),
        ("BGPFilter", {"metadata": {"name": "f"}, "spec": {"exportV4": [{}, {}], "exportV6": [{}]}}, False,
         {"NAME": "f", "NUMEXPORT": "3", "NUMIMPORT": "0"}),
        ("LiveMigration", {"metadata": {"name": "m"}}, True, {"NAME": "m"}),
    ],
)  # fmt: skip
def test_a_kind_has_the_columns_of_calicoctl(
    kind: str, tree: dict[str, Any], wide: bool, cells: dict[str, str]
) -> None:
    assert shown(kind, tree, wide) == cells


def test_the_namespace_comes_first() -> None:
    assert next(iter(shown("WorkloadEndpoint", ENDPOINT, namespaces=True).items())) == ("NAMESPACE", "blue")


def test_every_table_is_of_a_kind_there_is() -> None:
    assert COLUMNS.keys() <= {kind.name for kind in kinds.KINDS}


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    table(["NAME", "SELECTOR"], [("a", "x" * 500), ("long-name", "")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME       SELECTOR",
        f"a          {'x' * 500}",
        "long-name",
    ]


@pytest.mark.parametrize(
    ("settings", "coloured"),
    [({"TERM": "xterm-256color"}, True), ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False)],
)
def test_a_terminal_gets_what_fits_and_colour_unless_it_is_unwanted(
    settings: dict[str, str], coloured: bool
) -> None:
    code = "from fabric.cli.output import table; table(['NAME', 'SELECTOR'], [('a', 'x' * 500)])"
    done = subprocess.run(
        ["script", "-qec", f'stty cols 60; "{sys.executable}" -c "{code}"', "/dev/null"],
        env={"PATH": "/usr/bin:/bin", **settings}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ("\x1b[1;36m" in done.stdout) is coloured
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()[1:]) <= 60
    assert done.stdout.count("x") == 500
