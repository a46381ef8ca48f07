"""Decide what of Calico's means the same as what a file of Kubernetes' has: a NetworkPolicy, or a Profile for labels.

A policy's form is exactly Calico's (semantics §3), with two differences, both because files come here that no
API server has seen: `policyTypes` gets the server's default, by which egress rules make a policy one for
egress too; and what Calico would drop or widen is refused.

Source: calico, libcalico-go/lib/backend/k8s/conversion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, TypeAlias

from fabric.errors import ConfigError
from fabric.model import extensions
from fabric.model.base import API_VERSION, Metadata, Path, Resource, Tree, tree
from fabric.model.change import without_noise
from fabric.model.fields import MAX_ANNOTATIONS
from fabric.model.k8s import (
    KubernetesNamespace,
    KubernetesNetworkPolicy,
    KubernetesServiceAccount,
    LabelSelector,
    NetworkPolicySpec,
    Peer,
    Port,
)
from fabric.model.kinds import KUBERNETES_NAME
from fabric.model.namespaces import (
    NAME_LABEL,
    PCNS,
    PCSA,
    profile,
    service_account_profile_name,
)
from fabric.model.policy import StagedKubernetesNetworkPolicy
from fabric.model.profile import Profile, ProfileSpec
from fabric.model.wire import Problem, from_json, from_tree

ORDER: Final = 1000
MAX_ORIGINAL: Final = MAX_ANNOTATIONS // 2  # bytes; a policy with a larger one is stored without
KUBERNETES: Final = "projectcalico.org/orchestrator == 'k8s'"

Ports: TypeAlias = list[range | str]  # numbers as ranges, and names


def stored(resource: Resource, before: Resource | None = None) -> Resource | tuple[Problem, ...]:
    """Return what the datastore holds for `resource`, where it holds `before`, or why it cannot.

    What Kubernetes' object says nothing of is as it was: a profile's rules, labels that are no namespace's, and
    annotations where the file has none. Calico's own resources are themselves; a staged policy in Kubernetes' form
    only if it could be enforced. A problem's path is in `resource`.
    """
    match resource:
        case KubernetesNetworkPolicy():
            annotations = _annotations(resource, before)
            annotations.pop(extensions.KUBERNETES, None)
            text = json.dumps(tree(without_noise(resource)), separators=(",", ":"), ensure_ascii=False)
            if len(text.encode()) <= MAX_ORIGINAL:
                annotations[extensions.KUBERNETES] = text
            return _policy(resource, f"{KUBERNETES_NAME}{resource.metadata.name}", annotations)
        case KubernetesNamespace():
            fresh = profile(resource.metadata.name)
            return _profile(resource, PCNS, fresh, before)
        case KubernetesServiceAccount():
            metadata = resource.metadata
            name = service_account_profile_name(metadata.namespace or "default", metadata.name)
            labels = {f"{PCSA}{NAME_LABEL}": metadata.name}
            fresh = Profile(metadata=Metadata(name=name), spec=ProfileSpec(labels_to_apply=labels))
            return _profile(resource, PCSA, fresh, before)
        case StagedKubernetesNetworkPolicy():
            made = converted(of_staged(resource))
            return resource if isinstance(made, Resource) else made
    return resource


def of_staged(policy: StagedKubernetesNetworkPolicy) -> KubernetesNetworkPolicy:
    """Return the policy that would be enforced."""
    spec = policy.spec
    return KubernetesNetworkPolicy(
        metadata=policy.metadata,
        spec=NetworkPolicySpec(
            pod_selector=spec.pod_selector,
            ingress=spec.ingress,
            egress=spec.egress,
            policy_types=spec.policy_types,
        ),
    )


def original(policy: Resource) -> KubernetesNetworkPolicy | None:
    """Return the policy of Kubernetes that `policy` was made of; None where it was not, or was changed since."""
    text = policy.metadata.annotations.get(extensions.KUBERNETES, "")
    try:
        found = from_json(text) if text else None
    except ConfigError:
        return None
    if not isinstance(found, KubernetesNetworkPolicy):
        return None
    made = stored(found)
    same = isinstance(made, Resource) and _meaning(made) == _meaning(policy)
    return found if same else None


def _meaning(policy: Resource) -> object:
    value = tree(policy)
    return value["metadata"]["name"], value["metadata"].get("namespace"), value["spec"]


def _annotations(resource: Resource, before: Resource | None) -> dict[str, str]:
    """Return what the object that is stored for `resource` is annotated with: of the file's, those of ours."""
    there = before.metadata.annotations if before else {}
    if "annotations" not in resource.metadata.model_fields_set:
        return dict(there)
    given = resource.metadata.annotations.items()
    theirs = {key: text for key, text in there.items() if not key.startswith(extensions.PREFIX)}
    return theirs | {key: text for key, text in given if key.startswith(extensions.PREFIX)}


def _profile(
    resource: Resource, prefix: str, fresh: Profile, before: Resource | None
) -> Resource | tuple[Problem, ...]:
    """Return `before`, or else `fresh`, with the labels of `resource`, each with `prefix` before its key."""
    given, spec = resource.metadata, tree(before.spec if isinstance(before, Profile) else fresh.spec)
    labels = dict(spec.get("labelsToApply", {}))
    if "labels" in given.model_fields_set:
        labels = {key: text for key, text in labels.items() if not key.startswith(prefix)}
        labels |= {f"{prefix}{key}": text for key, text in given.labels.items()}
    read = from_tree(
        {
            "apiVersion": API_VERSION,
            "kind": "Profile",
            "metadata": {"name": fresh.metadata.name, "annotations": _annotations(resource, before)},
            "spec": {**spec, "labelsToApply": {**labels, **fresh.spec.labels_to_apply}},
        }
    )
    if isinstance(read, Resource):
        return read
    return tuple(_of_profile(problem) for problem in read)


def _of_profile(problem: Problem) -> Problem:
    where: dict[Path, Path] = {("spec", "labelsToApply"): ("metadata", "labels")}
    path = where.get(problem.path[:2], problem.path[:2])
    return Problem(path, "", f"has no place in a profile: {problem}")


def converted(policy: KubernetesNetworkPolicy) -> Resource | tuple[Problem, ...]:
    """Return the NetworkPolicy of projectcalico.org/v3 that means the same, or why there is none.

    It keeps the name and the namespace, and nothing else of the metadata. A problem's path is in `policy`.
    """
    return _policy(policy, policy.metadata.name, {})


def _policy(
    policy: KubernetesNetworkPolicy, name: str, annotations: dict[str, str]
) -> Resource | tuple[Problem, ...]:
    spec = policy.spec
    rules = {
        "ingress": [_rules("source", rule.from_, rule.ports) for rule in spec.ingress],
        "egress": [_rules("destination", rule.to, rule.ports) for rule in spec.egress],
    }
    types = set(spec.policy_types) or {"Ingress"} | ({"Egress"} if spec.egress else set())
    metadata = {"name": name, "namespace": policy.metadata.namespace, "annotations": annotations}
    read = from_tree(
        {
            "apiVersion": API_VERSION,
            "kind": "NetworkPolicy",
            "metadata": {key: value for key, value in metadata.items() if value},
            "spec": {
                "tier": "default",
                "order": ORDER,
                **{
                    direction: [r for rule in found for r in rule]
                    for direction, found in rules.items()
                    if found
                },
                "selector": _pods(spec.pod_selector),
                "types": [direction for direction in ("Ingress", "Egress") if direction in types],
            },
        }
    )
    if isinstance(read, Resource):
        return read
    return tuple(_blame(problem, rules) for problem in read)


def _blame(problem: Problem, rules: dict[str, list[list[Tree]]]) -> Problem:
    """Return the problem of a converted policy as one of the policy it comes from."""
    why = f"has no counterpart in Calico: {problem}"
    match problem.path:
        case ("spec", ("ingress" | "egress") as direction, int(index), *_):
            origins = [origin for origin, found in enumerate(rules[direction]) for _ in found]
            return Problem(("spec", direction, origins[index]), "", why)
        case ("spec", "selector"):
            return Problem(("spec", "podSelector"), "", why)
    return Problem(problem.path[:2], "", why)


def _rules(side: str, peers: Sequence[Peer], ports: Sequence[Port]) -> list[Tree]:
    """Return a rule for each protocol and peer; `side` is the one that `peers` are on."""
    found = []
    for protocol, matched in _by_protocol(ports).items():
        for peer in peers or (None,):
            rule: Tree = {"action": "Allow", "source": {}, "destination": {}}
            if protocol:
                rule["protocol"] = protocol
            if peer:
                rule[side] = _entity(peer)
            if matched:
                # The ports are the server's, whichever side asked for the rule.
                rule["destination"] = rule["destination"] | {"ports": [_port(port) for port in matched]}
            found.append(rule)
    return found


def _by_protocol(ports: Sequence[Port]) -> dict[str, Ports]:
    """Return the ports of each protocol, [] for all of them; no protocol is "", for everything."""
    if not ports:
        return {"": []}
    found: dict[str, Ports] = {}
    for protocol in sorted({port.protocol or "TCP" for port in ports}):
        mine = [port for port in ports if (port.protocol or "TCP") == protocol]
        matched = [_matched(port.port, port.end_port) for port in mine if port.port is not None]
        found[protocol] = _simplified(matched) if len(matched) == len(mine) else []
    return found


def _matched(port: int | str, end_port: int | None) -> range | str:
    return range(port, (end_port or port) + 1) if isinstance(port, int) else port


def _simplified(ports: Ports) -> Ports:
    """Return names first and numbers merged into ranges; as they are where there is nothing to merge."""
    ranges = [port for port in ports if isinstance(port, range)]
    if sum(map(len, ranges)) <= 1 or len(ports) == 1:
        return ports
    merged: list[range] = []
    for port in sorted(ranges, key=lambda port: (port.start, port.stop)):
        if merged and port.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, port.stop))
        else:
            merged.append(port)
    return [*(port for port in ports if isinstance(port, str)), *merged]


def _port(port: range | str) -> int | str:
    if isinstance(port, str):
        return port
    return port.start if len(port) == 1 else f"{port.start}:{port.stop - 1}"


def _entity(peer: Peer) -> Tree:
    if peer.ip_block:
        nets = {"nets": [str(peer.ip_block.cidr)], "notNets": [str(net) for net in peer.ip_block.except_]}
        return {key: value for key, value in nets.items() if value}
    entity: Tree = {"selector": _pods(peer.pod_selector)}
    if peer.namespace_selector is not None:
        entity["namespaceSelector"] = " && ".join(_terms(peer.namespace_selector)) or "all()"
    return entity


def _pods(selector: LabelSelector | None) -> str:
    return " && ".join([KUBERNETES, *(_terms(selector) if selector else ())])


def _terms(selector: LabelSelector) -> list[str]:
    """Return what must hold, one text each; a label's value cannot have quotes in it."""
    terms = [f"{key} == '{value}'" for key, value in sorted(selector.match_labels.items())]
    for wanted in selector.match_expressions:
        values = ", ".join(f"'{value}'" for value in wanted.values)
        match wanted.operator:
            case "In":
                terms.append(f"{wanted.key} in {{ {values} }}")
            case "NotIn":
                terms.append(f"{wanted.key} not in {{ {values} }}")
            case "Exists":
                terms.append(f"has({wanted.key})")
            case "DoesNotExist":
                terms.append(f"! has({wanted.key})")
    return terms
