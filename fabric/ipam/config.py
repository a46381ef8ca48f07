"""Decide what Calico's IPAM configuration says, and how it writes it (`/calico/ipam/v2/config`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fabric.errors import ConfigError
from fabric.ipam.records import read_object

DEFAULT_MAX_BLOCKS = 20  # blocks a node may own when nothing says otherwise: runaway claims end there


@dataclass(frozen=True)
class IPAMConfig:
    """How addresses may be given out, for the whole fabric; the defaults hold while nothing is stored.

    `max_blocks` is a node's limit a family, 0 for DEFAULT_MAX_BLOCKS; `cooldown` is in seconds, 0 for
    none. `rest` is what other versions of Calico wrote beside it, kept as it is.
    """

    strict_affinity: bool = False
    auto_allocate: bool = True
    max_blocks: int = 0
    cooldown: int = 0
    rest: Mapping[str, Any] = field(default_factory=dict)


def from_json(text: str) -> IPAMConfig:
    """Read the stored configuration. A field that is left out is false or 0, not its default.

    Raises:
        ConfigError: it is no configuration of Calico's; the message says which part is wrong.
    """
    document = read_object("IPAM configuration", text)
    config = IPAMConfig(
        strict_affinity=document.pop("strict_affinity", False),
        auto_allocate=document.pop("auto_allocate_blocks", False),
        max_blocks=document.pop("maxBlocksPerHost", 0),
        cooldown=document.pop("ipCooldownSeconds", 0),
        rest=document,
    )
    flags, numbers = (config.strict_affinity, config.auto_allocate), (config.max_blocks, config.cooldown)
    if not all(isinstance(flag, bool) for flag in flags):
        raise ConfigError(
            "stored IPAM configuration: strict_affinity and auto_allocate_blocks are true or false"
        )
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ConfigError(
            "stored IPAM configuration: maxBlocksPerHost and ipCooldownSeconds are numbers from 0 on"
        )
    return config


def to_json(config: IPAMConfig) -> str:
    """Return the configuration as Calico stores it, compact: false and 0 are left out."""
    known = {
        "strict_affinity": config.strict_affinity,
        "auto_allocate_blocks": config.auto_allocate,
        "maxBlocksPerHost": config.max_blocks,
        "ipCooldownSeconds": config.cooldown,
    }
    return json.dumps({k: v for k, v in known.items() if v} | dict(config.rest), separators=(",", ":"))
