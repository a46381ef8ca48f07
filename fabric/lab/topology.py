"""Decide what a containerlab topology file asks for: text in, frozen values out, no IO but reading it.

What this runner does not do is refused by its name, never skipped: a lab that starts is the lab that
was written. Precedence is containerlab's: node, then group, then kind, then defaults; `exec` adds up,
`env` merges by name, `binds` by destination.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fabric.errors import ConfigError
from fabric.lab.profiles import profile_of

CONTAINERLAB_MTU = 9500  # containerlab's DefaultLinkMTU
IFNAMSIZ = 15

# Every scalar is read as the text that was written: YAML 1.1 would make 8080:53 a number and off False.
Raw: TypeAlias = "str | list[Raw] | dict[str, Raw]"
Place: TypeAlias = tuple[str | int, ...]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _empty_is_none(value: object) -> object:
    return {} if value == "" else value


class NodeFields(_Section):
    """What a node, group, kind or `defaults` may say."""

    kind: Literal["linux"] | None = None
    image: str | None = None
    group: str | None = None
    binds: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    exec: tuple[str, ...] = ()
    cmd: str | None = None
    network_mode: Literal["none"] | None = Field(None, alias="network-mode")
    startup_delay: int | None = Field(None, alias="startup-delay", ge=0)


_Fields: TypeAlias = Annotated[NodeFields, BeforeValidator(_empty_is_none)]


class _LinkFields(_Section):
    endpoints: tuple[str, str]
    mtu: int = Field(CONTAINERLAB_MTU, ge=68, le=65535)


class _Body(_Section):
    defaults: _Fields = NodeFields()
    kinds: dict[str, _Fields] = Field(default_factory=dict)
    groups: dict[str, _Fields] = Field(default_factory=dict)
    nodes: dict[str, _Fields]
    links: tuple[_LinkFields, ...] = ()


class _File(_Section):
    name: str
    prefix: str = ""  # names containers; a namespace node has no other name than its own
    topology: _Body


@dataclass(frozen=True, slots=True)
class Bind:
    """`source`, on the host, appears in the node at `target`."""

    source: Path
    target: PurePosixPath
    read_only: bool


@dataclass(frozen=True, slots=True)
class Node:
    """One node, everything inherited; `startup_delay` is in seconds."""

    name: str
    image: str
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    exec: tuple[tuple[str, ...], ...] = ()
    cmd: tuple[str, ...] = ()
    startup_delay: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    node: str
    interface: str

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


@dataclass(frozen=True, slots=True)
class Link:
    a: Endpoint
    b: Endpoint
    mtu: int = CONTAINERLAB_MTU


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole lab; nodes and links in the order of the file."""

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()


def load(path: Path) -> Topology:
    """Return the topology in `path`; binds are relative to its directory.

    Raises:
        ConfigError: the file cannot be read, is not the format, or asks for what a namespace lab
            does not do. Every fault is reported, one FILE:LINE each.
    """
    try:
        text = path.read_text()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}; name a containerlab topology file") from err
    return parse(text, path)


def parse(text: str, path: Path) -> Topology:
    """Return the topology in `text`; `path` names it in messages and anchors its binds."""
    lines: dict[Place, int] = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = _plain(root, (), lines) if root else {}
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(err).split())}; nothing was started") from err
    faults = _Faults(path, lines)
    try:
        file = _File.model_validate(raw)
    except ValidationError as err:
        for detail in err.errors():
            faults.add(detail["loc"], _explain(detail["type"], detail["msg"]))
        raise faults.error() from err
    topology = _resolve(file, faults)
    if faults.found:
        raise faults.error()
    return topology


class _Faults:
    """Collects what is wrong, each with its line, so that one run shows everything."""

    def __init__(self, path: Path, lines: Mapping[Place, int]) -> None:
        self.path, self._lines, self.found = path, lines, list[str]()

    def add(self, place: Place, why: str) -> None:
        known = next(place[:n] for n in range(len(place), -1, -1) if place[:n] in self._lines or not n)
        line = self._lines.get(known, 1)
        self.found.append(f"{self.path}:{line}: {'.'.join(map(str, place)) or 'file'}: {why}")

    def error(self) -> ConfigError:
        return ConfigError("\n".join([*self.found, "nothing was started"]))


def _explain(kind: str, message: str) -> str:
    match kind:
        case "extra_forbidden":
            return "is not supported by namespace labs; remove it, or deploy the file with containerlab"
        case "missing":
            return "is required"
    return message[0].lower() + message[1:]


def _plain(node: yaml.Node, place: Place, lines: dict[Place, int]) -> Raw:
    lines[place] = node.start_mark.line + 1
    match node:
        case yaml.ScalarNode():
            return "" if node.tag == "tag:yaml.org,2002:null" else str(node.value)
        case yaml.SequenceNode():
            return [_plain(item, (*place, i), lines) for i, item in enumerate(node.value)]
    return _mapping(node, place, lines)


def _mapping(node: yaml.Node, place: Place, lines: dict[Place, int]) -> Raw:
    own: dict[str, Raw] = {}
    merged: dict[str, Raw] = {}
    for key, value in node.value:
        if key.value == "<<":
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                found = _plain(source, place, lines)
                merged = (found if isinstance(found, dict) else {}) | merged
            continue
        if key.value in own:
            raise yaml.MarkedYAMLError(problem=f'"{key.value}" stands twice', problem_mark=key.start_mark)
        own[key.value] = _plain(value, (*place, key.value), lines)
        lines[(*place, key.value)] = key.start_mark.line + 1
    return merged | own


def _resolve(file: _File, faults: _Faults) -> Topology:
    body = file.topology
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]*", file.name):
        faults.add(("name",), f'"{file.name}": letters, digits, ".", "_" and "-" only')
    for kind in body.kinds.keys() - {"linux"}:
        faults.add(("topology", "kinds", kind), "namespace labs run the kind linux only")
    nodes = tuple(_node(name, fields, body, faults) for name, fields in body.nodes.items())
    return Topology(file.name, nodes, tuple(_links(body, faults)))


def _node(name: str, fields: NodeFields, body: _Body, faults: _Faults) -> Node:
    place: Place = ("topology", "nodes", name)
    if not re.fullmatch(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?", name):
        faults.add(place, "is no host name (letters, digits, inner dots and dashes, at most 63)")
    layers = _layers(fields, body, faults, place)
    kind = next((layer.kind for layer in layers if layer.kind), None)
    image = next((layer.image for layer in layers if layer.image), "")
    cmd = next((layer.cmd for layer in layers if layer.cmd), "")
    if not kind:
        faults.add((*place, "kind"), "is required, here or in its group or the defaults")
    if not image:
        faults.add((*place, "image"), "is required, here or in its group, kind or the defaults")
    profile = profile_of(image)
    if cmd and profile and profile.start:
        faults.add((*place, "cmd"), f"would take the place of what {image} starts by itself; remove it")
    return Node(
        name=name,
        image=image,
        binds=_binds(layers, faults, place),
        env={key: value for layer in reversed(layers) for key, value in layer.env.items()},
        exec=tuple(_words(c, faults, (*place, "exec")) for layer in reversed(layers) for c in layer.exec),
        cmd=_words(cmd, faults, (*place, "cmd")),
        startup_delay=next((n.startup_delay for n in layers if n.startup_delay is not None), 0),
    )


def _layers(fields: NodeFields, body: _Body, faults: _Faults, place: Place) -> list[NodeFields]:
    """Return what the node inherits from, itself first."""
    group = fields.group or body.defaults.group
    # In containerlab a group may be a mere label for graphs; only one that is defined is inherited.
    inherited = body.groups.get(group or "", NodeFields())
    kind = fields.kind or inherited.kind or body.defaults.kind
    layers = [fields, inherited, body.kinds.get(kind or "", NodeFields()), body.defaults]
    for name in {name for layer in layers for name in layer.env if name.startswith("__IMPORT_ENVS")}:
        faults.add((*place, "env", name), "importing the caller's environment is not supported")
    return layers


def _words(command: str, faults: _Faults, place: Place) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as err:
        faults.add(place, f"{command!r}: {str(err).lower()}")
        return ()


def _binds(layers: Iterable[NodeFields], faults: _Faults, place: Place) -> tuple[Bind, ...]:
    binds: dict[PurePosixPath, Bind] = {}
    for text in (text for layer in layers for text in reversed(layer.binds)):
        if bind := _bind(text, faults, (*place, "binds")):
            binds.setdefault(bind.target, bind)
    # Parents first: a file bound into a bound directory must come after it.
    return tuple(binds[target] for target in sorted(binds, key=lambda target: target.parts))


def _bind(text: str, faults: _Faults, place: Place) -> Bind | None:
    source, *rest = text.split(":")
    if len(rest) not in (1, 2) or not rest[0].startswith("/") or rest[1:] not in ([], ["ro"], ["rw"]):
        faults.add(place, f'"{text}": write it HOST_PATH:/NODE/PATH, with :ro for read-only')
        return None
    path = (faults.path.parent / Path(source).expanduser()).resolve()
    if not path.exists():
        faults.add(place, f'"{text}": {path} does not exist')
    return Bind(path, PurePosixPath(rest[0]), rest[1:] == ["ro"])


def _links(body: _Body, faults: _Faults) -> Iterable[Link]:
    seen: Counter[Endpoint] = Counter()
    for i, link in enumerate(body.links):
        place: Place = ("topology", "links", i, "endpoints")
        ends = [_endpoint(text, body, faults, place) for text in link.endpoints]
        seen.update(ends)
        for end in {end for end in ends if seen[end] > 1}:
            faults.add(place, f"{end} is an end of another link already")
        yield Link(ends[0], ends[1], link.mtu)


def _endpoint(text: str, body: _Body, faults: _Faults, place: Place) -> Endpoint:
    node, _, interface = text.partition(":")
    if node not in body.nodes:
        faults.add(place, f'"{text}": there is no node "{node}"; links join the nodes of this file only')
    if not re.fullmatch(rf"[^/\s:]{{1,{IFNAMSIZ}}}", interface) or interface in {"lo", ".", ".."}:
        faults.add(place, f'"{text}": "{interface}" is no interface name (1 to {IFNAMSIZ} characters)')
    return Endpoint(node, interface)
