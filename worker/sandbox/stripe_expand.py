"""Expansion: an id in an answer gives way to the object it stands for (https://docs.stripe.com/api/expanding_objects).

Only between what the sandbox keeps; at Stripe other properties can be expanded too.
"""

import json
from collections.abc import Callable, Iterable

from worker.sandbox.stripe_errors import invalid
from worker.sandbox.stripe_store import Json, as_json

INTENT = "payment_intents"
# Which property of a kind of object leads to which kind.
LEADS_TO: dict[str, dict[str, str]] = {
    INTENT: {"latest_charge": "charges"},
    "charges": {"balance_transaction": "balance_transactions", "payment_intent": INTENT},
    "refunds": {
        "balance_transaction": "balance_transactions",
        "charge": "charges",
        "failure_balance_transaction": "balance_transactions",
        "payment_intent": INTENT,
    },
    "disputes": {"charge": "charges", "payment_intent": INTENT},
}
MAX_DEPTH = 4


def check_expand(operation: str, paths: Iterable[str]) -> None:
    """Raises ApiError for a path that leads nowhere. In a list, paths begin with `data.`."""
    resource, _, action = operation.rpartition(".")
    for path in paths:
        steps = path.split(".")
        if action in {"list", "search"} and steps.pop(0) != "data":
            raise _unexpandable(path)
        kind: str | None = resource or INTENT
        for step in steps:
            kind = LEADS_TO.get(kind or "", {}).get(step)
        if kind is None or not 1 <= len(steps) <= MAX_DEPTH:
            raise _unexpandable(path)


def expanded(body: bytes, paths: Iterable[str], find: Callable[[str], bytes | None]) -> bytes:
    """The answer with each path expanded, where there is something; `find` gives an object's JSON by its id."""
    answer: Json = json.loads(body)
    for path in paths:
        steps = path.split(".")
        if steps[0] == "data":
            for item in answer["data"]:
                _expand(item, steps[1:], find)
        else:
            _expand(answer, steps, find)
    return as_json(answer)


def _expand(item: Json, steps: list[str], find: Callable[[str], bytes | None]) -> None:
    for step in steps:
        value = item[step]
        if isinstance(value, str):
            body = find(value)
            assert body is not None
            value = item[step] = json.loads(body)
        if value is None:
            return
        item = value


def _unexpandable(path: str) -> Exception:
    return invalid(f"This property cannot be expanded ({path}).", param="expand")
