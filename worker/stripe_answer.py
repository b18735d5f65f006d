"""Stripe's answers, plain JSON, as what this worker keeps of them. Pure.

An answer that is not what was asked for, some proxy's perhaps, is CallUnknown: Stripe may have done it all the same.
Sources: https://docs.stripe.com/api/payment_intents/object, https://docs.stripe.com/api/balance_transactions/object,
https://docs.stripe.com/api/pagination.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from worker.client_secret import ClientSecret
from worker.errors import CallUnknown, Refusal
from worker.payment import Intent
from worker.payment_life import Settlement

Now = TypeVar("Now", datetime, None)


@dataclass(frozen=True, slots=True, repr=False)
class StripeAnswer:
    """An object as Stripe answered it, secret and all: it is not to be printed. headers: in any case of letters."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def request_id(self) -> str | None:
        """Stripe's own id of the request, which its support asks for."""
        return self.headers.get("Request-Id")

    def said_at(self, now: Now) -> datetime | Now:
        """By Stripe's own clock, which its events are stamped by; now where the answer does not say."""
        try:
            moment = parsedate_to_datetime(self.headers["Date"])
        except (KeyError, TypeError, ValueError):
            return now
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def read_body(body: bytes) -> Mapping[str, Any]:
    """The JSON object of a successful answer. Raises CallUnknown, which says nothing of what stood there."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _strange("JSON object")
    return value


def read_intent(body: Mapping[str, Any], request_id: str | None = None) -> Intent:
    """Raises CallUnknown for what is no PaymentIntent."""
    match body:
        case {
            "id": str(payment_id),
            "status": str(status),
            "amount": int(amount),
            "currency": str(currency),
            "livemode": bool(livemode),
            "metadata": dict(metadata),
        } if type(amount) is int:  # and no bool
            return Intent(
                payment_id=payment_id,
                status=status,
                amount_minor=amount,
                currency=currency,
                livemode=livemode,
                order_id=metadata.get("order_id"),
                request_id=request_id,
                declined=_declined(body),
            )
        case _:
            raise _strange("PaymentIntent")


def read_secret(body: Mapping[str, Any]) -> ClientSecret | None:
    """What the customer's browser pays an intent with; None where the key may not see it."""
    secret = body.get("client_secret")
    return ClientSecret(secret) if isinstance(secret, str) else None


def read_settlement(body: Mapping[str, Any]) -> Settlement:
    """Fee and net. Raises CallUnknown for what is no balance transaction."""
    match body:
        case {
            "id": str(transaction_id),
            "fee": int(fee),
            "net": int(net),
            "currency": str(currency),
            **rest,
        } if type(fee) is int and type(net) is int:
            return Settlement(
                balance_transaction_id=transaction_id,
                fee_minor=fee,
                net_minor=net,
                currency=currency,
                exchange_rate=_rate(rest.get("exchange_rate")),
            )
        case _:
            raise _strange("balance transaction")


def read_page(body: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """The objects of a page, and where the next one starts, None after the last. Raises CallUnknown."""
    match body:
        case {"data": list(found)} if all(isinstance(each, dict) and isinstance(each.get("id"), str) for each in found):
            return found, found[-1]["id"] if found and body.get("has_more") else None
        case _:
            raise _strange("list")


def _strange(wanted: str) -> CallUnknown:
    return CallUnknown(f"the answer is no {wanted}", reason="strange_answer")


def _rate(value: object) -> str | None:
    """In plain digits, however small: 0.000092 and not 9.2e-05."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise _strange("balance transaction")
    return f"{Decimal(str(value)):f}"


def _declined(intent: Mapping[str, Any]) -> Refusal | None:
    """What the intent's last confirmation was refused with, as the call that asked for it would have been told."""
    error = intent.get("last_payment_error")
    if not isinstance(error, dict) or intent["status"] != "requires_payment_method":
        return None
    return Refusal(
        http_status=402,
        code=error.get("code"),
        decline_code=error.get("decline_code"),
        advice_code=error.get("advice_code"),
        message=str(error.get("message") or "")[:500],
        payment_id=intent["id"],
        payment_status=intent["status"],
        livemode=intent["livemode"],
    )
