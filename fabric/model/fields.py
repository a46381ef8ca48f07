"""Decide what text is a valid name, address, prefix, AS number, selector … inside a resource.

The messages are the rule alone; whoever reports one adds the file, the path and the value. Addresses are
`ipaddress` objects inside and text outside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from math import isfinite
from typing import Annotated, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, Strict
from pydantic_core import PydanticCustomError

from fabric.errors import ConfigError
from policy import selector

T = TypeVar("T")

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network

MAX_SELECTOR = 1024  # characters; Calico's schema has the same limit
MAX_ANNOTATIONS = 256 * 1024  # bytes, keys and values together

DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_NAME = rf"{DNS_LABEL}(\.{DNS_LABEL})*"
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"({DNS_NAME}/)?{_WORD}")


def broken(
    rule: str, *path: str | int, value: object = None, needs: tuple[str, ...] | None = None
) -> PydanticCustomError:
    """Return the error to raise from a validator when `rule` is broken at `path` below what it validates.

    `needs` are the fields whose absence breaks it: where one of them is itself wrong, nobody knows. () is none: what
    else is wrong does not matter. None is whatever is below.
    """
    context = {"rule": rule, "path": path, "value": value, "needs": needs}
    return PydanticCustomError("broken_rule", "{rule}", context)


def matching(pattern: str, rule: str) -> AfterValidator:
    """Accept text that `pattern` matches as a whole."""
    compiled = re.compile(pattern)

    def validate(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(rule)
        return text

    return AfterValidator(validate)


def no_repeats(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return `values`. Raises ValueError where one stands there twice."""
    if len(set(values)) != len(values):
        raise ValueError("holds a value more than once")
    return values


def _name(text: str) -> str:
    if len(text) > 253 or not re.fullmatch(DNS_NAME, text):
        raise ValueError("a name is lower-case letters, digits, '-' and '.', at most 253 characters")
    return text


def _label(text: str) -> str:
    if len(text) > 63 or not re.fullmatch(DNS_LABEL, text):
        raise ValueError("must be at most 63 lower-case letters, digits and '-'")
    return text


def valid_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return `labels`. Raises ValueError for a key or a value that Kubernetes would not take."""
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f'label key "{key}" is not [prefix/]name, with a name of 1 to 63 characters')
        if not re.fullmatch(rf"({_WORD})?", value):
            raise ValueError(f'label {key}: "{value}" is not up to 63 letters, digits, "-", "_" and "."')
    return labels


def _annotations(annotations: Mapping[str, str]) -> Mapping[str, str]:
    for key in annotations:
        if not _KEY.fullmatch(key.lower()):
            raise ValueError(
                f'annotation key "{key}" is not [prefix/]name, with a name of 1 to 63 characters'
            )
    size = sum(len(text.encode()) for item in annotations.items() for text in item)
    if size > MAX_ANNOTATIONS:
        raise ValueError(f"annotations take {size} bytes; at most {MAX_ANNOTATIONS} are allowed")
    return annotations


def _timestamp(value: object) -> datetime:
    rule = "must be a time of RFC 3339, such as 2026-11-21T04:16:27Z"
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, datetime) and moment.tzinfo:
            return moment.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise ValueError(rule) from None
    raise ValueError(rule)


def _unscoped(text: str) -> str:
    # `ipaddress` takes any text after "%": a scope means another link on each node, and the rest of it
    # would be read as commands by whatever the address is written into.
    if "%" in text:
        raise ValueError('must have no scope id ("%")')
    return text


def _read(kinds: tuple[type, ...], read: Callable[[str], object], rule: str) -> PlainValidator:
    """Accept an object of `kinds`, or text that `read` turns into one; say `rule` otherwise."""

    def validate(value: object) -> object:
        if isinstance(value, kinds):
            return value
        text = _unscoped(value) if isinstance(value, str) else ""
        try:
            return read(text)
        except ValueError:
            raise ValueError(rule) from None

    return PlainValidator(validate)


def _prefix(value: object) -> Prefix:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = _unscoped(value) if isinstance(value, str) and "/" in value else ""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be a prefix, such as 10.0.0.0/16 or fd00::/48") from None
    if ip_address(text.partition("/")[0]) != network.network_address:
        raise ValueError(f"has host bits set; the prefix around it is {network}")
    return network


def _host_prefix(prefix: Prefix) -> Prefix:
    if prefix.prefixlen != prefix.max_prefixlen:
        raise ValueError(f"must be one address, /{prefix.max_prefixlen}")
    return prefix


def _of_version(version: int) -> AfterValidator:
    def validate(prefix: Prefix) -> Prefix:
        if prefix.version != version:
            raise ValueError(f"must be an IPv{version} prefix")
        return prefix

    return AfterValidator(validate)


def _net(value: object) -> Prefix:
    """Return the prefix `value` writes, an address being a prefix of its own, host bits cut off."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        return ip_network(_unscoped(value) if isinstance(value, str) else "", strict=False)
    except ValueError as err:
        scope = isinstance(value, str) and "%" in value
        raise ValueError(str(err) if scope else "must be an IP address or a prefix") from None


def _strict_net(value: object) -> Prefix:
    """Return the prefix `value` writes, an address being a prefix of its own, and host bits a mistake."""
    return _prefix(value) if isinstance(value, str) and "/" in value else _net(value)


def _as_number(value: object) -> object:
    if isinstance(value, float):
        raise ValueError('must be a whole number; a dotted AS number is put in quotes: "1.10"')
    if not isinstance(value, str):
        return value
    high, dot, low = value.rpartition(".")
    parts = (high, low) if dot else (low,)
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        raise ValueError("must be an AS number, 0 to 4294967295, or dotted as 1.10 in quotes")
    if not dot:
        return int(low)
    if max(int(high), int(low)) > 0xFFFF:
        raise ValueError("each half of a dotted AS number is 0 to 65535")
    return int(high) << 16 | int(low)


def valid_as_number(text: str) -> int:
    """Return the AS number that `text` writes, plain or dotted. Raises ValueError otherwise, and for 0 (RFC 7607)."""
    number = _as_number(text)
    if not (isinstance(number, int) and 1 <= number <= 0xFFFFFFFF):
        raise ValueError("must be an AS number, 1 to 4294967295")
    return number


def _selector(text: str) -> str:
    if len(text) > MAX_SELECTOR:
        raise ValueError(f"a selector has at most {MAX_SELECTOR} characters, this one {len(text)}")
    try:
        selector.parse(text)
    except ConfigError as err:
        # The reporter shows the value itself.
        raise ValueError("unexpected" + str(err).rpartition('": unexpected')[2]) from None
    return text


def _mentions_global(term: selector.Selector) -> bool:
    match term:
        case selector.Global():
            return True
        case selector.Not(inner):
            return _mentions_global(inner)
        case selector.And(terms) | selector.Or(terms):
            return any(map(_mentions_global, terms))
    return False


def _local_selector(text: str) -> str:
    if _mentions_global(selector.parse(text)):
        raise ValueError(
            "global() has a meaning in the namespaceSelector of a rule's source or destination only"
        )
    return text


def _namespace_selector(text: str) -> str:
    alone = re.fullmatch(r"[ \t]*global\([ \t]*\)[ \t]*", text)
    if not alone and _mentions_global(selector.parse(text)):
        raise ValueError("global() stands alone, with no other term and no parentheses")
    return text


def _order(value: object) -> object:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            # As Go writes a float64: a whole one without a point.
            return int(value) if float(value).is_integer() else float(value)
    except OverflowError:
        pass
    raise ValueError("must be a number")


def valid_community(text: str) -> str:
    """Return `text`, a standard or a large BGP community (RFC 1997, RFC 8092). Raises ValueError otherwise."""
    parts = text.split(":")
    limit = {2: 0xFFFF, 3: 0xFFFFFFFF}.get(len(parts), -1)
    if not all(re.fullmatch(r"[0-9]{1,10}", part) and int(part) <= limit for part in parts):
        raise ValueError("must be aa:nn of 0 to 65535 each, or aa:nn:mm of 0 to 4294967295 each")
    return text


def _port_name(text: str) -> str:
    if len(text) > 15 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", text) or text.isdigit():
        raise ValueError(
            "must be 1 to 15 lower-case letters, digits and single '-', with at least one letter"
        )
    return text


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(duration: str) -> float:
    """Return a valid `Duration` in seconds: 90.0 for "1m30s"."""
    parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", duration)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _port_match(value: object) -> object:
    """Calico's grammar: all digits are a port, digits:digits a range, anything else a port's name."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a port, MIN:MAX, or the name of a port")
    text = str(value)
    if re.fullmatch(r"[0-9]{1,9}(:[0-9]{1,9})?", text):
        first, _, last = text.partition(":")
        if not 1 <= int(first) <= int(last or first) <= 65535:
            raise ValueError("ports are 1 to 65535, and a range goes upwards")
        return value if last else int(first)
    if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,128}", text):
        raise ValueError("must be a port, MIN:MAX, or the name of a port")
    return value


def _numeric_port_match(value: object) -> object:
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]+(:[0-9]+)?", str(value)):
        raise ValueError("must be a port or MIN:MAX, and not the name of a port")
    return _port_match(value)


PORTED = frozenset({"TCP", "UDP", "SCTP", 6, 17, 132})  # the protocols that have ports


def _ported(protocol: int | str) -> int | str:
    if protocol not in PORTED:
        raise ValueError("must be TCP, UDP or SCTP, which have ports")
    return protocol


_PROTOCOLS = {name.lower(): name for name in ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")}


def _protocol(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255:
        return value
    if isinstance(value, str) and value.lower() in _PROTOCOLS:
        return _PROTOCOLS[value.lower()]
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value) and 1 <= int(value) <= 255:
        return int(value)
    raise ValueError(f"must be one of {', '.join(_PROTOCOLS.values())}, or 1 to 255")


Flag: TypeAlias = Annotated[bool, Strict()]
Int: TypeAlias = Annotated[int, Strict()]
Port: TypeAlias = Annotated[int, Strict(), Field(ge=0, le=65535)]
Name: TypeAlias = Annotated[str, AfterValidator(_name)]
NameOrEmpty: TypeAlias = Annotated[str, AfterValidator(lambda text: text and _name(text))]
LabelOrEmpty: TypeAlias = Annotated[str, AfterValidator(lambda text: text and _label(text))]


def _label_texts(labels: object) -> object:
    # Calico's tools read `routeReflector: true` and `rack: 7` as texts; a number with a point has more than one.
    if not isinstance(labels, Mapping):
        return labels
    return {key: json.dumps(value) if isinstance(value, int) else value for key, value in labels.items()}


LabelMap: TypeAlias = Annotated[Mapping[str, str], AfterValidator(valid_labels)]
Labels: TypeAlias = Annotated[LabelMap, BeforeValidator(_label_texts)]
Annotations: TypeAlias = Annotated[Mapping[str, str], AfterValidator(_annotations)]
Timestamp: TypeAlias = Annotated[datetime, PlainValidator(_timestamp)]
SelectorText: TypeAlias = Annotated[str, AfterValidator(_selector)]
LocalSelector: TypeAlias = Annotated[str, AfterValidator(_selector), AfterValidator(_local_selector)]
NamespaceSelector: TypeAlias = Annotated[str, AfterValidator(_selector), AfterValidator(_namespace_selector)]
Order: TypeAlias = Annotated[int | float, PlainValidator(_order)]
ASNumber: TypeAlias = Annotated[int, Strict(), Field(ge=0, le=0xFFFFFFFF), BeforeValidator(_as_number)]
PortMatch: TypeAlias = Annotated[int | str, PlainValidator(_port_match)]
NumericPortMatch: TypeAlias = Annotated[int | str, PlainValidator(_numeric_port_match)]
Protocol: TypeAlias = Annotated[int | str, PlainValidator(_protocol)]
PortedProtocol: TypeAlias = Annotated[int | str, PlainValidator(_protocol), AfterValidator(_ported)]
Duration: TypeAlias = Annotated[
    str, matching(r"0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+", "must be a duration, such as 120s or 2m")
]
Community: TypeAlias = Annotated[str, AfterValidator(valid_community)]
PortName: TypeAlias = Annotated[str, AfterValidator(_port_name)]
PortNameOrEmpty: TypeAlias = Annotated[str, AfterValidator(lambda text: text and _port_name(text))]
PortNumber: TypeAlias = Annotated[int, Strict(), Field(ge=1, le=65535)]
InterfaceName: TypeAlias = Annotated[
    str, matching(r"[a-zA-Z0-9_.-]{1,15}", "must be 1 to 15 letters, digits, '_', '.' and '-'")
]
Mac: TypeAlias = Annotated[
    str, matching(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", "must be a MAC address, such as ee:ee:ee:ee:ee:ee")
]

AddressText: TypeAlias = Annotated[str, AfterValidator(_unscoped)]
IPv4: TypeAlias = Annotated[IPv4Address, _read((IPv4Address,), IPv4Address, "must be an IPv4 address")]
IPv6: TypeAlias = Annotated[IPv6Address, _read((IPv6Address,), IPv6Address, "must be an IPv6 address")]
AnyAddress: TypeAlias = Annotated[
    Address, _read((IPv4Address, IPv6Address), ip_address, "must be an IP address")
]
IPv4WithPrefix: TypeAlias = Annotated[
    IPv4Interface,
    _read((IPv4Interface,), IPv4Interface, "must be an IPv4 address with its prefix length, as 192.0.2.1/24"),
]
IPv6WithPrefix: TypeAlias = Annotated[
    IPv6Interface,
    _read((IPv6Interface,), IPv6Interface, "must be an IPv6 address with its prefix length, as fd00::1/64"),
]
AnyPrefix: TypeAlias = Annotated[Prefix, PlainValidator(_prefix)]
V4Net: TypeAlias = Annotated[IPv4Network, PlainValidator(_strict_net), _of_version(4)]
V6Net: TypeAlias = Annotated[IPv6Network, PlainValidator(_strict_net), _of_version(6)]
HostPrefix: TypeAlias = Annotated[Prefix, PlainValidator(_strict_net), AfterValidator(_host_prefix)]
StrictNet: TypeAlias = Annotated[Prefix, PlainValidator(_strict_net)]
LooseNet: TypeAlias = Annotated[Prefix, PlainValidator(_net)]
LooseV4Net: TypeAlias = Annotated[IPv4Network, PlainValidator(_net), _of_version(4)]
