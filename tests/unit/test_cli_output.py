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
    assert COLUMNS.keys() <= {kind.word for kind in (*kinds.KINDS, kinds.KUBERNETES_POLICY)}


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    table(["NAME", "SELECTOR"], [("a", "x" * 500), ("long-name", "")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME       SELECTOR",
        f"a          {'x' * 500}",
        "long-name",
    ]


def on_a_terminal(code: str, settings: dict[str, str]) -> str:
    """What a call of `output` prints on a terminal 60 characters wide."""
    command = f'stty cols 60; "{sys.executable}" -c "from fabric.cli.output import table; {code}"'
    return subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        env={"PATH": "/usr/bin:/bin", **settings}, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "coloured"),
    [({"TERM": "xterm-256color"}, True), ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False)],
)
def test_a_terminal_gets_what_fits_and_colour_unless_it_is_unwanted(
    settings: dict[str, str], coloured: bool
) -> None:
    shown = on_a_terminal("table(['NAME', 'SELECTOR'], [('a', 'x' * 500)])", settings)
    assert ("\x1b[1;36m" in shown) is coloured
    assert max(len(line.rstrip()) for line in shown.splitlines()[1:]) <= 60
    assert shown.count("x") == 500


def test_where_it_is_tight_headings_are_broken_before_names() -> None:
    row = ("a-name-of-thirty-characters-in", "10.244.0.0/16", "false")
    shown = on_a_terminal(f"table(['NAME', 'CIDR', 'DISABLEBGPEXPORT'], [{row}])", {"NO_COLOR": "1"})
    assert "  ".join(row) in shown


def test_where_it_is_tight_numbers_are_not_broken() -> None:
    row = ("a" * 40, "b" * 60, "123456789", "-")
    shown = on_a_terminal(f"table(['A', 'B', 'BYTES', 'N'], [{row}])", {"NO_COLOR": "1"})
    assert "123456789" in shown


def test_an_empty_table_that_does_not_fit_is_its_headings() -> None:
    headings = [f"HEADING-{n}-LONG" for n in range(6)]
    shown = on_a_terminal(f"table({headings}, [])", {"NO_COLOR": "1"})
    assert shown.count("HEADIN") == len(headings)


@pytest.mark.parametrize(
    ("redirected", "status", "told"),
    [
        (">/dev/full", 1, "fabricctl: standard output: No space left on device; the answer is not whole\n"),
        (">&$gone", 1, ""),
        (">&-", 0, ""),
        (">/dev/null 2>&-", 0, ""),
    ],
)
def test_an_answer_that_cannot_be_written_is_an_error_and_no_traceback(
    redirected: str, status: int, told: str
) -> None:
    # The pipe behind $gone has no reader any more.
    script = f'exec {{gone}}> >(:); wait $!; "$0" -m fabric.cli.main completion bash {redirected}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, told)
