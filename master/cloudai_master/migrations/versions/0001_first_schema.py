"""The first schema: users, tasks, runs, their trees, chunks, changes, requests, tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes every table; what the columns mean is said in schema.py."""
    op.create_table(
        "requests",
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("request_id", sa.LargeBinary(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("answered_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_name", "request_id", name=op.f("pk_requests")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_requests_answered_at_ns", "requests", ["answered_at_ns"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("token_id", sa.Text(), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_ns", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_tokens")),
    )
    op.create_table(
        "users",
        sa.Column("user_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_key", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "chunks",
        sa.Column("user_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("length_bytes", sa.Integer(), nullable=False),
        sa.Column("stored_at_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_key"], ["users.user_key"], name=op.f("fk_chunks_user_key")),
        sa.PrimaryKeyConstraint("user_key", "digest", name=op.f("pk_chunks")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tasks",
        sa.Column("task_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("removed_at_ns", sa.BigInteger(), nullable=True),
        sa.Column("user_revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_key"], ["users.user_key"], name=op.f("fk_tasks_user_key")),
        sa.PrimaryKeyConstraint("task_key", name=op.f("pk_tasks")),
    )
    op.create_index("ix_tasks_user_revision", "tasks", ["user_key", "user_revision"], unique=False)
    op.create_index(
        "uq_tasks_present",
        "tasks",
        ["user_key", "name"],
        unique=True,
        sqlite_where=sa.text("removed_at_ns IS NULL"),
        postgresql_where=sa.text("removed_at_ns IS NULL"),
    )
    op.create_table(
        "runs",
        sa.Column("run_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("root_node_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("sealed_at_ns", sa.BigInteger(), nullable=True),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("removed_at_ns", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("forgotten_revision", sa.BigInteger(), nullable=False),
        sa.Column("layout_revision", sa.BigInteger(), nullable=False),
        sa.Column("user_revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task_key"], ["tasks.task_key"], name=op.f("fk_runs_task_key")),
        sa.ForeignKeyConstraint(["user_key"], ["users.user_key"], name=op.f("fk_runs_user_key")),
        sa.PrimaryKeyConstraint("run_key", name=op.f("pk_runs")),
        sa.UniqueConstraint("task_id", name=op.f("uq_runs_task_id")),
    )
    op.create_index("ix_runs_user_revision", "runs", ["user_key", "user_revision"], unique=False)
    op.create_index(
        "uq_runs_present",
        "runs",
        ["task_key", "name"],
        unique=True,
        sqlite_where=sa.text("removed_at_ns IS NULL"),
        postgresql_where=sa.text("removed_at_ns IS NULL"),
    )
    op.create_table(
        "changes",
        sa.Column("run_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("change", sa.LargeBinary(), nullable=False),
        sa.Column("made_at_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_key"], ["runs.run_key"], name=op.f("fk_changes_run_key")),
        sa.PrimaryKeyConstraint("run_key", "revision", name=op.f("pk_changes")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_changes_made_at_ns", "changes", ["made_at_ns"], unique=False)
    op.create_table(
        "edges",
        sa.Column("run_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("parent_node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("node_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_key"], ["runs.run_key"], name=op.f("fk_edges_run_key")),
        sa.PrimaryKeyConstraint("run_key", "parent_node_id", "name", name=op.f("pk_edges")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_edges_node", "edges", ["run_key", "node_id"], unique=False)
    op.create_table(
        "manifest_chunks",
        sa.Column("run_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("content_generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("chunk_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("length_bytes", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_key"], ["runs.run_key"], name=op.f("fk_manifest_chunks_run_key")),
        sa.PrimaryKeyConstraint(
            "run_key", "node_id", "content_generation", "chunk_index", name=op.f("pk_manifest_chunks")
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "nodes",
        sa.Column("run_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("mode", sa.Integer(), nullable=False),
        sa.Column("uid", sa.BigInteger(), nullable=False),
        sa.Column("gid", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("ctime_ns", sa.BigInteger(), nullable=False),
        sa.Column("atime_ns", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("content_generation", sa.BigInteger(), nullable=False),
        sa.Column("chunk_count", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("symlink_target", sa.LargeBinary(), nullable=False),
        sa.Column("link_count", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_key"], ["runs.run_key"], name=op.f("fk_nodes_run_key")),
        sa.PrimaryKeyConstraint("run_key", "node_id", name=op.f("pk_nodes")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "superseded_contents",
        sa.Column("run_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("content_generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_generation", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("superseded_at_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_key"], ["runs.run_key"], name=op.f("fk_superseded_contents_run_key")),
        sa.PrimaryKeyConstraint(
            "run_key", "node_id", "content_generation", name=op.f("pk_superseded_contents")
        ),
        sqlite_with_rowid=False,
    )
