"""What a letter was edited into is found without reading all letters."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """One index, of the letters that an edit has made."""
    edited = sa.text("edited_from IS NOT NULL")
    op.create_index("ix_letters_edited_from", "letters", ["edited_from"], sqlite_where=edited, postgresql_where=edited)
