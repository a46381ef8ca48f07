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
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from typing import Literal

from fabric.errors import ConfigError
from fabric.lab import format as formats
from fabric.lab import linking, management
from fabric.lab import profiles as known
from fabric.lab import source as sources
from fabric.lab import stages as steps
from fabric.lab.format import ELSEWHERE, FRR, FRR_ALWAYS, LINUX, NOT_HERE, File, StageFields
from fabric.lab.inheritance import Layers, layers_of, refuse_foreign
from fabric.lab.linking import Endpoint as Endpoint
from fabric.lab.linking import Link as Link
from fabric.lab.management import Address as Address
from fabric.lab.management import Interface as Interface
from fabric.lab.management import Member
from fabric.lab.management import Mgmt as Mgmt
from fabric.lab.management import Network as Network
from fabric.lab.profiles import Profile, Profiles
from fabric.lab.source import Place, Source

CONTAINERLAB_MTU, HOST, MGMT, STAGES = formats.MTU, formats.HOST, formats.MGMT, formats.STAGES
CONTAINER = formats.CONTAINER  # what `network` begins with where a node shares another's

_WHAT = "a containerlab topology file"
_NAME = 255  # the longest a file's name can be: a lab's state is a directory, containerlab's is clab-NAME
_PORT = re.compile(r"(?:([0-9.]+):)?([0-9]+):([0-9]+)(?:/(tcp|udp))?")
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
    refuse_foreign(source, profiles)
    file = formats.validated(source)
    topology = _Reading(file, source, profiles).topology()
    source.check()
    return topology


# Meaning


class _Reading:
    """One file on its way to values; what is wrong is noted in `source`, and reading goes on."""

    def __init__(self, file: File, source: Source, profiles: Profiles) -> None:
        self.file, self.source, self.profiles = file, source, profiles
        self.directory = source.path.parent
        self.layers = {name: layers_of(name, file.topology) for name in file.topology.nodes}
        self.awaited: list[tuple[Place, str]] = []  # each node whose end is waited for, and where that stands

    def topology(self) -> Topology:
        name = self.file.name
        if len(f"clab-{name}") > _NAME:
            self.source.fault(("name",), f"has {len(name)} characters, of {_NAME - len('clab-')} at most")
        nodes = [self._node(name) for name in self.layers]
        self._check_sharing({node.name: node for node in nodes})
        self._check_host_ports(nodes)
        self._check_ends({node.name: node for node in nodes})
        mgmt = management.network(self.file.mgmt, self.source)
        members = [self._member(node) for node in nodes]
        assigned = management.assigned(mgmt, self.file.mgmt, members, self.source)
        nodes = [replace(node, addresses=assigned[node.name]) for node in nodes]
        networks = {node.name: node.network for node in nodes}
        links = tuple(linking.joined(self.file.topology.links, networks, self.source))
        if not self.source.found:
            self._check_order(nodes)
        return Topology(name, tuple(nodes), links, self.file.prefix, mgmt)

    def _node(self, name: str) -> Node:
        layers = self.layers[name]
        kind, image, profile = self._identity(layers)
        network = self._network(name)
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
            sysctls=self._sysctls(name, kind, profile),
            cpu=layers.nearest("cpu")[1] or None,
            memory=layers.nearest("memory")[1] or None,
            restart=_restart(layers.nearest("restart_policy")[1], kind),
            profile=profile,
        )

    def _identity(self, layers: Layers) -> tuple[str, str, Profile | None]:
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

    def _network(self, name: str) -> str:
        return self.layers[name].nearest("network_mode")[1] or "mgmt"

    def _member(self, node: Node) -> Member:
        asks = []
        for name in ("mgmt_ipv4", "mgmt_ipv6"):
            (at, own), *above = self.layers[node.name].layers
            for place, layer in above:
                if getattr(layer, name):
                    self.source.fault((*place, name.replace("_", "-")), "is one node's; give it to that")
            if address := getattr(own, name):
                asks.append(((*at, name.replace("_", "-")), address))
        return Member(node.name, node.network, tuple(asks))

    def _foreground(self, layers: Layers, name: str, profile: Profile | None) -> tuple[str, ...]:
        at, words = layers.nearest(name)
        if words and profile and profile.start:
            self.source.fault(at, f"would take the place of what profile {profile.name} starts; remove it")
        found: tuple[str, ...] = words
        return found

    def _user(self, layers: Layers, profile: Profile | None) -> str:
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
        target = PurePosixPath(rest[0])
        if ".." in target.parts:
            self.source.fault(at, f'"{text}": write where it is to be without ".."')
            return None
        path = self._file(*self._expand([source], node))
        if not path.exists():
            self.source.fault(at, f'"{text}": {path} does not exist')
        return Bind(path, target, rest[1:] == ["ro"])

    def _text(self, path: Path, at: Place, what: str) -> str:
        """Return the text of a file that the topology names, or "" if that cannot be read."""
        try:
            return sources.text_of(path, what)
        except ConfigError as err:
            self.source.fault(at, str(err))
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
            config = self._text(self._file(config), at, "a configuration")
        if "{{" in config:
            self.source.fault(at, f"has an action of a Go template, which {NOT_HERE}; render it first")
        return str(config)

    def _environment(self, layers: Layers) -> dict[str, str]:
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
        for number, line in enumerate(self._text(path, at, "a file of variables").splitlines(), 1):
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

    def _ports(self, layers: Layers, network: str) -> Iterator[Port]:
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

    def _sysctls(self, name: str, kind: str, profile: Profile | None) -> dict[str, str]:
        layers, network = self.layers[name], self._network(name)
        found = layers.merged("sysctls")
        if self._on_host(name):
            for at, layer in layers.layers:
                for key in layer.sysctls:
                    if key.startswith("net"):
                        why = "would change the host, whose network the node has; remove it"
                        self.source.fault((*at, "sysctls", key), why)
            if kind != LINUX:
                at, _ = layers.nearest("network_mode")
                why = f"kind {kind} makes its network forward, and this one is the host's; give it one of its own"
                self.source.fault(at, why)
            return found
        if not network.startswith(CONTAINER):
            found = {**(profile or self.profiles.profiles[known.PLAIN]).sysctls, **found}
        # In containerlab kind frr forwards, whatever the file says.
        return found | (_FORWARDING if kind != LINUX else {})

    def _on_host(self, name: str) -> bool:
        """Return whether a node is in the host's network, itself or through those whose network it shares."""
        seen = {name}
        while (network := self._network(name)).startswith(CONTAINER):
            name = network.removeprefix(CONTAINER)
            if name in seen or name not in self.layers:
                return False
            seen.add(name)
        return network == HOST

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
                if stage == "exit" and fields != StageFields():
                    why = "nothing waits, or is run, at a node's end; only wait-for of others may name it"
                    self.source.fault((*at, "stages", stage), f"{why}; remove it")
                if stage == "create" and not all(on_host for _, on_host in fields.commands("on-enter")):
                    why = "the node is not there yet on entering create; run it on-exit, or give it target: host"
                    self.source.fault((*at, "stages", stage, "exec"), why)
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
        elif stage == "exit":
            self.awaited.append((at, node))

    def _check_ends(self, nodes: Mapping[str, Node]) -> None:
        for at, name in self.awaited:
            if not nodes[name].command:
                why = "has no foreground process whose end could be waited for; give it a cmd"
            elif nodes[name].restart == "always":
                why = 'never ends, being restarted always; give it restart-policy: "no" or on-failure'
            else:
                continue
            self.source.fault(at, f"node {name} {why}, or wait for another stage of it")

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


def _daemons(layers: Layers, kind: str) -> tuple[str, ...]:
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
