"""Where fabricctl keeps things on a host, and how it reaches etcd: file, then environment, then flags.

A later source wins, setting by setting. An empty value is a value: it takes back what an earlier source
said, and for the endpoints, which cannot be none, it is refused. `node join` saves what it was told to
CONFIG; the agent reads that alone, so a node comes back from a reboot as it was joined.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, TypeAlias

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
CACHE = STATE / "datastore.jsonl"

# Key in our file (with dashes, the flag) -> key in the spec of a calicoctl.cfg, environment variable.
# Calico's names; it has none for a file with the password.
SETTINGS = {
    "etcd": ("etcdEndpoints", "ETCD_ENDPOINTS"),
    "etcd_ca": ("etcdCACertFile", "ETCD_CA_CERT_FILE"),
    "etcd_cert": ("etcdCertFile", "ETCD_CERT_FILE"),
    "etcd_key": ("etcdKeyFile", "ETCD_KEY_FILE"),
    "etcd_user": ("etcdUsername", "ETCD_USERNAME"),
    "etcd_password": ("etcdPassword", "ETCD_PASSWORD"),
    "etcd_password_file": ("", "ETCD_PASSWORD_FILE"),
}
_PATHS = {"etcd_ca", "etcd_cert", "etcd_key", "etcd_password_file"}
# PEM in the file itself, which Calico allows there and not in the environment.
_INLINE = {"etcdCACert": "etcd_ca", "etcdCert": "etcd_cert", "etcdKey": "etcd_key"}
ENDPOINT = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>[^\s/@:\[\]\0-\x1f]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})/?"
)
_MAX_BYTES = 1024 * 1024  # of a file; a few certificates in it are some kilobytes
_NO_FLAGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Credentials:
    """What etcd asks of its clients, "" where it asks nothing.

    `ca`, `cert` and `key` are absolute paths, or PEM text. Of `password` and `password_file` at most one
    is set; the file is read at each login.
    """

    ca: str = ""
    cert: str = ""
    key: str = field(default="", repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""


NO_CREDENTIALS = Credentials()


@dataclass(frozen=True, slots=True)
class Config:
    """How to reach etcd, and who this host is.

    `etcd` lists client endpoints, HOST:PORT for plain text and https://HOST:PORT for TLS; `node` is this
    host's name in the fabric, "" before it joined; `bgp` says whether it has BGP sessions.
    """

    etcd: tuple[str, ...] = ()
    node: str = ""
    credentials: Credentials = NO_CREDENTIALS
    bgp: bool = True


class _Said(NamedTuple):
    text: str
    by: str  # how the operator knows the source: a file and its key, a variable, a flag


_Layer: TypeAlias = dict[str, _Said]


def load(
    path: Path | None = None, env: Mapping[str, str] = os.environ, flags: Mapping[str, str] = _NO_FLAGS
) -> Config:
    """Return the settings of one file, the environment and `flags`, the later over the earlier.

    Args:
        path: the file, which must exist. None: FABRICCTL_CONFIG, which must exist too, else CONFIG, else
            ~/.config/fabricctl/fabricctl.cfg, the first that is there and that we may read, if any.
        flags: values by their key in SETTINGS; only those that were given.

    Raises:
        ConfigError: a source cannot be read, or what they say together makes no sense.
    """
    if env.get("ETCD_DISCOVERY_SRV"):
        _refuse_discovery("ETCD_DISCOVERY_SRV")
    found = path or _named(env) or _default(env)
    own, from_file = _read(found) if found else (Config(), {})
    from_env = {
        key: _Said(_value(key, env[name], Path.cwd()), name)
        for key, (_, name) in SETTINGS.items()
        if name in env
    }
    from_flags = {
        key: _Said(_value(key, text, Path.cwd()), f"--{key.replace('_', '-')}") for key, text in flags.items()
    }
    return _resolved(own, from_file, from_env, from_flags)


def saved(path: Path = CONFIG) -> Config:
    """Return what `node join` saved on this host, whatever the environment says; nothing where it did not run.

    Raises:
        ConfigError: the file cannot be read or understood.
    """
    return load(path, {}) if path.exists() else Config()


def required(config: Config) -> Config:
    """Return `config` if it says where etcd is.

    Raises:
        ConfigError: it does not.
    """
    if not config.etcd:
        raise ConfigError(
            f"no etcd endpoint: there is no {CONFIG} that names one and that you may read, and ETCD_ENDPOINTS is not "
            "set; nothing was done; run `fabricctl node join --etcd HOST:PORT` on a node; elsewhere give --etcd, "
            "--config or ETCD_ENDPOINTS"
        )
    return config


def save(config: Config, path: Path = CONFIG) -> None:
    """Write `config`, whole or not at all, for its owner's eyes only: it may hold a password."""
    import yaml

    document: dict[str, Any] = {"etcd": list(config.etcd), "node": config.node}
    document |= {} if config.bgp else {"bgp": "off"}
    document |= {f"etcd_{name}": text for name, text in asdict(config.credentials).items() if text}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(
        os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        yaml.safe_dump(document, file, allow_unicode=True, sort_keys=False)
    fresh.replace(path)


def _named(env: Mapping[str, str]) -> Path | None:
    name = env.get("FABRICCTL_CONFIG")
    if name == "":
        raise ConfigError("FABRICCTL_CONFIG: is empty; nothing was done; unset it, or let it name a file")
    return Path(name) if name else None


def _default(env: Mapping[str, str]) -> Path | None:
    candidates = [CONFIG]
    if home := env.get("HOME"):
        candidates.append(Path(home, ".config/fabricctl/fabricctl.cfg"))
    return next((path for path in candidates if os.access(path, os.R_OK)), None)


def _read(path: Path) -> tuple[Config, _Layer]:
    """Return what a file, ours or a calicoctl.cfg, says of the node itself, and its settings."""
    document = _document(path)
    if document.get("kind") == "CalicoAPIConfig":
        return Config(), _calico(path, document)
    texts = dict(document)
    node, bgp = texts.pop("node", ""), texts.pop("bgp", True)
    # PyYAML reads a bare on or off as true or false.
    if not isinstance(bgp, bool) and bgp not in ("on", "off"):
        raise ConfigError(f"{path}: bgp: must be on or off; nothing was done; mend it")
    if isinstance(texts.get("etcd"), list):
        texts["etcd"] = ",".join(map(str, texts["etcd"]))
    known = ("node", "bgp", *SETTINGS)
    if strange := [str(key) for key in texts if key not in known]:
        raise ConfigError(
            f'{path}: "{strange[0]}" is not a setting; nothing was done; there are {", ".join(known)}'
        )
    own = Config(node=_text(path, "node", node), bgp=bgp in ("on", True))
    return own, _layer(path, {key: (key, value) for key, value in texts.items()})


def _calico(path: Path, document: Mapping[str, Any]) -> _Layer:
    spec = document.get("spec") or {}
    if not isinstance(spec, dict):
        raise _unreadable(str(path), "spec: must hold settings")
    if spec.get("datastoreType", "etcdv3") != "etcdv3":
        raise ConfigError(
            f"{path}: spec.datastoreType: only etcdv3 is served; nothing was done; name a file for etcd by --config"
        )
    if spec.get("etcdDiscoverySrv"):
        _refuse_discovery(f"{path}: spec.etcdDiscoverySrv")
    names = {calico: key for key, (calico, _) in SETTINGS.items()} | _INLINE
    given = [(names[name], f"spec.{name}", value) for name, value in spec.items() if name in names and value]
    said = {key: (by, value) for key, by, value in given}
    if len(said) < len(given):
        raise ConfigError(
            f"{path}: spec: has both a file and inline text for one of CA, certificate and key; nothing was "
            "done; remove one of them"
        )
    return _layer(path, said)


def _layer(path: Path, values: Mapping[str, tuple[str, object]]) -> _Layer:
    """Take `values`, key -> (name in the file, value); relative paths start at the file."""
    return {
        key: _Said(_value(key, _text(path, by, value), path.absolute().parent), f"{path}: {by}")
        for key, (by, value) in values.items()
    }


def _document(path: Path) -> dict[Any, Any]:
    import yaml

    text = _content(path)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        document = loader.construct_document(root) if root else None
    except yaml.YAMLError as err:
        # Not the error's own text, which quotes the line: a password may stand there.
        mark = getattr(err, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        why = getattr(err, "problem", None) or "characters that may not be in it"
        raise _unreadable(where, f"not readable as YAML: {why}") from None
    except RecursionError:
        raise _unreadable(str(path), "not readable as YAML: nested too deep") from None
    except ValueError:  # PyYAML passes on what `date` and `int` say
        raise _unreadable(str(path), "a value looks like a date or a number and is none") from None
    if root is None or document is None:
        return {}
    if not isinstance(document, dict):
        raise _unreadable(str(path), "must hold settings, KEY: VALUE")
    seen = set()
    for key, _ in root.value:
        if key.value in seen:
            raise _unreadable(f"{path}:{key.start_mark.line + 1}", f'"{key.value}" is given twice')
        seen.add(key.value)
    return document


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as err:
        root = "run this as root, or " if isinstance(err, PermissionError) else ""
        raise ConfigError(
            f"{path}: {err.strerror}; nothing was done; {root}name another file by --config"
        ) from err
    if len(content) > _MAX_BYTES:
        raise _unreadable(str(path), f"is larger than {_MAX_BYTES // 1024 // 1024} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as err:
        raise _unreadable(str(path), "is not UTF-8") from err


def _unreadable(where: str, why: str) -> ConfigError:
    return ConfigError(f"{where}: {why}; nothing was done; mend or remove it")


def _text(path: Path, by: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {by}: must be text; nothing was done; write it in quotes")
    return value


def _value(key: str, text: str, base: Path) -> str:
    """Make a path absolute, so that it means the same to the agent; PEM text stays."""
    return str(base / text) if key in _PATHS and text and "-----BEGIN" not in text else text


def _resolved(own: Config, *layers: _Layer) -> Config:
    said: _Layer = {}
    for layer in layers:
        for value in layer.values():
            if not _sendable(value.text):
                raise ConfigError(
                    f"{value.by}: holds bytes that are no UTF-8, or a NUL; nothing was done; mend it"
                )
        passwords = layer.keys() & {"etcd_password", "etcd_password_file"}
        if len(passwords) > 1:
            raise ConfigError(
                f"{layer['etcd_password'].by} and {layer['etcd_password_file'].by}: two passwords; nothing was done; "
                "remove one of them"
            )
        if passwords:  # the other form is as much overridden as the same one
            said = {key: value for key, value in said.items() if "password" not in key}
        said |= layer
    endpoints = said.pop("etcd", None)
    found = {key: value for key, value in said.items() if value.text}
    for one, other in (("etcd_cert", "etcd_key"), ("etcd_key", "etcd_cert")):
        if one in found and other not in found:
            _refuse_half(found[one].by, other)
    if "etcd_user" in found and not any("password" in key for key in found):
        _refuse_half(found["etcd_user"].by, "etcd_password")
    if "etcd_user" not in said and (password := next((k for k in found if "password" in k), None)):
        _refuse_half(found[password].by, "etcd_user")
    credentials = Credentials(**{key.removeprefix("etcd_"): value.text for key, value in found.items()})
    secured = found.get("etcd_ca") or found.get("etcd_cert")
    return replace(own, etcd=_endpoints(endpoints, secured) if endpoints else (), credentials=credentials)


def _endpoints(said: _Said, secured: _Said | None) -> tuple[str, ...]:
    """Return each endpoint once; without a scheme it is TLS where a CA or a certificate is given."""
    found = []
    for text in said.text.split(","):
        match = ENDPOINT.fullmatch(text.strip())
        if not said.text.strip():
            raise ConfigError(
                f"{said.by}: is empty; nothing was done; unset it, or name at least one HOST:PORT"
            )
        if match is None or not 1 <= int(match["port"]) <= 65535 or not _valid_host(match["host"]):
            raise ConfigError(
                f'etcd endpoint "{_shown(text)}": must be HOST:PORT, http://HOST:PORT or https://HOST:PORT; '
                f"nothing was done; correct it in {said.by}"
            )
        if match["scheme"] == "http" and secured:
            raise ConfigError(
                f'etcd endpoint "{text}": http:// is plain text and has no use for {secured.by}; nothing was done; '
                "write https://, or take the certificates back by empty values"
            )
        secure = match["scheme"] == "https" or (secured and not match["scheme"])
        found.append(f"{'https://' if secure else ''}{match['host']}:{match['port']}")
    return tuple(dict.fromkeys(found))


def _sendable(text: str) -> bool:
    """A byte of the environment that is no UTF-8 is a lone surrogate here."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(endpoint: str) -> str:
    """Return it without the password that some clients take there."""
    return re.sub(r"[^/]*@", "…@", endpoint)


def _valid_host(host: str) -> bool:
    # What `socket` cannot encode it refuses with no OSError, on which nobody counts later.
    try:
        return bool(IPv6Address(host[1:-1]) if host.startswith("[") else host.encode("idna"))
    except ValueError:
        return False


def _refuse_half(by: str, missing: str) -> NoReturn:
    also = " or etcd_password_file" if missing == "etcd_password" else ""
    raise ConfigError(
        f"{by}: is given without {missing}{also}; nothing was done; give both: in the file as {missing}, in the "
        f"environment as {SETTINGS[missing][1]}"
    )


def _refuse_discovery(by: str) -> NoReturn:
    raise ConfigError(
        f"{by}: finding etcd through DNS SRV records is not served; nothing was done; list the endpoints in "
        "ETCD_ENDPOINTS, by host name where you like, and leave this unset"
    )
