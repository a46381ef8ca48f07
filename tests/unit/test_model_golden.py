"""Files in golden/model: what an operator writes (YAML) and what must be in etcd for it (JSON).

Those in golden/stored have what no file of ours may have, as other clients write it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.model.base import Metadata, Resource, Unknown
from fabric.model.kinds import KINDS, Kind
from fabric.model.wire import from_json, to_json
from fabric.model.yaml import documents, dump, entries
from tests import reference
from tests.unit.loading import resources_in

GOLDEN = Path(__file__).parent / "golden" / "model"
STORED = Path(__file__).parent / "golden" / "stored"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))


def load(name: str) -> Resource:
    path = GOLDEN / f"{name}.yaml"
    [resource] = resources_in(path.read_text())
    return resource


def stored(name: str) -> str:
    return (GOLDEN / f"{name}.json").read_text().rstrip("\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_becomes_calicos_json(name: str) -> None:
    assert to_json(load(name)) == stored(name)


@pytest.mark.parametrize("name", NAMES)
def test_reading_and_writing_changes_nothing(name: str) -> None:
    assert to_json(from_json(stored(name))) == stored(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_can_be_applied(name: str) -> None:
    resource = from_json(stored(name))
    [again] = resources_in(dump(resource))
    assert again == resource


@pytest.mark.parametrize("name", NAMES)
def test_json_is_read_as_a_file_too(name: str) -> None:
    [resource] = resources_in(json.dumps(json.loads(stored(name)), indent=2))
    assert to_json(resource) == stored(name)


@pytest.mark.parametrize("path", sorted(STORED.glob("*.json")), ids=lambda path: path.stem)
def test_what_only_others_write_is_kept_and_refused_in_a_file(path: Path) -> None:
    text = path.read_text().rstrip("\n")
    resource = from_json(text)
    assert to_json(resource) == text
    refused = set()
    for entry in entries(dump(resource)):
        assert not isinstance(entry.read, Resource)
        refused |= {(problem.path[-1], problem.rule.partition(":")[0]) for problem in entry.read}
    assert refused
    assert refused <= {("services", "is not enforced here"), ("http", "is not enforced here")}


def paths(value: object, prefix: str = "") -> Iterator[str]:
    """Yield every path in `value`, list entries all as "[]"."""
    if isinstance(value, dict):
        for key, below in value.items():
            path = f"{prefix}.{key}" if prefix else key
            yield path
            yield from paths(below, path)
    if isinstance(value, list):
        for entry in value:
            yield from paths(entry, f"{prefix}[]")


def written() -> dict[str, set[str]]:
    """Return the paths that the files have, by kind."""
    found: dict[str, set[str]] = {}
    for name in NAMES:
        [document] = documents((GOLDEN / f"{name}.yaml").read_text(), name)
        found.setdefault(document.value["kind"], set()).update(paths(document.value))
    return found


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.cls is not Unknown], ids=lambda kind: kind.name
)
def test_the_files_of_a_kind_have_each_of_its_fields(kind: Kind) -> None:
    known = {row.path for row in reference.rows(kind.cls) if row.allowed != reference.NOT_IN_FILES}
    assert sorted(known - written()[kind.name]) == []


def test_the_files_have_each_field_of_the_metadata() -> None:
    known = {row.path for row in reference.rows(Metadata, "metadata.")} - {"metadata.resourceVersion"}
    assert known <= set().union(*written().values())
