"""The resource verbs as processes against a real etcd: what they print, write and return."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fabric.ops.pools import host_subnets
from tests.contract.cli import command, fabricctl, ok
from tests.contract.etcd_server import EtcdServer
from tests.contract.netns import Namespace

POOL = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: a}
spec: {cidr: 10.99.0.0/24}
"""
FOUNDATION = 4  # what the first write to an empty datastore makes: ClusterInformation and three tiers
POLICY = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web}
spec: {selector: "app == 'web'", ingress: [{action: Allow}]}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
def etcd(server: EtcdServer) -> EtcdServer:
    server.ctl("del", "--prefix", "/calico/")
    return server


def revision(etcd: EtcdServer) -> int:
    found = json.loads(etcd.ctl("get", "--prefix", "/calico/", "--keys-only", "-w", "json"))
    return int(found["header"]["revision"])


def test_apply_creates_then_says_unchanged_and_writes_nothing(etcd: EtcdServer) -> None:
    text = f"{POOL}---{POLICY}"
    told = "IPPool a: {0}\nNetworkPolicy default/web: {0}\n"
    assert ok(etcd, "apply", "-f", "-", "--dry-run", text=text) == told.format("created (dry run)")
    before = revision(etcd)
    assert ok(etcd, "apply", "-f", "-", text=text) == told.format("created")
    written = revision(etcd)
    assert written == before + 2 + FOUNDATION
    assert ok(etcd, "apply", "-f", "-", text=text) == told.format("unchanged")
    assert ok(etcd, "get", "ippool", "a", "-o", "yaml", text=text).count("resourceVersion: ") == 1
    printed = ok(etcd, "get", "np", "-A", "-o", "json")
    assert ok(etcd, "apply", "-f", "-", text=printed) == "NetworkPolicy default/web: unchanged\n"
    assert revision(etcd) == written
    rows = [line.split() for line in ok(etcd, "get", "tiers", "-o", "wide").splitlines()]
    assert rows == [
        ["NAME", "ORDER", "DEFAULTACTION"],
        ["default", "1000000", "Deny"],
        ["kube-admin", "1000", "Pass"],
        ["kube-baseline", "10000000", "Pass"],
    ]
    code, _, err = fabricctl(etcd, "delete", "tier", "kube-admin")
    assert (code, "is built in" in err) == (1, True)


def test_diff_ends_with_0_1_or_2(etcd: EtcdServer) -> None:
    code, out, err = fabricctl(etcd, "diff", "-f", "-", text=POOL)
    assert (code, err) == (1, "")
    assert "+  cidr: 10.99.0.0/24\n" in out
    before = revision(etcd)
    ok(etcd, "apply", "-f", "-", text=POOL)
    assert fabricctl(etcd, "diff", "-f", "-", text=POOL) == (0, "", "")
    code, out, err = fabricctl(etcd, "diff", "-f", "-", text=POOL.replace("/24", "/99"))
    assert (code, out) == (2, "")
    assert err.startswith("fabricctl: standard input:5: spec.cidr: ")
    code, _, err = fabricctl(
        etcd, "diff", "-f", "-", text=POOL + "---" + POLICY.replace("spec: {", "spec: {tier: x, ")
    )
    assert (code, "no such Tier" in err) == (2, True)
    assert revision(etcd) == before + 1 + FOUNDATION


def test_every_verb_can_rehearse_and_then_does_what_it_said(etcd: EtcdServer) -> None:
    changed = POOL.replace("spec: {", "spec: {disabled: true, ")
    for args, text, said in (
        (("create", "-f", "-"), POOL, "IPPool a: created"),
        (("replace", "-f", "-"), changed, "IPPool a: configured"),
        (("patch", "ippool", "a", "-p", "spec: {disabled: false}"), "", "IPPool a: configured"),
        (
            ("patch", "pool", "a", "-t", "json", "-p", '[{"op":"remove","path":"/spec/nodeSelector"}]'),
            "",
            "IPPool a: unchanged",
        ),
        (("label", "ippool", "a", "x=y", "z=1"), "", "IPPool a: configured"),
        (("label", "ippool", "a", "x-"), "", "IPPool a: configured"),
        (("delete", "ippool", "a"), "", "IPPool a: deleted"),
        (("delete", "-s", "-f", "-"), POOL, "IPPool a: does not exist"),
    ):
        before = revision(etcd)
        assert ok(etcd, *args, "--dry-run", text=text) == f"{said} (dry run)\n"
        assert revision(etcd) == before
        assert ok(etcd, *args, text=text) == f"{said}\n"
    assert ok(etcd, "get", "ippools") == "NAME  CIDR  SELECTOR\n"


def test_two_operators_who_edit_the_same_file_do_not_overwrite_one_another(etcd: EtcdServer) -> None:
    ok(etcd, "apply", "-f", "-", text=POOL)
    printed = ok(etcd, "get", "ippool", "a", "-o", "yaml")
    mine = printed.replace("  cidr:", "  disableBGPExport: true\n  cidr:")
    theirs = printed.replace("  cidr:", "  disabled: true\n  cidr:")
    writers = [
        subprocess.Popen(
            command(etcd, "apply", "-f", "-"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        told = [
            writer.communicate(text, timeout=60) for writer, text in zip(writers, (mine, theirs), strict=True)
        ]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert sorted(writer.returncode for writer in writers) == [0, 1]
    lost = next(err for writer, (_, err) in zip(writers, told, strict=True) if writer.returncode)
    assert "somebody else was first; get it again and redo the change" in lost
    spec = json.loads(ok(etcd, "get", "ippool", "a", "-o", "json"))["spec"]
    assert ("disabled" in spec) != ("disableBGPExport" in spec)


def test_get_prints_tables_names_and_templates(etcd: EtcdServer) -> None:
    ok(etcd, "apply", "-n", "blue", "-f", "-", text=f"{POOL}---{POLICY}")
    assert ok(etcd, "get", "pools") == "NAME  CIDR          SELECTOR\na     10.99.0.0/24  all()\n"
    assert ok(etcd, "get", "np") == "NAME  TIER\n"
    assert ok(etcd, "get", "np", "-A") == "NAMESPACE  NAME  TIER\nblue       web   default\n"
    assert ok(etcd, "get", "np", "web", "-n", "blue", "-o", "name") == "networkpolicy/web\n"
    assert ok(etcd, "get", "pools", "-o", 'jsonpath={.items[*].spec.cidr}{"\\n"}') == "10.99.0.0/24\n"
    assert ok(etcd, "get", "-f", "-", "-o", "jsonpath={.spec.blockSize}", text=POOL) == "26"
    code, out, err = fabricctl(etcd, "get", "pool", "a", "b")
    assert (code, out, err) == (1, "", 'fabricctl: IPPool "b": does not exist\n')
    described = "---".join(POLICY.replace("name: web", f"name: {name}") for name in ("web", "b", "c"))
    code, out, err = fabricctl(etcd, "get", "-n", "blue", "-f", "-", text=described)
    assert (code, out, err.count("in namespace blue: does not exist")) == (1, "", 2)
    etcd.ctl("put", "/calico/resources/v3/projectcalico.org/ippools/junk", "no json")
    code, out, err = fabricctl(etcd, "get", "pool", "junk")
    assert (code, out) == (1, "")
    assert err.startswith("fabricctl: IPPool junk: cannot be read: stored value is no JSON")


def test_nodes_are_listed_with_the_as_number_that_they_have_in_the_end(etcd: EtcdServer) -> None:
    nodes = [
        {"kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"bgp": bgp}}
        for name, labels, bgp in (
            ("a", {"as": "65011"}, {"ipv4Address": "192.0.2.1/24"}),
            ("b", {"as": "65011"}, {"ipv4Address": "192.0.2.2/24", "asNumber": 65099}),
            ("c", {"as": "none"}, {"ipv4Address": "192.0.2.3/24"}),
            ("d", {}, None),
        )
    ]
    cluster = {"kind": "BGPConfiguration", "metadata": {"name": "default"}, "spec": {"asNumber": 65001}}
    for by_label, want in ((False, ["65001", "65099", "65001", "-"]), (True, ["65011", "65099", "-", "-"])):
        said = {"annotations": {"fabricctl.io/as-label": "as"}} if by_label else {}
        items = [*nodes, {**cluster, "metadata": {"name": "default", **said}}]
        each = [{"apiVersion": "projectcalico.org/v3", **item} for item in items]
        ok(etcd, "apply", "-f", "-", text=json.dumps({"kind": "List", "apiVersion": "v1", "items": each}))
        code, out, err = fabricctl(etcd, "node", "list")
        assert (code, [line.split()[2] for line in out.splitlines()[1:]]) == (0, want)
        assert ('Node c: the node\'s label as, "none", is no AS number' in err) == by_label


def test_nothing_is_written_where_one_of_many_is_refused(etcd: EtcdServer) -> None:
    before = revision(etcd)
    second = POOL.replace("name: a", "name: b").replace("/24", "/25")
    code, out, err = fabricctl(etcd, "apply", "-f", "-", text=f"{POOL}---{second}")
    assert (code, out, revision(etcd)) == (1, "", before)
    assert "overlaps IPPool a" in err
    code, out, err = fabricctl(etcd, "apply", "-f", "-", text=POOL.replace("10.99", "127.99"))
    assert (code, out, revision(etcd)) == (1, "", before)
    assert "overlaps the subnet 127.0.0.0/8 of interface lo of this host" in err


def test_everything_that_is_refused_is_told_at_once_with_its_line(etcd: EtcdServer) -> None:
    information = "apiVersion: projectcalico.org/v3\nkind: ClusterInformation\nmetadata: {name: default}\n"
    second = POOL.replace("name: a", "name: b").replace("/24", "/25")
    typo = POOL.replace("name: a", "name: c").replace("spec: {cidr: 10.99", "spec: {colour: red, cidr: 10.98")
    code, _, err = fabricctl(etcd, "apply", "-f", "-", text="---\n".join([information, POOL, second, typo]))
    assert code == 1
    assert [
        line
        for line in err.splitlines()
        if line.startswith("standard input:9: spec.cidr: 10.99.0.0/24: overl")
    ]
    for said in (
        "spec.colour: no such field",
        "ClusterInformation default: is written by the nodes",
        "IPPool a (10.99",
    ):
        assert said in err


def as_user(guarded: EtcdServer, user: str, text: str) -> subprocess.CompletedProcess[str]:
    """Apply `text` as `user`, whose password is its name."""
    return subprocess.run(
        command(guarded, "apply", "-f", "-"), input=text, capture_output=True, text=True, timeout=60,
        env={**os.environ, "ETCD_USERNAME": user, "ETCD_PASSWORD": user}, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdServer]:
    """An empty etcd with users: reader reads everything, narrow has pools and what they are checked against."""
    with EtcdServer("--bcrypt-cost", "4") as server:
        for user in ("root", "reader", "narrow"):
            server.ctl("user", "add", f"{user}:{user}")
            server.ctl("role", "add", user)
            server.ctl("user", "grant-role", user, user)
        for user, right, prefix in (
            ("reader", "read", "/calico/"),
            ("narrow", "readwrite", "/calico/resources/v3/projectcalico.org/ippools/"),
            ("narrow", "read", "/calico/resources/v3/projectcalico.org/nodes/"),
            ("narrow", "read", "/calico/ipam/v2/"),
        ):
            server.ctl("role", "grant-permission", user, "--prefix=true", right, prefix)
        server.ctl("auth", "enable")
        yield server


def test_a_write_that_etcd_refuses_by_role_says_who_was_refused_and_that_nothing_was_written(
    guarded: EtcdServer,
) -> None:
    done = as_user(guarded, "reader", POOL)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'user "reader" is refused by role: permission denied; nothing was written' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_role_that_reaches_its_own_kind_alone_may_write_it(guarded: EtcdServer) -> None:
    done = as_user(guarded, "narrow", POOL)
    assert (done.returncode, done.stdout) == (0, "IPPool a: created\n")
    [warning] = done.stderr.splitlines()
    assert warning.startswith("warning: what every cluster has was not looked after: ")
    assert "grant-permission ROLE" in warning


def test_without_etcd_every_verb_fails_and_version_tells_at_least_its_own() -> None:
    address = f"127.0.0.{os.getpid() % 250 + 2}:1"
    down = [sys.executable, "-m", "fabric.cli.main", "--etcd", address]
    for args, code, out in (
        (("get", "pools"), 1, ""),
        (("diff", "-f", "-"), 2, ""),
        (("apply", "-f", "-"), 1, ""),
        (("version",), 1, "Client Version:"),
        (("version", "-o", "json"), 1, ""),
    ):
        done = subprocess.run(
            [*down, *args], input=POOL, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout[:15]) == (code, out)
        assert address in done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_stored_and_acts_on_nothing_is_warned_of_once_a_field(etcd: EtcdServer) -> None:
    tiers = "---".join(
        f"""
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {{name: p{n}, annotations: {{fabricctl.io/import: safe}}}}
spec: {{cidr: 10.{n}.0.0/16}}
"""
        for n in range(3)
    )
    path = "metadata.annotations.fabricctl.io/import"
    for told in ([f"warning: standard input:2: IPPool p0 and 2 more: {path}: kept, not used"], []):
        code, _, err = fabricctl(etcd, "apply", "-f", "-", text=tiers)
        assert (code, [line for line in err.splitlines() if path in line]) == (0, told)


def test_the_subnets_of_a_host_are_those_of_its_interfaces() -> None:
    with Namespace() as namespace:
        namespace.ip("link", "add", "eth7", "type", "veth", "peer", "name", "vxlan.calico")
        namespace.ip("link", "add", "vxlan.fabric", "type", "vxlan", "id", "4096", "dstport", "4789")
        addresses = (
            ("eth7", "10.99.0.9/20"),
            ("vxlan.calico", "10.98.0.1/32"),
            ("vxlan.fabric", "10.98.0.2/32"),
        )
        for name, address in addresses:
            namespace.ip("addr", "add", address, "dev", name)
        namespace.ip("addr", "add", "10.0.0.1/32", "dev", "lo")
        found = {(name, str(prefix)) for name, prefix in namespace.run(host_subnets())}
    assert found - {("interface lo of this host", "::1/128")} == {
        ("interface eth7 of this host", "10.99.0.0/20"),
        ("interface lo of this host", "10.0.0.1/32"),
        ("interface lo of this host", "127.0.0.0/8"),
    }


def test_version_tells_of_client_and_cluster(etcd: EtcdServer) -> None:
    told = json.loads(ok(etcd, "version", "-o", "json"))
    assert told["cluster"] == {"version": None, "type": None, "guid": None}
    key = "/calico/resources/v3/projectcalico.org/clusterinformations/default"
    spec = {"clusterGUID": "abc", "clusterType": "typha", "calicoVersion": "v3.30.0"}
    etcd.ctl(
        "put", key, json.dumps({"kind": "ClusterInformation", "metadata": {"name": "default"}, "spec": spec})
    )
    told = json.loads(ok(etcd, "version", "-o", "json"))
    assert told["cluster"] == {"version": "v3.30.0", "type": "typha", "guid": "abc"}
    assert "Cluster Version:   v3.30.0\n" in ok(etcd, "version")
