import pytest

from fabric.errors import ConfigError
from policy import labels
from policy.selector import Selector, parse

NS = "projectcalico.org/namespace"


@pytest.mark.parametrize(
    ("own", "derived", "inherited", "want"),
    [
        pytest.param({"a": "1"}, {}, [], {"a": "1"}, id="its own"),
        pytest.param(
            {}, {}, [{"a": "1"}, {"a": "2", "b": "2"}], {"a": "1", "b": "2"}, id="the first profile wins"
        ),
        pytest.param({"a": "0"}, {}, [{"a": "1"}], {"a": "0"}, id="its own win over a profile's"),
        pytest.param(
            {NS: "theirs"}, {NS: "ours"}, [{NS: "third"}], {NS: "ours"}, id="where it is wins over all"
        ),
        pytest.param({"a": ""}, {}, [{"a": "1"}], {"a": ""}, id="an empty label of its own is one"),
        pytest.param(
            {"pcns.env": "prod", "pcsa.role": "admin", "pcnsenv": "kept"},
            {},
            [{"pcns.env": "test"}],
            {"pcns.env": "test", "pcnsenv": "kept"},
            id="nobody gives himself the labels of a namespace or of a service account",
        ),
    ],
)
def test_effective_labels(
    own: dict[str, str], derived: dict[str, str], inherited: list[dict[str, str]], want: dict[str, str]
) -> None:
    assert labels.effective(own, derived, inherited) == want


def test_what_is_in_no_namespace_has_all_of_its_own_labels() -> None:
    own = {"pcns.env": "prod"}
    assert labels.effective(own, {}, [], in_namespace=False) == own


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("env == 'prod'", 'pcns.env == "prod"'),
        ("has(a) && !has(b)", "(has(pcns.a) && !has(pcns.b))"),
        ("a in {'y', 'x'} || b not in {'z'}", '(pcns.a in {"x", "y"} || pcns.b not in {"z"})'),
        ("a starts with 'x'", 'pcns.a starts with "x"'),
        ("all()", f"has({NS})"),
        ("", f"has({NS})"),
        ("!all()", f"!has({NS})"),
        ("all() && a != 'x'", f'(has({NS}) && pcns.a != "x")'),
        ("global()", f"!has({NS})"),
    ],
)
def test_a_selector_of_namespaces_asks_for_their_labels(text: str, want: str) -> None:
    assert str(labels.of_namespaces(text)) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [("role == 'a'", 'pcsa.role == "a"'), ("all()", "all()"), ("!(has(a) || b == 'c')", None)],
)
def test_a_selector_of_service_accounts_asks_for_their_labels(text: str, want: str | None) -> None:
    assert str(labels.of_service_accounts(text)) == (want or '!(has(pcsa.a) || pcsa.b == "c")')


def test_service_accounts_by_name() -> None:
    found = labels.of_named_service_accounts(["b", "a", "b"])
    assert str(found) == 'projectcalico.org/serviceaccount in {"a", "b"}'


@pytest.mark.parametrize("name", ["it's", 'a"b', "a' || has(x) || b == '"])
def test_a_name_with_a_quote_never_becomes_a_selector(name: str) -> None:
    with pytest.raises(ConfigError, match="no service account's name"):
        labels.of_named_service_accounts([name])


def test_kubernetes_is_read_as_any_workload() -> None:
    k8s = "projectcalico.org/orchestrator == 'k8s'"
    found = labels.of_any_orchestrator(parse(f"{k8s} && a == 'k8s' && !({k8s} || b == 'c')"))
    any_workload = "has(projectcalico.org/orchestrator)"
    assert str(found) == f'({any_workload} && a == "k8s" && !({any_workload} || b == "c"))'


@pytest.mark.parametrize(
    "term",
    [
        labels.of_namespaces("global()"),
        labels.negated(labels.of_namespaces("global()")),
        labels.negated(parse("a == 'b'")),
        labels.both(
            labels.of_namespace("a"), parse("b == 'c' && has(d)"), labels.of_service_accounts("!all()")
        ),
    ],
    ids=str,
)
def test_what_is_rewritten_is_written_as_it_would_be_read(term: Selector) -> None:
    assert parse(str(term)) == term
