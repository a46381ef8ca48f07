"""A plan of one node's BGP from files alone: `fabricctl bgp plan`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import ConfigError
from fabric.ops import blocks
from fabric.ops.bgp_plan import Plan, document, read

KEYS = [
    *("name", "peer_ip", "port", "remote_as", "local_as", "source", "passive", "rr_client", "cluster_id"),
    *(
        "ttl_security",
        "next_hop",
        "allow_own_as",
        "restart_time",
        "keepalive",
        "import_filters",
        "export_filters",
    ),
    *("import", "export", "max_prefix", "required"),
]
POOL = {"kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.77.0.0/16"}}
CLOSED = {
    "kind": "IPPool",
    "metadata": {"name": "c"},
    "spec": {"cidr": "10.78.0.0/16", "disableBGPExport": True},
}
NO_MESH = {
    "kind": "BGPConfiguration",
    "metadata": {"name": "default"},
    "spec": {"nodeToNodeMeshEnabled": False},
}
ON_LO = [{"name": "eth0", "addresses": ["10.1.0.1/31"]}, {"name": "lo", "addresses": ["10.9.9.1/32"]}]


def node(
    name: str = "n1", address: str = "10.9.9.1/32", interfaces: object = (), **bgp: object
) -> dict[str, Any]:
    spec = {"bgp": {"ipv4Address": address, **bgp}, "interfaces": list(interfaces)}  # type: ignore[call-overload]
    return {"kind": "Node", "metadata": {"name": name}, "spec": spec}


def peer(name: str = "tor", said: dict[str, str] | None = None, **spec: object) -> dict[str, Any]:
    annotations = {f"fabricctl.io/{key}": text for key, text in (said or {}).items()}
    given = {"peerIP": "10.1.0.0", "asNumber": 65000, **spec}
    return {"kind": "BGPPeer", "metadata": {"name": name, "annotations": annotations}, "spec": given}


def block(cidr: str, of: str = "n1", **state: str) -> dict[str, str]:
    return {"cidr": cidr, "node": of, **state}


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """Plan for n1 from these resources and blocks."""

    def planned(*trees: dict[str, Any], blocks: list[dict[str, str]] | None = None, name: str = "n1") -> Plan:
        file, held = tmp_path / "fabric.yaml", tmp_path / "blocks.json"
        whole = [{"apiVersion": "projectcalico.org/v3", **tree} for tree in trees]
        file.write_text("\n---\n".join(map(json.dumps, whole)))
        held.write_text(json.dumps(blocks or []))
        return read(name, [str(file)], blocks=str(held) if blocks else "")

    return planned


def test_a_session_has_every_key_and_no_password(plan: Any) -> None:
    secret = {"secretKeyRef": {"name": "bgp", "key": "tor"}}
    found = plan(node(), NO_MESH, peer(password=secret))
    [session] = document(found)["sessions"]
    assert list(session) == KEYS
    assert found.problems == {}, "a secret is not needed for a plan"
    assert session == dict(zip(KEYS, [
        "tor", "10.1.0.0", 179, 65000, 64512, "10.9.9.1", False, False, None, 0, "auto", 0, 120, 30, [], [],
        "safe", "safe", 10000, False,
    ], strict=True))  # fmt: skip


def test_what_a_peer_sets_is_shown(plan: Any) -> None:
    said = {"import": "calico", "export": "calico", "max-prefix": "0", "required": "true"}
    spec = {
        "peerIP": "10.1.0.0:1790", "localASNumber": 65009, "ttlSecurity": 1, "nextHopMode": "Self",
        "numAllowedLocalASNumbers": 2, "maxRestartTime": "5m", "keepaliveTime": "10s",
    }  # fmt: skip
    [session] = document(plan(node(), NO_MESH, peer("tor", said, **spec)))["sessions"]
    assert session == dict(zip(KEYS, [
        "tor", "10.1.0.0", 1790, 65000, 65009, "10.9.9.1", False, False, None, 1, "self", 2, 300, 10, [], [],
        "calico", "calico", 0, True,
    ], strict=True))  # fmt: skip


def test_a_reflectors_client_has_its_cluster_id(plan: Any) -> None:
    reflector = node(routeReflectorClusterID="1.0.0.1")
    [session] = document(plan(reflector, peer(asNumber=64512)))["sessions"]
    assert (session["rr_client"], session["cluster_id"]) == (True, "1.0.0.1")


def test_filters_are_those_with_rules_of_that_direction_for_what_the_session_carries(plan: Any) -> None:
    def bgp_filter(name: str, **lists: object) -> dict[str, Any]:
        return {"kind": "BGPFilter", "metadata": {"name": name}, "spec": lists}

    rule = [{"action": "Accept"}]
    filters = [
        bgp_filter("both", importV4=rule, exportV4=rule),
        bgp_filter("out", exportV4=rule),
        bgp_filter("six", importV6=rule, exportV6=rule),
        bgp_filter("none"),
    ]
    found = plan(node(), NO_MESH, *filters, peer(filters=["six", "out", "none", "both"]))
    [session] = document(found)["sessions"]
    assert session["import_filters"] == ["both"]
    assert session["export_filters"] == ["out", "both"]


def test_the_hosts_links_are_those_that_the_node_says(plan: Any) -> None:
    by_uplink = peer(said={"source": "uplink"})
    [session] = document(plan(node(interfaces=ON_LO), NO_MESH, by_uplink))["sessions"]
    assert session["source"] == "10.1.0.1"
    found = plan(node(), NO_MESH, by_uplink)
    assert document(found)["sessions"][0]["source"] is None
    assert "so the source of tor is not known" in found.problems["Node n1"]
    odd = plan(node(interfaces=[{"name": "eth0", "addresses": ["here"]}]), NO_MESH, peer())
    assert odd.problems == {"Node n1": 'spec.interfaces: eth0: "here" is no address with a prefix length'}


def test_the_default_gateway_is_known_on_the_host_alone(plan: Any) -> None:
    gateway = peer("gw", {"peer": "auto-gateway"}, peerIP=None)
    found = plan(node(), NO_MESH, gateway)
    [session] = document(found)["sessions"]
    assert (session["peer_ip"], session["source"], found.problems) == ("auto-gateway", "10.9.9.1", {})
    six = {"kind": "Node", "metadata": {"name": "n1"}, "spec": {"bgp": {"ipv6Address": "fd00::1/64"}}}
    [session] = document(plan(six, NO_MESH, gateway))["sessions"]
    assert (session["peer_ip"], session["source"]) == ("auto-gateway", "fd00::1")


def test_the_source_toward_a_gateway_is_told_to_be_known_on_the_host_alone(plan: Any) -> None:
    gateway = peer("gw", {"peer": "auto-gateway", "source": "uplink"}, peerIP=None)
    found = plan(node(interfaces=ON_LO), NO_MESH, gateway, peer(said={"source": "uplink"}))
    assert found.problems == {"Node n1": "the host's gateways are not known, nor the source of gw"}


def test_a_node_without_a_part_in_bgp_has_blackholes_and_announces_nothing(plan: Any) -> None:
    apart = {"kind": "Node", "metadata": {"name": "n1"}, "spec": {}}
    found = plan(apart, POOL, peer(), blocks=BLOCKS[:1])
    assert document(found) == {
        "sessions": [],
        "blackholes": ["10.77.0.0/26"],
        "aggregates": ["10.77.0.0/26"],
        "announce": [],
    }
    assert found.problems == {"Node n1": "it has no spec.bgp: no session"}


BLOCKS = [
    block("10.77.0.0/26"),
    block("10.77.0.64/26", state="confirmed"),
    block("10.77.0.128/26", state="pending"),
    block("10.77.0.192/26", state="pendingDeletion"),
    block("10.77.1.0/26", "n2"),
    block("10.77.2.9/32", state="confirmed by hand"),
    block("10.78.0.0/26"),
]


def test_confirmed_blocks_are_blackholes_and_aggregates_and_announced_outside_closed_pools(plan: Any) -> None:
    found = document(plan(node(interfaces=ON_LO), POOL, CLOSED, peer(), blocks=BLOCKS))
    assert found["blackholes"] == ["10.77.0.0/26", "10.77.0.64/26", "10.78.0.0/26"]
    assert found["aggregates"] == ["10.77.0.0/26", "10.77.0.64/26", "10.77.2.9/32", "10.78.0.0/26"]
    assert found["announce"] == ["10.9.9.1/32", "10.77.0.0/26", "10.77.0.64/26", "10.77.2.9/32"]


def test_without_a_session_it_is_what_the_default_policy_lets_out(plan: Any) -> None:
    found = document(plan(node(), POOL, CLOSED, blocks=BLOCKS))
    assert found["sessions"] == []
    assert found["announce"] == ["10.77.0.0/26", "10.77.0.64/26", "10.77.2.9/32"]


def test_what_every_session_filters_out_is_not_announced(plan: Any) -> None:
    closed = {"kind": "BGPFilter", "metadata": {"name": "f"}, "spec": {"exportV4": [{"action": "Reject"}]}}
    assert document(plan(node(), POOL, NO_MESH, closed, peer(filters=["f"]), blocks=BLOCKS))["announce"] == []
    two = (peer(filters=["f"]), peer("b", peerIP="10.1.0.2"))
    assert document(plan(node(), POOL, NO_MESH, closed, *two, blocks=BLOCKS[:1]))["announce"] == [
        "10.77.0.0/26"
    ]


def test_a_node_that_is_in_no_file_is_refused_with_those_that_are(plan: Any) -> None:
    with pytest.raises(
        ConfigError, match='node "n9": no Node of that name is in the files; those in them: n1, n2'
    ):
        plan(node("n2", "10.9.9.2/32"), node(), name="n9")
    with pytest.raises(ConfigError, match="those in them: none"):
        plan(POOL)


def test_every_mistake_in_the_files_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\n"
        "metadata:\n  name: tor\n  annotations: {fabricctl.io/import: all}\nspec:\n  peerIp: 10.1.0.0\n"
    )
    with pytest.raises(ConfigError) as caught:
        read("n1", [str(file)])
    told = str(caught.value)
    assert f"{file}:7: spec.peerIp: no such field; did you mean peerIP?" in told
    assert f'{file}:5: metadata.annotations.fabricctl.io/import: "all": must be safe or calico' in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ":1: a blocks file is a list"),
        ("a: 1", ":1: a blocks file is a list"),
        ("[]\n---\n[]", "a blocks file is a list"),
        ("- x", ":1: [0]: must be a mapping"),
        (
            "- {cidr: 10.0.0.1/26, node: n1}",
            ':1: [0].cidr: "10.0.0.1/26": must be a prefix without host bits',
        ),
        ("- {cidr: 10.0.0.0, node: n1}", ':1: [0].cidr: "10.0.0.0": must be a prefix'),
        ("- {cidr: 10.0.0.0/255.255.255.192, node: n1}", "[0].cidr: "),
        ("- cidr: 10.0.0.0/26\n  node: 5", ":2: [0].node: 5: must be a node's name"),
        ("- {node: n1}", ":1: [0].cidr: must be a prefix"),
        ("- {cidr: 10.0.0.0/26}", ":1: [0].node: must be a node's name"),
        ("- {cidr: 10.0.0.0/26, node: n, state: 1}", "[0].state: 1: must be text"),
        (
            "- {cidr: 10.0.0.0/26, node: n}\n- {cidr: 10.0.0.64/26, node: n, sate: pending}",
            ":2: [1].sate: no such field",
        ),
        ("- [", ":2: did not find"),
    ],
)
def test_a_bad_blocks_file_is_refused_with_line_and_index(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "blocks.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        blocks.read(str(file))
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_a_blocks_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: No such file or directory"):
        blocks.read(str(tmp_path / "no.yaml"))


def test_a_blocks_file_may_be_yaml_and_an_empty_state_is_none(tmp_path: Path) -> None:
    file = tmp_path / "blocks.yaml"
    file.write_text(
        "- {cidr: 'fd00::/122', node: n1, state: ''}\n- cidr: 10.0.0.0/26\n  node: n2\n  state:\n"
    )
    assert [(str(b.prefix), b.node, b.confirmed) for b in blocks.read(str(file))] == [
        ("fd00::/122", "n1", True),
        ("10.0.0.0/26", "n2", True),
    ]


def fabricctl(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fabric.cli.main", "bgp", "plan", *args]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


FILES = json.dumps(
    {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": "projectcalico.org/v3", **tree}
            for tree in (node(interfaces=ON_LO), NO_MESH, POOL, peer(filters=["gone"]))
        ],
    }
)


def test_the_command_reads_standard_input_prints_json_and_warns_on_standard_error(tmp_path: Path) -> None:
    held = tmp_path / "blocks.json"
    held.write_text(json.dumps(BLOCKS))
    done = fabricctl("--node", "n1", "-f", "-", "--blocks", str(held), "-o", "json", stdin=FILES)
    assert done.returncode == 0
    assert (
        done.stderr
        == "warning: BGPPeer tor: filter gone: there is no BGPFilter of that name; the others hold\n"
    )
    told = json.loads(done.stdout)
    assert list(told) == ["sessions", "blackholes", "aggregates", "announce"]
    assert told["announce"][0] == "10.9.9.1/32"


def test_the_table_has_the_sessions_and_what_becomes_of_each_prefix(tmp_path: Path) -> None:
    held = tmp_path / "blocks.json"
    held.write_text(json.dumps(BLOCKS[:4]))
    done = fabricctl("--node", "n1", "-f", "-", "--blocks", str(held), stdin=FILES)
    assert done.stdout.splitlines() == [
        "PEER      NAME  AS     LOCAL AS  SOURCE    CONNECTS   CLIENT  NEXT HOP  IMPORT  EXPORT  MAX",
        "10.1.0.0  tor   65000  64512     10.9.9.1  this node  -       auto      safe    safe    10000",
        "",
        "PREFIX         WHAT",
        "10.9.9.1/32    announced",
        "10.77.0.0/26   announced, own block, blackhole",
        "10.77.0.64/26  announced, own block, blackhole",
    ]


def test_the_command_ends_with_1_and_one_message_where_the_node_is_not_there() -> None:
    done = fabricctl("--node", "n9", "-f", "-", stdin=FILES)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'fabricctl: node "n9": no Node of that name is in the files; those in them: n1\n'
