"""Decide what a policy becomes when it is promoted or staged: the other kind, the same meaning. Pure.

StagedNetworkPolicy            ⇄ NetworkPolicy
StagedGlobalNetworkPolicy      ⇄ GlobalNetworkPolicy
StagedKubernetesNetworkPolicy  ⇄ NetworkPolicy knp.default.NAME
"""

from __future__ import annotations

from typing import Final

from fabric.errors import ConfigError
from fabric.model import extensions
from fabric.model.base import API_VERSION, Resource, Tree, tree
from fabric.model.convert import of_staged, original, stored
from fabric.model.kinds import KUBERNETES_NAME
from fabric.model.policy import StagedKubernetesNetworkPolicy
from fabric.model.wire import NO_SUCH_FIELD, from_tree
from policy.form import Key

STAGED: Final = {
    "NetworkPolicy": "StagedNetworkPolicy",
    "GlobalNetworkPolicy": "StagedGlobalNetworkPolicy",
}
_OF_KUBERNETES: Final = "StagedKubernetesNetworkPolicy"
ENFORCED: Final = {staged: kind for kind, staged in STAGED.items()} | {_OF_KUBERNETES: "NetworkPolicy"}

# What is said of one object, and is not another's.
_IDENTITY: Final = (
    "uid",
    "creationTimestamp",
    "generation",
    "ownerReferences",
    "finalizers",
    "resourceVersion",
)


def enforced_key(staged: Key) -> Key:
    """Return what the staged policy `staged` is promoted to."""
    name = f"{KUBERNETES_NAME}{staged.name}" if staged.kind == _OF_KUBERNETES else staged.name
    return Key(ENFORCED[staged.kind], staged.namespace, name)


def promoted(staged: Resource) -> Resource | None:
    """Return the policy that enforces what `staged` says; None where it says that the policy is to be deleted.

    Raises:
        ConfigError: it says nothing that could be enforced.
    """
    value = tree(staged)
    spec: Tree = value.get("spec", {})
    action = spec.pop("stagedAction", "Set")
    if action == "Delete":
        return None
    if action != "Set":
        raise ConfigError(
            f'spec.stagedAction: "{action}": there is nothing to enforce; only Set and Delete are'
        )
    if not isinstance(staged, StagedKubernetesNetworkPolicy):
        made = {**value, "kind": ENFORCED[staged.kind], "spec": spec}
        # A newer tool's fields are kept; what is not enforced here would only deny.
        strict = from_tree(made, unknown="forbid")
        wrong = [] if isinstance(strict, Resource) else strict
        if told := [str(one) for one in wrong if not one.rule.startswith(NO_SUCH_FIELD)]:
            raise ConfigError("; ".join(told))
        return _read(made)
    converted = stored(of_staged(staged))
    if not isinstance(converted, Resource):
        raise ConfigError("; ".join(map(str, converted)))
    return _read(tree(converted))


def staged(policy: Resource) -> Resource:
    """Return the staged policy that says what `policy` enforces.

    One that Kubernetes' form was kept of, and that is as that has it, becomes a StagedKubernetesNetworkPolicy.
    """
    if of_kubernetes := original(policy):
        value = tree(of_kubernetes)
        value["metadata"]["annotations"] = {
            key: text
            for key, text in policy.metadata.annotations.items()
            if key != extensions.KUBERNETES and key.startswith(extensions.PREFIX)
        }
        value["metadata"]["namespace"] = policy.metadata.namespace
        return _read({**value, "apiVersion": API_VERSION, "kind": _OF_KUBERNETES})
    return _read({**tree(policy), "kind": STAGED[policy.kind]})


def _read(value: Tree) -> Resource:
    """Return the resource that `value` is, less what another object's identity was in it."""
    metadata = {key: item for key, item in value["metadata"].items() if key not in _IDENTITY}
    spec = {**value.get("spec", {}), **({"stagedAction": "Set"} if value["kind"] in ENFORCED else {})}
    read = from_tree(
        {**{k: v for k, v in value.items() if k != "status"}, "metadata": metadata, "spec": spec}
    )
    if isinstance(read, Resource):
        return read
    raise ConfigError("; ".join(map(str, read)))
