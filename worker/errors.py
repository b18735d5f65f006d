"""Every error of ours, named by the caller's next act. Vendor exceptions become these once, at their door."""

from collections.abc import Mapping
from dataclasses import dataclass


class WorkerError(Exception):
    """Anything this program raises on purpose."""


class ConfigurationError(WorkerError):
    """The settings or the surroundings are set up wrongly; a person must mend it. Waiting does not help."""


class TopologyMismatch(ConfigurationError):
    """A queue or exchange exists with other arguments than ours."""


class BusUnavailable(WorkerError):
    """The broker is away, or did not confirm in time. What was published may have arrived: tell it again."""


class Unroutable(WorkerError):
    """The broker says that no queue takes the message, or that one is full. Another one may have it already."""


class LedgerUnavailable(WorkerError):
    """The ledger is away, locked or full. A commit in flight may have happened."""


class LedgerRefused(WorkerError):
    """The ledger is well and refuses this row: a fault of ours, which waiting does not mend."""


class StaleMove(WorkerError):
    """Another worker moved the payment first: read it again."""


class OrderConflict(WorkerError):
    """The order id is taken by a payment of another amount, currency or payer."""


class CallTransient(WorkerError):
    """Stripe did nothing: ask again later with the same key. `reason` is a word for metrics."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SoonOver(CallTransient):
    """A command waits for another one's doing, such as its order's: try again soon, and count no attempt."""


class CallUnknown(WorkerError):
    """Stripe may have done it: ask again with the same key and parameters, never with others.

    may_ask_again: whether that can bring a better answer. A stored error comes back the same for ever.
    """

    def __init__(self, message: str, *, reason: str, may_ask_again: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.may_ask_again = may_ask_again


class CallSystemic(WorkerError):
    """Our key or our account is refused, whatever the order: stop, burn no messages."""


class StripeAway(WorkerError):
    """Stripe has not been answering, so that it is not asked: wait until it does, burn no messages."""


class Stopping(WorkerError):
    """We are stopping, and this was not begun."""


class ModeMismatch(WorkerError):
    """The order's call was made in Stripe's other mode, where our key would be taken for a new one."""


class RightMissing(WorkerError):
    """Our key may not do what a command asks for; it may well do what orders need."""


class IntentMissing(WorkerError):
    """Stripe does not know a payment's intent: it was made with the key of another account, or in another sandbox."""


class ParametersRefused(WorkerError):
    """Parameters that the SDK's own types do not allow: never sent. The text names them."""


class AccountRefused(WorkerError):
    """Stripe refuses the connected account that this order names; others may be well."""


class AnswerMismatch(WorkerError):
    """Stripe answered for something else than was asked. A person must look before anything goes on."""

    def __init__(self, differences: Mapping[str, tuple[object, object]], *, payment_id: str) -> None:
        self.payment_id = payment_id
        told = ", ".join(f"{name} asked {asked!r}, got {got!r}" for name, (asked, got) in differences.items())
        super().__init__(f"{payment_id}: {told}")


class SeveralIntents(WorkerError):
    """Stripe has more than one live intent of this order. A person must look before anything goes on."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What Stripe said no with. `message` is Stripe's own text for developers, not for customers."""

    http_status: int
    code: str | None
    decline_code: str | None
    advice_code: str | None
    message: str
    payment_id: str | None = None
    payment_status: str | None = None
    livemode: bool | None = None
    request_id: str | None = None


class CallRefused(WorkerError):
    """Stripe said no, and would again: the payment has failed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.http_status} {refusal.code}: {refusal.message}")
        self.refusal = refusal
