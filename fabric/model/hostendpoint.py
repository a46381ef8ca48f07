"""Decide which host endpoints are valid (Calico's HostEndpoint)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fabric.model.base import Model, Resource
from fabric.model.fields import AnyAddress, Name, PortedProtocol, PortName, PortNumber, broken, matching

InterfaceOrAll = Annotated[
    str, matching(r"\*|[a-zA-Z0-9_.-]{1,15}", "must be an interface's name, or * for all of them")
]


class NamedPort(Model):
    name: PortName
    protocol: PortedProtocol
    port: PortNumber


class HostEndpointSpec(Model):
    """One interface of a node: by its name, by an address it has, or all (`*`)."""

    blank_is_absent: ClassVar = frozenset({"interfaceName"})

    node: Name
    interface_name: InterfaceOrAll | None = None
    expected_ips: tuple[AnyAddress, ...] = Field(default=(), alias="expectedIPs")
    profiles: tuple[Name, ...] = ()
    ports: tuple[NamedPort, ...] = ()

    @model_validator(mode="after")
    def _names_an_interface(self) -> Self:
        if self.interface_name is None and not self.expected_ips:
            raise broken("needs interfaceName or expectedIPs", needs=("interfaceName", "expectedIPs"))
        return self


class HostEndpoint(Resource):
    kind: Literal["HostEndpoint"] = "HostEndpoint"
    spec: HostEndpointSpec
