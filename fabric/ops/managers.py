"""Decide from their files whether NetworkManager and systemd-networkd leave our links and routes alone, and which
firewalls there are.

Sources: NetworkManager.conf(5), networkd.conf(5), systemd.network(5), firewalld.zone(5), ufw(8), nft(8).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePath

SAMPLE_LINK = "fab0123456789ab"  # as plan.links names the host end of a veth

NM_SNIPPET = (
    "/etc/NetworkManager/conf.d/fabricctl.conf",
    "[keyfile]\nunmanaged-devices+=interface-name:fab*\n",
)
NETWORKD_SNIPPET = ("/etc/systemd/networkd.conf.d/fabricctl.conf", "[Network]\nManageForeignRoutes=no\n")
LINK_SNIPPET = ("/etc/systemd/network/00-fabricctl.network", "[Match]\nName=fab*\n\n[Link]\nUnmanaged=yes\n")

# Lowest precedence first.
_NM_DIRS = ("/usr/lib/NetworkManager/conf.d", "/run/NetworkManager/conf.d")
_NM_MAIN, _NM_LAST = "/etc/NetworkManager/NetworkManager.conf", "/etc/NetworkManager/conf.d"
_SYSTEMD = ("/usr/lib/systemd", "/usr/local/lib/systemd", "/run/systemd", "/etc/systemd")

_NFTABLES_UNITS, _NFTABLES_RULES = "/etc/systemd/system/*.wants/nftables.service", "/etc/nftables.conf"

FILES = (
    *(f"{folder}/*.conf" for folder in (*_NM_DIRS, _NM_LAST)),
    _NM_MAIN,
    *(f"{folder}/networkd.conf" for folder in _SYSTEMD),
    *(f"{folder}/networkd.conf.d/*.conf" for folder in _SYSTEMD),
    *(f"{folder}/network/*.network" for folder in _SYSTEMD),
    _NFTABLES_UNITS,
    _NFTABLES_RULES,
)
_VETH = {"Type": "ether", "Kind": "veth", "Driver": "veth"}
_FALSE = {"no", "false", "off", "0", "n", "f"}


def networkmanager_ignores_us(files: Mapping[str, str]) -> bool:
    """Whether NetworkManager is told to leave links of our name unmanaged; `files` maps path to text."""
    specs: list[str] = []
    devices: dict[str, dict[str, str]] = {}
    for text in _networkmanager(files):
        for section, key, value in _assignments(text):
            if section == "keyfile" and key in {"unmanaged-devices", "unmanaged-devices+"}:
                specs = (specs if key.endswith("+") else []) + _specs(value)
            elif section.startswith("device"):
                devices.setdefault(section, {})[key] = value
    return _matches(specs) or any(
        device.get("managed", "").lower() in _FALSE and _matches(_specs(device.get("match-device", "*")))
        for device in devices.values()
        if "managed" in device
    )


def networkd_keeps_routes(files: Mapping[str, str]) -> bool:
    """Whether systemd-networkd is told to keep routes that others made; by default it removes them."""
    main = [f"{folder}/networkd.conf" for folder in _SYSTEMD if f"{folder}/networkd.conf" in files]
    texts = [files[path] for path in main[-1:]] + [text for _, text in _layered(files, "networkd.conf.d")]
    answer = "yes"
    for text in texts:
        for section, key, value in _assignments(text):
            if (section, key) == ("Network", "ManageForeignRoutes"):
                answer = value or "yes"
    return answer.lower() in _FALSE


def networkd_file_for_us(files: Mapping[str, str]) -> str:
    """Return the file by which systemd-networkd would manage our links, "" where it leaves them alone."""
    for path, text in _layered(files, "network"):
        assignments = list(_assignments(text))
        match = [(key, value) for section, key, value in assignments if section == "Match"]
        if match and all(_meets(key, value) for key, value in match):
            managed = all(
                value.lower() in _FALSE
                for section, key, value in assignments
                if (section, key) == ("Link", "Unmanaged")
            )
            return path if managed else ""
    return ""


def firewalls(
    daemons: Collection[str], files: Mapping[str, str], saved: Iterable[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield the firewalls that rule beside us: which, what it does to us, and the cure.

    `saved` are the texts of iptables-save; ufw is no process, its chains tell it.
    """
    if "firewalld" in daemons:
        does = "what its own chains reject stays rejected, whatever ours accept"
        cure = "firewall-cmd --permanent --zone=trusted --add-interface=fab+ && firewall-cmd --reload"
        yield "firewalld", does, f"let it trust the containers' links: {cure}"
    if any(line.startswith(":ufw-") for text in saved for line in text.splitlines()):
        does = "it decides what reaches the host itself; what containers send and get is decided by policy, ahead of it"
        yield "ufw", does, "allow the peers, and the nodes' tunnels, by `ufw allow`"
    if any(fnmatchcase(path, _NFTABLES_UNITS) for path in files):
        does = "what its own chains drop stays dropped, whatever ours accept"
        cure = f"accept links named fab* in its forward chain in {_NFTABLES_RULES}"
        if any(line.strip() == "flush ruleset" for line in files.get(_NFTABLES_RULES, "").splitlines()):
            does += ", and its reload removes every rule, ours too, which are back within a second"
            cure += ", and let it flush its own table in place of the whole ruleset"
        yield "nftables.service", does, cure


def _networkmanager(files: Mapping[str, str]) -> Iterator[str]:
    """The texts in the order they are read; a name in a later folder hides the same name in an earlier one."""
    last = {PurePath(path).name for path in files if path.startswith(f"{_NM_LAST}/")}
    run = {PurePath(path).name for path in files if path.startswith(f"{_NM_DIRS[1]}/")}
    for folder, hidden in zip(_NM_DIRS, (last | run, last), strict=True):
        for path in sorted(path for path in files if path.startswith(f"{folder}/")):
            if PurePath(path).name not in hidden:
                yield files[path]
    yield files.get(_NM_MAIN, "")
    for path in sorted(path for path in files if path.startswith(f"{_NM_LAST}/")):
        yield files[path]


def _layered(files: Mapping[str, str], folder: str) -> list[tuple[str, str]]:
    """The files of one folder name under all of systemd's, by name; the highest of equal names counts."""
    found = {}
    for root in _SYSTEMD:
        for path in files:
            if PurePath(path).parent == PurePath(root, folder):
                found[PurePath(path).name] = path
    return [(found[name], files[found[name]]) for name in sorted(found)]


def _assignments(text: str) -> Iterator[tuple[str, str, str]]:
    """Each section, key and value; by hand, since keys may repeat and NetworkManager's end in "+"."""
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif line and line[0] not in "#;":
            key, _, value = line.partition("=")
            yield section, key.strip(), value.strip()


def _specs(value: str) -> list[str]:
    return [spec.strip() for spec in value.replace(",", ";").split(";") if spec.strip()]


def _matches(specs: list[str]) -> bool:
    met: set[bool] = set()
    for spec in specs:
        kind, colon, value = spec.removeprefix("except:").partition(":")
        by_name = kind == "interface-name" and fnmatchcase(SAMPLE_LINK, value.lstrip("=~"))
        by_kind = (kind, value) in {("type", "veth"), ("driver", "veth")}
        if by_name or by_kind or (kind == "*" and not colon):
            met.add(not spec.startswith("except:"))
    return met == {True}


def _meets(key: str, value: str) -> bool:
    """Whether our links meet one line of a [Match]; a key we know nothing of is about something else."""
    own = SAMPLE_LINK if key == "Name" else _VETH.get(key)
    if own is None:
        return False
    negated = value.startswith("!")
    return negated != any(fnmatchcase(own, glob) for glob in value.removeprefix("!").split())
