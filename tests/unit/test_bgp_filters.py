"""Which received paths may be used, and as what; the sections in the ids are those of the RFCs named."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.filters import OWN_AS, Imported, ImportPolicy, importer
from bgp.peering import Peering, Policy
from bgp.rib import AS_SET, Path, SessionSpec
from bgp.rules import HIGHEST_PRIORITY, RuleId
from tests.unit.test_bgp_rules import bgp_filter

ME, PEER = IPv4Address("192.0.2.1"), ip_address("192.0.2.254")
OTHER = IPv4Address("9.9.9.9")
EXTERNAL = Peering(SessionSpec(PEER, 65000, ME, 65001, ME))
INTERNAL = Peering(SessionSpec(PEER, 65001, ME, 65001, ME))
CALICO = replace(EXTERNAL, import_policy=Policy.CALICO)
POLICY = ImportPolicy(
    pools=frozenset({ip_network("10.244.0.0/16"), ip_network("fd00:10::/48")}),
    own_blocks=frozenset({ip_network("10.244.1.0/26")}),
    default_routes=frozenset({4}),
)
PATH = Path(ip_network("10.244.2.0/26"), PEER, PEER, as_path=(65000, 65002))
ACCEPT, REJECT = {"action": "Accept"}, {"action": "Reject"}


def to(prefix: str, **changes: Any) -> Path:
    return replace(PATH, prefix=ip_network(prefix), **changes)


def filtered(peering: Peering, *rules: dict[str, Any]) -> Peering:
    return replace(peering, filters=(bgp_filter(importV4=rules),))


def imported(path: Path, peering: Peering, device: str = "") -> Imported:
    return importer(peering, POLICY)(path, device)


@pytest.mark.parametrize(
    ("prefix", "safe", "calico"),
    [
        pytest.param("10.244.2.0/26", "", "", id="another node's block"),
        pytest.param("10.244.2.7/32", "", "", id="a borrowed address"),
        pytest.param("10.244.1.7/32", "", "", id="an address of an own block that another node borrowed"),
        pytest.param("fd00:10::/122", "", "", id="IPv6"),
        pytest.param("0.0.0.0/0", "", "", id="the default route where it is wanted"),
        pytest.param("::/0", "the host has a default route of its own", "", id="and where not"),
        pytest.param("10.244.1.0/26", "own block", "own block", id="an own block"),
        pytest.param("10.245.0.0/26", "in no pool", "", id="a stranger's prefix"),
        pytest.param("10.0.0.0/8", "in no pool", "", id="a prefix around the pool"),
    ],
)
def test_the_built_in_policy(prefix: str, safe: str, calico: str) -> None:
    path = to(prefix)
    for peering, why in ((EXTERNAL, safe), (CALICO, calico)):
        assert imported(path, peering) == Imported(None if why else path, why)


@pytest.mark.parametrize(
    ("peering", "path", "why"),
    [
        pytest.param(
            EXTERNAL,
            replace(PATH, as_path=(65000, 65001, 65002)),
            "AS loop: own AS 65001 in the path",
            id="RFC 4271 9.1.2: own AS",
        ),
        pytest.param(
            EXTERNAL,
            replace(PATH, as_path=(65000, AS_SET), as_sets=frozenset({65001, 65003})),
            "AS loop: own AS 65001 in the path",
            id="RFC 4271 9.1.2: own AS in an AS_SET",
        ),
        pytest.param(
            EXTERNAL,
            to("0.0.0.0/0", as_path=(65001,)),
            "AS loop: own AS 65001 in the path",
            id="RFC 4271 9.1.2: a default route is checked too",
        ),
        pytest.param(
            INTERNAL,
            replace(PATH, as_path=(65000, 65001)),
            "AS loop: own AS 65001 in the path",
            id="RFC 4271 9.1.2: from an internal peer",
        ),
        pytest.param(
            replace(EXTERNAL, allow_own_as=1),
            replace(PATH, as_path=(65000, 65001, 65001)),
            "AS loop: own AS 65001 in the path",
            id="allow-own-AS 1: not twice",
        ),
        pytest.param(
            replace(EXTERNAL, allow_own_as=1),
            replace(PATH, as_path=(65000, 65001, AS_SET), as_sets=frozenset({65001})),
            "AS loop: own AS 65001 in the path",
            id="allow-own-AS 1: an AS_SET counts as well",
        ),
        pytest.param(
            replace(EXTERNAL, allow_own_as=1),
            replace(PATH, as_path=(65000, 65001)),
            "",
            id="allow-own-AS 1: once",
        ),
        pytest.param(
            replace(EXTERNAL, allow_own_as=2),
            replace(PATH, as_path=(65000, 65001, 65001)),
            "",
            id="allow-own-AS 2: twice",
        ),
        pytest.param(
            replace(EXTERNAL, spec=replace(EXTERNAL.spec, local_as=65100)),
            replace(PATH, as_path=(65000, 65100)),
            "AS loop: own AS 65100 in the path",
            id="with localASNumber, that one is the own AS",
        ),
        pytest.param(
            INTERNAL,
            replace(PATH, originator_id=ME),
            "loop: this node is the originator",
            id="RFC 4456 8: originator",
        ),
        pytest.param(INTERNAL, replace(PATH, originator_id=OTHER), "", id="RFC 4456 8: another originator"),
        pytest.param(
            INTERNAL,
            replace(PATH, cluster_list=(OTHER, ME)),
            "loop: own id in the cluster list",
            id="RFC 4456 8: cluster list, by our router id",
        ),
        pytest.param(
            replace(INTERNAL, cluster_id=OTHER),
            replace(PATH, cluster_list=(OTHER,)),
            "loop: own id in the cluster list",
            id="RFC 4456 7: cluster list, as another reflector of our cluster sent it",
        ),
        pytest.param(
            replace(INTERNAL, cluster_id=IPv4Address("8.8.8.8")),
            replace(PATH, cluster_list=(OTHER,)),
            "",
            id="RFC 4456 7: a reflector of another cluster",
        ),
        pytest.param(
            EXTERNAL,
            replace(PATH, next_hop=ME),
            "the next hop is this node",
            id="RFC 4271 6.3: own next hop",
        ),
    ],
)
def test_what_must_never_be_used_no_filter_and_no_policy_lets_in(
    peering: Peering, path: Path, why: str
) -> None:
    accepting = filtered(replace(peering, import_policy=Policy.CALICO), ACCEPT)
    for each in (peering, accepting):
        found = imported(path, each)
        assert (found.why, found.path is None) == (why, bool(why))


def test_a_refusal_for_the_own_as_can_be_told_apart() -> None:
    assert imported(replace(PATH, as_path=(65001,)), EXTERNAL).why.startswith(OWN_AS)


def test_an_own_block_is_not_taken_from_others_by_a_filter_either() -> None:
    assert imported(to("10.244.1.0/26"), filtered(CALICO, ACCEPT)).why == "own block"


@pytest.mark.parametrize(
    ("peering", "kept"),
    [pytest.param(EXTERNAL, False, id="external"), pytest.param(INTERNAL, True, id="internal")],
)
def test_what_means_something_within_an_as_only_is_discarded_from_outside(
    peering: Peering, kept: bool
) -> None:
    """RFC 4271 §5.1.5, RFC 7606 §§7.5, 7.9 and 7.10: not the path but the attribute."""
    path = replace(PATH, local_pref=900, originator_id=OTHER, cluster_list=(OTHER,))
    assert imported(path, peering).path == (path if kept else PATH)


def test_a_loop_by_attributes_that_an_external_peer_may_not_send_is_none() -> None:
    path = replace(PATH, originator_id=ME, cluster_list=(ME,))
    assert imported(path, EXTERNAL).path == PATH


@pytest.mark.parametrize(
    ("rule", "path", "want"),
    [
        pytest.param(ACCEPT, to("10.245.0.0/26"), "", id="an accept lets in what is in no pool"),
        pytest.param(
            REJECT, PATH, "rejected by BGPFilter web, importV4[0]", id="a reject keeps out what is in a pool"
        ),
        pytest.param(
            {**ACCEPT, "source": "RemotePeers"}, to("10.245.0.0/26"), "", id="all of it is from RemotePeers"
        ),
        pytest.param({**ACCEPT, "interface": "eth1"}, to("10.245.0.0/26"), "", id="the next hop's link"),
        pytest.param(
            {**ACCEPT, "priority": HIGHEST_PRIORITY - 100},
            to("10.245.0.0/26", local_pref=7),
            "",
            id="RFC 4271 5.1.5: the local preference of an external path is 100",
        ),
    ],
)
def test_a_filter_decides_before_the_built_in_policy(rule: dict[str, Any], path: Path, want: str) -> None:
    found = imported(path, filtered(EXTERNAL, rule), "eth1")
    assert (found.why, found.rule) == (want, RuleId("web", "import", 4, 0))
    assert (found.path is None) == bool(want)


def test_where_no_rule_matches_the_built_in_policy_decides() -> None:
    peering = filtered(
        EXTERNAL, {**ACCEPT, "communities": {"values": ["1:1"]}}, {**REJECT, "interface": "eth9"}
    )
    assert imported(PATH, peering, "eth1") == Imported(PATH)
    assert imported(to("10.245.0.0/26"), peering, "eth1") == Imported(None, "in no pool")


@pytest.mark.parametrize("peering", [EXTERNAL, INTERNAL])
def test_the_operations_of_an_accept_change_the_path(peering: Peering) -> None:
    rule = {
        **ACCEPT,
        "operations": [
            {"addCommunity": {"value": "64500:1:2"}},
            {"prependASPath": {"prefix": [65000, 65000]}},
            {"setPriority": {"value": 512}},
        ],
    }
    found = imported(replace(PATH, local_pref=50), filtered(peering, rule))
    assert found.path == replace(
        PATH,
        local_pref=HIGHEST_PRIORITY - 512,
        as_path=(65000, 65000, 65000, 65002),
        communities=("64500:1:2",),
    )


SHUT = ("64500:9", "65535:0")
PREFERRED = {**ACCEPT, "operations": [{"setPriority": {"value": 512}}]}


@pytest.mark.parametrize(
    ("peering", "path", "local_pref"),
    [
        pytest.param(EXTERNAL, replace(PATH, communities=SHUT), 0, id="RFC 8326 4: from outside"),
        pytest.param(
            INTERNAL, replace(PATH, communities=SHUT, local_pref=200), 0, id="RFC 8326 4: from inside"
        ),
        pytest.param(EXTERNAL, replace(PATH, communities=("65535:1",)), None, id="no other community"),
        pytest.param(replace(EXTERNAL, drained=True), PATH, 0, id="RFC 8326: a drained session"),
        pytest.param(
            filtered(EXTERNAL, PREFERRED),
            replace(PATH, communities=SHUT),
            0,
            id="RFC 8326: after setPriority",
        ),
        pytest.param(filtered(replace(INTERNAL, drained=True), PREFERRED), PATH, 0, id="drained, likewise"),
        pytest.param(
            filtered(EXTERNAL, {**ACCEPT, "operations": [{"addCommunity": {"value": "65535:0"}}]}),
            PATH,
            0,
            id="RFC 8326: a filter may add the community",
        ),
    ],
)
def test_a_path_that_is_shut_down_gracefully_is_the_last_choice(
    peering: Peering, path: Path, local_pref: int | None
) -> None:
    found = imported(path, peering).path
    assert found is not None
    assert found.local_pref == local_pref


@given(
    st.sampled_from(["10.244.2.0/26", "10.245.0.0/26", "0.0.0.0/0", "10.244.1.0/26"]),
    st.lists(st.sampled_from([65000, 65001, 65002]), max_size=4),
    st.sampled_from([None, 0, 100, 500]),
    st.booleans(),
)
def test_an_importer_decides_each_path_by_itself(
    prefix: str, as_path: list[int], local_pref: int | None, internal: bool
) -> None:
    peering = filtered(INTERNAL if internal else EXTERNAL, {**ACCEPT, "asPathPrefix": [65002]})
    path = to(prefix, as_path=tuple(as_path), local_pref=local_pref)
    take = importer(peering, POLICY)
    take(PATH, "eth9")
    assert take(path, "eth1") == imported(path, peering, "eth1")
