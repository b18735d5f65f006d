"""The sandbox without its HTTP server: what it holds, how it can be set, and how it answers one call.

A call passes, in this order: key and account (401, 403), route (404), rate limit (429), idempotency layer, parameter
validation (400), latency, the endpoint. Only what the endpoint itself answers is kept under the idempotency key: 200,
402, the 400s and 404s about objects, states, amount limits and unknown payment methods, and the 500s of the plan.
Source: https://docs.stripe.com/error-low-level, which puts limiters and validation before the idempotent part.
"""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Any

from worker.sandbox.stripe_attempt import charge_of
from worker.sandbox.stripe_errors import ApiError, server_error, unrecognized_url
from worker.sandbox.stripe_faults import DELAY, Fault, FaultPlan, Seen
from worker.sandbox.stripe_gate import Keys, RateLimiter
from worker.sandbox.stripe_idempotency import KEY_LIFE_S, Answer, IdempotencyKeys
from worker.sandbox.stripe_intents import PaymentIntents
from worker.sandbox.stripe_params import Params, check
from worker.sandbox.stripe_queries import list_intents, search_intents
from worker.sandbox.stripe_record import RING, Record, Row
from worker.sandbox.stripe_request import Call
from worker.sandbox.stripe_store import IntentStore, SandboxClock, Scope, as_json


@dataclass(frozen=True, slots=True)
class Settings:
    """What may be changed while it runs. Times in seconds of the sandbox clock, except latency: real seconds."""

    latency_s: tuple[float, float] = (0.0, 0.0)
    rate_limit: float = 0.0  # requests a second per endpoint; 0 is none, Stripe's default is 25
    key_life_s: float = KEY_LIFE_S
    search_lag_s: float = 0.0
    revoked_keys: frozenset[str] = frozenset()
    restricted_keys: dict[str, list[str]] = field(default_factory=dict)

    def changed(self, given: dict[str, Any]) -> "Settings":
        """Raises ValueError for an unknown name or a value of no use."""
        known = {item.name for item in fields(self)}
        if not given.keys() <= known:
            raise ValueError(f"unknown settings {sorted(given.keys() - known)}: there are {sorted(known)}")
        new = dict(given)
        if "latency_s" in new:
            latency = new["latency_s"]
            low, high = latency if isinstance(latency, list | tuple) else (latency, latency)
            new["latency_s"] = (float(low), float(high))
            if not 0 <= float(low) <= float(high):
                raise ValueError("latency_s is a number of seconds, or a range [from, to]")
        for name in ("rate_limit", "key_life_s", "search_lag_s"):
            if name in new and not (isinstance(new[name], int | float) and new[name] >= 0):
                raise ValueError(f"{name} must be a number not below 0")
        if "revoked_keys" in new:
            new["revoked_keys"] = frozenset(new["revoked_keys"])
        return replace(self, **new)


class World:
    """All that a reset throws away. A request in flight across a reset ends in the world it began in."""

    def __init__(self, ring: int) -> None:
        self.clock = SandboxClock()
        self.store = IntentStore(self.clock)
        self.intents = PaymentIntents(self.store, self.clock)
        self.keys = IdempotencyKeys(self.clock.now)
        self.record = Record(ring)
        self.faults = FaultPlan()


class SandboxCore:
    """`ring` is how many rows of the record are kept; `seed` makes the spread of latencies repeatable."""

    def __init__(self, *, seed: int = 0, ring: int = RING, **settings: Any) -> None:
        self._ring = ring
        self._seed = seed
        self._initial = Settings().changed(settings)
        self._released = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        """As if started anew, with the settings it was started with; hanging connections are let go."""
        self.world = World(self._ring)
        self._dice = Random(self._seed)  # noqa: S311 - repeatable latencies, not a secret
        self._limiter = RateLimiter()
        self.settings = self._initial
        self._take_up()
        self.release()

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
        """What faults match on: an operation on an intent carries the order of that intent."""
        order_id = call.order_id
        if order_id is None and call.intent_id is not None:
            kept = self.world.store.find(call.intent_id)
            order_id = kept.order_id if kept is not None else None
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
        }
        if per_order:
            shown["intents_by_order"] = orders
        return shown

    def _take_up(self) -> None:
        settings = self.settings
        self._keys = Keys(settings.revoked_keys, settings.restricted_keys)
        if self._limiter.per_second != settings.rate_limit:
            self._limiter.refill(settings.rate_limit)
        self.world.keys.life_s = settings.key_life_s

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
                object_id, body = self._operate(world, scope, call, params)
        except ApiError as error:
            if fault is None:
                return _answer_of(error)
            object_id = _intent_in(error)
        if fault is not None:
            return _answer_of(server_error())._replace(object_id=object_id)
        if "expand" in params:
            body = _with_charges(json.loads(body))
        return Answer(200, body, None, object_id)

    def _operate(self, world: World, scope: Scope, call: Call, params: Params) -> tuple[str | None, bytes]:
        """The endpoint itself. Raises ApiError."""
        if call.operation == "list":
            return None, list_intents(world.store, scope, params)
        if call.operation == "search":
            lag_s = self.settings.search_lag_s
            return None, search_intents(world.store, world.clock, scope, params, lag_s=lag_s)
        intents = world.intents
        if call.operation == "create":
            return intents.create(scope, params)
        intent_id = call.intent_id or ""
        if call.operation == "retrieve":
            return intents.retrieve(scope, intent_id)
        change = {
            "update": intents.update,
            "confirm": intents.confirm,
            "capture": intents.capture,
            "cancel": intents.cancel,
        }[call.operation or ""]
        return change(scope, intent_id, params)


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


def _with_charges(answer: dict[str, Any]) -> bytes:
    """https://docs.stripe.com/api/expanding_objects, for the one property that can be expanded here."""
    for intent in answer.get("data", [answer]):
        intent["latest_charge"] = charge_of(intent)
    return as_json(answer)
