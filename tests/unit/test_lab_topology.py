"""What a topology file means once everything is inherited, and which meanings contradict each other."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Network, ip_interface
from pathlib import Path, PurePosixPath

import pytest

from fabric.errors import ConfigError
from fabric.lab.profiles import BESIDE, builtin
from fabric.lab.topology import (
    Bind,
    Endpoint,
    Link,
    Node,
    Port,
    Stage,
    StageCommand,
    Topology,
    load,
    parse,
)

FILE = Path("/labs/rack.clab.yml")


def rack(body: str) -> str:
    return "name: rack\ntopology:\n" + body


def alone(fields: str) -> str:
    """Return a file with one node, off the management network, that says this."""
    return rack(f"  nodes:\n    a: {{kind: linux, image: alpine, network-mode: none, {fields}}}\n")


def one(text: str, path: Path = FILE) -> Node:
    (node,) = parse(text, path).nodes
    return node


# Inheritance


def test_a_node_inherits_from_its_group_its_kind_and_the_defaults() -> None:
    text = rack("""\
  defaults:
    kind: linux
    image: alpine
    env: {A: defaults, B: defaults, C: off}
    exec: [echo defaults]
    network-mode: none
  kinds: {linux: {env: {B: kind, D: 8080:53}, exec: [echo kind], labels: {x: kind, y: kind}}}
  groups:
    leaf: {image: "pierky/bird:2.15", startup-delay: 2, exec: [echo group], cpu: 2, labels: {y: group}}
  nodes:
    a: {group: leaf, env: {A: node}, exec: ['sh -c "echo node"'], network-mode: host}
    b: {cmd: sleep infinity, group: only-a-label, memory: 1gib, restart-policy: On-failure, user: 65534}
    c:
  links:
    - endpoints: ["b:eth1", "c:eth1"]
    - {endpoints: ["b:eth2", "c:eth2"], mtu: 1500}
""")
    env = {"B": "kind", "C": "off", "D": "8080:53", "CLAB_LABEL_X": "kind", "CLAB_LABEL_Y": "kind"}
    exec_ = (("echo", "defaults"), ("echo", "kind"))
    plain = Node(
        "c",
        "alpine",
        env=env | {"A": "defaults"},
        exec=exec_,
        network="none",
        labels={"x": "kind", "y": "kind"},
        sysctls={"net.ipv4.ip_forward": "1"},
        profile=builtin().of("alpine"),
    )
    assert parse(text, FILE) == Topology(
        "rack",
        (
            Node(
                "a",
                "pierky/bird:2.15",
                env=env | {"A": "node", "CLAB_LABEL_Y": "group"},
                exec=(*exec_, ("echo", "group"), ("sh", "-c", "echo node")),
                startup_delay=2,
                cpu=2.0,
                network="host",
                labels={"x": "kind", "y": "group"},
                profile=builtin().of("pierky/bird"),
            ),
            replace(
                plain, name="b", cmd=("sleep", "infinity"), memory=2**30, restart="on-failure", user="65534"
            ),
            plain,
        ),
        (
            Link(Endpoint("b", "eth1"), Endpoint("c", "eth1"), 9500),
            Link(Endpoint("b", "eth2"), Endpoint("c", "eth2"), 1500),
        ),
    )


@pytest.mark.parametrize(
    ("node", "want"),
    [
        pytest.param("{kind: linux, group: g}", "of the group", id="a group before a kind"),
        pytest.param("{kind: linux}", "of the kind's group", id="a kind may say the group"),
        pytest.param("{kind: frr, image: x}", "of the defaults' group", id="so may the defaults"),
        pytest.param("{group: kinded}", "of the group that says the kind", id="a group may say the kind"),
    ],
)
def test_group_and_kind_are_found_as_containerlab_finds_them(node: str, want: str) -> None:
    text = rack(f"""\
  defaults: {{group: d}}
  kinds: {{linux: {{image: alpine, group: k}}}}
  groups:
    g: {{env: {{X: of the group}}}}
    k: {{env: {{X: of the kind's group}}}}
    d: {{env: {{X: of the defaults' group}}}}
    kinded: {{kind: linux, env: {{X: of the group that says the kind}}}}
  nodes: {{a: {node}}}
""")
    assert one(text).env["X"] == want


def test_anchors_and_merge_keys_mean_what_they_mean_in_yaml() -> None:
    text = rack("""\
  nodes:
    a: &base {kind: linux, image: alpine, env: {X: a}}
    b: {<<: *base, env: {X: b}}
""")
    b = parse(text, FILE).nodes[1]
    assert (b.image, b.env) == ("alpine", {"X": "b"})


@pytest.mark.parametrize(
    ("prefix", "want"),
    [("", "clab-rack-a"), ("prefix: ''", "a"), ("prefix: __lab-name", "rack-a"), ("prefix: x", "x-rack-a")],
)
def test_a_container_is_named_as_in_containerlab(prefix: str, want: str) -> None:
    assert parse(f"{prefix}\nname: rack\ntopology: {{nodes: {{}}}}", FILE).container("a") == want


def test_two_dollars_are_one_and_what_is_no_name_is_left_alone() -> None:
    node = one(alone("exec: ['sh -c \"echo $$HOME $1 $? $(id) $_\"']"))
    assert node.exec == (("sh", "-c", "echo $HOME $1 $? $(id) $_"),)


# Files


def test_binds_are_relative_to_the_file_and_the_nearest_one_wins(tmp_path: Path) -> None:
    for name in ("mine", "theirs", "directory"):
        (tmp_path / name).touch()
    text = rack("""\
  defaults: {kind: linux, image: alpine, binds: ["theirs:/etc/x", "directory:/etc"]}
  nodes: {a: {binds: ["mine:/etc/x:ro"]}}
""")
    assert one(text, tmp_path / "rack.clab.yml").binds == (
        Bind(tmp_path / "directory", PurePosixPath("/etc"), False),
        Bind(tmp_path / "mine", PurePosixPath("/etc/x"), True),
    )


def test_containerlabs_own_variables_name_the_node_and_its_directory(tmp_path: Path) -> None:
    (tmp_path / "clab-rack/a").mkdir(parents=True)
    (tmp_path / "conf-a").write_text("x")
    node = one(
        rack("""\
  defaults: {kind: linux, image: pierky/bird, startup-config: conf-__clabNodeName__}
  nodes:
    a: {binds: ["__clabNodeDir__:/x", "__clabDir__:/y"], exec: ["echo __clabNodeName__"]}
"""),
        tmp_path / "rack.clab.yml",
    )
    assert [bind.source for bind in node.binds] == [tmp_path / "clab-rack/a", tmp_path / "clab-rack"]
    assert node.exec == (("echo", "a"),)
    assert node.startup_config == "x"


def test_environment_files_come_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "far").write_text(
        "# comment\n\nexport A=far\nB = far # why\nC='a # b'\nD=\"x y\"\nE=\nF=a#b\n"
    )
    (tmp_path / "near").write_text("B=near\n")
    node = one(
        rack("""\
  defaults: {kind: linux, image: alpine, env-files: [far], env: {A: said}}
  nodes: {a: {env-files: [near]}}
"""),
        tmp_path / "rack.clab.yml",
    )
    assert node.env == {"A": "said", "B": "near", "C": "a # b", "D": "x y", "E": "", "F": "a#b"}


def test_a_startup_config_goes_where_the_profile_says(tmp_path: Path) -> None:
    (tmp_path / "bird.conf").write_text("router id 1.1.1.1;\n")
    text = rack("""\
  nodes:
    file: {kind: linux, image: pierky/bird, startup-config: bird.conf}
    text: {kind: linux, image: frrouting/frr, startup-config: "hostname $$x\\n"}
""")
    file, inline = parse(text, tmp_path / "rack.clab.yml").nodes
    assert file.files == {"/etc/bird/bird.conf": "router id 1.1.1.1;\n"}
    assert inline.files == {"/etc/frr/frr.conf": "hostname $x\n", "/etc/frr/vtysh.conf": ""}


def test_kind_frr_starts_the_daemons_that_the_topology_names_and_forwards() -> None:
    text = rack("""\
  groups: {routers: {kind: frr, image: 'my.registry/frr:10', extras: {frr: {daemons: [ospfd, zebra, bfdd, ospfd]}}}}
  nodes:
    a: {group: routers, sysctls: {net.ipv4.ip_forward: 0}}
    b: {kind: frrouting, image: quay.io/frrouting/frr}
""")
    a, b = parse(text, FILE).nodes
    assert (a.kind, a.daemons, a.restart) == ("frr", ("ospfd", "bfdd"), "no")
    assert a.profile == builtin().of("frrouting/frr")
    assert a.files["/etc/frr/daemons"] == "ospfd=yes\nbfdd=yes\n"
    assert a.sysctls == {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}
    assert (b.kind, b.daemons) == ("frr", ("all",))


def test_profiles_beside_the_file_count(tmp_path: Path) -> None:
    (tmp_path / BESIDE).write_text("profiles: {mine: {images: [a/b], entrypoint: [echo], config: /etc/b}}\n")
    node = one(
        rack('  nodes: {a: {kind: linux, image: "a/b:1", cmd: x, startup-config: "y\\n"}}\n'),
        tmp_path / "rack.clab.yml",
    )
    assert (node.command, node.files) == (("echo", "x"), {"/etc/b": "y\n"})
    assert one(rack("  nodes: {a: {kind: linux, image: 'a/b:1'}}\n")).profile is None


# What it may use


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ("image: alpine", {"net.ipv4.ip_forward": "1"}),
        ("image: nobody/knows", {"net.ipv4.ip_forward": "1"}),
        ("image: fabricctl/node", {}),
        (
            "image: alpine, sysctls: {net.ipv4.ip_forward: 0, net.x: a b}",
            {"net.ipv4.ip_forward": "0", "net.x": "a b"},
        ),
        ("image: alpine, network-mode: host", {}),
    ],
)
def test_a_node_forwards_as_it_would_under_docker_unless_the_file_says_otherwise(
    fields: str, want: dict[str, str]
) -> None:
    assert one(rack(f"  nodes: {{a: {{kind: linux, {fields}}}}}\n")).sysctls == want


def test_ports_are_those_of_the_nearest_level_that_has_some() -> None:
    text = rack("""\
  defaults: {kind: linux, image: alpine}
  groups: {g: {ports: ["1:1"]}}
  nodes:
    a: {group: g}
    b: {group: g, ports: ["80:8080", "127.0.0.1:53:5353/udp", "443:443/tcp"]}
    c:
""")
    a, b, c = parse(text, FILE).nodes
    assert a.ports == (Port(None, 1, 1),)
    assert b.ports == (
        Port(None, 80, 8080),
        Port(IPv4Address("127.0.0.1"), 53, 5353, "udp"),
        Port(None, 443, 443),
    )
    assert c.ports == ()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1000b", 1000),
        ("1kb", 1000),
        ("1KiB", 1024),
        ("1.5 mib", 1572864),
        ("2G", 2 * 10**9),
        ("1gib", 2**30),
    ],
)
def test_memory_is_in_bytes(text: str, want: int) -> None:
    assert one(alone(f"memory: '{text}'")).memory == want


def test_no_limit_is_none() -> None:
    assert one(alone("cpu: 0")).cpu is None
    assert one(alone("env: {}")).memory is None


@pytest.mark.parametrize(
    "key", ["net.ipv4.conf.all.rp_filter", "net/ipv4/conf/eth0.1/forwarding", "kernel.shmmax"]
)
def test_a_sysctl_of_the_node_is_taken_in_both_spellings(key: str) -> None:
    assert one(alone(f"sysctls: {{{key}: 1}}")).sysctls[key] == "1"


def test_a_sysctl_that_is_not_of_the_network_is_the_nodes_own_also_on_the_host() -> None:
    fields = "kind: linux, image: alpine, network-mode: host, sysctls: {kernel.shmmax: 1}"
    assert one(rack(f"  nodes: {{a: {{{fields}}}}}\n")).sysctls == {"kernel.shmmax": "1"}


# Stages


def test_stages_add_up_from_the_defaults_to_the_node_in_both_forms() -> None:
    text = rack("""\
  defaults: {kind: linux, image: alpine, network-mode: none}
  groups:
    g: {stages: {create: {wait-for: [{node: z, stage: healthy}]}, configure: {exec: {on-enter: [echo 1]}}}}
  nodes:
    a:
      group: g
      stages:
        create:
          wait-for: [{node: z, stage: healthy}, {node: y, stage: exit}]
          exec: [{command: echo host, target: host}, {command: echo made, phase: on-exit}]
        configure: {exec: {on-enter: [echo 2], on-exit: [echo __clabNodeName__]}}
    y: {group: g, cmd: 'true', restart-policy: "no"}
    z:
""")
    a, y, z = parse(text, FILE).nodes
    assert a.stages == {
        "create": Stage(
            (("z", "healthy"), ("y", "exit")),
            (StageCommand(("echo", "host"), on_host=True),),
            (StageCommand(("echo", "made")),),
        ),
        "configure": Stage(
            (), (StageCommand(("echo", "1")), StageCommand(("echo", "2"))), (StageCommand(("echo", "a")),)
        ),
    }
    assert y.stages["create"].wait_for == (("z", "healthy"),)
    assert z.stages == {}


# Addresses


def addresses(text: str) -> list[list[str]]:
    return [[str(address) for address in node.addresses] for node in parse(text, FILE).nodes]


@pytest.mark.parametrize(
    ("mgmt", "want"),
    [
        pytest.param(
            "",
            [
                ["172.20.20.2/24", "3fff:172:20:20::2/64"],
                [],
                ["172.20.20.3/24", "3fff:172:20:20::5/64"],
                ["172.20.20.4/24", "3fff:172:20:20::3/64"],
            ],
            id="unsaid",
        ),
        pytest.param(
            "mgmt: {ipv4-subnet: 172.20.20.0/29, ipv4-gw: 172.20.20.3, network: x}",
            [["172.20.20.1/29"], [], ["172.20.20.2/29"], ["172.20.20.4/29"]],
            id="a gateway in between",
        ),
        pytest.param(
            "mgmt: {ipv6-subnet: auto, ipv6-range: '3fff:172:20:20::f0/124'}",
            [["3fff:172:20:20::f0/64"], [], ["3fff:172:20:20::5/64"], ["3fff:172:20:20::f1/64"]],
            id="a range",
        ),
    ],
)
def test_nodes_get_what_they_ask_for_and_else_what_is_free_in_their_order(
    mgmt: str, want: list[list[str]]
) -> None:
    asked = "mgmt-ipv6: '3fff:172:20:20::5'" if "ipv4-subnet" not in mgmt else ""
    text = f"{mgmt}\n" + rack(f"""\
  defaults: {{kind: linux, image: alpine}}
  nodes:
    a:
    b: {{network-mode: none}}
    c: {{{asked}}}
    d:
""")
    assert addresses(text) == want


def test_the_management_network_is_as_the_file_has_it() -> None:
    text = "mgmt: {network: x, ipv6-subnet: 'fd00::/64', mtu: 1400, external-access: false}\n"
    mgmt = parse(text + rack("  nodes: {}\n"), FILE).mgmt
    assert (mgmt.name, mgmt.prefixes, mgmt.mtu) == ("x", (IPv6Network("fd00::/64"),), 1400)
    assert mgmt.gateways == (ip_interface("fd00::1/64"),)


# Links


def test_every_form_of_link_joins_two_ends_the_hosts_last() -> None:
    text = rack("""\
  nodes: {a: {kind: linux, image: alpine}, b: {kind: linux, image: alpine, network-mode: none}}
  links:
    - {endpoints: ["a:eth1", "b:eth0"], ipv4: [10.0.0.1/30, 10.0.0.2/30], ipv6: ["", "fd00::2/64"]}
    - {endpoints: ["host:h1", "a:eth2"], mtu: 1500, ipv4: ["", 10.1.0.1/24]}
    - endpoints: ["a:eth3", "mgmt-net:lab1"]
    - type: veth
      endpoints:
        - {node: a, interface: eth4, mac: AA-00-00-00-00-01, ipv4: 10.2.0.1/24}
        - {node: b, interface: eth1, ipv6: "fd02::1/64", vars: {x: y}}
      labels: {x: y}
    - {type: host, host-interface: h2, endpoint: {node: b, interface: eth2}}
    - {type: mgmt-net, host-interface: lab2, endpoint: {node: b, interface: eth3}, mtu: 9000}
""")

    def end(text: str, *given: str, mac: str = "") -> Endpoint:
        node, interface = text.split(":")
        return Endpoint(node, interface, mac, tuple(ip_interface(each) for each in given))

    assert parse(text, FILE).links == (
        Link(end("a:eth1", "10.0.0.1/30"), end("b:eth0", "10.0.0.2/30", "fd00::2/64"), 9500),
        Link(end("a:eth2", "10.1.0.1/24"), end("host:h1"), 1500),
        Link(end("a:eth3"), end("mgmt-net:lab1"), 9500),
        Link(end("a:eth4", "10.2.0.1/24", mac="aa:00:00:00:00:01"), end("b:eth1", "fd02::1/64"), 9500),
        Link(end("b:eth2"), end("host:h2"), 9500),
        Link(end("b:eth3"), end("mgmt-net:lab2"), 9000),
    )


# What contradicts itself

PAIR = "  nodes:\n    a: {kind: linux, image: x, network-mode: none}\n    b: {kind: linux, image: x}\n"


def links(*ends: str) -> str:
    return rack(PAIR + "  links:\n" + "".join(f"    - endpoints: [{each}]\n" for each in ends))


def nodes(*fields: str, head: str = "") -> str:
    """Return a file with the nodes a, b, … on lines 5, 6, … that say these things."""
    lines = [f"    {name}: {{{each}}}\n" for name, each in zip("abcd", fields, strict=False)]
    return f"{head or '#'}\n" + rack("  defaults: {kind: linux, image: alpine}\n  nodes:\n" + "".join(lines))


WAIT = "stages: {{create: {{wait-for: [{{node: {}, stage: {}}}]}}}}"
AT_A, AT_B = "6: topology.nodes.a.", "7: topology.nodes.b."


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param(
            rack("  nodes: {a: {image: x}}\n"),
            "3: topology.nodes.a.kind: is required, here or in its group or the defaults",
            id="no kind",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: linux}}\n"),
            "3: topology.nodes.a.image: is required, here or in its group, kind or the defaults",
            id="no image",
        ),
        pytest.param(
            rack("  nodes:\n    a: {kind: nokia_srlinux, image: x, type: ixrd2}\n"),
            "4: topology.nodes.a: kind nokia_srlinux needs an image of its maker's, with daemons that this"
            " host does not have; deploy this file with containerlab",
            id="kind of a vendor",
        ),
        pytest.param(
            rack("  groups: {g: {kind: bridge}}\n  nodes:\n    a: {group: g}\n"),
            "5: topology.nodes.a: kind bridge stands in the host's network namespace",
            id="kind of a group",
        ),
        pytest.param(
            rack("  defaults: {image: 'vrnetlab/vr-sros:1'}\n  nodes:\n    a: {kind: linux}\n"),
            "5: topology.nodes.a: image vrnetlab/vr-sros:1 is a virtual machine",
            id="image of a vendor",
        ),
        pytest.param(
            rack("  nodes:\n    a: {kind: linus, image: x}\n"),
            '4: topology.nodes.a: there is no kind "linus" here, only linux and frr',
            id="no such kind",
        ),
        pytest.param(
            rack("  kinds: {arista_ceos: {license: x}}\n  nodes: {}\n"),
            "3: topology.kinds.arista_ceos: kind arista_ceos needs an image of its maker's",
            id="kind that no node is of",
        ),
        pytest.param(
            rack("  nodes: {a: {kind: frr, image: 'alpine:3'}}\n"),
            "3: topology.nodes.a.image: kind frr needs an image of FRR, which alpine:3 is not",
            id="kind frr of something else",
        ),
        pytest.param(
            f"name: {'x' * 251}\ntopology: {{nodes: {{}}}}\n",
            "1: name: has 251 characters, of 250 at most",
            id="long lab name",
        ),
        pytest.param(
            nodes("image: frrouting/frr, cmd: x"),
            AT_A + "cmd: would take the place of what profile frr starts; remove it",
            id="cmd of a router",
        ),
        pytest.param(
            nodes("image: frrouting/frr, entrypoint: x"),
            AT_A + "entrypoint: would take the place",
            id="entrypoint",
        ),
        pytest.param(
            nodes("image: frrouting/frr, user: frr"),
            AT_A + "user: profile frr starts its daemons as root only; remove it",
            id="user of a router",
        ),
        pytest.param(
            nodes("binds: ['/etc:/x', '/nowhere:/etc/x']"),
            AT_A + 'binds.1: "/nowhere:/etc/x": /nowhere does not exist',
            id="bind of nothing",
        ),
        pytest.param(
            nodes("binds: ['/etc:/x:z']"),
            AT_A + 'binds.0: "/etc:/x:z": write it HOST_PATH:/NODE/PATH, with :ro for read-only',
            id="bind option",
        ),
        pytest.param(nodes("binds: [/data]"), 'binds.0: "/data": write it HOST_PATH:/NODE/PATH', id="volume"),
        pytest.param(
            nodes("env: {__IMPORT_ENVS: true}"),
            AT_A + "env.__IMPORT_ENVS: importing the caller's environment is not supported by namespace labs",
            id="environment of the caller",
        ),
        pytest.param(
            nodes("env-files: [none.env]"), AT_A + "env-files.0: /labs/none.env: No such file", id="env-file"
        ),
        pytest.param(
            nodes("startup-config: x.conf"),
            AT_A + "startup-config: nobody said where this image reads it: bind the file, or list it in",
            id="startup-config of plain Linux",
        ),
        pytest.param(
            nodes("image: pierky/bird, startup-config: x.conf"),
            AT_A + "startup-config: /labs/x.conf: No such file or directory",
            id="no startup-config",
        ),
        pytest.param(
            nodes("image: pierky/bird, startup-config: 'https://x.example/y'"),
            AT_A
            + "startup-config: https://x.example/y: fetching is not supported by namespace labs; save it",
            id="startup-config from afar",
        ),
        pytest.param(
            nodes("image: pierky/bird, startup-config: /etc"),
            AT_A + "startup-config: /etc: is no regular file; name a configuration",
            id="startup-config that is a directory",
        ),
        pytest.param(
            nodes("image: pierky/bird, startup-config: /dev/zero"),
            AT_A + "startup-config: /dev/zero: is no regular file",
            id="startup-config without an end",
        ),
        pytest.param(
            nodes("env-files: [/dev/zero]"),
            AT_A + "env-files.0: /dev/zero: is no regular file; name a file of variables",
            id="env-file without an end",
        ),
        pytest.param(
            nodes("binds: ['/etc:/etc/../opt/x']"),
            AT_A + 'binds.0: "/etc:/etc/../opt/x": write where it is to be without ".."',
            id="bind beside where it seems to be",
        ),
        pytest.param(
            nodes("sysctls: {kernel.panic: 1}"),
            AT_A + "sysctls.kernel.panic: would change the host, not the node; remove it",
            id="sysctl of the host",
        ),
        pytest.param(
            nodes("network-mode: host, sysctls: {net.ipv4.ip_forward: 1}"),
            AT_A + "sysctls.net.ipv4.ip_forward: would change the host",
            id="sysctl of the host's network",
        ),
        pytest.param(
            nodes(
                "network-mode: 'container:b', sysctls: {net.x: 1}",
                "network-mode: 'container:c'",
                "network-mode: host",
            ),
            AT_A + "sysctls.net.x: would change the host, whose network the node has; remove it",
            id="sysctl of the host's network through others",
        ),
        pytest.param(
            nodes("kind: frr, image: frrouting/frr, network-mode: host"),
            AT_A
            + "network-mode: kind frr makes its network forward, and this one is the host's; give it one",
            id="kind frr in the host's network",
        ),
        pytest.param(
            nodes("kind: frr, image: frrouting/frr, network-mode: 'container:b'", "network-mode: host"),
            AT_A + "network-mode: kind frr makes its network forward",
            id="kind frr in the host's network through another",
        ),
        *(
            pytest.param(
                nodes(f"sysctls: {{{key}: 1}}"),
                f"{AT_A}sysctls.{key}: is no name of a sysctl; write it as sysctl(8) does",
                id=key,
            )
            for key in ("net/../kernel/core_uses_pid", "net/./x", "net//x", "net..x", "net.ipv4/../../x")
        ),
        # Ports
        pytest.param(
            nodes("network-mode: none, ports: ['80:80']"),
            AT_A + "ports: network-mode none leaves nothing to publish; remove one of the two",
            id="port without a network",
        ),
        pytest.param(
            nodes("ports: ['80:80']", "ports: ['127.0.0.1:80:81']"),
            AT_B + "ports: 127.0.0.1:80:81/tcp: the host's port has node a (80:80/tcp) already",
            id="port twice",
        ),
        pytest.param(
            nodes("ports: ['80']"),
            AT_A
            + 'ports.0: "80": any port that is free on the host would be another each time; write it HOST_PORT:PORT',
            id="any port",
        ),
        pytest.param(nodes("ports: ['127.0.0.1::80']"), "any port that is free", id="any port of an address"),
        pytest.param(
            nodes("ports: ['80:80/sctp']"), '"80:80/sctp": sctp is not supported by namespace labs', id="sctp"
        ),
        pytest.param(
            nodes("ports: ['8000-8001:8000-8001']"),
            "write a range as one HOST_PORT:PORT for each",
            id="range",
        ),
        pytest.param(nodes("ports: ['80:0']"), '"80:0": a port is 1 to 65535', id="port 0"),
        pytest.param(nodes("ports: ['1.2.3:80:80']"), '"1.2.3" is no IPv4 address', id="address of a port"),
        pytest.param(nodes("ports: ['x']"), '"x": write it HOST_PORT:PORT; an IPv4 address', id="no port"),
        # Networks
        pytest.param(
            nodes("network-mode: 'container:z'"),
            AT_A + 'network-mode: there is no node "z", and no container but the nodes',
            id="network of nobody",
        ),
        pytest.param(
            nodes("network-mode: 'container:b'", "network-mode: 'container:a'"),
            AT_A + "network-mode: goes in a circle: a → b → a",
            id="network in a circle",
        ),
        pytest.param(
            nodes("mgmt-ipv4: 10.0.0.9"),
            AT_A + "mgmt-ipv4: 10.0.0.9 is not in 172.20.20.0/24",
            id="elsewhere",
        ),
        pytest.param(
            nodes("mgmt-ipv4: 172.20.20.1"),
            AT_A + "mgmt-ipv4: 172.20.20.1 is the gateway's already",
            id="gateway",
        ),
        pytest.param(
            nodes("mgmt-ipv4: 172.20.20.9", "mgmt-ipv4: 172.20.20.9"),
            AT_B + "mgmt-ipv4: 172.20.20.9 is node a's already",
            id="address twice",
        ),
        pytest.param(
            nodes("network-mode: none, mgmt-ipv4: 172.20.20.9"),
            AT_A + "mgmt-ipv4: network-mode none leaves no place for it; remove it",
            id="address without a network",
        ),
        pytest.param(
            rack("  defaults: {kind: linux, image: x, mgmt-ipv4: 172.20.20.9}\n  nodes: {a: }\n"),
            "3: topology.defaults.mgmt-ipv4: is one node's; give it to that",
            id="address for all",
        ),
        pytest.param(
            nodes("", "", "", "", head="mgmt: {ipv4-subnet: 10.0.0.0/30, ipv4-gw: 10.0.0.2}"),
            "1: mgmt.ipv4-subnet: 10.0.0.0/30 has no address left for node b",
            id="no address left",
        ),
        pytest.param(
            nodes("", head="mgmt: {ipv4-subnet: 10.0.0.0/31}"),
            "10.0.0.0/31 has no room for nodes",
            id="no room",
        ),
        pytest.param(
            nodes("", head="mgmt: {ipv4-gw: 10.0.0.1}"),
            "mgmt.ipv4-gw: 10.0.0.1 is no address of 172.",
            id="gateway elsewhere",
        ),
        pytest.param(
            nodes("", head="mgmt: {ipv6-subnet: auto, ipv4-gw: 10.0.0.1}"),
            "1: mgmt.ipv4-gw: there is no ipv4-subnet for it",
            id="gateway of no subnet",
        ),
        pytest.param(
            nodes("", head="mgmt: {ipv4-range: 10.0.0.0/8}"),
            "mgmt.ipv4-range: 10.0.0.0/8 is not in",
            id="range elsewhere",
        ),
        # Stages
        pytest.param(
            nodes(WAIT.format("b", "create"), WAIT.format("a", "healthy")),
            "6: topology.nodes.a.stages: wait-for goes in a circle, each of these waits for the next:"
            " a create → b create → a healthy → a configure → a create-links → a create",
            id="circle",
        ),
        pytest.param(
            nodes(WAIT.format("b", "create"), "network-mode: 'container:a'"),
            "wait-for goes in a circle, each of these waits for the next: a create → b create → a create",
            id="circle through a network",
        ),
        pytest.param(
            nodes(WAIT.format("a", "create")),
            AT_A + "stages.create.wait-for.0: node a would wait for itself",
            id="waiting for itself",
        ),
        pytest.param(
            nodes(WAIT.format("z", "create")),
            AT_A + 'stages.create.wait-for.0: there is no node "z"',
            id="for nobody",
        ),
        pytest.param(
            nodes(WAIT.format("b", "ready"), ""),
            AT_A + 'stages.create.wait-for.0: there is no stage "ready", only create, create-links,',
            id="for no stage",
        ),
        pytest.param(
            nodes("stages: {create: {exec: {on-enter: [id]}}}"),
            AT_A
            + "stages.create.exec: the node is not there yet on entering create; run it on-exit, or give",
            id="in a node that is not there yet",
        ),
        *(
            pytest.param(
                nodes(f"stages: {{exit: {{{fields}}}}}", ""),
                AT_A + "stages.exit: nothing waits, or is run, at a node's end; only wait-for of others may",
                id=f"{name} at the end",
            )
            for name, fields in (
                ("host's command", "exec: [{command: id, target: host}]"),
                ("command", "exec: {on-exit: [id]}"),
                ("waiting", "wait-for: [{node: b, stage: create}]"),
            )
        ),
        pytest.param(
            nodes(WAIT.format("b", "exit"), "restart-policy: 'no'"),
            AT_A + "stages.create.wait-for.0: node b has no foreground process whose end could be waited for;"
            " give it a cmd, or wait for another stage of it",
            id="for the end of what stands until it is taken down",
        ),
        *(
            pytest.param(
                nodes(WAIT.format("b", "exit"), f"cmd: x{policy}"),
                AT_A + "stages.create.wait-for.0: node b never ends, being restarted always; give it"
                ' restart-policy: "no" or on-failure',
                id=f"for the end of what never ends{policy}",
            )
            for policy in ("", ", restart-policy: always", ", restart-policy: unless-stopped")
        ),
        # Links
        pytest.param(
            links("'a:e', 'c:eth1'"),
            '7: topology.links.0.endpoints.1: "c:eth1": there is no node "c"; links join the nodes of this file only',
            id="stranger",
        ),
        pytest.param(
            links("'a:e', 'b:e'", "'b:f', 'a:e'"),
            "8: topology.links.1.endpoints.1: a:e is an end of another link already",
            id="interface twice",
        ),
        pytest.param(
            links("'a:e', 'a:e'"),
            "7: topology.links.0.endpoints.1: a:e is an end of another",
            id="interface with itself",
        ),
        pytest.param(
            links("'a:e', 'host:x'", "'a:f', 'mgmt-net:x'"),
            "8: topology.links.1.endpoints.1: mgmt-net:x is an end of another link already",
            id="interface of the host twice",
        ),
        pytest.param(
            links("'a:e', 'mgmt-net:x'", "'a:f', 'mgmt-net:x'"),
            "8: topology.links.1.endpoints.1: mgmt-net:x is an end of another link already",
            id="interface of the management network twice",
        ),
        *(
            pytest.param(
                links(f"'a:e', 'mgmt-net:{name}'"),
                f"7: topology.links.0.endpoints.1: mgmt-net:{name}: the management network has an interface of",
                id=f"{name} of the management network",
            )
            for name in ("mgmt", "m0", "m12", "w0a", "w10b")
        ),
        pytest.param(
            links("'a:eth0', 'b:eth0'"),
            '7: topology.links.0.endpoints.1: "b:eth0": eth0 is on the management network; take another, or give',
            id="eth0",
        ),
        pytest.param(
            links("'host:x', 'mgmt-net:y'"),
            "7: topology.links.0.endpoints: joins no node",
            id="no node at all",
        ),
        pytest.param(
            rack(PAIR + "  links:\n    - {endpoints: ['a:e', 'host:x'], ipv4: ['', 10.0.0.1/24]}\n"),
            "7: topology.links.0.endpoints.1: host:x is the host's, and is given no address here",
            id="address of the host",
        ),
        pytest.param(
            rack(
                PAIR + "  links:\n    - type: veth\n"
                "      endpoints: [{node: a, interface: e}, {node: host, interface: x}]\n"
            ),
            '8: topology.links.0.endpoints.1: "host:x": there is no node "host"; links join the nodes of this'
            " file only; a link of type host reaches the host",
            id="host as a node",
        ),
        pytest.param(
            nodes("", "network-mode: 'container:a'") + "  links: [{endpoints: ['b:x', 'a:y']}]\n",
            '"b:x": node b has the interfaces of a: name that',
            id="interface of another node",
        ),
        pytest.param(
            nodes("", "network-mode: host") + "  links: [{endpoints: ['b:x', 'a:y']}]\n",
            '"b:x": node b is in the host\'s network: write host:x',
            id="interface of a node in the host's network",
        ),
    ],
)
def test_what_contradicts_itself_is_told_with_its_line_and_what_to_do(text: str, want: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text, FILE)
    *faults, state = str(refusal.value).splitlines()
    assert [fault for fault in faults if want in fault] == faults
    assert faults[0].startswith(f"{FILE}:")
    assert state == "nothing was started"


def test_every_fault_is_reported_at_once_in_the_order_of_the_file() -> None:
    text = nodes("network-mode: none, ports: ['1:1']", "image: frrouting/frr, cmd: x, binds: ['/nowhere:/x']")
    with pytest.raises(ConfigError) as refusal:
        parse(text + "  links: [{endpoints: ['a:e', 'z:e']}]\n", FILE)
    lines = [line.split(":")[1] for line in str(refusal.value).splitlines()[:-1]]
    assert lines == ["6", "7", "7", "8"]


def test_a_fault_of_the_defaults_is_told_once_whoever_inherits_it() -> None:
    text = rack("  defaults: {kind: linux, image: x, binds: ['/nowhere:/x']}\n  nodes: {a: , b: }\n")
    with pytest.raises(ConfigError) as refusal:
        parse(text, FILE)
    assert str(refusal.value).splitlines()[:-1] == [
        f'{FILE}:3: topology.defaults.binds.0: "/nowhere:/x": /nowhere does not exist'
    ]


@pytest.mark.parametrize(
    ("line", "want"),
    [
        *((line, "write it NAME=VALUE") for line in ("just text", "A", "1A=x", "=x")),
        ("A=x$HOME", r"\$HOME is a variable, which is not supported"),
    ],
)
def test_a_line_of_an_environment_file_that_is_none_is_told(line: str, want: str, tmp_path: Path) -> None:
    (tmp_path / "x.env").write_text(f"A='$1 $HOME'\n{line}\n")
    with pytest.raises(ConfigError, match=f"{tmp_path}/x.env:2: {want}"):
        parse(alone("env-files: [x.env]"), tmp_path / "rack.clab.yml")


def test_a_file_that_is_not_there_is_a_fault_of_the_operator() -> None:
    with pytest.raises(ConfigError, match="No such file or directory; name a containerlab topology file"):
        load(FILE)
