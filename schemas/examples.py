"""An example of each message, as it is on the wire: {type: message}."""

from collections.abc import Mapping
from typing import Any, Final

from schemas.money import in_both_units

_ORDER_ID: Final = "order-1001"
_ORDER_EVENT_ID: Final = "0b8e5f2a-6c1d-4e0b-9a57-2f1f6d3c9e10"
_PAYMENT_ID: Final = "pi_3ExampleExampleExample00"
_STRIPE_EVENT_ID: Final = "evt_3ExampleExampleExample00"
_CANCEL_ID: Final = "cancel-1001"
_CAPTURE_ID: Final = "capture-1001-1"
_REFUND_ID: Final = "refund-1001-1"
_TRACEPARENT: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

ORDER: Final[Mapping[str, Any]] = {
    "order_id": _ORDER_ID,
    "amount": "99.99",
    "currency": "usd",
    "receipt_email": "jenny.rosen@example.com",
    "metadata": {"basket": "b-77"},
}
REPLY: Final[Mapping[str, Any]] = {
    "order_id": _ORDER_ID,
    "payment_id": _PAYMENT_ID,
    "status": "requires_payment_method",
    "client_secret": f"{_PAYMENT_ID}_secret_THIS_IS_NOT_A_SECRET",
}
_FAILURE: Final[Mapping[str, Any]] = {
    "category": "declined",
    "code": "card_declined",
    "decline_code": "insufficient_funds",
    "message": "Your card has insufficient funds.",
    "may_retry": False,
}


def examples() -> dict[str, dict[str, Any]]:
    """All CloudEvents, those that come in first."""
    return {**_orders(), **_created(), **_life(), **_cancels_and_captures(), **_refunds(), **_disputes()}


def _orders() -> dict[str, dict[str, Any]]:
    return {
        "order.created": _asked("order.created", _ORDER_EVENT_ID, **ORDER),
        "order.cancelled": _asked(
            "order.cancelled",
            "5d0a3c1e-90f2-4a53-8f8e-6f1b7a2d4c11",
            order_id=_ORDER_ID,
            request_id=_CANCEL_ID,
            reason="requested_by_customer",
            refund_if_paid=True,
        ),
        "payment.capture_requested": _asked(
            "payment.capture_requested",
            "8c7b1f64-2c0e-4b7d-a3b5-0d9e5f6a7b12",
            order_id=_ORDER_ID,
            request_id=_CAPTURE_ID,
            amount="80.00",
            currency="usd",
        ),
        "refund.requested": _asked(
            "refund.requested",
            "e2f4a6b8-1d3c-4e5f-8a9b-7c6d5e4f3a13",
            order_id=_ORDER_ID,
            request_id=_REFUND_ID,
            amount="20.00",
            currency="usd",
            reason="requested_by_customer",
        ),
    }


def _created() -> dict[str, dict[str, Any]]:
    payment = {
        "order_id": _ORDER_ID,
        "payment_id": _PAYMENT_ID,
        "status": "requires_payment_method",
        **in_both_units("usd", amount=9999),
        "currency": "usd",
        "livemode": False,
        "sequence": 1,
        "cause": _ORDER_EVENT_ID,
    }
    return {
        "payment.intent_created": _told("payment.intent_created", payment),
        "payment.failed": _told("payment.failed", {**payment, "failure": _FAILURE}),
    }


def _life() -> dict[str, dict[str, Any]]:
    held = _payment("requires_capture", capturable=9999)
    ends = {"capture_before": "2026-02-07T12:05:00Z"}
    settled = {
        **in_both_units("eur", fee=320, net=8880),
        "settlement_currency": "eur",
        "balance_transaction_id": "txn_3ExampleExampleExample00",
        "exchange_rate": "0.92009",
    }
    return _each(
        {
            "payment.requires_action": {**_payment("requires_action"), "next_action": "use_stripe_sdk"},
            "payment.processing": _payment("processing"),
            "payment.authorized": {**held, **ends},
            "payment.authorization_expiring": {**held, "sequence": 3, **ends},
            "payment.succeeded": _payment("succeeded", received=9999),
            "payment.attempt_failed": {**_payment("requires_payment_method"), "failure": _FAILURE},
            "payment.settled": {**_payment("succeeded", sequence=3, received=9999), **settled},
        }
    )


def _cancels_and_captures() -> dict[str, dict[str, Any]]:
    canceled = {"reason": "requested_by_customer", "request_id": _CANCEL_ID}
    captured = {"request_id": _CAPTURE_ID, **in_both_units("usd", captured=8000)}
    too_late = {"code": "already_paid", "message": "The order is paid; ask for a refund instead."}
    too_early = {"code": "nothing_to_capture", "message": "Nothing is authorized yet."}
    return _each(
        {
            "payment.canceled": {**_payment("canceled", cause=_CANCEL_ID), **canceled},
            "payment.cancel_failed": {
                **_payment("succeeded", sequence=3, cause=_CANCEL_ID, received=9999),
                "request_id": _CANCEL_ID,
                "failure": too_late,
            },
            "payment.captured": {**_payment("succeeded", sequence=3, cause=_CAPTURE_ID, received=8000), **captured},
            "payment.capture_failed": {
                **_payment("requires_payment_method", cause=_CAPTURE_ID),
                "request_id": _CAPTURE_ID,
                "failure": too_early,
            },
        }
    )


def _refunds() -> dict[str, dict[str, Any]]:
    refund = {
        "refund_id": "re_3ExampleExampleExample00",
        "request_id": _REFUND_ID,
        **in_both_units("usd", amount=2000),
        "status": "succeeded",
        "reason": "requested_by_customer",
    }
    too_much = {"code": "over_refund", "message": "120.00 usd is more than the 99.99 usd that are left."}
    return _each(
        {
            "payment.refunded": {
                **_payment("succeeded", sequence=3, cause=_REFUND_ID, received=9999, refunded=2000),
                "refund": refund,
                "fully_refunded": False,
            },
            "payment.refund_failed": {
                **_payment("succeeded", sequence=4, received=9999),
                "refund": {**refund, "status": "failed"},
                "failure_reason": "expired_or_canceled_card",
            },
            "refund.failed": {
                **_payment("succeeded", sequence=3, cause=_REFUND_ID, received=9999),
                "request_id": _REFUND_ID,
                "failure": too_much,
                **in_both_units("usd", amount_refundable=9999),
            },
        }
    )


def _disputes() -> dict[str, dict[str, Any]]:
    dispute = {
        "dispute_id": "du_1ExampleExampleExample00",
        **in_both_units("usd", amount=9999),
        "currency": "usd",
        "reason": "product_not_received",
    }
    opened = {**dispute, "status": "needs_response", "evidence_due_by": "2026-02-20T23:59:59Z"}
    return _each(
        {
            "payment.dispute_opened": {
                **_payment("succeeded", sequence=3, received=9999, disputed=9999),
                "dispute": opened,
            },
            "payment.dispute_closed": {
                **_payment("succeeded", sequence=4, received=9999),
                "dispute": {**dispute, "status": "won"},
            },
        }
    )


def _payment(
    status: str,
    *,
    sequence: int = 2,
    cause: str = _STRIPE_EVENT_ID,
    capturable: int = 0,
    received: int = 0,
    refunded: int = 0,
    disputed: int = 0,
) -> dict[str, Any]:
    return {
        "order_id": _ORDER_ID,
        "payment_id": _PAYMENT_ID,
        "status": status,
        **in_both_units("usd", amount=9999),
        "currency": "usd",
        "livemode": False,
        "sequence": sequence,
        "cause": cause,
        **in_both_units(
            "usd",
            amount_capturable=capturable,
            amount_received=received,
            amount_refunded=refunded,
            amount_disputed=disputed,
        ),
    }


def _each(told: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {kind: _told(kind, data) for kind, data in told.items()}


def _told(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """An event of the worker's own."""
    return _envelope(
        kind,
        id=f"{_ORDER_ID}/payment/{data['sequence']}",
        source="payment-worker",
        subject=_ORDER_ID,
        time="2026-01-31T12:00:01Z",
        data=data,
    )


def _asked(kind: str, event_id: str, **data: Any) -> dict[str, Any]:
    """An event of an order service's."""
    return _envelope(kind, id=event_id, source="shop/orders", time="2026-01-31T12:00:00Z", data=data)


def _envelope(kind: str, *, data: Mapping[str, Any], **attributes: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": kind,
        **attributes,
        "datacontenttype": "application/json",
        "traceparent": _TRACEPARENT,
        "data": data,
    }
