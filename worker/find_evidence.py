"""An unknown outcome → what Stripe has of it: the intent, or proof that there is none.

Search is a hint that is verified by fetching the object; an empty search shows nothing. Listing reads its own writes,
so a listing of every moment at which the call may have been carried out shows absence too, once nothing can be on its
way any more.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from worker.errors import CallRefused, CallTransient, SeveralIntents
from worker.payment import Intent, Operation
from worker.stripe_gateway import StripeGateway

log: Final = structlog.get_logger()

# Between our clock and Stripe's, which stamps what it creates. Where they are further apart nothing is proven absent.
CLOCK_SKEW: Final = timedelta(seconds=60)
# Between the clocks of two workers, and for what Stripe repairs by itself moments after an answer, if at all.
SETTLES_S: Final = 5
# A call is sent within this of a time of asking that is written down: see decide_payment.
SENT_WITHIN_S: Final = 10
# 20,000 intents; more in a few minutes is no shop's traffic, and reading is rationed too.
MAX_PAGES: Final = 200
READ_GAP_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """The intent, as fetched just now. evidence: how it was found."""

    intent: Intent
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Absent:
    """Stripe has none. evidence: where was looked, and when."""

    evidence: Mapping[str, Any]


class EvidenceFinder:
    """Looks for what became of a call. call_timeout_s: how long one call may be on its way."""

    def __init__(self, *, gateway: StripeGateway, call_timeout_s: float, clock: Callable[[], datetime]) -> None:
        self._gateway = gateway
        self._call_timeout_s = call_timeout_s
        self._clock = clock
        self._reading = asyncio.Lock()

    async def look_for(self, operation: Operation) -> Found | Absent:
        """What became of it.

        Raises CallTransient while absence cannot be shown yet, SeveralIntents, AnswerMismatch, and what asking does.
        """
        began = self._clock()
        found = await self._by_search(operation) or await self._by_listing(operation)
        because = {"because": operation.unknown_because, "looked_at": self._clock().isoformat()}
        if isinstance(found, Found):
            self._gateway.check_intent(operation, found.intent)
            return Found(found.intent, {**found.evidence, **because})
        settled_at = max(operation.asks) + timedelta(seconds=self._settles_s(operation))
        if operation.unknown_because == "key_mismatch":  # somebody used the key at a time that we do not know
            raise CallTransient("the key was used with other parameters, and no intent is found", reason="key_mismatch")
        if began < settled_at:
            raise CallTransient("nothing is there, but it may still be on its way", reason="outcome_unknown")
        return Absent({**found.evidence, **because})

    async def _by_search(self, operation: Operation) -> Found | None:
        try:
            ids = await self._gateway.search_intents(operation.order_id, operation.stripe_account)
        except CallRefused as refused:  # not offered to accounts of every country
            log.info("evidence.no_search", error=str(refused))
            return None
        return await self._fetched(operation, ids, {"found_by": "search, then fetched"}) if ids else None

    async def _by_listing(self, operation: Operation) -> Found | Absent:
        """Looks at all that was created while this call may have been carried out."""
        windows = list(_windows(operation.asks, span_s=SENT_WITHIN_S + self._call_timeout_s))
        ids, pages, most_apart = [], 0, timedelta()
        for start, end in windows:
            after: str | None = None
            while True:
                page, after, apart = await self._page(operation, start, end, after)
                most_apart = max(most_apart, apart)
                ids += [intent.payment_id for intent in page if intent.order_id == operation.order_id]
                pages += 1
                if after is None:
                    break
                if pages >= MAX_PAGES:
                    raise CallTransient(f"more than {MAX_PAGES} pages to look at", reason="outcome_unknown")
        if ids:
            found = await self._fetched(operation, ids, {"found_by": "listing, then fetched"})
            if found:
                return found
        if most_apart > CLOCK_SKEW:  # what was made then may stand at another time
            seconds = most_apart.total_seconds()
            raise CallTransient(f"our clock and Stripe's are {seconds:.0f} s apart", reason="outcome_unknown")
        return Absent({"absent_from": [[start.isoformat(), end.isoformat()] for start, end in windows], "pages": pages})

    async def _page(
        self, operation: Operation, start: datetime, end: datetime, after: str | None
    ) -> tuple[list[Intent], str | None, timedelta]:
        """With how far our clock is from Stripe's."""
        async with self._reading:  # one reader at a time: live orders need the account's allowance more
            await asyncio.sleep(READ_GAP_S)
            page, after, said_at = await self._gateway.list_intents(
                created_from=int(start.timestamp()),
                created_to=int(end.timestamp()) + 1,
                customer=operation.params.get("customer"),
                stripe_account=operation.stripe_account,
                after=after,
            )
            return page, after, abs(said_at - self._clock()) if said_at else timedelta()

    async def _fetched(self, operation: Operation, ids: Sequence[str], how: Mapping[str, Any]) -> Found | None:
        intents = [
            intent
            for payment_id in ids
            if (intent := (await self._gateway.fetch_intent(payment_id, operation.stripe_account))[0]).order_id
            == operation.order_id
        ]
        live = [intent for intent in intents if intent.status != "canceled"]
        if len(live) > 1:
            raise SeveralIntents(f"{operation.order_id}: {', '.join(sorted(intent.payment_id for intent in live))}")
        chosen = (live or intents)[:1]
        return Found(chosen[0], {**how, "payment_ids": sorted(i.payment_id for i in intents)}) if chosen else None

    def _settles_s(self, operation: Operation) -> float:
        """Since the last time that is written down, which for a stored answer is the time of that answer."""
        if operation.unknown_because == "stored_error":
            return SETTLES_S
        return SENT_WITHIN_S + self._call_timeout_s + SETTLES_S


def _windows(asks: Sequence[datetime], *, span_s: float) -> Iterator[tuple[datetime, datetime]]:
    """The times in which something asked at `asks` may have been made; those that touch are one."""
    start: datetime | None = None
    end: datetime | None = None
    for asked in sorted(asks):
        opens, closes = asked - CLOCK_SKEW, asked + timedelta(seconds=span_s) + CLOCK_SKEW
        if start is not None and end is not None and opens > end:
            yield start, end
            start = None
        start, end = start or opens, closes
    if start is not None and end is not None:
        yield start, end
