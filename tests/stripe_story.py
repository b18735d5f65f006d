"""A payment's life as Stripe tells it, event by event, for tests: what comes first is what really happened first."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

BEGAN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
API_VERSION = "2026-10-28.endive"


@dataclass
class Story:
    """Writes snapshot events of one payment, in their order. later: seconds until the next one's time."""

    order_id: str = "o-1"
    payment_id: str = "pi_1"
    amount: int = 1250
    currency: str = "usd"
    livemode: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    now: datetime = BEGAN
    intent: dict[str, Any] = field(init=False)
    charges: int = 0

    def __post_init__(self) -> None:
        self.intent = {
            "id": self.payment_id,
            "object": "payment_intent",
            "amount": self.amount,
            "currency": self.currency,
            "amount_capturable": 0,
            "amount_received": 0,
            "status": "requires_payment_method",
            "client_secret": f"{self.payment_id}_secret_x",
            "latest_charge": None,
            "metadata": {"order_id": self.order_id},
            "last_payment_error": None,
            "next_action": None,
        }
        self.tell("payment_intent.created", self.intent)

    def tell(self, kind: str, thing: Mapping[str, Any]) -> None:
        number = len(self.events) + 1
        self.events.append(
            {
                "id": f"evt_{self.payment_id}_{number}",
                "object": "event",
                "type": kind,
                "created": int(self.now.timestamp()),
                "livemode": self.livemode,
                "api_version": API_VERSION,
                "request": {"id": f"req_{number}", "idempotency_key": None},
                "data": {"object": dict(thing)},
            }
        )

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def change(self, kind: str, status: str, **changed: Any) -> None:
        self.intent |= {"status": status, **changed}
        self.tell(kind, self.intent)

    def new_charge(self) -> str:
        self.charges += 1
        return f"ch_{self.payment_id}_{self.charges}"

    def declined(self) -> None:
        charge = self.new_charge()
        error = {"code": "card_declined", "decline_code": "insufficient_funds", "charge": charge, "message": "No."}
        self.change(
            "payment_intent.payment_failed",
            "requires_payment_method",
            latest_charge=charge,
            last_payment_error=error,
            next_action=None,
        )

    def asked_for_action(self) -> None:
        self.change(
            "payment_intent.requires_action",
            "requires_action",
            next_action={"type": "redirect_to_url"},
            last_payment_error=None,
        )

    def processing(self) -> None:
        charge = self.new_charge()
        self.change("payment_intent.processing", "processing", latest_charge=charge, next_action=None)

    def authorized(self) -> None:
        charge = self.new_charge()
        self.tell("charge.succeeded", self.charge(charge, captured=False))
        self.change(
            "payment_intent.amount_capturable_updated",
            "requires_capture",
            latest_charge=charge,
            amount_capturable=self.amount,
            next_action=None,
        )

    def paid(self, received: int | None = None) -> None:
        charge = self.intent["latest_charge"] or self.new_charge()
        self.tell("charge.succeeded", self.charge(charge))
        self.change(
            "payment_intent.succeeded",
            "succeeded",
            latest_charge=charge,
            amount_received=self.amount if received is None else received,
            amount_capturable=0,
            next_action=None,
            last_payment_error=None,
        )

    def canceled(self, reason: str = "requested_by_customer") -> None:
        self.change("payment_intent.canceled", "canceled", cancellation_reason=reason, amount_capturable=0)

    def charge(self, charge_id: str, **changed: Any) -> dict[str, Any]:
        return {
            "id": charge_id,
            "object": "charge",
            "status": "succeeded",
            "captured": True,
            "payment_intent": self.payment_id,
            "balance_transaction": None,
            "metadata": {"order_id": self.order_id},
            "payment_method_details": {"card": {"capture_before": int(self.now.timestamp()) + 7 * 86_400}},
            **changed,
        }

    def refunded(self, refund_id: str, amount: int, status: str = "succeeded", **changed: Any) -> dict[str, Any]:
        refund = {
            "id": refund_id,
            "object": "refund",
            "amount": amount,
            "currency": self.currency,
            "status": status,
            "created": int(self.now.timestamp()),
            "payment_intent": self.payment_id,
            "charge": self.intent["latest_charge"],
            "metadata": {},
            **changed,
        }
        self.tell("refund.created", refund)
        return refund

    def disputed(self, dispute_id: str = "dp_1", *, status: str = "needs_response") -> dict[str, Any]:
        dispute = {
            "id": dispute_id,
            "object": "dispute",
            "amount": self.amount,
            "currency": self.currency,
            "status": status,
            "reason": "fraudulent",
            "created": int(self.now.timestamp()),
            "payment_intent": self.payment_id,
            "charge": self.intent["latest_charge"],
            "evidence_details": {"due_by": int(self.now.timestamp()) + 86_400},
        }
        self.tell("charge.dispute.created", dispute)
        return dispute


def signed(body: bytes, *secrets: str, at: int) -> str:
    """The header that Stripe sends with a body, signed with each of the secrets."""
    signatures = (hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest() for secret in secrets)
    return ",".join([f"t={at}", *(f"v1={signature}" for signature in signatures)])
