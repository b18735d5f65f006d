"""A shelf for charges, refunds, disputes and balance transactions: kept as JSON, found by id or by their payment."""

import json
from dataclasses import dataclass

from worker.sandbox.stripe_errors import missing
from worker.sandbox.stripe_events import Events
from worker.sandbox.stripe_store import Json, Kept, Scope, Shelf, as_json


@dataclass(slots=True, eq=False)
class KeptObject(Kept):
    intent_id: str | None
    charge_id: str | None


class Objects(Shelf[KeptObject]):
    """`kind` is what Stripe calls one of them."""

    def __init__(self, kind: str, events: Events) -> None:
        super().__init__()
        self.kind = kind
        self._events = events
        self._by_intent: dict[str, list[KeptObject]] = {}

    def retrieve(self, scope: Scope, object_id: str, *, param: str = "id", status: int = 404) -> tuple[str, bytes]:
        """Its id and JSON. Raises ApiError if there is none of this id."""
        kept = self.get(scope, object_id)
        if kept is None:
            raise missing(self.kind, object_id, param=param, status=status)
        return object_id, kept.body

    def load(self, scope: Scope, object_id: str, *, param: str = "id", status: int = 404) -> Json:
        loaded: Json = json.loads(self.retrieve(scope, object_id, param=param, status=status)[1])
        return loaded

    def seek(self, object_id: str) -> tuple[Scope, Json]:
        """In any account, for what happens without a request. Raises ValueError if there is none of this id."""
        kept = self.find(object_id)
        if kept is None:
            raise ValueError(f"no {self.kind} {object_id}")
        return kept.scope, json.loads(kept.body)

    def of_intent(self, intent_id: str) -> list[KeptObject]:
        """Oldest first."""
        return self._by_intent.get(intent_id, [])

    def save(self, scope: Scope, changed: Json, *told_as: str) -> bytes:
        """Keep the object as it is now, tell it as events of these types, and return its JSON."""
        body = as_json(changed)
        kept = self._by_id.get(changed["id"])
        previous = None
        if kept is None:
            kept = KeptObject(
                changed["id"],
                scope,
                self.next_position(scope),
                changed["created"],
                body,
                changed.get("payment_intent"),
                changed.get("charge"),
            )
            self.put(kept)
            if kept.intent_id is not None:
                self._by_intent.setdefault(kept.intent_id, []).append(kept)
        elif told_as:
            before = json.loads(kept.body)
            previous = {name: value for name, value in before.items() if value != changed[name]}
        kept.body = body
        for kind in told_as:
            self._events.tell(scope, kind, changed["id"], body, previous=previous)
        return body
