"""Where fabricctl keeps things on a host, and its one configuration file.

The file (YAML) is written by `node join` and read by everything else; the environment overrides it and
flags override both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fabric.errors import ConfigError

CONFIG = Path("/etc/fabricctl/fabricctl.cfg")
STATE = Path("/var/lib/fabricctl")
RUN = Path("/run/fabricctl")

AGENT_SOCKET = RUN / "agent.sock"
SPEAKER_SOCKET = RUN / "speaker.sock"
SUPERVISOR_LOCK = RUN / "supervisor.lock"
NODE_ID = STATE / "node-id"
SYSCTLS = STATE / "sysctls.json"
LOG = STATE / "node.log"


@dataclass(frozen=True, slots=True)
class Config:
    """`etcd` lists client endpoints, HOST:PORT; `node` is this host's name in the fabric, "" before it joined."""

    etcd: tuple[str, ...] = ()
    node: str = ""


def load(path: Path = CONFIG, env: Mapping[str, str] = os.environ) -> Config:
    """Return the file's settings, overridden by ETCD_ENDPOINTS (Calico's name) where it is set.

    Raises:
        ConfigError: the file is not what `save` writes.
    """
    config = _read(path)
    if endpoints := env.get("ETCD_ENDPOINTS"):
        config = replace(config, etcd=endpoints_of(endpoints.split(",")))
    return config


def required(config: Config) -> Config:
    """Return `config` if it says where etcd is.

    Raises:
        ConfigError: it does not.
    """
    if not config.etcd:
        raise ConfigError(
            f"no etcd endpoint: {CONFIG} does not exist or names none, and ETCD_ENDPOINTS is not set; nothing was "
            "done; run `fabricctl node join --etcd HOST:PORT` on a node, or set ETCD_ENDPOINTS"
        )
    return config


def endpoints_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Return client endpoints as HOST:PORT, from that form or from http://HOST:PORT.

    Raises:
        ConfigError: one has no port, or a scheme other than http.
    """
    found = []
    for text in texts:
        scheme, separator, rest = text.strip().rpartition("://")
        host, _, port = rest.rstrip("/").rpartition(":")
        if (separator and scheme != "http") or not host or not port.isdecimal():
            raise ConfigError(
                f'etcd endpoint "{text}": must be HOST:PORT or http://HOST:PORT; nothing was done'
            )
        found.append(f"{host}:{port}")
    return tuple(found)


def save(config: Config, path: Path = CONFIG) -> None:
    """Write `config`, whole or not at all."""
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"etcd": list(config.etcd), "node": config.node}), encoding="utf-8")
    fresh.replace(path)


def _read(path: Path) -> Config:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return Config()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}; nothing was done; run this as root") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(
            f"{path}: not readable as YAML: {err}; nothing was done; mend or remove it"
        ) from err
    match document:
        case {"etcd": [*endpoints], "node": str(node)}:
            return Config(endpoints_of([str(e) for e in endpoints]), node)
        case _:
            raise ConfigError(f'{path}: must have "etcd" (a list) and "node" (a name); nothing was done')
