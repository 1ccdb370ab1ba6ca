"""Alembic's environment and one module per version of the schema; run by `Database.migrate`."""
