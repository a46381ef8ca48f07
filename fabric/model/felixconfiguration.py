"""Decide which settings of a node's agent are valid (Calico's FelixConfiguration).

Every field that Calico has is known, so that a typo is an error; what acts here has an attribute of its own
in `ActingSettings`, the rest is kept and changes nothing. Defaults are never written. Words are taken in
any case, as Calico takes them, and kept in the case below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias, cast

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from fabric.model.base import Means, Model, Resource
from fabric.model.fields import (
    Duration,
    Flag,
    Int,
    IPv4,
    IPv6,
    LooseNet,
    LooseV4Net,
    NumericPortMatch,
    Port,
    PortNumber,
    SelectorText,
    broken,
    matching,
)


def _in_any_case(*words: str) -> BeforeValidator:
    kept = {word.lower(): word for word in words}
    return BeforeValidator(lambda text: kept.get(text.lower(), text) if isinstance(text, str) else text)


def _one_of(*words: str) -> Any:
    return Annotated[cast("Any", Literal)[words], _in_any_case(*words)]


Switch: TypeAlias = Annotated[Literal["Enabled", "Disabled"], _in_any_case("Enabled", "Disabled")]
Severity: TypeAlias = Annotated[
    Literal["Trace", "Debug", "Info", "Warning", "Error", "Fatal"],
    _in_any_case("Trace", "Debug", "Info", "Warning", "Error", "Fatal"),
]
HostAction: TypeAlias = Annotated[
    Literal["Drop", "Accept", "Return"], _in_any_case("Drop", "Accept", "Return")
]
Backend: TypeAlias = Annotated[Literal["Legacy", "NFT", "Auto"], _in_any_case("Legacy", "NFT", "Auto")]
Spoofing: TypeAlias = Annotated[Literal["Disabled", "Any"], _in_any_case("Disabled", "Any")]
Exclusions: TypeAlias = Annotated[
    Literal["IPPoolsOnly", "IPPoolsAndHostIPs"], _in_any_case("IPPoolsOnly", "IPPoolsAndHostIPs")
]
# As iptables takes it: a `+` at the end stands for any text.
InterfaceFilter = Annotated[
    str,
    matching(
        r"[a-zA-Z0-9:._-]{0,14}[a-zA-Z0-9:._+-]",
        "must be 1 to 15 letters, digits, ':', '.', '_' and '-', the last of which may be '+', for any text",
    ),
]
VXLAN_PORT: Final = 4789
VXLAN_VNI: Final = 4096
Vni = Annotated[int, Field(strict=True, ge=0, le=0xFFFFFF)]
Mark = Annotated[int, Field(strict=True, ge=0, le=0xFFFFFFFF)]
MARK_BITS: Final = 3  # that policy needs of a packet's mark


def _enough_bits(mask: int) -> int:
    if mask.bit_count() < MARK_BITS:
        raise ValueError(f"must have at least {MARK_BITS} bits set: policy marks packets with them")
    return mask


MarkMask = Annotated[Mark, AfterValidator(_enough_bits)]
Rate = Annotated[str, matching(r"[1-9][0-9]{0,3}/(second|minute|hour|day)", "must be N/second, N/minute …")]
DurationOrAuto = Annotated[
    str, matching(r"Auto|([0-9]+(\.[0-9]+)?(us|ms|s|m|h))+", "must be Auto or a duration, such as 40s")
]


class ProtoPort(Model):
    """A port that host endpoints leave open whatever policy says; `net` narrows it to a prefix."""

    blank_is_absent: ClassVar = frozenset({"net"})

    net: LooseNet | None = None
    protocol: Annotated[Literal["TCP", "UDP", "SCTP"], _in_any_case("TCP", "UDP", "SCTP")] = "TCP"
    port: Port


class HealthTimeoutOverride(Model):
    name: Annotated[str, matching(r"[a-zA-Z0-9_ -]+", "must be letters, digits, blanks, '_' and '-'")]
    timeout: Duration


class RouteTableRange(Model):
    min: Annotated[int, Field(strict=True, ge=1, le=0xFFFFFFFF)]
    max: Annotated[int, Field(strict=True, ge=1, le=0xFFFFFFFF)]

    @model_validator(mode="after")
    def _goes_upwards(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must not be greater than max")
        return self


class OldRouteTableRange(RouteTableRange):
    """What routeTableRanges replaced."""

    max: Annotated[int, Field(strict=True, ge=1, le=250)]


class ConntrackTimeouts(Model):
    creation_grace_period: DurationOrAuto | None = None
    tcp_syn_sent: DurationOrAuto | None = None
    tcp_established: DurationOrAuto | None = None
    tcp_fins_seen: DurationOrAuto | None = None
    tcp_reset_seen: DurationOrAuto | None = None
    udp_timeout: DurationOrAuto | None = None
    generic_timeout: DurationOrAuto | None = None
    icmp_timeout: DurationOrAuto | None = None


# What Calico leaves open on host endpoints, and BFD (RFC 5881, RFC 5883).
_PORTS_IN = "tcp:22,udp:68,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667,udp:3784,udp:4784"
_PORTS_OUT = "udp:53,udp:67,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667,udp:3784,udp:4784"


class ActingSettings(Model):
    """What the agent heeds. `route_refresh_interval` is the period of the kernel's read-back, 0 for none.

    Failsafe ports that are not given are FAILSAFE_IN and FAILSAFE_OUT; an empty list is none at all.
    """

    blank_is_absent: ClassVar = frozenset(
        {
            "logSeverityScreen",
            "defaultEndpointToHostAction",
            "iptablesBackend",
            "natOutgoingAddress",
            "natOutgoingExclusions",
            "iptablesNATOutgoingInterfaceFilter",
        }
    )

    node_selector: SelectorText | None = None
    route_refresh_interval: Annotated[Duration | None, Means("90s")] = None
    ip_forwarding: Annotated[Switch | None, Means("Enabled")] = None
    log_severity_screen: Annotated[Severity | None, Means("Info")] = None
    default_endpoint_to_host_action: Annotated[HostAction | None, Means("Drop")] = None
    failsafe_inbound_host_ports: Annotated[tuple[ProtoPort, ...] | None, Means(_PORTS_IN)] = None
    failsafe_outbound_host_ports: Annotated[tuple[ProtoPort, ...] | None, Means(_PORTS_OUT)] = None
    iptables_backend: Annotated[Backend | None, Means("Auto")] = None
    iptables_mark_mask: Annotated[MarkMask | None, Means(0xFFFF0000)] = None
    vxlan_port: Annotated[PortNumber | None, Means(VXLAN_PORT)] = Field(default=None, alias="vxlanPort")
    vxlan_vni: Annotated[Vni | None, Means(VXLAN_VNI)] = Field(default=None, alias="vxlanVNI")
    allow_vxlan_packets_from_workloads: Annotated[Flag | None, Means(False)] = Field(
        default=None, alias="allowVXLANPacketsFromWorkloads"
    )
    allow_ipip_packets_from_workloads: Annotated[Flag | None, Means(False)] = Field(
        default=None, alias="allowIPIPPacketsFromWorkloads"
    )
    workload_source_spoofing: Annotated[Spoofing | None, Means("Disabled")] = None
    disable_conntrack_invalid_check: Annotated[Flag | None, Means(False)] = None
    nat_port_range: NumericPortMatch | None = None
    nat_outgoing_address: IPv4 | None = None
    nat_outgoing_exclusions: Annotated[Exclusions | None, Means("IPPoolsOnly")] = None
    nat_outgoing_interfaces: InterfaceFilter | None = Field(
        default=None, alias="iptablesNATOutgoingInterfaceFilter"
    )


def _failsafe(ports: str) -> tuple[ProtoPort, ...]:
    pairs = (text.split(":") for text in ports.split(","))
    return tuple(ProtoPort(protocol="UDP" if p == "udp" else "TCP", port=int(port)) for p, port in pairs)


FAILSAFE_IN: Final = _failsafe(_PORTS_IN)
FAILSAFE_OUT: Final = _failsafe(_PORTS_OUT)

# The others, by type: NAME=DEFAULT, or NAME where absence means that the agent finds out or does nothing.
_KEPT: Final[tuple[tuple[Any, str], ...]] = (
    (
        Flag,
        """
        bpfConnectTimeLoadBalancingEnabled bpfDisableUnprivileged=true bpfEnabled=false
        bpfHostConntrackBypass=false bpfIPFragmentReassemblyEnabled=true
        bpfKubeProxyIptablesCleanupEnabled=true bpfPolicyDebugEnabled=true debugDisableLogDropping=false
        endpointReportingEnabled=false flowLogsCollectorDebugTrace=false
        genericXDPEnabled=false healthEnabled=false ipipEnabled ipv6Support=true
        prometheusGoMetricsEnabled=true prometheusMetricsEnabled=false prometheusProcessMetricsEnabled=true
        prometheusWireGuardMetricsEnabled=true removeExternalRoutes=true requireMTUFile=false
        routeSyncDisabled=false sidecarAccelerationEnabled=false usageReportingEnabled=true
        useInternalDataplaneDriver=true vxlanEnabled wireguardEnabled=false wireguardEnabledV6=false
        wireguardHostEncryptionEnabled=false wireguardThreadingEnabled=false xdpEnabled=true
        """,
    ),
    (
        Int,
        """
        bpfExportBufferSizeMB=1 bpfExtToServiceConnmark=0 bpfMaglevMaxEndpointsPerService=100
        bpfMaglevMaxServices=100 bpfMapSizeConntrack=512000 bpfMapSizeConntrackCleanupQueue=100000
        bpfMapSizeIPSets=1048576 bpfMapSizeIfState=1000 bpfMapSizeNATAffinity=65536
        bpfMapSizeNATBackend=262144 bpfMapSizeNATFrontend=65536 bpfMapSizePerCpuConntrack=0
        bpfMapSizeRoute=262144 deviceRouteProtocol=3 goGCThreshold=40 goMaxProcs=-1 goMemoryLimitMB=-1
        ipipMTU=0 ipv4ElevatedRoutePriority=512 ipv4NormalRoutePriority=1024 ipv6ElevatedRoutePriority=512
        ipv6NormalRoutePriority=1024 logActionRateLimitBurst=5 maxIpsetSize=1048576 vxlanMTU=0 vxlanMTUV6=0
        wireguardMTU=0 wireguardMTUV6=0 wireguardRoutingRulePriority=99
        """,
    ),
    (Mark, "nftablesMarkMask=4294901760"),
    (
        Port,
        """
        bpfKubeProxyHealthzPort=10256 debugPort=0 healthPort=9099 metadataPort=8775
        prometheusMetricsPort=9091 wireguardListeningPort=51820
        wireguardListeningPortV6=51821
        """,
    ),
    (NumericPortMatch, "bpfPSNATPorts=20000:29999"),
    (Annotated[tuple[NumericPortMatch, ...], Field(max_length=7)], "kubeNodePortRanges=30000:32767"),
    (
        Duration,
        """
        bpfIPFragTimeout bpfKubeProxyMinSyncPeriod=1s dataplaneWatchdogTimeout=90s
        debugSimulateCalcGraphHangAfter=0s debugSimulateDataplaneApplyDelay=0s
        debugSimulateDataplaneHangAfter=0s endpointReportingDelay=1s flowLogsFlushInterval=300s
        interfaceRefreshInterval=90s ipsetsRefreshInterval=90s iptablesLockProbeInterval=50ms
        iptablesPostWriteCheckInterval=5s iptablesRefreshInterval=180s
        liveMigrationRouteConvergenceTime=30s localSubnetL2ReachabilityRefreshInterval=120s
        netlinkTimeout=10s nftablesRefreshInterval=180s reportingInterval=30s reportingTTL=90s
        usageReportingInitialDelay=300s usageReportingInterval=86400s wireguardKeepAlive=0s
        xdpRefreshInterval=90s
        """,
    ),
    (Rate, "logActionRateLimit"),
    (Switch, "bpfHostNetworkedNATWithoutCTLB=Enabled bpfProfiling=Disabled floatingIPs=Disabled"),
    (Switch, "flowLogsLocalReporter=Disabled istioAmbientMode=Disabled windowsManageFirewallRules=Disabled"),
    (Severity, "logSeverityFile=Info logSeveritySys=Info"),
    (_one_of("DoNothing", "Enable", "Disable"), "awsSrcDstCheck=DoNothing"),
    (_one_of("TCX", "TC"), "bpfAttachType=TCX"),
    (_one_of("TCP", "Enabled", "Disabled"), "bpfConnectTimeLoadBalancing=TCP"),
    (_one_of("Off", "Debug"), "bpfConntrackLogLevel=Off"),
    (_one_of("Auto", "Userspace", "BPFProgram"), "bpfConntrackMode=Userspace"),
    (_one_of("Disabled", "Strict", "Loose"), "bpfEnforceRPF=Loose"),
    (_one_of("Tunnel", "DSR"), "bpfExternalServiceMode=Tunnel"),
    (_one_of("Auto", "Strict"), "bpfJITHardening=Auto"),
    (_one_of("Off", "Info", "Debug"), "bpfLogLevel=Off"),
    (_one_of("Disabled", "DoubleIfFull"), "bpfMapSizeConntrackScaling=DoubleIfFull"),
    (_one_of("TunnelAddress", "HostAddress"), "bpfOverlayHostSourceIP=TunnelAddress"),
    (_one_of("Enabled", "Disabled", "L2Only"), "bpfRedirectToPeer=Enabled"),
    (_one_of("Insert", "Append"), "chainInsertMode=Insert"),
    (_one_of("None", "Continuous"), "flowLogsPolicyEvaluationMode=Continuous"),
    (_one_of("Accept", "Return"), "iptablesFilterAllowAction=Accept iptablesMangleAllowAction=Accept"),
    (_one_of("Accept", "Return"), "nftablesFilterAllowAction=Accept nftablesMangleAllowAction=Accept"),
    (_one_of("Drop", "Reject"), "iptablesFilterDenyAction=Drop nftablesFilterDenyAction=Drop"),
    (_one_of("Disabled", "PodsAndLoadBalancers"), "localSubnetL2Reachability=Disabled"),
    (_one_of("Disabled", "Enabled", "Auto"), "nftablesMode=Auto"),
    (
        _one_of("Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"),
        "programClusterRoutes=EnabledIPIPOnly",
    ),
    (
        _one_of(
            "RequireAndVerifyClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "NoClientCert"
        ),
        "prometheusMetricsClientAuth=NoClientCert",
    ),
    (_one_of("WorkloadIPs", "CalicoIPAM"), "routeSource=CalicoIPAM"),
    (_one_of("Drop", "Reject", "Disabled"), "serviceLoopPrevention=Drop"),
    (
        str,
        r"""
        bpfCTLBLogFilter bpfDataIfacePattern=^((en|wl|ww|sl|ib)[Popsx].*|(eth|wlan|wwan|bond).*)
        bpfDisableGROForIfaces bpfL3IfacePattern cgroupV2Path dataplaneDriver=calico-iptables-plugin
        debugHost=localhost debugMemoryProfilePath endpointStatusPathPrefix=/var/run/calico
        featureDetectOverride featureGates flowLogsGoldmaneServer healthHost=localhost
        interfaceExclude=kube-ipvs0 interfacePrefix=cali
        logDebugFilenameRegex logFilePath=/var/log/calico/felix.log logPrefix=calico-packet
        metadataAddr=127.0.0.1 mtuIfacePattern=^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)
        nftablesFlowTableDataIfacePattern nftablesFlowTableOffload=Disabled openstackRegion
        policySyncPathPrefix prometheusMetricsCAFile prometheusMetricsCertFile prometheusMetricsHost
        prometheusMetricsKeyFile wireguardInterfaceName=wireguard.cali wireguardInterfaceNameV6=wg-v6.cali
        """,
    ),
    (IPv4, "deviceRouteSourceAddress"),
    (IPv6, "deviceRouteSourceAddressIPv6"),
    (tuple[LooseNet, ...], "bpfDSROptoutCIDRs bpfExcludeCIDRsFromNAT"),
    (tuple[LooseV4Net, ...], "externalNodesList"),
    (tuple[str, ...], "bpfForceTrackPacketsFromIfaces=docker+"),
    (Mapping[str, str], "bpfLogFilters"),
    (ConntrackTimeouts, "bpfConntrackTimeouts"),
    (tuple[HealthTimeoutOverride, ...], "healthTimeoutOverrides"),
    (Int | str, "istioDSCPMark=23"),
    (OldRouteTableRange, "routeTableRange"),
    (tuple[RouteTableRange, ...], "routeTableRanges"),
)


def _blank_is_absent() -> frozenset[str]:
    # Wherever "" is no value of its own: Calico's own tools store "bpfLogLevel":"".
    kept = (
        word.partition("=")[0]
        for annotation, words in _KEPT
        if annotation is not str
        for word in words.split()
    )
    return ActingSettings.blank_is_absent.union(kept)


def _kept_fields() -> Iterator[tuple[str, Any]]:
    for annotation, words in _KEPT:
        for word in words.split():
            name, _, text = word.partition("=")
            means = _means(annotation, text)
            typed = Annotated[annotation | None, Means(means)] if text else annotation | None
            yield name, (typed, Field(default=None, alias=name))


def _means(annotation: Any, text: str) -> object:
    if annotation is Flag:
        return text == "true"
    return int(text) if text.lstrip("-").isdigit() else text


if TYPE_CHECKING:
    FelixConfigurationSpec: TypeAlias = ActingSettings
else:
    FelixConfigurationSpec = create_model(
        "FelixConfigurationSpec", __base__=ActingSettings, __module__=__name__, **dict(sorted(_kept_fields()))
    )
    FelixConfigurationSpec.blank_is_absent = _blank_is_absent()


class FelixConfiguration(Resource):
    """`default` is every node's, `node.<name>` one node's; any other name needs `nodeSelector` to count.

    An empty list of failsafe ports leaves none open.
    """

    kind: Literal["FelixConfiguration"] = "FelixConfiguration"
    spec: FelixConfigurationSpec = Field(default_factory=FelixConfigurationSpec)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        name, spec = self.metadata.name, self.spec
        if spec.node_selector is not None and (name == "default" or name.startswith("node.")):
            raise broken(f'is not for "{name}", which says itself whose it is', "spec", "nodeSelector")
        given = spec.model_fields_set
        if {"routeTableRange", "routeTableRanges"} <= given:
            raise broken("excludes routeTableRanges", "spec", "routeTableRange")
        return self
