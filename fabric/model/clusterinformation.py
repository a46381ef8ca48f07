"""What the cluster says of itself (Calico's ClusterInformation)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fabric.model.base import Model, Resource
from fabric.model.fields import Flag


class ClusterInformationSpec(Model):
    """`datastore_ready` False is Calico's migration lock: agents wait, attach nothing and remove nothing."""

    cluster_guid: str = Field(default="", alias="clusterGUID")
    cluster_type: str = ""
    calico_version: str = ""
    datastore_ready: Flag | None = None
    variant: str = ""


class ClusterInformation(Resource):
    kind: Literal["ClusterInformation"] = "ClusterInformation"
    spec: ClusterInformationSpec = Field(default_factory=ClusterInformationSpec)
