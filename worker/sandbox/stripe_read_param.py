"""Readers of single parameters: text from the form in, a typed value out, Stripe's own refusal otherwise.

Each reader takes the parameter's name and its decoded value. Limits and codes: https://docs.stripe.com/api/metadata,
https://docs.stripe.com/error-codes, https://docs.stripe.com/get-started/account/statement-descriptors.
"""

import re
from collections.abc import Callable
from typing import Any

from worker.sandbox.stripe_errors import ApiError, invalid
from worker.sandbox.stripe_money import SUPPORTED

MAX_METADATA_PAIRS = 50
MAX_METADATA_KEY = 40
MAX_METADATA_VALUE = 500
MAX_TEXT = 5000
MAX_DESCRIPTOR = 22
MAX_PAGE_SIZE = 100
RANGE_ENDS = ("gt", "gte", "lt", "lte")

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_DESCRIPTOR_FORBIDDEN = re.compile(r"[<>\\'\"*]")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
# Numbers inside groups that Stripe answers as numbers; everything else in a group stays text.
_NUMBERS_IN_GROUPS = frozenset(
    {"amount", "quantity", "unit_cost", "discount_amount", "total_tax_amount", "total_discount_amount"}
)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid(f"Invalid string: {name}", param=name)
    if len(value) > MAX_TEXT:
        raise invalid(f"Invalid string: {name} must be at most {MAX_TEXT} characters.", param=name)
    return value


def identifier(name: str, value: Any) -> str:
    given = text(name, value)
    if not given.strip():
        raise invalid(f"Invalid string: {name} is blank.", code="parameter_invalid_string_blank", param=name)
    return given


def customer(name: str, value: Any) -> str:
    """Customers are not kept here: any id of the right shape is taken for one that exists."""
    given = identifier(name, value)
    if not given.startswith("cus_"):
        raise ApiError(
            400, "invalid_request_error", f"No such customer: '{given}'", code="resource_missing", param=name
        )
    return given


def integer(name: str, value: Any) -> int:
    if not isinstance(value, str) or _INTEGER.fullmatch(value) is None:
        raise invalid(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
    return int(value)


def positive(name: str, value: Any) -> int:
    return _at_least(1, name, value)


def not_negative(name: str, value: Any) -> int:
    return _at_least(0, name, value)


def page_size(name: str, value: Any) -> int:
    size = _at_least(1, name, value)
    if size > MAX_PAGE_SIZE:
        message = f"This value must be less than or equal to {MAX_PAGE_SIZE}."
        raise invalid(message, code="parameter_invalid_integer", param=name)
    return size


def boolean(name: str, value: Any) -> bool:
    if value not in ("true", "false"):
        raise invalid(f"Invalid boolean: {value}", param=name)
    return bool(value == "true")


def off_session(name: str, value: Any) -> bool | str:
    return str(value) if value in ("one_off", "recurring") else boolean(name, value)


def choice(*allowed: str) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if value not in allowed:
            raise invalid(f"Invalid {name}: must be one of {', '.join(allowed)}", param=name)
        return str(value)

    return read


def currency(name: str, value: Any) -> str:
    """Lower case only, as the reference says; upper case may pass at Stripe, and is refused here to be safe."""
    if not isinstance(value, str) or value not in SUPPORTED:
        raise invalid(f"Invalid currency: {value}. It is not one that Stripe supports.", param=name)
    return value


def email(name: str, value: Any) -> str:
    if _EMAIL.fullmatch(text(name, value)) is None:
        raise invalid(f"Invalid email address: {name}", code="email_invalid", param=name)
    return str(value)


def url(name: str, value: Any) -> str:
    if re.match(r"[a-z][a-z0-9+.-]*://\S", text(name, value)) is None:
        raise invalid("Not a valid URL", code="url_invalid", param=name)
    return str(value)


def descriptor(name: str, value: Any) -> str:
    given = text(name, value)
    if len(given) > MAX_DESCRIPTOR or _DESCRIPTOR_FORBIDDEN.search(given) or not re.search("[A-Za-z]", given):
        raise invalid(
            f"The {name} must have at most {MAX_DESCRIPTOR} characters, at least one letter, and none of <>\\'\"*.",
            param=name,
        )
    return given


def text_list(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise invalid("Invalid array", param=name)
    return [text(name, item) for item in value]


def metadata(name: str, value: Any) -> dict[str, str]:
    """Values may be empty: that removes the key when merged."""
    if not isinstance(value, dict):
        raise invalid("Invalid hash: metadata must be a set of key-value pairs.", param=name)
    if len(value) > MAX_METADATA_PAIRS:
        raise invalid(f"Metadata can have up to {MAX_METADATA_PAIRS} keys.", param=name)
    for key, item in value.items():
        where = f"metadata[{key}]"
        if not isinstance(item, str):
            raise invalid("Metadata values must be strings.", param=where)
        if len(key) > MAX_METADATA_KEY:
            raise invalid(f"Metadata keys can have up to {MAX_METADATA_KEY} characters.", param=where)
        if len(item) > MAX_METADATA_VALUE:
            raise invalid(f"Metadata values can have up to {MAX_METADATA_VALUE} characters.", param=where)
    return value


def group(*names: str, required: tuple[str, ...] = ()) -> Callable[[str, Any], dict[str, Any]]:
    """A nested group; with names given, only those are known in it."""

    def read(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise invalid("Invalid object", param=name)
        for part in value:
            if names and part not in names:
                where = f"{name}[{part}]"
                raise invalid(f"Received unknown parameter: {where}", code="parameter_unknown", param=where)
        for part in required:
            if part not in value:
                where = f"{name}[{part}]"
                raise invalid(f"Missing required param: {where}.", code="parameter_missing", param=where)
        return {part: _typed(name, part, item) for part, item in value.items()}

    return read


def automatic_payment_methods(name: str, value: Any) -> dict[str, Any]:
    given = group("enabled", "allow_redirects", required=("enabled",))(name, value)
    given["enabled"] = boolean(f"{name}[enabled]", given["enabled"])
    redirects = given.get("allow_redirects", "always")
    given["allow_redirects"] = choice("always", "never")(f"{name}[allow_redirects]", redirects)
    return given


def payment_method_options(name: str, value: Any) -> dict[str, Any]:
    """One group for each type of payment method."""
    return {kind: group()(f"{name}[{kind}]", options) for kind, options in group()(name, value).items()}


def payment_method_data(name: str, value: Any) -> dict[str, Any]:
    given = group(required=("type",))(name, value)
    text(f"{name}[type]", given["type"])
    card = group()(f"{name}[card]", given.get("card", {}))
    if "number" in card:
        # https://docs.stripe.com/testing: raw numbers are refused unless the account is let to send them.
        raise invalid("Sending card numbers directly to the Stripe API is generally unsafe.", param=f"{name}[card]")
    text(f"{name}[card][token]", card.get("token", ""))
    return given


def created(name: str, value: Any) -> dict[str, int]:
    """A range, or a single moment, as `{"gte": …}` in seconds since the epoch."""
    if isinstance(value, str):
        moment = integer(name, value)
        return {"gte": moment, "lte": moment}
    return {end: integer(f"{name}[{end}]", moment) for end, moment in group(*RANGE_ENDS)(name, value).items()}


def _at_least(least: int, name: str, value: Any) -> int:
    number = integer(name, value)
    if number < least:
        message = f"This value must be greater than or equal to {least}."
        raise invalid(message, code="parameter_invalid_integer", param=name)
    return number


def _typed(name: str, part: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed(name, key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(name, part, item) for item in value]
    if part in _NUMBERS_IN_GROUPS:
        return integer(f"{name}[{part}]", value)
    return value
