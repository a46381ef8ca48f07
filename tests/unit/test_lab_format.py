"""The format: what a file may say, held against containerlab's own schema, and what is refused, and how.

That schema is not ours to ship. Where a copy is at hand (beside the repository, or named by
FABRIC_CLAB_SCHEMA), whatever we accept it has to accept; where none is, our own model is held to the same files.
"""

import json
import os
import re
from copy import deepcopy
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import ConfigError
from fabric.lab.format import LINUX
from fabric.lab.profiles import builtin
from fabric.lab.topology import Topology, load, parse
from fabric.model.yaml import documents, dump_tree

ROOT = Path(__file__).parents[2]
SCHEMA = Path(os.environ.get("FABRIC_CLAB_SCHEMA", ROOT.parent / "shared/reference/clab.schema.json"))
FILE = Path("/labs/rack.clab.yml")
SHIPPED = sorted((ROOT / "containerlab").glob("[!.]*.clab.yml"))


@cache
def schema() -> dict[str, Any]:
    """Return the schema, {} where there is none, which accepts everything."""
    # Python's re has no classes by Unicode property; letters and digits is what these two are.
    text = SCHEMA.read_text().replace(r"\\p{N}\\p{L}", r"\\w") if SCHEMA.exists() else "{}"
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def validator() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(schema())


def objections(text: str) -> list[str]:
    """Return what the schema has against a file, which it reads as YAML 1.2."""
    (document,) = documents(text, "x")
    return [f"{error.json_path}: {error.message}" for error in validator().iter_errors(document.value)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_topologies_load_with_a_profile_for_every_node(path: Path) -> None:
    assert [node.name for node in load(path).nodes if not node.profile] == []
    assert objections(path.read_text()) == []


# Files that we accept

WORDS = st.sampled_from(["true", "echo hello", "sh -c 'echo $$HOME $1 $?'", "ip link set eth1 up"])
TEXTS = st.sampled_from(["a", "off", "8080:53", "1e3", "~", "a b", "__clabNodeName__", "x: y", "'", "$$X"])
NAMES = st.sampled_from(["A", "B_2", "net.x", "team"])
LABELS = st.dictionaries(NAMES, TEXTS | st.integers(0, 9), max_size=2)
COMMANDS = st.lists(WORDS, min_size=1, max_size=2)
STAGE_EXEC = st.fixed_dictionaries({}, optional={"on-enter": COMMANDS, "on-exit": COMMANDS}) | st.lists(
    st.fixed_dictionaries(
        {"command": WORDS, "phase": st.sampled_from(["on-enter", "on-exit"]), "target": st.just("host")}
    ),
    max_size=2,
)
STAGES = st.fixed_dictionaries(
    {},
    optional={
        s: st.fixed_dictionaries({}, optional={"exec": STAGE_EXEC})
        for s in ("create-links", "configure", "healthy")
    },
)
INHERITED = {
    "binds": st.sampled_from([["/etc:/etc/x"], ["/:/run/y:ro", "/etc:/run/z:rw"]]),
    "env": st.dictionaries(NAMES, TEXTS | st.booleans() | st.floats(0, 9) | st.integers(), max_size=2),
    "exec": COMMANDS,
    "cmd": WORDS,
    "entrypoint": WORDS,
    "user": st.sampled_from(["root", "nobody", "daemon:daemon"]) | st.integers(0, 9),
    "startup-config": st.just("log syslog all;\n# $$ is literal, {x} too\n"),
    "startup-delay": st.integers(0, 5),
    "stages": STAGES,
    "labels": LABELS,
    "sysctls": st.dictionaries(st.just("net.ipv4.ip_forward"), st.sampled_from([0, 1, "1"])),
    "cpu": st.sampled_from([0, 0.5, 1, 2.25]),
    "memory": st.sampled_from(["1G", "512mb", "64 MiB", "1.5gib", "1000", "7KB"]),
    "restart-policy": st.sampled_from(["no", "No", "on-failure", "On-failure", "always", "Unless-stopped"]),
    "image-pull-policy": st.sampled_from(["Always", "never", "ifnotpresent", "IfNotPresent"]),
    "runtime": st.sampled_from(["docker", "podman"]),
    "auto-remove": st.booleans(),
    "privileged": st.booleans(),
    "cap-add": st.just(["NET_ADMIN"]),
    "enforce-startup-config": st.booleans(),
}
INHERITABLE = st.fixed_dictionaries({}, optional=INHERITED)
MGMT = st.sampled_from(
    [
        {"network": "x"},
        {"network": "x", "bridge": "br-x", "mtu": 1400, "external-access": False, "skip-when-unused": True},
        {"ipv4-subnet": "auto", "ipv6-subnet": "auto"},
        {"ipv4-subnet": "198.18.101.0/24", "ipv4-gw": "198.18.101.254", "ipv4-range": "198.18.101.128/25"},
        {"ipv6-subnet": "fd00:101::/64", "ipv6-gw": "fd00:101::ff"},
        {"mtu": 9000},
    ]
)
LINK_EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "mtu": st.integers(68, 65535),
        "vars": st.dictionaries(NAMES, TEXTS | st.lists(st.integers())),
        "ipv4": st.sampled_from([["10.0.0.1/24"], ["10.0.0.1/24", "10.0.0.2/24"], ["", "10.0.0.2/32"]]),
        "ipv6": st.sampled_from([["fd00::1/64"], ["fd00::1/64", "::2/128"]]),
    },
)
END_EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "mac": st.sampled_from(["02:00:00:00:00:01", "AA-bb-cc-DD-ee-ff"]),
        "ipv4": st.just("10.1.0.1/30"),
        "ipv6": st.just("fd01::1:1/112"),
        "vars": st.dictionaries(NAMES, TEXTS),
    },
)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a file that says a bit of everything, all of it sound."""
    number = count(1)
    networks = draw(st.lists(st.sampled_from(["mgmt", "none", "host", "container"]), min_size=1, max_size=3))
    nodes: dict[str, Any] = {"first": None, "second": {"network-mode": "none", "restart-policy": "no"}}
    for i, network in enumerate(networks):
        fields: dict[str, Any] = draw(INHERITABLE)
        if network == "host":
            fields.pop("sysctls", None)
        if network != "mgmt":
            fields["network-mode"] = "container:first" if network == "container" else network
        elif draw(st.booleans()):
            port = 1000 + next(number)
            fields["ports"] = [f"{port}:80", f"127.0.0.1:{port}:53/udp"]
        if draw(st.booleans()):
            fields["group"] = draw(st.sampled_from(["leaf", "only-a-label"]))
        if i and draw(st.booleans()):
            create = fields.setdefault("stages", {}).setdefault("create", {})
            node, stage = draw(st.sampled_from([("first", "create"), ("second", "exit")]))
            create["wait-for"] = [{"node": node, "stage": stage}]
        nodes[f"n-{i}.x"] = fields
    joined = [
        "first",
        "second",
        *(n for n, f in nodes.items() if f and f.get("network-mode", "none") == "none"),
    ]
    links = []
    for form in draw(st.lists(st.sampled_from(["brief", "veth", "host", "mgmt-net", "to-host"]), max_size=4)):
        a, b = (draw(st.sampled_from(joined)) for _ in range(2))
        ia, ib, extras = f"eth{next(number)}", f"e{next(number)}-1", draw(LINK_EXTRAS)
        if form == "brief":
            links.append({"endpoints": [f"{a}:{ia}", f"{b}:{ib}"], **extras})
        elif form == "to-host":
            links.append({"endpoints": [f"host:{ib}", f"{a}:{ia}"], "mtu": 1500})
        elif form == "veth":
            ends = [{"node": n, "interface": i, **draw(END_EXTRAS)} for n, i in ((a, ia), (b, ib))]
            links.append({"type": form, "endpoints": ends, "labels": draw(LABELS), **extras})
        else:
            end = {"node": a, "interface": ia, **draw(END_EXTRAS)}
            links.append({"type": form, "endpoint": end, "host-interface": ib, "labels": draw(LABELS)})
    topology: dict[str, Any] = {
        "defaults": {"kind": "linux", "image": "pierky/bird:2"} | draw(INHERITABLE),
        "kinds": {"linux": draw(INHERITABLE)},
        "groups": {"leaf": draw(INHERITABLE)},
        "nodes": nodes,
    }
    for name in ("defaults", "kinds", "groups"):  # a node in the host's network would change the host's
        for fields in (topology[name], *(f for f in topology[name].values() if isinstance(f, dict))):
            fields.pop("sysctls", None)
    file: dict[str, Any] = {"name": draw(st.sampled_from(["rack", "0.x_y-Z"])), "topology": topology}
    if links:
        topology["links"] = links
    if draw(st.booleans()):
        file["prefix"] = draw(st.sampled_from(["", "__lab-name", "my"]))
    if draw(st.booleans()):
        file["mgmt"] = draw(MGMT)
    return file


@settings(max_examples=60, deadline=None)
@given(files())
def test_what_is_sound_is_accepted_and_the_schema_accepts_it_too(file: dict[str, Any]) -> None:
    text = dump_tree(file)
    lab = parse(text, FILE)
    assert [node.name for node in lab.nodes] == list(file["topology"]["nodes"])
    assert len(lab.links) == len(file["topology"].get("links", []))
    assert_addresses_are_sound(lab)
    assert objections(text) == []


def assert_addresses_are_sound(lab: Topology) -> None:
    """Assert that every node on the management network, and no other, has one address of each prefix."""
    addresses = [address for node in lab.nodes for address in node.addresses]
    assert len(addresses) == len({*addresses, *lab.mgmt.gateways}) - len(lab.mgmt.gateways)
    for node in lab.nodes:
        wanted = lab.mgmt.prefixes if node.network == "mgmt" else ()
        assert tuple(address.network for address in node.addresses) == wanted


# The same with one thing changed

JUNK: list[Any] = [
    *(
        None,
        "",
        "x",
        "5",
        "no",
        "auto",
        "a:b",
        "1.5",
        5,
        0,
        -1,
        1.5,
        1e400,
        True,
        [],
        {},
        ["x"],
        ["x", "x"],
        [5],
    ),
    *(
        [None],
        {"x": "y"},
        {"x": None},
        {"x": 5},
        {"x": True},
        "10.0.0.1",
        "10.0.0.1/24",
        "10.0.0.0/255.0.0.0",
    ),
    *("010.0.0.1", "fe80::1%eth0", "::ffff:1.2.3.4", "::ffff:1.2.3.4/96", "80", "80:80/sctp", "8000-8001:80"),
    *(
        "0.0.0.0:80:80",
        "[::]:80:80",
        "80:80/TCP",
        "::/0",
        "a:eth1",
        [["x"]],
        65536,
        1e3,
        "host",
        "none",
        "a\nb",
    ),
]


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(deeper for key, each in inner for deeper in places(each, (*place, key)))]


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_what_we_accept_the_schema_accepts_whatever_is_changed(data: st.DataObject) -> None:
    file = deepcopy(data.draw(files()))  # what is drawn is shared
    *above, last = data.draw(st.sampled_from(places(file)[1:]))
    target: Any = file
    for part in above:
        target = target[part]
    if isinstance(target, dict) and data.draw(st.booleans()):
        last = data.draw(
            st.sampled_from([*INHERITED, "mgmt-ipv4", "mgmt-ipv6", "ports", "kind", "type", "x"])
        )
    target[last] = data.draw(st.sampled_from(JUNK))
    text = (
        dump_tree(deepcopy(file)) if target[last] != 1e400 else "name: x\ntopology: {nodes: {}, links: .inf}"
    )
    try:
        lab = parse(text, FILE)
    except ConfigError as refusal:
        *faults, state = str(refusal).splitlines()
        assert state == "nothing was started"
        assert [fault for fault in faults if not re.match(rf"{FILE}:[0-9]+: ", fault)] == []
    else:
        assert_addresses_are_sound(lab)
        assert objections(text) == []


BEYOND = {
    "kind frr": "topology: {nodes: {a: {kind: frr, image: quay.io/frrouting/frr}}}",
    "kind frrouting": "topology: {nodes: {a: {kind: frrouting, image: my/frr}}}",
    "kinds.frr": "topology: {kinds: {frr: {image: frrouting/frr}}, nodes: {a: {kind: frr}}}",
    "extras.frr": "topology: {nodes: {a: {kind: frr, image: x, extras: {frr: {daemons: [bgpd]}}}}}",
    "ipv6-range": "mgmt: {ipv6-subnet: 'fd00::/64', ipv6-range: 'fd00::f:0/112'}\ntopology: {nodes: {}}",
    "phase": "topology: {nodes: {a: {kind: linux, image: x, stages: {configure: {exec: [{command: id}]}}}}}",
}


@pytest.mark.parametrize("text", BEYOND.values(), ids=BEYOND)
def test_the_schema_is_narrower_than_containerlab_in_these_places_only(text: str) -> None:
    parse(f"name: x\n{text}", FILE)
    if schema():
        assert objections(f"name: x\n{text}")


def test_every_kind_of_the_schema_is_run_or_refused_with_a_reason() -> None:
    sections = schema().get("definitions", {}).get("node-config", {}).get("properties", {})
    kinds = {*sections.get("kind", {}).get("enum", []), "nokia_srlinux", "juniper_vmx", "bridge", LINUX}
    if schema():
        kinds |= schema()["properties"]["topology"]["properties"]["kinds"]["properties"].keys()
    assert [kind for kind in sorted(kinds) if bool(builtin().refusal(kind, "x")) == (kind == LINUX)] == []


# What is refused


def rack(body: str) -> str:
    return "name: rack\ntopology:\n" + body


def node(fields: str) -> str:
    return rack(f"  nodes:\n    a:\n      kind: linux\n      image: alpine\n      {fields}\n")


def link(fields: str) -> str:
    nodes = "  nodes: {a: {kind: linux, image: x, network-mode: none}, b: {kind: linux, image: x}}\n"
    return rack(f"{nodes}  links:\n    - {fields}\n")


AT = "7: topology.nodes.a."
NO_SUPPORT = "is not supported by namespace labs; remove it, or deploy the file with containerlab"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("", "1: name: is required", id="empty"),
        pytest.param("name: [", "1: not YAML: ", id="no YAML"),
        pytest.param("name: x\ntopology:\n", "2: topology: must be a mapping of fields", id="no topology"),
        pytest.param(
            "name: 5\ntopology: {nodes: {}}",
            "1: name: 5 is a number in YAML; write it in quotes",
            id="number",
        ),
        pytest.param("name: a/b\ntopology: {nodes: {}}", '1: name: "a/b" may have letters', id="lab name"),
        pytest.param(
            "name: x\nmgmt: {}\ntopology: {nodes: {}}", "2: mgmt: is empty; give it", id="empty section"
        ),
        pytest.param(
            "name: x\nmgmt: {external-access: true}\ntopology: {nodes: {}}",
            "2: mgmt.external-access: true is not supported by namespace labs, where nothing beyond",
            id="external access",
        ),
        pytest.param(
            "name: x\nmgmt:\n  driver-opts: {a: b}\ntopology: {nodes: {}}",
            f"3: mgmt.driver-opts: {NO_SUPPORT}",
            id="driver-opts",
        ),
        pytest.param(
            "name: x\nsettings: {}\ntopology: {nodes: {}}", f"2: settings: {NO_SUPPORT}", id="settings"
        ),
        *(
            pytest.param(node(f"{name}: x"), f"{AT}{name}: {NO_SUPPORT}", id=name)
            for name in (
                *(
                    "healthcheck",
                    "hostname",
                    "license",
                    "type",
                    "volumes",
                    "dns",
                    "certificate",
                    "components",
                ),
                *("aliases", "shm-size", "cgroupns-mode", "cgroup-parent", "pid-mode", "tmpfs", "devices"),
                *("security-opts", "credentials", "config", "cpu-set", "link-apply-mode", "publish"),
                "suppress-startup-config",
            )
        ),
        pytest.param(
            node("mgmt_ipv4: 1.2.3.4"),
            f'{AT}mgmt_ipv4: is not supported by namespace labs (did you mean "mgmt-ipv4"?)',
            id="typo",
        ),
        pytest.param(
            node("extras: {ceos-copy-to-flash: [x]}"),
            f"{AT}extras.ceos-copy-to-flash: {NO_SUPPORT}",
            id="extras",
        ),
        pytest.param(
            node("image-pull-policy: sometimes"),
            'image-pull-policy: "sometimes" is no image-pull-policy',
            id="policy",
        ),
        pytest.param(
            node("network-mode: bridge"),
            'network-mode: "bridge" is no network-mode; it is none, host',
            id="network-mode",
        ),
        pytest.param(
            node("restart-policy: never"), '"never" is no restart-policy; it is no, on-failure', id="restart"
        ),
        pytest.param(
            node("startup-delay: '5'"), "startup-delay: must be a number, without quotes", id="quoted number"
        ),
        pytest.param(
            node("auto-remove: 'true'"),
            "auto-remove: must be true or false, without quotes",
            id="quoted truth",
        ),
        pytest.param(
            node("memory: 512"), "memory: 512 is a number in YAML; write it in quotes", id="size without unit"
        ),
        pytest.param(node("memory: 1x"), 'memory: "1x" is no size; write a number and b, kb', id="size"),
        pytest.param(node("cpu: many"), "cpu: must be a number, without quotes", id="cpu"),
        pytest.param(node("user: ''"), 'user: "" is no user', id="user"),
        pytest.param(node("labels: {x: ''}"), 'labels.x: "" must be text that is not empty', id="label"),
        pytest.param(
            node("labels: {x: true}"), "labels.x: true is a boolean in YAML; write it in quotes", id="truth"
        ),
        pytest.param(node("env: {x: }"), "env.x: is empty; give it a value, or remove it", id="null"),
        pytest.param(node("exec: []"), "exec: is empty; give it a value, or remove it", id="empty list"),
        pytest.param(
            node("exec: ['']"), "exec.0: is no command; write one, or remove it", id="empty command"
        ),
        pytest.param(node('exec: ["echo \'"]'), 'exec.0: "echo \'": no closing quotation', id="quotation"),
        pytest.param(node("binds: [/etc:/x, /etc:/x]"), 'binds: "/etc:/x" stands twice', id="twice"),
        pytest.param(
            node("mgmt-ipv4: 10.0.0.1/24"), 'mgmt-ipv4: "10.0.0.1/24" is no IPv4 address', id="address"
        ),
        pytest.param(
            node("stages: {configure: {exec: [{command: id, target: moon}]}}"),
            "stages.configure.exec.0.target: input should be 'container' or 'host'",
            id="target",
        ),
        pytest.param(node("stages: {ready: {}}"), f"stages.ready: {NO_SUPPORT}", id="stage"),
        pytest.param(
            node("extras: {frr: {daemons: [bgdp]}}"),
            'extras.frr.daemons.0: "bgdp" is no daemon of FRR; it has',
            id="daemon",
        ),
        pytest.param(rack("  nodes: {-a: {}}\n"), "3: topology.nodes.-a: is no host name", id="node name"),
        pytest.param(
            rack(f"  nodes: {{{'a' * 64}: {{}}}}\n"), "is no host name (letters", id="long node name"
        ),
        pytest.param(
            rack("  nodes: {host: }\n"),
            'topology.nodes.host: a link\'s end takes "host" for something else',
            id="host",
        ),
        pytest.param(
            rack("  defaults:\n  nodes: {}\n"),
            "3: topology.defaults: must be a mapping of fields",
            id="null section",
        ),
        pytest.param(rack("  nodes: {}\n  links: []\n"), "4: topology.links: is empty", id="no links"),
        *(
            pytest.param(
                link(f"{{type: {kind}, endpoint: {{node: a, interface: e}}}}"),
                f"5: topology.links.0: a link of type {kind} {NO_SUPPORT}",
                id=kind,
            )
            for kind in ("macvlan", "vxlan", "vxlan-stitch", "veth-stitch", "dummy")
        ),
        *(
            pytest.param(
                link(f"endpoints: ['a:e', '{kind}:eth0']"),
                f'5: topology.links.0.endpoints.1: "{kind}:eth0": a link of type {kind} {NO_SUPPORT}',
                id=f"brief {kind}",
            )
            for kind in ("macvlan", "macvtap", "vxlan", "dummy")
        ),
        pytest.param(
            link("endpoints: ['a:e']"), "links.0.endpoints: a link has two ends, not 1", id="one end"
        ),
        pytest.param(link("endpoints: ['a', 'b:e']"), '"a": write it NODE:INTERFACE', id="end"),
        pytest.param(
            link("endpoints: ['a:interface-name16', 'b:e']"),
            '"interface-name16" is no interface name (1 to 15 characters)',
            id="long interface",
        ),
        pytest.param(
            link("{type: veth, endpoints: [{node: a}, {node: b, interface: e}]}"),
            "5: topology.links.0.endpoints.0.interface: is required",
            id="no interface",
        ),
        pytest.param(
            link(
                "{type: veth, endpoints: [{node: a, interface: e, mac: '01:00:00:00:00:00'}, {node: b, interface: e}]}"
            ),
            '"01:00:00:00:00:00" is no hardware address of an interface',
            id="mac",
        ),
        pytest.param(
            link("{endpoints: ['a:e', 'b:e'], mtu: 67}"),
            "mtu: input should be greater than or equal to 68",
            id="mtu",
        ),
        pytest.param(
            link("{endpoints: ['a:e', 'b:e'], ipv4: [10.0.0.1]}"),
            'ipv4.0: "10.0.0.1" is no IPv4 address with a prefix length',
            id="no length",
        ),
        pytest.param(
            link("{endpoints: ['a:e', 'b:e'], labels: {a: b}}"),
            f"labels: {NO_SUPPORT}",
            id="label of a brief link",
        ),
        pytest.param(link("5"), "links.0: must be a mapping of fields", id="no link"),
    ],
)
def test_what_the_format_does_not_have_is_refused_by_name_and_line(text: str, want: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text, FILE)
    message = str(refusal.value)
    assert message.startswith(f"{FILE}:")
    assert want in message
    assert message.endswith("nothing was started")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (
            "name: $LAB",
            "1: name: $LAB is a variable, which is not supported by namespace labs: put its value there",
        ),
        ("a: 1\nb: ['x ${LAB:=y}']", "2: b.0: $LAB is a variable"),
        ("$KEY: 1", "1: $KEY: $KEY is a variable"),
        ("a: '$$$LAB'", "before the lab comes up; $$LAB is the text $LAB"),
        (
            "a: {{ .x }}",
            '1: "{{" begins an action of a Go template, which is not supported by namespace labs',
        ),
        ("a: 1\n# {{ .x }}", '2: "{{" begins an action of a Go template'),
        (
            "a: 1\n{{- range seq }}\n",
            "render it to a file of its own first (gomplate does), and bring that up",
        ),
    ],
)
def test_variables_and_templates_are_refused_with_what_to_do(text: str, want: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text, FILE)
    assert want in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "beside", "want"),
    [
        ("x.clab.gotmpl", "", "1: its name says that it is a Go template"),
        ("x.clab.gotmpl.yml", "", "1: its name says that it is a Go template"),
        ("x.clab.yml", "x.clab_vars.yaml", "1: x.clab_vars.yaml has the values of a Go template"),
        ("x.clab.yml", "x.clab_vars.json", "1: x.clab_vars.json has the values of a Go template"),
    ],
)
def test_a_template_is_known_by_its_files_too(name: str, beside: str, want: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("name: x\ntopology: {nodes: {}}\n")
    if beside:
        (tmp_path / beside).touch()
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path / name)
    assert f"{tmp_path / name}:{want}, which is not supported" in str(refusal.value)
