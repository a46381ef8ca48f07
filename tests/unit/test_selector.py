"""The selector language against the tables of Calico's documentation and source (semantics §1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import ConfigError
from policy.selector import (
    MAX_NESTING,
    All,
    And,
    Compare,
    Global,
    Has,
    In,
    Not,
    NotIn,
    Or,
    Selector,
    parse,
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", "all()"),
        (" \t ", "all()"),
        ("all( )", "all()"),
        ("global(\t)", "global()"),
        ("has( a )", "has(a)"),
        ("a=='x'", 'a == "x"'),
        ('a != "it\'s"', 'a != "it\'s"'),
        ("a == 'say \"x\"'", "a == 'say \"x\"'"),
        ("a == ''", 'a == ""'),
        ("a contains'x'", 'a contains "x"'),
        ("a startswith 'x'", 'a starts with "x"'),
        ("a ends \t with 'x'", 'a ends with "x"'),
        ("a in{'c','b','b',}", 'a in {"b", "c"}'),
        ("a in {}", "a in {}"),
        ("a notin {'x'}", 'a not in {"x"}'),
        ("a  not  in  {'x'}", 'a not in {"x"}'),
        ("contains contains 'x'", 'contains contains "x"'),
        ("in in {'x'}", 'in in {"x"}'),
        ("all == 'x' && has == 'y'", '(all == "x" && has == "y")'),
        ("-1./_ == 'x'", '-1./_ == "x"'),
        ("! ! !has(a)", "!has(a)"),
        ("!!has(a)", "has(a)"),
        ("!(!has(a))", "has(a)"),
        ("!a == 'x'", '!a == "x"'),
        ("((has(a)))", "has(a)"),
        ("has(a)&&has(b)||has(c)", "((has(a) && has(b)) || has(c))"),
        ("has(a)&&(has(b)||has(c))", "(has(a) && (has(b) || has(c)))"),
        ("(has(a)&&has(b))&&has(c)", "((has(a) && has(b)) && has(c))"),
        ("!(has(a)&&has(b))", "!(has(a) && has(b))"),
        ("a == 'é\n'", 'a == "é\n"'),
        ("a" * 512 + " == 'x'", "a" * 512 + ' == "x"'),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


OPERATORS = "expected an operator (==, !=, in, not in, contains, starts with, ends with)"
TERMS = 'expected a label, has(…), all(), global(), "!" or "("'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("role = 'db'", 'unexpected "=" at column 6; equality is written "=="'),
        ("has(a) & has(b)", 'unexpected "&" at column 8; and is written "&&"'),
        ("has(a) | has(b)", 'unexpected "|" at column 8; or is written "||"'),
        ("has(a) &&", f"unexpected end at column 10; {TERMS}"),
        ("a", f'unexpected end at column 2; {OPERATORS} after the label "a"'),
        ("a b", f'unexpected "b" at column 3; {OPERATORS} after the label "a"'),
        ("a inx {}", f'unexpected "i" at column 3; {OPERATORS} after the label "a"'),
        ("has (a)", f'unexpected "(" at column 5; {OPERATORS} after the label "has"'),
        ("has()", f'unexpected "(" at column 4; {OPERATORS} after the label "has"'),
        ("a" * 513 + " == 'x'", f'unexpected "a" at column 513; {OPERATORS} after the label "{"a" * 512}"'),
        ("a == b", 'unexpected "b" at column 6; expected a quoted string'),
        ("a starts with b", 'unexpected "b" at column 15; expected a quoted string'),
        ("a == 'x", 'unexpected "\'" at column 6; the string has no closing quote'),
        ("'x' == a", f'unexpected "\'" at column 1; {TERMS}'),
        ("a in 'x'", 'unexpected "\'" at column 6; expected "{"'),
        ("a in {,}", 'unexpected "," at column 7; expected a quoted string'),
        ("a in {'x' 'y'}", 'unexpected "\'" at column 11; expected "}"'),
        ("(has(a)", 'unexpected end at column 8; expected ")"'),
        ("has(a))", 'unexpected ")" at column 7; expected "&&", "||" or the end'),
        ("has(a) has(b)", 'unexpected "h" at column 8; expected "&&", "||" or the end'),
        ("!= 'x'", f'unexpected "!" at column 1; {TERMS}'),
        ("()", f'unexpected ")" at column 2; {TERMS}'),
        ("é == 'x'", f'unexpected "é" at column 1; {TERMS}'),
    ],
)
def test_a_mistake_is_named_with_its_column(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == f'selector "{text}": {problem}'


def test_a_newline_is_no_blank_and_does_not_break_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("has(a)\n")
    assert str(caught.value).startswith('selector "has(a)\\n": unexpected "\\n" at column 7;')


def test_nesting_is_refused_before_the_interpreter_runs_out() -> None:
    assert parse("(" * MAX_NESTING + "has(a)" + ")" * MAX_NESTING) == Has("a")
    with pytest.raises(ConfigError, match=f"at column {MAX_NESTING + 1}; groups nest at most"):
        parse("(" * 100_000)


@pytest.mark.parametrize(
    ("text", "absent", "match", "other"),
    [
        ("a == 'xyz'", False, True, False),
        ("a != 'xyz'", True, False, True),
        ("a in {'w', 'xyz'}", False, True, False),
        ("a not in {'w', 'xyz'}", True, False, True),
        ("a in {}", False, False, False),
        ("a not in {}", True, True, True),
        ("a contains 'y'", False, True, False),
        ("a starts with 'xy'", False, True, False),
        ("a ends with 'yz'", False, True, False),
        ("a contains ''", False, True, True),
        ("has(a)", False, True, True),
        ("!has(a)", True, False, False),
        ("!a == 'xyz'", True, False, True),
        ("all()", True, True, True),
        ("global()", True, True, True),
        ("has(a) && a == 'xyz'", False, True, False),
        ("!has(a) || a == 'xyz'", True, True, False),
        ("has(b) || has(c) && has(a)", False, False, False),
    ],
)
def test_evaluation(text: str, absent: bool, match: bool, other: bool) -> None:
    selector = parse(text)
    assert selector.matches({}) is absent
    assert selector.matches({"a": "xyz"}) is match
    assert selector.matches({"a": "other"}) is other


labels = st.text("abi-./_", min_size=1, max_size=3) | st.sampled_from(["in", "has", "all", "not", "contains"])
strings = st.text(max_size=4).filter(lambda text: not ('"' in text and "'" in text))
sets = st.frozensets(strings, max_size=3).map(lambda values: tuple(sorted(values)))
operators = st.sampled_from(["==", "!=", "contains", "starts with", "ends with"])
leaves: st.SearchStrategy[Selector] = st.one_of(
    st.just(All()),
    st.just(Global()),
    st.builds(Has, labels),
    st.builds(Compare, labels, operators, strings),
    st.builds(In, labels, sets),
    st.builds(NotIn, labels, sets),
)


def negated(term: Selector) -> Selector:
    return term.term if isinstance(term, Not) else Not(term)


def grown(inner: st.SearchStrategy[Selector]) -> st.SearchStrategy[Selector]:
    terms = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(And, terms), st.builds(Or, terms), inner.map(negated))


selectors = st.recursive(leaves, grown, max_leaves=12)


@given(selectors)
def test_what_is_written_reads_back_as_the_same_value(selector: Selector) -> None:
    assert parse(str(selector)) == selector


@given(selectors, st.dictionaries(labels, strings, max_size=3))
def test_a_negation_is_the_opposite(selector: Selector, endpoint: dict[str, str]) -> None:
    assert negated(selector).matches(endpoint) is not selector.matches(endpoint)


@given(st.text("abin '\"(){}!&|=,\t\nhasl", max_size=30))
def test_any_text_is_a_selector_or_a_config_error(text: str) -> None:
    try:
        selector = parse(text)
    except ConfigError:
        return
    assert parse(str(selector)) == selector
