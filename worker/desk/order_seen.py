"""What `payments show` has found of one order, and the words that its page and its record share."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from worker.ledger.acts import Act
from worker.ledger.one_payment import Call, KeptRequest, PaymentLife
from worker.letter import Letter, Verdict
from worker.payment_command import is_call_of


@dataclass(frozen=True, slots=True)
class OrderSeen:
    """All of it. life: None where no payment was opened. letters: with the verdict on a replay, of letters_total."""

    order_id: str
    life: PaymentLife | None
    requests: Sequence[KeptRequest]
    letters: Sequence[tuple[Letter, Verdict]]
    letters_total: int
    acts: Sequence[Act]
    key_horizon_s: float
    now: datetime

    @property
    def calls(self) -> Sequence[Call]:
        """Of its payment, in their order."""
        return self.life.calls if self.life else ()

    def is_inside_horizon(self, call: Call) -> bool:
        """Whether the key of a call still brings the first answer."""
        return (self.now - call.first_asked_at).total_seconds() <= self.key_horizon_s

    def request_of(self, call: Call) -> str | None:
        """The id of the request that a call was made for; None for the order's own call."""
        return next((kept.request.request_id for kept in self.requests if is_call_of(call.kind, kept.request)), None)
