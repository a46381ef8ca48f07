"""Decide what a topology file may say: containerlab's format, as far as namespaces can honour it.

What is not here is refused by its name, never skipped; what is here means what it means in containerlab.
Scalars come as the text that was written (`fabric.lab.source`), and each field wants the type that
containerlab's schema gives it: `mtu: "1500"` is no number here because it is none there.

Three things go beyond that schema, because containerlab itself takes them: kind `frr` (alias `frrouting`)
with `extras.frr`; `mgmt.ipv6-range`, to which the schema gives a pattern that no range fits; a stage's
command without `phase`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag
from pydantic_core import ErrorDetails

from fabric.lab import source as sources
from fabric.lab.source import Boolean, Number, Place, Raw, Source

MTU = 9500  # containerlab's DefaultLinkMTU
IFNAMSIZ = 15
HOST, MGMT = "host", "mgmt-net"  # what a link's end may name instead of a node
CONTAINER = "container:"  # what a network-mode begins with that is another node's
STAGES = ("create", "create-links", "configure", "healthy", "exit")
LINUX, FRR = "linux", ("frr", "frrouting")
# What extras.frr.daemons may name; the second row runs whatever it says.
FRR_DAEMONS = (
    *("bgpd", "ospfd", "ospf6d", "ripd", "ripngd", "isisd", "pimd", "pim6d", "ldpd", "nhrpd", "eigrpd"),
    *("babeld", "sharpd", "pbrd", "bfdd", "fabricd", "vrrpd", "pathd"),
)
FRR_ALWAYS = ("zebra", "staticd", "mgmtd", "watchfrr")
PREFIX4, PREFIX6 = IPv4Network("172.20.20.0/24"), IPv6Network("3fff:172:20:20::/64")

NOT_HERE = "is not supported by namespace labs"
ELSEWHERE = "remove it, or deploy the file with containerlab"
EMPTY = "is empty; give it a value, or remove it"

# What containerlab has for nodes besides: no slips of the pen, whatever they look like.
_OTHER_FIELDS = {
    *("aliases", "certificate", "cgroup-parent", "cgroupns-mode", "components", "config", "cpu-set"),
    *("credentials", "devices", "dns", "healthcheck", "hostname", "license", "link-apply-mode", "pid-mode"),
    *("security-opts", "shm-size", "suppress-startup-config", "tmpfs", "type", "volumes"),
}
# What a brief link calls by these names is no node, whatever nodes there are.
_OTHER_LINKS = ("macvlan", "macvtap", "vxlan", "vxlan-stitch", "dummy")
_HOST_NAME = r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
# "$$" is containerlab's "$"; "$1", "$(" and the like it leaves alone.
# What Docker lets a container set: the rest is the host's.
_SYSCTLS = re.compile(r"net[./].+|fs[./]mqueue[./].+|kernel[./](msg(max|mnb|mni)|sem|shm\w+)")
_VARIABLE = re.compile(r"\$\$|\$\{?([A-Za-z_]\w*)", re.ASCII)


# Scalars


def _text(value: object) -> object:
    if value is None:
        raise ValueError(EMPTY)
    if isinstance(value, Number | Boolean):
        raise ValueError(f"{value} is a {type(value).__name__.lower()} in YAML; write it in quotes")
    return value


def _number(value: object) -> object:
    if not isinstance(value, Number):
        raise ValueError("must be a number, without quotes")
    return value


def _boolean(value: object) -> object:
    if not isinstance(value, Boolean):
        raise ValueError("must be true or false, without quotes")
    return value


def _scalar(value: object) -> object:
    return str(value) if isinstance(value, Number | Boolean) else _text(value)


def _text_or_number(value: object) -> object:
    return _text(value) if isinstance(value, Boolean) else _scalar(value)


def sysctl(value: object) -> object:
    """Return the name of a sysctl that is a node's own. Raises ValueError: it is not, or is no name."""
    key = str(_text(value))
    if not {"", ".", ".."}.isdisjoint(key.split("/") if "/" in key else key.split(".")):
        raise ValueError("is no name of a sysctl; write it as sysctl(8) does")
    if not _SYSCTLS.fullmatch(key):
        raise ValueError("would change the host, not the node; remove it")
    return value


def _label(value: object) -> object:
    if value == "" or (isinstance(value, Number) and value.startswith("-")):
        raise ValueError(f'"{value}" must be text that is not empty, or a number from 0')
    return _text_or_number(value)


def _user(value: object) -> object:
    if not re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*(:[a-zA-Z0-9_][a-zA-Z0-9_.-]*)?", str(_scalar(value))):
        raise ValueError(f'"{value}" is no user; write a name or a number, with :GROUP if need be')
    return _text_or_number(value)


def _like(pattern: str, rule: str) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(_text(value), str) and not re.fullmatch(pattern, str(value)):
            raise ValueError(f'"{value}" {rule}')
        return value

    return BeforeValidator(check)


def _words(value: object) -> object:
    if not isinstance(_text(value), str):
        raise ValueError("must be text, as one would type it")
    try:
        return shlex.split(str(value))
    except ValueError as err:
        raise ValueError(f"{str(value)!r}: {str(err).lower()}") from err


def _command(value: object) -> object:
    if not (words := _words(value)):
        raise ValueError("is no command; write one, or remove it")
    return words


def _bytes(value: object) -> object:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?", str(_text(value)), re.IGNORECASE)
    if not match or not float(match[1]):
        raise ValueError(f'"{value}" is no size; write a number and b, kb, kib, mb, mib, gb or gib')
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def _filled(value: object) -> object:
    if value in ([], {}):
        raise ValueError(EMPTY)
    return value


def _distinct(value: object) -> object:
    if isinstance(value, list):
        for item in value:
            if value.count(item) > 1:
                raise ValueError(f'"{item}" stands twice')
    return _filled(value)


def _of_ipaddress(kind: Callable[[str], Any], what: str) -> PlainValidator:
    """Return a validator that reads `kind` of ipaddress, which the schema wants without scope and netmask."""

    def read(value: object) -> object:
        text = str(_text(value))
        try:
            if not re.fullmatch(r"[^/%]*(/(0|[1-9][0-9]*))?", text):
                raise ValueError(text)
            return kind(text)
        except ValueError as err:
            raise ValueError(f'"{text}" is no {what}') from err

    return PlainValidator(read)


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: kind(text) if text else None


def _with_length(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if "/" not in text or (":" in text and "." in text):
            raise ValueError(text)
        return kind(text)

    return read


Text = Annotated[str, BeforeValidator(_text)]
Switch = Annotated[bool, BeforeValidator(_boolean)]
Mtu = Annotated[int, BeforeValidator(_number), Field(ge=68, le=65535)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Command = Annotated[tuple[str, ...], BeforeValidator(_command)]
Commands = Annotated[tuple[Command, ...], BeforeValidator(_filled)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_distinct)]
Labels = dict[str, Annotated[str, BeforeValidator(_label)]]
Address4 = Annotated[IPv4Address | None, _of_ipaddress(IPv4Address, "IPv4 address")]
Address6 = Annotated[IPv6Address | None, _of_ipaddress(IPv6Address, "IPv6 address")]
_PREFIX, _INTERFACE = "prefix without host bits", "address with a prefix length"
Prefix4 = Annotated[IPv4Network | None, _of_ipaddress(_with_length(IPv4Network), f"IPv4 {_PREFIX}")]
Prefix6 = Annotated[IPv6Network | None, _of_ipaddress(_with_length(IPv6Network), f"IPv6 {_PREFIX}")]
_4, _6 = _with_length(IPv4Interface), _with_length(IPv6Interface)
Interface4 = Annotated[IPv4Interface | None, _of_ipaddress(_4, f"IPv4 {_INTERFACE}")]
Interface6 = Annotated[IPv6Interface | None, _of_ipaddress(_6, f"IPv6 {_INTERFACE}")]
End4 = Annotated[IPv4Interface | None, _of_ipaddress(_or_none(_4), f"IPv4 {_INTERFACE}")]
End6 = Annotated[IPv6Interface | None, _of_ipaddress(_or_none(_6), f"IPv6 {_INTERFACE}")]


# Nodes


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"), defer_build=True
    )


class WaitFor(_Section):
    node: Text
    stage: Text


class StageExec(_Section):
    command: Command
    target: Literal["container", "host"] = "container"
    phase: Literal["on-enter", "on-exit"] = "on-enter"


class StagePhases(_Section):
    on_enter: Commands = ()
    on_exit: Commands = ()


class StageFields(_Section):
    """One stage; of the two forms that `exec` has, `commands` makes one."""

    wait_for: Annotated[tuple[WaitFor, ...], BeforeValidator(_distinct)] = ()
    exec: Annotated[
        Annotated[StagePhases, Tag("phases")] | Annotated[tuple[StageExec, ...], Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list) else "phases"),
    ] = ()

    def commands(self, phase: str) -> list[tuple[tuple[str, ...], bool]]:
        """Return the commands of "on-enter" or "on-exit", each with whether it runs on the host."""
        if isinstance(self.exec, StagePhases):
            return [(w, False) for w in (self.exec.on_enter if phase == "on-enter" else self.exec.on_exit)]
        return [(one.command, one.target == "host") for one in self.exec if one.phase == phase]


class StagesFields(_Section):
    create: StageFields = Field(default_factory=StageFields)
    create_links: StageFields = Field(default_factory=StageFields)
    configure: StageFields = Field(default_factory=StageFields)
    healthy: StageFields = Field(default_factory=StageFields)
    exit: StageFields = Field(default_factory=StageFields)

    def of(self, stage: str) -> StageFields:
        found: StageFields = getattr(self, stage.replace("-", "_"))
        return found


class FrrFields(_Section):
    daemons: tuple[
        Annotated[
            Text,
            _like(
                "|".join((*FRR_DAEMONS, *FRR_ALWAYS)), f"is no daemon of FRR; it has {', '.join(FRR_DAEMONS)}"
            ),
        ],
        ...,
    ] = ()


class ExtrasFields(_Section):
    frr: FrrFields | None = None


class NodeFields(_Section):
    """What a node, group, kind or `defaults` may say; what is left out and what is empty are the same."""

    kind: Text = ""
    image: Text = ""
    group: Text = ""
    binds: Texts = ()
    env: dict[str, Annotated[str, BeforeValidator(_scalar)]] = Field(default_factory=dict)
    env_files: Texts = ()
    exec: Commands = ()
    cmd: Words = ()
    entrypoint: Words = ()
    user: Annotated[str, BeforeValidator(_user)] = ""
    startup_config: Text = ""
    extras: ExtrasFields = Field(default_factory=ExtrasFields)
    ports: tuple[Text, ...] = ()
    network_mode: Annotated[
        str, _like(rf"none|host|{CONTAINER}\S+", "is no network-mode; it is none, host or container:NODE")
    ] = ""
    startup_delay: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 0
    stages: StagesFields = Field(default_factory=StagesFields)
    labels: Labels = Field(default_factory=dict)
    sysctls: dict[
        Annotated[str, BeforeValidator(sysctl)], Annotated[str, BeforeValidator(_text_or_number)]
    ] = Field(default_factory=dict)
    cpu: Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)] = 0
    memory: Annotated[int, BeforeValidator(_bytes)] = 0
    restart_policy: Annotated[
        str,
        _like(
            "[nN]o|[oO]n-failure|[aA]lways|[uU]nless-stopped",
            "is no restart-policy; it is no, on-failure, always or unless-stopped",
        ),
    ] = ""
    mgmt_ipv4: Address4 = None
    mgmt_ipv6: Address6 = None

    # Without effect: no image is pulled and no container made, a node has the capabilities of the caller
    # anyway, and there is no saved configuration that a startup-config would have to win against.
    image_pull_policy: Annotated[
        str, _like("[aA]lways|[nN]ever|ifnotpresent|IfNotPresent", "is no image-pull-policy")
    ] = ""
    runtime: Annotated[str, _like("docker|podman", "is no runtime; it is docker or podman")] = ""
    auto_remove: Switch = False
    privileged: Switch = False
    cap_add: Texts = ()
    enforce_startup_config: Switch = False


# Links


def _interface_name(value: object) -> object:
    name = str(_text(value))
    if not re.fullmatch(r"[^/\s:]+", name) or len(name.encode()) > IFNAMSIZ or name in {"lo", ".", ".."}:
        raise ValueError(f'"{name}" is no interface name (1 to {IFNAMSIZ} characters)')
    return value


def _mac(value: object) -> object:
    text = str(_text(value)).lower().replace("-", ":")
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", text) or int(text[1], 16) % 2:
        raise ValueError(f'"{value}" is no hardware address of an interface')
    return text


def _brief_end(value: object) -> object:
    """Return NODE:INTERFACE as the extended form has it."""
    text = str(_text(value))
    node, colon, interface = text.partition(":")
    if not (isinstance(value, str) and node and colon):
        raise ValueError(f'"{text}": write it NODE:INTERFACE')
    if node in _OTHER_LINKS:
        raise ValueError(f'"{text}": a link of type {node} {NOT_HERE}; {ELSEWHERE}')
    return {"node": node, "interface": interface}


def _two(value: object) -> object:
    if isinstance(value, list) and len(value) != 2:
        raise ValueError(f"a link has two ends, not {len(value)}")
    return value


class EndFields(_Section):
    node: Text
    interface: Annotated[str, BeforeValidator(_interface_name)]
    mac: Annotated[str, BeforeValidator(_mac)] = ""
    ipv4: Interface4 = None
    ipv6: Interface6 = None
    vars: dict[str, Any] = Field(default_factory=dict)


class _LinkFields(_Section):
    mtu: Mtu = MTU
    vars: dict[str, Any] = Field(default_factory=dict)


class _TwoEnded(_LinkFields):
    """`ipv4` and `ipv6` are the ends' addresses in their order, None for an end that has none."""

    ipv4: Annotated[tuple[End4, ...], BeforeValidator(_distinct)] = Field((), max_length=2)
    ipv6: Annotated[tuple[End6, ...], BeforeValidator(_distinct)] = Field((), max_length=2)


class BriefLink(_TwoEnded):
    """The ends may be `host` and `mgmt-net`: the interface is then the host's."""

    endpoints: Annotated[
        tuple[
            Annotated[EndFields, BeforeValidator(_brief_end)],
            Annotated[EndFields, BeforeValidator(_brief_end)],
        ],
        BeforeValidator(_two),
    ]


class VethLink(_TwoEnded):
    type: Literal["veth"]
    endpoints: Annotated[tuple[EndFields, EndFields], BeforeValidator(_two)]
    labels: Labels = Field(default_factory=dict)


class HostLink(_LinkFields):
    """A link of a node to the host, or to the bridge of the management network."""

    type: Literal["host", "mgmt-net"]
    endpoint: EndFields
    host_interface: Annotated[str, BeforeValidator(_interface_name)]
    labels: Labels = Field(default_factory=dict)


def _form(value: object) -> str | None:
    kind = value.get("type", "brief") if isinstance(value, dict) else None
    return "host" if kind == MGMT else kind if isinstance(kind, str) else None


LinkFields = Annotated[
    Annotated[BriefLink, Tag("brief")] | Annotated[VethLink, Tag("veth")] | Annotated[HostLink, Tag("host")],
    Discriminator(_form),
]


# The file


def _auto(prefix: IPv4Network | IPv6Network) -> BeforeValidator:
    return BeforeValidator(lambda value: str(prefix) if value == "auto" else value)


def _closed(value: object) -> object:
    if str(_boolean(value)).lower() == "true":
        raise ValueError(f"true {NOT_HERE}, where nothing beyond the host reaches a node; {ELSEWHERE}")
    return value


class MgmtFields(_Section):
    """The management network; `bridge` and `skip-when-unused` are without effect."""

    network: Text = "clab"
    bridge: Text = ""
    ipv4_subnet: Annotated[Prefix4, _auto(PREFIX4)] = None
    ipv6_subnet: Annotated[Prefix6, _auto(PREFIX6)] = None
    ipv4_gw: Address4 = None
    ipv6_gw: Address6 = None
    ipv4_range: Prefix4 = None
    ipv6_range: Prefix6 = None
    mtu: Mtu = 1500
    external_access: Annotated[Switch, BeforeValidator(_closed)] = False
    skip_when_unused: Switch = False


def _node_name(value: str) -> str:
    if not re.fullmatch(_HOST_NAME, value):
        raise ValueError("is no host name (letters, digits, inner dots, dashes and underscores, at most 63)")
    if value in (HOST, MGMT, *_OTHER_LINKS):
        raise ValueError(f'a link\'s end takes "{value}" for something else than a node; name it otherwise')
    return value


_NodeOrNone = Annotated[NodeFields, BeforeValidator(lambda value: {} if value is None else value)]


class Body(_Section):
    defaults: NodeFields = Field(default_factory=NodeFields)
    kinds: dict[str, NodeFields] = Field(default_factory=dict)
    groups: dict[str, NodeFields] = Field(default_factory=dict)
    nodes: dict[Annotated[str, BeforeValidator(_node_name)], _NodeOrNone]
    links: Annotated[tuple[LinkFields, ...], BeforeValidator(_filled)] = ()


class File(_Section):
    name: Annotated[
        str, _like("[a-zA-Z0-9][a-zA-Z0-9._-]*", 'may have letters, digits, ".", "_" and "-" only')
    ]
    prefix: Annotated[
        str,
        _like("|__lab-name|[a-zA-Z0-9][a-zA-Z0-9._-]*", 'may have letters, digits, ".", "_" and "-" only'),
    ] = "clab"
    mgmt: Annotated[MgmtFields, BeforeValidator(_filled)] = Field(default_factory=MgmtFields)
    topology: Body


# From text to the file


def refuse_template(text: str, path: Path) -> None:
    """Raise ConfigError if `text`, or a file beside it, is a Go template's."""
    source = Source(path, text)
    what = f"which {NOT_HERE}: render it to a file of its own first (gomplate does), and bring that up"
    for number, line in enumerate(text.splitlines(), 1):
        if "{{" in line:
            source.fault_at(number, f'"{{{{" begins an action of a Go template, {what}')
            break
    if ".gotmpl" in path.suffixes:
        source.fault_at(1, f"its name says that it is a Go template, {what}")
    for suffix in (".yaml", ".yml", ".json"):
        if (values := path.with_name(f"{path.stem}_vars{suffix}")).exists():
            source.fault_at(1, f"{values.name} has the values of a Go template, {what}")
    source.check()


def literal(source: Source) -> None:
    """Take the text in `source` as containerlab does after replacing variables, of which there is only "$$".

    Raises:
        ConfigError: there are others.
    """
    source.value = _literal(source, source.value, ())
    source.check()


def validated(source: Source) -> File:
    """Return the file in `source`.

    Raises:
        ConfigError: it is not the format, or asks for what a namespace lab does not do. Every fault is
            reported, one FILE:LINE each.
    """
    return sources.validated(source, File, explain)


def explain(detail: ErrorDetails, names: Iterable[str]) -> str:
    """Return what is wrong with a field."""
    match detail["type"]:
        case "extra_forbidden":
            name = detail["loc"][-1]
            hint = "" if name in _OTHER_FIELDS else sources.did_you_mean(name, names)
            return f"{NOT_HERE}{hint}; {ELSEWHERE}"
        case "union_tag_invalid":
            return f"a link of type {detail['ctx']['tag']} {NOT_HERE}; {ELSEWHERE}"
        case "union_tag_not_found":
            return "must be a mapping of fields"
    return sources.explain(detail, names)


def _literal(source: Source, value: Raw, place: Place) -> Raw:
    """Return `value` as containerlab has it after replacing variables; there may be none but "$$"."""
    if isinstance(value, dict):
        for key in value:
            _refuse_variables(source, key, (*place, key))
        return {key: _literal(source, inner, (*place, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(source, inner, (*place, i)) for i, inner in enumerate(value)]
    if not value or "$" not in value:
        return value
    _refuse_variables(source, value, place)
    return value.replace("$$", "$")


def _refuse_variables(source: Source, text: str, place: Place) -> None:
    for name in variables(text):
        source.fault(
            place,
            f"${name} is a variable, which {NOT_HERE}: put its value there, by hand or with a tool such as envsubst,"
            f" before the lab comes up; $${name} is the text ${name}",
        )


def variables(text: str) -> list[str]:
    """Return the names of the variables in `text`, $NAME or ${NAME…}."""
    return [match[1] for match in _VARIABLE.finditer(text) if match[1] and match[1] != "_"]
