"""Turn the Kubernetes policies in files into Calico's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fabric.model.base import Resource
from fabric.model.convert import converted
from fabric.model.k8s import KubernetesNetworkPolicy
from fabric.model.kinds import K8S_API_VERSION
from fabric.model.wire import Problem, shown
from fabric.ops import files


def convert(names: Sequence[str], *, recursive: bool = False) -> Iterator[Resource | list[str]]:
    """Yield for each resource in files Calico's policy that means the same, or why there is none.

    The reasons are `FILE:LINE: path: value: rule`. Everything but a NetworkPolicy of Kubernetes has one.
    """
    for document in files.documents(names, recursive=recursive):
        read = document.entry.read
        if isinstance(read, KubernetesNetworkPolicy):
            policy = converted(read)
            yield policy if isinstance(policy, Resource) else document.errors(policy)
        elif isinstance(read, Resource):
            rule = f"only NetworkPolicy of {K8S_API_VERSION} is converted"
            yield document.errors([Problem(("kind",), shown(read.kind), rule)])
        else:
            yield document.errors()
