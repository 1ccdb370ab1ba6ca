"""The bind mounts of read-only volumes, without an engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cloudai_daemon.mount_table import find_mounted
from support.tools import run_tool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts as root")

ON_A_MACHINE_WITHOUT_USER_NAMESPACES = """
import sys
from pathlib import Path
from cloudai_daemon import read_only_stand

def refuse():
    raise PermissionError(1, "refused")

read_only_stand.enter_new_user_namespace = refuse
try:
    read_only_stand.main(Path(sys.argv[1]), Path(sys.argv[2]))
except OSError as error:
    print(error.strerror)
"""


def test_machine_without_user_namespaces_is_told_so_and_nothing_stays_mounted(tmp_path: Path) -> None:
    directory, stand = tmp_path / "directory", tmp_path / "stand"
    directory.mkdir()
    stand.mkdir()

    said = run_tool(sys.executable, "-c", ON_A_MACHINE_WITHOUT_USER_NAMESPACES, str(directory), str(stand))

    assert said.strip() == "user namespaces are not allowed here: no read-only volume can be made"
    assert find_mounted(stand) is None
