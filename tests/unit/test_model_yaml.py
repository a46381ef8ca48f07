import json
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fabric.errors import ConfigError
from fabric.model.base import Metadata, Resource, Unknown, tree
from fabric.model.wire import from_tree
from fabric.model.yaml import MAX_BYTES, documents, dump, entries
from tests.unit.loading import resources_in

HEAD = "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata:\n  name: {name}\n"


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("8080:53", "8080:53"),
        ("off", "off"),
        ("yes", "yes"),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("-7", -7),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("~", None),
        ("", None),
        ("2026-11-21", "2026-11-21"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("<<", "<<"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(scalar: str, value: object) -> None:
    [document] = documents(f"a: {scalar}\n", "f.yaml")
    assert document.value == {"a": value}
    assert type(document.value["a"]) is type(value)


def test_a_position_is_the_line_of_the_key_and_counts_across_documents() -> None:
    first, second = documents("a:\n  - b: 1\n    c:\n      - 2\n---\n# nothing\n---\nd: 1\n", "f.yaml")
    assert dict(first.lines) == {
        (): 1,
        ("a",): 1,
        ("a", 0): 2,
        ("a", 0, "b"): 2,
        ("a", 0, "c"): 3,
        ("a", 0, "c", 0): 4,
    }
    assert first.line(("a", 0, "missing", 3)) == 2
    assert (second.value, second.line(("d",))) == ({"d": 1}, 8)


def test_aliases_share_a_value() -> None:
    [document] = documents("a: &x {b: 1}\nc: *x\n", "f.yaml")
    assert document.value == {"a": {"b": 1}, "c": {"b": 1}}
    assert document.line(("c", "b")) == 2


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{below}'] * 9)}]\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 'f.yaml:3: key "a" is given twice, first on line 1'),
        ("a: [\n", "f.yaml:2: did not find expected node content"),
        ("a:\n\tb: 1\n", "f.yaml:2: found character that cannot start any token"),
        ("? [a]\n: 1\n", "f.yaml:1: a key must be text"),
        ("a: .inf\n", "f.yaml:1: infinity and not-a-number cannot be stored"),
        ("a: 1e999\n", "f.yaml:1: infinity and not-a-number cannot be stored"),
        ("a: " + "9" * 5000, "f.yaml:1: a number has at most 100 digits"),
        (
            "a: !!python/name:os.system x\n",
            "f.yaml:1: tag tag:yaml.org,2002:python/name:os.system is not supported",
        ),
        ("a: !!set {x}\n", "f.yaml:1: tag tag:yaml.org,2002:set is not supported"),
        ("a: &a [*a]\n", "f.yaml:1: alias *a has no anchor before it"),
        ("a: &a 1\n" + "b:\n" + "- *a\n" * 101, "f.yaml:103: more than 100 aliases"),
        (LAUGHS, "f.yaml:6: more than 500000 values once its aliases are expanded"),
        ("[" * 100_000, "f.yaml:1: nested more than 64 deep"),
        (
            f"- &a {'[' * 40}{']' * 40}\n- {'[' * 40}*a{']' * 40}\n",
            "f.yaml:2: nested more than 64 deep",
        ),
        ("#" * (MAX_BYTES + 1), "f.yaml: larger than 4 MiB; split the file"),
        ("é" * (MAX_BYTES // 2 + 1), "f.yaml: larger than 4 MiB; split the file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        documents(text, "f.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["a: \x00", "a: \ud800", "\ufeff\ufeff: ["])
def test_text_that_is_no_yaml_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^1: "):
        resources_in(text)


def read(text: str) -> list[tuple[int, str, str, list[str]]]:
    """Line, kind, name and what is wrong, of every resource."""
    return [
        (e.line(), e.kind, e.name, [] if isinstance(e.read, Resource) else list(map(str, e.read)))
        for e in entries(text)
    ]


NODE = "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata:\n  name: {}\n"
NO_API = "apiVersion: must be projectcalico.org/v3, networking.k8s.io/v1 or v1"


@pytest.mark.parametrize(
    ("broken", "line", "rule"),
    [
        ("a: [\n", 7, "did not find expected node content"),
        ("a: 1\na: 2\n", 7, 'key "a" is given twice, first on line 6'),
        ("b: 1\na: \x07\n", 7, "character U+0007 is not allowed in YAML"),
        ("- " * 70 + "1\n", 6, "nested more than 64 deep"),
        ("a: !x 1\n", 6, "tag !x is not supported"),
        ("%YAML 9.9\n", 6, "found incompatible YAML document"),
        ("\x07\n", 6, "character U+0007 is not allowed in YAML"),
    ],
)
def test_reading_goes_on_behind_a_document_that_is_no_yaml(broken: str, line: int, rule: str) -> None:
    a, b, c = (NODE.format(name) for name in "abc")
    text = f"{a}---\n{broken}---\n{b}---\n{broken}---\n{c}"
    after = 6 + broken.count("\n")
    found = read(text)
    assert [entry[:3] for entry in found if entry[1]] == [
        (1, "Node", "a"),
        (after + 1, "Node", "b"),
        (after * 2 + 1, "Node", "c"),
    ]
    assert len(found) == 5
    assert found[1] == (line, "", "", [rule])


def test_a_file_of_nothing_but_broken_documents_is_given_up_on() -> None:
    *_, before, last = read("a: [\n---\n" * 200)
    assert before == (200, "", "", ["did not find expected node content"])
    assert last[3] == ["100 documents before it cannot be read; the rest was not looked at"]


def test_what_is_told_of_a_resource_that_is_none_is_its_kind_and_name() -> None:
    text = (
        "kind: Node\nmetadata: {name: [a]}\n---\n- kind: 1\n- metadata: {name: b}\n- 7\n---\nmetadata: []\n"
    )
    assert read(text) == [
        (1, "Node", "", [NO_API]),
        (4, "", "", [NO_API]),
        (5, "", "b", [NO_API]),
        (6, "", "", ["7: a resource is a mapping with apiVersion, kind and metadata"]),
        (8, "", "", [NO_API]),
    ]


@pytest.mark.parametrize("value", ["😀", "\\ud83d\\ude00", "é", "/", "\t", '"', "\\", "\\😀"])
def test_json_may_be_escaped_and_indented_as_json_is(value: str) -> None:
    text = json.dumps({"kind": "Node", "a": value}, indent="\t").replace("/", "\\/")
    [document] = documents(text, "f.json")
    assert document.value == {"kind": "Node", "a": value}


def test_every_mistake_of_a_file_is_listed() -> None:
    text = (
        HEAD.format(kind="IPPool", name="Pods")
        + "spec:\n  cidr: 10.0.0.1/16\n  block_size: 28\n  ipipMode: always\n---\n"
        + HEAD.format(kind="IPPol", name="b")
        + "---\n[1, {kind: Node}]\n---\n"
        + HEAD.format(kind="Node", name="n")
        + "  namespace: default\n---\n"
        + HEAD.format(kind="BGPPeer", name="p")
        + "spec: {}\nnotes: x\n"
    )
    name_rule = "a name is lower-case letters, digits, '-' and '.', at most 253 characters"
    with pytest.raises(ConfigError) as caught:
        resources_in(text)
    assert str(caught.value).splitlines() == [
        f'4: metadata.name: "Pods": {name_rule}',
        '6: spec.cidr: "10.0.0.1/16": has host bits set; the prefix around it is 10.0.0.0/16',
        "8: spec.ipipMode: \"always\": must be 'Never', 'Always' or 'CrossSubnet'",
        "7: spec.block_size: no such field; did you mean blockSize?",
        '11: kind: "IPPol": no kind of projectcalico.org/v3; did you mean IPPool?',
        "15: 1: a resource is a mapping with apiVersion, kind and metadata",
        "15: apiVersion: must be projectcalico.org/v3, networking.k8s.io/v1 or v1",
        '21: metadata.namespace: "default": Node is cluster-wide, leave the namespace out',
        "28: notes: no such field",
    ]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("metadata: {name: a, label: {}}", "metadata.label: no such field; did you mean labels?"),
        ("spec: {ingress: [{Action: Allow}]}", "spec.ingress[0].Action: no such field; did you mean action?"),
        (
            "spec: {egress: [{action: Deny, destination: {netz: []}}]}",
            "spec.egress[0].destination.netz: no such field; did you mean nets?",
        ),
        ("spec: {ingress: [{action: Deny, zzz: 1}]}", "spec.ingress[0].zzz: no such field"),
    ],
)
def test_a_field_that_is_spelled_wrong_is_answered_with_the_close_one_at_its_place(
    path: str, hint: str
) -> None:
    head = "apiVersion: projectcalico.org/v3\nkind: Profile\n"
    text = f"{head}{path}\n" if path.startswith("metadata") else f"{head}metadata: {{name: a}}\n{path}\n"
    [(*_, mistakes)] = read(text)
    assert hint in mistakes


EXPORTED = """\
apiVersion: {api}
kind: {kind}
metadata:
  {names}
  managedFields: [{{manager: kubectl}}]
  selfLink: /apis/x
  deletionTimestamp: "2026-11-21T04:16:27Z"
  deletionGracePeriodSeconds: 0
"""


@pytest.mark.parametrize(
    ("api", "kind"),
    [
        ("projectcalico.org/v3", "GlobalNetworkSet"),
        ("projectcalico.org/v3", "LiveMigration"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
    ],
)
def test_of_metadata_that_kubernetes_exported_its_servers_part_is_dropped(api: str, kind: str) -> None:
    text = EXPORTED.format(api=api, kind=kind, names="name: a\n  generateName: a-")
    [resource] = resources_in(text)
    assert tree(resource.metadata) == {"name": "a", "generateName": "a-"}


def test_no_name_is_made_of_generate_name() -> None:
    text = EXPORTED.format(api="projectcalico.org/v3", kind="Node", names="generateName: a-")
    assert read(text)[0][3] == ["metadata.name: is required: no name is made of generateName"]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("", "kind: is required, and is text"),
        ("kind: 7", "kind: 7: is required, and is text"),
        ("kind: Secret", 'kind: "Secret": no kind of projectcalico.org/v3'),
        ("kind: ippool", 'kind: "ippool": no kind of projectcalico.org/v3; did you mean IPPool?'),
    ],
)
def test_what_is_no_kind_is_answered_with_the_close_one(kind: str, rule: str) -> None:
    assert read(f"apiVersion: projectcalico.org/v3\n{kind}\n")[0][3] == [rule]


def test_a_list_kind_and_a_plain_list_are_taken_apart() -> None:
    item = "{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: %s}}"
    listed = f"kind: NodeList\nitems:\n- {item % 'a'}\n- {item % 'b'}\n---\n- {item % 'c'}\n"
    assert [resource.metadata.name for resource in resources_in(listed)] == ["a", "b", "c"]


def test_nothing_in_the_file_is_no_resource() -> None:
    assert resources_in("") == resources_in("---\n# x\n---\n") == []


printable = st.text(st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from("\n\t"), max_size=20)
awkward = st.sampled_from(
    ["off", "1e3", "0o17", "~", "", "null", "8080:53", ".inf", "0x1", "1_0", "- a", "a: b", "#", "9" * 200]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | printable
    | awkward,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable | awkward, inner, max_size=3),
    max_leaves=10,
)


@given(values)
@example({"a": "1e3", "b": "0o17", "c": "off", "d": "", "e": "~"})
@example("\u2028 \u0085 \ufeff")
def test_what_is_dumped_reads_back_as_the_same_values(spec: object) -> None:
    tier = from_tree(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "LiveMigration",
            "metadata": {"name": "a"},
            "spec": spec,
        }
    )
    assert isinstance(tier, Unknown)
    assert resources_in(dump(tier)) == [tier]


FRAGMENTS = (
    "apiVersion: projectcalico.org/v3\n|kind: IPPool\n|kind: Node\n|metadata:\n|  name: a\n|spec:\n"
    "|  cidr: 10.0.0.0/16\n|  bgp: |  asNumber: 1\n|  - x\n|---\n|...\n|%YAML 1.2\n|- |? |: |{|}|[|]"
    "|&a |*a|!!str |'|\"|~|1e9|0x|\t|é|\x07|>\n"
)
fragments = st.sampled_from(FRAGMENTS.split("|"))


@given(st.lists(fragments | st.text(max_size=5), max_size=30).map("".join))
def test_any_text_is_resources_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        resources_in(text)


def test_metadata_is_written_in_order() -> None:
    resource = Unknown(kind="Tier", metadata=Metadata(name="a", labels={"b": "c"}, uid="u"))
    assert dump(resource).splitlines() == [
        "kind: Tier",
        "apiVersion: projectcalico.org/v3",
        "metadata:",
        "  name: a",
        "  uid: u",
        "  labels:",
        "    b: c",
    ]
