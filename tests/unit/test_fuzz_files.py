"""Whatever is in a file, reading it ends in resources or in a ConfigError; never in anything else."""

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fabric.errors import ConfigError
from fabric.model.base import Resource
from fabric.model.convert import stored
from fabric.model.effects import not_used
from fabric.model.wire import from_json, to_json
from fabric.model.yaml import documents, dump
from fabric.ops import files
from fabric.ops.convert import convert
from tests.unit.loading import resources_in

GOLDEN = sorted((Path(__file__).parent / "golden" / "model").glob("*.yaml"))
KUBERNETES = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop, labels: {a: b}}
spec:
  podSelector: {matchLabels: {a: b}, matchExpressions: [{key: a, operator: In, values: [b]}]}
  ingress: [{from: [{podSelector: {}, namespaceSelector: {}}], ports: [{port: 80, endPort: 90, protocol: TCP}]}]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: web}]}]
  policyTypes: [Ingress, Egress]
"""
CARRIERS = """\
apiVersion: v1
kind: {}
metadata: {{name: shop, labels: {{a: b, x.example/c: d}}, annotations: {{fabricctl.io/drop-log: on}}}}
"""
DOCUMENTS = [
    KUBERNETES,
    *map(CARRIERS.format, ("Namespace", "ServiceAccount")),
    *(path.read_text() for path in GOLDEN),
]
TREES: list[dict[str, Any]] = [document.value for text in DOCUMENTS for document in documents(text, "golden")]

# Where other readers of YAML and of addresses have fallen.
AWKWARD: list[object] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**32,
        2**63,
        2**64,
        10**80,
        0.0,
        -0.5,
        1e300,
        [],
        {},
        [[]],
        [None],
        {"": 0},
    ),
    *("", " ", "a b", "a\nb", "a\x00b", "a" * 300, "\ud800", "😀", "٣", "²", "{", "-", "*", "&a", "<<", "%"),
    *(
        "off",
        "yes",
        "~",
        "null",
        "8080:53",
        "0x1F",
        "0o17",
        "1e3",
        ".inf",
        "1:2",
        "99999999999:1",
        "1.10",
        "65536.1",
    ),
    *(
        "10.0.0.0/8",
        "10.0.0.1/33",
        "10.0.0.1/-1",
        "0.0.0.0",
        "010.0.0.1",
        "::/0",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
    ),
    *("all()", "global()", "has(", "a == 'b", "!" * 500, "(" * 500),
    *("2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
]
awkward = st.sampled_from(AWKWARD) | st.text(max_size=8) | st.integers() | st.floats(allow_nan=False)


def paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        yield from paths(inner, (*path, step))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A sound resource with one to three places of it replaced, removed, doubled or renamed."""
    value = copy.deepcopy(draw(st.sampled_from(TREES)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths(value))))
        if not path:
            continue
        *above, step = path
        parent = value
        for part in above:
            parent = parent[part]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "wrap", "unwrap", "rename"])):
            case "replace":
                parent[step] = copy.deepcopy(draw(awkward))
            case "remove":
                del parent[step]
            case "wrap":
                parent[step] = [parent[step]]
            case "unwrap" if isinstance(parent[step], list | dict) and parent[step]:
                inner = parent[step]
                parent[step] = next(iter(inner.values() if isinstance(inner, dict) else inner))
            case "rename" if isinstance(step, str):
                parent[draw(st.text(max_size=5))] = parent.pop(step)
    return value


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for every example."""
    return tmp_path_factory.mktemp("fuzz") / "f.yaml"


def everything(path: Path, content: bytes) -> None:
    """Do with a file all that commands do before they change anything."""
    path.write_bytes(content)
    name = str(path)
    found: list[files.Given] = []
    with suppress(ConfigError):
        found = files.read([name])
    for resource in (
        stored(one.resource) for one in found
    ):  # what can be read can be stored, and read from there
        assert isinstance(resource, Resource)
        assert type(from_json(to_json(resource))) is type(resource)
    for document in files.documents([name]):
        assert bool(document.problems) != isinstance(document.stored, Resource)
        lines = document.errors()
        assert all(line.startswith(f"{name}:") and line.isprintable() for line in lines), lines
        if isinstance(document.stored, Resource):
            not_used(document.stored)
    for outcome in convert([name]):
        if isinstance(outcome, Resource):
            assert resources_in(dump(outcome)) == [outcome]


fuzzing = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzing
@given(content=st.binary(max_size=200))
@example(content=b"\xef\xbb\xbfa: 1")
@example(content=b"\xff\xfea\x00")
@example(content=b"%YAML 1.1\n%TAG ! !\n--- !x\n...\n")
def test_any_bytes(path: Path, content: bytes) -> None:
    everything(path, content)


PIECES = (
    "apiVersion: v1\n|kind: Namespace\n|"
    "apiVersion: projectcalico.org/v3\n|apiVersion: networking.k8s.io/v1\n|kind: NetworkPolicy\n|kind: List\n|items:\n"
    "|kind: IPPool\n|metadata:\n|  name: a\n|spec:\n|  cidr: 10.0.0.0/16\n|  ingress: |  - x\n|---\n|...\n|%YAML 1.2\n"
    "|- |? |: |{|}|[|]|&a |*a|!!str |!!binary |'|\"|~|1e9|0x|\t|é|\x07|>\n|\r|\x85|\u2028|#|\ufeff|\\u|\\ud83d\\ude00|,"
)
pieces = st.sampled_from(PIECES.split("|"))


@fuzzing
@given(text=st.lists(pieces | st.text(st.characters(codec="utf-8"), max_size=5), max_size=30).map("".join))
def test_any_text_of_pieces_of_yaml(path: Path, text: str) -> None:
    everything(path, text.encode())


@settings(fuzzing, max_examples=600)
@given(value=mutated(), as_json=st.booleans())
def test_any_mutation_of_a_sound_resource(path: Path, value: Any, as_json: bool) -> None:
    text = json.dumps(value) if as_json else yaml.safe_dump(value, allow_unicode=True)
    everything(path, text.encode(errors="replace"))


@fuzzing
@given(
    text=st.sampled_from(DOCUMENTS),
    at=st.integers(0, 3000),
    cut=st.integers(0, 30),
    new=st.binary(max_size=6),
)
def test_any_mutation_of_a_sound_text(path: Path, text: str, at: int, cut: int, new: bytes) -> None:
    content = text.encode()
    at %= len(content)
    everything(path, content[:at] + new + content[at + cut :])


@settings(fuzzing, max_examples=600)
@given(value=mutated())
def test_any_mutation_of_a_stored_resource(value: Any) -> None:
    try:
        resource = from_json(json.dumps(value))
    except ConfigError:
        return
    not_used(resource)
    assert type(from_json(to_json(resource))) is type(resource)
