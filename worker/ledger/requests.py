"""What was asked of payments under way, in the ledger: each request once for ever, its call, and its end.

The functions run inside one transaction, as those of moves.py do.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from schemas import in_both_units
from worker.errors import StaleMove
from worker.ledger import lives, moves
from worker.ledger.moves import insert_if_absent
from worker.ledger.schema import OPERATIONS, PAYMENTS, REQUESTS
from worker.payment import Operation, OperationState, Payment, PaymentEvent, PaymentState
from worker.payment_command import (
    AlreadySo,
    CommandKind,
    Reconsider,
    Refused,
    Request,
    RequestState,
    ToAsk,
    call_name,
    decide,
    is_call_of,
    is_done,
    refundable_minor,
)
from worker.payment_life import Life, Telling, telling_id
from worker.stripe_event import StripeEvent

# A call whose key is too old is followed by another attempt once nothing of it can be on its way any more.
SETTLES: Final = timedelta(minutes=5)
# For what Stripe repairs by itself moments after an error that it keeps.
STORED_SETTLES: Final = timedelta(seconds=5)
MOST_KEY_CHARS: Final = 64
_OPEN: Final = (OperationState.STARTED, OperationState.UNKNOWN)


class OtherRequest(Exception):
    """The request id was used for something else before."""


class AnotherRefund(StaleMove):
    """Another refund is on its way, and what it leaves is not known yet."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A request as it stands, and its payment, if there is one."""

    state: RequestState
    payment: Payment | None
    told: Sequence[PaymentEvent]


# A payment's row that is never kept.
_UNOPENED: Final = {"state": PaymentState.OPEN, "amount_minor": 1, "currency": "xxx", "sequence": 0}


def keep(conn: Connection, request: Request, *, now: datetime) -> Kept:
    """Write the request down, if it is new. Raises OtherRequest."""
    payment = moves.read_payment(conn, request.order_id)
    is_early = payment is None and request.kind is CommandKind.CANCEL
    asked = json.dumps(dict(request.asked), sort_keys=True)
    row = {
        "order_id": request.order_id,
        "request_id": request.request_id,
        "kind": request.kind,
        "asked": asked,
        "state": RequestState.REMEMBERED if is_early else RequestState.OPEN,
        "told": "[]",
        "cause": request.cause,
        "correlation_id": request.correlation_id,
        "traceparent": request.traceparent,
        "made_at": now,
        "moved_at": now,
    }
    if payment is None and not is_early:
        return Kept(RequestState.OPEN, None, [])
    insert_if_absent(conn, REQUESTS, row)
    found = conn.execute(sa.select(REQUESTS).where(_is(request))).one()
    if (found.kind, found.asked) != (request.kind, asked):
        raise OtherRequest(f"request {request.request_id} was a {found.kind} before: {found.asked}; now {asked}")
    ids = json.loads(found.told)
    if found.state == RequestState.REMEMBERED and moves.operations_of(conn, request.order_id):
        # Its order has come and was asked for: it is as any other from here on.
        conn.execute(sa.update(REQUESTS).where(_is(request)).values(state=RequestState.OPEN))
        return Kept(RequestState.OPEN, payment, [])
    events = [event for event in moves.events_of(conn, request.order_id) if event.event_id in ids]
    return Kept(RequestState(found.state), payment, events)


def keep_after_opening(conn: Connection, request: Request, *, now: datetime) -> Kept:
    """As keep, once whoever is opening the order's payment in this moment has committed it, or given it up.

    On PostgreSQL an opening under way may have looked for a cancel before there was this one, and is not seen from here
    before its commit; trying to open the payment too waits for that. SQLite has one writer at a time.
    """
    if conn.dialect.name == "postgresql":
        trying = conn.begin_nested()
        insert_if_absent(conn, PAYMENTS, _UNOPENED | {"order_id": request.order_id, "opened_at": now, "moved_at": now})
        trying.rollback()
    return keep(conn, request, now=now)


def begin(
    conn: Connection,
    request: Request,
    seen: Sequence[StripeEvent],
    *,
    livemode: bool,
    key_horizon_s: float,
    source: str,
    now: datetime,
) -> tuple[Operation | None, Sequence[PaymentEvent]]:
    """Take in what Stripe shows of the payment, and decide: the call to make, None for none; and what is newly told.

    The key and the parameters are those frozen when the call was first made. Raises StaleMove for one whose key is too
    old while it may still be on its way, AnotherRefund while that may leave enough or not.
    """
    before = lives.read_life(conn, request.order_id, lock=True)
    if before is None:
        raise StaleMove(f"{request.order_id} has no payment")
    life, told = lives.take_in(conn, before, seen, source=source, now=now)
    if _state(conn, request) is not RequestState.OPEN:
        return None, told
    answer = _decided(conn, request, life, seen, key_horizon_s=key_horizon_s, now=now)
    if isinstance(answer, ToAsk):
        return _call(conn, request, answer, livemode=livemode, key_horizon_s=key_horizon_s, now=now), told
    events = _end(conn, request, life, answer, source=source, now=now)
    return None, [*told, *events]


def _decided(
    conn: Connection,
    request: Request,
    life: Life,
    seen: Sequence[StripeEvent],
    *,
    key_horizon_s: float,
    now: datetime,
) -> ToAsk | AlreadySo | Refused:
    """What is to be done, where our own earlier call may be what made the payment as it is."""
    if is_done(request, seen):
        return AlreadySo()
    promised = _promised_minor(conn, request, life)
    answer = decide(request, life, promised_minor=promised)
    started = [each for each in _calls(conn, request) if each.state in _OPEN]
    if not started:
        if isinstance(answer, Refused) and promised and not isinstance(decide(request, life), Refused):
            raise AnotherRefund("another refund is on its way, and what it leaves is not known")
        return answer
    if isinstance(answer, Refused):
        if not _is_spent(started[-1], key_horizon_s=key_horizon_s, now=now):
            return ToAsk(started[-1].params)  # its key brings what it came to
        _require_settled(started[-1], now=now)
    return answer


def finish(
    conn: Connection,
    request: Request,
    outcome: Refused | AlreadySo | Reconsider,
    seen: Sequence[StripeEvent],
    *,
    asked_as: str | None = None,
    source: str,
    now: datetime,
) -> Sequence[PaymentEvent]:
    """Stripe has answered: its effect, the request's end and what is told, all or nothing.

    asked_as: Stripe's id of the HTTP request, which is kept beside the call.
    """
    before = lives.read_life(conn, request.order_id, lock=True)
    if before is None:
        return []
    life, told = lives.take_in(conn, before, seen, answers=request, source=source, now=now)
    if isinstance(outcome, Reconsider):
        _close_calls(conn, request, OperationState.REFUSED, {"code": outcome.code}, asked_as=asked_as, now=now)
        return told
    if _state(conn, request) is not RequestState.OPEN:
        return told
    return [*told, *_end(conn, request, life, outcome, asked_as=asked_as, source=source, now=now)]


def note_unknown(conn: Connection, operation: Operation, *, because: str, now: datetime) -> None:
    """Asking again under this key cannot tell any more, which is known from now on."""
    _change_call(
        conn,
        operation,
        state=OperationState.UNKNOWN,
        unknown_because=because,
        asks=moves.times_json((*operation.asks, now)),
        last_asked_at=now,
    )


def idle(conn: Connection, *, before: datetime, limit: int) -> Sequence[Request]:
    """Requests that are open and that nobody has worked on since `before`, longest first."""
    rows = conn.execute(
        sa.select(REQUESTS)
        .where(REQUESTS.c.state == RequestState.OPEN, REQUESTS.c.moved_at < before)
        .order_by(REQUESTS.c.moved_at)
        .limit(limit)
    ).all()
    return [request_in(row) for row in rows]


def touch(conn: Connection, request: Request, *, now: datetime) -> None:
    """Somebody works on it."""
    conn.execute(sa.update(REQUESTS).where(_is(request)).values(moved_at=now))


def request_in(row: Row[Any]) -> Request:
    """Of a row with the columns of REQUESTS."""
    return Request(
        row.order_id,
        row.request_id,
        CommandKind(row.kind),
        json.loads(row.asked),
        row.cause,
        row.correlation_id,
        row.traceparent,
    )


def cancel_unasked(conn: Connection, order_id: str, *, livemode: bool, source: str, now: datetime) -> PaymentEvent:
    """End a payment whose cancel came before its order; Stripe is not asked. Raises StaleMove where it has moved."""
    life = lives.read_life(conn, order_id, lock=True)
    row = conn.execute(
        sa.select(REQUESTS).where(REQUESTS.c.order_id == order_id, moves.IS_CANCEL_TO_COME).order_by(REQUESTS.c.made_at)
    ).first()
    if row is None or life is None or life.payment.is_decided or moves.operations_of(conn, order_id):
        raise StaleMove(f"{order_id} has moved meanwhile")
    payment = replace(life.payment, state=PaymentState.FAILED, status="canceled", livemode=livemode)
    telling = Telling("payment.canceled", "", now, {"request_id": row.request_id})
    life, [event] = lives.tell(conn, replace(life, payment=payment), [telling], cause=row.cause, source=source, now=now)
    lives.save_status(conn, life, now=now, state=PaymentState.FAILED, livemode=livemode)
    conn.execute(
        sa.update(REQUESTS)
        .where(REQUESTS.c.order_id == order_id, moves.IS_CANCEL_TO_COME)
        .values(state=RequestState.DONE, told=json.dumps([event.event_id]), moved_at=now)
    )
    return event


def _end(
    conn: Connection,
    request: Request,
    life: Life,
    outcome: Refused | AlreadySo,
    *,
    asked_as: str | None = None,
    source: str,
    now: datetime,
) -> list[PaymentEvent]:
    is_refused = isinstance(outcome, Refused)
    if isinstance(outcome, Refused):
        tellings = [_refusal(request, life, outcome, now, promised_minor=_promised_minor(conn, request, life))]
    else:
        tellings = _done(request, life, now)
    life, told = lives.tell(
        conn, life, tellings, cause=request.cause, source=source, now=now, correlation_id=request.correlation_id
    )
    lives.save_status(conn, life, now=now)
    ended = OperationState.REFUSED if is_refused else OperationState.ANSWERED
    evidence = {"code": outcome.code} if isinstance(outcome, Refused) else {}
    _close_calls(conn, request, ended, evidence, asked_as=asked_as, now=now)
    ids = [telling_id(request.order_id, telling) for telling in tellings]
    known = [each for each in moves.events_of(conn, request.order_id) if each.event_id in ids]
    conn.execute(
        sa.update(REQUESTS)
        .where(_is(request))
        .values(
            state=RequestState.REFUSED if is_refused else RequestState.DONE,
            told=json.dumps([each.event_id for each in known]),
            moved_at=now,
        )
    )
    return [*told, *(each for each in known if each not in told)]


def _key(request: Request) -> str:
    """Of what answers a request: its id, or a short name for one that is too long for an event's id."""
    is_long = len(request.request_id) > MOST_KEY_CHARS
    return hashlib.sha256(request.request_id.encode()).hexdigest()[:32] if is_long else request.request_id


def _done(request: Request, life: Life, now: datetime) -> list[Telling]:
    """What answers a request that is carried out; a refund is told with its own fact."""
    if request.kind is CommandKind.CAPTURE:
        captured = life.received_minor
        data = {
            "request_id": request.request_id,
            **in_both_units(life.payment.currency, captured=captured),
        }
        return [Telling("payment.captured", _key(request), now, data)]
    refunds = [each for each in life.refunds.values() if each.request_id == request.request_id]
    if refunds:
        return [Telling("payment.refunded", each.refund_id, now) for each in refunds if each.status == "succeeded"]
    return [Telling("payment.canceled", "", now)] if request.kind is CommandKind.CANCEL else []


def _refusal(request: Request, life: Life, refused: Refused, now: datetime, *, promised_minor: int) -> Telling:
    data: dict[str, Any] = {
        "request_id": request.request_id,
        "failure": {"code": refused.code, "message": refused.message},
    }
    if request.kind is CommandKind.REFUND:
        # What a bank withholds is not ours to give back, and Stripe refuses it.
        left = max(0, refundable_minor(life, promised_minor) - life.disputed_minor)
        data |= in_both_units(life.payment.currency, amount_refundable=left)
    kind = {
        CommandKind.CANCEL: "payment.cancel_failed",
        CommandKind.CAPTURE: "payment.capture_failed",
        CommandKind.REFUND: "refund.failed",
    }[request.kind]
    return Telling(kind, _key(request), now, data)


def _call(
    conn: Connection, request: Request, asked: ToAsk, *, livemode: bool, key_horizon_s: float, now: datetime
) -> Operation:
    """The call to make, frozen; under another key where the last one's is too old and has come to nothing."""
    name = call_name(request, asked)
    of_it = [each for each in _calls(conn, request) if each.kind == name]
    newest = of_it[-1] if of_it else None
    if newest and _is_spent(newest, key_horizon_s=key_horizon_s, now=now):
        _require_settled(newest, now=now)
        # Stripe was asked just now and shows nothing of it: refunds are listed, and an intent shows what it is.
        _change_call(conn, newest, state=OperationState.ABSENT, answered_at=now, evidence='{"absent": "as listed"}')
    elif newest:
        _change_call(conn, newest, asks=moves.times_json((*newest.asks, now)), last_asked_at=now)
        return replace(newest, asks=(*newest.asks, now))
    return moves.freeze_call(
        conn,
        order_id=request.order_id,
        kind=name,
        attempt=newest.attempt + 1 if newest else 1,
        params=asked.params,
        stripe_account=moves.account_of(conn, request.order_id),
        livemode=livemode,
        now=now,
    )


def _is_spent(operation: Operation, *, key_horizon_s: float, now: datetime) -> bool:
    """Whether its key tells nothing any more: too old, or answered with an error that Stripe keeps."""
    is_old = now - operation.first_asked_at > timedelta(seconds=key_horizon_s)
    return is_old or operation.state is OperationState.UNKNOWN


def _require_settled(operation: Operation, *, now: datetime) -> None:
    settles = STORED_SETTLES if operation.unknown_because == "stored_error" else SETTLES
    if now - max(operation.asks) < settles:
        raise StaleMove("its key tells nothing any more, and it may still be on its way")


def _close_calls(
    conn: Connection,
    request: Request,
    state: OperationState,
    evidence: Mapping[str, str],
    *,
    asked_as: str | None,
    now: datetime,
) -> None:
    """What was asked for this request has its answer."""
    for each in _calls(conn, request):
        if each.state in _OPEN:
            told = json.dumps(dict(evidence))
            _change_call(conn, each, state=state, answered_at=now, evidence=told, request_id=asked_as)


def _change_call(conn: Connection, operation: Operation, **values: object) -> None:
    conn.execute(
        sa.update(OPERATIONS)
        .where(
            OPERATIONS.c.order_id == operation.order_id,
            OPERATIONS.c.kind == operation.kind,
            OPERATIONS.c.attempt == operation.attempt,
        )
        .values(**values)
    )


def _calls(conn: Connection, request: Request) -> Sequence[Operation]:
    """What was asked of Stripe for this request, oldest first."""
    return [each for each in moves.operations_of(conn, request.order_id) if is_call_of(each.kind, request)]


def _state(conn: Connection, request: Request) -> RequestState:
    return RequestState(conn.execute(sa.select(REQUESTS.c.state).where(_is(request))).scalar_one())


def _promised_minor(conn: Connection, request: Request, life: Life) -> int:
    """Of refunds that other requests have asked of Stripe, and that are not known to be there or refused."""
    known = {refund.request_id for refund in life.refunds.values()}
    return sum(
        int(each.params.get("amount", 0))
        for each in moves.operations_of(conn, request.order_id)
        if each.state in _OPEN
        and not is_call_of(each.kind, request)
        and each.params.get("metadata", {}).get("request_id") not in (None, *known)
        and "payment_intent" in each.params
    )


def _is(request: Request) -> sa.ColumnElement[bool]:
    return sa.and_(REQUESTS.c.order_id == request.order_id, REQUESTS.c.request_id == request.request_id)
