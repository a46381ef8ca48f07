"""Decide what a node inherits: from itself, its group, its kind and the defaults, the first that says it counting.

Lists and mappings add up instead: `listed` and `merged`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fabric.lab.format import FRR, LINUX, Body, NodeFields
from fabric.lab.profiles import Profiles
from fabric.lab.source import Place, Raw, Source


@dataclass(frozen=True, slots=True)
class Layers:
    """What a node inherits from, itself first: each with the place where it stands."""

    layers: tuple[tuple[Place, NodeFields], ...]

    def nearest(self, name: str) -> tuple[Place, Any]:
        """Return the value of a field that counts, and where it stands; for one never given, the node's."""
        place = self.layers[0][0]
        alias = name.replace("_", "-")
        for at, layer in self.layers:
            if value := getattr(layer, name):
                return (*at, alias), value
        return (*place, alias), getattr(NodeFields(), name)

    def merged(self, name: str) -> dict[str, str]:
        return {k: v for _, layer in reversed(self.layers) for k, v in getattr(layer, name).items()}

    def listed(self, name: str) -> Iterator[tuple[Place, Any]]:
        """Yield every item of a list, from the defaults to the node, with where it stands."""
        for at, layer in reversed(self.layers):
            for i, item in enumerate(getattr(layer, name)):
                yield (*at, name.replace("_", "-"), i), item


def layers_of(name: str, body: Body) -> Layers:
    """Return the layers of a node; a group that is not defined is a mere label, as in containerlab."""
    empty, top = NodeFields(), ("topology",)
    node: NodeFields = body.nodes[name]
    kind = (
        node.kind
        or body.groups.get(node.group, empty).kind
        or body.groups.get(body.defaults.group, empty).kind
        or body.defaults.kind
    )
    group = node.group or body.kinds.get(kind, empty).group or body.defaults.group
    return Layers(
        (
            ((*top, "nodes", name), node),
            ((*top, "groups", group), body.groups.get(group, empty)),
            ((*top, "kinds", kind), body.kinds.get(kind, empty)),
            ((*top, "defaults"), body.defaults),
        )
    )


def refuse_foreign(source: Source, profiles: Profiles) -> None:
    """Raise ConfigError for kinds and images that cannot run here, before their own fields are looked at."""
    body = _sketch(source.value)
    runnable = ("", LINUX, *FRR)
    for name in body.nodes:
        layers = layers_of(name, body)
        (_, kind), (_, image) = layers.nearest("kind"), layers.nearest("image")
        if why := profiles.refusal(kind, image):
            source.fault(("topology", "nodes", name), why)
        elif kind not in runnable:
            source.fault(("topology", "nodes", name), f'there is no kind "{kind}" here, only linux and frr')
    source.check()
    for section, places in (
        ("kinds", body.kinds),
        ("groups", body.groups),
        ("defaults", {"": body.defaults}),
    ):
        for name, fields in places.items():
            kind = name if section == "kinds" else fields.kind
            if kind not in runnable:
                why = profiles.refusal(kind, "") or f'there is no kind "{kind}" here, only linux and frr'
                source.fault(tuple(part for part in ("topology", section, name) if part), why)
    source.check()


def _sketch(value: Raw) -> Body:
    """Return as much of the file's body as says which kinds and images there are, whatever else is wrong."""

    def at(value: Raw, key: str) -> dict[str, Raw]:
        found = value.get(key) if isinstance(value, dict) else None
        return found if isinstance(found, dict) else {}

    def fields(value: Raw) -> NodeFields:
        told = value if isinstance(value, dict) else {}
        texts = {key: told.get(key) for key in ("kind", "image", "group")}
        return NodeFields.model_validate({k: str(text) for k, text in texts.items() if isinstance(text, str)})

    def section(key: str) -> dict[str, NodeFields]:
        return {name: fields(each) for name, each in at(body, key).items()}

    body = at(value, "topology")
    return Body.model_construct(
        defaults=fields(body.get("defaults")),
        kinds=section("kinds"),
        groups=section("groups"),
        nodes=section("nodes"),
    )
