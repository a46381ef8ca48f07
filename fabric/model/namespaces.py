"""Decide which profiles namespaces and service accounts give endpoints: without Kubernetes, nobody else makes them.

Source: calico-semantics §2.4: `kns.<namespace>` allows all both ways and carries the namespace's labels,
which is why an endpoint that no policy selects is open. `ksa.<namespace>.<name>` carries labels alone.
"""

from __future__ import annotations

from typing import Final

from fabric.model.base import Metadata
from fabric.model.profile import Profile, ProfileSpec
from fabric.model.rule import Rule

NAMESPACE_PROFILE: Final = "kns."
PCNS: Final = "pcns."  # before the key of a label that is a namespace's
PCSA: Final = "pcsa."  # and of one that is a service account's
NAME_LABEL: Final = "projectcalico.org/name"
# Kubernetes' server gives it to each namespace, so that policies may name one; no file has it.
SERVERS_NAME_LABEL: Final = "kubernetes.io/metadata.name"

_ALLOW = (Rule(action="Allow"),)


def profile_name(namespace: str) -> str:
    """Return what Calico calls the profile of `namespace`."""
    return f"{NAMESPACE_PROFILE}{namespace}"


def service_account_profile_name(namespace: str, name: str) -> str:
    """Return what Calico calls the profile of the service account `name` of `namespace`."""
    return f"ksa.{namespace}.{name}"


def profile(namespace: str) -> Profile:
    """Return the profile of `namespace`, without uid and creation time."""
    labels = {f"{PCNS}{key}": namespace for key in (NAME_LABEL, SERVERS_NAME_LABEL)}
    return Profile(
        metadata=Metadata(name=profile_name(namespace)),
        spec=ProfileSpec(ingress=_ALLOW, egress=_ALLOW, labels_to_apply=labels),
    )


def default_allow(name: str) -> Profile:
    """Return the profile of that name which allows all both ways, and labels nothing."""
    return Profile(metadata=Metadata(name=name), spec=ProfileSpec(ingress=_ALLOW, egress=_ALLOW))
