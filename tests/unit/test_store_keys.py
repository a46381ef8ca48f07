from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.store.keys import (
    NAMESPACED,
    AffinityKey,
    BlockKey,
    HandleKey,
    Key,
    ResourceKey,
    parse,
    resources,
)

# Paths as Calico's own tools were seen to write them.
SEEN = [
    (
        ResourceKey("workloadendpoints", "default", "n1-cni-c1-eth0"),
        "/calico/resources/v3/projectcalico.org/workloadendpoints/default/n1-cni-c1-eth0",
    ),
    (ResourceKey("ippools", None, "p1"), "/calico/resources/v3/projectcalico.org/ippools/p1"),
    (BlockKey(ip_network("10.77.40.128/26")), "/calico/ipam/v2/assignment/ipv4/block/10.77.40.128-26"),
    (BlockKey(ip_network("fd00:aaaa::/122")), "/calico/ipam/v2/assignment/ipv6/block/fd00:aaaa::-122"),
    (
        AffinityKey("n1", ip_network("10.77.40.128/26")),
        "/calico/ipam/v2/host/n1/ipv4/block/10.77.40.128-26",
    ),
    (
        AffinityKey("n-1.rack", ip_network("fd00:aaaa::/122")),
        "/calico/ipam/v2/host/n-1.rack/ipv6/block/fd00:aaaa::-122",
    ),
    (HandleKey("caliconet.czz001"), "/calico/ipam/v2/handle/caliconet.czz001"),
]


@pytest.mark.parametrize(("key", "path"), SEEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_key_is_written_and_read_as_calico_does(key: Key, path: str) -> None:
    assert key.path == path
    assert parse(path) == key


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("", id="empty"),
        pytest.param("/fabric/v1/nodes/n1", id="another tree"),
        pytest.param("/calico/resources/v3/projectcalico.org/ippools", id="no name"),
        pytest.param("/calico/resources/v3/projectcalico.org/ippools/", id="empty name"),
        pytest.param("/calico/resources/v3/projectcalico.org/ippools/default/p1", id="namespace too many"),
        pytest.param("/calico/resources/v3/projectcalico.org/networksets/n1", id="namespace missing"),
        pytest.param("/calico/resources/v3/projectcalico.org/networksets//n1", id="namespace empty"),
        pytest.param("/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-26", id="host bits"),
        pytest.param("/calico/ipam/v2/assignment/ipv6/block/10.0.0.0-26", id="wrong family"),
        pytest.param("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0", id="no length"),
        pytest.param("/calico/ipam/v2/assignment/ipv4/block/rubbish", id="no prefix"),
        pytest.param("/calico/ipam/v2/assignment/ipv6/block/fd00:0:0::-122", id="not canonical"),
        pytest.param("/calico/ipam/v2/assignment/ipv6/block/fd00::%a-122", id="scope id"),
        pytest.param("/calico/ipam/v2/config", id="settings that nothing here reads"),
        pytest.param("/calico/ipam/v2/host//ipv4/block/10.0.0.0-26", id="no node"),
        pytest.param("/calico/ipam/v2/handle/", id="no handle"),
        pytest.param("/calico/ipam/v2/handle/a/b", id="handle with a slash"),
        pytest.param("/calico/felix/v2/no-region/host/n1/status", id="somebody's status"),
    ],
)
def test_what_is_not_ours_is_none(path: str) -> None:
    assert parse(path) is None


names = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-._"), min_size=1)
prefixes = st.one_of(
    st.builds(
        lambda address, length: ip_network((address, length), strict=False),
        st.ip_addresses(v=4),
        st.integers(20, 32),
    ),
    st.builds(
        lambda address, length: ip_network((address, length), strict=False),
        st.ip_addresses(v=6),
        st.integers(116, 128),
    ),
)
keys: st.SearchStrategy[Key] = st.one_of(
    st.builds(ResourceKey, st.sampled_from(sorted(NAMESPACED)), names, names),
    st.builds(ResourceKey, names.filter(lambda plural: plural not in NAMESPACED), st.none(), names),
    st.builds(BlockKey, prefixes),
    st.builds(AffinityKey, names, prefixes),
    st.builds(HandleKey, names),
)


@given(keys)
def test_a_path_is_read_back_as_its_key(key: Key) -> None:
    assert parse(key.path) == key


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    found = parse(text)
    assert found is None or found.path == text


def test_the_prefix_of_a_kind_takes_in_no_other() -> None:
    assert ResourceKey("networksets", "default", "a").path.startswith(resources("networksets"))
    assert not ResourceKey("networksetsx", None, "a").path.startswith(resources("networksets"))
