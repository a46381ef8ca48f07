"""Decide which labels selectors see on an endpoint or a set, and what a selector of Calico's fields says about them.

Namespaces and service accounts have no object of their own here: their labels reach endpoints through profiles,
under `pcns.` and `pcsa.`, and a selector of namespaces is rewritten to ask for those (calico-semantics §2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from fabric.errors import ConfigError
from fabric.model.namespaces import PCNS, PCSA
from fabric.model.workloadendpoint import NAMESPACE_LABEL, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL
from policy.form import Labels
from policy.selector import All, And, Compare, Global, Has, In, Not, NotIn, Or, Selector, parse

IN_A_NAMESPACE: Final = Has(NAMESPACE_LABEL)
HAS_SERVICE_ACCOUNT: Final = Has(SERVICE_ACCOUNT_LABEL)
# What a Kubernetes policy says of every pod. Here it selects every workload, whoever started it.
_BY_KUBERNETES: Final = Compare(ORCHESTRATOR_LABEL, "==", "k8s")
ANY_WORKLOAD: Final = Has(ORCHESTRATOR_LABEL)


def effective(
    own: Labels, derived: Labels, inherited: Iterable[Labels], *, in_namespace: bool = True
) -> dict[str, str]:
    """Return what selectors see: `derived` wins over `own`, that over `inherited`, the first of them over the rest.

    What is in a namespace cannot give itself the labels of one, or those of a service account: who may write in one
    namespace would pass for another.
    """
    seen: dict[str, str] = {}
    for labels in reversed(list(inherited)):
        seen.update(labels)
    for label, value in own.items():
        if not (in_namespace and label.startswith((PCNS, PCSA))):
            seen[label] = value
    seen.update(derived)
    return seen


def both(*terms: Selector | None) -> Selector | None:
    """Return what matches where each of `terms` does; None asks nothing."""
    given = tuple(term for term in terms if term is not None)
    if len(given) < 2:
        return given[0] if given else None
    return And(given)


def negated(term: Selector) -> Selector:
    """Return what matches where `term` does not, written as `parse` would read it."""
    return term.term if isinstance(term, Not) else Not(term)


def of_namespace(namespace: str) -> Selector:
    """Return what selects everything in one namespace."""
    return Compare(NAMESPACE_LABEL, "==", namespace)


def of_namespaces(text: str) -> Selector:
    """Return what selects all that is in a namespace whose labels match `text`; global() is what is in none."""
    return _mapped(parse(text), _prefixed(PCNS, everything=IN_A_NAMESPACE, nowhere=Not(IN_A_NAMESPACE)))


def of_service_accounts(text: str, *, everything: Selector | None = None) -> Selector:
    """Return what selects all that runs under a service account whose labels match `text`.

    `everything` is what all() becomes; it stays all() where it is not given.
    """
    return _mapped(parse(text), _prefixed(PCSA, everything=everything or All(), nowhere=Global()))


def of_named_service_accounts(names: Iterable[str]) -> Selector:
    """Return what selects all that runs under one of the service accounts. Raises ConfigError for no name of one."""
    found = tuple(sorted(set(names)))
    for name in found:
        if '"' in name or "'" in name:
            raise ConfigError(f"serviceAccounts: {name!r} is no service account's name")
    return In(SERVICE_ACCOUNT_LABEL, found)


def is_of_kubernetes(term: Selector) -> bool:
    """Whether `term` asks, whatever else it asks, for what runs in Kubernetes: a converted policy's does."""
    return any(map(is_of_kubernetes, term.terms)) if isinstance(term, And) else term == _BY_KUBERNETES


def of_any_orchestrator(term: Selector) -> Selector:
    """Return `term` with "runs in Kubernetes" read as "is a workload"."""
    return _mapped(term, lambda leaf: ANY_WORKLOAD if leaf == _BY_KUBERNETES else leaf)


def _prefixed(prefix: str, *, everything: Selector, nowhere: Selector) -> Callable[[Selector], Selector]:
    def rename(leaf: Selector) -> Selector:
        match leaf:
            case All():
                return everything
            case Global():
                return nowhere
            case Has(label):
                return Has(prefix + label)
            case Compare(label, operator, value):
                return Compare(prefix + label, operator, value)
            case In(label, values):
                return In(prefix + label, values)
            case NotIn(label, values):
                return NotIn(prefix + label, values)
        return leaf

    return rename


def _mapped(term: Selector, leaf: Callable[[Selector], Selector]) -> Selector:
    match term:
        case Not(inner):
            return negated(_mapped(inner, leaf))
        case And(terms):
            return And(tuple(_mapped(each, leaf) for each in terms))
        case Or(terms):
            return Or(tuple(_mapped(each, leaf) for each in terms))
    return leaf(term)
