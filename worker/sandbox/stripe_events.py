"""Events: what Stripe tells about each change, kept for 30 days.

Source: https://docs.stripe.com/api/events. An event holds the object as it was: here the very bytes that the store
and the idempotency layer keep, so that telling costs a plain creation no second serialisation.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from worker.sandbox.stripe_errors import missing
from worker.sandbox.stripe_gate import PLATFORM
from worker.sandbox.stripe_store import Json, Kept, SandboxClock, Scope, Shelf, as_json, new_id

LIFE_S = 30 * 24 * 3600


class Cause(NamedTuple):
    """The request that led to a change; both None for what happened by itself, or at the bank."""

    request_id: str | None = None
    idempotency_key: str | None = None


BY_ITSELF = Cause()


@dataclass(slots=True, eq=False)
class Event(Kept):
    """`body` is the object of the event; `previous` is what its changed fields held before, as JSON."""

    type: str
    about: str
    previous: bytes | None
    cause: Cause
    undelivered: set[str] | None = None  # endpoints that have not taken it

    @property
    def pending_webhooks(self) -> int:
        return len(self.undelivered or ())

    def render(self, api_version: str) -> bytes:
        """The event as JSON, in the shape of a webhook's body."""
        account = "" if self.scope.account == PLATFORM else f'"account":{json.dumps(self.scope.account)},'
        request_id, key = self.cause
        head = (
            f'{{"id":"{self.object_id}","object":"event",{account}"api_version":{json.dumps(api_version)},'
            f'"context":null,"created":{self.created},"data":{{"object":'
        )
        tail = (
            f'}},"livemode":{json.dumps(self.scope.livemode)},"pending_webhooks":{self.pending_webhooks},'
            f'"request":{{"id":{json.dumps(request_id)},"idempotency_key":{json.dumps(key)}}},"type":"{self.type}"}}'
        )
        before = b"" if self.previous is None else b',"previous_attributes":' + self.previous
        return head.encode() + self.body + before + tail.encode()


class Events(Shelf[Event]):
    """`listener` gets each event as it is told. `twins` is the chance that a change is told by two."""

    def __init__(self, clock: SandboxClock, dice: Random) -> None:
        super().__init__()
        self._clock = clock
        self._dice = dice
        self._cause = BY_ITSELF
        self.enabled = True
        self.twins = 0.0
        self.listener: Callable[[Event], None] | None = None

    @contextlib.contextmanager
    def caused_by(self, request_id: str, idempotency_key: str | None) -> Iterator[None]:
        """Everything told in the block names this request. The block must not await."""
        self._cause = Cause(request_id, idempotency_key)
        try:
            yield
        finally:
            self._cause = BY_ITSELF

    def tell(self, scope: Scope, kind: str, about: str, body: bytes, *, previous: Json | None = None) -> None:
        if not self.enabled:
            return
        now = self._clock.now()
        self.forget_old(scope)
        before = None if previous is None else as_json(previous)
        told = 2 if self.twins > 0 and self._dice.random() < self.twins else 1
        for _ in range(told):
            event = Event(
                new_id("evt"), scope, self.next_position(scope), int(now), body, kind, about, before, self._cause
            )
            self.put(event)
            if self.listener is not None:
                self.listener(event)

    def retrieve(self, scope: Scope, event_id: str, *, api_version: str) -> tuple[str, bytes]:
        """Raises ApiError if there is none of this id, or no longer."""
        self.forget_old(scope)
        event = self.get(scope, event_id)
        if event is None:
            raise missing("event", event_id, param="id")
        return event_id, event.render(api_version)

    def forget_old(self, scope: Scope) -> None:
        self.drop_older_than(scope, self._clock.now() - LIFE_S)
