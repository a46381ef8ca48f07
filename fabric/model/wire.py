"""Turn a resource into the JSON that Calico's tools keep in etcd, and back.

Validation errors become `Problem` values, so that a file's reader can add the line and a store's reader
the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_core import from_json as parse_json

from fabric.errors import ConfigError
from fabric.model.base import API_VERSION, Path, Resource, Unknown, tree
from fabric.model.kinds import resource_class

_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule; `value` is what stood there, as JSON, empty where it would not help."""

    path: Path
    value: str
    rule: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (dotted(self.path), self.value, self.rule)))


def to_json(resource: Resource) -> str:
    """Return the value to store: compact, in Calico's order, defaults filled in, empty fields left out."""
    return json.dumps(tree(resource.as_written()), separators=(",", ":"), ensure_ascii=False)


def from_json(text: str) -> Resource:
    """Return the resource that `text`, a value from etcd, holds; unknown fields and kinds are kept.

    Raises:
        ConfigError: it is no JSON, or breaks a rule of its kind; the message names every field.
    """
    try:
        value = parse_json(text.encode(), allow_inf_nan=False)  # no UTF-8 in etcd is a lone surrogate here
    except ValueError as err:
        raise ConfigError(f"stored value is no JSON: {err}") from None
    read = from_tree(value)
    if isinstance(read, Resource):
        return read
    raise ConfigError(f"{describe(value)}: {'; '.join(map(str, read))}")


def from_tree(value: object, unknown: Literal["allow", "forbid"] = "allow") -> Resource | tuple[Problem, ...]:
    """Return the resource that plain JSON values make up, or everything that is wrong with them.

    `unknown` says what becomes of a field that a modelled kind does not have.
    """
    if not isinstance(value, Mapping):
        return (Problem((), shown(value), "a resource is a mapping with apiVersion, kind and metadata"),)
    api_version, kind = value.get("apiVersion", API_VERSION), value.get("kind")
    if not (isinstance(kind, str) and kind and isinstance(api_version, str) and api_version):
        return (Problem(("kind",), shown(kind), "a resource needs a kind and an apiVersion, both text"),)
    try:
        cls = resource_class(kind, api_version)
        extra: Literal["allow", "forbid"] = "allow" if cls is Unknown else unknown
        return cls.model_validate(value, by_alias=True, by_name=False, extra=extra)
    except ValidationError as err:
        # A default derived from a field that is itself wrong is no second mistake.
        details = [d for d in err.errors(include_url=False) if d["type"] != "default_factory_not_called"]
        return tuple(map(_problem, details))


def describe(value: object) -> str:
    """Return `Kind name` for messages about a tree that may be anything."""
    if not isinstance(value, Mapping):
        return "resource"
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return f"{value.get('kind', 'resource')} {name}" if name else str(value.get("kind", "resource"))


def dotted(path: Path) -> str:
    """Return a path as operators write it, `spec.ingress[0].action`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def shown(value: object) -> str:
    """Return a scalar as JSON, cut to a line; collections are too long to help."""
    if value is None or isinstance(value, Mapping | list | tuple):
        return ""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


_RULES = {
    "missing": "is required",
    "extra_forbidden": "no such field",
    "model_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "tuple_type": "must be a list",
}


def _problem(error: ErrorDetails) -> Problem:
    if error["type"] == "broken_rule":
        broken = error["ctx"]
        return Problem((*error["loc"], *broken["path"]), shown(broken["value"]), broken["rule"])
    value = "" if error["type"] in {"missing", "extra_forbidden"} else shown(error["input"])
    rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    match error:
        case {"type": "too_long", "ctx": {"max_length": limit, "actual_length": length}}:
            rule = f"must have at most {limit} entries, not {length}"
        case {"type": "too_short", "ctx": {"min_length": limit}}:
            rule = f"must have at least {limit} entry"
    return Problem(error["loc"], value, _RULES.get(error["type"], rule))
