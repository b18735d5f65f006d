"""Parameter validation: everything Stripe can refuse by looking at the request alone.

An error raised here means that no endpoint began to execute, so the idempotency layer does not keep it
(https://docs.stripe.com/api/idempotent_requests). Names per operation are those of stripe-python 16.1.0
(`stripe/params/_payment_intent_*_params.py` and its neighbours); nested groups are checked where they are small and
closed, and taken as they come elsewhere.
"""

from collections.abc import Callable
from typing import Any

from worker.sandbox import stripe_read_param as read
from worker.sandbox.stripe_errors import ApiError, invalid
from worker.sandbox.stripe_expand import check_expand
from worker.sandbox.stripe_money import check_unit

Params = dict[str, Any]
Readers = dict[str, Callable[[str, Any], Any]]

CAPTURE_METHODS = ("automatic", "automatic_async", "manual")
CANCELLATION_REASONS = ("duplicate", "fraudulent", "requested_by_customer", "abandoned")
# Methods that never send the customer to another page, so that confirming them needs no return_url.
STAYING_METHODS = frozenset({"card", "link", "us_bank_account", "sepa_debit", "acss_debit", "bacs_debit"})

_SHARED: Readers = {
    "allowed_payment_method_types": read.text_list,
    "amount_details": read.group(),
    "capture_method": read.choice(*CAPTURE_METHODS),
    "excluded_payment_method_types": read.text_list,
    "expand": read.text_list,
    "hooks": read.group(),
    "payment_details": read.group(),
    "payment_method": read.identifier,
    "payment_method_data": read.payment_method_data,
    "payment_method_options": read.payment_method_options,
    "receipt_email": read.email,
    "setup_future_usage": read.choice("off_session", "on_session"),
    "shipping": read.group("address", "carrier", "name", "phone", "tracking_number", required=("address", "name")),
}
_DESCRIPTIVE: Readers = {
    "application_fee_amount": read.not_negative,
    "metadata": read.metadata,
    "statement_descriptor": read.descriptor,
    "statement_descriptor_suffix": read.descriptor,
    "transfer_data": read.group("destination", "amount"),
}
_AMOUNT_AND_PARTIES: Readers = {
    "amount": read.positive,
    "currency": read.currency,
    "customer": read.customer,
    "customer_account": read.identifier,
    "description": read.text,
    "payment_method_configuration": read.identifier,
    "transfer_group": read.text,
}
_CONFIRMATION: Readers = {
    "confirmation_token": read.identifier,
    "error_on_requires_action": read.boolean,
    "mandate": read.identifier,
    "mandate_data": read.group(),
    "off_session": read.off_session,
    "radar_options": read.group(),
    "return_url": read.url,
    "use_stripe_sdk": read.boolean,
}
_PAGES: Readers = {
    "created": read.created,
    "ending_before": read.identifier,
    "expand": read.text_list,
    "limit": read.page_size,
    "starting_after": read.identifier,
}
_OF_PAYMENT: Readers = {"charge": read.identifier, "payment_intent": read.identifier}
_RETRIEVE: Readers = {"expand": read.text_list}
READERS: dict[str, Readers] = {
    "create": {
        **_SHARED,
        **_DESCRIPTIVE,
        **_AMOUNT_AND_PARTIES,
        **_CONFIRMATION,
        "automatic_payment_methods": read.automatic_payment_methods,
        "confirm": read.boolean,
        "confirmation_method": read.choice("automatic", "manual"),
        "on_behalf_of": read.identifier,
    },
    "update": {**_SHARED, **_DESCRIPTIVE, **_AMOUNT_AND_PARTIES},
    "confirm": {**_SHARED, **_CONFIRMATION, "amount_to_confirm": read.positive},
    "capture": {
        **_DESCRIPTIVE,
        "amount_details": read.group(),
        "amount_to_capture": read.positive,
        "expand": read.text_list,
        "final_capture": read.boolean,
        "hooks": read.group(),
        "payment_details": read.group(),
    },
    "cancel": {"cancellation_reason": read.choice(*CANCELLATION_REASONS), "expand": read.text_list},
    "retrieve": {"client_secret": read.text, "expand": read.text_list},
    "list": {**_PAGES, "customer": read.customer, "customer_account": read.identifier},
    "search": {"expand": read.text_list, "limit": read.page_size, "page": read.text, "query": read.text},
    "charges.retrieve": _RETRIEVE,
    "charges.list": {**_PAGES, "payment_intent": read.identifier},
    "refunds.create": {
        **_OF_PAYMENT,
        "amount": read.positive,
        "currency": read.currency,
        "customer": read.customer,
        "expand": read.text_list,
        "instructions_email": read.email,
        "metadata": read.metadata,
        "origin": read.choice("customer_balance"),
        "reason": read.choice("duplicate", "fraudulent", "requested_by_customer"),
        "refund_application_fee": read.boolean,
        "reverse_transfer": read.boolean,
    },
    "refunds.update": {"expand": read.text_list, "metadata": read.metadata},
    "refunds.retrieve": _RETRIEVE,
    "refunds.list": {**_PAGES, **_OF_PAYMENT},
    "disputes.retrieve": _RETRIEVE,
    "disputes.list": {**_PAGES, **_OF_PAYMENT},
    "balance_transactions.retrieve": _RETRIEVE,
    "events.retrieve": _RETRIEVE,
    "events.list": {**_PAGES, "delivery_success": read.boolean, "type": read.text, "types": read.text_list},
}
REQUIRED = {"create": ("amount", "currency"), "search": ("query",)}
# An empty string unsets these on update (the SDK types them `Literal['']|…`); elsewhere empty is an error.
UNSETTABLE = frozenset(
    {
        "amount_details", "application_fee_amount", "excluded_payment_method_types", "hooks", "metadata",
        "payment_details", "receipt_email", "setup_future_usage", "shipping",
    }
)  # fmt: skip
ONLY_WITH_CONFIRM = ("error_on_requires_action", "mandate", "mandate_data", "off_session", "return_url")
METHOD_SOURCES = ("payment_method", "payment_method_data", "confirmation_token")
NOT_WITH_ALLOWED_TYPES = (
    "automatic_payment_methods",
    "excluded_payment_method_types",
    "payment_method_configuration",
)


def check(operation: str, raw: dict[str, Any]) -> Params:
    """The parameters with their types. Raises ApiError; nothing has been executed then."""
    readers = READERS[operation]
    params: Params = {}
    for name, value in raw.items():
        reader = readers.get(name)
        if reader is None:
            raise _unknown(name)
        if value == "":
            params[name] = _unset(operation, name)
        else:
            params[name] = reader(name, value)
    for name in REQUIRED.get(operation, ()):
        if name not in params:
            raise invalid(f"Missing required param: {name}.", code="parameter_missing", param=name)
    if operation == "create":
        _check_create(params)
    elif operation == "refunds.create":
        _check_refund(params)
    check_expand(operation, params.get("expand", ()))
    return params


def merged_metadata(before: dict[str, str], params: Params) -> dict[str, str]:
    """Metadata merges: an empty value removes its key, an empty set all of them. Raises ApiError past the limit."""
    given: Any = params.get("metadata", ())
    if given == ():
        return before
    merged = {key: value for key, value in (before | given).items() if value != ""} if given else {}
    if len(merged) > read.MAX_METADATA_PAIRS:
        raise invalid(f"Metadata can have up to {read.MAX_METADATA_PAIRS} keys.", param="metadata")
    return merged


def needs_return_url(intent: dict[str, Any], params: Params) -> ApiError | None:
    """The refusal to confirm while methods that redirect are possible and no return_url is given, if it applies.

    Asked of an intent (or of create's own parameters): dynamic payment methods are on unless something restricts
    them, and they redirect unless told never to. It applies to saved cards and off-session too.
    Source: https://docs.stripe.com/upgrades/manage-payment-methods and Stripe's message to those it stops.
    """
    automatic = intent.get("automatic_payment_methods") or {}
    allowed = params.get("allowed_payment_method_types") or intent.get("allowed_payment_method_types")
    if params.get("return_url") or automatic.get("allow_redirects") == "never":
        return None
    if allowed and STAYING_METHODS.issuperset(allowed):
        return None
    return invalid(
        "A `return_url` must be given, because this PaymentIntent accepts payment methods that may redirect the "
        "customer. To accept none of those, set `automatic_payment_methods[enabled]` to `true` and "
        "`automatic_payment_methods[allow_redirects]` to `never`.",
        param="return_url",
    )


def _unknown(name: str) -> ApiError:
    if name == "payment_method_types":
        # https://docs.stripe.com/changelog/endive (2026-09-30)
        return invalid(
            "`payment_method_types` is no longer supported; use `allowed_payment_method_types`.",
            code="payment_method_types_no_longer_supported",
            param=name,
        )
    return invalid(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def _unset(operation: str, name: str) -> Any:
    if operation in {"update", "confirm", "capture"} and name in UNSETTABLE:
        return None
    if name == "metadata":
        return {}
    raise invalid(
        f"You passed an empty string for '{name}'. Empty values are an attempt to unset a parameter; "
        f"however '{name}' cannot be unset.",
        code="parameter_invalid_empty",
        param=name,
    )


def _check_refund(params: Params) -> None:
    named = [name for name in ("charge", "payment_intent") if name in params]
    if not named:
        message = "One of the following params should be provided for this request: payment_intent or charge."
        raise invalid(message, code="parameter_missing")
    if len(named) > 1:
        message = "You may only specify one of these parameters: charge, payment_intent."
        raise invalid(message, code="parameters_exclusive", param="charge")


def _check_create(params: Params) -> None:
    check_unit(params["amount"], params["currency"])
    if "allowed_payment_method_types" in params:
        for name in NOT_WITH_ALLOWED_TYPES:
            if name in params:
                raise invalid(
                    f"You may only specify one of these parameters: allowed_payment_method_types, {name}.",
                    code="parameters_exclusive",
                    param=name,
                )
    if not params.get("confirm"):
        for name in ONLY_WITH_CONFIRM:
            if name in params:
                raise invalid(f"You cannot set `{name}` unless `confirm` is true.", param=name)
        return
    if not any(name in params for name in METHOD_SOURCES):
        raise invalid(
            "You cannot confirm this PaymentIntent because it's missing a payment method. Missing required param: "
            "payment_method.",
            code="parameter_missing",
            param="payment_method",
        )
    refusal = needs_return_url(params, params)
    if refusal is not None:
        raise refusal
