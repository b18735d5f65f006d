"""PaymentIntents: the operations of the endpoint, each on parameters already checked.

Source: https://docs.stripe.com/api/payment_intents and https://docs.stripe.com/payments/paymentintents/lifecycle.
Everything raised here is raised after execution began: the idempotency layer keeps it, 400 and 402 alike.
"""

import json
import secrets
from typing import Any

from worker.sandbox.stripe_attempt import AUTHENTICATION_FAILED, attempt, authorize, decline
from worker.sandbox.stripe_cards import Decline
from worker.sandbox.stripe_errors import ApiError, invalid, missing
from worker.sandbox.stripe_methods import PaymentMethods
from worker.sandbox.stripe_money import check_limits, check_unit
from worker.sandbox.stripe_params import Params, needs_return_url
from worker.sandbox.stripe_read_param import MAX_METADATA_PAIRS
from worker.sandbox.stripe_store import IntentStore, Json, Kept, SandboxClock, Scope, new_id

CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")
CANCELABLE = ("requires_payment_method", "requires_capture", "requires_confirmation", "requires_action")
CAPTURABLE = ("requires_capture",)
UPDATABLE = ("requires_payment_method", "requires_confirmation", "requires_action")
# What may still be said about a payment that is under way or over.
ALWAYS_UPDATABLE = frozenset({"metadata", "description", "receipt_email", "shipping", "transfer_group", "expand"})
# Parameters of a request that are not fields of the intent.
NOT_FIELDS = frozenset(
    {
        "confirm", "confirmation_token", "error_on_requires_action", "expand", "mandate", "mandate_data", "metadata",
        "off_session", "payment_method_configuration", "payment_method_data", "radar_options", "return_url",
        "use_stripe_sdk", "amount_to_confirm",
    }
)  # fmt: skip
METHOD_LOST = Decline("payment_intent_payment_attempt_failed", None, None, "The payment attempt failed.")


class PaymentIntents:
    def __init__(self, store: IntentStore, clock: SandboxClock) -> None:
        self._store = store
        self._clock = clock
        self._methods = PaymentMethods()

    def create(self, scope: Scope, params: Params) -> tuple[str, bytes]:
        """The new intent's id and JSON. Raises ApiError; after a decline (402) the intent exists all the same."""
        check_limits(params["amount"], params["currency"])
        method_id = self._methods.named_by(scope, params)
        intent = self._blank(scope, params)
        if method_id is not None:
            intent.update(payment_method=method_id, status="requires_confirmation")
        if not params.get("confirm"):
            return intent["id"], self._store.save(scope, intent)
        return self._attempt(scope, intent, params)

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
        _apply(intent, params)
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
        _apply(intent, params)
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
        _apply(intent, {name: value for name, value in params.items() if name in intent})
        intent.update(status="succeeded", amount_received=amount, amount_capturable=0)
        return intent_id, self._store.save(scope, intent)

    def cancel(self, scope: Scope, intent_id: str, params: Params) -> tuple[str, bytes]:
        intent = self._load(scope, intent_id)
        if intent["status"] not in CANCELABLE:
            raise _unexpected_state(intent, "you cannot cancel this PaymentIntent", CANCELABLE)
        self._cancel(intent, params.get("cancellation_reason"))
        return intent_id, self._store.save(scope, intent)

    def act(self, intent_id: str, deed: str) -> bytes:
        """What happens at the customer's or the bank's side, without a request of the merchant.

        `authenticate`, `fail_authentication` (requires_action); `settle`, `fail` (processing); `expire`
        (requires_capture). Raises ValueError if the intent is unknown or not in a status for it.
        """
        kept = self._store.find(intent_id)
        if kept is None:
            raise ValueError(f"no intent {intent_id}")
        intent: Json = json.loads(kept.body)
        if intent["payment_method"] is None:
            raise ValueError(f"{deed} does not fit an intent without a payment method")
        method = self._methods.behaviour(kept.scope, intent["payment_method"])
        payment_method = self._methods.describe(kept.scope, intent["payment_method"], intent["customer"])
        charge_id = intent["latest_charge"] or new_id("ch")
        match intent["status"], deed:
            case ("requires_action", "authenticate") | ("processing", "settle" | "fail"):
                if deed == "fail" or method.decline is not None:
                    decline(intent, method.decline or METHOD_LOST, payment_method, charge_id)
                else:
                    authorize(intent, charge_id)
            case "requires_action", "fail_authentication":
                decline(intent, AUTHENTICATION_FAILED, payment_method, None)
            case "requires_capture", "expire":
                self._cancel(intent, "expired")
            case status, _:
                raise ValueError(f"{deed} does not fit an intent in {status}")
        return self._store.save(kept.scope, intent)

    def _kept(self, scope: Scope, intent_id: str) -> Kept:
        kept = self._store.get(scope, intent_id)
        if kept is None:
            raise missing("payment_intent", intent_id, param="intent")
        return kept

    def _load(self, scope: Scope, intent_id: str) -> Json:
        intent: Json = json.loads(self._kept(scope, intent_id).body)
        return intent

    def _blank(self, scope: Scope, params: Params) -> Json:
        intent_id = new_id("pi")
        types = params.get("allowed_payment_method_types") or ["card", "link"]
        excluded = params.get("excluded_payment_method_types") or ()
        dynamic = {"allow_redirects": "always", "enabled": True}
        intent: Json = {
            "id": intent_id,
            "object": "payment_intent",
            "allowed_payment_method_types": None,
            "amount": params["amount"],
            "amount_capturable": 0,
            "amount_details": {"tip": {}},
            "amount_received": 0,
            "application": None,
            "application_fee_amount": None,
            "automatic_payment_methods": None if "allowed_payment_method_types" in params else dynamic,
            "canceled_at": None,
            "cancellation_reason": None,
            "capture_method": "automatic_async",
            "client_secret": f"{intent_id}_secret_{secrets.token_hex(12)}",
            "confirmation_method": "automatic",
            "created": int(self._clock.now()),
            "currency": params["currency"],
            "customer": None,
            "customer_account": None,
            "description": None,
            "excluded_payment_method_types": None,
            "hooks": None,
            "last_payment_error": None,
            "latest_charge": None,
            "livemode": scope.livemode,
            "metadata": {},
            "next_action": None,
            "on_behalf_of": None,
            "payment_details": None,
            "payment_method": None,
            "payment_method_configuration_details": None,
            "payment_method_options": None,
            "payment_method_types": [name for name in types if name not in excluded],
            "processing": None,
            "receipt_email": None,
            "review": None,
            "setup_future_usage": None,
            "shipping": None,
            "source": None,
            "statement_descriptor": None,
            "statement_descriptor_suffix": None,
            "status": "requires_payment_method",
            "transfer_data": None,
            "transfer_group": None,
        }
        _apply(intent, params)
        return intent

    def _attempt(self, scope: Scope, intent: Json, params: Params) -> tuple[str, bytes]:
        """Confirm the intent with the payment method it has, and keep what came of it. Raises ApiError."""
        method_id = intent["payment_method"]
        method = self._methods.behaviour(scope, method_id)
        if method.kind == "card" and intent["statement_descriptor"] is not None:
            message = "A card charge takes no `statement_descriptor`; use `statement_descriptor_suffix`."
            raise invalid(message, code="payment_intent_invalid_parameter", param="statement_descriptor")
        payment_method = self._methods.describe(scope, method_id, intent["customer"])
        refusal = attempt(intent, method, payment_method, new_id("ch"), params)
        body = self._store.save(scope, intent)
        if refusal is not None:
            raise refusal
        return intent["id"], body

    def _cancel(self, intent: Json, reason: str | None) -> None:
        intent.update(
            status="canceled",
            canceled_at=int(self._clock.now()),
            cancellation_reason=reason,
            amount_capturable=0,
            next_action=None,
        )


def _apply(intent: Json, params: Params) -> None:
    """Write the fields a request sets. Metadata merges: an empty value removes its key, an empty set all of them."""
    for name, value in params.items():
        if name not in NOT_FIELDS and name != "payment_method":
            intent[name] = value
    given: Any = params.get("metadata", ())
    if given is None or given == {}:
        intent["metadata"] = {}
    elif given:
        merged = {key: value for key, value in (intent["metadata"] | given).items() if value != ""}
        if len(merged) > MAX_METADATA_PAIRS:
            raise invalid(f"Metadata can have up to {MAX_METADATA_PAIRS} keys.", param="metadata")
        intent["metadata"] = merged


def _unexpected_state(intent: Json, what: str, allowed: tuple[str, ...]) -> ApiError:
    message = f"{what[0].upper()}{what[1:]} because it has a status of {intent['status']}."
    if allowed:
        message += f" Only a PaymentIntent with one of the following statuses may be: {', '.join(allowed)}."
    return invalid(message, code="payment_intent_unexpected_state", payment_intent=intent)
