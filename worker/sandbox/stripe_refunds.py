"""Refunds: money given back, in one or several parts, and what may become of them later.

Sources: https://docs.stripe.com/api/refunds/create, https://docs.stripe.com/refunds (refunds that fail),
https://docs.stripe.com/error-codes. Stripe does not publish which code an amount above the rest gets:
`amount_too_large`, as for a capture, is a guess. What is said about Connect and about customers' balances is taken
without effect.
"""

import json
from functools import partial

from worker.sandbox.stripe_agenda import Agenda
from worker.sandbox.stripe_balance import Balance
from worker.sandbox.stripe_cards import FAILS_LATER, SUCCEEDS, Method
from worker.sandbox.stripe_disputes import Disputes
from worker.sandbox.stripe_errors import invalid, missing
from worker.sandbox.stripe_methods import PaymentMethods
from worker.sandbox.stripe_money import check_unit
from worker.sandbox.stripe_objects import Objects
from worker.sandbox.stripe_params import Params, merged_metadata
from worker.sandbox.stripe_store import IntentStore, Json, SandboxClock, Scope, new_id

FAILURES = (
    "lost_or_stolen_card", "expired_or_canceled_card", "charge_for_pending_refund_disputed", "insufficient_funds",
    "declined", "merchant_request", "unknown",
)  # fmt: skip


class Refunds:
    def __init__(
        self,
        clock: SandboxClock,
        agenda: Agenda,
        *,
        intents: IntentStore,
        charges: Objects,
        refunds: Objects,
        methods: PaymentMethods,
        balance: Balance,
        disputes: Disputes,
    ) -> None:
        self._clock = clock
        self._agenda = agenda
        self._intents = intents
        self._charges = charges
        self._refunds = refunds
        self._methods = methods
        self._balance = balance
        self._disputes = disputes
        self.lag_s: float | None = None

    def create(self, scope: Scope, params: Params) -> tuple[str, bytes]:
        """The new refund's id and JSON. Raises ApiError; nothing is changed then."""
        charge = self._charge_to_refund(scope, params)
        amount = _amount(charge, params)
        method = self._methods.behaviour(scope, charge["payment_method"])
        refund = self._blank(scope, charge, amount, method, params)
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount_captured"]
        self._charges.save(scope, charge, "charge.refunded")
        body = self._refunds.save(scope, refund, "refund.created")
        if method.refund != SUCCEEDS and self.lag_s is not None:
            self._agenda.after(self.lag_s, partial(self._come_out, refund["id"], fails=method.refund == FAILS_LATER))
        return refund["id"], body

    def update(self, scope: Scope, refund_id: str, params: Params) -> tuple[str, bytes]:
        refund = self._refunds.load(scope, refund_id)
        refund["metadata"] = merged_metadata(refund["metadata"], params)
        return refund_id, self._refunds.save(scope, refund, "refund.updated")

    def settle(self, refund_id: str) -> Json:
        """The bank has given the money back. Raises ValueError unless the refund is pending."""
        scope, refund = self._refunds.seek(refund_id)
        if refund["status"] != "pending":
            raise ValueError(f"a refund that {refund['status']} cannot be settled")
        refund.update(status="succeeded", pending_reason=None)
        self._refunds.save(scope, refund, "refund.updated")
        return refund

    def fail(self, refund_id: str, failure_reason: str = "lost_or_stolen_card") -> Json:
        """The money comes back to the merchant, and can be refunded again. Raises ValueError if it failed before."""
        scope, refund = self._refunds.seek(refund_id)
        if refund["status"] == "failed" or failure_reason not in FAILURES:
            raise ValueError(f"a refund that {refund['status']} cannot fail by {failure_reason}")
        returned = self._balance.book(scope, "refund_failure", refund_id, refund["amount"], refund["currency"])
        refund.update(
            status="failed",
            failure_reason=failure_reason,
            failure_balance_transaction=returned,
            pending_reason=None,
        )
        charge = self._charges.load(scope, refund["charge"])
        charge["amount_refunded"] -= refund["amount"]
        charge["refunded"] = False
        self._charges.save(scope, charge)
        self._refunds.save(scope, refund, "refund.updated", "refund.failed")
        return refund

    def _come_out(self, refund_id: str, *, fails: bool) -> None:
        status = self._refunds.seek(refund_id)[1]["status"]
        if fails and status != "failed":
            self.fail(refund_id)
        elif status == "pending":
            self.settle(refund_id)

    def _charge_to_refund(self, scope: Scope, params: Params) -> Json:
        if "payment_intent" in params:
            kept = self._intents.get(scope, params["payment_intent"])
            if kept is None:
                raise missing("payment_intent", params["payment_intent"], param="payment_intent", status=400)
            charge_id = json.loads(kept.body)["latest_charge"]
            if charge_id is None:
                message = "This PaymentIntent has no successful charge to refund."
                raise invalid(message, code="charge_not_refundable", param="payment_intent")
        else:
            charge_id = params["charge"]
        charge = self._charges.load(scope, charge_id, param="charge", status=400)
        if not charge["captured"]:
            message = f"Charge {charge_id} has taken no money that could be refunded."
            raise invalid(message, code="charge_not_refundable")
        if self._disputes.forbids_refund(charge["payment_intent"]):
            message = f"Charge {charge_id} has been charged back; cannot issue a refund."
            raise invalid(message, code="charge_disputed")
        if charge["refunded"]:
            raise invalid(f"Charge {charge_id} has already been refunded.", code="charge_already_refunded")
        return charge

    def _blank(self, scope: Scope, charge: Json, amount: int, method: Method, params: Params) -> Json:
        refund_id, currency = new_id("re"), charge["currency"]
        pending = method.refund not in {SUCCEEDS, FAILS_LATER}
        card = {"reference_status": "pending", "reference_type": "acquirer_reference_number", "type": "refund"}
        return {
            "id": refund_id,
            "object": "refund",
            "amount": amount,
            "balance_transaction": self._balance.book(scope, "refund", refund_id, -amount, currency),
            "charge": charge["id"],
            "created": int(self._clock.now()),
            "currency": currency,
            "customer": charge["customer"],
            "customer_account": None,
            "destination_details": {method.kind: card if method.kind == "card" else {}, "type": method.kind},
            "failure_balance_transaction": None,
            "failure_reason": None,
            "metadata": merged_metadata({}, params),
            "next_action": None,
            "payment_intent": charge["payment_intent"],
            "payment_method": charge["payment_method"],
            "pending_reason": "processing" if pending else None,
            "reason": params.get("reason"),
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "pending" if pending else "succeeded",
            "transfer_reversal": None,
        }


def _amount(charge: Json, params: Params) -> int:
    """What is asked for, or all that is left. Raises ApiError."""
    left: int = charge["amount_captured"] - charge["amount_refunded"]
    amount: int = params.get("amount", left)
    check_unit(amount, charge["currency"])
    if amount > left:
        message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})."
        raise invalid(message, code="amount_too_large", param="amount")
    return amount
