"""Runs migrations on the connection that `Database.migrate` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from cloudai_master.schema import metadata

# transactional_ddl: Alembic takes SQLite's for one that has none, which is true of its old driver mode alone.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True
)
context.run_migrations()
