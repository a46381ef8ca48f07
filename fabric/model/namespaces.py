"""Decide which profile a namespace gives its endpoints: without Kubernetes, nobody else makes it.

Source: calico-semantics §2.4: `kns.<namespace>` allows all both ways and carries the namespace's labels,
which is why an endpoint that no policy selects is open.
"""

from __future__ import annotations

from fabric.model.base import Metadata
from fabric.model.profile import Profile, ProfileSpec
from fabric.model.rule import Rule

_ALLOW = (Rule(action="Allow"),)


def profile_name(namespace: str) -> str:
    """Return what Calico calls the profile of `namespace`."""
    return f"kns.{namespace}"


def profile(namespace: str) -> Profile:
    """Return the profile of `namespace`, without uid and creation time."""
    return Profile(
        metadata=Metadata(name=profile_name(namespace)),
        spec=ProfileSpec(
            ingress=_ALLOW, egress=_ALLOW, labels_to_apply={"pcns.projectcalico.org/name": namespace}
        ),
    )


def default_allow(name: str) -> Profile:
    """Return the profile of that name which allows all both ways, and labels nothing."""
    return Profile(metadata=Metadata(name=name), spec=ProfileSpec(ingress=_ALLOW, egress=_ALLOW))
