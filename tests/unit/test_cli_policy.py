"""What `fabricctl policy show` prints and asks the agent, and which arguments are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fabric.cli import policy
from fabric.cli.main import main
from fabric.errors import FabricError
from tests.unit.test_cli_bgp import agent

RULE = {"rule": 0, "action": "Allow", "match": "tcp to port 80", "packets": 12, "bytes": 720}


def layer(what: str, name: str, **more: object) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "hook": "normal",
        "tier": "default",
        "order": None,
        "staged": False,
        "broken": "",
        "rules": [],
    }
    return {**plain, "what": what, "name": name, "end": None, **more}


SHOWN = {
    "endpoint": "WorkloadEndpoint shop/web",
    "node": "node1",
    "interface": "fab0123456789ab",
    "addresses": ["10.77.1.1"],
    "ingress": [
        layer("policy", "StagedNetworkPolicy shop/soon", staged=True, rules=[RULE | {"action": "Deny"}]),
        layer("policy", "NetworkPolicy shop/web", rules=[RULE]),
        layer("policy", "NetworkPolicy shop/none"),
        layer(
            "policy",
            "NetworkPolicy shop/bad",
            broken="no selector",
            end={"action": "Deny", "packets": 1, "bytes": 60},
        ),
        layer("tier", "default", end={"action": "Deny", "packets": 3, "bytes": 180}),
        layer("profile", "kns.shop", tier="", rules=[RULE | {"match": "everything", "packets": None}]),
        layer("profile", "kns.gone", tier="", missing=True),
        layer("no-profile", "", tier="", end={"action": "Deny", "packets": 0, "bytes": 0}),
    ],
    "egress": [layer("policy", "GlobalNetworkPolicy out", hook="forward", rules=[RULE])],
}


def test_what_decides_is_shown_in_order_each_way_with_counts(capsys: pytest.CaptureFixture[str]) -> None:
    policy._print_shown(SHOWN | {"inactive": "node node1 has no link eth9"})
    lines = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    heading = ["TIER", "POLICY", "RULE", "ACTION", "MATCH", "PACKETS", "BYTES"]
    assert lines == [
        ["WorkloadEndpoint shop/web, node node1: 10.77.1.1 on fab0123456789ab"],
        ["not in force: node node1 has no link eth9"],
        [""],
        ["ingress"],
        heading,
        ["default", "StagedNetworkPolicy shop/soon (staged)", "0", "Deny", "tcp to port 80", "12", "720"],
        ["default", "NetworkPolicy shop/web", "0", "Allow", "tcp to port 80", "12", "720"],
        ["default", "NetworkPolicy shop/none", "-", "-", "no rules in this direction", "-", "-"],
        ["default", "NetworkPolicy shop/bad", "-", "Deny", "broken: no selector", "1", "60"],
        ["default", "end of tier", "-", "Deny", "-", "3", "180"],
        ["-", "Profile kns.shop", "0", "Allow", "everything", "-", "720"],
        ["-", "Profile kns.gone", "-", "-", "does not exist", "-", "-"],
        ["-", "end of profiles", "-", "Deny", "-", "0", "0"],
        [""],
        ["egress"],
        heading,
        ["default (forward)", "GlobalNetworkPolicy out", "0", "Allow", "tcp to port 80", "12", "720"],
    ]


HERE = [
    {"namespace": space, "name": name} for space, name in (("shop", "web"), ("shop", "db"), ("ops", "db"))
]


@pytest.mark.parametrize(
    ("name", "namespace"), [("web", None), ("web", "shop"), ("shop/web", None), ("shop/web", "shop")]
)
def test_the_agent_is_asked_for_the_workload_that_is_meant(
    name: str, namespace: str | None, tmp_path: Path
) -> None:
    with agent(tmp_path / "agent.sock", HERE, SHOWN) as seen:
        assert policy._shown(name, namespace, False, tmp_path / "agent.sock") == SHOWN
    assert seen == ["GET /v1/workloads", "GET /v1/policy/endpoint?workload=shop%2Fweb"]


def test_the_agent_is_asked_for_a_host_endpoint(tmp_path: Path) -> None:
    with agent(tmp_path / "agent.sock", SHOWN) as seen:
        assert policy._shown("node1-eth0", None, True, tmp_path / "agent.sock") == SHOWN
    assert seen == ["GET /v1/policy/endpoint?host=node1-eth0"]


@pytest.mark.parametrize(
    ("name", "namespace", "why"),
    [
        (
            "shop/wbe",
            None,
            r'"shop/wbe" is no workload of this node; .* or there is none; did you mean shop/web\?',
        ),
        ("wbe", None, r'"wbe" is no workload of this node; .*; did you mean web\?'),
        ("web", "default", r'"default/web" is no workload of this node'),
        ("quite-another", None, r"or there is none$"),
        ("db", None, r'"db" is more than one: ops/db, shop/db; say NAMESPACE/NAME'),
    ],
)
def test_a_name_that_no_workload_here_has_or_several(
    name: str, namespace: str | None, why: str, tmp_path: Path
) -> None:
    with agent(tmp_path / "agent.sock", HERE), pytest.raises(FabricError, match=why):
        policy._shown(name, namespace, False, tmp_path / "agent.sock")


def test_two_namespaces_for_one_workload_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match='"shop/web" is in namespace shop, and -n says ops'):
        policy._shown("shop/web", "ops", False, tmp_path / "agent.sock")


@pytest.mark.parametrize(
    "args",
    [
        ("test",),
        ("test", "x.yaml", "-o", "xml"),
        ("trace", "a", "b"),
        ("trace", "a", "b", "tcp/1", "--family", "5"),
        ("promote",),
        ("stage",),
        ("show",),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_status_2_and_says_what(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["policy", *args])
    assert end.value.code == 2
    told = capsys.readouterr()
    assert (told.out, "Error" in told.err) == ("", True)


def test_a_host_endpoint_that_acts_on_nothing_is_shown_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    policy._print_shown(SHOWN | {"inactive": "node n1 has no link ens3: it acts on nothing"})
    assert capsys.readouterr().out.splitlines()[1] == (
        "not in force: node n1 has no link ens3: it acts on nothing"
    )
