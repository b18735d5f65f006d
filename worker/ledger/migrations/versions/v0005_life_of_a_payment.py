"""The life of a payment: Stripe's events, refunds, disputes, what is captured and settled."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """New tables only."""
    op.create_table(
        "lives",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("status_at", _TIME),
        sa.Column("capturable_minor", sa.BigInteger, nullable=False),
        sa.Column("received_minor", sa.BigInteger, nullable=False),
        sa.Column("capture_before", _TIME),
        sa.Column("settlement", sa.Text),
        sa.PrimaryKeyConstraint("order_id", name="pk_lives"),
        sa.ForeignKeyConstraint(["order_id"], ["payments.order_id"], name="fk_lives_order_id"),
    )
    op.create_table(
        "refunds",
        sa.Column("refund_id", sa.String(255), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("reason", sa.String(500)),
        sa.Column("failure_reason", sa.String(500)),
        sa.Column("request_id", sa.String(255)),
        sa.PrimaryKeyConstraint("refund_id", name="pk_refunds"),
        sa.ForeignKeyConstraint(["order_id"], ["payments.order_id"], name="fk_refunds_order_id"),
    )
    op.create_index("ix_refunds_order", "refunds", ["order_id"])
    op.create_table(
        "disputes",
        sa.Column("dispute_id", sa.String(255), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.Column("reason", sa.String(500)),
        sa.Column("evidence_due_by", _TIME),
        sa.PrimaryKeyConstraint("dispute_id", name="pk_disputes"),
        sa.ForeignKeyConstraint(["order_id"], ["payments.order_id"], name="fk_disputes_order_id"),
    )
    op.create_index("ix_disputes_order", "disputes", ["order_id"])
    op.create_table(
        "stripe_events",
        sa.Column("event_id", sa.String(255), nullable=False),
        sa.Column("type", sa.String(255), nullable=False),
        sa.Column("created", _TIME, nullable=False),
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
        sa.Column("received_at", _TIME, nullable=False),
        sa.Column("moved_at", _TIME, nullable=False),
        sa.Column("due_at", _TIME, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_stripe_events"),
        sa.CheckConstraint(
            "state IN ('received', 'parked', 'applied', 'set_aside')", name=op.f("ck_stripe_events_state")
        ),
    )
    op.create_table(
        "requests",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("asked", sa.Text, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("told", sa.Text, nullable=False),
        sa.Column("cause", sa.String(255)),
        sa.Column("correlation_id", sa.String(255)),
        sa.Column("traceparent", sa.String(255)),
        sa.Column("made_at", _TIME, nullable=False),
        sa.Column("moved_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "request_id", name="pk_requests"),
        sa.CheckConstraint("kind IN ('cancel', 'capture', 'refund')", name=op.f("ck_requests_kind")),
        sa.CheckConstraint("state IN ('remembered', 'open', 'done', 'refused')", name=op.f("ck_requests_state")),
    )
    waiting = sa.text("state IN ('received', 'parked')")
    op.create_index("ix_stripe_events_due", "stripe_events", ["due_at"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_index("ix_stripe_events_payment", "stripe_events", ["payment_id"])
