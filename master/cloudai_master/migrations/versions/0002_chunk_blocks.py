"""Digests of the blocks of chunks, by which ranges are verified; how far the scrub has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes both tables empty: chunks stored before get their row when it is first asked for."""
    op.create_table(
        "chunk_blocks",
        sa.Column("user_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("block_digests", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["user_key"], ["users.user_key"], name=op.f("fk_chunk_blocks_user_key")),
        sa.PrimaryKeyConstraint("user_key", "digest", name=op.f("pk_chunk_blocks")),
    )
    op.create_table(
        "scrub",
        sa.Column("scrub_key", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("started_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("finished_at_ns", sa.BigInteger(), nullable=True),
        sa.Column("user_key", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("scrub_key", name=op.f("pk_scrub")),
    )
