"""Files in golden/tor: resources, and what a router of each vendor is to be told for them."""

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from fabric.errors import ConfigError
from fabric.ops import tor_config
from fabric.store.keys import PUBLISHED
from fabric.store.kv import Put, Txn
from tests.fakes.etcd import FakeEtcd
from tests.fakes.node import put

GOLDEN = Path(__file__).parent / "golden" / "tor"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))
SUFFIXES = {"frr": "frr", "bird": "bird", "gobgp": "toml"}


def given(name: str) -> tor_config.Given:
    return tor_config.from_files([str(GOLDEN / f"{name}.yaml")])


@pytest.mark.parametrize("vendor", SUFFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_resources_become_the_routers_side(name: str, vendor: str) -> None:
    made = tor_config.make(given(name), vendor)
    assert not made.notes
    assert len(made.texts) == len(list(GOLDEN.glob(f"{name}*.{SUFFIXES[vendor]}")))
    for number, text in enumerate(made.texts, 1):
        path = GOLDEN / f"{name}{'' if number == 1 else f'-{number}'}.{SUFFIXES[vendor]}"
        assert text == path.read_text(), f"{path} says otherwise"


def test_every_vendor_of_the_command_line_is_there() -> None:
    from fabric.cli.bgp_tor import Vendor

    assert list(Vendor) == list(tor_config.RENDER) == list(SUFFIXES)


def test_no_secret_of_this_host_is_in_the_text(tmp_path: Path) -> None:
    [text] = tor_config.make(given("rack"), "frr").texts
    assert "password SECRET-tor-md5\n" in text


def test_addresses_that_only_a_link_tells_are_doubted_where_no_link_is_known(tmp_path: Path) -> None:
    node = {"kind": "Node", "metadata": {"name": "n1"}, "spec": {"bgp": {"ipv4Address": "10.0.0.1/24"}}}
    tor = {
        "kind": "BGPPeer",
        "metadata": {"name": "tor", "annotations": {"fabricctl.io/source": "uplink"}},
        "spec": {"peerIP": "10.1.0.0", "asNumber": 65000},
    }
    things = [{"apiVersion": "projectcalico.org/v3", **thing} for thing in (node, tor)]
    file = tmp_path / "fabric.yaml"
    file.write_text("".join(f"---\n{json.dumps(thing)}\n" for thing in things))
    [note] = tor_config.make(tor_config.from_files([str(file)]), "frr").notes
    assert note == f"{tor_config.UNKNOWN_LINKS} (on n1)"


def test_addresses_of_one_router_make_one_text() -> None:
    with pytest.raises(ConfigError, match=r"is one router, with one AS number, .* expect 65000, 65002"):
        tor_config.make(given("far"), "bird", [ip_address("10.20.0.1"), ip_address("10.20.0.2")])
    [text] = tor_config.make(given("far"), "bird", [ip_address("10.20.0.2")]).texts
    assert "10.20.0.1" not in text


def test_a_router_without_sessions_is_refused_with_those_that_have_some() -> None:
    with pytest.raises(
        ConfigError, match=r"10\.9\.9\.9: no node has a session with it; .* with 10\.10\.11\.1"
    ):
        tor_config.make(given("rack"), "frr", [ip_address("10.9.9.9")])
    with pytest.raises(ConfigError, match="no node has a session with a router"):
        tor_config.make(tor_config.Given(()), "frr")


GATEWAYS = """
kind: BGPConfiguration
apiVersion: projectcalico.org/v3
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
kind: Node
apiVersion: projectcalico.org/v3
metadata: {name: n1}
spec: {bgp: {ipv4Address: 192.0.2.1/24}}
---
kind: Node
apiVersion: projectcalico.org/v3
metadata: {name: n2}
spec: {bgp: {ipv4Address: 198.51.100.1/24}}
---
kind: BGPPeer
apiVersion: projectcalico.org/v3
metadata: {name: gateway, annotations: {fabricctl.io/peer: auto-gateway}}
spec: {asNumber: 65000}
"""


def test_default_gateways_are_those_of_sessions_or_are_named(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(GATEWAYS)
    from_files = tor_config.from_files([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"BGPPeer gateway: which default gateway .* --peer \(on n1, n2\)"):
        tor_config.make(from_files, "frr")
    [text] = tor_config.make(from_files, "frr", [ip_address("192.0.2.254")]).texts
    assert "neighbor 192.0.2.1 remote-as" in text


async def test_the_datastore_has_the_resources_and_the_gateways_that_nodes_have_found(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(GATEWAYS)
    kv = FakeEtcd()
    for resource in tor_config.from_files([str(tmp_path)]).resources:
        await put(kv, resource)
    sessions = [{"peer": "198.51.100.254", "name": "gateway"}, {"peer": "198.51.100.253", "name": "other"}]
    said = json.dumps({"at": 1.0, "sessions": sessions})
    await kv.commit(Txn((), (Put(f"{PUBLISHED}n2", said),)))
    made = tor_config.make(await tor_config.from_store(kv), "frr")
    [text] = made.texts
    assert text.startswith("! 198.51.100.254, AS 65000")
    assert "neighbor 198.51.100.1 remote-as" in text
    assert [note.rpartition(" (")[2] for note in made.notes] == ["on n1)"]
