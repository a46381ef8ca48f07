"""Decide whether a set of labels matches a selector, in Calico's selector language.

`parse` turns text into a frozen value, one class per construct; `matches` evaluates it and `str` writes
it canonically, so two selectors with equal text are one. The grammar, lowest precedence first:

    selector := [or]                       blank means all()
    or       := and ("||" and)*
    and      := op ("&&" op)*
    op       := "!"* primary
    primary  := has(LABEL) | all() | global() | "(" or ")"
              | LABEL ("==" | "!=" | contains | starts with | ends with) STRING
              | LABEL (in | not in) "{" [STRING ("," STRING)* [","]] "}"

Blanks are space and TAB. No word is reserved: a label may be called `in` or `has`, because word
operators are looked for only behind a label, and `has(`, `all(`, `global(` only touching their "(".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from fabric.errors import ConfigError

MAX_NESTING = 100  # each "(" costs three Python frames, and the interpreter has a thousand

Labels: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class All:
    """Everything; also what blank text means."""

    def matches(self, _labels: Labels) -> bool:
        return True

    def __str__(self) -> str:
        return "all()"


@dataclass(frozen=True, slots=True)
class Global:
    """Everything here; as a rule's namespaceSelector it means "what is in no namespace"."""

    def matches(self, _labels: Labels) -> bool:
        return True

    def __str__(self) -> str:
        return "global()"


@dataclass(frozen=True, slots=True)
class Has:
    label: str

    def matches(self, labels: Labels) -> bool:
        return self.label in labels

    def __str__(self) -> str:
        return f"has({self.label})"


_COMPARE: Mapping[str, Callable[[str, str], bool]] = {
    "==": str.__eq__,
    "!=": str.__ne__,
    "contains": str.__contains__,
    "starts with": str.startswith,
    "ends with": str.endswith,
}


@dataclass(frozen=True, slots=True)
class Compare:
    """One label against one value; an absent label satisfies "!=" and nothing else."""

    label: str
    operator: str
    value: str

    def matches(self, labels: Labels) -> bool:
        if (actual := labels.get(self.label)) is None:
            return self.operator == "!="
        return _COMPARE[self.operator](actual, self.value)

    def __str__(self) -> str:
        return f"{self.label} {self.operator} {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    """One label against a set, sorted and without duplicates; an absent label is in no set."""

    label: str
    values: tuple[str, ...]

    def matches(self, labels: Labels) -> bool:
        return labels.get(self.label) in self.values

    def __str__(self) -> str:
        return f"{self.label} in {{{', '.join(map(_quoted, self.values))}}}"


@dataclass(frozen=True, slots=True)
class NotIn:
    """The opposite of `In`, so an absent label matches."""

    label: str
    values: tuple[str, ...]

    def matches(self, labels: Labels) -> bool:
        return labels.get(self.label) not in self.values

    def __str__(self) -> str:
        return f"{self.label} not in {{{', '.join(map(_quoted, self.values))}}}"


@dataclass(frozen=True, slots=True)
class Not:
    term: Selector

    def matches(self, labels: Labels) -> bool:
        return not self.term.matches(labels)

    def __str__(self) -> str:
        return f"!{self.term}"


@dataclass(frozen=True, slots=True)
class And:
    terms: tuple[Selector, ...]

    def matches(self, labels: Labels) -> bool:
        return all(term.matches(labels) for term in self.terms)

    def __str__(self) -> str:
        return f"({' && '.join(map(str, self.terms))})"


@dataclass(frozen=True, slots=True)
class Or:
    terms: tuple[Selector, ...]

    def matches(self, labels: Labels) -> bool:
        return any(term.matches(labels) for term in self.terms)

    def __str__(self) -> str:
        return f"({' || '.join(map(str, self.terms))})"


Selector: TypeAlias = All | Global | Has | Compare | In | NotIn | Not | And | Or


# Pools and peers are selected again on every pass, from a handful of texts; values are frozen, so shared.
@lru_cache(maxsize=4096)
def parse(text: str) -> Selector:
    """Return the selector that `text` writes.

    `parse(str(s)) == s` for every `s` it returns.

    Raises:
        ConfigError: `text` is no selector; the message names the column, counted from 1.

    Source: Calico's libcalico-go/lib/selector, whose verdict this follows on every input, but for
    groups nested deeper than MAX_NESTING, which are refused here.

    >>> str(parse("role in {'b', 'a'} && !has(gone)"))
    '(role in {"a", "b"} && !has(gone))'
    """
    parser = _Parser(text)
    if parser.at_end():
        return All()
    selector = parser.alternatives()
    if not parser.at_end():
        raise parser.error(parser.pos, 'expected "&&", "||" or the end')
    return selector


def _quoted(value: str) -> str:
    quote = "'" if '"' in value else '"'
    return f"{quote}{value}{quote}"


_IDENT = r"[A-Za-z0-9_./-]"
_BLANKS = re.compile(r"[ \t]*")
_LABEL = re.compile(rf"{_IDENT}{{1,512}}")
_HAS = re.compile(rf"has\([ \t]*({_IDENT}{{1,512}})[ \t]*\)")
_ALL = re.compile(r"all\([ \t]*\)")
_GLOBAL = re.compile(r"global\([ \t]*\)")
_STRING = re.compile(r"\"([^\"]*)\"|'([^']*)'")
_OPERATOR = re.compile(
    rf"==|!=|(contains|starts[ \t]*with[ \t]*|ends[ \t]*with[ \t]*|not[ \t]*in[ \t]*|in)(?!{_IDENT})"
)
# How an operator is written once its blanks are out.
_SPELLING = {"startswith": "starts with", "endswith": "ends with", "notin": "not in"}

_OPERATORS = "expected an operator (==, !=, in, not in, contains, starts with, ends with)"
_HINTS = {
    "=": 'equality is written "=="',
    "&": 'and is written "&&"',
    "|": 'or is written "||"',
}


class _Parser:
    """Recursive descent over one text; `pos` is the index of the next character to read."""

    def __init__(self, text: str) -> None:
        self.text, self.pos, self.depth = text, 0, 0

    def alternatives(self) -> Selector:
        terms = [self._conjunction()]
        while self._took("||"):
            terms.append(self._conjunction())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _conjunction(self) -> Selector:
        terms = [self._operation()]
        while self._took("&&"):
            terms.append(self._operation())
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _operation(self) -> Selector:
        negated = False
        while self._took("!"):
            negated = not negated
        term = self._group() if self._took("(") else self._primary()
        if not negated:
            return term
        # "!(!x)" is written "!!x", which reads as "x": one spelling must be one value.
        return term.term if isinstance(term, Not) else Not(term)

    def _group(self) -> Selector:
        if self.depth == MAX_NESTING:
            raise self.error(self.pos - 1, f"groups nest at most {MAX_NESTING} deep")
        self.depth += 1
        inner = self.alternatives()
        self._expect(")")
        self.depth -= 1
        return inner

    def _primary(self) -> Selector:
        if found := self._match(_HAS):
            return Has(found[1])
        if self._match(_ALL):
            return All()
        if self._match(_GLOBAL):
            return Global()
        if found := self._match(_LABEL):
            return self._comparison(found[0])
        raise self.error(self.pos, 'expected a label, has(…), all(), global(), "!" or "("')

    def _comparison(self, label: str) -> Selector:
        if not (found := self._match(_OPERATOR)):
            raise self.error(self.pos, f'{_OPERATORS} after the label "{label}"')
        word = re.sub(r"[ \t]", "", found[0])
        operator = _SPELLING.get(word, word)
        if operator == "in":
            return In(label, self._set())
        if operator == "not in":
            return NotIn(label, self._set())
        return Compare(label, operator, self._string())

    def _set(self) -> tuple[str, ...]:
        self._expect("{")
        values: set[str] = set()
        while not self._took("}"):
            values.add(self._string())
            if not self._took(","):
                self._expect("}")
                break
        return tuple(sorted(values))

    def _string(self) -> str:
        if found := self._match(_STRING):
            return found[0][1:-1]
        if self.text[self.pos : self.pos + 1] in {'"', "'"}:
            raise self.error(self.pos, "the string has no closing quote")
        raise self.error(self.pos, "expected a quoted string")

    def at_end(self) -> bool:
        self._skip_blanks()
        return self.pos == len(self.text)

    def _skip_blanks(self) -> None:
        if found := _BLANKS.match(self.text, self.pos):
            self.pos = found.end()

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._skip_blanks()
        if found := pattern.match(self.text, self.pos):
            self.pos = found.end()
        return found

    def _took(self, sign: str) -> bool:
        self._skip_blanks()
        # "!=" with no label before it is one token, and no negation.
        compares = sign == "!" and self.text.startswith("!=", self.pos)
        if compares or not self.text.startswith(sign, self.pos):
            return False
        self.pos += len(sign)
        return True

    def _expect(self, sign: str) -> None:
        if not self._took(sign):
            raise self.error(self.pos, f'expected "{sign}"')

    def error(self, at: int, rule: str) -> ConfigError:
        char = self.text[at : at + 1]
        what = f'unexpected "{_shown(char)}"' if char else "unexpected end"
        if char in _HINTS and self.text[at : at + 2] != char * 2:
            rule = _HINTS[char]
        return ConfigError(f'selector "{_shown(self.text)}": {what} at column {at + 1}; {rule}')


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
