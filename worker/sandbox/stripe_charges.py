"""Charges: one for each attempt that reached the bank, following its PaymentIntent.

Sources: https://docs.stripe.com/api/charges, https://docs.stripe.com/payments/payment-intents/asynchronous-capture
(the balance transaction comes later, told by charge.updated; only capture_method=automatic has it at once),
https://docs.stripe.com/payments/place-a-hold-on-a-payment-method (how long a hold lasts).
"""

from functools import partial

from worker.sandbox.stripe_agenda import Agenda
from worker.sandbox.stripe_balance import Balance, fee_of
from worker.sandbox.stripe_objects import Objects
from worker.sandbox.stripe_store import Json, SandboxClock, Scope

HOLD_S = 7 * 24 * 3600
HOLD_OFF_SESSION_S = 4 * 24 * 3600 + 18 * 3600  # Visa, initiated by the merchant

_STATUS = {"succeeded": "succeeded", "requires_capture": "succeeded", "processing": "pending"}


def hold_s(*, off_session: bool) -> int:
    """How long the bank holds what is not captured, in seconds."""
    return HOLD_OFF_SESSION_S if off_session else HOLD_S


class Charges:
    def __init__(self, clock: SandboxClock, agenda: Agenda, charges: Objects, balance: Balance) -> None:
        self._clock = clock
        self._agenda = agenda
        self._charges = charges
        self._balance = balance
        self.settlement_lag_s: float | None = None

    def attempted(self, scope: Scope, intent: Json, payment_method: Json, *, off_session: bool = False) -> None:
        """Make the charge of the attempt that led the intent to where it is, or tell what became of a pending one."""
        charge_id = intent["latest_charge"]
        if self._charges.get(scope, charge_id) is None:
            charge = self._blank(intent, payment_method)
        else:
            charge = self._charges.load(scope, charge_id)
        status = _STATUS.get(intent["status"], "failed")
        failure = intent["last_payment_error"] or {}
        charge.update(
            status=status,
            paid=status == "succeeded",
            failure_code=failure.get("code"),
            failure_message=failure.get("message"),
            outcome=_outcome(status, failure),
        )
        if intent["status"] == "requires_capture":
            details = charge["payment_method_details"]
            details[details["type"]]["capture_before"] = charge["created"] + hold_s(off_session=off_session)
        if intent["status"] == "succeeded":
            self._take(scope, charge, intent)
        self._charges.save(scope, charge, f"charge.{status}")

    def captured(self, scope: Scope, intent: Json) -> None:
        charge = self._charges.load(scope, intent["latest_charge"])
        self._take(scope, charge, intent)
        self._charges.save(scope, charge, "charge.captured")

    def expired(self, scope: Scope, intent: Json) -> None:
        """The hold ran out. Nothing is refunded, as nothing was taken."""
        self._charges.save(scope, self._charges.load(scope, intent["latest_charge"]), "charge.expired")

    def settle(self, charge_id: str) -> Json:
        """Give the charge its balance transaction. Raises ValueError if it has one, or took no money."""
        scope, charge = self._charges.seek(charge_id)
        if not charge["captured"] or charge["balance_transaction"] is not None:
            raise ValueError(f"{charge_id} is not waiting for its balance transaction")
        self._book(scope, charge)
        self._charges.save(scope, charge, "charge.updated")
        return charge

    def _take(self, scope: Scope, charge: Json, intent: Json) -> None:
        charge["captured"] = True
        charge["amount_captured"] = intent["amount_received"]
        if intent["capture_method"] == "automatic":
            self._book(scope, charge)
        elif self.settlement_lag_s is not None:
            self._agenda.after(self.settlement_lag_s, partial(self._settle_unless_settled, charge["id"]))

    def _settle_unless_settled(self, charge_id: str) -> None:
        if self._charges.seek(charge_id)[1]["balance_transaction"] is None:
            self.settle(charge_id)

    def _book(self, scope: Scope, charge: Json) -> None:
        amount = charge["amount_captured"]
        charge["balance_transaction"] = self._balance.book(
            scope, "charge", charge["id"], amount, charge["currency"], fee=fee_of(amount)
        )

    def _blank(self, intent: Json, payment_method: Json) -> Json:
        kind = payment_method["type"]
        return {
            "id": intent["latest_charge"],
            "object": "charge",
            "amount": intent["amount"],
            "amount_captured": 0,
            "amount_refunded": 0,
            "application": None,
            "application_fee": None,
            "application_fee_amount": intent["application_fee_amount"],
            "balance_transaction": None,
            "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
            "calculated_statement_descriptor": None,
            "captured": False,
            "created": int(self._clock.now()),
            "currency": intent["currency"],
            "customer": intent["customer"],
            "description": intent["description"],
            "disputed": False,
            "failure_balance_transaction": None,
            "failure_code": None,
            "failure_message": None,
            "fraud_details": {},
            "livemode": intent["livemode"],
            "metadata": dict(intent["metadata"]),
            "on_behalf_of": intent["on_behalf_of"],
            "outcome": None,
            "paid": False,
            "payment_intent": intent["id"],
            "payment_method": payment_method["id"],
            "payment_method_details": {kind: dict(payment_method[kind]), "type": kind},
            "presentment_details": None,
            "radar_options": {},
            "receipt_email": intent["receipt_email"],
            "receipt_number": None,
            "receipt_url": None,
            "refunded": False,
            "review": None,
            "shipping": intent["shipping"],
            "source": None,
            "source_transfer": None,
            "statement_descriptor": intent["statement_descriptor"],
            "statement_descriptor_suffix": intent["statement_descriptor_suffix"],
            "status": "pending",
            "transfer_data": intent["transfer_data"],
            "transfer_group": intent["transfer_group"],
        }


def _outcome(status: str, failure: Json) -> Json:
    declined = status == "failed"
    return {
        "network_status": "declined_by_network" if declined else "approved_by_network",
        "reason": failure.get("decline_code") or failure.get("code"),
        "risk_level": "normal",
        "seller_message": failure.get("message") or "Payment complete.",
        "type": "issuer_declined" if declined else "authorized",
    }
