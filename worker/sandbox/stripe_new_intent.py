"""A PaymentIntent as it is made, and the fields that a request may set on it.

Every field of https://docs.stripe.com/api/payment_intents/object that is always sent is there from the start.
"""

import secrets

from worker.sandbox.stripe_params import Params, merged_metadata
from worker.sandbox.stripe_store import Json, Scope, new_id

# Parameters of a request that are not fields of the intent.
NOT_FIELDS = frozenset(
    {
        "confirm", "confirmation_token", "error_on_requires_action", "expand", "mandate", "mandate_data", "metadata",
        "off_session", "payment_method_configuration", "payment_method_data", "radar_options", "return_url",
        "use_stripe_sdk", "amount_to_confirm",
    }
)  # fmt: skip


def new_intent(scope: Scope, params: Params, created: float) -> Json:
    """Not yet with a payment method: create checks that first."""
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
        "created": int(created),
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
    apply(intent, params)
    return intent


def apply(intent: Json, params: Params) -> None:
    """Write the fields a request sets."""
    for name, value in params.items():
        if name not in NOT_FIELDS and name != "payment_method":
            intent[name] = value
    intent["metadata"] = merged_metadata(intent["metadata"], params)
