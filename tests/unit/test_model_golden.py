"""Files in golden/model: what an operator writes (YAML) and what must be in etcd for it (JSON)."""

import json
from pathlib import Path

import pytest

from fabric.model.base import Resource, Unknown
from fabric.model.kinds import KINDS
from fabric.model.wire import from_json, to_json
from fabric.model.yaml import dump, load_resources

GOLDEN = Path(__file__).parent / "golden" / "model"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))


def load(name: str) -> Resource:
    path = GOLDEN / f"{name}.yaml"
    [resource] = load_resources(path.read_text(), path.name)
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
    [again] = load_resources(dump(resource), "printed.yaml")
    assert again == resource


@pytest.mark.parametrize("name", NAMES)
def test_json_is_read_as_a_file_too(name: str) -> None:
    [resource] = load_resources(json.dumps(json.loads(stored(name)), indent=2), "stored.json")
    assert to_json(resource) == stored(name)


def test_every_modelled_kind_has_a_golden_file() -> None:
    modelled = {kind.name for kind in KINDS if kind.cls is not Unknown}
    assert {load(name).kind for name in NAMES} >= modelled
