"""Decide which of our own annotations are valid: they say what Calico has no field for.

A file with a bad one is refused; a stored one is a problem for whoever acts on it, and its default holds, so
that a mistake in an annotation never makes the agent lose the object that carries it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal, TypeVar, cast

from fabric.model.fields import Address, valid_labels

T = TypeVar("T")

PREFIX: Final = "fabricctl.io/"
NODE_ID: Final = "fabricctl.io/node-id"
DEFAULT_ROUTE: Final = "fabricctl.io/default-route"
DRAINED: Final = "fabricctl.io/drained"
PEER: Final = "fabricctl.io/peer"
SOURCE: Final = "fabricctl.io/source"
AS_LABEL: Final = "fabricctl.io/as-label"
LOCAL_AS_LABEL: Final = "fabricctl.io/local-as-label"
REQUIRED: Final = "fabricctl.io/required"
EXTENDED_NEXT_HOP: Final = "fabricctl.io/extended-next-hop"
MAX_PREFIX: Final = "fabricctl.io/max-prefix"
IMPORT: Final = "fabricctl.io/import"
EXPORT: Final = "fabricctl.io/export"
NETNS: Final = "fabricctl.io/netns"
ON_CHANGE: Final = "fabricctl.io/on-change"
DROP_LOG: Final = "fabricctl.io/drop-log"
FORWARDING: Final = "fabricctl.io/forwarding"
KUBERNETES: Final = "fabricctl.io/kubernetes"
TUNNEL_FALLBACK: Final = "fabricctl.io/tunnel-fallback"
BGP: Final = "fabricctl.io/bgp"
LACKS: Final = "fabricctl.io/lacks"

AUTO_GATEWAY: Final = "auto-gateway"
UPLINK: Final = "uplink"


def one_of(*words: str) -> Callable[[str], str]:
    """Return a reader of one of `words`."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return text

    return read


def flag(text: str) -> bool:
    """Return whether `text` says true. Raises ValueError where it is neither true nor false."""
    return one_of("true", "false")(text) == "true"


def switch(text: str) -> bool:
    """Return whether `text` says on. Raises ValueError where it is neither on nor off."""
    return one_of("on", "off")(text) == "on"


def count(text: str) -> int:
    """Return the whole number in `text`. Raises ValueError for another text."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("must be a whole number, 0 to 999999999")
    return int(text)


def label_key(text: str) -> str:
    """Return `text`, which can be a label's key. Raises ValueError otherwise."""
    valid_labels({text: ""})
    return text


def addresses(text: str) -> frozenset[Address]:
    """Return the addresses in a list with commas. Raises ValueError where one of them is none."""
    try:
        if "%" in text:  # a scope means another link on each node
            raise ValueError
        return frozenset(ip_address(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("must be addresses, with commas between them") from None


def tunnels(text: str) -> frozenset[Literal["ipip", "vxlan"]]:
    """Return the kinds of tunnel in a list with commas. Raises ValueError where one of them is none."""
    found = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not found <= {"ipip", "vxlan"}:
        raise ValueError("must be ipip, vxlan, or both with a comma between them")
    return cast('frozenset[Literal["ipip", "vxlan"]]', found)


policy = one_of("safe", "calico")
on_change = one_of("cut", "keep")
forwarding = one_of("keep", "accept")
tunnel_fallback = one_of("vxlan")


@dataclass(frozen=True, slots=True)
class Extension:
    """One annotation: who reads it (None takes any text), and in words what it takes, its default and its meaning."""

    read: Callable[[str], object] | None
    allowed: str
    default: str
    meaning: str


_POLICY = "`safe`, `calico`"
_OF_BOTH: Final[Mapping[str, Extension]] = {
    IMPORT: Extension(
        policy,
        _POLICY,
        "`safe`",
        "what comes in where no filter decides: prefixes in our pools, and a default route where the host has none; "
        "or everything",
    ),
    EXPORT: Extension(
        policy,
        _POLICY,
        "`safe`",
        "what goes out where no filter decides: what is the node's own, and on a reflector what it reflects; "
        "or everything in our pools",
    ),
    MAX_PREFIX: Extension(
        count,
        "a whole number; 0 for no limit",
        "`10000`",
        "a peer that sends more prefixes has its session closed",
    ),
}

_DROP_LOG = "`on`, `off`"
_OF_POLICIES: Final[Mapping[str, Extension]] = {
    ON_CHANGE: Extension(
        on_change,
        "`cut`, `keep`",
        "`cut`",
        "what becomes of live connections that a change of the policy denies",
    ),
    DROP_LOG: Extension(
        switch,
        _DROP_LOG,
        "`off`",
        "a line in the log for what the policy denies, with both ends and the rule",
    ),
}
_OF_NAMESPACES: Final[Mapping[str, Extension]] = {
    DROP_LOG: Extension(
        switch,
        _DROP_LOG,
        "`off`",
        "of a profile `kns.NAMESPACE`: a line in the log for all that the namespace's endpoints are denied",
    ),
}

KNOWN: Final[Mapping[str, Mapping[str, Extension]]] = {
    "BGPConfiguration": {
        AS_LABEL: Extension(
            label_key,
            "a label's key",
            "",
            "a node's AS number is the value of its label, unless it has one in its spec",
        ),
        **_OF_BOTH,
    },
    "BGPPeer": {
        PEER: Extension(
            one_of(AUTO_GATEWAY),
            f"`{AUTO_GATEWAY}`",
            "",
            "in place of `peerIP`: one session with each default gateway of the host that is not BGP's own",
        ),
        AS_LABEL: Extension(
            label_key,
            "a label's key",
            "",
            "in place of `asNumber`: the peer's AS number is the value of this node's label",
        ),
        LOCAL_AS_LABEL: Extension(
            label_key,
            "a label's key",
            "",
            "in place of `localASNumber`: it is the value of this node's label",
        ),
        SOURCE: Extension(
            one_of(UPLINK),
            f"`{UPLINK}`",
            "",
            "source and next hop are this host's address on the link where the peer is, if there is one",
        ),
        REQUIRED: Extension(
            flag,
            "`true`, `false`",
            "`false`",
            "the node is ready only while a session that is required is Established",
        ),
        EXTENDED_NEXT_HOP: Extension(
            flag, "`true`, `false`", "`false`", "an IPv6 session carries IPv4 prefixes too (RFC 8950)"
        ),
        **_OF_BOTH,
        NODE_ID: Extension(
            None, "text", "", "the node that it came with, by `node join --peer`, and that it goes with"
        ),
    },
    "Node": {
        DEFAULT_ROUTE: Extension(
            one_of("install"), "`install`", "", "take a default route from BGP beside the host's own"
        ),
        DRAINED: Extension(
            addresses,
            "addresses with commas",
            "",
            "peers that are drained; `fabricctl bgp drain` and `undrain` write it",
        ),
        NODE_ID: Extension(None, "text", "", "the host that the name belongs to"),
        DROP_LOG: Extension(
            switch, _DROP_LOG, "`off`", "a line in the log for all that is denied on the node"
        ),
        FORWARDING: Extension(
            forwarding,
            "`keep`, `accept`",
            "`keep`",
            "what the host forwards that concerns neither a workload, a tunnel nor a pool: as it was before this "
            "node joined, or all of it",
        ),
        BGP: Extension(
            switch,
            "`on`, `off`",
            "`on`",
            "off: the node has no BGP session, and the others take the way to its blocks from the datastore; "
            "`node join --bgp` sets it, and the node writes it",
        ),
        LACKS: Extension(
            tunnels,
            "`ipip`, `vxlan`, or both with a comma",
            "",
            "tunnels that the node's kernel does not have; the node writes it",
        ),
    },
    "IPPool": {
        TUNNEL_FALLBACK: Extension(
            tunnel_fallback,
            "`vxlan`",
            "",
            "beside `ipipMode`: two nodes of which one has no IPIP use VXLAN between them",
        ),
    },
    **dict.fromkeys(
        ("GlobalNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy"), _OF_POLICIES
    ),
    "NetworkPolicy": {
        **_OF_POLICIES,
        KUBERNETES: Extension(
            None, "JSON", "", "the policy of Kubernetes that it was made of; `apply` writes it"
        ),
    },
    "Namespace": _OF_NAMESPACES,
    "Profile": _OF_NAMESPACES,
    "WorkloadEndpoint": {NETNS: Extension(None, "text", "", "where the container is on its node")},
}


def value(given: Mapping[str, str], key: str, read: Callable[[str], T], default: T) -> T:
    """Return what the annotation says, `default` where it is absent or bad."""
    try:
        return read(given[key]) if key in given else default
    except ValueError:
        return default


def unknown(kind: str, given: Mapping[str, str]) -> list[str]:
    """Return the keys of ours that mean nothing on a resource of `kind`."""
    return [key for key in given if key.startswith(PREFIX) and key not in KNOWN.get(kind, {})]


def problems(kind: str, given: Mapping[str, str], spec: Mapping[str, object]) -> dict[str, str]:
    """Return, by key, what is wrong with the annotations of a resource whose spec is `spec`, JSON values."""
    wrong: dict[str, str] = {}
    for key, known in KNOWN.get(kind, {}).items():
        try:
            if known.read and key in given:
                known.read(given[key])
        except ValueError as err:
            wrong[key] = str(err)
    if kind == "BGPPeer":
        for key, rule in _of_peer(given, spec):
            wrong.setdefault(key, rule)
    return wrong


def _of_peer(given: Mapping[str, str], spec: Mapping[str, object]) -> list[tuple[str, str]]:
    wrong = []
    if PEER in given:
        wrong += [
            (PEER, f"excludes {f}")
            for f in ("peerIP", "peerSelector", "localWorkloadSelector")
            if spec.get(f)
        ]
        if not spec.get("asNumber") and AS_LABEL not in given:
            wrong.append((PEER, f"needs asNumber, or {AS_LABEL}"))
    if AS_LABEL in given:
        wrong += [(AS_LABEL, f"excludes {f}") for f in ("asNumber", "peerSelector") if spec.get(f)]
    if LOCAL_AS_LABEL in given and spec.get("localASNumber"):
        wrong.append((LOCAL_AS_LABEL, "excludes localASNumber"))
    return wrong
