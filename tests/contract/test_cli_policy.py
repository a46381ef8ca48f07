"""`fabricctl policy` and `diff` as processes against a real etcd: what they print, write and return."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.cli import fabricctl, ok
from tests.contract.etcd_server import EtcdServer
from tests.unit.scenes import workload

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "verdicts"
API = "apiVersion: projectcalico.org/v3\n"
NODE = """apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: node1}
spec: {bgp: {ipv4Address: 192.0.2.11/24}}
"""
ENDPOINTS = "---\n".join(
    [
        API + workload("shop/web", "app: web", node="node1", address="10.77.1.1/32"),
        API + workload("shop/db", "app: db", node="node1", address="10.77.1.2/32"),
        (GOLDEN / "shop" / "endpoints.yaml").read_text(),
        NODE,
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
    ]
)
DENY = """apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: shut, namespace: shop}
spec: {selector: app == 'db', order: 1, ingress: [{action: Deny, protocol: TCP, destination: {ports: [5432]}}]}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
def etcd(server: EtcdServer) -> EtcdServer:
    server.ctl("del", "--prefix", "/calico/")
    ok(server, "apply", "-f", "-", "-f", str(GOLDEN / "shop" / "policies.yaml"), text=ENDPOINTS)
    return server


def test_a_trace_ends_with_0_if_allowed_1_if_denied_2_if_it_cannot_be_told(etcd: EtcdServer) -> None:
    allowed = ok(etcd, "policy", "trace", "shop/web", "shop/db", "tcp/5432")
    assert allowed == (GOLDEN / "trace-allowed.txt").read_text()
    code, out, _ = fabricctl(etcd, "policy", "trace", "198.51.100.7", "shop/db", "tcp/5432", "-o", "json")
    assert (code, json.loads(out)["verdict"]) == (1, "deny")
    code, out, err = fabricctl(etcd, "policy", "trace", "shop/web", "shop/bd", "tcp/5432")
    assert (code, out) == (2, "")
    assert "did you mean shop/db?" in err


def test_diff_tells_between_whom_verdicts_change_and_staging_takes_them_back(etcd: EtcdServer) -> None:
    code, out, err = fabricctl(etcd, "diff", "-f", "-", text=DENY)
    assert (code, err) == (1, "")
    assert out.endswith(
        "\nverdicts that change (5 pairs of ends tried, each with tcp/5432, any other tcp port):\n"
        "  shop/web -> shop/db  tcp/5432: allow -> deny by NetworkPolicy shop/shut ingress rule 0\n"
    )
    ok(etcd, "apply", "-f", "-", text=DENY)
    trace = ("policy", "trace", "shop/web", "shop/db", "tcp/5432")
    assert fabricctl(etcd, *trace)[0] == 1
    told = "StagedNetworkPolicy shop/shut: created{0}\nNetworkPolicy shop/shut: deleted{0}\n"
    assert ok(etcd, "policy", "stage", "shut", "-n", "shop", "--dry-run") == told.format(" (dry run)")
    assert fabricctl(etcd, *trace)[0] == 1
    assert ok(etcd, "policy", "stage", "shut", "-n", "shop") == told.format("")
    assert "~>    rule 0  Deny   tcp to port 5432: matches" in ok(etcd, *trace)
    ok(etcd, "policy", "promote", "shut", "-n", "shop")
    assert fabricctl(etcd, *trace)[0] == 1
    code, out, err = fabricctl(etcd, "policy", "promote", "shut", "-n", "shop")
    assert (code, out) == (1, "")
    assert err.startswith('fabricctl: policy "shut": there is no StagedNetworkPolicy shop/shut or ')


def test_what_get_prints_can_be_tested_against(etcd: EtcdServer, tmp_path: Path) -> None:
    # Kinds one by one, as an operator saves them; the namespace's profile is not among them.
    stored = tmp_path / "stored.yaml"
    kinds = ("tiers", "np", "gnp", "snp", "wep")
    stored.write_text("---\n".join(ok(etcd, "get", kind, *_all(kind), "-o", "yaml") for kind in kinds))
    cases = tmp_path / "cases.yaml"
    cases.write_text(
        "resources: [stored.yaml]\n"
        "cases: [{from: shop/web, to: shop/db, protocol: tcp/5432, expect: allow, by: NetworkPolicy shop/db}]\n"
    )
    assert ok(etcd, "policy", "test", str(cases)) == "1 case, 0 not as expected\n"


def _all(kind: str) -> list[str]:
    return ["-A"] if kind in {"np", "snp", "wep"} else []
