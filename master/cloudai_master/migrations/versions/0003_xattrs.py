"""Extended attributes of files and directories."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the column; no row is written, as none has any."""
    op.add_column("nodes", sa.Column("xattrs", sa.LargeBinary(), nullable=True))
