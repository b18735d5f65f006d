"""One request to the API as the sandbox reads it, before anything is judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.sandbox.stripe_errors import ApiError, invalid
from worker.sandbox.stripe_form import FormError, Pairs, nest, read_pairs

COLLECTION = "/v1/payment_intents"
API_VERSION = "2026-10-28.endive"  # the one stripe-python 16.1.0 pins

_ACTIONS = frozenset({"confirm", "capture", "cancel"})


@dataclass(frozen=True, slots=True)
class Call:
    """`operation` is None for a path the sandbox does not serve; `unreadable` is the answer to a broken body."""

    method: str
    path: str
    operation: str | None
    endpoint: str
    intent_id: str | None
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


def read_call(method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Call:
    """Never raises: whatever arrives must be recorded and answered."""
    operation, endpoint, intent_id = _route(method, path)
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
        intent_id,
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
    if path == COLLECTION:
        return {"POST": "create", "GET": "list"}.get(method), f"{method} {COLLECTION}", None
    head, _, rest = path.partition(COLLECTION + "/")
    intent_id, _, action = rest.partition("/")
    if head or not intent_id:
        return None, f"{method} {path}", None
    if method == "GET" and rest == "search":
        return "search", f"GET {COLLECTION}/search", None
    if not action and not rest.endswith("/"):
        return {"POST": "update", "GET": "retrieve"}.get(method), f"{method} {COLLECTION}/:id", intent_id
    if method == "POST" and action in _ACTIONS:
        return action, f"POST {COLLECTION}/:id/{action}", intent_id
    return None, f"{method} {path}", None
