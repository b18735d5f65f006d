"""One attempt to pay: what confirming an intent with a payment method does to it.

Statuses and transitions: https://docs.stripe.com/payments/paymentintents/lifecycle. Pure: no store, no clock, no ids
of its own; the intent given is changed in place.
"""

from typing import Any

from worker.sandbox.stripe_cards import AUTHENTICATION_REQUIRED, Decline, Method
from worker.sandbox.stripe_errors import DOC_URL, ApiError

Json = dict[str, Any]

ACTION_REFUSED = Decline(
    "payment_intent_action_required",
    None,
    None,
    "The payment method needs an action by the customer, and `error_on_requires_action` was set.",
)
AUTHENTICATION_FAILED = Decline(
    "payment_intent_authentication_failure",
    None,
    None,
    "The payment method failed authentication. Provide a new payment method to attempt to pay again.",
)


def attempt(intent: Json, method: Method, payment_method: Json, charge_id: str, params: Json) -> ApiError | None:
    """Move the intent on as its bank decides. A decline is returned: the caller keeps the intent, then raises it."""
    intent["payment_method"] = payment_method["id"]
    intent["last_payment_error"] = None
    intent["next_action"] = None
    off_session = bool(params.get("off_session"))
    asks = method.asks_off_session if off_session else method.asks_on_session
    if method.kind == "redirect" or asks:
        if off_session:
            return decline(intent, AUTHENTICATION_REQUIRED, payment_method, charge_id)
        if params.get("error_on_requires_action"):
            return decline(intent, ACTION_REFUSED, payment_method, None)
        intent["status"] = "requires_action"
        intent["next_action"] = _next_action(intent, params.get("return_url"))
        return None
    if method.kind == "us_bank_account":
        # A debit takes days; the control surface settles it.
        intent["status"] = "processing"
        intent["latest_charge"] = charge_id
        return None
    if method.decline is not None:
        return decline(intent, method.decline, payment_method, charge_id)
    authorize(intent, charge_id)
    return None


def authorize(intent: Json, charge_id: str) -> None:
    """The bank said yes: the money is taken, or held where capture is manual."""
    intent["latest_charge"] = charge_id
    intent["next_action"] = None
    card_options = (intent["payment_method_options"] or {}).get("card", {})
    if "manual" in (intent["capture_method"], card_options.get("capture_method")):
        intent["status"] = "requires_capture"
        intent["amount_capturable"] = intent["amount"]
    else:
        intent["status"] = "succeeded"
        intent["amount_received"] = intent["amount"]


def decline(intent: Json, reason: Decline, payment_method: Json, charge_id: str | None) -> ApiError:
    """Back to requires_payment_method; the 402 carries the intent as it now is.

    The method is detached from the intent and told in `last_payment_error`, as Stripe does.
    """
    failure = {
        "advice_code": reason.advice_code,
        "charge": charge_id,
        "code": reason.code,
        "decline_code": reason.decline_code,
        "doc_url": DOC_URL + reason.code.replace("_", "-"),
        "message": reason.message,
        "payment_method": payment_method,
        "type": "card_error",
    }
    intent["status"] = "requires_payment_method"
    intent["payment_method"] = None
    intent["next_action"] = None
    if charge_id is not None:
        intent["latest_charge"] = charge_id
    intent["last_payment_error"] = {name: value for name, value in failure.items() if value is not None}
    return ApiError(
        402,
        "card_error",
        reason.message,
        code=reason.code,
        decline_code=reason.decline_code,
        advice_code=reason.advice_code,
        charge=charge_id,
        payment_method=payment_method,
        payment_intent=intent,
    )


def _next_action(intent: Json, return_url: str | None) -> Json:
    page = f"https://hooks.stripe.com/3d_secure_2/hosted?payment_intent={intent['id']}"
    if return_url is not None:
        return {"type": "redirect_to_url", "redirect_to_url": {"return_url": return_url, "url": page}}
    return {
        "type": "use_stripe_sdk",
        "use_stripe_sdk": {"type": "three_d_secure_redirect", "stripe_js": page},
    }
