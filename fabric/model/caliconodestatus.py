"""What is asked of a node's status, and what it answered (Calico's CalicoNodeStatus)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field

from fabric.model.base import Model, Resource
from fabric.model.fields import Name, no_repeats

StatusClass: TypeAlias = Literal["Agent", "BGP", "Routes"]


class CalicoNodeStatusSpec(Model):
    """`update_period_seconds` 0 stops the updates; at most a day."""

    node: Name
    classes: Annotated[tuple[StatusClass, ...], Field(min_length=1), AfterValidator(no_repeats)]
    update_period_seconds: Annotated[int, Field(strict=True, ge=0, le=86_400)]


class CalicoNodeStatus(Resource):
    """`status` is what the node writes."""

    kind: Literal["CalicoNodeStatus"] = "CalicoNodeStatus"
    spec: CalicoNodeStatusSpec
    status: Mapping[str, Any] | None = None
