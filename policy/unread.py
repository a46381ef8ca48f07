"""Decide what is left of a stored resource that its kind refuses: what it closes stays closed, it allows nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from sys import float_info
from typing import Any, Final

from fabric.errors import ConfigError
from fabric.model.hostendpoint import HostEndpoint
from fabric.model.policy import DEFAULT_TIER
from fabric.model.wire import from_tree
from policy import form, labels
from policy.form import DIRECTIONS, Key
from policy.order import TierForm
from policy.rules import DENIES, ENFORCED, POLICIES, Compiled, ProfileForm, is_of_kubernetes, subject
from policy.selector import Selector

HOST_STANDS: Final = "what of it can be read stands"
HOST_IS_NONE: Final = "which link it closes cannot be told, so it closes none"


@dataclass(frozen=True, slots=True)
class Unread:
    """A stored resource that its kind refuses: `value` is the JSON that was there, None where it was none."""

    key: Key
    value: object
    why: str


def left(key: Key, text: str, why: str) -> Unread:
    """Return what is left of a resource that is stored as `text`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return Unread(key, value, why)


def instead(unread: Unread) -> str:
    """Return what becomes of it until it is mended, in the words of everybody who tells it: log, status, get, trace."""
    key, spec = unread.key, _spec(unread)
    match key.kind:
        case "Profile":
            return "it allows nothing"
        case "Tier":
            order = _order(spec or {})
            return f"it stands {'last' if order is None else f'by its order {order}'}, and denies at its end"
        case "HostEndpoint":
            return HOST_STANDS if host(unread) else HOST_IS_NONE
        case kind if kind in ENFORCED:
            if spec is None or _subject(key, spec) is None:
                return "it decides nothing: what it selects cannot be told"
            return DENIES
        case kind if kind in POLICIES:
            return "it counts nothing"
    return "it counts as absent"


def policy(unread: Unread) -> Compiled:
    """Return the policy that denies what an unreadable one selects, if that can be told: what else it says is not."""
    key, why, spec = unread.key, unread.why, _spec(unread)
    if key.kind not in ENFORCED:
        return Compiled(key, problem=f"{why}; {instead(unread)}")
    selected = _subject(key, spec) if spec is not None else None
    if spec is None or selected is None:
        return Compiled(key, problem=f"{why}; {instead(unread)}")
    tier, types = spec.get("tier"), spec.get("types")
    known = (
        types
        if isinstance(types, list) and types and all(each in DIRECTIONS for each in types)
        else DIRECTIONS
    )
    compiled = form.Policy(
        key=key,
        tier=tier if isinstance(tier, str) and tier else DEFAULT_TIER,
        order=_order(spec),
        selector=str(selected),
        ingress=() if "Ingress" in known else None,
        egress=() if "Egress" in known else None,
        do_not_track=not key.namespace and spec.get("doNotTrack") is True,
        pre_dnat=not key.namespace and spec.get("preDNAT") is True,
        apply_on_forward=bool(key.namespace) or spec.get("applyOnForward") is True,
        broken=why,
    )
    return Compiled(key, compiled, selected, problem=f"{why}; {instead(unread)}")


def _subject(key: Key, spec: Mapping[str, object]) -> Selector | None:
    """Return what a policy selects; None where one of its selectors cannot be read."""
    given = [spec.get(name) or "" for name in ("selector", "serviceAccountSelector", "namespaceSelector")]
    own, service_accounts, namespaces = (text if isinstance(text, str) else None for text in given)
    if own is None or service_accounts is None or namespaces is None:
        return None
    try:
        if "global(" in own + service_accounts + namespaces:  # means nothing here, and would match everything
            return None
        found = subject(key.namespace, own, service_accounts, "" if key.namespace else namespaces)
        return labels.of_any_orchestrator(found) if is_of_kubernetes(key, own) else found
    except ConfigError:
        return None


def profile(unread: Unread) -> ProfileForm:
    """Return the labels that can be read of a profile: selectors go by them. It has no rules."""
    given = (_spec(unread) or {}).get("labelsToApply")
    handed_on = (
        {key: value for key, value in given.items() if isinstance(value, str)}
        if isinstance(given, dict)
        else {}
    )
    return ProfileForm(form.Profile(unread.key.name), handed_on, problem=f"{unread.why}; {instead(unread)}")


def host(unread: Unread) -> HostEndpoint | None:
    """Return what can be read of a host endpoint, so that its link stays closed; None where it names none."""
    metadata = unread.value.get("metadata") if isinstance(unread.value, dict) else None
    labels = metadata.get("labels", {}) if isinstance(metadata, dict) else {}
    value: dict[str, Any] = {
        "kind": "HostEndpoint",
        "metadata": {"name": unread.key.name, "labels": labels},
        "spec": dict(_spec(unread) or {}),
    }
    while isinstance(read := from_tree(value), tuple):
        paths = {problem.path[:2] for problem in read}
        wrong = [
            (part, name) for part in ("metadata", "spec") for name in value[part] if (part, name) in paths
        ]
        if not wrong:
            return None
        for part, name in wrong:
            del value[part][name]
    return read if isinstance(read, HostEndpoint) else None


def tier(unread: Unread) -> TierForm:
    """Return where a tier stands, as far as that can be told. It denies at its end."""
    order = _order(_spec(unread) or {})
    return TierForm(unread.key.name, order, "Deny", problem=f"{unread.why}; {instead(unread)}")


def _spec(unread: Unread) -> Mapping[str, object] | None:
    spec = unread.value.get("spec") if isinstance(unread.value, dict) else None
    return spec if isinstance(spec, dict) else None


def _order(spec: Mapping[str, object]) -> float | None:
    order = spec.get("order")
    if isinstance(order, bool) or not isinstance(order, int | float):
        return None
    # Neither infinite nor NaN, nor an integer that no float is as large as.
    return order if abs(order) <= float_info.max else None
