"""One container's attachment to the fabric (Calico's WorkloadEndpoint)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from fabric.model.base import ALWAYS, Model, Resource
from fabric.model.fields import (
    AddressText,
    AnyAddress,
    AnyPrefix,
    HostPrefix,
    InterfaceName,
    IPv4,
    IPv6,
    LabelOrEmpty,
    Mac,
    Name,
    Port,
    PortedProtocol,
    PortNameOrEmpty,
    PortNumber,
    broken,
)

NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"  # seen by selectors, and stored on no endpoint


# The field of an endpoint that names the workload, by its orchestrator; of any other, `workload`.
# Source: calico, libcalico-go/lib/names/workloadendpoint.go.
_NAMES_WORKLOAD: Final[Mapping[object, str]] = {
    "k8s": "pod",
    "cni": "containerID",
    "libnetwork": "orchestrator",
}


def name_fields(orchestrator: object) -> tuple[str, ...]:
    """Return the fields of the spec that an endpoint's name is made of, in order."""
    return ("node", "orchestrator", _NAMES_WORKLOAD.get(orchestrator, "workload"), "endpoint")


def name_of(parts: Iterable[str]) -> str:
    """Return the name of an endpoint whose fields are `parts`, "-" doubled so that no two share one."""
    return "-".join(part.replace("-", "--") for part in parts)


class IPNAT(Model):
    internal_ip: AnyAddress = Field(alias="internalIP")
    external_ip: AnyAddress = Field(alias="externalIP")

    @model_validator(mode="after")
    def _one_family(self) -> Self:
        if self.internal_ip.version != self.external_ip.version:
            rule = "must be of the family of internalIP"
            raise broken(rule, "externalIP", value=self.external_ip, needs=("internalIP",))
        return self


class EndpointPort(Model):
    """A port that policy may name; `host_port` 0 means none is mapped."""

    name: Annotated[PortNameOrEmpty, ALWAYS] = ""
    protocol: PortedProtocol
    port: PortNumber
    host_port: Annotated[Port, ALWAYS] = 0
    host_ip: Annotated[AddressText, ALWAYS] = Field(default="", alias="hostIP")

    @model_validator(mode="after")
    def _serves_something(self) -> Self:
        if not self.name and not self.host_port:
            raise broken("needs a name, or a hostPort", needs=("name", "hostPort"))
        return self


class WorkloadEndpointSpec(Model):
    """`ip_networks` are single addresses, /32 or /128."""

    blank_is_absent: ClassVar = frozenset({"ipv4Gateway", "ipv6Gateway", "interfaceName", "mac"})

    orchestrator: LabelOrEmpty = ""
    workload: str = ""
    node: str = ""
    container_id: str = Field(default="", alias="containerID")
    pod: str = ""
    endpoint: str = ""
    service_account_name: str = ""
    ip_networks: tuple[HostPrefix, ...] = ()
    ip_nats: tuple[IPNAT, ...] = Field(default=(), alias="ipNATs")
    ipv4_gateway: IPv4 | None = Field(default=None, alias="ipv4Gateway")
    ipv6_gateway: IPv6 | None = Field(default=None, alias="ipv6Gateway")
    profiles: tuple[Name, ...] = ()
    interface_name: InterfaceName | None = None
    mac: Mac | None = None
    ports: tuple[EndpointPort, ...] = ()
    allow_spoofed_source_prefixes: tuple[AnyPrefix, ...] = ()
    qos_controls: Mapping[str, Any] | None = Field(default=None, alias="qosControls")

    @model_validator(mode="after")
    def _nats_are_own(self) -> Self:
        own = {network.network_address for network in self.ip_networks}
        for index, nat in enumerate(self.ip_nats):
            if nat.internal_ip not in own:
                raise broken(
                    "must be one of ipNetworks",
                    "ipNATs",
                    index,
                    "internalIP",
                    value=nat.internal_ip,
                    needs=("ipNetworks",),
                )
        return self


class WorkloadEndpoint(Resource):
    kind: Literal["WorkloadEndpoint"] = "WorkloadEndpoint"
    spec: WorkloadEndpointSpec = Field(default_factory=WorkloadEndpointSpec)

    def as_written(self) -> Self:
        """Add the two labels that policies select by, as every writer of endpoints does."""
        derived = {NAMESPACE_LABEL: self.metadata.namespace, ORCHESTRATOR_LABEL: self.spec.orchestrator}
        labels = {**self.metadata.labels, **{key: value for key, value in derived.items() if value}}
        return self.model_copy(update={"metadata": self.metadata.model_copy(update={"labels": labels})})
