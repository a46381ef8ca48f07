"""Evaluate kubectl's JSONPath templates, `-o jsonpath=…`, on JSON values.

kubectl's dialect is a template around paths: text outside braces is printed as it is, `{range}…{end}`
repeats, several results stand with a space between them, what is missing prints as nothing. No library
speaks it (the JSONPath ones know neither templates nor the escaped dot in `labels.a\\.b`), so the subset
that its documentation names is here: fields, `['a.b']`, `*`, `..`, indexes and slices from either end,
unions, filters with one comparison, quoted text, range. Source: kubernetes.io, "JSONPath Support".
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fabric.errors import ConfigError

Step: TypeAlias = Callable[[Any], Iterator[Any]]
"""Yields what one step of a path finds in a value."""

_PIECE = re.compile(r"""\{((?:[^{}"']|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')*)\}|([^{]+)""")
_TEXT = re.compile(r"""\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")
_STEP = re.compile(
    r"""(?P<deep>\.\.)?(?:
        (?P<star>\.?\*|\.?\[\s*\*\s*\]) |
        \.?\[\s*\?\((?P<filter>(?:[^()"']|"[^"]*"|'[^']*')*)\)\s*\] |
        \.?\[(?P<keys>\s*(?:"[^"]*"|'[^']*')\s*(?:,\s*(?:"[^"]*"|'[^']*')\s*)*)\] |
        \.?\[(?P<items>[-\d\s:,]+)\] |
        (?P<dot>\.?)(?P<name>(?:\\.|[^\s\\.\[\]{}()'",*?@$=<>!])+)
    )""",
    re.VERBOSE,
)
_COMPARISON = re.compile(r"\s*(==|!=|<=|>=|<|>)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Path:
    """`rooted` is a path from the document and not from the item at hand."""

    rooted: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class _Range:
    path: _Path
    body: tuple[Node, ...]


Node: TypeAlias = str | _Path | _Range


def evaluate(template: str, value: object) -> str:
    """Return what kubectl prints for `template` and `value`, JSON values, without a newline of its own.

    Raises:
        ConfigError: the template is not understood; the message says where.

    >>> evaluate('{.items[?(@.spec.disabled==true)].metadata.name}', {"items": []})
    ''
    """
    return _printed(parse(template), value, value)


def parse(template: str) -> tuple[Node, ...]:
    """Return the template's parts; one without braces is a path, as kubectl's older commands take it."""
    pieces = _pieces(template if "{" in template else f"{{{template}}}")
    nodes, ended = _nodes(pieces)
    if ended:
        raise ConfigError("jsonpath: {end} without a {range}")
    return tuple(nodes)


def _pieces(template: str) -> Iterator[tuple[str, bool]]:
    """Yield each part and whether it stood in braces."""
    at = 0
    while at < len(template):
        found = _PIECE.match(template, at)
        if not found:
            raise ConfigError(f"jsonpath: {template[at:]!r}: a brace is not closed")
        at = found.end()
        yield (found[2], False) if found[2] is not None else (found[1].strip(), True)


def _nodes(pieces: Iterator[tuple[str, bool]]) -> tuple[list[Node], bool]:
    """Return the parts up to an {end}, and whether there was one."""
    nodes: list[Node] = []
    for text, braces in pieces:
        if not braces:
            nodes.append(text)
        elif text == "end":
            return nodes, True
        elif text.startswith("range ") or text == "range":
            body, ended = _nodes(pieces)
            if not ended:
                raise ConfigError(f"jsonpath: {{{text}}}: has no {{end}}")
            nodes.append(_Range(_path(text.removeprefix("range")), tuple(body)))
        else:
            nodes += _expressions(text)
    return nodes, False


def _expressions(text: str) -> Iterator[Node]:
    """Yield what one pair of braces holds: quoted texts and paths, which may stand side by side."""
    while text:
        if quoted := _TEXT.match(text):
            yield _unquoted(quoted[1])
            text = text[quoted.end() :].strip()
            continue
        path, text = _leading_path(text)
        yield path
        text = text.strip()


def _unquoted(text: str) -> str:
    inner = text[1:-1]
    if text[0] == "'":
        inner = inner.replace("\\'", "'").replace('"', '\\"')
    try:
        return str(json.loads(f'"{inner}"', strict=False))
    except ValueError:
        raise ConfigError(f"jsonpath: {text}: is no text") from None


def _path(text: str) -> _Path:
    path, rest = _leading_path(text.strip())
    if rest:
        raise ConfigError(f"jsonpath: {text!r}: {rest!r} is not understood")
    return path


def _leading_path(text: str) -> tuple[_Path, str]:
    """Return the path that `text` begins with, and what follows it."""
    rooted, rest = text[:1] == "$", text
    if text[:1] in {"$", "@"}:
        rest = text[1:]
    steps: list[Step] = []
    while found := _STEP.match(rest):
        if found["name"] and not found["dot"] and not found["deep"] and (steps or rest is not text):
            break
        if found["deep"]:
            steps.append(_descend)
        steps.append(_step(found))
        rest = rest[found.end() :]
    if rest.startswith(".") and not steps:
        rest = rest[1:]  # {.} is the item itself
    elif rest is text:
        raise ConfigError(f"jsonpath: {text!r}: is not understood")
    return _Path(rooted, tuple(steps)), rest


def _step(found: re.Match[str]) -> Step:
    if found["star"]:
        return _children
    if (condition := found["filter"]) is not None:
        return _filter(condition)
    if found["keys"]:
        return _fields([_unescaped(key[1:-1]) for key in re.findall(r'"[^"]*"|\'[^\']*\'', found["keys"])])
    if found["items"]:
        return _items([_slice(part) for part in found["items"].split(",")])
    return _fields([_unescaped(found["name"])])


def _unescaped(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)


def _fields(names: Sequence[str]) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            yield from (value[name] for name in names if name in value)

    return step


def _items(slices: Sequence[slice]) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            for part in slices:
                yield from value[part]

    return step


def _slice(text: str) -> slice:
    parts = [part.strip() for part in text.split(":")]
    try:
        bounds = [int(part) if part else None for part in parts]
        if len(bounds) == 1:
            first = int(parts[0])
            return slice(first, first + 1 or None)
        if len(bounds) > 3 or (len(bounds) == 3 and bounds[2] is not None and bounds[2] < 1):
            raise ValueError
    except ValueError:
        raise ConfigError(f"jsonpath: [{text}]: is no index and no slice") from None
    return slice(*bounds)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _descend(value: Any) -> Iterator[Any]:
    yield value
    for child in _children(value):
        yield from _descend(child)


def _filter(condition: str) -> Step:
    left, rest = _operand(condition.strip())
    compared = _COMPARISON.match(rest)
    right, rest = _operand(rest[compared.end() :]) if compared else (None, rest)
    if rest.strip():
        raise ConfigError(f"jsonpath: [?({condition})]: {rest.strip()!r} is not understood")

    def holds(item: Any) -> bool:
        found = list(left(item))
        if compared is None or right is None:
            return bool(found)
        return any(_compares(compared[1], one, other) for one in found for other in right(item))

    return lambda value: (item for item in _children(value) if holds(item))


def _operand(text: str) -> tuple[Step, str]:
    if quoted := _TEXT.match(text):
        return _constant(_unquoted(quoted[1])), text[quoted.end() :]
    if literal := re.match(r"(true|false|-?\d+(?:\.\d+)?)(?![\w.])", text):
        return _constant(json.loads(literal[0])), text[literal.end() :]
    if not text.startswith("@"):
        raise ConfigError(f"jsonpath: [?({text})]: must compare @ with text, a number, true or false")
    path, rest = _leading_path(text)
    return lambda item: iter(_found(path, item, item)), rest


def _constant(value: Any) -> Step:
    return lambda _item: iter([value])


def _compares(sign: str, one: Any, other: Any) -> bool:
    if isinstance(one, bool) != isinstance(other, bool):
        return sign == "!="
    try:
        return bool(_OPERATORS[sign](one, other))
    except TypeError:
        return False


def _found(path: _Path, root: Any, item: Any) -> list[Any]:
    values = [root if path.rooted else item]
    for step in path.steps:
        values = [found for value in values for found in step(value)]
    return values


def _printed(nodes: Sequence[Node], root: Any, item: Any) -> str:
    parts = []
    for node in nodes:
        match node:
            case str():
                parts.append(node)
            case _Path():
                parts.append(" ".join(map(_text, _found(node, root, item))))
            case _Range():
                parts += [_printed(node.body, root, one) for one in _found(node.path, root, item)]
    return "".join(parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
