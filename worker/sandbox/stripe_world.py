"""All that a reset throws away: what the sandbox keeps, what Stripe does with it, and what is still to come."""

from random import Random
from typing import Any

from worker.sandbox.stripe_agenda import Agenda
from worker.sandbox.stripe_balance import Balance
from worker.sandbox.stripe_charges import Charges
from worker.sandbox.stripe_disputes import Disputes
from worker.sandbox.stripe_events import Events
from worker.sandbox.stripe_faults import FaultPlan
from worker.sandbox.stripe_idempotency import IdempotencyKeys
from worker.sandbox.stripe_intents import PaymentIntents
from worker.sandbox.stripe_methods import PaymentMethods
from worker.sandbox.stripe_objects import Objects
from worker.sandbox.stripe_post import Post
from worker.sandbox.stripe_record import Record
from worker.sandbox.stripe_refunds import Refunds
from worker.sandbox.stripe_settings import Settings
from worker.sandbox.stripe_store import IntentStore, SandboxClock, Shelf
from worker.sandbox.stripe_webhooks import Webhooks


class World:
    """A request in flight across a reset ends in the world it began in.

    `objects` holds charges, refunds, disputes and balance_transactions, by the names of their endpoints.
    """

    def __init__(self, *, ring: int, seed: int, post: Post) -> None:
        dice = Random(seed)  # noqa: S311 - repeatable troubles, not a secret
        self.clock = clock = SandboxClock()
        self.agenda = agenda = Agenda(clock)
        self.keys = IdempotencyKeys(clock.now)
        self.record = Record(ring)
        self.faults = FaultPlan()
        self.events = events = Events(clock, dice)
        self.webhooks = Webhooks(clock, agenda, post, dice, ring=ring)
        events.listener = self.webhooks.take
        self.store = IntentStore(clock)
        self.objects = {
            "charges": Objects("charge", events),
            "refunds": Objects("refund", events),
            "disputes": Objects("dispute", events),
            "balance_transactions": Objects("balance_transaction", events),
        }
        charges, refunds, disputes, transactions = self.objects.values()
        methods = PaymentMethods()
        balance = Balance(clock, transactions)
        self.charges = Charges(clock, agenda, charges, balance)
        self.disputes = Disputes(clock, charges, disputes, balance)
        self.refunds = Refunds(
            clock,
            agenda,
            intents=self.store,
            charges=charges,
            refunds=refunds,
            methods=methods,
            balance=balance,
            disputes=self.disputes,
        )
        self.intents = PaymentIntents(
            clock,
            agenda,
            store=self.store,
            events=events,
            methods=methods,
            charges=self.charges,
            disputes=self.disputes,
        )

    def take_up(self, settings: Settings) -> None:
        self.keys.life_s = settings.key_life_s
        self.events.enabled = settings.events
        self.events.twins = settings.event_twins
        self.charges.settlement_lag_s = settings.settlement_lag_s
        self.refunds.lag_s = settings.refund_lag_s
        self.webhooks.take_up(settings)

    def close(self) -> None:
        """Nothing more happens by itself, and no event goes out."""
        self.agenda.close()
        self.webhooks.close()

    def body_of(self, object_id: str) -> bytes | None:
        """The JSON of an intent or object, in any account."""
        shelves: tuple[Shelf[Any], ...] = (self.store, *self.objects.values())
        found = (shelf.find(object_id) for shelf in shelves)
        return next((kept.body for kept in found if kept is not None), None)

    def order_of(self, object_id: str | None) -> str | None:
        """The order whose payment this is, or belongs to."""
        if object_id is None:
            return None
        for shelf in self.objects.values():
            kept = shelf.find(object_id)
            if kept is not None:
                object_id = kept.intent_id or object_id
                break
        intent = self.store.find(object_id)
        return intent.order_id if intent is not None else None
