"""The tables. What they hold is for ever: an order's row is what keeps it from being charged twice."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from worker.letter import ItemState, LetterState
from worker.payment import OperationState, PaymentState
from worker.payment_command import CommandKind, RequestState
from worker.stripe_event import InboxState


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime: timestamptz on PostgreSQL, readable text on SQLite, which knows no zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuses a naive time, which would mean another moment on another machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive time reached the ledger")
        return value.astimezone(UTC) if dialect.name != "sqlite" else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's
        """Aware again."""
        if value is None:
            return None
        stored: datetime = value
        return stored.replace(tzinfo=UTC) if stored.tzinfo is None else stored.astimezone(UTC)


def _one_of(column: str, states: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(state)) for state in states)})"


METADATA: Final = sa.MetaData(
    naming_convention={
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

# One row per order, whatever happens to it.
PAYMENTS: Final = sa.Table(
    "payments",
    METADATA,
    sa.Column("order_id", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("customer_id", sa.String(255)),
    sa.Column("stripe_account", sa.String(255)),
    sa.Column("payment_id", sa.String(255), unique=True),
    sa.Column("status", sa.String(40)),
    sa.Column("livemode", sa.Boolean(create_constraint=False)),
    sa.Column("sequence", sa.Integer, nullable=False),
    # of the order event that opened it: told with the outcome, whoever comes to know that
    sa.Column("cause", sa.String(255)),
    sa.Column("correlation_id", sa.String(255)),
    sa.Column("traceparent", sa.String(255)),
    sa.Column("opened_at", UtcTime, nullable=False),
    sa.Column("moved_at", UtcTime, nullable=False),
    sa.CheckConstraint(_one_of("state", PaymentState), name="state"),
    sa.CheckConstraint("amount_minor > 0", name="amount"),
    sa.CheckConstraint("state <> 'intent_created' OR payment_id IS NOT NULL", name="intent_has_id"),
    sa.CheckConstraint("(state = 'open') = (sequence = 0)", name="decided_is_told"),
)

# One row per call to Stripe; key and parameters are frozen before the first byte is sent.
OPERATIONS: Final = sa.Table(
    "operations",
    METADATA,
    sa.Column("order_id", sa.String(64), sa.ForeignKey("payments.order_id"), primary_key=True),
    sa.Column("kind", sa.String(40), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("idempotency_key", sa.String(255), nullable=False, unique=True),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("stripe_account", sa.String(255)),
    sa.Column("state", sa.String(20), nullable=False),
    # who is asking right now: a worker, which counts only while it gives signs of life, and one delivery of its own
    sa.Column("claimed_by", sa.String(40)),
    sa.Column("claim", sa.String(80)),
    sa.Column("first_asked_at", UtcTime, nullable=False),
    sa.Column("last_asked_at", UtcTime),
    sa.Column("asked", sa.Integer, nullable=False),
    # JSON: the times at which it may have been asked, where evidence is looked for; what came of each in vain
    sa.Column("asks", sa.Text, nullable=False, server_default="[]"),
    sa.Column("failures", sa.Text, nullable=False, server_default="[]"),
    sa.Column("unknown_because", sa.String(40)),
    sa.Column("livemode", sa.Boolean(create_constraint=False)),
    sa.Column("answered_at", UtcTime),
    sa.Column("request_id", sa.String(255)),
    sa.Column("evidence", sa.Text),
    sa.CheckConstraint(_one_of("state", OperationState), name="state"),
    sa.CheckConstraint("(state IN ('started', 'unknown')) = (answered_at IS NULL)", name="answered_has_time"),
)
# Small however many operations there are: it holds only those whose outcome is not known.
_OPEN: Final = OPERATIONS.c.state.in_((OperationState.STARTED, OperationState.UNKNOWN))
sa.Index("ix_operations_open", OPERATIONS.c.last_asked_at, sqlite_where=_OPEN, postgresql_where=_OPEN)

# What became of a payment after its intent was made; a row is there once Stripe has told of it.
LIVES: Final = sa.Table(
    "lives",
    METADATA,
    sa.Column("order_id", sa.String(64), sa.ForeignKey("payments.order_id"), primary_key=True),
    # of the snapshot that the payment's status is from
    sa.Column("status_at", UtcTime),
    sa.Column("capturable_minor", sa.BigInteger, nullable=False),
    sa.Column("received_minor", sa.BigInteger, nullable=False),
    sa.Column("capture_before", UtcTime),
    # JSON: what the charge came to
    sa.Column("settlement", sa.Text),
)

REFUNDS: Final = sa.Table(
    "refunds",
    METADATA,
    sa.Column("refund_id", sa.String(255), primary_key=True),
    sa.Column("order_id", sa.String(64), sa.ForeignKey("payments.order_id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(40), nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("reason", sa.String(500)),
    sa.Column("failure_reason", sa.String(500)),
    sa.Column("request_id", sa.String(255)),
)
sa.Index("ix_refunds_order", REFUNDS.c.order_id)

DISPUTES: Final = sa.Table(
    "disputes",
    METADATA,
    sa.Column("dispute_id", sa.String(255), primary_key=True),
    sa.Column("order_id", sa.String(64), sa.ForeignKey("payments.order_id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("status", sa.String(40), nullable=False),
    sa.Column("seen_at", UtcTime, nullable=False),
    sa.Column("reason", sa.String(500)),
    sa.Column("evidence_due_by", UtcTime),
)
sa.Index("ix_disputes_order", DISPUTES.c.order_id)

# Stripe's events as they came in, each once for ever: what is kept of them, and what became of them.
STRIPE_EVENTS: Final = sa.Table(
    "stripe_events",
    METADATA,
    sa.Column("event_id", sa.String(255), primary_key=True),
    sa.Column("type", sa.String(255), nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("livemode", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("account", sa.String(255)),
    sa.Column("api_version", sa.String(255)),
    sa.Column("family", sa.String(40)),
    sa.Column("object_id", sa.String(255)),
    sa.Column("payment_id", sa.String(255)),
    sa.Column("order_id", sa.String(255)),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("why", sa.Text),
    sa.Column("received_at", UtcTime, nullable=False),
    sa.Column("moved_at", UtcTime, nullable=False),
    # when it is to be looked at next; counts the looks in vain
    sa.Column("due_at", UtcTime, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.CheckConstraint(_one_of("state", InboxState), name="state"),
)
# Small however many came in: it holds only those that are not done with.
_WAITING: Final = STRIPE_EVENTS.c.state.in_((InboxState.RECEIVED, InboxState.PARKED))
sa.Index("ix_stripe_events_due", STRIPE_EVENTS.c.due_at, sqlite_where=_WAITING, postgresql_where=_WAITING)
sa.Index("ix_stripe_events_payment", STRIPE_EVENTS.c.payment_id)

# What was asked of payments under way. A cancel may be here before its order is.
REQUESTS: Final = sa.Table(
    "requests",
    METADATA,
    sa.Column("order_id", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(255), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    # JSON: the ids of the events that answer it
    sa.Column("told", sa.Text, nullable=False),
    sa.Column("cause", sa.String(255)),
    sa.Column("correlation_id", sa.String(255)),
    sa.Column("traceparent", sa.String(255)),
    sa.Column("made_at", UtcTime, nullable=False),
    sa.Column("moved_at", UtcTime, nullable=False),
    sa.CheckConstraint(_one_of("kind", CommandKind), name="kind"),
    sa.CheckConstraint(_one_of("state", RequestState), name="state"),
)

# Events to tell, written in the transaction that made them true.
EVENTS: Final = sa.Table(
    "events",
    METADATA,
    sa.Column("event_id", sa.String(255), primary_key=True),
    sa.Column("order_id", sa.String(64), sa.ForeignKey("payments.order_id"), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("type", sa.String(60), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("correlation_id", sa.String(255)),
    sa.Column("traceparent", sa.String(255)),
    sa.Column("staged_at", UtcTime, nullable=False),
    sa.Column("published_at", UtcTime),
    sa.UniqueConstraint("order_id", "sequence"),
)
# Small however many events there are: it holds only those not yet told.
sa.Index(
    "ix_events_untold",
    EVENTS.c.staged_at,
    sqlite_where=EVENTS.c.published_at.is_(None),
    postgresql_where=EVENTS.c.published_at.is_(None),
)

# Signs of life; a claim of a worker that is not here, or silent, may be taken over.
WORKERS: Final = sa.Table(
    "workers",
    METADATA,
    sa.Column("worker_id", sa.String(40), primary_key=True),
    sa.Column("seen_at", UtcTime, nullable=False),
)

# When the next call to an endpoint of Stripe may go, for all workers together; seconds since the epoch.
PACE: Final = sa.Table(
    "pace",
    METADATA,
    sa.Column("endpoint", sa.String(40), primary_key=True),
    sa.Column("next_at", sa.Double, nullable=False),
    sa.Column("slowed_to", sa.Double),
    sa.Column("slowed_at", sa.Double),
)

# Dead letters, as operators work on them; never deleted.
LETTERS: Final = sa.Table(
    "letters",
    METADATA,
    sa.Column("letter_id", sa.String(40), primary_key=True),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("reason", sa.String(60), nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("cause", sa.String(200), nullable=False),
    sa.Column("group_id", sa.String(20), nullable=False),
    sa.Column("order_id", sa.String(64)),
    sa.Column("amount_minor", sa.BigInteger),
    sa.Column("currency", sa.String(3)),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("properties", sa.Text, nullable=False),
    sa.Column("unreadable", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    # how often it landed, and the last time: one arrival that is seen again counts once
    sa.Column("landings", sa.Integer, nullable=False),
    sa.Column("landing_id", sa.String(255), nullable=False),
    sa.Column("first_seen", UtcTime),
    sa.Column("landed_at", UtcTime, nullable=False),
    sa.Column("moved_at", UtcTime, nullable=False),
    sa.Column("edited_from", sa.String(40), sa.ForeignKey("letters.letter_id")),
    sa.Column("history", sa.Text, nullable=False),
    # from a ledger whose calls are not known here
    sa.Column("imported", sa.Boolean(create_constraint=False), nullable=False, server_default=sa.false()),
    sa.CheckConstraint(_one_of("state", LetterState), name="state"),
)
sa.Index("ix_letters_state", LETTERS.c.state, LETTERS.c.landed_at, LETTERS.c.letter_id)
sa.Index("ix_letters_order", LETTERS.c.order_id)
# Small however many letters there are: it holds only those that an edit has made.
sa.Index(
    "ix_letters_edited_from",
    LETTERS.c.edited_from,
    sqlite_where=LETTERS.c.edited_from.is_not(None),
    postgresql_where=LETTERS.c.edited_from.is_not(None),
)
# Holds all that is asked of a group, so that 100,000 letters are summed without being read.
sa.Index(
    "ix_letters_group",
    LETTERS.c.state,
    LETTERS.c.group_id,
    LETTERS.c.cause,
    LETTERS.c.currency,
    LETTERS.c.amount_minor,
    LETTERS.c.landed_at,
)

# Who did what to which letters, when and why. Append-only: triggers refuse to change or delete a row.
ACTS: Final = sa.Table(
    "acts",
    METADATA,
    sa.Column("act_id", sa.Integer, primary_key=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("by", sa.String(100), nullable=False),
    sa.Column("act", sa.String(20), nullable=False),
    sa.Column("letter_id", sa.String(40)),
    sa.Column("replay_id", sa.String(40)),
    sa.Column("why", sa.Text),
)
sa.Index("ix_acts_letter", ACTS.c.letter_id)

# A replay: a selection of letters, frozen when it was made.
REPLAYS: Final = sa.Table(
    "replays",
    METADATA,
    sa.Column("replay_id", sa.String(40), primary_key=True),
    sa.Column("made_at", UtcTime, nullable=False),
    sa.Column("by", sa.String(100), nullable=False),
    sa.Column("selection", sa.Text, nullable=False),
    sa.Column("ended_at", UtcTime),
    sa.Column("ended_because", sa.String(200)),
)

REPLAY_ITEMS: Final = sa.Table(
    "replay_items",
    METADATA,
    sa.Column("replay_id", sa.String(40), sa.ForeignKey("replays.replay_id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("letter_id", sa.String(40), sa.ForeignKey("letters.letter_id"), nullable=False),
    # the letter's own count when it was chosen: one that has landed since is not the one that was meant
    sa.Column("landings", sa.Integer, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("said", sa.Text),
    sa.Column("moved_at", UtcTime, nullable=False),
    sa.CheckConstraint(_one_of("state", ItemState), name="state"),
)
sa.Index("ix_replay_items_letter", REPLAY_ITEMS.c.letter_id)
sa.Index("ix_replay_items_state", REPLAY_ITEMS.c.replay_id, REPLAY_ITEMS.c.state, REPLAY_ITEMS.c.position)
