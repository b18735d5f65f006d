"""Disputes: a customer takes the money back through the bank, and how that ends.

Sources: https://docs.stripe.com/api/disputes, https://docs.stripe.com/disputes/how-disputes-work. The amount and a fee
are withdrawn when a dispute opens; an inquiry (`warning_…`) withdraws nothing unless it becomes a dispute.
"""

from typing import Any

from worker.sandbox.stripe_balance import DISPUTE_FEE, Balance
from worker.sandbox.stripe_objects import Objects
from worker.sandbox.stripe_store import Json, SandboxClock, Scope, new_id

ANSWER_WITHIN_S = 9 * 24 * 3600
INQUIRIES = ("warning_needs_response", "warning_under_review")
OPEN = ("needs_response", "under_review")
ENDS = {"won": OPEN, "lost": OPEN, "warning_closed": INQUIRIES}


class Disputes:
    def __init__(self, clock: SandboxClock, charges: Objects, disputes: Objects, balance: Balance) -> None:
        self._clock = clock
        self._charges = charges
        self._disputes = disputes
        self._balance = balance

    def open(
        self, charge_id: str, *, reason: str = "fraudulent", amount: int | None = None, inquiry: bool = False
    ) -> Json:
        """Of the whole captured amount unless another is given. Raises ValueError if no money was taken by then."""
        scope, charge = self._charges.seek(charge_id)
        taken = charge["amount_captured"]
        disputed = taken if amount is None else amount
        if not 1 <= disputed <= taken:
            raise ValueError(f"{charge_id} took {taken}: a dispute of {disputed} does not fit it")
        dispute = self._blank(charge, reason, disputed, inquiry=inquiry)
        charge["disputed"] = True
        self._charges.save(scope, charge)
        self._disputes.save(scope, dispute, "charge.dispute.created")
        if not inquiry:
            self._withdraw(scope, dispute)
        return dispute

    def update(self, dispute_id: str, status: str) -> Json:
        """Move an open one to another open status; an inquiry that becomes a dispute costs its amount then."""
        scope, dispute = self._disputes.seek(dispute_id)
        before = dispute["status"]
        if before not in (*OPEN, *INQUIRIES) or status not in (*OPEN, *INQUIRIES):
            raise ValueError(f"a dispute in {before} cannot be moved to {status}")
        dispute["status"] = status
        dispute["is_charge_refundable"] = status in INQUIRIES
        self._disputes.save(scope, dispute, "charge.dispute.updated")
        if status in OPEN and not dispute["balance_transactions"]:
            self._withdraw(scope, dispute)
        return dispute

    def close(self, dispute_id: str, status: str) -> Json:
        """End it as won, lost or warning_closed; what is won is given back, without the fee."""
        scope, dispute = self._disputes.seek(dispute_id)
        if dispute["status"] not in ENDS.get(status, ()):
            raise ValueError(f"a dispute in {dispute['status']} cannot end as {status}")
        dispute["status"] = status
        self._disputes.save(scope, dispute, "charge.dispute.closed")
        if status == "won":
            self._move_money(scope, dispute, dispute["amount"], 0, "charge.dispute.funds_reinstated")
        return dispute

    def forbids_refund(self, intent_id: str) -> bool:
        """Whether the money of the payment is, or has gone, with the bank of the customer."""
        found = (self._disputes.seek(kept.object_id)[1] for kept in self._disputes.of_intent(intent_id))
        return any(dispute["status"] in {*OPEN, "lost"} for dispute in found)

    def _withdraw(self, scope: Scope, dispute: Json) -> None:
        self._move_money(scope, dispute, -dispute["amount"], DISPUTE_FEE, "charge.dispute.funds_withdrawn")

    def _move_money(self, scope: Scope, dispute: Json, amount: int, fee: int, told_as: str) -> None:
        booked = self._balance.book(scope, "adjustment", dispute["id"], amount, dispute["currency"], fee=fee)
        dispute["balance_transactions"] = [*dispute["balance_transactions"], self._balance.show(booked)]
        self._disputes.save(scope, dispute, told_as)

    def _blank(self, charge: Json, reason: str, amount: int, *, inquiry: bool) -> Json:
        created = int(self._clock.now())
        evidence: dict[str, Any] = {
            "due_by": created + ANSWER_WITHIN_S,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        }
        card = {"brand": "visa", "case_type": "inquiry" if inquiry else "chargeback", "network_reason_code": "83"}
        return {
            "id": new_id("du"),
            "object": "dispute",
            "amount": amount,
            "balance_transactions": [],
            "charge": charge["id"],
            "created": created,
            "currency": charge["currency"],
            "enhanced_eligibility_types": [],
            "evidence": {},
            "evidence_details": evidence,
            "is_charge_refundable": inquiry,
            "livemode": charge["livemode"],
            "metadata": {},
            "payment_intent": charge["payment_intent"],
            "payment_method_details": {"card": card, "type": "card"},
            "reason": reason,
            "status": "warning_needs_response" if inquiry else "needs_response",
        }
