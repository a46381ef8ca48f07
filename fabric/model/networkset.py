"""Named sets of outside addresses, for rules to select by label (Calico's NetworkSet, GlobalNetworkSet)."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from fabric.model.base import Metadata, Model, Resource
from fabric.model.fields import LooseNet, broken
from fabric.model.workloadendpoint import NAMESPACE_LABEL


def _no_namespace_label(metadata: Metadata) -> Metadata:
    if NAMESPACE_LABEL in metadata.labels:
        rule = "is derived from metadata.namespace and cannot be given"
        raise broken(rule, "labels", NAMESPACE_LABEL, value=metadata.labels[NAMESPACE_LABEL])
    return metadata


SetMetadata: TypeAlias = Annotated[Metadata, AfterValidator(_no_namespace_label)]


class NetworkSetSpec(Model):
    nets: tuple[LooseNet, ...] = ()


class NetworkSet(Resource):
    kind: Literal["NetworkSet"] = "NetworkSet"
    metadata: SetMetadata
    spec: NetworkSetSpec = Field(default_factory=NetworkSetSpec)


class GlobalNetworkSet(Resource):
    kind: Literal["GlobalNetworkSet"] = "GlobalNetworkSet"
    metadata: SetMetadata
    spec: NetworkSetSpec = Field(default_factory=NetworkSetSpec)
