"""Letters that were imported: what calls were made for them is known elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """One column; letters imported before are told from the history."""
    op.add_column(
        "letters", sa.Column("imported", sa.Boolean(create_constraint=False), nullable=False, server_default=sa.false())
    )
    op.execute(
        "UPDATE letters SET imported = TRUE WHERE letter_id IN (SELECT letter_id FROM acts WHERE act = 'imported')"
    )
