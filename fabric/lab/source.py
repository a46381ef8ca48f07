"""Read a YAML file that a person wrote into plain values that know their lines; collect what is wrong with it.

Not `fabric.model.yaml`, which reads resources: there a scalar becomes the number or truth it stands for, and
`<<` is a key like any other. Here a scalar stays the text that was written (`8080:53`, `1.10`, `off`), its
type says what YAML would have made of it, and merge keys work. From both come libyaml's events, not
composed nodes: only there can depth be refused before the recursion happens.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fabric.errors import ConfigError

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 40
TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
MAX_VALUES = 200_000  # once aliases are expanded: a few nested ones multiply without bound

Raw: TypeAlias = "str | list[Raw] | dict[str, Raw] | None"
Place: TypeAlias = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class Number(str):
    """A scalar that YAML reads as a number; still the text that was written."""

    __slots__ = ()


class Boolean(str):
    """A scalar that YAML reads as true or false; still the text that was written."""

    __slots__ = ()


_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_NUMBER = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_TAGS = {None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))}


@dataclass(slots=True)
class Source:
    """One file as it was read; `fault` collects what is wrong, so that one run shows everything.

    `state` ends every error: what did not happen because of it.
    """

    path: Path
    text: str
    state: str = "nothing was started"
    value: Raw = None
    lines: dict[Place, int] = field(default_factory=dict)
    origins: dict[Place, Place] = field(default_factory=dict)  # of what an alias or a merge key brought
    found: list[tuple[int, str]] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """Return the line, from 1, where `place` was written, or the nearest of its parents."""
        line, at = self.lines.get((), 1), ()  # type: tuple[int, Place]
        for part in place:
            at = (*at, part)
            origin = self.origins.get(at, at)
            if at not in self.lines and origin not in self.lines:
                break
            line, at = self.lines.get(at) or self.lines[origin], origin
        return line

    def fault(self, place: Place, why: str) -> None:
        """Note that what stands at `place` is wrong; the same twice counts once."""
        self.fault_at(self.line(place), f"{'.'.join(map(str, place)) or 'file'}: {why}")

    def fault_at(self, line: int, why: str) -> None:
        why = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in why)
        if (line, why) not in self.found:
            self.found.append((line, why))

    def error(self) -> ConfigError:
        """Return what was found as one error, in the order of the file."""
        found = sorted(self.found, key=lambda fault: fault[0])
        return ConfigError("\n".join([*(f"{self.path}:{line}: {why}" for line, why in found), self.state]))

    def check(self) -> None:
        """Raise what was found, if anything was."""
        if self.found:
            raise self.error()


def read(path: Path, *, what: str, state: str = "nothing was started") -> Source:
    """Return the file's value with its lines; `what` it should be ends the message if it is not there.

    Raises:
        ConfigError: it cannot be read, or is not YAML, or beyond a cap.
    """
    return parse(text_of(path, what), path, state=state)


def text_of(path: Path, what: str) -> str:
    """Return the text of a file, of MAX_BYTES at most.

    Raises:
        ConfigError: it cannot be read, or is larger, or not text, or no regular file: what is read of a
            pipe is gone for the next command, and may never come.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: is no regular file; name {what}")
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}; name {what}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: is not UTF-8 text; name {what}") from err
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 1024} KiB; name {what}")
    return text


def parse(text: str, path: Path, *, state: str = "nothing was started") -> Source:
    """Return the one document in `text`; `path` names it in messages.

    Raises:
        ConfigError: it is not YAML, or beyond a cap.
    """
    source = Source(path, text, state)
    try:
        source.value = _Reader(source).document()
    except yaml.MarkedYAMLError as err:
        mark: Any = err.problem_mark or err.context_mark
        line = min(mark.line, text.rstrip().count("\n")) + 1  # at its end libyaml counts one more
        problem = str(err.problem or err.context)
        if "maximum nesting depth" in problem:  # libyaml's own cap, in PyYAML 6.0.4 and later, is met first
            problem = TOO_DEEP
        source.fault_at(line, f"not YAML: {problem}")
    except yaml.YAMLError as err:  # a character that YAML does not allow
        source.fault_at(1, f"not YAML: {' '.join(str(err).split())}")
    source.check()
    return source


@dataclass(frozen=True, slots=True)
class _Anchored:
    value: Raw
    place: Place
    size: int
    height: int  # how deep it nests below itself


class _Reader:
    """One pass over libyaml's events; `_node` recurses, at most MAX_DEPTH deep."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.events: Iterator[Any] = yaml.parse(source.text, Loader=yaml.CSafeLoader)
        self.anchors: dict[str, _Anchored] = {}
        self.values = self.deepest = 0

    def document(self) -> Raw:
        next(self.events)  # the stream begins
        if not isinstance(next(self.events), yaml.DocumentStartEvent):
            return {}
        value = self._node(next(self.events), ())
        next(self.events)  # the document ends
        if isinstance(more := next(self.events), yaml.DocumentStartEvent):
            raise _error(more, "a second document; the file is one")
        return value

    def _node(self, event: Any, place: Place) -> Raw:
        self.source.lines.setdefault(place, _line(event))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, place)
        before, deepest = self.values, self.deepest
        self.deepest = len(place)
        self._grow(event, 1, len(place))
        if event.tag not in _TAGS:
            raise _error(event, f"the tag {event.tag} is not supported")
        value = self._value(event, place)
        if event.anchor:
            size, height = self.values - before, self.deepest - len(place)
            self.anchors[event.anchor] = _Anchored(value, place, size, height)
        self.deepest = max(deepest, self.deepest)
        return value

    def _value(self, event: Any, place: Place) -> Raw:
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Raw] = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                items.append(self._node(item, (*place, len(items))))
            return items
        return str(event.value) if event.tag or not event.implicit[0] else _plain(event.value)

    def _mapping(self, place: Place) -> dict[str, Raw]:
        own: dict[str, Raw] = {}
        merge = None
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _error(event, "a key must be text")
            key = event.value
            if key in own:
                raise _error(event, f'"{key}" stands twice, first on line {self.source.lines[*place, key]}')
            # The line of a field is its key's: that of a block value is the next one.
            self.source.lines[*place, key] = _line(event)
            own[key] = self._node(next(self.events), (*place, key))
            if key == "<<" and event.implicit[0]:
                merge = event
        return self._merged(merge, own, place) if merge else own

    def _merged(self, event: Any, own: dict[str, Raw], place: Place) -> dict[str, Raw]:
        found, origins = own.pop("<<"), self.source.origins
        each = enumerate(found) if isinstance(found, list) else [(None, found)]
        for i, one in each:
            if not isinstance(one, dict):
                raise _error(event, "<< merges mappings only")
            at = (*place, "<<") if i is None else (*place, "<<", i)
            at = origins.get(at, at)
            for key in one.keys() - own.keys():  # the mapping's own come first, then the first that has it
                inner = (*at, key)
                origins[*place, key] = origins.get(inner, inner)
            own = one | own
        return own

    def _alias(self, event: Any, place: Place) -> Raw:
        anchored = self.anchors.get(event.anchor)
        if not anchored:
            raise _error(event, f"alias *{event.anchor} has no anchor before it")
        self._grow(event, anchored.size, len(place) + anchored.height)
        self.source.origins[place] = self.source.origins.get(anchored.place, anchored.place)
        return anchored.value

    def _grow(self, event: Any, values: int, depth: int) -> None:
        self.values += values
        self.deepest = max(self.deepest, depth)
        if self.values > MAX_VALUES:
            raise _error(event, f"more than {MAX_VALUES} values once its aliases are expanded")
        if depth > MAX_DEPTH:
            raise _error(event, TOO_DEEP)


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _error(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _plain(text: str) -> str | None:
    if text in _NULL:
        return None
    if _BOOLEAN.fullmatch(text):
        return Boolean(text)
    return Number(text) if _NUMBER.fullmatch(text) else text


def explain(detail: ErrorDetails, names: Iterable[str]) -> str:
    """Return what a pydantic error says in the words of this project; `names` are the fields there are."""
    match detail["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"is no field here{did_you_mean(detail['loc'][-1], names)}; remove it"
        case "value_error":
            return str(detail["ctx"]["error"])
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a mapping of fields"
        case "tuple_type" | "list_type":
            return "must be a list"
        case "too_short":
            return f"must have at least {detail['ctx']['min_length']}"
        case "too_long":
            return f"must have at most {detail['ctx']['max_length']}"
    return detail["msg"][0].lower() + detail["msg"][1:]


def did_you_mean(name: object, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), sorted({*names} - {str(name)}), 1, 0.7)
    return f' (did you mean "{close[0]}"?)' if close else ""


def validated(
    source: Source,
    model: type[Model],
    explain: Callable[[ErrorDetails, Iterable[str]], str] = explain,
) -> Model:
    """Return the file as a `model`.

    Raises:
        ConfigError: it is not one; every fault is reported, those noted before included.
    """
    try:
        return model.model_validate(source.value)
    except ValidationError as err:
        names = set(_names(model, set()))
        for detail in err.errors():
            source.fault(_place(source.value, detail["loc"]), explain(detail, names))
        raise source.error() from err


def _place(value: Any, loc: Place) -> Place:
    """Return `loc` less what pydantic puts in that the file does not have, such as a union's tag."""
    place: Place = ()
    for i, part in enumerate(loc):
        inside = (
            part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        )
        if inside:
            place, value = (*place, part), value[part]
        elif i == len(loc) - 1 and part != "[key]":
            place = (*place, part)
    return place


def _names(kind: Any, seen: set[Any]) -> Iterator[str]:
    """Yield the name of every field of a model and of those below it."""
    if not isinstance(kind, type) or not issubclass(kind, BaseModel):
        for inner in get_args(kind):
            yield from _names(inner, seen)
    elif kind not in seen:
        seen.add(kind)
        for name, info in kind.model_fields.items():
            yield info.alias or name
            yield from _names(info.annotation, seen)
