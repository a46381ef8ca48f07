"""Decide which labels match which selectors, touching only the selectors that a change can concern.

An `Index` is never changed: `changed` returns another that shares the rest. Selectors are by their canonical text.

Where nothing is known yet, a selector is looked for under one label that it requires ("app == 'db'" only where a
label app is db), so that an item is compared with the few selectors that may match it. Where a label of a known item
changes, only selectors that name the label are asked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from policy.form import Key, Labels
from policy.selector import And, Compare, Has, In, Not, NotIn, Or, Selector

_NONE: Final[frozenset[str]] = frozenset()
_NOBODY: Final[frozenset[Key]] = frozenset()

# By label, the values of which one is needed; None is any value.
Needs = Mapping[str, frozenset[str] | None]


def names(term: Selector) -> frozenset[str]:
    """Return the labels that `term` looks at."""
    match term:
        case Has(label) | Compare(label) | In(label) | NotIn(label):
            return frozenset((label,))
        case Not(inner):
            return names(inner)
        case And(terms) | Or(terms):
            return frozenset().union(*map(names, terms))
    return _NONE


def needs(term: Selector) -> Needs:
    """Return what labels must be for `term` to match; more may be asked of them."""
    match term:
        case Has(label):
            return {label: None}
        case Compare(label, operator, value):
            return {} if operator == "!=" else {label: frozenset((value,)) if operator == "==" else None}
        case In(label, values):
            return {label: frozenset(values)}
        case And(terms):
            return _all_of([needs(each) for each in terms])
        case Or(terms):
            return _one_of([needs(each) for each in terms])
    return {}


def _all_of(found: list[Needs]) -> Needs:
    merged: dict[str, frozenset[str] | None] = {}
    for each in found:
        for label, values in each.items():
            before = merged.get(label)
            merged[label] = before if values is None else values if before is None else before & values
    return merged


def _one_of(found: list[Needs]) -> Needs:
    merged: dict[str, frozenset[str] | None] = {}
    for label in set(found[0]).intersection(*found[1:]):
        values = [each[label] for each in found]
        known = [each for each in values if each is not None]
        merged[label] = frozenset().union(*known) if len(known) == len(values) else None
    return merged


class _Term(NamedTuple):
    selector: Selector
    names: frozenset[str]
    needs: Needs


class _Shelf:
    """Selectors, each under one label and the values of it that it needs, where that label is the least crowded."""

    def __init__(self) -> None:
        self.terms: dict[str, _Term] = {}
        self._by_label: dict[str, dict[str | None, set[str]]] = {}
        self._needless: set[str] = set()
        self._label: dict[str, str] = {}

    def copy(self) -> _Shelf:
        new = _Shelf()
        new.terms = self.terms.copy()
        new._by_label = {
            label: {value: found.copy() for value, found in by_value.items()}
            for label, by_value in self._by_label.items()
        }
        new._needless = self._needless.copy()
        new._label = self._label.copy()
        return new

    def add(self, text: str, term: _Term) -> None:
        self.terms[text] = term
        if not term.needs:
            self._needless.add(text)
            return
        label = min(term.needs, key=lambda label: (self._crowd(label, term.needs[label]), label))
        self._label[text] = label
        # None of them where no value can do: then it is looked for nowhere.
        for value in _values(term.needs[label]):
            self._by_label.setdefault(label, {}).setdefault(value, set()).add(text)

    def remove(self, text: str) -> None:
        term = self.terms.pop(text)
        if not term.needs:
            self._needless.remove(text)
            return
        label = self._label.pop(text)
        for value in _values(term.needs[label]):
            by_value = self._by_label[label]
            by_value[value].remove(text)
            if not by_value[value]:
                del by_value[value]
            if not by_value:
                del self._by_label[label]

    def _crowd(self, label: str, values: frozenset[str] | None) -> int:
        by_value = self._by_label.get(label, {})
        return sum(len(by_value.get(value, ())) for value in _values(values))

    def candidates(self, labels: Labels) -> Iterator[str]:
        """Yield the selectors that may match `labels`; no other does."""
        yield from self._needless
        for label in self._by_label.keys() & labels.keys():
            by_value = self._by_label[label]
            yield from by_value.get(labels[label], ())
            yield from by_value.get(None, ())

    def matching(self, labels: Labels) -> frozenset[str]:
        """Return the selectors that match `labels`."""
        terms = self.terms
        return frozenset(text for text in self.candidates(labels) if terms[text].selector.matches(labels))


def _values(wanted: frozenset[str] | None) -> frozenset[str | None] | tuple[None]:
    return (None,) if wanted is None else wanted


class Index:
    """Selectors and items, both ways: `matched` by item, `members` by selector."""

    def __init__(self) -> None:
        self._shelf = _Shelf()
        self._labels: dict[Key, Labels] = {}
        self.matched: Mapping[Key, frozenset[str]] = {}
        self.members: Mapping[str, frozenset[Key]] = {}

    def changed(self, selectors: Mapping[str, Selector] | None, items: Mapping[Key, Labels | None]) -> Index:
        """Return the index of `selectors`, None where they are the same, with `items` changed, or gone where None."""
        came = {} if selectors is None else {s: selectors[s] for s in selectors if s not in self._shelf.terms}
        gone = [] if selectors is None else [s for s in self._shelf.terms if s not in selectors]
        if not (came or gone or items):
            return self
        edit = _Edit(self)
        for text in gone:
            edit.forget(text)
        for key, labels in items.items():
            edit.item(key, labels)
        edit.add({text: _Term(term, names(term), needs(term)) for text, term in came.items()})
        return edit.done()


class _Edit:
    """A copy of an index while it is changed."""

    def __init__(self, before: Index) -> None:
        self.shelf, self._shelf_is_ours = before._shelf, False
        self.labels = before._labels.copy()
        self.matched = dict(before.matched)
        self.members = dict(before.members)
        self.edited: dict[str, set[Key]] = {}

    def forget(self, text: str) -> None:
        self._own_shelf().remove(text)
        for key in self.members.pop(text, _NOBODY):
            self.matched[key] -= {text}

    def item(self, key: Key, new: Labels | None) -> None:
        old, had = self.labels.get(key), self.matched.get(key, _NONE)
        if new is None:
            self.labels.pop(key, None)
            self.matched.pop(key, None)
            self._moved(key, had, _NONE)
            return
        now = self.shelf.matching(new) if old is None else self._again(had, old, new)
        self.labels[key] = new
        self.matched[key] = now
        self._moved(key, had, now)

    def _again(self, had: frozenset[str], old: Labels, new: Labels) -> frozenset[str]:
        terms = self.shelf.terms
        differing = {label for label, _ in old.items() ^ new.items()}
        kept = {text for text in had if terms[text].names.isdisjoint(differing)}
        asked = {
            text
            for text in self.shelf.candidates(new)
            if not terms[text].names.isdisjoint(differing) and terms[text].selector.matches(new)
        }
        return had if kept | asked == had else frozenset(kept | asked)

    def add(self, came: Mapping[str, _Term]) -> None:
        """Ask `came` of every item. The shelf of the new ones alone is shorter than the whole."""
        if not came:
            return
        whole, alone = self._own_shelf(), _Shelf()
        for text, term in came.items():
            whole.add(text, term)
            alone.add(text, term)
        for key, labels in self.labels.items():
            if found := alone.matching(labels):
                had = self.matched[key]
                self.matched[key] = had | found
                self._moved(key, had, self.matched[key])

    def _own_shelf(self) -> _Shelf:
        if not self._shelf_is_ours:
            self.shelf, self._shelf_is_ours = self.shelf.copy(), True
        return self.shelf

    def _moved(self, key: Key, had: frozenset[str], now: frozenset[str]) -> None:
        for text in had - now:
            self._edit(text).discard(key)
        for text in now - had:
            self._edit(text).add(key)

    def _edit(self, text: str) -> set[Key]:
        if text not in self.edited:
            self.edited[text] = set(self.members.get(text, _NOBODY))
        return self.edited[text]

    def done(self) -> Index:
        new = Index()
        for text, found in self.edited.items():
            if found:
                self.members[text] = frozenset(found)
            else:
                self.members.pop(text, None)
        new._shelf, new._labels = self.shelf, self.labels
        new.matched, new.members = self.matched, self.members
        return new
