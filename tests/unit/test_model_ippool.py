import json
from ipaddress import IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from fabric.model.ippool import IPPool
from fabric.model.wire import from_json, to_json
from fabric.model.yaml import dump
from tests.unit.loading import resources_in

LINK_LOCAL = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))


def _may_be_a_pool(network: IPv4Network | IPv6Network) -> bool:
    return not any(network.overlaps(prefix) for prefix in LINK_LOCAL)


def networks() -> st.SearchStrategy[IPv4Network | IPv6Network]:
    v4 = st.tuples(st.integers(1, 0xDFFFFFFF), st.integers(8, 20)).map(
        lambda pair: IPv4Network((pair[0] >> (32 - pair[1]) << (32 - pair[1]), pair[1]))
    )
    v6 = st.tuples(st.integers(0, (1 << 112) - 1), st.integers(16, 116)).map(
        lambda pair: IPv6Network(((0xFD00 << 112 | pair[0]) >> (128 - pair[1]) << (128 - pair[1]), pair[1]))
    )
    return (v4 | v6).filter(_may_be_a_pool)


settings = st.fixed_dictionaries(
    {},
    optional={
        "vxlanMode": st.sampled_from(["Never", "Always", "CrossSubnet"]),
        "natOutgoing": st.booleans(),
        "disabled": st.booleans(),
        "disableBGPExport": st.booleans(),
        "nodeSelector": st.sampled_from(["all()", "has(rack)"]),
        "allowedUses": st.sampled_from([[], ["Workload"], ["Tunnel", "Workload"]]),
        "assignmentMode": st.sampled_from(["Automatic", "Manual"]),
    },
)


def pool(spec: object) -> IPPool:
    value = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"}, "spec": spec}
    read = from_json(json.dumps(value))
    assert isinstance(read, IPPool)
    return read


@given(networks(), settings)
def test_a_pool_is_the_same_after_a_file_and_after_the_datastore(
    cidr: IPv4Network | IPv6Network, spec: dict[str, object]
) -> None:
    first = pool({"cidr": str(cidr), **spec})
    stored = from_json(to_json(first))
    [printed] = resources_in(dump(stored))
    assert to_json(printed) == to_json(stored) == to_json(first)


@given(networks(), settings)
def test_nobody_turns_nat_on_or_off_by_printing_and_applying(
    cidr: IPv4Network | IPv6Network, spec: dict[str, object]
) -> None:
    asked = bool(spec.get("natOutgoing"))
    stored = from_json(to_json(pool({"cidr": str(cidr), **spec})))
    [printed] = resources_in(dump(stored))
    assert isinstance(stored, IPPool)
    assert isinstance(printed, IPPool)
    assert stored.spec.nat_outgoing is printed.spec.nat_outgoing is asked
