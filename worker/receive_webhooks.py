"""`POST /webhooks/stripe`: verified, kept in the ledger, answered; the work comes afterwards.

Stripe comes again for days until it has a 2xx, so that whatever could not be kept is answered with 503.
Source: https://docs.stripe.com/webhooks.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import structlog
from aiohttp import web

from worker.errors import LedgerRefused, LedgerUnavailable
from worker.ledger import inbox
from worker.ledger.ledger import Ledger
from worker.metrics import Metrics
from worker.stripe_event import StripeEvent, read_stripe_event
from worker.stripe_signature import SignatureRefused, check_signature

log: Final = structlog.get_logger()

PATH: Final = "/webhooks/stripe"
# Stripe's events are some kilobytes; one with many metadata and line items is below this.
MOST_BODY_BYTES: Final = 512 * 1024
# Stripe sends a body at once; strangers may not hold many open.
BODY_TIMEOUT_S: Final = 10
BODIES_AT_ONCE: Final = 200
# Refusals are counted one by one, and told in the log no more often: anybody can send them.
TELL_EVERY_S: Final = 60


class WebhookReceiver:
    """Takes webhooks in. secrets: of the endpoint, several while one is rolled. received: called once one is kept."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        secrets: Sequence[str],
        tolerance_s: float,
        livemode: bool,
        metrics: Metrics,
        received: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._secrets = tuple(secrets)
        self._tolerance_s = tolerance_s
        self._livemode = livemode
        self._metrics = metrics
        self._received = received
        self._clock = clock
        self._told_at = float("-inf")
        self._reading = asyncio.Semaphore(BODIES_AT_ONCE)

    def routes(self) -> Sequence[web.RouteDef]:
        """The one route; none where no secret is set, since then nobody could be believed."""
        return [web.post(PATH, self.receive)] if self._secrets else []

    async def receive(self, request: web.Request) -> web.Response:
        """200 kept, or known; 400 not Stripe's; 413 too large; 503 come again."""
        now = self._clock()
        try:
            header = self._header(request)
            async with self._reading, asyncio.timeout(BODY_TIMEOUT_S):
                body = await self._body(request)
            check_signature(body, header, secrets=self._secrets, now=now.timestamp(), tolerance_s=self._tolerance_s)
        except SignatureRefused as refused:
            return self._refuse(refused.reason, request, status=413 if refused.reason == "too_large" else 400)
        except (TimeoutError, web.RequestPayloadError, ConnectionError):
            return self._refuse("too_slow", request, status=408)
        try:
            event = read_stripe_event(json.loads(body))
        except (ValueError, RecursionError) as error:  # signed and no event: a destination of another kind
            return self._refuse("no_event", request, status=400, why=str(error))
        try:
            is_new = await self._ledger.run_grouped(inbox.receive, inbox.Receipt(event, self._why_not_ours(event), now))
        except (LedgerUnavailable, LedgerRefused) as error:
            log.warning("webhook.not_kept", event_id=event.event_id, error=str(error))
            self._metrics.webhooks.labels("not_kept").inc()
            return web.json_response({"received": False}, status=503)
        self._metrics.webhooks.labels("kept" if is_new else "known").inc()
        if is_new:
            self._received()
        return web.json_response({"received": True})

    def _header(self, request: web.Request) -> str:
        """Raises SignatureRefused for what cannot be Stripe's, before anything of it is read."""
        if "Content-Encoding" in request.headers:  # Stripe packs nothing, and others pack bombs
            raise SignatureRefused("encoded")
        header = request.headers.get("Stripe-Signature", "")
        if not header:
            raise SignatureRefused("no_signature")
        return header

    async def _body(self, request: web.Request) -> bytes:
        """Raises SignatureRefused for one that is too large, which is not read to its end."""
        if (request.content_length or 0) > MOST_BODY_BYTES:
            raise SignatureRefused("too_large")
        pieces, size = [], 0
        async for piece in request.content.iter_any():
            size += len(piece)
            if size > MOST_BODY_BYTES:
                raise SignatureRefused("too_large")
            pieces.append(piece)
        return b"".join(pieces)

    def _why_not_ours(self, event: StripeEvent) -> str | None:
        if event.livemode != self._livemode:
            return f"of Stripe's {'live' if event.livemode else 'test'} mode, and this worker's key is of the other"
        if event.family is None:
            return "concerns no payment"
        return None

    def _refuse(self, reason: str, request: web.Request, *, status: int, why: str | None = None) -> web.Response:
        """Nothing is told to whoever sent it, and little to the log."""
        self._metrics.webhooks.labels(reason).inc()
        now = self._clock().timestamp()
        if now - self._told_at > TELL_EVERY_S:
            self._told_at = now
            log.warning("webhook.refused", reason=reason, why=why, remote=request.remote, told_every_s=TELL_EVERY_S)
        return web.json_response({"received": False}, status=status)
