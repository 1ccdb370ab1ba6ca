from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from cloudai_master.data_dir import DataDir
from cloudai_master.database import Database, open_sqlite
from cloudai_master.schema import SCHEMA_REVISION, metadata
from cloudai_master.service import StorageService
from cloudai_master.tokens import Tokens
from cloudai_model.chunks import block_digests_of
from cloudai_model.limits import BLOCK_BYTES
from support.local_storage import CALLER, LocalStorage, decode


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
        assert MigrationContext.configure(connection).get_current_revision() == "0004"
    again.close()


def test_schema_is_what_the_newest_migration_makes() -> None:
    assert ScriptDirectory.from_config(migrations()).get_current_head() == SCHEMA_REVISION


def test_opening_what_needs_no_migration_does_not_wait_for_alembic(tmp_path: Path) -> None:
    DataDir(tmp_path).open_database().close()
    script = (
        "import sys; from pathlib import Path; import cloudai_master.cli; "
        "from cloudai_master.data_dir import DataDir; "
        "DataDir(Path(sys.argv[1])).open_database().close(); print('alembic' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], check=True, capture_output=True, text=True, timeout=60
    )

    assert done.stdout == "False\n"


def migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", "cloudai_master:migrations")
    return config


def schema_of(database: Database) -> set[object]:
    """Every column, index and constraint; in which order a table has its columns does not matter."""
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE type = 'index'")
        found: set[object] = {sql for (sql,) in rows}
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            for column in inspector.get_columns(table):
                found.add((table, column["name"], str(column["type"]), column["nullable"]))
            constraints = (
                inspector.get_pk_constraint(table),
                *inspector.get_foreign_keys(table),
                *inspector.get_unique_constraints(table),
            )
            found |= {(table, str(each)) for each in constraints}
    return found


def first_schema(path: Path) -> set[object]:
    """What the first version made."""
    config = migrations()
    database = Database(open_sqlite(path / "names.db"))
    with database.write() as transaction:
        config.attributes["connection"] = transaction.connection
        command.upgrade(config, "0001")
    found = schema_of(database)
    database.close()
    return found


def test_data_of_the_first_schema_is_upgraded_and_its_chunks_get_their_blocks(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    data = bytes(BLOCK_BYTES) + b"more"
    storage = LocalStorage.with_run(tmp_path / "data")
    node = storage.commit_file(b"f", data)
    # Back to the first schema, with the data in it.
    with storage.database.write() as transaction:
        for statement in (
            "DROP TABLE chunk_blocks",
            "DROP TABLE scrub",
            "ALTER TABLE nodes DROP COLUMN xattrs",
            "ALTER TABLE runs ADD COLUMN layout_revision BIGINT NOT NULL DEFAULT 0",
            "UPDATE alembic_version SET version_num = '0001'",
        ):
            transaction.connection.exec_driver_sql(statement)
    assert schema_of(storage.database) == first_schema(tmp_path / "first")
    storage.close()

    database = DataDir(tmp_path / "data").open_database()
    upgraded = StorageService(database, storage.store, Tokens(database, b"k" * 32))
    request = storage.read_request(node, with_block_digests=True)
    for _ in range(2):
        assert decode(upgraded.read_chunk(CALLER, request)) == (data, block_digests_of(data))
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM chunk_blocks").scalar_one() == 1
    database.close()


def test_commits_are_on_disk_when_they_return(tmp_path: Path) -> None:
    engine = open_sqlite(tmp_path / "names.db")
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    Database(engine).close()
