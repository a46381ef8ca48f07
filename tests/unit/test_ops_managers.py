"""NetworkManager's and systemd-networkd's files: which one of several counts, and whether it means our links."""

import pytest

from fabric.ops.managers import (
    LINK_SNIPPET,
    NETWORKD_SNIPPET,
    NM_SNIPPET,
    networkd_file_for_us,
    networkd_keeps_routes,
    networkmanager_ignores_us,
)

NM, NM_D = "/etc/NetworkManager/NetworkManager.conf", "/etc/NetworkManager/conf.d"
LIB_D = "/usr/lib/NetworkManager/conf.d"


def keyfile(specs: str, sign: str = "=") -> str:
    return f"[main]\nplugins=keyfile\n\n[keyfile]\n# ours\nunmanaged-devices{sign}{specs}\n"


@pytest.mark.parametrize(
    ("files", "ignored"),
    [
        ({}, False),
        (dict([NM_SNIPPET]), True),
        ({NM: keyfile("interface-name:eth9;interface-name:fab*")}, True),
        ({NM: keyfile("interface-name:fab0")}, False),
        ({NM: keyfile("driver:veth")}, True),
        ({NM: keyfile("*,except:interface-name:eth0")}, True),
        ({NM: keyfile("*;except:type:veth")}, False),
        ({NM: keyfile("interface-name:fab*"), f"{NM_D}/a.conf": keyfile("mac:02:00")}, False),
        ({NM: keyfile("interface-name:fab*"), f"{NM_D}/a.conf": keyfile("mac:02:00", "+=")}, True),
        ({f"{LIB_D}/a.conf": keyfile("interface-name:fab*")}, True),
        ({f"{LIB_D}/a.conf": keyfile("interface-name:fab*"), f"{NM_D}/a.conf": ""}, False),
        ({NM: "[device-fab]\nmatch-device=interface-name:fab*\nmanaged=0\n"}, True),
        ({NM: "[device-fab]\nmatch-device=interface-name:fab*\nmanaged=1\n"}, False),
        ({NM: "[main]\nunmanaged-devices=interface-name:fab*\n"}, False),
    ],
)
def test_networkmanager_ignores_our_links_if_its_last_word_says_so(
    files: dict[str, str], ignored: bool
) -> None:
    assert networkmanager_ignores_us(files) is ignored


MAIN, LIB_MAIN = "/etc/systemd/networkd.conf", "/usr/lib/systemd/networkd.conf"
DROP_IN = "/etc/systemd/networkd.conf.d"


def foreign(value: str) -> str:
    return f"[Network]\n#SpeedMeter=no\nManageForeignRoutes={value}\n"


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        ({}, False),
        (dict([NETWORKD_SNIPPET]), True),
        ({MAIN: foreign("false")}, True),
        ({MAIN: foreign("")}, False),
        ({MAIN: "[Network]\n#ManageForeignRoutes=no\n"}, False),
        ({MAIN: "[DHCPv4]\nManageForeignRoutes=no\n"}, False),
        ({LIB_MAIN: foreign("no"), MAIN: "[Network]\n"}, False),
        ({MAIN: foreign("no"), f"{DROP_IN}/50.conf": foreign("yes")}, False),
        ({f"{DROP_IN}/50.conf": foreign("yes"), f"{DROP_IN}/60.conf": foreign("no")}, True),
        ({"/usr/lib/systemd/networkd.conf.d/9.conf": foreign("no"), f"{DROP_IN}/9.conf": ""}, False),
    ],
)
def test_networkd_keeps_routes_only_where_the_last_assignment_is_no(
    files: dict[str, str], kept: bool
) -> None:
    assert networkd_keeps_routes(files) is kept


FOLDER = "/etc/systemd/network"


@pytest.mark.parametrize(
    ("match", "managed"),
    [
        ("Name=eth*", False),
        ("Name=*", True),
        ("Name=!eth* en*", True),
        ("Name=!fab*", False),
        ("Type=ether", True),
        ("Kind=veth\nName=ve-*", False),
        ("Driver=veth", True),
        ("Name=*\nMACAddress=02:00:00:00:00:01", False),
    ],
)
def test_networkd_manages_what_a_network_file_matches(match: str, managed: bool) -> None:
    path = f"{FOLDER}/10-all.network"
    assert networkd_file_for_us({path: f"[Match]\n{match}\n\n[Network]\nDHCP=yes\n"}) == path * managed


def test_the_first_network_file_by_name_decides() -> None:
    everything = {f"{FOLDER}/10-all.network": "[Match]\nName=*\n"}
    assert networkd_file_for_us(everything | dict([LINK_SNIPPET])) == ""
    late = {f"{FOLDER}/99-late.network": LINK_SNIPPET[1]}
    assert networkd_file_for_us(everything | late) == f"{FOLDER}/10-all.network"
    hidden = {"/usr/lib/systemd/network/10-all.network": "[Match]\nName=*\n"}
    assert networkd_file_for_us(hidden | {f"{FOLDER}/10-all.network": "[Match]\nName=eth0\n"}) == ""
