"""One request to the API as the sandbox reads it, before anything is judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.sandbox.stripe_errors import ApiError, invalid
from worker.sandbox.stripe_form import FormError, Pairs, nest, read_pairs

API_VERSION = "2026-10-28.endive"  # the one stripe-python 16.1.0 pins

_ACTIONS = frozenset({"confirm", "capture", "cancel"})
# Operations by method, on a collection and on one of its objects. Those of PaymentIntents have plain names.
_RESOURCES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "payment_intents": ({"POST": "create", "GET": "list"}, {"POST": "update", "GET": "retrieve"}),
    "refunds": (
        {"POST": "refunds.create", "GET": "refunds.list"},
        {"POST": "refunds.update", "GET": "refunds.retrieve"},
    ),
    "charges": ({"GET": "charges.list"}, {"GET": "charges.retrieve"}),
    "disputes": ({"GET": "disputes.list"}, {"GET": "disputes.retrieve"}),
    "events": ({"GET": "events.list"}, {"GET": "events.retrieve"}),
    "balance_transactions": ({}, {"GET": "balance_transactions.retrieve"}),
}


@dataclass(frozen=True, slots=True)
class Call:
    """`operation` is None for a path the sandbox does not serve; `unreadable` is the answer to a broken body."""

    method: str
    path: str
    operation: str | None
    endpoint: str
    object_id: str | None
    idempotency_key: str | None
    version: str
    headers: Mapping[str, str]
    pairs: Pairs
    raw: dict[str, Any]
    unreadable: ApiError | None

    @property
    def order_id(self) -> str | None:
        metadata = self.raw.get("metadata")
        order_id = metadata.get("order_id") if isinstance(metadata, dict) else None
        return order_id if isinstance(order_id, str) else None

    @property
    def about(self) -> str | None:
        """The object it works on: the one in the path, or the payment that a refund or a list names."""
        named = (self.object_id, self.raw.get("payment_intent"), self.raw.get("charge"))
        return next((name for name in named if isinstance(name, str)), None)


def read_call(method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Call:
    """Never raises: whatever arrives must be recorded and answered."""
    operation, endpoint, object_id = _route(method, path)
    pairs: Pairs = []
    raw: dict[str, Any] = {}
    unreadable = None
    try:
        pairs = read_pairs(body.decode() if method == "POST" else query)
        raw = nest(pairs)
    except (FormError, UnicodeDecodeError) as error:
        unreadable = invalid(
            f"Invalid request: the parameters are no application/x-www-form-urlencoded form ({error})."
        )
    return Call(
        method,
        path,
        operation,
        endpoint,
        object_id,
        # Only POST has idempotency keys; elsewhere the header is without effect.
        (headers.get("Idempotency-Key") or None) if method == "POST" else None,
        headers.get("Stripe-Version", API_VERSION),
        headers,
        pairs,
        raw,
        unreadable,
    )


def _route(method: str, path: str) -> tuple[str | None, str, str | None]:
    """Operation, endpoint (ids share one) and the id in the path."""
    operation: str | None = None
    object_id: str | None = None
    pattern = path
    match path.split("/"):
        case ["", "v1", "payment_intents", "search"] if method == "GET":
            operation = "search"
        case ["", "v1", resource] if resource in _RESOURCES:
            operation = _RESOURCES[resource][0].get(method)
        case ["", "v1", resource, named] if resource in _RESOURCES and named:
            operation, object_id = _RESOURCES[resource][1].get(method), named
            pattern = f"/v1/{resource}/:id"
        case ["", "v1", "payment_intents", named, action] if method == "POST" and named and action in _ACTIONS:
            operation, object_id = action, named
            pattern = f"/v1/payment_intents/:id/{action}"
    return operation, f"{method} {pattern}", object_id
