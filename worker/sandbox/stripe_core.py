"""The sandbox without its HTTP server: what it holds, how it can be set, and how it answers one call.

A call passes, in this order: key and account (401, 403), route (404), rate limit (429), idempotency layer, parameter
validation (400), latency, the endpoint. Only what the endpoint itself answers is kept under the idempotency key: 200,
402, the 400s and 404s about objects, states, amount limits and unknown payment methods, and the 500s of the plan.
Source: https://docs.stripe.com/error-low-level, which puts limiters and validation before the idempotent part.
"""

import asyncio
import contextlib
from random import Random
from typing import Any

from worker.sandbox.stripe_errors import ApiError, server_error, unrecognized_url
from worker.sandbox.stripe_expand import expanded
from worker.sandbox.stripe_faults import DELAY, Fault, Seen
from worker.sandbox.stripe_gate import Keys, RateLimiter
from worker.sandbox.stripe_idempotency import Answer
from worker.sandbox.stripe_operations import operate
from worker.sandbox.stripe_params import Params, check
from worker.sandbox.stripe_post import Post
from worker.sandbox.stripe_record import RING, Row
from worker.sandbox.stripe_request import Call
from worker.sandbox.stripe_settings import Settings
from worker.sandbox.stripe_store import Scope
from worker.sandbox.stripe_world import World


class SandboxCore:
    """`ring` is how many rows of the record are kept; `seed` makes latencies and troubled webhooks repeatable."""

    def __init__(self, *, seed: int = 0, ring: int = RING, **settings: Any) -> None:
        self._ring = ring
        self._seed = seed
        self._initial = Settings().changed(settings)
        self._released = asyncio.Event()
        self.post = Post()
        self._begin()

    def reset(self) -> None:
        """As if started anew, with the settings it was started with; hanging connections are let go."""
        self.world.close()
        self._begin()
        self.release()

    def _begin(self) -> None:
        self.world = World(ring=self._ring, seed=self._seed, post=self.post)
        self._dice = Random(self._seed)  # noqa: S311 - repeatable latencies, not a secret
        self._limiter = RateLimiter()
        self.settings = self._initial
        self._take_up()

    def change_settings(self, **given: Any) -> Settings:
        """Raises ValueError; nothing is changed then."""
        self.settings = self.settings.changed(given)
        self._take_up()
        return self.settings

    def release(self) -> None:
        """Let go every request that hangs (it gets no answer) or is delayed (it is carried out now)."""
        self._released.set()
        self._released = asyncio.Event()

    def seen(self, call: Call) -> Seen:
        """What faults match on: an operation on an intent, or what belongs to one, carries the order of that intent."""
        order_id = call.order_id or self.world.order_of(call.about)
        return Seen(call.method, call.path, call.idempotency_key, order_id)

    async def answer(self, call: Call, seen: Seen, row: Row, fault: Fault | None) -> Answer:
        """Carry the call out. Marks the row as it goes; never raises ApiError."""
        world, key = self.world, call.idempotency_key
        try:
            scope = self._admit(call, row)
            kept = None if key is None else world.keys.recall(scope, key, call.path, call.pairs)
            if kept is not None:
                row.replayed = True
                return kept
            params = _checked(call)
        except ApiError as error:
            return _answer_of(error)
        entry = None if key is None else world.keys.begin(scope, key, call.path, call.pairs)
        try:
            await self._wait(fault)
        except asyncio.CancelledError:
            if entry is not None:
                world.keys.forget(entry)
            raise
        at_work = world.faults.at_work(seen)
        if at_work is not None:
            row.fault = at_work.kind
        with world.events.caused_by(row.request_id, key):
            answer = self._execute(world, scope, call, params, at_work)
        if entry is not None:
            entry.answer = answer
        return answer

    def stats(self, *, per_order: bool) -> dict[str, Any]:
        """Counts of everything since the start or the last reset. `per_order` adds every order's count of intents."""
        world = self.world
        orders = {order: count for order, count in world.store.by_order.items() if count}
        shown: dict[str, Any] = {
            "requests": world.record.received,
            "in_flight": world.record.in_flight,
            "max_in_flight": world.record.max_in_flight,
            "replayed": world.record.replayed,
            "answers": dict(world.record.answers),
            "faults_fired": dict(world.faults.fired),
            "idempotency_keys": len(world.keys),
            "intents": len(world.store),
            "intents_by_status": {status: count for status, count in world.store.by_status.items() if count},
            "orders": len(orders),
            "orders_with_several_intents": {order: count for order, count in orders.items() if count > 1},
            **{resource: len(objects) for resource, objects in world.objects.items()},
            "events": len(world.events),
            "webhooks": world.webhooks.stats(),
        }
        if per_order:
            shown["intents_by_order"] = orders
        return shown

    def _take_up(self) -> None:
        settings = self.settings
        self._keys = Keys(settings.revoked_keys, settings.restricted_keys)
        if self._limiter.per_second != settings.rate_limit:
            self._limiter.refill(settings.rate_limit)
        self.world.take_up(settings)

    def _admit(self, call: Call, row: Row) -> Scope:
        """Past key, route and rate limit. Raises ApiError."""
        scope = self._keys.admit(call.headers, call.method, call.path)
        row.account = scope.account
        if call.operation is None:
            raise unrecognized_url(call.method, call.path)
        refusal = self._limiter.take(scope, call.endpoint)
        if refusal is not None:
            raise refusal
        return scope

    async def _wait(self, fault: Fault | None) -> None:
        low, high = self.settings.latency_s
        pause = low if low == high else self._dice.uniform(low, high)
        if pause > 0:
            await asyncio.sleep(pause)
        if fault is not None and fault.kind == DELAY:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(fault.delay_s):
                    await self._released.wait()

    def _execute(self, world: World, scope: Scope, call: Call, params: Params, fault: Fault | None) -> Answer:
        object_id = None
        try:
            if fault is None or fault.with_object:
                object_id, body = operate(world, self.settings, scope, call, params)
        except ApiError as error:
            if fault is None:
                return _answer_of(error)
            object_id = _intent_in(error)
        if fault is not None:
            return _answer_of(server_error())._replace(object_id=object_id)
        if "expand" in params:
            body = expanded(body, params["expand"], world.body_of)
        return Answer(200, body, None, object_id)


def _checked(call: Call) -> Params:
    """The parameters with their types. Raises ApiError, which nothing keeps."""
    if call.unreadable is not None:
        raise call.unreadable
    return check(call.operation or "", call.raw)


def _answer_of(error: ApiError) -> Answer:
    return Answer(error.status, error.body(), error.headers, _intent_in(error), error.code)


def _intent_in(error: ApiError) -> str | None:
    intent = error.error.get("payment_intent")
    return intent["id"] if intent is not None else None
