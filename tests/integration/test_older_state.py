"""What a mount of an older version left on its state disk when it was killed is taken over by this one.

The archives were made by `tests/fusefs/fixtures/make_state.py` of their time and are kept for ever.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloudai_fusefs.journal_schema import SCHEMA_VERSION
from support.master_process import MasterProcess
from support.mount_process import MakeMount, MountProcess, run_in, wait_until
from support.tree_snapshot import snapshot_tree
from support.xattrs import xattrs_of

FIXTURES = Path(__file__).parents[1] / "fusefs" / "fixtures"
FIRST_VERSION_WITH_BOOTS = 2
ON = "insecure,timeo=20,xattr"
VERSIONS = sorted(path.name for path in FIXTURES.glob("state-v*"))


def shown_in(run: Path) -> dict[str, dict[str, object]]:
    """As `expected.json` has it."""
    return {
        os.fsdecode(path): {
            **entry._asdict(),
            "content": entry.content.hex(),
            "mode": f"{entry.mode:o}",
            "xattrs": shown_xattrs(os.fsencode(run) + b"/" + path),
        }
        for path, entry in snapshot_tree(run).items()
    }


def shown_xattrs(path: bytes) -> dict[str, str]:
    """Of a symlink there are none. Versions before 4 knew of none, and do not speak of them."""
    return {} if os.path.islink(path) else {name: value.hex() for name, value in xattrs_of(path).items()}


def differing(expected: dict[str, dict[str, object]], run: Path) -> dict[str, object]:
    """What is not as expected, by path; of a directory its time is not looked at."""
    shown = shown_in(run)
    found: dict[str, object] = {}
    for path in expected.keys() | shown.keys():
        fields = expected.get(path, {})
        present = {name: value for name, value in shown.get(path, {}).items() if name in fields}
        if not fields or fields != present:
            found[path] = (fields, present)
    return found


@pytest.fixture(params=VERSIONS)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The directory of one version: what was left in `tmp_path`, what it must become in its `expected.json`."""
    directory = FIXTURES / str(request.param)
    subprocess.run(["tar", "-xzf", directory / "left.tar.gz", "-C", tmp_path], check=True)
    (tmp_path / "mount").mkdir()
    (tmp_path / "state").rename(tmp_path / "mount" / "state")
    note_same_boot(tmp_path / "mount" / "state" / "journal.sqlite")
    return directory


def note_same_boot(journal: Path) -> None:
    """The machine has not been started since, or all of it would wait for a person."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with closing(sqlite3.connect(journal, isolation_level=None)) as database:
        if database.execute("PRAGMA user_version").fetchone()[0] >= FIRST_VERSION_WITH_BOOTS:
            database.execute("UPDATE boots SET boot_id = ?", (boot_id,))


@pytest.fixture
def older_master(left: Path, tmp_path: Path) -> Iterator[MasterProcess]:
    master = MasterProcess(tmp_path / "master")
    master.start()
    yield master
    master.kill()


def test_each_version_of_the_journal_is_among_them() -> None:
    """Also that of today, of which there is nothing else to try tomorrow's with."""
    assert set(VERSIONS) == {f"state-v{version}" for version in range(1, SCHEMA_VERSION + 1)}


def test_every_file_that_an_older_version_left_is_shown_and_uploaded(
    left: Path, older_master: MasterProcess, mount_of: MakeMount
) -> None:
    expected = json.loads((left / "expected.json").read_text())
    mount: MountProcess = mount_of(older_master, options=ON)

    mount.wait_durable()

    assert differing(expected, run_in(mount)) == {}
    other = mount_of(older_master, "other", options=ON)
    assert differing(expected, run_in(other)) == {}
    assert mount.status()["pending_count"] == 0
    # Everything was taken over: nothing is left behind, and no word of a failure was said.
    wait_until(lambda: not any(path.is_file() for path in (mount.state_dir / "staged").rglob("*")), "staged")
    assert "WARNING" not in mount.log_text()
    assert "ERROR" not in mount.log_text()
