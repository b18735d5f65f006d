"""The operators' desk: letters, what was done to them, replays; the mode in which a call was made."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """New tables only, and one column."""
    op.add_column("operations", sa.Column("livemode", sa.Boolean(create_constraint=False)))
    op.create_table(
        "letters",
        sa.Column("letter_id", sa.String(40), nullable=False),
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
        sa.Column("landings", sa.Integer, nullable=False),
        sa.Column("landing_id", sa.String(255), nullable=False),
        sa.Column("first_seen", _TIME),
        sa.Column("landed_at", _TIME, nullable=False),
        sa.Column("moved_at", _TIME, nullable=False),
        sa.Column("edited_from", sa.String(40)),
        sa.Column("history", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("letter_id", name="pk_letters"),
        sa.ForeignKeyConstraint(["edited_from"], ["letters.letter_id"], name="fk_letters_edited_from"),
        sa.CheckConstraint("state IN ('open', 'replaying', 'resolved', 'discarded')", name=op.f("ck_letters_state")),
    )
    op.create_index("ix_letters_state", "letters", ["state", "landed_at", "letter_id"])
    op.create_index("ix_letters_order", "letters", ["order_id"])
    op.create_index(
        "ix_letters_group", "letters", ["state", "group_id", "cause", "currency", "amount_minor", "landed_at"]
    )
    op.create_table(
        "acts",
        sa.Column("act_id", sa.Integer, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("by", sa.String(100), nullable=False),
        sa.Column("act", sa.String(20), nullable=False),
        sa.Column("letter_id", sa.String(40)),
        sa.Column("replay_id", sa.String(40)),
        sa.Column("why", sa.Text),
        sa.PrimaryKeyConstraint("act_id", name="pk_acts"),
    )
    op.create_index("ix_acts_letter", "acts", ["letter_id"])
    op.create_table(
        "replays",
        sa.Column("replay_id", sa.String(40), nullable=False),
        sa.Column("made_at", _TIME, nullable=False),
        sa.Column("by", sa.String(100), nullable=False),
        sa.Column("selection", sa.Text, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("ended_because", sa.String(200)),
        sa.PrimaryKeyConstraint("replay_id", name="pk_replays"),
    )
    op.create_table(
        "replay_items",
        sa.Column("replay_id", sa.String(40), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("letter_id", sa.String(40), nullable=False),
        sa.Column("landings", sa.Integer, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("said", sa.Text),
        sa.Column("moved_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("replay_id", "position", name="pk_replay_items"),
        sa.ForeignKeyConstraint(["replay_id"], ["replays.replay_id"], name="fk_replay_items_replay_id"),
        sa.ForeignKeyConstraint(["letter_id"], ["letters.letter_id"], name="fk_replay_items_letter_id"),
        sa.CheckConstraint(
            "state IN ('waiting', 'sent', 'resolved', 'failed', 'blocked', 'skipped')",
            name=op.f("ck_replay_items_state"),
        ),
    )
    op.create_index("ix_replay_items_letter", "replay_items", ["letter_id"])
    op.create_index("ix_replay_items_state", "replay_items", ["replay_id", "state", "position"])
    _refuse_changes_of_acts()


def _refuse_changes_of_acts() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER acts_no_{act.lower()} BEFORE {act} ON acts "
                "BEGIN SELECT RAISE(ABORT, 'acts are append-only'); END"
            )
        # A REPLACE deletes without firing the trigger of DELETE.
        op.execute(
            "CREATE TRIGGER acts_no_replace BEFORE INSERT ON acts "
            "WHEN EXISTS (SELECT 1 FROM acts WHERE act_id = NEW.act_id) "
            "BEGIN SELECT RAISE(ABORT, 'acts are append-only'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION refuse_change_of_acts() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'acts are append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER acts_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON acts "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_acts()"
    )
