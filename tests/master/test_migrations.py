from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from cloudai_master.data_dir import DataDir
from cloudai_master.database import Database, open_sqlite
from cloudai_master.schema import metadata


def test_migrations_from_nothing_make_the_schema(tmp_path: Path) -> None:
    database = DataDir(tmp_path).open_database()
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert set(metadata.tables) < set(inspect(connection).get_table_names())
    database.close()


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    first = DataDir(tmp_path).open_database()
    first.close()
    again = DataDir(tmp_path).open_database()
    with again.read() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "0001"
    again.close()


def test_commits_are_on_disk_when_they_return(tmp_path: Path) -> None:
    engine = open_sqlite(tmp_path / "names.db")
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    Database(engine).close()
