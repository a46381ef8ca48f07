"""Turn a resource into the JSON that Calico's tools keep in etcd, and back.

Validation errors become `Problem` values, so that a file's reader can add the line and a store's reader
the key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Literal, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_core import from_json as parse_json

from fabric.errors import ConfigError
from fabric.model import extensions
from fabric.model.base import API_VERSION, IN_A_FILE, Model, Path, Resource, Unknown, tree
from fabric.model.kinds import did_you_mean, named, resource_class

NO_SUCH_FIELD = "no such field"  # and perhaps a hint behind it

_MAX_SHOWN = 60
_MAX_ROUNDS = 8
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
        reason = str(err).replace("EOF while parsing", "it ends inside")
        raise ConfigError(f"stored value is no JSON: {reason}") from None
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

    `unknown` says what becomes of a field that a modelled kind does not have. Forbidden, as in files, it is
    an error, and everything wrong includes the rules about several fields of which one is wrong itself, those
    about annotations of ours, and the fields that are not for files.
    """
    if not isinstance(value, Mapping):
        return (Problem((), shown(value), "a resource is a mapping with apiVersion, kind and metadata"),)
    api_version, kind = value.get("apiVersion", API_VERSION), value.get("kind")
    if not (isinstance(kind, str) and kind and isinstance(api_version, str) and api_version):
        return (Problem(("kind",), shown(kind), "a resource needs a kind and an apiVersion, both text"),)
    context = IN_A_FILE if unknown == "forbid" else None
    said = tuple(_annotations(kind, value)) if context else ()
    try:
        cls = resource_class(kind, api_version)
        extra: Literal["allow", "forbid"] = "allow" if cls is Unknown else unknown
        read = cls.model_validate(value, by_alias=True, by_name=False, extra=extra, context=context)
        return said or read
    except ValidationError as err:
        details = _mistakes(err.errors(include_url=False))

    def errors(changed: object) -> list[ErrorDetails]:
        try:
            cls.model_validate(changed, by_alias=True, by_name=False, extra=extra, context=context)
        except ValidationError as err:
            return _mistakes(err.errors(include_url=False))
        return []

    if context:  # an operator is to mend it; the agent, that reads what is stored, must not wait
        details += _hidden(value, details, errors)
    found = (_problem(error, cls if at < _MAX_HINTS else None) for at, error in enumerate(details))
    return (*found, *said)


def _annotations(kind: str, value: Mapping[str, Any]) -> Iterator[Problem]:
    metadata, spec = value.get("metadata"), value.get("spec")
    given = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    if not isinstance(given, Mapping):
        return
    texts = {key: text for key, text in given.items() if isinstance(text, str)}
    wrong = extensions.problems(kind, texts, spec if isinstance(spec, Mapping) else {})
    for key in filter(wrong.__contains__, texts):
        yield Problem(("metadata", "annotations", key), shown(texts[key]), wrong[key])


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


_GONE = object()
# For each required field of any kind, one value that it takes.
_STAND_INS: tuple[object, ...] = (
    "Allow", "x", 1, "192.0.2.0/24", "192.0.2.1", "Accept", "TCP", "Exists", "1:1", "x.x/y", {}, ["BGP"],
)  # fmt: skip

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


def _mistakes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the errors that are none because of another one: a derived default, a list of wrong entries."""
    wrong = {path[:depth] for path in map(_path, details) for depth in range(len(path))}
    return [
        error
        for error in details
        if error["type"] != "default_factory_not_called"
        and not (error["type"] == "too_short" and _path(error) in wrong)
    ]


def _hidden(
    value: object, details: list[ErrorDetails], errors: Callable[[object], list[ErrorDetails]]
) -> list[ErrorDetails]:
    """Return the errors that `details` hid: a rule about several fields is looked at when each is sound.

    What is wrong is taken out, or where something must stand replaced, until nothing new comes. An error
    that is there only because of that is left out.
    """
    found: list[ErrorDetails] = []
    unsure: set[Path] = set()  # taken out or replaced, so nobody knows what was meant
    edits: dict[Path, object] = {}
    fresh = details
    for _ in range(_MAX_ROUNDS):
        before = dict(edits)
        if len(details) + len(found) > _MAX_HINTS:
            return found
        for error in fresh:
            path = _path(error)
            meant = _meant(error["input"])
            edits[path] = _GONE if meant is None or meant == edits.get(path) else meant
            if edits[path] is _GONE:
                unsure.add(path)
        fresh = []
        now = _located(value, edits, errors)
        required = {_path(error) for error in now if error["type"] == "missing"} & unsure
        _stand_in(value, edits, required, errors)
        for error in now:
            path = _path(error)
            if path in required:
                continue
            if path in edits and edits[path] is not _GONE:
                edits[path] = _GONE
                unsure.add(path)
            elif not _follows(error, unsure):
                fresh.append(error)
            elif not any(at[: len(path)] == path for at in unsure):
                edits[path] = _GONE  # it hides the rules behind it
                unsure.add(path)
        found += fresh
        if not now or (edits == before and not fresh):
            return found
    return found


def _located(
    value: object, edits: Mapping[Path, object], errors: Callable[[object], list[ErrorDetails]]
) -> list[ErrorDetails]:
    """Return the errors of `value` changed by `edits`, located as in `value`."""
    kept: dict[Path, list[int]] = {}
    located = errors(_edited(value, edits, (), kept))
    for error in located:
        path: Path = ()
        for step in error["loc"]:
            known = kept.get(path) if isinstance(step, int) else None
            path = (*path, known[step] if known and isinstance(step, int) else step)
        error["loc"] = path
    return located


def _edited(value: object, edits: Mapping[Path, object], path: Path, kept: dict[Path, list[int]]) -> object:
    """Return `value` changed by `edits`; `kept` gets the old indices of each list that lost some."""
    if isinstance(value, Mapping):
        put = {at[-1]: new for at, new in edits.items() if at and at[:-1] == path and new is not _GONE}
        return {
            key: _edited(below, edits, (*path, key), kept)
            for key, below in value.items()
            if (*path, key) not in edits
        } | put
    if isinstance(value, list | tuple):
        kept[path] = [at for at in range(len(value)) if edits.get((*path, at)) is not _GONE]
        return [edits.get((*path, at), _edited(value[at], edits, (*path, at), kept)) for at in kept[path]]
    return value


def _meant(value: object) -> str | None:
    """Return the prefix that one with host bits set stands for: no doubt what was meant."""
    try:
        return str(ip_network(value, strict=False)) if isinstance(value, str) and "/" in value else None
    except ValueError:
        return None


def _stand_in(
    value: object,
    edits: dict[Path, object],
    required: set[Path],
    errors: Callable[[object], list[ErrorDetails]],
) -> None:
    """Put into `edits` for each of the `required` fields a value that it takes, where one is known."""
    for new in _STAND_INS:
        if not (left := {path for path in required if edits[path] is _GONE}):
            return
        now = [_path(error) for error in _located(value, {**edits, **dict.fromkeys(left, new)}, errors)]
        wrong = {at[:depth] for at in now for depth in range(len(at) + 1)}
        edits.update(dict.fromkeys(left - wrong, new))


def _follows(error: ErrorDetails, unsure: set[Path]) -> bool:
    """Whether `error` may be there only because what is `unsure` is not what was meant."""
    path, needs = _path(error), error.get("ctx", {}).get("needs")
    doubted = [(*error["loc"], need) for need in needs or ()]
    return any(
        path[: len(at)] == at
        or (at[: len(path)] == path and needs is None)
        or any(at[: len(need)] == need for need in doubted)
        for at in unsure
    )


def _path(error: ErrorDetails) -> Path:
    """Return where the error is; one of a mapping's key is at the entry."""
    loc = error["loc"][:-1] if error["loc"][-1:] == ("[key]",) else error["loc"]
    return (*loc, *error.get("ctx", {}).get("path", ()))


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
