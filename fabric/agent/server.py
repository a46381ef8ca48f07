"""Touches the agent's unix socket: HTTP requests in, JSON answers out. docs/reference/api.md lists them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from fabric.agent import endpoint as endpoints
from fabric.agent import metrics, report
from fabric.agent.endpoint import Request
from fabric.agent.passes import Passes
from fabric.agent.state import State
from fabric.agent.workloads import Workloads
from fabric.config import AGENT_SOCKET
from fabric.errors import ConfigError, FabricError, NotFound, Taken

log = structlog.get_logger()

_STATUS = {ConfigError: 400, NotFound: 404, Taken: 409}
_REQUEST_FIELDS = {"name", "namespace", "netns", "labels", "address", "pools"}


async def serve(state: State, workloads: Workloads, passes: Passes, at: Path = AGENT_SOCKET) -> None:
    """Answer on the socket at `at`, open to root alone, until cancelled."""
    runner = web.AppRunner(application(state, workloads, passes), access_log=None, handle_signals=False)
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


def application(state: State, workloads: Workloads, passes: Passes) -> web.Application:
    """Return the API: reports of `state`, and what `workloads` does."""

    def reads(make: Callable[[], object]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(_: web.Request) -> web.Response:
            return web.json_response(make())

        return handler

    async def attach(request: web.Request) -> web.Response:
        asked = _attach_request(await _body(request))
        endpoint = await workloads.attach(asked)
        warnings = endpoints.warnings(state.snapshot, state.node, asked, endpoint)
        return web.json_response({**report.workload(endpoint), "warnings": warnings})

    async def detach(request: web.Request) -> web.Response:
        endpoint = await workloads.detach(request.match_info["namespace"], request.match_info["name"])
        return web.json_response(report.workload(endpoint))

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(state), content_type="text/plain")

    app = web.Application(middlewares=[_refusals])
    app.router.add_get("/v1/status", reads(lambda: report.status(state)))
    app.router.add_get("/v1/bgp/peers", reads(lambda: report.sessions(state)))
    app.router.add_get("/v1/bgp/received", reads(lambda: report.received(state)))
    app.router.add_get("/v1/bgp/best", reads(lambda: report.best(state)))
    app.router.add_get("/v1/bgp/advertised", reads(lambda: report.advertised(state)))
    app.router.add_get("/v1/routes", reads(lambda: report.routes(passes.held_routes.values())))
    app.router.add_get("/v1/workloads", reads(lambda: report.workloads(state)))
    app.router.add_post("/v1/workloads", attach)
    app.router.add_delete("/v1/workloads/{namespace}/{name}", detach)
    app.router.add_get("/metrics", scrape)
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
            return Request(name, namespace, netns, labels, _address(body.get("address")), tuple(pools))
        case _:
            raise ConfigError(
                'attach: the body must have "name", "namespace" and "netns", texts, and may have "labels", '
                '"address" and "pools"; nothing was attached'
            )


def _address(text: object) -> Any:
    if not text:
        return None
    try:
        return ip_address(text if isinstance(text, str) else "")  # which takes a number as well
    except ValueError as err:
        raise ConfigError(f'address "{text}": not an IPv4 or IPv6 address; nothing was attached') from err
