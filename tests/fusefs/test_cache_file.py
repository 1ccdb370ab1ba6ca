from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudai_fusefs.cache_file import require_private
from cloudai_model.errors import PermissionRefused


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_cache_directory_that_others_cannot_write_is_taken(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    require_private(tmp_path)


def test_cache_directory_that_is_not_there_yet_is_taken(tmp_path: Path) -> None:
    require_private(tmp_path / "missing" / "cache")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_cache_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(PermissionRefused, match="chmod 700"):
        require_private(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_somebody_elses_cache_directory_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(PermissionRefused):
        require_private(tmp_path)
