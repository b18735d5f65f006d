"""Balance transactions: what each movement leaves on the account, after fees.

Source: https://docs.stripe.com/api/balance_transactions. The fee is the standard one for US cards
(https://stripe.com/pricing), in the currency of the charge: the sandbox settles without exchange.
"""

from worker.sandbox.stripe_objects import Objects
from worker.sandbox.stripe_store import Json, SandboxClock, Scope, new_id

AVAILABLE_AFTER_S = 2 * 24 * 3600
FIXED_FEE = 30
DISPUTE_FEE = 1500
# https://docs.stripe.com/reports/reporting-categories; what is not here has the name of its type.
_CATEGORIES = {"adjustment": "dispute"}


def fee_of(amount: int) -> int:
    """2.9 % + 30, in minor units."""
    return (amount * 29 + 500) // 1000 + FIXED_FEE


class Balance:
    def __init__(self, clock: SandboxClock, transactions: Objects) -> None:
        self._clock = clock
        self._transactions = transactions

    def book(self, scope: Scope, kind: str, source: str, amount: int, currency: str, *, fee: int = 0) -> str:
        """The id of the new balance transaction; money that leaves has an amount below 0."""
        created = int(self._clock.now())
        details = {
            "amount": fee,
            "application": None,
            "currency": currency,
            "description": "Dispute fee" if kind == "adjustment" else "Stripe processing fees",
            "type": "stripe_fee",
        }
        transaction = {
            "id": new_id("txn"),
            "object": "balance_transaction",
            "amount": amount,
            "available_on": created + AVAILABLE_AFTER_S,
            "balance_type": "payments",
            "created": created,
            "currency": currency,
            "description": None,
            "exchange_rate": None,
            "fee": fee,
            "fee_details": [details] if fee else [],
            "net": amount - fee,
            "reporting_category": _CATEGORIES.get(kind, kind),
            "source": source,
            "status": "pending",
            "type": kind,
        }
        self._transactions.save(scope, transaction)
        return str(transaction["id"])

    def show(self, transaction_id: str) -> Json:
        return self._transactions.seek(transaction_id)[1]
