"""The agent's socket and its client, over a real unix socket and a node in memory."""

import asyncio
import errno
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from bgp import rib
from bgp.rib import SessionState, SessionStatus
from fabric.agent import server
from fabric.agent.passes import Outcome
from fabric.api import client
from fabric.errors import (
    AgentError,
    ConfigError,
    DataplaneError,
    Exhausted,
    FabricError,
    NotFound,
    NotInSync,
    SpeakerError,
    Taken,
)
from fabric.plan.links import host_name
from fabric.plan.tables import Held, Version
from fabric.store import keys
from fabric.store.kv import Delete, Txn
from tests.fakes.node import FakeNode, MuteEtcd, netns, pool, put, running, worked_out
from tests.fakes.tables import FakeTables
from tests.unit.test_agent_sessions import A, B, peer

REMOTE = ip_network("10.0.9.0/26")


@dataclass
class Served:
    node: FakeNode
    socket: Path

    async def call(self, method: str, path: str, body: object = None) -> Any:
        return await asyncio.to_thread(client.call, method, path, body, timeout=5, at=self.socket)

    async def attach(self, **more: object) -> Any:
        body = {"name": "web", "namespace": "default", "netns": netns(), **more}
        return await self.call("POST", "/v1/workloads", body)


@asynccontextmanager
async def serving(tmp_path: Path, cidr: str = "10.0.0.0/24") -> AsyncIterator[Served]:
    kv = MuteEtcd()
    await put(kv, pool(cidr, blockSize=28 if cidr.endswith("/24") else 32))
    async with running(kv) as node, asyncio.TaskGroup() as tasks:
        at = tmp_path / "run" / "agent.sock"
        serve = tasks.create_task(server.serve(node.state, node.workloads, node.sessions, node.passes, at))
        async with asyncio.timeout(5):
            while not (at.exists() and at.stat().st_mode & 0o777 == 0o600):  # noqa: ASYNC110  a file has no event
                await asyncio.sleep(0.01)
        try:
            yield Served(node, at)
        finally:
            serve.cancel()


async def test_attach_then_detach(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        made = await served.attach(labels={"app": "web"})
        assert made.pop("warnings") == []
        assert (made["name"], made["namespace"], made["node"]) == ("web", "default", "n1")
        assert (made["labels"], made["interface"]) == ({"app": "web"}, host_name("default", "web"))
        assert await served.call("GET", "/v1/workloads") == [made]
        assert await served.call("DELETE", "/v1/workloads/default/web") == made
        assert await served.call("GET", "/v1/workloads") == []


async def test_a_family_whose_pools_are_all_passed_over_is_warned_of(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await put(served.node.kv, pool("fd00::/112", "six", disabled=True))
        await served.node.caught_up()
        for _ in range(2):  # asked again, it is said again
            (warning,) = (await served.attach())["warnings"]
            assert "no IPv6 address: node n1: no IPv6 pool may serve it" in warning
        assert (await served.attach(name="exact", netns=netns(1), address="10.0.0.9"))["warnings"] == []


async def test_a_node_whose_resource_is_gone_is_not_ready_and_says_what_to_do(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        state = served.node.state
        state.passed(Outcome())
        assert (await served.call("GET", "/v1/status"))["ready"]
        await served.node.kv.commit(Txn((), (Delete(keys.ResourceKey("nodes", None, "n1").path),)))
        await served.node.caught_up()
        status = await served.call("GET", "/v1/status")
        assert (status["ready"], status["registered"]) == (False, False)
        assert "run `fabricctl node join` as before" in status["problems"][0]


async def test_status_says_what_the_node_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await served.attach(address="10.0.0.5")
        status = await served.call("GET", "/v1/status")
        assert (status["node"], status["registered"], status["address"]) == ("n1", True, "192.0.2.1/24")
        assert status["datastore"]["in_sync"]
        assert not status["ready"]  # there was no whole pass
        assert (status["workloads"], status["problems"], status["refused"]) == (1, [], [])
        none = {"backend": "", "enforced": 0, "staged": 0, "problems": 0, "put_back": None}
        assert status["policy"] == none
        assert status["blocks"] == [{"prefix": "10.0.0.0/28", "size": 16, "held": 1}]
        routes = await served.call("GET", "/v1/routes")
        assert {r["prefix"]: r["type"] for r in routes} == {"10.0.0.5/32": "unicast"}
        for table in ("peers", "received", "best", "advertised"):
            assert await served.call("GET", f"/v1/bgp/{table}") == []


async def with_peers(served: Served) -> None:
    """Two peers, of which one is up and sends a path; as after a pass."""
    await put(served.node.kv, peer("tor-a", A))
    await put(served.node.kv, peer("tor-b", B))
    await served.node.caught_up()
    table = {REMOTE: rib.Path(REMOTE, A, A, as_path=(65000,))}
    up = SessionStatus(SessionState.ESTABLISHED, 5.0, synced=True)
    state = served.node.state
    state.update(ribs=replace(state.ribs, sessions={A: up}, adj_rib_in={A: table}))
    worked_out(state)


async def test_tables_are_asked_by_peer_and_prefix(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await with_peers(served)
        assert [s["name"] for s in await served.call("GET", "/v1/bgp/peers")] == ["tor-a", "tor-b"]
        for query, found in (
            ("", 1),
            ("?peer=tor-a", 1),
            (f"?peer={B}", 0),
            ("?prefix=10.0.0.0%2F8", 1),
            ("?prefix=10.0.9.9", 1),
            ("?prefix=10.1.0.0%2F16", 0),
        ):
            assert len(await served.call("GET", f"/v1/bgp/received{query}")) == found, query
        with pytest.raises(NotFound, match="there are: 192"):
            await served.call("GET", "/v1/bgp/received?peer=nobody")
        with pytest.raises(ConfigError, match='prefix "ten"'):
            await served.call("GET", "/v1/bgp/best?prefix=ten")


async def test_a_route_is_asked_by_prefix_or_address(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await with_peers(served)
        found = await served.call("GET", "/v1/bgp/route?prefix=10.0.9.9")
        assert (found["prefix"], [p["peer"] for p in found["paths"]]) == (str(REMOTE), [str(A)])
        with pytest.raises(NotFound, match="no peer has sent"):
            await served.call("GET", "/v1/bgp/route?prefix=203.0.113.0%2F24")
        with pytest.raises(ConfigError, match='prefix ""'):
            await served.call("GET", "/v1/bgp/route")


async def test_a_session_is_drained_and_reset_by_its_peers_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await with_peers(served)

        async def hand_down() -> None:
            while True:
                await served.node.state.dirty.wait()
                served.node.state.dirty.clear()
                served.node.link.told = worked_out(served.node.state).wanted
                served.node.state.passed(Outcome())

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(hand_down())
            answer = await served.call("POST", "/v1/bgp/peers/tor-a/drain")
            assert answer == [{"peer": str(A), "name": "tor-a"}]
            assert [s["drained"] for s in await served.call("GET", "/v1/bgp/peers")] == [True, False]
            await served.call("POST", f"/v1/bgp/peers/{A}/undrain")
            assert [s["drained"] for s in await served.call("GET", "/v1/bgp/peers")] == [False, False]
            task.cancel()
        with pytest.raises(SpeakerError, match="the speaker does not answer; nothing was done"):
            await served.call("POST", "/v1/bgp/peers/tor-b/reset")
        with pytest.raises(NotFound, match="nothing was done"):
            await served.call("POST", "/v1/bgp/peers/nobody/reset")


async def test_series_grow_with_peers_and_never_with_routes(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await with_peers(served)
        text = await asyncio.to_thread(client.fetch, "GET", "/metrics", at=served.socket)
        assert f'fabricctl_bgp_session_state{{peer="{A}"}} 2.0' in text
        assert f'fabricctl_bgp_session_up{{peer="{B}"}} 0.0' in text
        assert f'fabricctl_bgp_session_since{{peer="{A}"}} 5.0' in text
        assert f'fabricctl_bgp_session_received{{peer="{A}"}} 1.0' in text
        assert f'fabricctl_bgp_session_updates_in_total{{peer="{A}"}} 0.0' in text
        assert 'fabricctl_bgp_update_to_kernel_seconds_bucket{le="+Inf"} 0.0' in text
        state = served.node.state
        more = {
            ip_network(f"10.0.{n}.0/28"): rib.Path(ip_network(f"10.0.{n}.0/28"), A, A) for n in range(200)
        }
        state.update(ribs=replace(state.ribs, adj_rib_in={A: more}))
        worked_out(state)
        later = await asyncio.to_thread(client.fetch, "GET", "/metrics", at=served.socket)
        assert len(later.splitlines()) == len(text.splitlines())
        assert f'fabricctl_bgp_session_received{{peer="{A}"}} 200.0' in later


async def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await served.attach(address="10.0.0.5")
        text = await asyncio.to_thread(client.fetch, "GET", "/metrics", at=served.socket)
        assert "fabricctl_workloads 1.0" in text
        assert 'fabricctl_block_addresses_held{block="10.0.0.0/28"} 1.0' in text
        assert 'fabricctl_policy_restores_total{family="ipv4"} 1.0' in text
        assert 'fabricctl_policy_gaps_total{part="rules"} 0.0' in text
        assert "fabricctl_policy_cuts_total 0.0" in text


async def test_the_policy_of_an_endpoint_is_told_with_what_the_kernel_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await served.attach(name="web", address="10.0.0.5")
        told = await served.call("GET", "/v1/policy/endpoint?workload=default%2Fweb")
        assert (told["node"], told["addresses"]) == ("n1", ["10.0.0.5"])
        assert [layer["what"] for layer in told["ingress"]] == ["profile", "no-profile"]
        assert told["egress"][0]["rules"] == [
            {"rule": 0, "action": "Allow", "match": "everything", "packets": 0, "bytes": 0}
        ]
        for query, wrong in (
            ("workload=default%2Fdb", NotFound),
            ("host=eth0", NotFound),
            ("", ConfigError),
        ):
            with pytest.raises(wrong):
                await served.call("GET", f"/v1/policy/endpoint?{query}")


class UnreadableTables(FakeTables):
    async def read(self, version: Version) -> Held:
        raise DataplaneError(f"read the tables of IPv{version}", errno.EBUSY)


async def test_where_the_kernel_cannot_be_asked_there_are_no_counters(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await served.attach(name="web")
        served.node.passes.rules.use(UnreadableTables())
        told = await served.call("GET", "/v1/policy/endpoint?workload=default%2Fweb")
        assert told["egress"][-1]["end"] == {"action": "Deny", "packets": None, "bytes": None}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param([], id="a list"),
        pytest.param(None, id="nothing at all"),
        pytest.param({"name": "web"}, id="fields are missing"),
        pytest.param({"name": 5, "namespace": "default", "netns": "/x"}, id="a number for a name"),
        pytest.param({"name": "w", "namespace": "d", "netns": "/x", "ip": "10.0.0.5"}, id="an unknown field"),
        pytest.param({"name": "w", "namespace": "d", "netns": "/x", "labels": [1]}, id="labels are a list"),
        pytest.param({"name": "w", "namespace": "d", "netns": "/x", "labels": {"a": 1}}, id="a number label"),
        pytest.param({"name": "w", "namespace": "d", "netns": "/x", "address": "ten"}, id="no address"),
        pytest.param({"name": "w", "namespace": "d", "netns": "/x", "address": 167772165}, id="a number"),
        pytest.param({"name": "w", "namespace": "d", "netns": "/x", "pools": "a"}, id="pools are a text"),
        pytest.param({"name": "w", "namespace": "d", "netns": "/x", "pools": [1]}, id="a number for a pool"),
        pytest.param(
            {"name": "w", "namespace": "d", "netns": "/x", "publish": "80:80"}, id="ports are a text"
        ),
        pytest.param(
            {"name": "w", "namespace": "d", "netns": "/x", "publish": [80]}, id="a number for a port"
        ),
        pytest.param({"name": "w", "namespace": "d", "netns": "/x", "publish": ["80"]}, id="half a port"),
    ],
)
async def test_a_bad_body_is_the_callers_mistake(tmp_path: Path, body: object) -> None:
    async with serving(tmp_path) as served:
        with pytest.raises(ConfigError, match=r"nothing was (attached|done)"):
            await served.call("POST", "/v1/workloads", body)


async def test_published_ports_are_asked_for_and_shown(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        made = await served.attach(publish=["127.0.0.1:18080:80", "18053:53/udp"])
        assert made["ports"] == [
            {"host_ip": "127.0.0.1", "host_port": 18080, "port": 80, "protocol": "tcp"},
            {"host_ip": "", "host_port": 18053, "port": 53, "protocol": "udp"},
        ]
        with pytest.raises(
            Taken, match="port 18080/tcp of every IPv4 address of the node is published by workload"
        ):
            await served.attach(name="db", publish=["18080:80"])
        assert (await served.attach(name="db", netns=netns(1)))["ports"] == []


async def test_a_body_that_is_no_json_is_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        reader, writer = await asyncio.open_unix_connection(str(served.socket))
        writer.write(
            b"POST /v1/workloads HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n{no}"
        )
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith("HTTP/1.1 400 ")
        assert json.loads(answer.partition("\r\n\r\n")[2])["error"] == "ConfigError"


async def test_the_agents_refusals_reach_the_caller_as_what_they_were(tmp_path: Path) -> None:
    async with serving(tmp_path, "10.0.0.5/32") as served:
        with pytest.raises(NotFound, match="default/web: not on node n1"):
            await served.call("DELETE", "/v1/workloads/default/web")
        with pytest.raises(ConfigError, match='workload "Web": must be'):
            await served.attach(name="Web")
        await served.attach()
        with pytest.raises(Taken, match="already attached"):
            await served.attach(netns=netns(1))
        with pytest.raises(Exhausted, match="no address left"):
            await served.attach(name="db", netns=netns(1))
        served.node.kv.down = True
        async with asyncio.timeout(5):
            await served.node.state.until(lambda: not served.node.state.snapshot.in_sync)
        with pytest.raises(NotInSync, match="nothing was attached"):
            await served.attach(name="db", netns=netns(1))


async def test_what_the_kernel_refused_is_an_error_of_ours_with_its_message(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.node.links.refuse[host_name("default", "web")] = errno.EPERM
        with pytest.raises(FabricError, match=r"EPERM.*nothing was attached"):
            await served.attach()


async def test_a_dead_agents_socket_is_replaced_by_one_that_is_open_to_root_alone(tmp_path: Path) -> None:
    left_over = tmp_path / "run" / "agent.sock"
    left_over.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left_over))
    left_over.chmod(0o644)
    async with serving(tmp_path) as served:
        assert await served.call("GET", "/v1/workloads") == []
        assert served.socket.stat().st_mode & 0o777 == 0o600


def test_without_an_agent_the_message_says_so_and_that_nothing_was_done(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"not running .*nothing was done; start it with"):
        client.call("GET", "/v1/status", at=tmp_path / "absent.sock")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(b"", "may or may not have been done", id="dies while it is asked"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "may or may not", id="dies half-way"),
        pytest.param(b"garbage\r\n\r\n", "may or may not have been done", id="is no agent"),
        pytest.param(
            b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops", "unexpected answer: oops", id="has a bug"
        ),
    ],
)
def test_an_agent_that_answers_badly_is_an_agent_error(tmp_path: Path, answer: bytes, why: str) -> None:
    at = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(at))
        listener.listen()
        listener.settimeout(5)

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        try:
            with pytest.raises(AgentError, match=why):
                client.call("GET", "/v1/status", at=at, timeout=5)
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Taken", Taken),
        ("Exhausted", Exhausted),
        ("DataplaneError", FabricError),
        ("os", FabricError),
        ("NoSuch", FabricError),
    ],
)
def test_the_class_of_a_refusal_is_one_of_ours_whatever_the_answer_says(
    name: str, kind: type[Exception]
) -> None:
    refusal = client._refusal(json.dumps({"error": name, "message": "why"}))
    assert type(refusal) is kind
    assert str(refusal) == "why"
