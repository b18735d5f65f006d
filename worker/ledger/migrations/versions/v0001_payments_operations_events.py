"""Payments, operations, events and workers.

Written out rather than taken from schema.py: a migration says what was true then. op.f: the name is whole, and
the naming convention of the tables is not to be put before it once more.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the four tables of the main road."""
    op.create_table(
        "payments",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("customer_id", sa.String(255)),
        sa.Column("stripe_account", sa.String(255)),
        sa.Column("payment_id", sa.String(255)),
        sa.Column("status", sa.String(40)),
        sa.Column("livemode", sa.Boolean(create_constraint=False)),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("moved_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="pk_payments"),
        sa.UniqueConstraint("payment_id", name="uq_payments_payment_id"),
        sa.CheckConstraint("state IN ('open', 'intent_created', 'failed')", name=op.f("ck_payments_state")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("ck_payments_amount")),
        sa.CheckConstraint(
            "state <> 'intent_created' OR payment_id IS NOT NULL", name=op.f("ck_payments_intent_has_id")
        ),
        sa.CheckConstraint("(state = 'open') = (sequence = 0)", name=op.f("ck_payments_decided_is_told")),
    )
    op.create_table(
        "operations",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("params", sa.Text, nullable=False),
        sa.Column("stripe_account", sa.String(255)),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("claimed_by", sa.String(40)),
        sa.Column("claim", sa.String(80)),
        sa.Column("first_asked_at", _TIME, nullable=False),
        sa.Column("asked", sa.Integer, nullable=False),
        sa.Column("answered_at", _TIME),
        sa.Column("request_id", sa.String(255)),
        sa.Column("evidence", sa.Text),
        sa.PrimaryKeyConstraint("order_id", "kind", "attempt", name="pk_operations"),
        sa.ForeignKeyConstraint(["order_id"], ["payments.order_id"], name="fk_operations_order_id"),
        sa.UniqueConstraint("idempotency_key", name="uq_operations_idempotency_key"),
        sa.CheckConstraint("state IN ('started', 'answered', 'refused')", name=op.f("ck_operations_state")),
        sa.CheckConstraint("(state = 'started') = (answered_at IS NULL)", name=op.f("ck_operations_answered_has_time")),
    )
    op.create_table(
        "events",
        sa.Column("event_id", sa.String(255), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("type", sa.String(60), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("correlation_id", sa.String(255)),
        sa.Column("traceparent", sa.String(255)),
        sa.Column("staged_at", _TIME, nullable=False),
        sa.Column("published_at", _TIME),
        sa.PrimaryKeyConstraint("event_id", name="pk_events"),
        sa.ForeignKeyConstraint(["order_id"], ["payments.order_id"], name="fk_events_order_id"),
        sa.UniqueConstraint("order_id", "sequence", name="uq_events_order_id_sequence"),
    )
    op.create_index(
        "ix_events_untold",
        "events",
        ["staged_at"],
        sqlite_where=sa.text("published_at IS NULL"),
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.String(40), nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="pk_workers"),
    )
