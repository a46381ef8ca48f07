"""Decide what a containerlab topology file asks for: text in, frozen values out, no IO but reading files.

What this runner does not do is refused by its name, never skipped: a lab that starts is the lab that was
written. Precedence is containerlab's: node, then group, then kind, then defaults. `exec` and the commands
of stages add up, from the defaults to the node; `env`, `env-files`, `labels` and `sysctls` merge by name,
`binds` by destination.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from fabric.lab import format as formats
from fabric.lab import profiles as known
from fabric.lab import source as sources
from fabric.lab import stages as steps
from fabric.lab.format import (
    ELSEWHERE,
    FRR,
    FRR_ALWAYS,
    LINUX,
    NOT_HERE,
    Body,
    BriefLink,
    EndFields,
    File,
    HostLink,
    LinkFields,
    MgmtFields,
    NodeFields,
)
from fabric.lab.profiles import Profile, Profiles
from fabric.lab.source import Place, Raw, Source

CONTAINERLAB_MTU, HOST, MGMT, STAGES = formats.MTU, formats.HOST, formats.MGMT, formats.STAGES
CONTAINER = "container:"  # what `network` begins with where a node shares another's

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network

_WHAT = "a containerlab topology file"
_NAME = 255  # the longest a file's name can be: a lab's state is a directory, containerlab's is clab-NAME
_PORT = re.compile(r"(?:([0-9.]+):)?([0-9]+):([0-9]+)(?:/(tcp|udp))?")
# What Docker lets a container set: the rest is the host's.
_SYSCTLS = re.compile(r"net[./].+|fs[./]mqueue[./].+|kernel[./](msg(max|mnb|mni)|sem|shm\w+)")
_FORWARDING = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}
_URL = re.compile(r"(https?|s3)://")


@dataclass(frozen=True, slots=True)
class Bind:
    """`source`, on the host, appears in the node at `target`."""

    source: Path
    target: PurePosixPath
    read_only: bool


@dataclass(frozen=True, slots=True)
class Port:
    """`port` of the node, reached at `host_port` of the host; `host_ip` None is every address of it."""

    host_ip: Address | None
    host_port: int
    port: int
    protocol: Literal["tcp", "udp"] = "tcp"

    def __str__(self) -> str:
        at = f"{self.host_ip}:" if self.host_ip else ""
        return f"{at}{self.host_port}:{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class StageCommand:
    """A command of a stage, run in the node, or in the host's namespaces if `on_host`."""

    argv: tuple[str, ...]
    on_host: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage of a node waits for, as (node, stage), and runs when it begins and when it ends."""

    wait_for: tuple[tuple[str, str], ...] = ()
    on_enter: tuple[StageCommand, ...] = ()
    on_exit: tuple[StageCommand, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One node, everything inherited.

    `kind` is "linux" or "frr", `network` "mgmt", "none", "host" or "container:NODE"; `addresses` are those
    of eth0, none unless it is "mgmt". `startup_config` is the text itself. `daemons` are those that kind
    frr is to start, ("all",) if the file names none. `startup_delay` is in seconds, `cpu` in cores and
    `memory` in bytes, None where there is no limit. `profile` is None for an image that nobody listed.
    """

    name: str
    image: str
    kind: str = LINUX
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    exec: tuple[tuple[str, ...], ...] = ()
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    startup_config: str = ""
    daemons: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    network: str = "mgmt"
    startup_delay: int = 0
    stages: Mapping[str, Stage] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    cpu: float | None = None
    memory: int | None = None
    restart: Literal["no", "on-failure", "always"] = "always"
    addresses: tuple[Interface, ...] = ()
    profile: Profile | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The foreground process as Docker puts it together, () if there is none."""
        profile = self.profile or Profile(known.PLAIN)
        if self.entrypoint:
            return (*self.entrypoint, *self.cmd)
        return (*profile.entrypoint, *(self.cmd or profile.cmd))

    @property
    def files(self) -> dict[str, str]:
        """The text of every file that the node finds at its start, by path; its binds come after."""
        files = dict(self.profile.files) if self.profile else {}
        if self.profile and self.startup_config:
            files[self.profile.config] = self.startup_config
        if self.daemons:
            files["/etc/frr/daemons"] = "".join(f"{daemon}=yes\n" for daemon in self.daemons)
        return files


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a link; `node` may be HOST or MGMT, and `interface` is then one of the host's."""

    node: str
    interface: str
    mac: str = ""
    addresses: tuple[Interface, ...] = ()

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


@dataclass(frozen=True, slots=True)
class Link:
    """`a` is a node's end, `b` may be HOST's or MGMT's."""

    a: Endpoint
    b: Endpoint
    mtu: int = CONTAINERLAB_MTU


@dataclass(frozen=True, slots=True)
class Mgmt:
    """The management network: for each prefix, in the same order, the gateway with the prefix's length."""

    name: str = "clab"
    prefixes: tuple[Network, ...] = (formats.PREFIX4, formats.PREFIX6)
    gateways: tuple[Interface, ...] = (IPv4Interface("172.20.20.1/24"), IPv6Interface("3fff:172:20:20::1/64"))
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole lab; nodes and links in the order of the file."""

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()
    prefix: str = "clab"
    mgmt: Mgmt = field(default_factory=Mgmt)

    def container(self, node: str) -> str:
        """Return what containerlab would call the node's container."""
        match self.prefix:
            case "":
                return node
            case "__lab-name":
                return f"{self.name}-{node}"
        return f"{self.prefix}-{self.name}-{node}"


def load(path: Path) -> Topology:
    """Return the topology in `path`; binds and other files are relative to its directory.

    Raises:
        ConfigError: the file cannot be read, is not the format, or asks for what a namespace lab
            does not do. Every fault is reported, one FILE:LINE each.
    """
    return parse(sources.text_of(path, _WHAT), path)


def parse(text: str, path: Path) -> Topology:
    """Return the topology in `text`; `path` names it in messages and anchors its files."""
    formats.refuse_template(text, path)
    source = sources.parse(text, path)
    formats.literal(source)
    profiles = known.beside(path.parent)
    _refuse_foreign(source, profiles)
    file = formats.validated(source)
    topology = _Reading(file, source, profiles).topology()
    source.check()
    return topology


# Inheritance


@dataclass(frozen=True, slots=True)
class _Layers:
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


def _layers(name: str, body: Body) -> _Layers:
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
    return _Layers(
        (
            ((*top, "nodes", name), node),
            ((*top, "groups", group), body.groups.get(group, empty)),
            ((*top, "kinds", kind), body.kinds.get(kind, empty)),
            ((*top, "defaults"), body.defaults),
        )
    )


def _refuse_foreign(source: Source, profiles: Profiles) -> None:
    """Raise ConfigError for kinds and images that cannot run here, before their own fields are looked at."""
    body = _sketch(source.value)
    runnable = ("", LINUX, *FRR)
    for name in body.nodes:
        layers = _layers(name, body)
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


# Meaning


class _Reading:
    """One file on its way to values; what is wrong is noted in `source`, and reading goes on."""

    def __init__(self, file: File, source: Source, profiles: Profiles) -> None:
        self.file, self.source, self.profiles = file, source, profiles
        self.directory = source.path.parent
        self.layers = {name: _layers(name, file.topology) for name in file.topology.nodes}

    def topology(self) -> Topology:
        name = self.file.name
        if len(f"clab-{name}") > _NAME:
            self.source.fault(("name",), f"has {len(name)} characters, of {_NAME - len('clab-')} at most")
        nodes = [self._node(name) for name in self.layers]
        self._check_sharing({node.name: node for node in nodes})
        self._check_host_ports(nodes)
        mgmt = self._mgmt(self.file.mgmt)
        nodes = self._addressed(nodes, mgmt)
        links = tuple(self._links({node.name: node for node in nodes}))
        if not self.source.found:
            self._check_order(nodes)
        return Topology(name, tuple(nodes), links, self.file.prefix, mgmt)

    def _node(self, name: str) -> Node:
        layers = self.layers[name]
        kind, image, profile = self._identity(layers)
        network = layers.nearest("network_mode")[1] or "mgmt"
        return Node(
            name=name,
            image=image,
            kind=kind,
            binds=self._binds(name),
            env=self._environment(layers),
            exec=tuple(self._expand(words, name) for _, words in layers.listed("exec")),
            cmd=self._foreground(layers, "cmd", profile),
            entrypoint=self._foreground(layers, "entrypoint", profile),
            user=self._user(layers, profile),
            startup_config=self._startup_config(name, profile),
            daemons=_daemons(layers, kind),
            ports=tuple(self._ports(layers, network)),
            network=network,
            startup_delay=layers.nearest("startup_delay")[1],
            stages=self._stages(name),
            labels=layers.merged("labels"),
            sysctls=self._sysctls(layers, kind, network, profile),
            cpu=layers.nearest("cpu")[1] or None,
            memory=layers.nearest("memory")[1] or None,
            restart=_restart(layers.nearest("restart_policy")[1], kind),
            profile=profile,
        )

    def _identity(self, layers: _Layers) -> tuple[str, str, Profile | None]:
        (kind_at, kind), (image_at, image) = layers.nearest("kind"), layers.nearest("image")
        if not kind:
            self.source.fault(kind_at, "is required, here or in its group or the defaults")
        if not image:
            self.source.fault(image_at, "is required, here or in its group, kind or the defaults")
        profile = self.profiles.of(image)
        if kind in FRR:
            frr = self.profiles.profiles[FRR[0]]
            if profile not in (None, frr):
                self.source.fault(image_at, f"kind {kind} needs an image of FRR, which {image} is not")
            return FRR[0], image, frr
        return LINUX, image, profile

    def _foreground(self, layers: _Layers, name: str, profile: Profile | None) -> tuple[str, ...]:
        at, words = layers.nearest(name)
        if words and profile and profile.start:
            self.source.fault(at, f"would take the place of what profile {profile.name} starts; remove it")
        found: tuple[str, ...] = words
        return found

    def _user(self, layers: _Layers, profile: Profile | None) -> str:
        at, user = layers.nearest("user")
        if user.partition(":")[0] not in ("", "root", "0") and profile and profile.start:
            self.source.fault(at, f"profile {profile.name} starts its daemons as root only; remove it")
        return str(user)

    # Files

    def _expand(self, words: Iterable[str], node: str) -> tuple[str, ...]:
        """Return the words with containerlab's own variables replaced."""
        lab = self.directory.resolve() / f"clab-{self.file.name}"
        values = {"__clabDir__": str(lab), "__clabNodeDir__": str(lab / node), "__clabNodeName__": node}

        def expanded(word: str) -> str:
            for name, value in values.items():
                word = word.replace(name, value)
            return word

        return tuple(expanded(word) for word in words)

    def _file(self, text: str) -> Path:
        return (self.directory / Path(text).expanduser()).resolve()

    def _binds(self, name: str) -> tuple[Bind, ...]:
        binds = {}
        for at, text in self.layers[name].listed("binds"):
            if bind := self._bind(text, at, name):
                binds[bind.target] = bind
        # Parents first: a file bound into a bound directory must come after it.
        return tuple(binds[target] for target in sorted(binds, key=lambda target: target.parts))

    def _bind(self, text: str, at: Place, node: str) -> Bind | None:
        source, *rest = text.split(":")
        if len(rest) not in (1, 2) or not rest[0].startswith("/") or rest[1:] not in ([], ["ro"], ["rw"]):
            self.source.fault(at, f'"{text}": write it HOST_PATH:/NODE/PATH, with :ro for read-only')
            return None
        path = self._file(*self._expand([source], node))
        if not path.exists():
            self.source.fault(at, f'"{text}": {path} does not exist')
        return Bind(path, PurePosixPath(rest[0]), rest[1:] == ["ro"])

    def _text(self, path: Path, at: Place) -> str:
        """Return the text of a file that the topology names, or "" if that cannot be read."""
        try:
            return path.read_text()
        except OSError as err:
            self.source.fault(at, f"{path}: {err.strerror}")
        except UnicodeDecodeError:
            self.source.fault(at, f"{path} is no text in UTF-8")
        return ""

    def _startup_config(self, name: str, profile: Profile | None) -> str:
        at, config = self.layers[name].nearest("startup_config")
        if not config:
            return ""
        if not profile or not profile.config:
            self.source.fault(
                at, f"nobody said where this image reads it: bind the file, or list it in {known.BESIDE}"
            )
            return ""
        if "\n" not in config:
            (config,) = self._expand([config], name)
            if _URL.match(config):
                self.source.fault(at, f"{config}: fetching {NOT_HERE}; save it to a file, and name that")
                return ""
            config = self._text(self._file(config), at)
        if "{{" in config:
            self.source.fault(at, f"has an action of a Go template, which {NOT_HERE}; render it first")
        return str(config)

    def _environment(self, layers: _Layers) -> dict[str, str]:
        env: dict[str, str] = {}
        for at, text in layers.listed("env_files"):
            env |= self._env_file(self._file(text), at)
        for at, layer in layers.layers:
            for name in layer.env:
                if name == "__IMPORT_ENVS":
                    self.source.fault((*at, "env", name), f"importing the caller's environment {NOT_HERE}")
        # containerlab has labels in the environment too, for what runs in the node to see.
        labels = {f"CLAB_LABEL_{_env_name(key)}": value for key, value in layers.merged("labels").items()}
        return labels | env | layers.merged("env")

    def _env_file(self, path: Path, at: Place) -> dict[str, str]:
        found = {}
        for number, line in enumerate(self._text(path, at).splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*(.*?)\s*", line)
            if not match:
                self.source.fault(at, f"{path}:{number}: write it NAME=VALUE")
                continue
            name, value = match.groups()
            if (names := formats.variables(value)) and not value.startswith("'"):
                self.source.fault(at, f"{path}:{number}: ${names[0]} is a variable, which {NOT_HERE}")
            quoted = re.fullmatch(r"([\"'])(.*)\1(?:\s+#.*)?", value)
            found[name] = quoted[2] if quoted else re.split(r"(?:^|\s+)#", value)[0]
        return found

    # What it may use

    def _ports(self, layers: _Layers, network: str) -> Iterator[Port]:
        at, texts = layers.nearest("ports")
        if texts and network != "mgmt":
            self.source.fault(at, f"network-mode {network} leaves nothing to publish; remove one of the two")
            return
        for i, text in enumerate(texts):
            if match := _PORT.fullmatch(text):
                yield from self._port(match, (*at, i))
            else:
                self.source.fault((*at, i), f'"{text}": {_odd_port(text)}')

    def _port(self, match: re.Match[str], at: Place) -> Iterator[Port]:
        host_ip, host_port, port, protocol = match.groups()
        try:
            ip = IPv4Address(host_ip) if host_ip else None
        except ValueError:
            self.source.fault(at, f'"{host_ip}" is no IPv4 address')
            return
        if not (0 < int(host_port) <= 65535 and 0 < int(port) <= 65535):
            self.source.fault(at, f'"{match[0]}": a port is 1 to 65535')
            return
        yield Port(ip, int(host_port), int(port), "udp" if protocol == "udp" else "tcp")

    def _check_host_ports(self, nodes: Sequence[Node]) -> None:
        taken: list[tuple[str, Port]] = []
        for node in nodes:
            at, _ = self.layers[node.name].nearest("ports")
            for port in node.ports:
                for name, other in taken:
                    if _same_host_port(port, other):
                        self.source.fault(at, f"{port}: the host's port has node {name} ({other}) already")
                taken.append((node.name, port))

    def _sysctls(self, layers: _Layers, kind: str, network: str, profile: Profile | None) -> dict[str, str]:
        for at, layer in layers.layers:
            for key in layer.sysctls:
                if not _SYSCTLS.fullmatch(key) or (network == HOST and key.startswith("net")):
                    self.source.fault((*at, "sysctls", key), "would change the host, not the node; remove it")
        found = layers.merged("sysctls")
        if network in ("mgmt", "none"):
            found = {**(profile or self.profiles.profiles[known.PLAIN]).sysctls, **found}
        # In containerlab kind frr forwards, whatever the file says.
        return found | (_FORWARDING if kind != LINUX else {})

    # Order

    def _stages(self, name: str) -> dict[str, Stage]:
        stages = {}
        for stage in STAGES:
            wait_for: dict[tuple[str, str], None] = {}
            on_enter, on_exit = [], []
            for at, layer in reversed(self.layers[name].layers):
                fields = layer.stages.of(stage)
                for i, step in enumerate(fields.wait_for):
                    self._check_step(name, step.node, step.stage, (*at, "stages", stage, "wait-for", i))
                    wait_for[step.node, step.stage] = None
                on_enter += [StageCommand(self._expand(w, name), h) for w, h in fields.commands("on-enter")]
                on_exit += [StageCommand(self._expand(w, name), h) for w, h in fields.commands("on-exit")]
                absent = on_enter if stage == "create" else [*on_enter, *on_exit] if stage == "exit" else []
                if not all(command.on_host for command in absent):
                    self.source.fault(
                        (*at, "stages", stage), "the node does not run then: give exec target: host"
                    )
            if wait_for or on_enter or on_exit:
                stages[stage] = Stage(tuple(wait_for), tuple(on_enter), tuple(on_exit))
        return stages

    def _check_step(self, name: str, node: str, stage: str, at: Place) -> None:
        if node == name:
            self.source.fault(at, f"node {name} would wait for itself")
        elif node not in self.layers:
            self.source.fault(at, f'there is no node "{node}"')
        elif stage not in STAGES:
            self.source.fault(at, f'there is no stage "{stage}", only {", ".join(STAGES)}')

    def _check_order(self, nodes: Sequence[Node]) -> None:
        if cycle := steps.cycle(nodes):
            shown = " → ".join(f"{node} {stage}" for node, stage in (*cycle, cycle[0]))
            at = ("topology", "nodes", cycle[0][0], "stages")
            self.source.fault(at, f"wait-for goes in a circle, each of these waits for the next: {shown}")

    def _check_sharing(self, nodes: Mapping[str, Node]) -> None:
        told: set[str] = set()
        for node in nodes.values():
            at, _ = self.layers[node.name].nearest("network_mode")
            seen, here = [node.name], node
            while here.network.startswith(CONTAINER):
                other = here.network.removeprefix(CONTAINER)
                if other not in nodes:
                    if here is node:
                        self.source.fault(at, f'there is no node "{other}", and no container but the nodes')
                    break
                if other in seen:
                    if other == node.name and not told.intersection(seen):
                        self.source.fault(at, f"goes in a circle: {' → '.join([*seen, other])}")
                        told.update(seen)
                    break
                seen.append(other)
                here = nodes[other]

    # Addresses

    def _mgmt(self, fields: MgmtFields) -> Mgmt:
        prefixes, gateways = [], []
        both = not fields.ipv4_subnet and not fields.ipv6_subnet
        for version, default in ((4, formats.PREFIX4), (6, formats.PREFIX6)):
            prefix = getattr(fields, f"ipv{version}_subnet") or (default if both else None)
            gateway, pool = getattr(fields, f"ipv{version}_gw"), getattr(fields, f"ipv{version}_range")
            if not prefix:
                if gateway or pool:
                    name = f"ipv{version}-gw" if gateway else f"ipv{version}-range"
                    self.source.fault(("mgmt", name), f"there is no ipv{version}-subnet for it")
                continue
            if prefix.num_addresses < 4:
                self.source.fault(("mgmt", f"ipv{version}-subnet"), f"{prefix} has no room for nodes")
                continue
            if gateway and not _assignable(gateway, prefix):
                self.source.fault(("mgmt", f"ipv{version}-gw"), f"{gateway} is no address of {prefix}")
            if pool and not pool.subnet_of(prefix):
                self.source.fault(("mgmt", f"ipv{version}-range"), f"{pool} is not in {prefix}")
            prefixes.append(prefix)
            gateways.append(_on(gateway or prefix.network_address + 1, prefix))
        return Mgmt(fields.network, tuple(prefixes), tuple(gateways), fields.mtu)

    def _addressed(self, nodes: Sequence[Node], mgmt: Mgmt) -> list[Node]:
        """Return the nodes with what they have on the management network: what they ask for, else what is free."""
        holders: dict[Address, str] = {gateway.ip: "the gateway" for gateway in mgmt.gateways}
        wanted = {node.name: list(self._wanted(node, mgmt, holders)) for node in nodes}
        free = [self._free(prefix, holders) for prefix in mgmt.prefixes]
        found, full = [], set[Network]()
        for node in nodes:
            addresses = []
            for prefix, pool in zip(mgmt.prefixes, free, strict=True):
                own = next((a for a in wanted[node.name] if a.version == prefix.version), None)
                if node.network != "mgmt":
                    continue
                if address := own or next(pool, None):
                    addresses.append(_on(address, prefix))
                elif prefix not in full:
                    at = ("mgmt", f"ipv{prefix.version}-subnet")
                    self.source.fault(at, f"{prefix} has no address left for node {node.name}")
                    full.add(prefix)
            found.append(replace(node, addresses=tuple(addresses)))
        return found

    def _wanted(self, node: Node, mgmt: Mgmt, holders: dict[Address, str]) -> Iterator[Address]:
        for version in (4, 6):
            name = f"mgmt-ipv{version}"
            (at, own), *above = self.layers[node.name].layers
            for place, layer in above:
                if getattr(layer, f"mgmt_ipv{version}"):
                    self.source.fault((*place, name), "is one node's; give it to that")
            address = getattr(own, f"mgmt_ipv{version}")
            if not address:
                continue
            prefix = next((prefix for prefix in mgmt.prefixes if prefix.version == version), None)
            if node.network != "mgmt":
                self.source.fault(
                    (*at, name), f"network-mode {node.network} leaves no place for it; remove it"
                )
            elif not prefix or not _assignable(address, prefix):
                self.source.fault((*at, name), f"{address} is not in {prefix or 'the management network'}")
            elif address in holders:
                self.source.fault((*at, name), f"{address} is {holders[address]}'s already")
            else:
                holders[address] = f"node {node.name}"
                yield address

    def _free(self, prefix: Network, holders: Mapping[Address, str]) -> Iterator[Address]:
        pool = getattr(self.file.mgmt, f"ipv{prefix.version}_range")
        pool = pool if pool and pool.subnet_of(prefix) else prefix
        for number in range(int(pool.network_address), int(pool.broadcast_address) + 1):
            address = type(prefix.network_address)(number)
            if _assignable(address, prefix) and address not in holders:
                yield address

    # Links

    def _links(self, nodes: Mapping[str, Node]) -> Iterator[Link]:
        seen: set[tuple[str, str]] = set()
        for i, link in enumerate(self.file.topology.links):
            at = ("topology", "links", i)
            ends = self._ends(link, at, nodes)
            if len(ends) == 2:
                for place, end in ends:
                    name = (HOST if end.node == MGMT else end.node, end.interface)
                    if name in seen:
                        self.source.fault(place, f"{end} is an end of another link already")
                    seen.add(name)
                (_, a), (_, b) = sorted(ends, key=lambda each: each[1].node in (HOST, MGMT))
                yield Link(a, b, link.mtu)

    def _ends(self, link: LinkFields, at: Place, nodes: Mapping[str, Node]) -> list[tuple[Place, Endpoint]]:
        """Return the ends that are sound, each with where it stands."""
        if isinstance(link, HostLink):
            near = self._end(link.endpoint, (*at, "endpoint"), nodes)
            far = Endpoint(link.type, link.host_interface)
            return [*near, ((*at, "host-interface"), far)]
        special = (HOST, MGMT) if isinstance(link, BriefLink) else ()
        if link.endpoints[0].node in special and link.endpoints[1].node in special:
            self.source.fault((*at, "endpoints"), "joins no node; one end at least must be a node's")
            return []
        found = []
        for i, end in enumerate(link.endpoints):
            place = (*at, "endpoints", i)
            given = [address for pair in (link.ipv4, link.ipv6) for address in pair[i : i + 1] if address]
            if end.node not in special:
                found += self._end(end, place, nodes, given)
                continue
            if given:
                self.source.fault(
                    place, f"{end.node}:{end.interface} is the host's, and is given no address here"
                )
            found.append((place, Endpoint(end.node, end.interface)))
        return found

    def _end(
        self, end: EndFields, at: Place, nodes: Mapping[str, Node], given: Iterable[Interface] = ()
    ) -> list[tuple[Place, Endpoint]]:
        node, shown = nodes.get(end.node), f'"{end.node}:{end.interface}"'
        if not node:
            also = "; a link of type host reaches the host" if end.node == HOST else ""
            why = f'there is no node "{end.node}"; links join the nodes of this file only{also}'
        elif node.network == HOST:
            why = f"node {node.name} is in the host's network: write host:{end.interface}"
        elif node.network.startswith(CONTAINER):
            why = f"node {node.name} has the interfaces of {node.network.removeprefix(CONTAINER)}: name that"
        elif node.network == "mgmt" and end.interface == "eth0":
            why = "eth0 is on the management network; take another, or give the node network-mode: none"
        else:
            own = [address for address in (end.ipv4, end.ipv6) if address]
            addresses = tuple(dict.fromkeys([*own, *given]))
            return [(at, Endpoint(end.node, end.interface, end.mac, addresses))]
        self.source.fault(at, f"{shown}: {why}")
        return []


def _daemons(layers: _Layers, kind: str) -> tuple[str, ...]:
    frr = next((layer.extras.frr for _, layer in layers.layers if layer.extras.frr), None)
    if kind == LINUX:
        return ()
    named = frr.daemons if frr else ()
    return tuple(dict.fromkeys(d for d in named if d not in FRR_ALWAYS)) if named else ("all",)


def _restart(policy: str, kind: str) -> Literal["no", "on-failure", "always"]:
    match policy.lower() or ("always" if kind == LINUX else "no"):
        case "no":
            return "no"
        case "on-failure":
            return "on-failure"
    return "always"


def _env_name(label: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", label.upper())


def _odd_port(text: str) -> str:
    """Return what to write in place of a port that is none of ours."""
    if text.endswith("/sctp"):
        return f"sctp {NOT_HERE}; {ELSEWHERE}"
    if "-" in text:
        return "write a range as one HOST_PORT:PORT for each"
    if re.fullmatch(r"(.*::)?[0-9]+", text.partition("/")[0]):
        return "any port that is free on the host would be another each time; write it HOST_PORT:PORT"
    return "write it HOST_PORT:PORT; an IPv4 address of the host may stand before it, /tcp or /udp after it"


def _same_host_port(a: Port, b: Port) -> bool:
    same_ip = a.host_ip == b.host_ip or not a.host_ip or not b.host_ip
    return same_ip and (a.host_port, a.protocol) == (b.host_port, b.protocol)


def _assignable(address: Address, prefix: Network) -> bool:
    """Return whether a node may have it: in the prefix, neither its first address nor its broadcast."""
    last = prefix.broadcast_address if prefix.version == 4 else None
    return address in prefix and address not in (prefix.network_address, last)


def _on(address: Address, prefix: Network) -> Interface:
    text = f"{address}/{prefix.prefixlen}"
    return IPv4Interface(text) if prefix.version == 4 else IPv6Interface(text)
