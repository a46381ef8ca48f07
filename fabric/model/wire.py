"""Turn a resource into the JSON that Calico's tools keep in etcd, and back.

Validation errors become `Problem` values, so that a file's reader can add the line and a store's reader
the key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_core import from_json as parse_json

from fabric.errors import ConfigError
from fabric.model.base import API_VERSION, Model, Path, Resource, Unknown, tree
from fabric.model.kinds import did_you_mean, named, resource_class

NO_SUCH_FIELD = "no such field"  # and perhaps a hint behind it

_MAX_SHOWN = 60
_MAX_HINTS = 50  # mistakes of one resource: each hint compares with every field there is


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


def from_place(text: str, plural: str, namespace: str | None, name: str) -> Resource:
    """Return the resource that `text` holds, stored under `plural`, `namespace` (None: cluster-wide) and `name`.

    Raises:
        ConfigError: as from `from_json`, and where it says that it is another object.
    """
    resource = from_json(text)
    metadata, kind = resource.metadata, named(resource.kind)
    own_name = f"{metadata.namespace or 'default'}/{metadata.name}" if namespace else metadata.name
    place = f"{plural}/{namespace}/{name}" if namespace else f"{plural}/{name}"
    if f"{kind.plural if kind else plural}/{own_name}" != place:
        raise ConfigError(f"says it is {resource.kind} {own_name}, but is stored as {place}")
    return resource


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
        return tuple(_problem(error, cls if at < _MAX_HINTS else None) for at, error in enumerate(details))


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
    "model_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number, and not as large",
    "int_from_float": "must be a whole number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries, not {actual_length}",
    "too_short": "must have at least {min_length} entry",
    "literal_error": "must be {expected}",
    "broken_rule": "{rule}",
    "value_error": "{error}",
}


def _problem(error: ErrorDetails, cls: type[Resource] | None) -> Problem:
    """Return the error in our words, with the field that is close to an unknown one of a `cls`."""
    context, value = error.get("ctx", {}), shown(error["input"])
    rule = _RULES[error["type"]].format_map(context) if error["type"] in _RULES else error["msg"]
    match error:
        case {"type": "broken_rule"}:
            return Problem((*error["loc"], *context["path"]), shown(context["value"]), rule)
        case {"type": "missing", "input": {"generateName": _}, "loc": ("metadata", "name")}:
            rule = "is required: no name is made of generateName"
        case {"type": "extra_forbidden", "loc": (*path, str(name))}:
            hint = did_you_mean(name, _fields(cls, path)) if cls else ""
            return Problem(error["loc"], "", NO_SUCH_FIELD + hint)
        case {"type": "string_type", "input": bool() | int() | float()}:
            rule += "; put it in quotes"
        case {"type": "int_type", "input": str(text)} if text.isdecimal():
            rule += "; leave the quotes out"
    return Problem(error["loc"], value, rule)


def _fields(cls: type[Model], path: list[str | int]) -> list[str]:
    """Return the fields of what stands at `path` in a `cls`."""
    models = [cls]
    for step in path:
        if isinstance(step, str):
            found = [
                field for model in models for field in model.model_fields.values() if field.alias == step
            ]
            models = [model for field in found for model in _models(field.annotation)]
    return [str(field.alias) for model in models for field in model.model_fields.values()]


def _models(annotation: Any) -> Iterator[type[Model]]:
    """Yield the models in an annotation, such as the Rule of `tuple[Rule, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
