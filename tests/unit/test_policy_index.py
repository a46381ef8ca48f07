from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.form import Key, Labels
from policy.index import Index, names, needs
from policy.selector import Selector, parse


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("all()", set()),
        ("has(a)", {"a"}),
        ("a == 'x' && !(b != 'y' || c in {'z'})", {"a", "b", "c"}),
        ("a not in {'x'}", {"a"}),
    ],
)
def test_the_labels_that_a_selector_names(text: str, want: set[str]) -> None:
    assert names(parse(text)) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("all()", {}),
        ("a == 'x'", {"a": {"x"}}),
        ("a in {'x', 'y'}", {"a": {"x", "y"}}),
        ("a in {}", {"a": set()}),
        ("has(a)", {"a": None}),
        ("a starts with 'x'", {"a": None}),
        ("a != 'x'", {}),
        ("a not in {'x'}", {}),
        ("!has(a)", {}),
        ("!!has(a)", {"a": None}),
        ("has(a) && a == 'x' && b in {'y'}", {"a": {"x"}, "b": {"y"}}),
        ("a in {'x', 'y'} && a in {'y', 'z'}", {"a": {"y"}}),
        ("a == 'x' && a == 'y'", {"a": set()}),
        ("a == 'x' || a == 'y'", {"a": {"x", "y"}}),
        ("a == 'x' || has(a)", {"a": None}),
        ("a == 'x' || b == 'y'", {}),
        ("(a == 'x' && b == 'y') || (a == 'z' && c == 'w')", {"a": {"x", "z"}}),
        ("a == 'x' || all()", {}),
    ],
)
def test_what_a_selector_needs_of_labels(text: str, want: Mapping[str, set[str] | None]) -> None:
    assert needs(parse(text)) == want


LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))
SELECTORS = st.recursive(
    st.one_of(
        st.just("all()"),
        st.builds("has({})".format, st.sampled_from("abc")),
        st.builds(
            "{} {} '{}'".format,
            st.sampled_from("abc"),
            st.sampled_from(("==", "==", "!=", "contains")),
            st.sampled_from("xyz"),
        ),
        st.builds(
            "{} {} {{'{}', '{}'}}".format,
            st.sampled_from("abc"),
            st.sampled_from(("in", "not in")),
            st.sampled_from("xyz"),
            st.sampled_from("xyz"),
        ),
    ),
    lambda terms: st.one_of(
        st.builds("!({})".format, terms),
        st.builds("({} && {})".format, terms, terms),
        st.builds("({} || {})".format, terms, terms),
    ),
    max_leaves=5,
).map(parse)
ITEMS = st.dictionaries(st.integers(0, 5), LABELS)


def key(number: int) -> Key:
    return Key("X", "", str(number))


def by_text(terms: list[Selector]) -> dict[str, Selector]:
    return {str(term): term for term in terms}


def is_whole(index: Index, selectors: Mapping[str, Selector], items: Mapping[Key, Labels]) -> bool:
    """Whether `index` is what one made at once of everything would be, by asking each selector of each item."""
    matched = {
        each: {text for text, term in selectors.items() if term.matches(labels)}
        for each, labels in items.items()
    }
    members = {text: {each for each in items if text in matched[each]} for text in selectors}
    return index.matched == matched and index.members == {
        text: found for text, found in members.items() if found
    }


STEPS = st.lists(st.tuples(st.sets(st.integers(0, 7)), ITEMS), min_size=2, max_size=6)


@settings(deadline=None)
@given(st.lists(SELECTORS, min_size=1, max_size=8), STEPS)
def test_an_index_depends_on_what_is_there_and_not_on_how_it_came(
    terms: list[Selector], walk: list[tuple[set[int], dict[int, Labels]]]
) -> None:
    index, was = Index(), dict[Key, Labels]()
    past = list[tuple[Index, dict[str, Selector], dict[Key, Labels]]]()
    for left_out, numbered in walk:
        selectors = by_text([term for number, term in enumerate(terms) if number not in left_out])
        items = {key(number): labels for number, labels in numbered.items()}
        gone = {each: None for each in was if each not in items}
        came = {each: labels for each, labels in items.items() if was.get(each) != labels}
        index, was = index.changed(selectors, {**gone, **came}), items
        past.append((index, selectors, items))
    assert all(is_whole(*each) for each in past)  # the earlier ones too: an index never changes


class Watched(dict[str, str]):
    """Labels that keep which of them were looked at."""

    def __init__(self, labels: Labels) -> None:
        super().__init__(labels)
        self.looked_at: list[str] = []

    def get(self, label: str, default: object = None) -> str | None:  # type: ignore[override]
        self.looked_at.append(label)
        return super().get(label)

    def __contains__(self, label: object) -> bool:
        self.looked_at.append(str(label))
        return super().__contains__(label)


def test_a_changed_label_has_only_the_selectors_asked_that_name_it() -> None:
    one = key(1)
    texts = ["a == 'x'", "b == 'y'", "has(c) && b == 'y'", "c != 'q'", "a == 'x' && c == 'z'", "all()"]
    index = Index().changed(by_text([parse(each) for each in texts]), {one: {"a": "x", "b": "y", "c": "w"}})
    labels = Watched({"a": "x", "b": "y", "c": "z"})
    after = index.changed(None, {one: labels})
    assert after.matched[one] == {str(parse(each)) for each in texts}
    # By "c" three selectors are asked: of "a" and "b" only what these ask too.
    assert sorted(labels.looked_at).count("a") == 1
    assert sorted(labels.looked_at).count("b") == 1


def test_what_does_not_change_is_shared() -> None:
    index = Index().changed(
        by_text([parse("a == 'x'"), parse("has(b)")]), {key(1): {"a": "x"}, key(2): {"b": "y"}}
    )
    after = index.changed(None, {key(1): {}})
    assert after.matched[key(2)] is index.matched[key(2)]
    assert after.members["has(b)"] is index.members["has(b)"]
    assert index.changed(None, {}) is index
    assert index.changed(by_text([parse("a == 'x'"), parse("has(b)")]), {}) is index


def test_a_selector_that_nothing_can_match_comes_and_goes() -> None:
    never, other = by_text([parse("a == 'x' && a == 'y'")]), by_text([parse("a == 'x'")])
    index = Index().changed({**never, **other}, {key(1): {"a": "x"}})
    assert dict(index.members) == {'a == "x"': {key(1)}}
    assert dict(index.changed(never, {}).members) == {}
    assert dict(index.changed({}, {}).changed(other, {}).members) == {'a == "x"': {key(1)}}
    assert dict(index.changed(other, {}).members) == {'a == "x"': {key(1)}}
