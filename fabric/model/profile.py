"""Rules and labels that endpoints inherit by naming a profile (Calico's Profile)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fabric.model.base import Model, Resource
from fabric.model.fields import LabelMap
from fabric.model.rule import Rules


class ProfileSpec(Model):
    """Its rules apply behind all policy; an endpoint's own label wins over `labels_to_apply`."""

    ingress: Rules = ()
    egress: Rules = ()
    labels_to_apply: LabelMap = Field(default_factory=dict)


class Profile(Resource):
    kind: Literal["Profile"] = "Profile"
    spec: ProfileSpec = Field(default_factory=ProfileSpec)
