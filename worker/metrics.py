"""The figures that somebody on call wants first, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The figures of one worker, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.orders = Counter(
            "payment_worker_orders",
            "Deliveries settled, by how: Done, Retry, DeadLetter, GiveBack.",
            ["outcome", "reason"],
            registry=self.registry,
        )
        self.payments = Counter(
            "payment_worker_payments",
            "Outcomes recorded, by state and currency.",
            ["state", "currency"],
            registry=self.registry,
        )
        self.order_seconds = Histogram(
            "payment_worker_order_seconds",
            "From delivery to settled.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.stripe_seconds = Histogram(
            "payment_worker_stripe_seconds",
            "Calls to Stripe, by call and result.",
            ["call", "result"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.webhooks = Counter(
            "payment_worker_webhooks",
            "Webhooks, by what was done: kept, known, not_kept (Stripe comes again), or why it was refused.",
            ["result"],
            registry=self.registry,
        )
        self.stripe_events = Counter(
            "payment_worker_stripe_events",
            "Stripe's events worked on, by type and what became of them: applied, set_aside.",
            ["type", "result"],
            registry=self.registry,
        )
        self.waiting_stripe_events = Gauge(
            "payment_worker_waiting_stripe_events",
            "Stripe's events in the ledger that are not done with, by state: received, parked.",
            ["state"],
            registry=self.registry,
        )
        self.in_work = Gauge("payment_worker_in_work", "Deliveries in work now.", registry=self.registry)
        self.subscribed = Gauge(
            "payment_worker_subscribed", "1 while the broker has us as a consumer.", registry=self.registry
        )
        self.events = Counter(
            "payment_worker_events", "Events told, by type and result.", ["type", "result"], registry=self.registry
        )
        self.untold_events = Gauge(
            "payment_worker_untold_events", "Events in the ledger that no queue has yet.", registry=self.registry
        )
        self.oldest_untold_seconds = Gauge(
            "payment_worker_oldest_untold_event_seconds", "Age of the oldest of those.", registry=self.registry
        )
        self.open_calls = Gauge(
            "payment_worker_open_calls", "Calls to Stripe without a recorded answer.", registry=self.registry
        )
        self.oldest_open_call_seconds = Gauge(
            "payment_worker_oldest_open_call_seconds",
            "Age of the oldest of those; its key expires at 86400.",
            registry=self.registry,
        )
        self.unknown_outcomes = Gauge(
            "payment_worker_unknown_outcomes",
            "Calls to Stripe whose outcome asking again cannot tell.",
            registry=self.registry,
        )
        self.unknown_outcomes_value = Gauge(
            "payment_worker_unknown_outcomes_value",
            "Their money in major units; rounded, for alarms only.",
            ["currency"],
            registry=self.registry,
        )
        self.keys_near_horizon = Gauge(
            "payment_worker_keys_near_horizon",
            "Open calls whose idempotency key is past three quarters of STRIPE_KEY_HORIZON.",
            registry=self.registry,
        )
        self.oldest_key_seconds = Gauge(
            "payment_worker_oldest_key_seconds",
            "Age of the oldest idempotency key that an open call may still be asked with.",
            registry=self.registry,
        )
        self.letters = Gauge(
            "payment_worker_letters",
            "Dead letters in the ledger, by state: open, replaying, resolved, discarded.",
            ["state"],
            registry=self.registry,
        )
        self.oldest_open_letter_seconds = Gauge(
            "payment_worker_oldest_open_letter_seconds",
            "Since the oldest open letter last landed.",
            registry=self.registry,
        )
        self.open_letters_value = Gauge(
            "payment_worker_open_letters_value",
            "Money at risk in open letters, in major units; rounded, for alarms only.",
            ["currency"],
            registry=self.registry,
        )
        self.oldest_replaying_letter_seconds = Gauge(
            "payment_worker_oldest_replaying_letter_seconds",
            "Since a replay took the oldest letter that has no outcome yet.",
            registry=self.registry,
        )
        self.replaying_letters_value = Gauge(
            "payment_worker_replaying_letters_value",
            "Money in letters that are being replayed, in major units; rounded, for alarms only.",
            ["currency"],
            registry=self.registry,
        )
        self.held_letters = Gauge(
            "payment_worker_held_letters",
            "Dead letters in the broker's queue that this worker could not take into the ledger.",
            registry=self.registry,
        )

    def observe_stripe(self, call: str, result: str, seconds: float) -> None:
        """One call to Stripe has ended."""
        self.stripe_seconds.labels(call, result).observe(seconds)
