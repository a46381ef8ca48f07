"""Decide how an audit is written as a report, and which faults a report names.

The keys are those of `calicoctl ipam check -o`, so that either tool's `ipam release` takes either's
report; `revision`, `findings` and `notes` are ours, and calicoctl passes over them.
See docs/reference/ipam-report.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from fabric.errors import ConfigError
from fabric.ipam.audit import LEAKED, LEFTOVER_HANDLE, MENDABLE, Audit, Finding, Key
from fabric.ipam.inventory import Allocation, State
from fabric.ipam.records import why_not_json


@dataclass(frozen=True, slots=True)
class Cluster:
    """What identifies the datastore: of ClusterInformation; `revision` is that object's own, as text."""

    guid: str = ""
    type: str = ""
    revision: str = ""
    locked: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What `release` needs of a report: whose it is, and the mendable faults in it."""

    guid: str
    faults: frozenset[Key]


def document(audit: Audit, cluster: Cluster, revision: int, version: str) -> dict[str, Any]:
    """Return the report as JSON types. `revision` is the store's; `version` names the program."""
    allocations: dict[str, list[dict[str, Any]]] = {}
    for a in audit.allocations:
        allocations.setdefault(str(a.address), []).append(_allocation(a))
    return {
        "version": version,
        "clusterGUID": cluster.guid,
        "datastoreLocked": cluster.locked,
        "clusterInformationRevision": cluster.revision,
        "clusterType": cluster.type,
        "revision": revision,
        "allocations": allocations,
        "leakedHandles": [
            {"ID": f.handle, "UID": None, "Revision": str(f.version)}
            for f in audit.findings
            if f.id == LEFTOVER_HANDLE
        ],
        "findings": [_finding(f) for f in audit.findings],
        "notes": list(audit.notes),
    }


def _allocation(a: Allocation) -> dict[str, Any]:
    attributes = a.owner.secondary
    optional = {
        "pod": attributes.get("pod"),
        "namespace": attributes.get("namespace"),
        "node": a.node,
        "type": attributes.get("type"),
        "creationTimestamp": attributes.get("timestamp"),
        "borrowed": a.borrowed,
        "coolingDown": a.state is State.COOLING,
    }
    return {
        "ip": str(a.address),
        **({"handle": a.owner.handle} if a.owner.handle else {}),
        "sequenceNumber": a.sequence,
        **{key: value for key, value in optional.items() if value},
        "inUse": a.state not in {State.LEAKED, State.COOLING},
        "owners": list(a.users),
    }


def _finding(f: Finding) -> dict[str, Any]:
    return {
        "id": f.id,
        "object": f.object,
        "node": f.node,
        "handle": f.handle,
        "version": f.version,
        "why": f.why,
        "cure": f.cure,
    }


def parse(text: str, where: str) -> Report:
    """Read a report of ours or of calicoctl's.

    Args:
        where: names the file in messages.

    Raises:
        ConfigError: it is no report.
    """
    faults = set()
    at = "the whole"
    try:
        found = json.loads(text)
        for address, of_address in found["allocations"].items():
            at = f"allocations: {address}"
            faults |= {
                Key(
                    LEAKED, str(ip_address(a["ip"])), a.get("handle") or "", int(a.get("sequenceNumber") or 0)
                )
                for a in of_address
                if not a["inUse"] and not a.get("coolingDown")
            }
        at = "leakedHandles"
        # calicoctl of before 2023 gave the names alone, which do not say that nothing was written since.
        for handle in found.get("leakedHandles") or ():
            if isinstance(handle, dict):
                name = str(handle["ID"])
                faults.add(Key(LEFTOVER_HANDLE, f"handle {name}", name, int(handle["Revision"])))
        at = "findings"
        for f in found.get("findings") or ():
            key = Key(str(f["id"]), str(f["object"]), str(f["handle"]), int(f["version"]))
            if key.id in MENDABLE:
                faults.add(key)
        at = "the whole"
        return Report(str(found["clusterGUID"]), frozenset(faults))
    except (json.JSONDecodeError, RecursionError) as err:
        why = why_not_json(err)
    except KeyError as err:
        why = f"{at}: {err.args[0]} is missing"
    except (ValueError, TypeError, AttributeError, OverflowError):
        why = f"{at}: not as `ipam check -o` writes it"
    raise ConfigError(f"{where}: no report of `ipam check` ({why}); nothing was changed")
