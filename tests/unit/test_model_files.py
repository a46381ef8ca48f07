"""What a file says of itself that a stored resource need not: names that follow, values as written, broken text."""

import pytest

from fabric.model.base import Resource
from fabric.model.yaml import Entry, entries

HEAD = "apiVersion: projectcalico.org/v3\n"


def only(text: str) -> Entry:
    [entry] = entries(text)
    return entry


def said(entry: Entry) -> list[str]:
    assert not isinstance(entry.read, Resource)
    return [f"{entry.line(problem.path)}: {problem}" for problem in entry.read]


def endpoint(spec: str, metadata: str = "{namespace: default}") -> Entry:
    return only(f"{HEAD}kind: WorkloadEndpoint\nmetadata: {metadata}\nspec: {spec}\n")


NAMED = [
    ("{orchestrator: k8s, node: n-1, pod: web-0, endpoint: eth0, workload: w}", "n--1-k8s-web--0-eth0"),
    ("{orchestrator: cni, node: n1, containerID: c1, endpoint: eth0}", "n1-cni-c1-eth0"),
    ("{orchestrator: libnetwork, node: n1, endpoint: e}", "n1-libnetwork-libnetwork-e"),
    ("{orchestrator: other, node: n1, workload: w.x, endpoint: e}", "n1-other-w.x-e"),
]


@pytest.mark.parametrize(("spec", "name"), NAMED)
def test_an_endpoint_without_a_name_gets_the_one_its_spec_says(spec: str, name: str) -> None:
    for metadata in ("{namespace: default}", "{name: '', namespace: default}", f"{{name: {name}}}"):
        read = endpoint(spec, metadata).read
        assert isinstance(read, Resource)
        assert read.metadata.name == name


@pytest.mark.parametrize(("spec", "name"), NAMED)
def test_an_endpoint_named_otherwise_than_its_spec_says_is_refused(spec: str, name: str) -> None:
    rule = f'must be "{name}", which the spec says; or leave it out'
    assert said(endpoint(spec, "{name: web}")) == [f'3: metadata.name: "web": {rule}']


@pytest.mark.parametrize(
    ("spec", "rules"),
    [
        (
            "{orchestrator: cni, node: n1, mac: x}",
            [
                '4: spec.mac: "x": must be a MAC address, such as ee:ee:ee:ee:ee:ee',
                "4: spec.containerID: is required: the name is made of it",
                "4: spec.endpoint: is required: the name is made of it",
            ],
        ),
        (
            "{orchestrator: x, node: n1, workload: -w, endpoint: e}",
            ['4: spec.workload: "-w": must not begin or end with "-"'],
        ),
    ],
)
def test_what_an_endpoints_name_cannot_be_made_of_is_told(spec: str, rules: list[str]) -> None:
    assert said(endpoint(spec)) == rules


def test_a_namespace_too_many_is_told_with_the_other_mistakes() -> None:
    text = f"{HEAD}kind: IPPool\nmetadata: {{name: p, namespace: a}}\nspec: {{cidr: x}}\n"
    assert [line.split(":")[1].strip() for line in said(only(text))] == ["spec.cidr", "metadata.namespace"]


@pytest.mark.parametrize(
    ("name", "shown"), [("007", "007"), ("0x1F", "0x1F"), ("1.10", "1.10"), ("True", "True"), ("7", "7")]
)
def test_a_number_where_text_belongs_is_shown_as_it_is_written(name: str, shown: str) -> None:
    text = f"{HEAD}kind: Node\nmetadata: {{name: {name}}}\n"
    assert said(only(text)) == [f"3: metadata.name: {shown}: must be text; put it in quotes"]


def test_a_label_without_quotes_is_a_text_as_for_calicos_tools() -> None:
    text = f"{HEAD}kind: Node\nmetadata: {{name: a, labels: {{reflector: true, rack: 7}}}}\n"
    read = only(text).read
    assert isinstance(read, Resource)
    assert read.metadata.labels == {"reflector": "true", "rack": "7"}


def test_a_byte_that_is_no_text_spoils_its_own_document_only() -> None:
    node = HEAD.encode() + b"kind: Node\nmetadata: {name: %s}\n"
    data = b"---\n".join([node % b"a", node % b"b\xff", node % b"c"])
    first, second, third = entries(data.decode(errors="surrogateescape"))
    assert (first.name, third.name) == ("a", "c")
    assert isinstance(first.read, Resource)
    assert isinstance(third.read, Resource)
    assert second.kind == "Node"
    assert said(second) == ["7: byte 0xff is not UTF-8; save the file as UTF-8"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: Node\nmetadata: {name: a}\nspec: {x: 1, x: 2}\n", ("Node", "a")),
        ("kind: Node\nkind: Node\nmetadata: {name: a}\n", ("Node", "")),
        ("a: 1\na: 2\nkind: Node\n", ("", "")),
    ],
)
def test_a_key_given_twice_leaves_what_was_read_before_it(text: str, told: tuple[str, str]) -> None:
    entry = only(text)
    assert (entry.kind, entry.name) == told
    [line] = said(entry)
    assert "is given twice" in line
