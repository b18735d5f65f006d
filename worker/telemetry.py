"""Logs as events, and the figures that somebody on call wants first."""

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worker.card_numbers import mask_text
from worker.client_secret import ClientSecret

# Last line of defence: whatever slipped into a log call is taken out again before it is written.
_SECRETS: Final = re.compile(
    r"(?:sk|rk)_(?:live|test)_\w+|whsec_\w+|pi_\w+_secret_\w+|seti_\w+_secret_\w+|(?<=://)[^\s/@:]*:[^\s@]+(?=@)"
)
# Their DEBUG lines hold whole requests and answers, client secrets included.
_LOUD_LIBRARIES: Final = ("stripe", "aiohttp", "sqlalchemy", "alembic", "asyncio")
# Each lost connection is told once, by us; these tell it again as errors.
_REPEATING_LIBRARIES: Final = ("aio_pika", "aiormq", "pamqp")


def configure_logging(*, level: str, as_json: bool, stream: TextIO = sys.stderr) -> None:
    """Set up structlog, and the standard library's loggers beside it, for this process."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        scrub,
        # Our own words: not to be looked through.
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = as_line if as_json else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)
    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _REPEATING_LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)


# Smaller numbers have too few digits to be a card's.
LEAST_CARD: Final = 10**11


def scrub(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: no key, client secret, password or card number leaves in a log line."""
    return {key: _scrubbed(value) for key, value in event.items()}


# Made once: json.dumps would make one for each line. What reaches it is scrubbed, and so plain; the rest is a fault.
_ENCODER: Final = json.JSONEncoder(default=lambda value: _scrubbed(repr(value)))


def as_line(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """A structlog renderer: one line of JSON."""
    return _ENCODER.encode(event)


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        # Each kind of secret has one of these two in it, and most values neither.
        return mask_text(_SECRETS.sub("***", value) if "_" in value or "@" in value else value)
    if isinstance(value, bool | float) or value is None or (isinstance(value, int) and abs(value) < LEAST_CARD):
        return value
    if isinstance(value, ClientSecret):
        return repr(value)
    if isinstance(value, dict):
        return {_scrubbed(str(key)): _scrubbed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_scrubbed(inner) for inner in value]
    return _scrubbed(str(value))


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
