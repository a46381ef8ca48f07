"""Decide what a policy or a profile says in the neutral form (calico-semantics §§2.3 to 2.5).

What cannot be enforced here, or cannot be read, breaks a policy: it has no rules then, and denies what it selects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from fabric.errors import ConfigError
from fabric.model import convert, extensions
from fabric.model.policy import (
    KUBERNETES_NAME,
    GlobalNetworkPolicy,
    GlobalNetworkPolicySpec,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
)
from fabric.model.profile import Profile as ProfileResource
from fabric.model.rule import ICMP, EntityRule
from fabric.model.rule import Rule as RuleResource
from policy import form, labels, selector
from policy.form import DIRECTIONS, PROTOCOLS, SCTP, TCP, UDP, Direction, Key, PortRange
from policy.selector import Selector

GlobalPolicy: TypeAlias = GlobalNetworkPolicy | StagedGlobalNetworkPolicy
NamespacedPolicy: TypeAlias = NetworkPolicy | StagedNetworkPolicy
PolicyResource: TypeAlias = GlobalPolicy | NamespacedPolicy | StagedKubernetesNetworkPolicy

POLICIES: Final = frozenset(
    {
        "GlobalNetworkPolicy",
        "NetworkPolicy",
        "StagedGlobalNetworkPolicy",
        "StagedKubernetesNetworkPolicy",
        "StagedNetworkPolicy",
    }
)
# Kinds that decide something; those that are staged count, and what cannot be read counts nothing.
ENFORCED: Final = frozenset({"NetworkPolicy", "GlobalNetworkPolicy"})
# What a broken policy does instead of what it says.
DENIES: Final = "it denies what it selects"
COUNTS: Final = "it counts what it selects as denied"


@dataclass(frozen=True, slots=True)
class Compiled:
    """One policy: None where it takes no part. `subject` selects what it is for, `peers` are its rules' selectors."""

    key: Key
    policy: form.Policy | None = None
    subject: Selector | None = None
    peers: Mapping[str, Selector] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ProfileForm:
    """A profile, the labels that it hands on, whether it has drops named, and its rules' selectors."""

    profile: form.Profile
    labels: form.Labels = field(default_factory=dict)
    drop_log: bool = False
    peers: Mapping[str, Selector] = field(default_factory=dict)
    problem: str = ""


def policy(resource: PolicyResource, key: Key) -> Compiled:
    """Return what `resource` says."""
    if getattr(resource.spec, "staged_action", "Set") != "Set":
        return Compiled(key)
    if isinstance(resource, StagedKubernetesNetworkPolicy):
        return _kubernetes(resource, key)
    return _policy(resource, key, of_kubernetes=is_of_kubernetes(key, resource.spec.selector))


def is_of_kubernetes(key: Key, own: str) -> bool:
    """Whether a policy is Kubernetes' by its name or, exported or converted under another one, by its selector `own`.

    Its orchestrator term then counts as true for every workload. Raises ConfigError for a selector that is none.
    """
    if key.name.startswith(KUBERNETES_NAME):
        return True
    return bool(key.namespace and own) and labels.is_of_kubernetes(selector.parse(own))


def _kubernetes(resource: StagedKubernetesNetworkPolicy, key: Key) -> Compiled:
    converted = convert.converted(convert.of_staged(resource))
    if isinstance(converted, NetworkPolicy):
        return _policy(converted, key, of_kubernetes=True)
    return Compiled(key, problem=f"{'; '.join(map(str, converted))}; it counts nothing")


def _policy(resource: GlobalPolicy | NamespacedPolicy, key: Key, *, of_kubernetes: bool) -> Compiled:
    spec, given = resource.spec, resource.metadata.annotations
    of_all = spec if isinstance(spec, GlobalNetworkPolicySpec) else None
    namespaces = of_all.namespace_selector if of_all else ""
    selected = subject(key.namespace, spec.selector, spec.service_account_selector, namespaces)
    if of_kubernetes:
        selected = labels.of_any_orchestrator(selected)
    scan = _Scan(key.namespace, of_kubernetes)
    types: tuple[Direction, ...] = spec.types or DIRECTIONS
    rules: dict[Direction, tuple[form.Rule, ...] | None] = {"Ingress": None, "Egress": None}
    broken = ""
    try:
        for direction in types:
            listed = spec.ingress if direction == "Ingress" else spec.egress
            rules[direction] = scan.rules(listed, f"spec.{direction.lower()}")
    except ConfigError as err:
        broken = str(err)
        rules = {direction: () if direction in types else None for direction in DIRECTIONS}
    compiled = form.Policy(
        key=key,
        tier=spec.tier,
        order=spec.order,
        selector=str(selected),
        ingress=rules["Ingress"],
        egress=rules["Egress"],
        staged=key.kind not in ENFORCED,
        do_not_track=of_all is not None and of_all.do_not_track,
        pre_dnat=of_all is not None and of_all.pre_dnat,
        apply_on_forward=of_all is None or of_all.apply_on_forward,
        keep=extensions.value(given, extensions.ON_CHANGE, extensions.on_change, "cut") == "keep",
        drop_log=extensions.value(given, extensions.DROP_LOG, extensions.switch, False),
        broken=broken,
    )
    problem = f"{broken}; {COUNTS if compiled.staged else DENIES}" if broken else ""
    return Compiled(key, compiled, selected, {} if broken else scan.selectors, problem)


def subject(namespace: str, own: str, service_accounts: str, namespaces: str) -> Selector:
    """Return what a policy applies to, of its three selectors. Raises ConfigError for one that is none."""
    everything = None if namespace else labels.HAS_SERVICE_ACCOUNT
    found = labels.both(
        labels.of_namespace(namespace) if namespace else None,
        selector.parse(own) if own else None,
        labels.of_namespaces(namespaces) if namespaces else None,
        labels.of_service_accounts(service_accounts, everything=everything) if service_accounts else None,
    )
    return found or selector.All()


def profile(resource: ProfileResource) -> ProfileForm:
    """Return what `resource` says; one that cannot be enforced has no rules, and hands on its labels all the same."""
    name, handed_on = resource.metadata.name, resource.spec.labels_to_apply
    scan = _Scan("", of_kubernetes=False)
    try:
        ingress = scan.rules(resource.spec.ingress, "spec.ingress")
        egress = scan.rules(resource.spec.egress, "spec.egress")
    except ConfigError as err:
        problem = f"{err}; it allows nothing"
        return ProfileForm(form.Profile(name), handed_on, problem=problem)
    return ProfileForm(form.Profile(name, ingress, egress), handed_on, peers=scan.selectors)


class _Scan:
    """The rules of one policy or profile; `selectors` are those of the sets that they name."""

    def __init__(self, namespace: str, of_kubernetes: bool) -> None:
        self.namespace, self.of_kubernetes = namespace, of_kubernetes
        self.selectors: dict[str, Selector] = {}

    def rules(self, listed: tuple[RuleResource, ...], path: str) -> tuple[form.Rule, ...]:
        """Raises ConfigError where one of them cannot be enforced."""
        found = []
        for index, rule in enumerate(listed):
            try:
                found.append(self._rule(rule, index))
            except ConfigError as err:
                raise ConfigError(f"{path}[{index}].{err}") from None
        return tuple(found)

    def _rule(self, rule: RuleResource, index: int) -> form.Rule:
        if rule.http:
            raise ConfigError("http: is not enforced here: nothing reads what is inside of connections")
        protocol = number_of(rule.protocol) if rule.protocol else None
        ported = protocol if protocol in (UDP, SCTP) else TCP  # as Calico: a port's name alone is of TCP
        noted = rule.metadata.annotations if rule.metadata else {}
        return form.Rule(
            index=index,
            action=rule.action,
            version=_version(rule, protocol),
            protocol=protocol,
            not_protocol=number_of(rule.not_protocol) if rule.not_protocol else None,
            icmp=_icmp(rule.icmp),
            not_icmp=_icmp(rule.not_icmp),
            source=self._end(rule.source, ported, "source"),
            destination=self._end(rule.destination, ported, "destination"),
            note=tuple(f"{key}={value}" for key, value in sorted(noted.items())) if noted else (),
        )

    def _end(self, end: EntityRule, protocol: int, name: str) -> form.End:
        if not end.model_fields_set:
            return _ANY
        if end.services:
            raise ConfigError(f"{name}.services: is not enforced here: services are Kubernetes'")
        try:
            selected, not_selected = self._selected(end)
        except ConfigError as err:
            raise ConfigError(f"{name}.{err}") from None
        ports, named = _split(end.ports)
        not_ports, not_named = _split(end.not_ports)
        within = self._name(selected or selector.All()) if named or not_named else ""
        return form.End(
            nets=end.nets,
            not_nets=end.not_nets,
            # Ports that all go by name are looked up among those that are selected, so that was asked.
            selected=form.AddressSet(self._name(selected)) if selected and (ports or not named) else None,
            not_selected=form.AddressSet(self._name(not_selected)) if not_selected else None,
            ports=ports,
            named=tuple(form.PortSet(within, protocol, port) for port in named),
            not_ports=not_ports,
            not_named=tuple(form.PortSet(within, protocol, port) for port in not_named),
        )

    def _selected(self, end: EntityRule) -> tuple[Selector | None, Selector | None]:
        """Return what the address must be selected by, and must not."""
        accounts = end.service_accounts
        terms: list[Selector] = []
        if accounts and accounts.selector:
            terms.append(labels.of_service_accounts(accounts.selector))
        if accounts and accounts.names:
            terms.append(labels.of_named_service_accounts(accounts.names))
        if end.selector:
            terms.append(selector.parse(end.selector))
        excluded = selector.parse(end.not_selector) if end.not_selector else None
        if end.namespace_selector:
            terms.insert(0, labels.of_namespaces(end.namespace_selector))
        elif self.namespace and (terms or excluded):
            terms.insert(0, labels.of_namespace(self.namespace))
        if self.of_kubernetes:
            terms = [labels.of_any_orchestrator(term) for term in terms]
        # Outside addresses are not selected either; with something to select, what is not is a part of it.
        if terms and excluded:
            return labels.both(*terms, labels.negated(excluded)), None
        return labels.both(*terms), excluded

    def _name(self, term: Selector) -> str:
        text = str(term)
        self.selectors[text] = term
        return text


_ANY: Final = form.End()


def _split(ports: tuple[int | str, ...]) -> tuple[tuple[PortRange, ...], list[str]]:
    """Return the ranges, and the names."""
    ranges: list[PortRange] = []
    names: list[str] = []
    for port in ports:
        if isinstance(port, int):
            ranges.append(PortRange(port, port))
        elif ":" in port:
            low, _, high = port.partition(":")
            ranges.append(PortRange(int(low), int(high)))
        else:
            names.append(port)
    return tuple(ranges), names


def number_of(protocol: int | str) -> int:
    """Return IANA's number of a protocol."""
    return PROTOCOLS[protocol] if isinstance(protocol, str) else protocol


def _icmp(icmp: ICMP | None) -> form.Icmp | None:
    return form.Icmp(icmp.type, icmp.code) if icmp and icmp.type is not None else None


def _version(rule: RuleResource, protocol: int | None) -> Literal[4, 6] | None:
    if rule.ip_version:
        return rule.ip_version
    for end in (rule.source, rule.destination):
        for net in end.nets + end.not_nets:
            return net.version
    by_protocol: Mapping[int | None, Literal[4, 6]] = {form.ICMP: 4, form.ICMPV6: 6}
    return by_protocol.get(protocol)
