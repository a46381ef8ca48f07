"""Write docs/reference/resources.md from the models: `python -m tests.reference`.

A type that has no words here is an error, so a new field cannot go undescribed.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from fabric.model import (
    bgp,
    bgpfilter,
    effects,
    extensions,
    felixconfiguration,
    fields,
    hostendpoint,
    ippool,
    k8s,
    namespaces,
    tier,
)
from fabric.model.base import Means, Metadata, Model, NotInFiles, Resource, Unknown
from fabric.model.kinds import CORE_API_VERSION, K8S_API_VERSION, KINDS, KUBERNETES_NAME, Kind
from fabric.ops.records import PREFIXES

FILE: Final = Path(__file__).parent.parent / "docs" / "reference" / "resources.md"

_NAME = "lower-case letters, digits, `-` and `.`; at most 253 characters"
_DURATION = "such as `90s` or `2m`"
_PRIORITY = "1 to 2147483646"

# What a field's annotation is in words: its type, and what it takes.
_WORDS: Final[tuple[tuple[Any, str, str], ...]] = (
    (fields.Flag, "true or false", ""),
    (fields.Int, "integer", ""),
    (fields.Name, "name", _NAME),
    (fields.NameOrEmpty, "name", _NAME),
    (tier.TierName, "name", "lower-case letters, digits and `-`; at most 63 characters"),
    (fields.LabelOrEmpty, "text", "up to 63 lower-case letters, digits and `-`"),
    (fields.LabelMap, "labels", "[prefix/]name, up to 63 characters each"),
    (fields.Annotations, "annotations", "[prefix/]name; 256 KiB together"),
    (fields.Timestamp, "time", "RFC 3339"),
    (fields.LocalSelector, "selector", "up to 1024 characters, without global()"),
    (fields.NamespaceSelector, "selector", "up to 1024 characters; global() only alone"),
    (fields.SelectorText, "selector", "up to 1024 characters"),
    (fields.ASNumber, "AS number", "0 to 4294967295, or dotted in quotes"),
    (fields.PortMatch, "port", "a number, `MIN:MAX`, or a port's name"),
    (fields.NumericPortMatch, "port", "a number, or `MIN:MAX`"),
    (fields.PortName, "text", "up to 15 lower-case letters, digits and `-`"),
    (fields.PortNameOrEmpty, "text", "up to 15 lower-case letters, digits and `-`"),
    (fields.PortedProtocol, "protocol", "`TCP`, `UDP`, `SCTP`"),
    (fields.Protocol, "protocol", "`TCP`, `UDP`, `ICMP`, `ICMPv6`, `SCTP`, `UDPLite`, or 1 to 255"),
    (fields.Duration, "duration", _DURATION),
    (felixconfiguration.DurationOrAuto, "duration", f"{_DURATION}, or `Auto`"),
    (
        felixconfiguration.InterfaceFilter,
        "interface",
        "up to 15 characters; `+` at the end stands for any text",
    ),
    (felixconfiguration.Rate, "rate", "such as `10/second`; per second, minute, hour or day"),
    (fields.Community, "BGP community", "`aa:nn` or `aa:nn:mm`"),
    (fields.InterfaceName, "interface", "up to 15 characters"),
    (hostendpoint.InterfaceOrAll, "interface", "up to 15 characters, or `*` for all"),
    (bgpfilter.InterfacePattern, "interface", "up to 15 characters; `*` stands for any text"),
    (bgp.IgnoredInterface, "interface", "up to 15 characters; `*` stands for any text, not alone"),
    (bgp.CommunityOrName, "text", "a community, or the name of one"),
    (bgp.PeerIP, "address", "`ADDRESS`, `A.B.C.D:PORT` or `[V6]:PORT`"),
    (fields.Mac, "MAC address", ""),
    (fields.AddressText, "address", ""),
    (fields.IPv4, "IPv4 address", ""),
    (fields.IPv6, "IPv6 address", ""),
    (fields.AnyAddress, "address", ""),
    (fields.IPv4WithPrefix, "IPv4 address", "with its prefix length"),
    (fields.IPv6WithPrefix, "IPv6 address", "with its prefix length"),
    (fields.AnyPrefix, "prefix", "without host bits"),
    (fields.V4Net, "IPv4 prefix or address", "without host bits"),
    (fields.V6Net, "IPv6 prefix or address", "without host bits"),
    (fields.HostPrefix, "prefix or address", "of one address, /32 or /128"),
    (fields.StrictNet, "prefix or address", "without host bits"),
    (fields.LooseV4Net, "IPv4 prefix or address", ""),
    (fields.LooseNet, "prefix or address", ""),
    (fields.Order, "number", ""),
    (ippool.BlockSize, "integer", "20 to 32 for IPv4, 116 to 128 for IPv6"),
    (k8s.PortOrName, "port", "a number, or a port's name"),
    (k8s.Block, "prefix", ""),
    (Mapping[str, Any], "object", ""),
    (Mapping[str, str], "mapping of text", ""),
    (datetime, "time", "RFC 3339"),
    (str, "text", ""),
    (int, "integer", ""),
    (bool, "true or false", ""),
)

NOT_IN_FILES: Final = "refused in files: nothing here can enforce it"

_UNIONS: Final = {Union, types.UnionType}


@dataclass(frozen=True, slots=True)
class Row:
    """One field of a kind. `path` is as `spec.ports[].name`; `default` is "required" where there is none."""

    path: str
    type: str
    default: str
    allowed: str


Words: TypeAlias = tuple[str, str]


def rows(cls: type[Model], prefix: str = "", seen: dict[type[Model], str] | None = None) -> Iterator[Row]:
    """Yield the fields of `cls` and below; a structure that was met before is referred to, not repeated."""
    seen = {} if seen is None else seen
    hints = get_type_hints(cls, include_extras=True)
    for name, field in cls.model_fields.items():
        if issubclass(cls, Resource) and name in {"kind", "api_version", "metadata"}:
            continue
        hint, path = _bare(hints[name]), f"{prefix}{field.alias or name}"
        if any(isinstance(note, NotInFiles) for note in field.metadata):
            yield Row(path, "object", "", NOT_IN_FILES)
            continue
        inner, many = _model(hint)
        if inner is None:
            yield Row(path, *_typed(hint, path, field))
            continue
        below = f"{path}[]" if many else path
        shape = "list of objects" if many else "object"
        if inner in seen:
            yield Row(path, shape, _default(field), f"as `{seen[inner]}`")
            continue
        seen[inner] = below
        if name != "spec":
            yield Row(path, shape, _default(field), _limits(hint))
        yield from rows(inner, f"{below}.", seen)


def _typed(hint: Any, path: str, field: FieldInfo) -> tuple[str, str, str]:
    try:
        type_, allowed = _describe(hint)
    except LookupError:
        raise LookupError(f"{path}: {hint} has no words in {__name__}") from None
    return type_, _default(field), allowed


def _bare(hint: Any) -> Any:
    """Return `hint` without notes of ours, validators of defaults and the None that stands for absence."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        if any(isinstance(note, Means | NotInFiles) for note in notes):
            return _bare(inner)
    if get_origin(hint) in _UNIONS:
        given = [arg for arg in get_args(hint) if arg is not type(None)]
        return _bare(given[0]) if len(given) == 1 else functools.reduce(operator.or_, given)
    return hint


def _model(hint: Any) -> tuple[type[Model] | None, bool]:
    """Return the structure that `hint` is made of, if it is, and whether it is a list of them."""
    many = False
    while get_origin(hint) in {Annotated, tuple}:
        many = many or get_origin(hint) is tuple
        hint = get_args(hint)[0]
    return (hint, many) if isinstance(hint, type) and issubclass(hint, Model) else (None, many)


def _describe(hint: Any) -> Words:
    for known, type_, allowed in _WORDS:
        # By identity: typing keeps one object of equal Annotated ones, where they can be hashed.
        if hint is known or (get_origin(hint) is not Annotated and hint == known):
            return type_, allowed
        if _narrows(hint, known):
            return type_, "; ".join(filter(None, [allowed, _limits(hint)]))
    if get_origin(hint) is Annotated:
        type_, allowed = _describe(get_args(hint)[0])
        return type_, "; ".join(filter(None, [allowed, _limits(hint)]))
    if get_origin(hint) is tuple:
        type_, allowed = _describe(get_args(hint)[0])
        return f"list of {type_}", allowed
    if get_origin(hint) is Literal:
        values = get_args(hint)
        return "text" if isinstance(values[0], str) else "integer", ", ".join(f"`{v}`" for v in values)
    if get_origin(hint) in _UNIONS:
        return " or ".join(_describe(arg)[0] for arg in get_args(hint)), ""
    raise LookupError


def _narrows(hint: Any, known: Any) -> bool:
    """Whether `hint` is `known` with more validators: typing flattens one Annotated into the other."""
    if get_origin(hint) is not Annotated or get_origin(known) is not Annotated:
        return False
    args, known_args = get_args(hint), get_args(known)
    return len(args) >= len(known_args) and all(a is k for a, k in zip(args, known_args, strict=False))


def _limits(hint: Any) -> str:
    notes = [note for item in get_args(hint)[1:] for note in getattr(item, "metadata", ())]
    found = {type(note).__name__: note for note in notes}
    parts = []
    if "Ge" in found and "Le" in found:
        parts.append(f"{found['Ge'].ge} to {found['Le'].le}")
    if "MinLen" in found and "MaxLen" in found and found["MinLen"].min_length == found["MaxLen"].max_length:
        parts.append(f"exactly {found['MaxLen'].max_length}")
    elif "MaxLen" in found:
        parts.append(f"at most {found['MaxLen'].max_length}")
    elif "MinLen" in found:
        parts.append(f"at least {found['MinLen'].min_length}")
    return ", ".join(parts)


def _default(field: FieldInfo) -> str:
    for note in field.metadata:
        if isinstance(note, Means):
            return _shown(note.value)
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        phrase = (
            field.default_factory.__doc__ if isinstance(field.default_factory, types.FunctionType) else None
        )
        return (phrase or "").rstrip(".")
    return _shown(field.default)


def _shown(value: object) -> str:
    match value:
        case None | "" | ():
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case tuple():
            return ", ".join(map(_shown, value))
        case str() if value.startswith("("):
            return value.strip("()")
    return f"`{value}`"


def page() -> str:
    """Return docs/reference/resources.md."""
    modelled = sorted((kind for kind in KINDS if kind.cls is not Unknown), key=lambda kind: kind.name)
    others = sorted(kind.name for kind in KINDS if kind.cls is Unknown and kind.name not in PREFIXES)
    parts = [
        _INTRODUCTION.format(
            others=", ".join(others),
            records=", ".join(PREFIXES),
            policies=K8S_API_VERSION,
            core=CORE_API_VERSION,
            policy=KUBERNETES_NAME,
            original=extensions.KUBERNETES,
            namespace=namespaces.profile_name("NAME"),
            account=namespaces.service_account_profile_name("NAMESPACE", "NAME"),
            pcns=namespaces.PCNS,
            pcsa=namespaces.PCSA,
        ),
        _table("metadata.", Metadata, None),
    ]
    parts.extend(_section(kind) for kind in modelled)
    return "\n".join(parts)


_INTRODUCTION = """\
<!-- Written by `python -m tests.reference`; do not edit. -->
# Resources

Every kind is `apiVersion: projectcalico.org/v3`, with Calico's fields and defaults. A field that a kind does not
have is an error in a file; in the datastore it is kept. *Not used yet*: kept and given back, and nothing here acts
on it.

A default in plain words is what happens where the field is absent. `path[]` is each entry of a list. As in Calico, an
empty text is the same as none in most optional fields of one word or address, and nowhere in a policy's rule.

Kept as it is: {others}. These are stored and given back untouched, without a look inside, and nothing here acts on
them.

Annotations whose key begins with `fabricctl.io/` say what Calico has no field for; the kinds that have some list them
below their fields. A bad value is an error in a file; of a stored one the default holds, and `node status` says so.

IPAM's own records, shown and not written: {records}.

## Of Kubernetes

Files may have these as well, as Kubernetes' API server takes them. Each is stored as what Calico makes of it:

| kind | stored as | shown by |
|---|---|---|
| NetworkPolicy of `{policies}` | NetworkPolicy `{policy}NAME` of its namespace, order 1000, in the tier `default`; \
the annotation `{original}` has the original | `get netpol` the original, `get np` what is stored |
| Namespace of `{core}` | Profile `{namespace}`, which allows all both ways, and whose labels are the namespace's with \
`{pcns}` before each key | `get profiles` |
| ServiceAccount of `{core}` | Profile `{account}`, with labels alone, `{pcsa}` before each key | `get profiles` |

Of their annotations those under `fabricctl.io/` are carried over: a policy's, and a Namespace's \
`fabricctl.io/drop-log`. `netpol` is also `networkpolicies.networking.k8s.io`.

## Metadata

The same for every kind. Some kinds ask more of the name, as their errors say.
"""


def _section(kind: Kind) -> str:
    scope = "of a namespace" if kind.namespaced else "cluster-wide"
    words = ", ".join(f"`{word}`" for word in (kind.plural, *kind.aliases))
    lines = [f"## {kind.name}", "", f"Also {words}; {scope}."]
    if (doc := kind.cls.__doc__) and doc != Resource.__doc__:
        lines.append(" ".join(doc.split()))
    if kind.cls not in effects.ACTING:
        lines.append("*Not used yet.*")
    return "\n".join(lines) + "\n\n" + _table("", kind.cls, kind.cls) + _annotations(kind.name)


def _annotations(kind: str) -> str:
    """What is said of a kind by annotations of ours."""
    if kind not in extensions.KNOWN:
        return ""
    lines = ["", "| annotation | allowed | default | meaning |", "|---|---|---|---|"]
    for key, known in extensions.KNOWN[kind].items():
        lines.append(f"| `{key}` | {known.allowed} | {known.default} | {known.meaning} |")
    return "\n".join(lines) + "\n"


def _table(prefix: str, cls: type[Model], kind: type[Resource] | None) -> str:
    partly = kind if kind in effects.ACTING else None
    lines = [
        "| field | type | default | allowed |" + (" |" if partly else ""),
        "|---|---|---|---|" + ("---|" if partly else ""),
    ]
    for row in rows(cls, prefix):
        cells = [f"`{row.path}`", row.type, row.default, row.allowed]
        if partly:
            inert = row.path.startswith("spec.") and not effects.acts(partly, row.path.replace("[]", ""))
            cells.append("not used yet" if inert else "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(page())
