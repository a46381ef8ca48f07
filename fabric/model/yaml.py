"""Read YAML or JSON files into values that know their lines, and into resources; write resources as YAML.

The scalars are those of YAML 1.2's core schema, not PyYAML's YAML 1.1: `8080:53` and `off` stay text. Files
come from people and their tools, so size, depth and aliases are capped, a key given twice is an error,
and a field that a kind does not have is one too (a stored resource may have any).

The values are built from libyaml's events rather than from composed nodes: only there can depth be
refused before the recursion happens, and a quoted `1` be told from a plain one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

import yaml

from fabric.errors import ConfigError
from fabric.model.base import Path, Resource, tree, value_at
from fabric.model.kinds import KINDS, KUBERNETES, did_you_mean, named
from fabric.model.wire import Problem, from_tree, shown

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
MAX_ALIASES = 100
MAX_VALUES = 500_000  # after aliases are expanded: a few nested ones can multiply without bound
TOO_LARGE = f"larger than {MAX_BYTES // 1024 // 1024} MiB; split the file"
MAX_BROKEN = 100  # documents that are no YAML, before the rest of a file is left unread

_MAX_DIGITS = 100

_TELLING = {("kind",), ("metadata", "name")}

# What Kubernetes' server writes into metadata, and prints; no file decides it.
_SERVERS = {"managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"}

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {word: word[0] in "tT" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_BEGIN = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)
# What libyaml refuses, and says so as soon as it has read that far, even in the midst of an earlier document.
_FOREIGN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# JSON writes what lies beyond U+FFFF as two escapes, YAML as one.
_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `lines` counts from 1 and has every path that was written out (an alias: its own).

    `texts` has what was written where a value no longer tells, such as 007.
    """

    value: Any
    lines: Mapping[Path, int]
    texts: Mapping[Path, str] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """Return where `path` is, or for one that is not there the nearest of its parents."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource of a file, or everything that is wrong with it; `kind` and `name` are "" where not told."""

    kind: str
    name: str
    read: Resource | tuple[Problem, ...]
    document: Document
    path: Path = ()  # of the resource in its document

    def line(self, path: Path = ()) -> int:
        """Return where the resource is, or where `path` in it is."""
        return self.document.line((*self.path, *path))


def unreadable(line: int, rule: str, kind: str = "", name: str = "") -> Entry:
    """Return the entry that stands for what cannot be read, of which `kind` and `name` may still be known."""
    return Entry(kind, name, (Problem((), "", rule),), Document(None, {(): line}))


def documents(text: str, filename: str) -> list[Document]:
    """Return every document of `text` that is not empty.

    Raises:
        ConfigError: it is not YAML, or beyond a cap; the message begins with FILE:LINE.
    """
    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        raise ConfigError(f"{filename}: {TOO_LARGE}")
    found = []
    for document in _documents(text):
        if isinstance(document, _Unreadable):
            raise ConfigError(f"{filename}:{document.line}: {document}")
        found.append(document)
    return found


def entries(text: str) -> Iterator[Entry]:
    """Yield every resource of a file, sound or not, in order; lists and `…List` kinds are taken apart.

    What is no YAML is one entry, and reading goes on at the next line that begins a document. The caller
    caps the size.
    """
    for document in _documents(text):
        if isinstance(document, _Unreadable):
            yield unreadable(document.line, str(document), *document.told)
        else:
            for path, value in _items(document.value):
                yield Entry(*_told(value), _as_written(_resource(value), document, path), document, path)


def _as_written(
    read: Resource | tuple[Problem, ...], document: Document, path: Path
) -> Resource | tuple[Problem, ...]:
    """Return the problems of `read` with the values as the file has them."""
    if isinstance(read, Resource):
        return read
    texts = document.texts
    return tuple(
        replace(problem, value=texts.get((*path, *problem.path), problem.value)) if problem.value else problem
        for problem in read
    )


def with_unknown(entry: Entry) -> Resource | tuple[Problem, ...]:
    """Return `entry` read with the fields that its kind does not have, or what else is wrong with it."""
    if isinstance(entry.read, Resource):
        return entry.read
    return _resource(value_at(entry.document.value, entry.path), unknown="allow")


def dump(resource: Resource) -> str:
    """Return `resource` as one block-style document, keys in Calico's order."""
    return dump_tree(tree(resource))


def dump_tree(value: object) -> str:
    """Return JSON values as one block-style document that reads back as the same values."""
    return str(
        yaml.dump(
            value,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=False,
            width=110,
        )
    )


def _documents(text: str) -> Iterator[Document | _Unreadable]:
    """Yield each document that is not empty; in place of one that cannot be read, why.

    After that it goes on at the next "---", of which YAML allows none inside a document.
    """
    text = text.removeprefix("\ufeff")
    if text.lstrip()[:1] in {"{", "["}:
        text = _PAIR.sub(_joined, text)
    reader = _Reader(text)
    for _ in range(MAX_BROKEN):
        try:
            yield from (document for document in reader.documents() if document.value is not None)
            return
        except _Unreadable as err:
            err.told = reader.told.get(("kind",), ""), reader.told.get(("metadata", "name"), "")
            yield err
            if err.final or not reader.skip(err.index):
                return
    line = reader.line
    yield _Unreadable(line, 0, f"{MAX_BROKEN} documents before it cannot be read; the rest was not looked at")


def _joined(match: re.Match[str]) -> str:
    high, low = (int(digits, 16) for digits in match.group(2, 3))
    return f"{match[1]}\\U{0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00:08x}"


def _told(value: object) -> tuple[str, str]:
    """Return the kind and the name that a tree gives itself, "" for what is no text."""
    if not isinstance(value, dict):
        return "", ""
    metadata = value.get("metadata")
    texts = value.get("kind"), metadata.get("name") if isinstance(metadata, dict) else None
    kind, name = (text if isinstance(text, str) else "" for text in texts)
    return kind, name


def _items(value: Any) -> Iterator[tuple[Path, Any]]:
    """Yield each resource of a document with its path: a list, a `…List` kind, or the document itself."""
    if isinstance(value, list):
        yield from (((index,), item) for index, item in enumerate(value))
        return
    items = value.get("items") if isinstance(value, dict) else None
    if isinstance(items, list) and str(value.get("kind")).endswith("List"):
        yield from ((("items", index), item) for index, item in enumerate(items))
        return
    yield (), value


def _resource(
    value: object, unknown: Literal["allow", "forbid"] = "forbid"
) -> Resource | tuple[Problem, ...]:
    """Read one resource as an operator means it: stricter than `from_tree`, which takes what is stored."""
    if isinstance(value, dict):
        if problem := _wrong_kind(value):
            return (problem,)
        if isinstance(metadata := value.get("metadata"), dict):
            value = {**value, "metadata": {key: metadata[key] for key in metadata if key not in _SERVERS}}
        value, wrong = _identified(value)
        read = from_tree(value, unknown=unknown)
        return (*(() if isinstance(read, Resource) else read), *wrong) or read
    return from_tree(value, unknown=unknown)


def _identified(value: dict[str, Any]) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """Return a resource with the name that follows from its spec, and what is wrong with name and namespace."""
    metadata, spec = value.get("metadata", {}), value.get("spec")
    kind = named(value["kind"], value["apiVersion"])
    if not isinstance(metadata, dict):
        return value, ()
    namespace = metadata.get("namespace")
    if kind and not kind.namespaced and isinstance(namespace, str) and namespace:
        rule = f"{kind.name} is cluster-wide, leave the namespace out"
        return value, (Problem(("metadata", "namespace"), shown(namespace), rule),)
    if not (kind and kind.name == "WorkloadEndpoint" and isinstance(spec, dict)):
        return value, ()
    from fabric.model.workloadendpoint import name_fields, name_of  # heavy, and most files have none

    parts = [(field, spec.get(field) or "") for field in name_fields(str(spec.get("orchestrator")))]
    wrong = tuple(
        Problem(("spec", field), "", "is required: the name is made of it")
        if part == ""
        else Problem(("spec", field), shown(part), 'must not begin or end with "-"')
        for field, part in dict(parts).items()
        if part == "" or str(part) != str(part).strip("-")
    )
    given, wanted = metadata.get("name"), name_of(str(part) for _, part in parts)
    if wrong or not given:
        name = given or (wanted if not wrong else "unknown")
        return {**value, "metadata": {**metadata, "name": name}}, wrong
    if given != wanted and isinstance(given, str):
        rule = f'must be "{wanted}", which the spec says; or leave it out'
        return value, (Problem(("metadata", "name"), shown(given), rule),)
    return value, ()


def _wrong_kind(value: dict[str, Any]) -> Problem | None:
    api_version, kind = value.get("apiVersion"), value.get("kind")
    known = [known.name for known in (*KINDS, *KUBERNETES) if known.api_version == api_version]
    if not known:
        *others, last = dict.fromkeys(kind.api_version for kind in (*KINDS, *KUBERNETES))
        return Problem(("apiVersion",), shown(api_version), f"must be {', '.join(others)} or {last}")
    if kind in known:
        return None
    if not isinstance(kind, str):
        return Problem(("kind",), shown(kind), "is required, and is text")
    hint = did_you_mean(kind, known)
    return Problem(("kind",), shown(kind), f"no kind of {api_version}{hint}")


def _plain(text: str) -> Any:
    """Return what a plain scalar means in the core schema. Raises ValueError for what JSON cannot hold."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) or _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
        return _integer(text)
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not isfinite(float(text))):
        raise ValueError("infinity and not-a-number cannot be stored")
    return float(text) if _FLOAT.fullmatch(text) else text


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has at most {_MAX_DIGITS} digits")
    return int(text, 0 if text.startswith("0") and text[1:2] in {"o", "x"} else 10)


@dataclass(frozen=True, slots=True)
class _Anchored:
    """What an alias stands for; `height` is how deep it nests below itself."""

    value: Any
    size: int
    height: int


class _Unreadable(Exception):
    """The document at `index`, counted in characters, is no YAML, or beyond a cap; none after it if `final`."""

    def __init__(self, line: int, index: int, rule: str, *, final: bool = False) -> None:
        super().__init__(rule)
        self.line, self.index, self.final = line, index, final
        self.told = ("", "")  # kind and name, as far as they were read


class _Reader:
    """One pass over libyaml's events; `_node` recurses, at most MAX_DEPTH deep."""

    def __init__(self, text: str) -> None:
        self.foreign = {match.start(): ord(match[0]) for match in _FOREIGN.finditer(text)}
        self.text = _FOREIGN.sub("\ufffd", text) if self.foreign else text
        self.begin = 0  # where the events and their positions count from
        self.line = 1
        self.started = 0  # the document being read
        self.anchors: dict[str, _Anchored] = {}
        self.lines: dict[Path, int] = {}
        self.texts: dict[Path, str] = {}
        self.told: dict[Path, str] = {}
        self.values = self.aliases = self.deepest = 0

    def documents(self) -> Iterator[Document]:
        """Yield the documents from `begin` on. Raises _Unreadable, after which `skip` finds a new beginning."""
        self.events: Iterator[Any] = yaml.parse(self.text[self.begin :], Loader=yaml.CSafeLoader)
        try:
            for event in self.events:
                if isinstance(event, yaml.DocumentStartEvent):
                    self.anchors, self.lines, self.texts, self.told = {}, {}, {}, {}
                    self.started = self._index(event)
                    value = self._node(next(self.events), ())
                    self._refuse_foreign(self._index(next(self.events)))
                    yield Document(value, self.lines, self.texts)
        except yaml.MarkedYAMLError as err:
            mark: Any = err.problem_mark or err.context_mark
            rule = str(err.problem or err.context)
            if "maximum nesting depth" in rule:  # libyaml's own cap, in PyYAML 6.0.4 and later, is met first
                rule = TOO_DEEP
            raise _Unreadable(self.line + mark.line, self.begin + mark.index, rule) from None

    def skip(self, index: int) -> bool:
        """Begin again at the next document at or behind `index`; False where there is none."""
        match = _BEGIN.search(self.text, max(index, self.started + 1, self.begin + 1))
        if match is None:
            return False
        self.line += self.text.count("\n", self.begin, match.start())
        self.begin = match.start()
        return True

    def _node(self, event: Any, path: Path) -> Any:
        self.lines.setdefault(path, self._line(event))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        before, deepest = self.values, self.deepest
        self.deepest = len(path)
        self._grow(event, 1, len(path))
        value = self._collection(event, path)
        if event.anchor:
            size, height = self.values - before, self.deepest - len(path)
            self.anchors[event.anchor] = _Anchored(value, size, height)
        self.deepest = max(deepest, self.deepest)
        return value

    def _collection(self, event: Any, path: Path) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
            if isinstance(value, int | float) and json.dumps(value) != event.value:
                self.texts[path] = event.value
            return value
        if event.tag not in {None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}:
            raise self._error(event, f"tag {event.tag} is not supported")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        return self._sequence(path)

    def _mapping(self, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "a key must be text")
            if event.value in value:
                first = self.lines[(*path, event.value)]
                raise self._error(event, f'key "{event.value}" is given twice, first on line {first}')
            # The line of a field is its key's: that of a block value is the next one.
            self.lines[(*path, event.value)] = self._line(event)
            value[event.value] = below = self._node(next(self.events), (*path, event.value))
            if isinstance(below, str) and (*path, event.value) in _TELLING:
                self.told[(*path, event.value)] = below
        return value

    def _sequence(self, path: Path) -> list[Any]:
        value: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            value.append(self._node(event, (*path, len(value))))
        return value

    def _scalar(self, event: Any) -> Any:
        quoted = event.tag is None and not event.implicit[0]
        if quoted or event.tag in {"!", "tag:yaml.org,2002:str"}:
            return event.value
        if event.tag is not None:
            raise self._error(event, f"tag {event.tag} is not supported")
        try:
            return _plain(event.value)
        except ValueError as err:
            raise self._error(event, str(err)) from None

    def _alias(self, event: Any, path: Path) -> Any:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            raise self._error(event, f"more than {MAX_ALIASES} aliases", final=True)
        if not (anchored := self.anchors.get(event.anchor)):
            raise self._error(event, f"alias *{event.anchor} has no anchor before it")
        self._grow(event, anchored.size, len(path) + anchored.height)
        return anchored.value

    def _grow(self, event: Any, values: int, depth: int) -> None:
        self.values += values
        self.deepest = max(self.deepest, depth)
        if self.values > MAX_VALUES:
            rule = f"more than {MAX_VALUES} values once its aliases are expanded"
            raise self._error(event, rule, final=True)
        if depth > MAX_DEPTH:
            raise self._error(event, TOO_DEEP)

    def _refuse_foreign(self, end: int) -> None:
        here = next((at for at in self.foreign if self.begin <= at < end), None)
        if here is not None:
            line = self.line + self.text.count("\n", self.begin, here)
            code = self.foreign[here]
            if 0xDC80 <= code <= 0xDCFF:  # how Python's surrogateescape passes on what it cannot decode
                raise _Unreadable(
                    line, here, f"byte 0x{code - 0xDC00:02x} is not UTF-8; save the file as UTF-8"
                )
            raise _Unreadable(line, here, f"character U+{code:04X} is not allowed in YAML")

    def _error(self, event: Any, rule: str, *, final: bool = False) -> _Unreadable:
        return _Unreadable(self._line(event), self._index(event), rule, final=final)

    def _line(self, event: Any) -> int:
        return self.line + int(event.start_mark.line)

    def _index(self, event: Any) -> int:
        return self.begin + int(event.start_mark.index)


class _Dumper(yaml.CSafeDumper):
    """PyYAML's, but quoting also the text that YAML 1.2 would read as something else, such as 1e3."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        plain = _plain(text) == text
    except ValueError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _represent_text)
