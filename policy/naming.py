"""Decides what chains and ipsets are called, and what a logged packet carries.

Chains begin with "fab-" and have at most 28 characters, ipsets with "fab4-" or "fab6-" and at most 31. A name is
readable where it fits, else a hash: it follows from what it stands for, so a restarted agent gives the same one.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from functools import lru_cache
from hashlib import sha256
from typing import Final, Literal

from policy.form import AddressSet, Applied, Direction, Endpoint, Hook, Key, Origin, PortSet, Prefix

CHAIN_LIMIT: Final = 28
LINKS: Final = "fab+"  # the host's ends of our veths, as iptables writes it
NFLOG_GROUP: Final = 143

# From and to workloads, hosts' links; of these what is forwarded, comes before DNAT, is untracked.
_GROUPS: Final = {"normal": "h", "forward": "f", "pre-dnat": "d", "untracked": "u"}
_SHORT: Final = {
    "NetworkPolicy": "np",
    "GlobalNetworkPolicy": "gnp",
    "StagedNetworkPolicy": "snp",
    "StagedGlobalNetworkPolicy": "sgnp",
    "StagedKubernetesNetworkPolicy": "sknp",
}
# Only what a shell and iptables take as it is; others wrote the names, into etcd perhaps unchecked.
_PLAIN: Final = re.compile(r"[A-Za-z0-9./-]+")

Verb = Literal["deny", "log"]


@lru_cache(maxsize=65536)
def digest(text: str) -> str:
    """Return 16 characters that stand for `text`; "/" is never among them."""
    return urlsafe_b64encode(sha256(text.encode()).digest())[:16].decode()


def group(applied: Applied, endpoint: Endpoint, direction: Direction, hook: Hook = "normal") -> str:
    """Return what a group's chain, after "fab-", and its ipset, after "fab4-" or "fab6-", are called.

    What a workload sends, its egress, is "from" it; what enters by a link of the host's, ingress, is "from" that.
    """
    if not endpoint.is_host:
        return workloads(applied, direction, endpoint.drop_log)
    which = f"{'f' if direction == 'Ingress' else 't'}{_GROUPS[hook]}"
    return f"{which}-{digest(f'{applied.id} {endpoint.drop_log}')}"


def workloads(applied: Applied, direction: Direction, logged: bool) -> str:
    """Return the same for a group of workloads, whether there are any or not."""
    return f"{'f' if direction == 'Egress' else 't'}w-{digest(f'{applied.id} {logged}')}"


def policy_chain(key: Key, direction: Direction, logged: bool) -> str:
    """Return the chain of a policy's rules; where denied packets are named, it is another one."""
    where = "i" if direction == "Ingress" else "o"
    parts = (_SHORT.get(key.kind, key.kind), key.namespace, key.name)
    return _chain(f"fab-{'l' if logged else 'p'}{where}-", "/".join(filter(None, parts)))


def profile_chain(name: str, direction: Direction, logged: bool) -> str:
    """Return the chain of a profile's rules."""
    where = "i" if direction == "Ingress" else "o"
    return _chain(f"fab-{'m' if logged else 'r'}{where}-", f"profile/{name}")


def _chain(prefix: str, text: str) -> str:
    # Every text has a "/", which no digest has: so one is never taken for the other.
    fits = len(prefix) + len(text) <= CHAIN_LIMIT and _PLAIN.fullmatch(text)
    return prefix + (text if fits else digest(text))


def selector_set(version: int, wanted: AddressSet) -> str:
    """Return the name of the set of those that a selector matches."""
    return f"fab{version}-s-{digest(wanted.selector)}"


def port_set(version: int, wanted: PortSet) -> str:
    """Return the name of the set of those that have a port of a name, with that port."""
    return f"fab{version}-p-{digest(f'{wanted.protocol} {wanted.name} {wanted.selector}')}"


def net_set(version: int, nets: tuple[Prefix, ...]) -> str:
    """Return the name of a list of prefixes, after what is in it."""
    return f"fab{version}-n-{digest(','.join(sorted(map(str, nets))))}"


def prefix(verb: Verb, origin: Origin) -> str:
    """Return what NFLOG puts before a packet that `origin` denied, would have denied (staged), or logged."""
    return f"fab-{verb}:{digest(repr(origin))}"
