"""Decide what one workload endpoint needs on its node: a link, and a route to each of its addresses."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_network

from fabric.model import extensions
from fabric.model.workloadendpoint import WorkloadEndpoint, name_of
from fabric.plan import publish
from fabric.plan.links import Address, Veth
from fabric.plan.mtu import Mtus
from fabric.plan.routes import NextHop, Route, RouteKey

NETNS_ANNOTATION = extensions.NETNS  # where the container is on its node; Calico has no field for it


ORCHESTRATOR = "fabricctl"


def handle_of(namespace: str, endpoint: str) -> str:
    """Return the IPAM handle of the endpoint of that full name; no two share one, as a namespace has no dot."""
    return f"{ORCHESTRATOR}.{namespace}.{endpoint}"


def is_handle_of(node: str, handle: str) -> bool:
    """Whether `handle` is of an endpoint that was attached on `node` by us."""
    orchestrator, _, rest = handle.partition(".")
    endpoint = rest.partition(".")[2]
    return orchestrator == ORCHESTRATOR and endpoint.startswith(
        name_of((node, ORCHESTRATOR, "", "")).removesuffix("-")
    )


def veth(endpoint: WorkloadEndpoint, mtus: Mtus) -> Veth | None:
    """Return the link of `endpoint`, or None where it has none of ours (another agent made it)."""
    netns = endpoint.metadata.annotations.get(NETNS_ANNOTATION)
    if not netns or not endpoint.spec.mac or not endpoint.spec.interface_name:
        return None
    return Veth(
        name=endpoint.spec.interface_name,
        netns=netns,
        interface=endpoint.spec.endpoint,
        mac=endpoint.spec.mac,
        addresses=tuple(prefix.network_address for prefix in endpoint.spec.ip_networks),
        mtus=mtus,
        localnet=publish.localnet(endpoint),
    )


def routes(links: Iterable[Veth]) -> list[Route]:
    """Return the host's routes to the containers behind `links`: each address on its own link."""
    return [_route(address, link.name) for link in links for address in link.addresses]


@lru_cache(maxsize=4096)  # every pass asks for all of them, and making one costs ten times as much as looking
def _route(address: Address, link: str) -> Route:
    return Route(RouteKey(ip_network(address)), frozenset({NextHop(device=link)}))
