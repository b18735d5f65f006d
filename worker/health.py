"""Health over HTTP: /livez (the process turns), /readyz (it works, or why not), /metrics (Prometheus)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import generate_latest

from worker.errors import ConfigurationError
from worker.metrics import Metrics


@asynccontextmanager
async def serve_health(
    *,
    host: str,
    port: int,
    why_not_ready: Callable[[], Awaitable[Mapping[str, str]]],
    concerns: Callable[[], Mapping[str, str]],
    metrics: Metrics,
    more: Sequence[web.RouteDef] = (),
) -> AsyncIterator[str]:
    """Serves while the block lasts; yields the base address.

    why_not_ready: {part: reason}, empty when all is well. concerns: the same of what needs a person while orders are
    taken all the same. more: other routes. Raises ConfigurationError where the port is taken.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        reasons = await why_not_ready()
        told = {"ready": not reasons, "reasons": dict(reasons), "concerns": dict(concerns())}
        return web.json_response(told, status=503 if reasons else 200)

    async def figures(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", figures), *more])
    # Nothing packed is taken, so that nothing is unpacked: a few bytes may become a gigabyte.
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(f"HTTP_PORT {port} on {host} cannot be listened on: {error.strerror}") from error
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
