"""Which live connections are cut and which go on, as a table of policies and flows."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from policy.compile import compile as compiled
from policy.cut import Cut, cut, local
from policy.flows import Ends, Flow
from policy.form import ICMP, TCP, UDP, Failsafe, Icmp, Origin, Site
from policy.marks import CUT
from policy.world import Resources, World
from tests.unit.loading import resources_in

WORKLOAD = """
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {{name: {node}-k8s-{name}-eth0, namespace: default, labels: {{app: {name}}}}}
spec:
  {{node: {node}, orchestrator: k8s, pod: {name}, workload: {name}, endpoint: eth0, interfaceName: fab{name},
    profiles: [kns.default], ipNetworks: [{v4}/32, "{v6}/128"]}}
"""
WEB, DB, FAR = "10.1.0.1", "10.1.0.2", "10.2.0.1"
WEB6, FAR6 = "fd00:1::1", "fd00:2::1"
OUTSIDE, HOST = "203.0.113.7", "192.0.2.1"
ENDPOINTS = "---".join(
    WORKLOAD.format(node=node, name=name, v4=v4, v6=v6)
    for node, name, v4, v6 in (
        ("n1", "web", WEB, WEB6),
        ("n1", "db", DB, "fd00:1::2"),
        ("n2", "far", FAR, FAR6),
    )
)
NAMESPACE = """
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: kns.default}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}
"""


def policy(name: str, spec: str, kind: str = "NetworkPolicy", keep: bool = False) -> str:
    note = ', annotations: {"fabricctl.io/on-change": keep}' if keep else ""
    return f"""
apiVersion: projectcalico.org/v3
kind: {kind}
metadata: {{name: {name}, namespace: default{note}}}
spec: {spec}
"""


HTTP = "{action: Allow, protocol: TCP, destination: {ports: [80]}}"
WEB_HTTP = policy("web", f"{{selector: app == 'web', types: [Ingress], ingress: [{HTTP}]}}")
FROM_7 = "{action: Allow, protocol: TCP, source: {ports: [7]}}"
WEB_FROM_7 = policy("web", f"{{selector: app == 'web', types: [Ingress], ingress: [{FROM_7}]}}")
WEB_CLOSED = policy("web", "{selector: app == 'web', types: [Ingress], ingress: [{action: Deny}]}")
WEB_NOTHING = policy("web", "{selector: app == 'web', types: [Ingress]}")
ALL_EGRESS_CLOSED = policy("all", "{selector: all(), types: [Egress], egress: [{action: Deny}]}")


def world(*documents: str) -> World:
    return compiled(Resources.of(resources_in("---".join((ENDPOINTS, NAMESPACE, *documents)))))


SITE = Site("n1", links={"eth0": frozenset({ip_address(HOST)})})


def flow(
    source: str, destination: str, port: int = 80, protocol: int = TCP, source_port: int = 40000
) -> Flow:
    first = Ends(ip_address(source), ip_address(destination), protocol, source_port, port)
    return Flow(first, Ends(first.destination, first.source, protocol, port, source_port))


def dnat(source: str, at: str, port: int, to: str, to_port: int) -> Flow:
    base = flow(source, at, port)
    return replace(base, reply=base.reply._replace(source=ip_address(to), source_port=to_port))


def marked(one: Flow, bits: int = CUT) -> Flow:
    return replace(one, mark=bits)


def echo(source: str, destination: str) -> Flow:
    base = flow(source, destination, 0, ICMP, 0)
    return replace(
        base, original=base.original._replace(icmp=Icmp(8, 0)), reply=base.reply._replace(icmp=Icmp(0, 0))
    )


CASES = {
    "without policy nothing is cut": ([], flow(FAR, WEB), False),
    "what is allowed goes on": ([WEB_HTTP], flow(FAR, WEB), False),
    "another port is cut": ([WEB_HTTP], flow(FAR, WEB, 22), True),
    "of IPv6 too": ([WEB_HTTP], flow(FAR6, WEB6, 22), True),
    "of outside clients too": ([WEB_CLOSED], flow(OUTSIDE, WEB), True),
    "by the end of the tier too": ([WEB_NOTHING], flow(OUTSIDE, WEB), True),
    "what the workload itself opened goes on": ([WEB_CLOSED], flow(WEB, FAR), False),
    "its neighbour is not touched": ([WEB_CLOSED], flow(FAR, DB), False),
    "egress is cut where the source is": ([ALL_EGRESS_CLOSED], flow(WEB, FAR), True),
    "and not here where it is elsewhere": ([ALL_EGRESS_CLOSED], flow(FAR, WEB), False),
    "UDP": ([WEB_HTTP], flow(FAR, WEB, 53, UDP), True),
    "UDP that the server began": ([WEB_HTTP], flow(WEB, FAR, 40000, UDP, 53), False),
    "ICMP": ([WEB_HTTP], echo(FAR, WEB), True),
    "DNAT: where it arrives counts": ([WEB_CLOSED], dnat(OUTSIDE, HOST, 8080, WEB, 80), True),
    "DNAT: to an allowed port": ([WEB_HTTP], dnat(OUTSIDE, HOST, 8080, WEB, 80), False),
    "DNAT: the port before it is nothing": ([WEB_HTTP], dnat(OUTSIDE, HOST, 80, WEB, 8080), True),
    "a source port that a rule asks for": ([WEB_FROM_7], flow(OUTSIDE, WEB), True),
    "and one that it allows": ([WEB_FROM_7], flow(OUTSIDE, WEB, source_port=7), False),
    "staged policy cuts nothing": (
        [policy("web", "{selector: app == 'web', types: [Ingress], ingress: [{action: Deny}]}", "StagedNetworkPolicy")],
        flow(FAR, WEB),
        False,
    ),
    "keep spares what its rule denies": (
        [policy("web", "{selector: app == 'web', types: [Ingress], ingress: [{action: Deny}]}", keep=True)],
        flow(FAR, WEB),
        False,
    ),
    "keep spares what the end of its tier denies": (
        [policy("web", "{selector: app == 'web', types: [Ingress]}", keep=True)],
        flow(FAR, WEB),
        False,
    ),
    "the end of a tier with another policy in it cuts": (
        [
            policy("web", "{selector: app == 'web', types: [Ingress]}", keep=True),
            policy("more", "{selector: app == 'web', types: [Ingress]}"),
        ],
        flow(FAR, WEB),
        True,
    ),
    "keep spares nothing that another rule denies": (
        [
            policy("a", "{order: 1, selector: app == 'web', types: [Ingress], ingress: [{action: Deny}]}"),
            policy("b", "{order: 2, selector: app == 'web', types: [Ingress], ingress: [{action: Deny}]}", keep=True),
        ],
        flow(FAR, WEB),
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("policies", "live", "is_cut"), CASES.values(), ids=CASES.keys())
def test_a_live_connection(policies: list[str], live: Flow, is_cut: bool) -> None:
    # Each together with others that take the place of its answer if they are wrongly held to be alike.
    others = [flow(OUTSIDE, DB), flow(OUTSIDE, WEB, 81), flow("203.0.113.8", WEB)]
    found = cut(world(*policies), SITE, [*others, live])
    assert (live in found.mark) is is_cut
    assert not found.clear


def test_a_cut_connection_that_is_allowed_again_is_cleared_and_no_other() -> None:
    other_bits = marked(flow(FAR, DB), 0x7FFFFFFF)
    flows = [marked(flow(FAR, WEB), CUT | 1), marked(flow(FAR, WEB, 22)), flow(FAR, WEB, 23), other_bits]
    found = cut(world(WEB_HTTP), SITE, flows)
    assert found == Cut((flows[2],), (flows[0],))
    assert found.by == (Origin("tier", "default", "Ingress"),)
    assert cut(world(), SITE, flows) == Cut((), (flows[0], flows[1]))


def test_a_mark_goes_once_the_workload_is_gone() -> None:
    stale = marked(flow("10.9.9.9", "10.1.0.77"))
    assert cut(world(WEB_CLOSED), SITE, [stale]) == Cut((), (stale,))


def test_what_was_cut_and_is_spared_by_now_stays_cut() -> None:
    spared = policy("web", "{selector: app == 'web', types: [Ingress], ingress: [{action: Deny}]}", keep=True)
    assert cut(world(spared), SITE, [marked(flow(FAR, WEB))]) == Cut()


def test_a_connection_that_came_with_another_shares_its_fate() -> None:
    control = flow(FAR, WEB, 21)
    data = replace(flow(WEB, FAR, 40001, TCP, 20), master=control.original)
    orphan = replace(flow(FAR, WEB, 40002), master=flow(FAR, WEB, 22).original)
    assert cut(world(WEB_CLOSED), SITE, [data, control, orphan]).mark == (data, control)
    assert cut(world(), SITE, [data, control, orphan]) == Cut()


def test_nets_tell_outside_clients_apart() -> None:
    rule = "{action: Allow, source: {nets: [203.0.113.0/24], notNets: [203.0.113.8/32]}}"
    only = policy("web", f"{{selector: app == 'web', types: [Ingress], ingress: [{rule}]}}")
    flows = [
        flow(source, WEB)
        for source in ("203.0.113.7", "203.0.113.8", "203.0.113.9", "198.51.100.1", "198.51.100.2")
    ]
    assert cut(world(only), SITE, flows).mark == (flows[1], flows[3], flows[4])


def test_network_sets_tell_outside_clients_apart() -> None:
    partners = """
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: partners, namespace: default, labels: {who: partner}}
spec: {nets: [203.0.113.0/29]}
"""
    only = policy(
        "web",
        "{selector: app == 'web', types: [Ingress], ingress: [{action: Allow, source: {selector: who == 'partner'}}]}",
    )
    flows = [flow(source, WEB) for source in ("203.0.113.9", "203.0.113.7", "203.0.113.6", "198.51.100.1")]
    assert cut(world(only, partners), SITE, flows).mark == (flows[0], flows[3])


HOST_ENDPOINT = """
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: n1-eth0}
spec: {node: n1, interfaceName: eth0}
"""


def test_the_hosts_own_connections_are_judged_by_its_host_endpoint_and_failsafes_are_not_cut() -> None:
    site = replace(SITE, failsafe_in=(Failsafe(TCP, 22),))
    assert ip_address(HOST) not in local(world(), site)
    guarded = world(HOST_ENDPOINT)
    assert ip_address(HOST) in local(guarded, site)
    flows = [flow(OUTSIDE, HOST, 8080), flow(OUTSIDE, HOST, 22), flow(HOST, WEB)]
    assert cut(guarded, site, flows).mark == (flows[0],)
    assert cut(world(), site, flows) == Cut()


BEFORE_DNAT = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: ports}
spec:
  selector: has(edge)
  preDNAT: true
  applyOnForward: true
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, destination: {ports: [8080]}}
  - {action: Deny}
"""


def test_a_policy_ahead_of_dnat_judges_the_port_that_the_client_asked_for() -> None:
    edge = HOST_ENDPOINT.replace("name: n1-eth0", "name: n1-eth0, labels: {edge: x}")
    flows = [dnat(OUTSIDE, HOST, 8080, WEB, 80), dnat(OUTSIDE, HOST, 80, WEB, 8080)]
    assert cut(world(edge, BEFORE_DNAT), SITE, flows).mark == (flows[1],)


def test_local_addresses_are_those_of_this_nodes_workloads() -> None:
    assert local(world(), SITE) == set(map(ip_address, (WEB, WEB6, DB, "fd00:1::2")))
