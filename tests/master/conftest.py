from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.local_storage import LocalStorage
from support.master_process import MasterProcess


@pytest.fixture
def master(tmp_path: Path) -> Iterator[MasterProcess]:
    """A running master that a test may kill."""
    process = MasterProcess(tmp_path / "master")
    process.start()
    yield process
    process.terminate()
    assert "Traceback" not in process.log_text()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LocalStorage]:
    """The parts of a master without its process and its wire."""
    opened = LocalStorage.with_run(tmp_path / "storage")
    yield opened
    opened.close()
