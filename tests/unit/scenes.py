"""Scenes written as the files that an operator has."""

from __future__ import annotations

from textwrap import dedent

from fabric.model.base import Resource
from fabric.model.convert import stored
from fabric.model.yaml import entries
from fabric.ops.resources import placed
from policy.evaluate import Passage
from policy.scene import Scene, asking, packet, scene, sent_by, who


def resources(text: str) -> list[Resource]:
    """The resources in a YAML text; apiVersion may be left out."""
    found = []
    for part in dedent(text).split("\n---\n"):
        if not part.strip():
            continue
        version = "" if "apiVersion:" in part else "apiVersion: projectcalico.org/v3\n"
        for entry in entries(version + part.lstrip("\n")):
            assert isinstance(entry.read, Resource), entry.read
            held = stored(placed(entry.read, None))
            assert isinstance(held, Resource), held
            found.append(held.as_written())
    return found


def workload(name: str, labels: str, *, node: str = "n1", address: str = "", more: str = "") -> str:
    """The endpoint of the workload NAMESPACE/NAME, whose profile is its namespace's."""
    namespace, _, own = name.partition("/")
    nets = f"ipNetworks: [{address}], " if address else ""
    return f"""
kind: WorkloadEndpoint
metadata: {{namespace: {namespace}, labels: {{{labels}}}}}
spec: {{{nets}orchestrator: fabricctl, workload: {own}, node: {node}, endpoint: eth0,
  profiles: [kns.{namespace}]{more}}}
"""


def stage(*texts: str) -> Scene:
    return scene([one for text in texts for one in resources(text)], stand_ins=True)


def sent(of: Scene, source: str, destination: str, text: str, family: int | None = None) -> Passage:
    """What becomes of a packet between two ends that are named."""
    ends = who(of, source), who(of, destination)
    return sent_by(of, ends[0], packet(*ends, asking(text), family))
