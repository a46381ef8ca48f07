"""What `fabricctl policy show` prints and asks the agent, and which arguments are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fabric.cli import policy
from fabric.cli.main import main
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
        layer("no-profile", "", tier="", end={"action": "Deny", "packets": 0, "bytes": 0}),
    ],
    "egress": [layer("policy", "GlobalNetworkPolicy out", hook="forward", rules=[RULE])],
}


def test_what_decides_is_shown_in_order_each_way_with_counts(capsys: pytest.CaptureFixture[str]) -> None:
    policy._print_shown(SHOWN)
    lines = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    heading = ["TIER", "POLICY", "RULE", "ACTION", "MATCH", "PACKETS", "BYTES"]
    assert lines == [
        ["WorkloadEndpoint shop/web, node node1: 10.77.1.1 on fab0123456789ab"],
        [""],
        ["ingress"],
        heading,
        ["default", "StagedNetworkPolicy shop/soon (staged)", "0", "Deny", "tcp to port 80", "12", "720"],
        ["default", "NetworkPolicy shop/web", "0", "Allow", "tcp to port 80", "12", "720"],
        ["default", "NetworkPolicy shop/none", "-", "-", "no rules in this direction", "-", "-"],
        ["default", "NetworkPolicy shop/bad", "-", "Deny", "broken: no selector", "1", "60"],
        ["default", "end of tier", "-", "Deny", "-", "3", "180"],
        ["-", "Profile kns.shop", "0", "Allow", "everything", "-", "720"],
        ["-", "end of profiles", "-", "Deny", "-", "0", "0"],
        [""],
        ["egress"],
        heading,
        ["default (forward)", "GlobalNetworkPolicy out", "0", "Allow", "tcp to port 80", "12", "720"],
    ]


@pytest.mark.parametrize(
    ("name", "namespace", "host", "asked"),
    [
        ("web", "default", False, "workload=default%2Fweb"),
        ("web", "shop", False, "workload=shop%2Fweb"),
        ("shop/web", "default", False, "workload=shop%2Fweb"),
        ("node1-eth0", "default", True, "host=node1-eth0"),
    ],
)
def test_the_agent_is_asked_for_a_workload_or_a_host_endpoint(
    name: str, namespace: str, host: bool, asked: str, tmp_path: Path
) -> None:
    with agent(tmp_path / "agent.sock", SHOWN) as seen:
        assert policy._shown(name, namespace, host, tmp_path / "agent.sock") == SHOWN
    assert seen == [f"GET /v1/policy/endpoint?{asked}"]


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
