"""Unknown outcomes and their evidence, the times and failures of each asking, the shared pace."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)
_OPEN = "state IN ('started', 'unknown')"


def upgrade() -> None:
    """Let an operation be unknown or absent, keep when it was asked, and who asked for the payment first."""
    for name in ("cause", "correlation_id", "traceparent"):
        op.add_column("payments", sa.Column(name, sa.String(255)))
    # SQLite cannot change a constraint: there the table is copied into a new one, hence its old shape.
    with op.batch_alter_table("operations", copy_from=_operations_before()) as batch:
        batch.drop_constraint(op.f("ck_operations_state"), type_="check")
        batch.drop_constraint(op.f("ck_operations_answered_has_time"), type_="check")
        batch.add_column(sa.Column("last_asked_at", _TIME))
        batch.add_column(sa.Column("asks", sa.Text, nullable=False, server_default="[]"))
        batch.add_column(sa.Column("failures", sa.Text, nullable=False, server_default="[]"))
        batch.add_column(sa.Column("unknown_because", sa.String(40)))
        batch.create_check_constraint(
            op.f("ck_operations_state"), "state IN ('started', 'unknown', 'answered', 'refused', 'absent')"
        )
        batch.create_check_constraint(
            op.f("ck_operations_answered_has_time"), "(state IN ('started', 'unknown')) = (answered_at IS NULL)"
        )
    op.execute("UPDATE operations SET last_asked_at = first_asked_at")
    op.create_index(
        "ix_operations_open",
        "operations",
        ["last_asked_at"],
        sqlite_where=sa.text(_OPEN),
        postgresql_where=sa.text(_OPEN),
    )
    op.create_table(
        "pace",
        sa.Column("endpoint", sa.String(40), nullable=False),
        sa.Column("next_at", sa.Double, nullable=False),
        sa.Column("slowed_to", sa.Double),
        sa.Column("slowed_at", sa.Double),
        sa.PrimaryKeyConstraint("endpoint", name="pk_pace"),
    )


def _operations_before() -> sa.Table:
    return sa.Table(
        "operations",
        sa.MetaData(),
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
        sa.CheckConstraint("state IN ('started', 'answered', 'refused')", name="ck_operations_state"),
        sa.CheckConstraint("(state = 'started') = (answered_at IS NULL)", name="ck_operations_answered_has_time"),
    )
