"""kubectl's templates: each answer here is what kubectl prints for the same document."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.cli.jsonpath import evaluate
from fabric.errors import ConfigError

DOC = {
    "kind": "List",
    "items": [
        {
            "metadata": {"name": "a", "labels": {"k8s.io/os": "linux", "x": "1"}},
            "spec": {
                "cidr": "10.0.0.0/16",
                "disabled": True,
                "blockSize": 26,
                "uses": ["Workload", "Tunnel", "Other"],
            },
        },
        {
            "metadata": {"name": "b"},
            "spec": {"cidr": "10.1.0.0/16", "disabled": False, "blockSize": 28, "uses": []},
        },
    ],
}


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("{.kind}", "List"),
        ("{$.kind}", "List"),
        ("{.items[*].metadata.name}", "a b"),
        ("{.items[0].metadata.name}", "a"),
        ("{.items[-1].metadata.name}", "b"),
        ("{.items[0].spec.uses[0:2]}", "Workload Tunnel"),
        ("{.items[0].spec.uses[-2:]}", "Tunnel Other"),
        ("{.items[0].spec.uses[::2]}", "Workload Other"),
        ("{.items[0].spec.uses[0,2]}", "Workload Other"),
        ("{.items[0].metadata.labels.k8s\\.io/os}", "linux"),
        ("{.items[0].metadata.labels['k8s\\.io/os']}", "linux"),
        ("{.items[0].metadata['name','nothing']}", "a"),
        ("{..name}", "a b"),
        ("{.items[*].spec.disabled}", "true false"),
        ("{.items[0].spec.uses}", '["Workload","Tunnel","Other"]'),
        ('{.items[?(@.spec.cidr=="10.1.0.0/16")].metadata.name}', "b"),
        ("{.items[?(@.spec.blockSize>26)].metadata.name}", "b"),
        ("{.items[?(@.spec.disabled==true)].metadata.name}", "a"),
        ("{.items[?(@.spec.disabled!=true)].metadata.name}", "b"),
        ("{.items[?(@.metadata.labels)].metadata.name}", "a"),
        ('{.items[0].spec.uses[?(@=="Tunnel")]}', "Tunnel"),
        (
            '{range .items[*]}{.metadata.name}{"\\t"}{.spec.cidr}{"\\n"}{end}',
            "a\t10.0.0.0/16\nb\t10.1.0.0/16\n",
        ),
        ("{range .items[*]}{.metadata.name}{'\\n'}{end}", "a\nb\n"),
        ("{range .items[*]}{range .spec.uses[*]}{@};{end}|{end}", "Workload;Tunnel;Other;||"),
        ("pools: {.items[*].metadata.name}!", "pools: a b!"),
        ("{.nothing.at.all}", ""),
        ("", ""),
    ],
)
def test_it_prints_what_kubectl_prints(template: str, printed: str) -> None:
    assert evaluate(template, DOC) == printed


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{.kind", "a brace is not closed"),
        ("{end}", "without a {range}"),
        ("{range .items[*]}{.kind}", "has no {end}"),
        ("{.items[a:b]}", "not understood"),
        ("{.items[1:2:0]}", "no index and no slice"),
        ("{.items[?(@.x ~ 1)]}", "not understood"),
        ("{.items[?(x == 1)]}", "must compare @"),
    ],
)
def test_what_is_not_understood_is_said(template: str, why: str) -> None:
    with pytest.raises(ConfigError, match="jsonpath: ") as error:
        evaluate(template, DOC)
    assert why in str(error.value)


@given(st.text(alphabet="{}[]().@$*?'\"\\=<>!:,-0a range end"))
def test_no_template_is_worse_than_an_error(template: str) -> None:
    with suppress(ConfigError):
        evaluate(template, DOC)
