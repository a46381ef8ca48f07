"""Check, release and configure over an etcd in memory, with others who write meanwhile and with deaths half-way."""

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from fabric.errors import ConfigError, Conflict, FabricError, NotFound, StoreError, Taken
from fabric.ipam.audit import MENDABLE, Key
from fabric.ipam.config import IPAMConfig
from fabric.ipam.inventory import State
from fabric.ipam.report import Report, document, parse
from fabric.ops import ipam
from fabric.store.kv import Delete, Put, Txn
from tests.fakes import calico
from tests.fakes.calico import Store, affinity, block, endpoint, filled, handle, held, sound
from tests.fakes.etcd import FakeEtcd
from tests.unit.test_ipam_audit import B1, B2, B3, FAULTS, LEAK, TUNNEL, W1, W2

NOTHING = timedelta(0)
CONFIG = f"{calico.IPAM}/config"


async def checked(kv: FakeEtcd) -> ipam.Checked:
    return await ipam.check(kv, pause=0)


async def reported(kv: FakeEtcd) -> Report:
    """What a report says after it was written to a file and read again."""
    found = await checked(kv)
    text = json.dumps(
        document(found.audit, found.contents.cluster, found.contents.inventory.revision, "fabricctl")
    )
    return parse(text, "report.json")


async def faults(kv: FakeEtcd) -> list[tuple[str, str]]:
    return [(f.id, f.object) for f in (await checked(kv)).audit.findings]


async def document_at(kv: FakeEtcd, key: str) -> Any:
    item = await kv.get(key)
    return json.loads(item.value) if item else None


def block_key(cidr: str) -> str:
    return next(iter(block(cidr, None)))


@pytest.mark.parametrize(
    "store", [pytest.param(p.values[0], id=str(p.id)) for p in FAULTS if p.values[1][0][0] in MENDABLE]
)
async def test_what_a_report_finds_release_puts_right_and_the_next_check_is_clean(store: Store) -> None:
    kv = await filled(FakeEtcd(), store)
    done = await ipam.release_reported(kv, [await reported(kv)])
    assert (len(done.mended), done.left) == (1, ())
    assert await faults(kv) == []


@pytest.mark.parametrize(
    "store", [pytest.param(p.values[0], id=str(p.id)) for p in FAULTS if p.values[1][0][0] not in MENDABLE]
)
async def test_what_only_an_operator_can_decide_is_never_touched(store: Store) -> None:
    kv = await filled(FakeEtcd(), store)
    before = kv.revision
    assert (await ipam.release_reported(kv, [await reported(kv)])).mended == ()
    assert kv.revision == before


async def test_a_freed_address_is_written_as_calico_writes_it() -> None:
    kv = await filled(FakeEtcd(), sound() | LEAK)
    before = await document_at(kv, block_key(B1))
    await ipam.release_reported(kv, [await reported(kv)])
    after = await document_at(kv, block_key(B1))
    assert after["unallocated"] == [*before["unallocated"], 3]
    assert after["sequenceNumber"] == before["sequenceNumber"] + 1
    assert after["sequenceNumberForAllocation"] == {"0": 100, "1": 101}
    assert await document_at(kv, f"{calico.IPAM}/handle/k8s.gone") is None


BOTH = sound() | LEAK
BOTH |= calico.pool("fd00::/120", "v6")
BOTH |= block("fd00::/126", "host:n1", {2: held("k8s.gone")}) | affinity("n1", "fd00::/126")
BOTH |= handle("k8s.gone", {B1: 1, "fd00::/126": 1})
# Everything at once: leaks in three blocks, one of them of a node that is gone, and every kind of leftover.
WRECK = BOTH | block(B3, "host:n9", {0: held("k8s.g9", "n9"), 3: held("k8s.g10", "n9")}) | affinity("n9", B3)
WRECK |= handle("k8s.g9", {B3: 1}) | handle("k8s.w1", {B1: 7}) | handle("k8s.old", {B2: 1})
WRECK |= affinity("n1", "10.0.0.12/30", "pending") | affinity("n2", B1)


async def test_a_handle_with_addresses_in_many_blocks_goes_with_the_last() -> None:
    many = [f"10.1.0.{4 * i}/30" for i in range(ipam.ATTEMPTS + 2)]
    store = sound() | calico.pool("10.1.0.0/24", "many") | handle("k8s.gone", dict.fromkeys(many, 1))
    for cidr in many:
        store |= block(cidr, "host:n1", {1: held("k8s.gone")}) | affinity("n1", cidr)
    kv = await filled(FakeEtcd(), store)
    await ipam.release_reported(kv, [await reported(kv)])
    assert await document_at(kv, f"{calico.IPAM}/handle/k8s.gone") is None
    assert await faults(kv) == []


class MortalEtcd(FakeEtcd):
    """Whoever writes to it dies at the commit after `left` more, which is lost."""

    left: int | None = None

    async def commit(self, txn: Txn) -> int:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise StoreError("killed")
        return await super().commit(txn)


async def test_a_release_killed_between_any_two_writes_leaves_what_a_second_run_mends() -> None:
    deaths = 0
    while True:
        kv = MortalEtcd()
        await filled(kv, WRECK)
        report = await reported(kv)
        before = set(await faults(kv))
        kv.left = deaths
        try:
            await ipam.release_reported(kv, [report])
            break
        except StoreError:
            kv.left = None
        assert set(await faults(kv)) <= before, f"after {deaths} writes"
        await ipam.release_reported(kv, [await reported(kv)])
        assert await faults(kv) == [], f"after {deaths} writes"
        deaths += 1
    assert deaths > 3


async def test_hundreds_of_leaks_in_one_block_fit_into_transactions() -> None:
    wide = "10.1.0.0/23"
    owners = {i: held(f"h{i}") for i in range(400)}
    store = sound() | calico.pool("10.1.0.0/16", "wide", blockSize=23) | block(wide, "host:n1", owners)
    store |= affinity("n1", wide)
    for i in owners:
        store |= handle(f"h{i}", {wide: 1})
    kv = await filled(FakeEtcd(), store)
    assert len((await ipam.release_reported(kv, [await reported(kv)])).mended) == 400
    assert await faults(kv) == []


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        pytest.param(endpoint("w9", "10.0.0.3"), "left alone: in use: Workload", id="an endpoint came"),
        pytest.param(
            block(
                B1, "host:n1", {0: W1, 1: TUNNEL, 3: held("k8s.gone")}, sequenceNumberForAllocation={"3": 999}
            ),
            "given out anew after the report",
            id="given to the same handle again",
        ),
        pytest.param(
            block(B1, "host:n1", {0: W1, 1: TUNNEL, 3: held("k8s.new")}),
            "held by k8s.new",
            id="given to another handle",
        ),
        pytest.param(block(B1, "host:n1", {0: W1, 1: TUNNEL}), "already free", id="freed by somebody"),
    ],
)
async def test_what_has_changed_since_the_report_is_left_alone_and_named(meanwhile: Store, said: str) -> None:
    kv = await filled(FakeEtcd(), sound() | LEAK)
    report = await reported(kv)
    await filled(kv, meanwhile)
    before = await document_at(kv, block_key(B1))
    done = await ipam.release_reported(kv, [report])
    [line] = [line for line in done.left if line.startswith("10.0.0.3:")]
    assert said in line
    assert await document_at(kv, block_key(B1)) == before


async def test_of_several_reports_only_what_all_of_them_found_is_released() -> None:
    kv = await filled(FakeEtcd(), sound() | LEAK)
    first = await reported(kv)
    await filled(kv, block(B2, "host:n2", {0: W2, 1: held("k8s.gone2", "n2")}) | handle("k8s.gone2", {B2: 1}))
    done = await ipam.release_reported(kv, [first, await reported(kv)])
    assert [f.object for f in done.mended] == ["10.0.0.3"]
    assert await faults(kv) == [("leaked-address", "10.0.0.5")]


async def test_a_report_of_another_cluster_is_refused() -> None:
    kv = await filled(FakeEtcd(), sound() | LEAK)
    report = await reported(kv)
    await filled(kv, calico.cluster("0" * 32))
    with pytest.raises(ConfigError, match=r"clusterGUID.*nothing was changed"):
        await ipam.release_reported(kv, [report])
    assert await faults(kv) == [("leaked-address", "10.0.0.3")]


def just_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f000 +0000 UTC")


# As `calicoctl ipam check -o` writes it, of 10.0.0.3 leaked, 10.0.0.0 in use and a handle without addresses.
CALICOCTL = """{
  "version": "v3.33.0-0.dev", "clusterGUID": "%s", "datastoreLocked": false,
  "clusterInformationRevision": "12", "clusterType": "k8s",
  "allocations": {
    "10.0.0.0": [{"ip": "10.0.0.0", "handle": "k8s.w1", "sequenceNumber": 100, "node": "n1", "inUse": true,
                  "owners": ["Workload(default/w1)"]}],
    "10.0.0.2": [{"ip": "10.0.0.2", "sequenceNumber": 102, "node": "n1", "inUse": false, "coolingDown": true,
                  "owners": null}],
    "10.0.0.3": [{"ip": "10.0.0.3", "handle": "k8s.gone", "sequenceNumber": 103, "node": "n1", "inUse": false,
                  "owners": null}]
  },
  "leakedHandles": [{"ID": "k8s.old", "UID": null, "Revision": "%d"}]
}"""


async def test_a_report_of_calicoctl_is_released_as_well() -> None:
    kv = await filled(FakeEtcd(), sound() | LEAK | handle("k8s.old", {B2: 1}))
    item = await kv.get(f"{calico.IPAM}/handle/k8s.old")
    assert item is not None
    report = parse(CALICOCTL % (calico.GUID, item.revision), "calico.json")
    done = await ipam.release_reported(kv, [report])
    assert {f.object for f in done.mended} == {"10.0.0.3", "handle k8s.old"}
    assert await faults(kv) == []


@pytest.mark.parametrize(("grace", "freed"), [(timedelta(seconds=60), 0), (NOTHING, 1)])
async def test_an_address_given_out_just_now_is_released_only_by_force(grace: timedelta, freed: int) -> None:
    owners = {0: W1, 1: TUNNEL, 3: held("k8s.gone", timestamp=just_now())}
    kv = await filled(FakeEtcd(), sound() | LEAK | block(B1, "host:n1", owners))
    report = Report(calico.GUID, frozenset({Key("leaked-address", "10.0.0.3", "k8s.gone", 103)}))
    assert len((await ipam.release_reported(kv, [report], grace=grace)).mended) == freed


def test_our_report_says_in_calicoctls_words_only_of_leaks_that_they_are_not_in_use() -> None:
    owners = {
        0: W1,
        1: TUNNEL,
        2: held("k8s.new", timestamp=just_now()),
        3: held("k8s.gone", pod="p", namespace="d"),
    }
    store = sound() | block(B1, "host:n1", owners) | handle("k8s.new", {B1: 1}) | handle("k8s.old", {})
    found = ipam.checked(ipam.read(calico.listing(store)), datetime.now(UTC))
    written = document(found.audit, found.contents.cluster, 9, "fabricctl")
    assert {ip: a["inUse"] for ip, [a] in written["allocations"].items()} == {
        "10.0.0.0": True,
        "10.0.0.1": True,
        "10.0.0.2": True,
        "10.0.0.3": False,
        "10.0.0.4": True,
    }
    assert written["allocations"]["10.0.0.3"] == [
        {
            "ip": "10.0.0.3",
            "handle": "k8s.gone",
            "sequenceNumber": 103,
            "pod": "p",
            "namespace": "d",
            "node": "n1",
            "creationTimestamp": calico.OLD,
            "inUse": False,
            "owners": [],
        }
    ]
    assert written["leakedHandles"] == [{"ID": "k8s.old", "UID": None, "Revision": "7"}]
    assert (written["clusterGUID"], written["clusterInformationRevision"]) == (calico.GUID, "7")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '"x"', '{"clusterGUID":"","allocations":[]}',
     '{"clusterGUID":"","allocations":{"10.0.0.1":[{"ip":"10.0.0.300","inUse":false}]}}',
     '{"clusterGUID":"","allocations":{},"leakedHandles":[{"ID":"x"}]}',
     '{"clusterGUID":"","allocations":{},"findings":["x"]}', "[" * 100_000],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_report_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"report\.json: no report .* nothing was changed"):
        parse(text, "report.json")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"allocations":{"10.0.0.1":[{"ip":"10.0.0.1"}]}}', "allocations: 10.0.0.1: inUse is missing"),
        ('{"allocations":{"10.0.0.1":[7]}}', "allocations: 10.0.0.1: not as `ipam check -o` writes it"),
        ('{"allocations":{},"findings":7}', "findings: not as `ipam check -o` writes it"),
        ("{", "not JSON from line 1, column 2 on"),
    ],
)
def test_a_garbled_report_says_where(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "report.json")
    assert str(caught.value) == f"report.json: no report of `ipam check` ({why}); nothing was changed"


class BusyEtcd(FakeEtcd):
    """Somebody else writes `theirs` just before each of the next `rivals` commits."""

    def __init__(self) -> None:
        super().__init__()
        self.rivals = 0
        self.theirs: Store = {}

    async def commit(self, txn: Txn) -> int:
        if self.rivals:
            self.rivals -= 1
            await super().commit(Txn((), tuple(Put(key, value) for key, value in self.theirs.items())))
        return await super().commit(txn)


async def test_a_lost_race_is_decided_again_on_what_the_winner_wrote() -> None:
    kv = BusyEtcd()
    await filled(kv, sound() | LEAK)
    report = await reported(kv)
    kv.rivals = 1
    kv.theirs = block(B1, "host:n1", {0: W1, 1: TUNNEL, 2: held("k8s.w4"), 3: held("k8s.gone")})
    kv.theirs |= handle("k8s.w4", {B1: 1}) | endpoint("w4", "10.0.0.2")
    assert [f.object for f in (await ipam.release_reported(kv, [report])).mended] == ["10.0.0.3"]
    assert await faults(kv) == []


async def test_races_lost_for_ever_end_in_a_conflict_that_says_how_far_it_came() -> None:
    kv = BusyEtcd()
    await filled(kv, sound() | LEAK)
    report = await reported(kv)
    kv.rivals, kv.theirs = 1000, block(B1, "host:n1", {0: W1, 1: TUNNEL, 3: held("k8s.gone")})
    with pytest.raises(Conflict, match="0 of 1 were done"):
        await ipam.release_reported(kv, [report])


async def test_with_a_cooldown_a_released_address_rests_and_its_handle_goes() -> None:
    kv = await filled(
        FakeEtcd(), sound() | LEAK | {CONFIG: '{"auto_allocate_blocks":true,"ipCooldownSeconds":60}'}
    )
    await ipam.release_reported(kv, [await reported(kv)])
    assert await faults(kv) == []
    states = {str(a.address): a.state for a in (await checked(kv)).audit.allocations}
    assert states["10.0.0.3"] is State.COOLING
    assert await document_at(kv, f"{calico.IPAM}/handle/k8s.gone") is None
    with pytest.raises(NotFound, match="not assigned"):
        await ipam.release_address(kv, ip_address("10.0.0.3"))


async def test_one_address_that_nothing_uses_is_released() -> None:
    kv = await filled(FakeEtcd(), BOTH)
    await ipam.release_address(kv, ip_address("10.0.0.3"))
    assert await faults(kv) == [("leaked-address", "fd00::2")]


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("10.0.0.0", Taken, r"in use, on n1: Workload\(default/n1-cni-w1-eth0\); nothing was changed"),
        ("10.0.0.1", Taken, r"in use, on n1: Node\(n1\)"),
        ("10.0.0.2", Taken, "less than 60 s ago"),
        ("10.0.0.7", NotFound, "IP address 10.0.0.7 is not assigned; nothing was changed"),
        ("192.0.2.1", NotFound, "is not assigned"),
    ],
)
async def test_one_address_in_use_is_refused_and_its_user_named(
    address: str, error: type[FabricError], said: str
) -> None:
    owners = {0: W1, 1: TUNNEL, 2: held("k8s.new", timestamp=just_now())}
    kv = await filled(FakeEtcd(), sound() | block(B1, "host:n1", owners) | handle("k8s.new", {B1: 1}))
    before = kv.revision
    with pytest.raises(error, match=said):
        await ipam.release_address(kv, ip_address(address))
    assert kv.revision == before


async def test_force_releases_one_address_whoever_uses_it() -> None:
    kv = await filled(FakeEtcd(), sound())
    await ipam.release_address(kv, ip_address("10.0.0.0"), force=True)
    assert await faults(kv) == [("unallocated-address", "10.0.0.0")]


async def test_what_is_gone_at_the_second_look_is_no_finding() -> None:
    """A claim in progress looks like an affinity without a block, an attach like a handle without addresses."""
    kv = await filled(FakeEtcd(), sound() | affinity("n1", B3, "pending") | handle("k8s.old", {B2: 1}))
    told = asyncio.Event()

    async def finish() -> None:
        await told.wait()
        [key] = affinity("n1", B3)
        await kv.commit(Txn((), (Delete(key),)))

    found, _ = await asyncio.gather(ipam.check(kv, lambda _: told.set(), pause=0.05), finish())
    assert [f.object for f in found.audit.findings] == ["handle k8s.old"]


async def test_what_was_written_between_the_looks_is_seen_as_new() -> None:
    kv = await filled(FakeEtcd(), sound() | affinity("n1", B3, "pending"))
    told = asyncio.Event()

    async def retry() -> None:
        await told.wait()
        await filled(kv, affinity("n1", B3, "pending"))

    found, _ = await asyncio.gather(ipam.check(kv, lambda _: told.set(), pause=0.05), retry())
    assert found.audit.findings == ()


def dump(store: Store, **more: Any) -> dict[str, Any]:
    """What `etcdctl get --prefix /calico -w json` prints."""

    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    kvs = [
        {"key": encoded(k), "value": encoded(v), "mod_revision": 7, "version": 1} for k, v in store.items()
    ]
    return {"header": {"revision": 9}, "kvs": kvs, "count": len(kvs)} | more


def test_a_dump_is_read_as_the_listing_it_is_of() -> None:
    assert set(ipam.dumped(json.dumps(dump(sound())), "x").items) == set(calico.listing(sound()).items)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no dump of etcd"),
        ("[]", "no dump of etcd"),
        ('{"header":{"revision":9},"kvs":[{"key":"?"}]}', "no dump of etcd"),
        (json.dumps(dump(sound(), more=True)), "cut off by a limit"),
        (json.dumps(dump(LEAK)), "has no resources"),
        ('{"header":{"revision":9}}', "has no resources"),
    ],
    ids=range(6),
)
def test_a_dump_that_is_not_whole_is_refused_since_all_would_look_leaked(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ipam.dumped(text, "dump.json")


@pytest.mark.parametrize(
    ("stored", "given", "want"),
    [
        (None, {"strict_affinity": True}, {"strict_affinity": True, "auto_allocate_blocks": True}),
        (
            None,
            {"strict_affinity": True, "max_blocks": 4},
            {"strict_affinity": True, "auto_allocate_blocks": True, "maxBlocksPerHost": 4},
        ),
        (
            {"auto_allocate_blocks": True, "kubeVirtVMAddressPersistence": "Enabled"},
            {"cooldown": 60},
            {
                "auto_allocate_blocks": True,
                "ipCooldownSeconds": 60,
                "kubeVirtVMAddressPersistence": "Enabled",
            },
        ),
        (
            {"strict_affinity": True, "auto_allocate_blocks": True, "maxBlocksPerHost": 4},
            {"strict_affinity": False, "max_blocks": 0},
            {"auto_allocate_blocks": True},
        ),
    ],
)
async def test_configure_writes_what_calico_reads(
    stored: dict[str, Any] | None, given: dict[str, Any], want: dict[str, Any]
) -> None:
    kv = await filled(FakeEtcd(), calico.config(**stored) if stored else {})
    await ipam.configure(kv, **given)
    assert await document_at(kv, CONFIG) == want


@pytest.mark.parametrize(
    ("stored", "given", "said"),
    [
        ({"strict_affinity": True}, {"strict_affinity": False}, "automatic blocks off exclude each other"),
        ({"auto_allocate_blocks": True}, {"max_blocks": 4}, "needs strict affinity"),
        (
            {"strict_affinity": True, "auto_allocate_blocks": True, "maxBlocksPerHost": 4},
            {"strict_affinity": False},
            "needs strict affinity",
        ),
        ({"auto_allocate_blocks": True}, {"cooldown": 1201}, "must be 0 to 1200"),
        ({"strict_affinity": True, "auto_allocate_blocks": True}, {"max_blocks": -1}, "must be 0"),
        (
            {"strict_affinity": "yes"},
            {"cooldown": 1},
            "nothing was changed; `fabricctl delete ipamconfiguration default`",
        ),
    ],
)
async def test_settings_that_do_not_go_together_are_refused(
    stored: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    kv = await filled(FakeEtcd(), calico.config(**stored))
    with pytest.raises(ConfigError, match=said):
        await ipam.configure(kv, **given)
    assert await document_at(kv, CONFIG) == stored


async def test_configure_again_writes_nothing_and_keeps_what_another_set_meanwhile() -> None:
    kv = BusyEtcd()
    await ipam.configure(kv, strict_affinity=True)
    revision = kv.revision
    assert await ipam.configure(kv, strict_affinity=True) == IPAMConfig(strict_affinity=True)
    assert kv.revision == revision
    kv.rivals, kv.theirs = (
        1,
        calico.config(strict_affinity=True, auto_allocate_blocks=True, maxBlocksPerHost=9),
    )
    assert await ipam.configure(kv, cooldown=5) == IPAMConfig(True, True, 9, 5)
