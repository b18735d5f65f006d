"""PaymentIntents: the operations of the endpoint, each on parameters already checked.

Source: https://docs.stripe.com/api/payment_intents and https://docs.stripe.com/payments/paymentintents/lifecycle.
Everything raised here is raised after execution began: the idempotency layer keeps it, 400 and 402 alike.
"""

import json
from functools import partial

from worker.sandbox.stripe_agenda import Agenda
from worker.sandbox.stripe_attempt import AUTHENTICATION_FAILED, attempt, authorize, decline
from worker.sandbox.stripe_cards import Decline, Method
from worker.sandbox.stripe_charges import Charges, hold_s
from worker.sandbox.stripe_disputes import Disputes
from worker.sandbox.stripe_errors import ApiError, invalid, missing
from worker.sandbox.stripe_events import Events
from worker.sandbox.stripe_methods import PaymentMethods
from worker.sandbox.stripe_money import check_limits, check_unit
from worker.sandbox.stripe_new_intent import apply, new_intent
from worker.sandbox.stripe_params import Params, needs_return_url
from worker.sandbox.stripe_store import IntentStore, Json, KeptIntent, SandboxClock, Scope, as_json, new_id

CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")
CANCELABLE = ("requires_payment_method", "requires_capture", "requires_confirmation", "requires_action")
CAPTURABLE = ("requires_capture",)
UPDATABLE = ("requires_payment_method", "requires_confirmation", "requires_action")
# What may still be said about a payment that is under way or over.
ALWAYS_UPDATABLE = frozenset({"metadata", "description", "receipt_email", "shipping", "transfer_group", "expand"})
# What is told when an intent has come to a status; "payment_failed" tells one attempt, not the end.
TOLD_AS = {
    "requires_payment_method": "payment_intent.payment_failed",
    "requires_action": "payment_intent.requires_action",
    "processing": "payment_intent.processing",
    "requires_capture": "payment_intent.amount_capturable_updated",
    "succeeded": "payment_intent.succeeded",
    "canceled": "payment_intent.canceled",
}
METHOD_LOST = Decline("payment_intent_payment_attempt_failed", None, None, "The payment attempt failed.")


class PaymentIntents:
    def __init__(
        self,
        clock: SandboxClock,
        agenda: Agenda,
        *,
        store: IntentStore,
        events: Events,
        methods: PaymentMethods,
        charges: Charges,
        disputes: Disputes,
    ) -> None:
        self._clock = clock
        self._agenda = agenda
        self._store = store
        self._events = events
        self._methods = methods
        self._charges = charges
        self._disputes = disputes

    def create(self, scope: Scope, params: Params) -> tuple[str, bytes]:
        """The new intent's id and JSON. Raises ApiError; after a decline (402) the intent exists all the same."""
        check_limits(params["amount"], params["currency"])
        method_id = self._methods.named_by(scope, params)
        intent = new_intent(scope, params, self._clock.now())
        if method_id is not None:
            intent.update(payment_method=method_id, status="requires_confirmation")
        if not params.get("confirm"):
            body = self._store.save(scope, intent)
            self._events.tell(scope, "payment_intent.created", intent["id"], body)
            return intent["id"], body
        return self._attempt(scope, intent, params, created=as_json(intent))

    def retrieve(self, scope: Scope, intent_id: str) -> tuple[str, bytes]:
        return intent_id, self._kept(scope, intent_id).body

    def update(self, scope: Scope, intent_id: str, params: Params) -> tuple[str, bytes]:
        intent = self._load(scope, intent_id)
        late = [name for name in params if name not in ALWAYS_UPDATABLE]
        if late and intent["status"] not in UPDATABLE:
            raise _unexpected_state(intent, f"this PaymentIntent's {late[0]} could not be updated", UPDATABLE)
        if "amount" in params or "currency" in params:
            asked = intent | params
            check_unit(asked["amount"], asked["currency"])
            check_limits(asked["amount"], asked["currency"])
        method_id = self._methods.named_by(scope, params)
        apply(intent, params)
        # "It will be cleared if the PaymentIntent is later updated for any reason" (reference of last_payment_error).
        intent["last_payment_error"] = None
        if method_id is not None:
            intent.update(payment_method=method_id, status="requires_confirmation", next_action=None)
        return intent_id, self._store.save(scope, intent)

    def confirm(self, scope: Scope, intent_id: str, params: Params) -> tuple[str, bytes]:
        """Raises ApiError; a decline (402) leaves the intent in requires_payment_method."""
        intent = self._load(scope, intent_id)
        if intent["status"] not in CONFIRMABLE:
            raise _unexpected_state(intent, "this PaymentIntent could not be confirmed", CONFIRMABLE)
        if params.get("amount_to_confirm", intent["amount"]) != intent["amount"]:
            message = "amount_to_confirm does not match the PaymentIntent's amount."
            raise invalid(message, code="payment_intent_invalid_parameter", param="amount_to_confirm")
        refusal = needs_return_url(intent, params)
        if refusal is not None:
            raise refusal
        method_id = self._methods.named_by(scope, params) or intent["payment_method"]
        if method_id is None:
            raise _unexpected_state(intent, "you cannot confirm this PaymentIntent without a payment method", ())
        apply(intent, params)
        intent["payment_method"] = method_id
        return self._attempt(scope, intent, params)

    def capture(self, scope: Scope, intent_id: str, params: Params) -> tuple[str, bytes]:
        """One capture, of all or a part; the rest of the hold is released."""
        intent = self._load(scope, intent_id)
        if intent["status"] not in CAPTURABLE:
            raise _unexpected_state(intent, "this PaymentIntent could not be captured", CAPTURABLE)
        amount = params.get("amount_to_capture", intent["amount_capturable"])
        if amount > intent["amount_capturable"]:
            message = "The requested capture amount is greater than the amount you can capture for this charge."
            raise invalid(message, code="amount_too_large", param="amount_to_capture")
        if params.get("final_capture") is False:
            message = "This PaymentIntent is not eligible for several captures."
            raise invalid(message, code="payment_intent_invalid_parameter", param="final_capture")
        apply(intent, {name: value for name, value in params.items() if name in intent})
        intent.update(status="succeeded", amount_received=amount, amount_capturable=0)
        self._charges.captured(scope, intent)
        self._dispute_if_bound_to(intent["latest_charge"], self._methods.behaviour(scope, intent["payment_method"]))
        return intent_id, self._moved(scope, intent)

    def cancel(self, scope: Scope, intent_id: str, params: Params) -> tuple[str, bytes]:
        intent = self._load(scope, intent_id)
        if intent["status"] not in CANCELABLE:
            raise _unexpected_state(intent, "you cannot cancel this PaymentIntent", CANCELABLE)
        self._cancel(intent, params.get("cancellation_reason"))
        return intent_id, self._moved(scope, intent)

    def act(self, intent_id: str, deed: str) -> bytes:
        """What happens at the customer's or the bank's side, without a request of the merchant.

        `authenticate`, `fail_authentication` (requires_action); `settle`, `fail` (processing); `expire`
        (requires_capture). Raises ValueError if the intent is unknown or not in a status for it.
        """
        scope, intent = self._seek(intent_id)
        if intent["payment_method"] is None:
            raise ValueError(f"{deed} does not fit an intent without a payment method")
        method = self._methods.behaviour(scope, intent["payment_method"])
        payment_method = self._methods.describe(scope, intent["payment_method"], intent["customer"])
        charge_id = intent["latest_charge"] if intent["status"] == "processing" else new_id("ch")
        match intent["status"], deed:
            case ("requires_action", "authenticate") | ("processing", "settle" | "fail"):
                if deed == "fail" or method.decline is not None:
                    decline(intent, method.decline or METHOD_LOST, payment_method, charge_id)
                else:
                    authorize(intent, charge_id)
                return self._attempted(scope, intent, method, payment_method, charge_id)
            case "requires_action", "fail_authentication":
                decline(intent, AUTHENTICATION_FAILED, payment_method, None)
            case "requires_capture", "expire":
                self._cancel(intent, "expired")
                self._charges.expired(scope, intent)
            case status, _:
                raise ValueError(f"{deed} does not fit an intent in {status}")
        return self._moved(scope, intent)

    def pay(self, intent_id: str, payment_method: str) -> bytes:
        """The customer confirms with the client secret, as Stripe.js does; a decline is told by the intent itself.

        Raises ValueError if the intent is unknown or cannot be confirmed, or the payment method is unknown.
        """
        scope, intent = self._seek(intent_id)
        if intent["status"] not in CONFIRMABLE:
            raise ValueError(f"pay does not fit an intent in {intent['status']}")
        try:
            intent["payment_method"] = self._methods.named_by(scope, {"payment_method": payment_method})
            with self._events.caused_by(new_id("req"), None):
                return self._attempt(scope, intent, {})[1]
        except ApiError as refusal:
            if refusal.status != 402:
                raise ValueError(str(refusal)) from refusal
            return self._kept(scope, intent_id).body

    def _kept(self, scope: Scope, intent_id: str) -> KeptIntent:
        kept = self._store.get(scope, intent_id)
        if kept is None:
            raise missing("payment_intent", intent_id, param="intent")
        return kept

    def _load(self, scope: Scope, intent_id: str) -> Json:
        intent: Json = json.loads(self._kept(scope, intent_id).body)
        return intent

    def _seek(self, intent_id: str) -> tuple[Scope, Json]:
        """In any account. Raises ValueError if it is unknown."""
        kept = self._store.find(intent_id)
        if kept is None:
            raise ValueError(f"no intent {intent_id}")
        return kept.scope, json.loads(kept.body)

    def _attempt(
        self, scope: Scope, intent: Json, params: Params, *, created: bytes | None = None
    ) -> tuple[str, bytes]:
        """Confirm the intent with the payment method it has, and keep what came of it. Raises ApiError.

        `created` is the intent as it was before, if this request makes it.
        """
        method_id = intent["payment_method"]
        method = self._methods.behaviour(scope, method_id)
        if method.kind == "card" and intent["statement_descriptor"] is not None:
            message = "A card charge takes no `statement_descriptor`; use `statement_descriptor_suffix`."
            raise invalid(message, code="payment_intent_invalid_parameter", param="statement_descriptor")
        payment_method = self._methods.describe(scope, method_id, intent["customer"])
        charge_id = new_id("ch")
        refusal = attempt(intent, method, payment_method, charge_id, params)
        if created is not None:
            self._events.tell(scope, "payment_intent.created", intent["id"], created)
        off_session = bool(params.get("off_session"))
        body = self._attempted(scope, intent, method, payment_method, charge_id, off_session=off_session)
        if refusal is not None:
            raise refusal
        return intent["id"], body

    def _attempted(
        self,
        scope: Scope,
        intent: Json,
        method: Method,
        payment_method: Json,
        charge_id: str,
        *,
        off_session: bool = False,
    ) -> bytes:
        """Keep the intent and its charge as the bank has decided, and have happen what follows by itself."""
        if intent["latest_charge"] == charge_id:
            self._charges.attempted(scope, intent, payment_method, off_session=off_session)
        if intent["status"] == "requires_capture":
            self._agenda.after(hold_s(off_session=off_session), partial(self._expire_if_held, intent["id"]))
        if intent["status"] == "succeeded":
            self._dispute_if_bound_to(charge_id, method)
        return self._moved(scope, intent)

    def _dispute_if_bound_to(self, charge_id: str, method: Method) -> None:
        """Test cards that dispute do so right after the payment, not within its request."""
        dispute = method.dispute
        if dispute is not None:
            self._agenda.after(
                0, partial(self._disputes.open, charge_id, reason=dispute.reason, inquiry=dispute.inquiry)
            )

    def _moved(self, scope: Scope, intent: Json) -> bytes:
        body = self._store.save(scope, intent)
        self._events.tell(scope, TOLD_AS[intent["status"]], intent["id"], body)
        return body

    def _expire_if_held(self, intent_id: str) -> None:
        if self._seek(intent_id)[1]["status"] == "requires_capture":
            self.act(intent_id, "expire")

    def _cancel(self, intent: Json, reason: str | None) -> None:
        intent.update(
            status="canceled",
            canceled_at=int(self._clock.now()),
            cancellation_reason=reason,
            amount_capturable=0,
            next_action=None,
        )


def _unexpected_state(intent: Json, what: str, allowed: tuple[str, ...]) -> ApiError:
    message = f"{what[0].upper()}{what[1:]} because it has a status of {intent['status']}."
    if allowed:
        message += f" Only a PaymentIntent with one of the following statuses may be: {', '.join(allowed)}."
    return invalid(message, code="payment_intent_unexpected_state", payment_intent=intent)
