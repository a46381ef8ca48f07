"""Touches the agent's unix socket: HTTP requests in, JSON answers out. docs/reference/api.md lists them."""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from bgp.peering import Peering
from bgp.rib import Prefix
from fabric.agent import endpoint as endpoints
from fabric.agent import metrics, peers, report, report_bgp, report_policy
from fabric.agent.endpoint import Request
from fabric.agent.passes import Passes
from fabric.agent.policing import Policing
from fabric.agent.report_bgp import Asked
from fabric.agent.sessions import Sessions
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.config import AGENT_SOCKET
from fabric.errors import ConfigError, DataplaneError, FabricError, NotFound, Taken
from fabric.plan import publish
from fabric.plan.routes import Route, RouteKey

log = structlog.get_logger()

_STATUS = {ConfigError: 400, NotFound: 404, Taken: 409}
_REQUEST_FIELDS = {"name", "namespace", "netns", "labels", "address", "pools", "publish"}


async def serve(
    state: State, workloads: Workloads, sessions: Sessions, passes: Passes, at: Path = AGENT_SOCKET
) -> None:
    """Answer on the socket at `at`, open to root alone, until cancelled."""
    app = application(state, workloads, sessions, passes)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.SockSite(runner, _listen(at))
        await site.start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _listen(at: Path) -> socket.socket:
    """A dead agent's socket is replaced; a living agent is excluded by the supervisor's lock."""
    at.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    at.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(at))
    at.chmod(0o600)
    return listener


def application(state: State, workloads: Workloads, sessions: Sessions, passes: Passes) -> web.Application:
    """Return the API: reports of `state`, and what `workloads` and `sessions` do."""

    def reads(
        make: Callable[[State, web.Request], object],
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Answer with what `make` makes of the state as it is now, in a thread: a full table takes long to tell."""

        def made(seen: State, request: web.Request) -> str:
            answer = make(seen, request)
            # One by one, since the encoder lets no other thread run.
            return (
                f"[{', '.join(map(json.dumps, answer))}]" if isinstance(answer, list) else json.dumps(answer)
            )

        async def handler(request: web.Request) -> web.Response:
            text = await asyncio.to_thread(made, copy.copy(state), request)
            return web.json_response(text=text)

        return handler

    async def attach(request: web.Request) -> web.Response:
        asked = _attach_request(await _body(request))
        endpoint = await workloads.attach(asked)
        warnings = endpoints.warnings(state.snapshot, state.node, asked, endpoint)
        return web.json_response({**report.workload(endpoint), "warnings": warnings})

    async def detach(request: web.Request) -> web.Response:
        endpoint = await workloads.detach(request.match_info["namespace"], request.match_info["name"])
        return web.json_response(report.workload(endpoint))

    async def reset(request: web.Request) -> web.Response:
        return _named(await sessions.reset(request.match_info["peer"]))

    async def drain(request: web.Request) -> web.Response:
        return _named(await sessions.drain(request.match_info["peer"], drained=True))

    async def undrain(request: web.Request) -> web.Response:
        return _named(await sessions.drain(request.match_info["peer"], drained=False))

    async def scrape(_: web.Request) -> web.Response:
        body = await asyncio.to_thread(metrics.render, copy.copy(state), passes.rules)
        return web.Response(body=body, content_type="text/plain")

    async def policy(request: web.Request) -> web.Response:
        policing = state.policing
        try:
            counters = await passes.counters(policing.composed) if policing else {}
        except DataplaneError as err:
            log.warning("counters not read", error=str(err))
            counters = {}
        return web.json_response(await asyncio.to_thread(_policy, policing, request, counters))

    def held() -> Mapping[RouteKey, Route]:
        return dict(passes.held_routes)

    app = web.Application(middlewares=[_refusals])
    get, post = app.router.add_get, app.router.add_post
    get("/v1/status", reads(lambda seen, _: report.status(seen, _now(seen))))
    get("/v1/bgp/peers", reads(lambda seen, _: report_bgp.sessions(seen, _now(seen))))
    get("/v1/bgp/received", reads(lambda seen, request: report_bgp.received(seen, _asked(seen, request))))
    get("/v1/bgp/best", reads(lambda seen, request: report_bgp.best(seen, _asked(seen, request))))
    get("/v1/bgp/advertised", reads(lambda seen, request: report_bgp.advertised(seen, _asked(seen, request))))
    get("/v1/bgp/route", reads(lambda seen, request: report_bgp.route(seen, _one_prefix(request), held())))
    post("/v1/bgp/peers/{peer}/reset", reset)
    post("/v1/bgp/peers/{peer}/drain", drain)
    post("/v1/bgp/peers/{peer}/undrain", undrain)
    get("/v1/policy/endpoint", policy)
    get("/v1/routes", reads(lambda _seen, _: report.routes(held().values())))
    get("/v1/workloads", reads(lambda seen, _: report.workloads(seen)))
    post("/v1/workloads", attach)
    app.router.add_delete("/v1/workloads/{namespace}/{name}", detach)
    get("/metrics", scrape)
    return app


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn our own errors into answers; anything else is a bug, and aiohttp logs it and answers 500."""
    try:
        return await handler(request)
    except FabricError as err:
        status = _STATUS.get(type(err), 503)
        log.info("request refused", method=request.method, path=request.path, error=str(err))
        return web.json_response({"error": type(err).__name__, "message": str(err)}, status=status)


def _now(state: State) -> float:
    """Return the time, with the kernel's counters of refused signatures read at it."""
    now = time.time()
    state.signatures.look(now)
    return now


def _asked(state: State, request: web.Request) -> Asked:
    peer, prefix = request.query.get("peer"), request.query.get("prefix")
    found = peers.named(state.desired.peerings.peerings, peer) if peer else None
    return Asked(
        None if found is None else frozenset(p.spec.peer for p in found), _prefix(prefix) if prefix else None
    )


def _one_prefix(request: web.Request) -> Prefix:
    return _prefix(request.query.get("prefix", ""))


def _prefix(text: str) -> Prefix:
    try:
        return ip_network(text)
    except ValueError as err:
        raise ConfigError(f'prefix "{text}": {err}; nothing was looked for') from err


def _policy(policing: Policing | None, request: web.Request, counters: report_policy.Counters) -> object:
    if name := request.query.get("host"):
        return report_policy.host(policing, name, counters)
    namespace, _, name = request.query.get("workload", "").rpartition("/")
    if not name:
        raise ConfigError("policy: needs workload=NAMESPACE/NAME, or host=NAME; nothing was looked for")
    return report_policy.workload(policing, namespace or "default", name, counters)


def _named(found: Iterable[Peering]) -> web.Response:
    return web.json_response([{"peer": str(p.spec.peer), "name": p.name} for p in found])


async def _body(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError as err:
        raise ConfigError(
            f"{request.method} {request.path}: the body is not JSON: {err}; nothing was done"
        ) from err


def _attach_request(body: Any) -> Request:
    match body:
        case {"name": str(name), "namespace": str(namespace), "netns": str(netns)} if (
            body.keys() <= _REQUEST_FIELDS
        ):
            labels = body.get("labels") or {}
            if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
                raise ConfigError('attach: "labels" must map names to texts; nothing was attached')
            pools = body.get("pools") or []
            if not isinstance(pools, list) or not all(isinstance(pool, str) for pool in pools):
                raise ConfigError('attach: "pools" must be a list of names or prefixes; nothing was attached')
            ports = body.get("publish") or []
            if not isinstance(ports, list) or not all(isinstance(port, str) for port in ports):
                raise ConfigError('attach: "publish" must be a list of texts; nothing was attached')
            return Request(
                name,
                namespace,
                netns,
                labels,
                _address(body.get("address")),
                tuple(pools),
                tuple(map(publish.parse, ports)),
            )
        case _:
            raise ConfigError(
                'attach: the body must have "name", "namespace" and "netns", texts, and may have "labels", '
                '"address", "pools" and "publish"; nothing was attached'
            )


def _address(text: object) -> Any:
    if not text:
        return None
    try:
        return ip_address(text if isinstance(text, str) else "")  # which takes a number as well
    except ValueError as err:
        raise ConfigError(f'address "{text}": not an IPv4 or IPv6 address; nothing was attached') from err
