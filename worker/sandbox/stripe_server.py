"""A stand-in for Stripe's v1 API over HTTP, for work without an account: demo, tests, benchmark.

A second implementation, written from Stripe's documentation and sharing no code with the worker; each `stripe_*.py`
beside this one states which facts of the real thing it keeps.

Left out: customers, payment methods and webhook endpoints as endpoints of the API; charges without a PaymentIntent,
evidence against disputes, multicapture, and `confirmation_method=manual`.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from aiohttp import web

from worker.sandbox.stripe_control import SandboxControl
from worker.sandbox.stripe_control_routes import add_control_routes
from worker.sandbox.stripe_core import SandboxCore
from worker.sandbox.stripe_errors import ApiError, key_in_use, lock_timeout, too_many_requests
from worker.sandbox.stripe_faults import AFTER_WORK, BEFORE_WORK, Fault
from worker.sandbox.stripe_idempotency import Answer
from worker.sandbox.stripe_record import Row
from worker.sandbox.stripe_request import Call, read_call

TEST_KEY = "sk_test_sandbox"  # any test key will do; this one is told at the start

GONE_CHECK_S = 0.05  # how often a hanging request looks whether its client has left
SHUTDOWN_S = 1.0  # how long requests under way may still take when the server is stopped

PROXY_PAGE = b"<html><head><title>503 Service Temporarily Unavailable</title></head><body>503</body></html>\n"
REFUSALS: dict[str, Callable[[], ApiError]] = {
    "429": too_many_requests,
    "lock_timeout": lock_timeout,
    "409": key_in_use,
}


class StripeSandbox(SandboxCore):
    """The whole sandbox. Options: `seed`, `ring`, and any of `stripe_settings.Settings`."""

    def app(self) -> web.Application:
        app = web.Application()
        add_control_routes(app, self)
        app.router.add_route("*", "/{path:.*}", self._serve)
        app.on_shutdown.append(self._on_shutdown)
        return app

    async def _on_shutdown(self, app: web.Application) -> None:  # noqa: ARG002 - aiohttp's signature
        self.release()
        self.world.close()
        await self.post.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = read_call(request.method, request.path, request.query_string, request.headers, body)
        world = self.world
        seen = self.seen(call)
        fault = world.faults.at_arrival(seen)
        row = Row(
            world.record.received + 1,
            world.clock.now(),
            call.method,
            call.path,
            call.operation,
            None,
            call.idempotency_key,
            seen.order_id,
            fault.kind if fault is not None else None,
        )
        world.record.open(row)
        answered = False
        try:
            if fault is not None and fault.kind in BEFORE_WORK:
                answered, response = await self._trouble(request, call, row, fault)
                return response
            answer = await self.answer(call, seen, row, fault)
            row.object_id, row.code = answer.object_id, answer.code
            if fault is not None and fault.kind in AFTER_WORK:
                world.record.changed(row)
                return await self._lose(request, call, row, fault, answer)
            row.status = answer.status
            answered = request.transport is not None and not request.transport.is_closing()
            headers = _headers(call, row, answer, now=world.clock.now())
            return web.Response(body=answer.body, status=answer.status, headers=headers)
        finally:
            world.record.close(row, answered=answered)

    async def _trouble(
        self, request: web.Request, call: Call, row: Row, fault: Fault
    ) -> tuple[bool, web.StreamResponse]:
        """A fault in place of the work: whether an answer is sent, and which."""
        if fault.kind == "503":
            row.status = 503
            return True, web.Response(body=PROXY_PAGE, status=503, content_type="text/html")
        refusal = REFUSALS.get(fault.kind)
        if refusal is not None:
            error = refusal()
            row.status, row.code = error.status, error.code
            answer = Answer(error.status, error.body(), error.headers)
            headers = _headers(call, row, answer, now=self.world.clock.now())
            return True, web.Response(body=answer.body, status=answer.status, headers=headers)
        if fault.kind == "hang":
            await self._hang(request)
        _reset_connection(request)
        return False, web.Response(status=500)  # for aiohttp, which finds the connection closed

    async def _lose(
        self, request: web.Request, call: Call, row: Row, fault: Fault, answer: Answer
    ) -> web.StreamResponse:
        """The work is done; the client does not come to know."""
        headers = _headers(call, row, answer, now=self.world.clock.now())
        response = web.StreamResponse(status=answer.status, headers=headers)
        if fault.kind == "half_body":
            row.status = answer.status
            response.content_length = len(answer.body)
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                await response.write(answer.body[: len(answer.body) // 2])
            if request.transport is not None:
                request.transport.close()  # after what was written
            return response
        if fault.kind == "hang_after_work":
            await self._hang(request)
        _reset_connection(request)
        return response

    async def _hang(self, request: web.Request) -> None:
        """Until released, or until the client has left; aiohttp tells a handler of neither, hence the looking."""
        released = self._released
        while not released.is_set() and request.transport is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GONE_CHECK_S):
                    await released.wait()


@dataclass(frozen=True, slots=True)
class RunningSandbox:
    """A sandbox in this process: `sandbox` for the test to look into, `control` as another process would use it."""

    base_url: str
    sandbox: StripeSandbox
    control: SandboxControl


async def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 12111,
    ready: Callable[[str], None] | None = None,
    **options: Any,
) -> None:
    """Run until cancelled. Port 0 takes a free one; `ready` gets the base URL once connections are accepted."""
    async with _listening(StripeSandbox(**options), host, port) as base_url:
        if ready is not None:
            ready(base_url)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def running_sandbox(**options: Any) -> AsyncIterator[RunningSandbox]:
    """A sandbox on a free loopback port of this process, for the time of the block."""
    sandbox = StripeSandbox(**options)
    async with _listening(sandbox, "127.0.0.1", 0) as base_url, SandboxControl(base_url) as control:
        yield RunningSandbox(base_url, sandbox, control)


@contextlib.asynccontextmanager
async def _listening(sandbox: StripeSandbox, host: str, port: int) -> AsyncIterator[str]:
    # No access log: at benchmark speed it would cost more than the work, and the record says more.
    runner = web.AppRunner(sandbox.app(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=1024)
        await site.start()
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
    finally:
        await runner.cleanup()


def _headers(call: Call, row: Row, answer: Answer, *, now: float) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Date": formatdate(now, usegmt=True),
        "Request-Id": row.request_id,
    }
    # What is not ASCII may be no UTF-8 either, which no header can carry back.
    if call.version.isascii():
        headers["Stripe-Version"] = call.version
    if call.idempotency_key is not None and call.idempotency_key.isascii():
        headers["Idempotency-Key"] = call.idempotency_key
    if row.replayed:
        headers["Idempotent-Replayed"] = "true"
    if answer.headers:
        headers.update(answer.headers)
    return headers


def _reset_connection(request: web.Request) -> None:
    """With lingering off, closing sends a TCP reset rather than an orderly end."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
