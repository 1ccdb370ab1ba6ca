"""Listings say themselves what has changed while they were read: no revision of the directories' layout is kept."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Drops the column."""
    op.drop_column("runs", "layout_revision")
