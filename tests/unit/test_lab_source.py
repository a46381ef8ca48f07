"""Reading what a person wrote: the text stays the text, every value knows its line, nothing grows without bound."""

import os
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from fabric.errors import ConfigError
from fabric.lab.source import MAX_DEPTH, Boolean, Number, Place, parse, read, validated

FILE = Path("x.yml")
MERGES = """\
base: &base
  x: 1
  deep:
    off: on
list: &list [a, *base]
copy: *base
merged:
  <<: *base
  x: 8080:53
many: {<<: [*base, {y: 2}], z: ~}
"""


def test_a_scalar_stays_the_text_that_was_written() -> None:
    value = parse("[8080:53, off, 1.10, 007, 0x1F, '5', true, ~, '', \"~\", .inf, 1_000]", FILE).value
    assert value == ["8080:53", "off", "1.10", "007", "0x1F", "5", "true", None, "", "~", ".inf", "1_000"]
    assert isinstance(value, list)
    assert [type(v) for v in value if type(v) not in (str, type(None))] == [*([Number] * 3), Boolean, Number]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), 1),
        (("base", "deep", "off"), 4),
        (("list", 1, "deep"), 3),
        (("copy",), 6),
        (("copy", "x"), 2),
        (("merged", "deep", "off"), 4),
        (("merged", "x"), 9),
        (("many", "y"), 10),
        (("many", "deep", "off"), 4),
        (("merged", "absent", "below"), 7),
        (("absent",), 1),
    ],
)
def test_every_value_knows_its_line_through_aliases_and_merges(place: Place, line: int) -> None:
    assert parse(MERGES, FILE).line(place) == line


def test_merge_keys_give_what_the_mapping_does_not_have() -> None:
    value = parse(MERGES, FILE).value
    assert isinstance(value, dict)
    assert value["merged"] == {"x": "8080:53", "deep": {"off": "on"}}
    assert value["many"] == {"x": "1", "deep": {"off": "on"}, "y": "2", "z": None}
    # Of several the first counts, and a quoted << is a key like any other.
    assert parse("{<<: [{a: 1}, {a: 2}], '<': 3}", FILE).value == {"a": "1", "<": "3"}
    assert parse("'<<': {a: 1}", FILE).value == {"<<": {"a": "1"}}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("a: [", "x.yml:1: not YAML: ", id="no YAML"),
        pytest.param(
            "a: 1\nb: c: d", "x.yml:2: not YAML: mapping values are not allowed", id="the second line"
        ),
        pytest.param("a: 1\nb: 2\na: 3", 'x.yml:3: not YAML: "a" stands twice, first on line 1', id="twice"),
        pytest.param("{<<: {a: 1}, <<: {b: 2}}", '"<<" stands twice', id="merged twice"),
        pytest.param("<<: 5", "<< merges mappings only", id="merge of no mapping"),
        pytest.param("a: !py 1", "the tag !py is not supported", id="tag"),
        pytest.param("[a]: 1", "a key must be text", id="key"),
        pytest.param("a: 1\n---\nb: 1", "x.yml:2: not YAML: a second document", id="two documents"),
        pytest.param("a: *b", "alias *b has no anchor before it", id="alias of nothing"),
        pytest.param("a: &a [*a]", "alias *a has no anchor before it", id="alias of itself"),
        pytest.param("a: \x01", "control characters are not allowed", id="control character"),
        pytest.param("[" * (MAX_DEPTH + 2), f"nested more than {MAX_DEPTH} deep", id="depth"),
        *(
            pytest.param(
                "[" * depth, f"x.yml:1: not YAML: nested more than {MAX_DEPTH} deep", id=f"{depth} deep"
            )
            for depth in (1001, 100_000)
        ),
        pytest.param(
            "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)),
            "values once its aliases are expanded",
            id="aliases of aliases",
        ),
    ],
)
def test_what_is_no_yaml_or_too_much_of_it_is_refused_with_its_line(text: str, want: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text, FILE, state="nothing was asked")
    assert want in str(refusal.value)
    assert str(refusal.value).endswith("\nnothing was asked")


@pytest.mark.parametrize(
    ("content", "want"),
    [
        (None, "No such file or directory; name a lab"),
        (b"\xff\xfe", "is not UTF-8 text; name a lab"),
        (b"#" * 2_000_000, "larger than 1024 KiB; name a lab"),
    ],
    ids=["absent", "binary", "large"],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, want: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.yml").write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path / "x.yml", what="a lab")
    assert str(refusal.value) == f"{tmp_path / 'x.yml'}: {want}"


def test_a_pipe_or_a_device_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError, match=f"^{path}: is no regular file; name a lab$"):
            read(path, what="a lab")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["a", "b"] = "a"
    some: tuple[int, ...] = ()


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: dict[str, Inner]
    needed: str


def test_every_fault_is_told_in_the_order_of_the_file_and_once() -> None:
    source = parse("inner:\n  x: {kind: c}\n  y:\n    sone: []\n  z: {some: [1, q]}\nother: 1\n", FILE)
    source.fault(("inner", "z"), "noted before")
    source.fault(("inner", "z"), "noted before")
    with pytest.raises(ConfigError) as refusal:
        validated(source, Model)
    assert str(refusal.value).splitlines() == [
        "x.yml:1: needed: is required",
        "x.yml:2: inner.x.kind: input should be 'a' or 'b'",
        'x.yml:4: inner.y.sone: is no field here (did you mean "some"?); remove it',
        "x.yml:5: inner.z: noted before",
        "x.yml:5: inner.z.some.1: input should be a valid integer, unable to parse string as an integer",
        "x.yml:6: other: is no field here; remove it",
        "nothing was started",
    ]


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert parse("", FILE).value == parse("# nothing\n", FILE).value == {}
