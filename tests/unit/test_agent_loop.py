"""What the loop sees to before each of its passes, over a node in memory."""

from fabric.agent import loop
from fabric.model.bgp import BGPPeer
from tests.fakes.node import MuteEtcd, put, running
from tests.unit.test_agent_sessions import A


async def test_secrets_are_looked_for_before_the_sessions_that_name_them_are_worked_out() -> None:
    async with running(MuteEtcd()) as node:
        await loop.read_secrets(node.state, again=False)
        assert node.state.secret_refs == frozenset()
        signed = {
            "peerIP": str(A),
            "asNumber": 65000,
            "password": {"secretKeyRef": {"name": "no-such", "key": "md5"}},
        }
        await put(node.kv, BGPPeer.model_validate({"metadata": {"name": "tor-a"}, "spec": signed}))
        await node.caught_up()
        await loop.read_secrets(node.state, again=False)
        assert node.state.secret_refs == {("no-such", "md5")}
        assert node.state.secrets == {}
