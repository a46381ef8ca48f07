"""The containerlab format: what a file means once everything is inherited, and what is refused, and how."""

import json
import os
from pathlib import Path, PurePosixPath

import jsonschema
import pytest
import yaml

from fabric.errors import ConfigError
from fabric.lab.profiles import profile_of, repository
from fabric.lab.topology import Bind, Endpoint, Link, Node, Topology, load, parse

FILE = Path("/labs/rack.clab.yml")
SHIPPED = sorted((Path(__file__).parents[2] / "containerlab").glob("*.clab.yml"))


def rack(body: str) -> str:
    return "name: rack\ntopology:\n" + body


def test_a_node_inherits_from_its_group_its_kind_and_the_defaults() -> None:
    text = rack("""\
  defaults: {kind: linux, image: alpine, env: {A: defaults, B: defaults, C: off}, exec: [echo defaults]}
  kinds: {linux: {env: {B: kind, D: 8080:53}, exec: [echo kind]}}
  groups: {leaf: {image: "frrouting/frr:v8.4.1", startup-delay: 2, exec: [echo group]}}
  nodes:
    a: {group: leaf, env: {A: node}, exec: ['sh -c "echo node"'], network-mode: none}
    b: {cmd: sleep infinity, group: only-a-label}
    c:
  links:
    - endpoints: ["a:eth1", "b:eth1"]
    - {endpoints: ["a:eth2", "c:eth1"], mtu: 1500}
""")
    env = {"B": "kind", "C": "off", "D": "8080:53"}
    inherited = (("echo", "defaults"), ("echo", "kind"))
    own = (("echo", "group"), ("sh", "-c", "echo node"))
    assert parse(text, FILE) == Topology(
        "rack",
        (
            Node("a", "frrouting/frr:v8.4.1", (), env | {"A": "node"}, inherited + own, (), 2),
            Node("b", "alpine", (), env | {"A": "defaults"}, inherited, ("sleep", "infinity")),
            Node("c", "alpine", (), env | {"A": "defaults"}, inherited),
        ),
        (
            Link(Endpoint("a", "eth1"), Endpoint("b", "eth1"), 9500),
            Link(Endpoint("a", "eth2"), Endpoint("c", "eth1"), 1500),
        ),
    )


def test_binds_are_relative_to_the_file_and_the_nearest_one_wins(tmp_path: Path) -> None:
    for name in ("mine", "theirs", "directory"):
        (tmp_path / name).touch()
    text = rack("""\
  defaults: {kind: linux, image: alpine, binds: ["theirs:/etc/x", "directory:/etc"]}
  nodes: {a: {binds: ["mine:/etc/x:ro"]}}
""")
    node = parse(text, tmp_path / "rack.clab.yml").nodes[0]
    assert node.binds == (
        Bind(tmp_path / "directory", PurePosixPath("/etc"), False),
        Bind(tmp_path / "mine", PurePosixPath("/etc/x"), True),
    )


def test_anchors_and_merge_keys_mean_what_they_mean_in_yaml() -> None:
    text = rack("""\
  nodes:
    a: &base {kind: linux, image: alpine, env: {X: a}}
    b: {<<: *base, env: {X: b}}
""")
    b = parse(text, FILE).nodes[1]
    assert (b.image, b.env) == ("alpine", {"X": "b"})


NODES = "  nodes: {a: {kind: linux, image: alpine}, b: {kind: linux, image: alpine}}\n"
NO_SUPPORT = "is not supported by namespace labs; remove it, or deploy the file with containerlab"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("", "1: name: is required", id="empty"),
        pytest.param("name: [", "not YAML", id="no YAML"),
        pytest.param(rack(NODES) + "mgmt: {network: x}\n", f"4: mgmt: {NO_SUPPORT}", id="mgmt"),
        pytest.param(
            rack("  nodes:\n    a:\n      kind: linux\n      image: alpine\n      ports: ['80:80']\n"),
            f"7: topology.nodes.a.ports: {NO_SUPPORT}",
            id="field of a node",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: nokia_srlinux, image: x}}\n"),
            "3: topology.nodes.a.kind: input should be 'linux'",
            id="kind",
        ),
        pytest.param(
            rack("  kinds: {arista_ceos: {image: x}}\n" + NODES),
            "3: topology.kinds.arista_ceos: namespace labs run the kind linux only",
            id="kinds",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: linux, image: x, network-mode: host}}\n"),
            "topology.nodes.a.network-mode: input should be 'none'",
            id="network-mode",
        ),
        pytest.param(rack("  nodes: {a: {image: x}}\n"), "a.kind: is required, here or in", id="no kind"),
        pytest.param(
            rack("  nodes: {a: {kind: linux}}\n"), "a.image: is required, here or in", id="no image"
        ),
        pytest.param(rack("  nodes: {a_: {kind: linux, image: x}}\n"), "is no host name", id="node name"),
        pytest.param("name: a/b\ntopology: {nodes: {}}\n", '1: name: "a/b": letters', id="lab name"),
        pytest.param(
            rack("  nodes: {a: {kind: linux, image: x}, a: {kind: linux, image: x}}\n"),
            '"a" stands twice',
            id="same node twice",
        ),
        pytest.param(
            rack(NODES + "  links:\n    - endpoints: ['a:eth1', 'c:eth1']\n"),
            '5: topology.links.0.endpoints: "c:eth1": there is no node "c"',
            id="stranger",
        ),
        pytest.param(
            rack(NODES + "  links:\n    - endpoints: ['a:eth1', 'host:x']\n"),
            'there is no node "host"; links join the nodes of this file only',
            id="the host's namespace",
        ),
        pytest.param(
            rack(NODES + "  links:\n    - endpoints: ['a:interface-name16', 'b:eth1']\n"),
            '"interface-name16" is no interface name (1 to 15 characters)',
            id="long interface",
        ),
        pytest.param(
            rack(NODES + "  links:\n    - endpoints: ['a:e', 'b:e']\n    - endpoints: ['b:f', 'a:e']\n"),
            "6: topology.links.1.endpoints: a:e is an end of another link already",
            id="interface twice",
        ),
        pytest.param(
            rack(NODES + "  links:\n    - {type: veth, endpoints: ['a:e', 'b:e']}\n"),
            f"5: topology.links.0.type: {NO_SUPPORT}",
            id="extended link",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: linux, image: x, binds: ['/nowhere:/etc/x']}}\n"),
            '"/nowhere:/etc/x": /nowhere does not exist',
            id="bind of nothing",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: linux, image: x, binds: ['/etc:/x:z']}}\n"),
            '"/etc:/x:z": write it HOST_PATH:/NODE/PATH, with :ro for read-only',
            id="bind option",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: linux, image: x, exec: ['echo \"']}}\n"),
            "a.exec: 'echo \"': no closing quotation",
            id="exec",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: linux, image: 'frrouting/frr:v8', cmd: x}}\n"),
            "a.cmd: would take the place of what frrouting/frr:v8 starts by itself",
            id="cmd of a router",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: linux, image: x, env: {__IMPORT_ENVS: 'true'}}}\n"),
            "a.env.__IMPORT_ENVS: importing the caller's environment is not supported",
            id="environment of the caller",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_and_line(text: str, want: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text, FILE)
    message = str(refusal.value)
    assert message.startswith(f"{FILE}:")
    assert want in message
    assert message.endswith("nothing was started")


def test_every_fault_is_reported_at_once() -> None:
    text = rack("  nodes: {a: {kind: linux}, b: {image: x}}\n  links: [{endpoints: ['a:e', 'z:e']}]\n")
    with pytest.raises(ConfigError) as refusal:
        parse(text, FILE)
    assert len(str(refusal.value).splitlines()) == 4


def test_a_file_that_is_not_there_is_a_fault_of_the_operator() -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(FILE)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_topologies_load_and_every_image_has_a_profile(path: Path) -> None:
    topology = load(path)
    assert [node.image for node in topology.nodes if not profile_of(node.image)] == []
    # containerlab's own schema is not ours to ship; the variable names a copy.
    if schema := os.environ.get("FABRIC_CLAB_SCHEMA"):
        # Not validate(): some of its patterns use \p{N}, which Python's re does not know.
        validator = jsonschema.Draft202012Validator(json.loads(Path(schema).read_text()))
        assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ("alpine", "alpine"),
        ("docker.io/library/alpine:3.20", "alpine"),
        ("quay.io/frrouting/frr:8.4.1", "quay.io/frrouting/frr"),
        ("localhost:5000/frr@sha256:00", "localhost:5000/frr"),
    ],
)
def test_repository(image: str, want: str) -> None:
    assert repository(image) == want
