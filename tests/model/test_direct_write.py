"""Bytes on disk are those that were given, past the page cache and where that is not to be had."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloudai_model.direct_write import DIRECT_BYTES_MIN, write_file
from cloudai_model.limits import CHUNK_BYTES_MAX, KIB


def written(path: Path, data: bytes | memoryview) -> bytes:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_file(handle, data)
    finally:
        os.close(handle)
    return path.read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(size_bytes=0)
@example(size_bytes=DIRECT_BYTES_MIN - 1)
@example(size_bytes=DIRECT_BYTES_MIN)
@example(size_bytes=CHUNK_BYTES_MAX)
@example(size_bytes=CHUNK_BYTES_MAX + 4097)
@given(size_bytes=st.integers(min_value=0, max_value=2 * DIRECT_BYTES_MIN))
def test_file_holds_the_data_whatever_its_length(tmp_path: Path, size_bytes: int) -> None:
    data = (b"0123456789abcdef!" * (size_bytes // 17 + 1))[:size_bytes]
    assert written(tmp_path / "file", data) == data


def test_data_that_begins_anywhere_in_memory_is_written(tmp_path: Path) -> None:
    data = os.urandom(DIRECT_BYTES_MIN + 5)
    assert written(tmp_path / "file", memoryview(data)[5:]) == data[5:]


def test_long_data_leaves_no_pages_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    real_pwrite = os.pwrite

    def pwrite(handle: int, data: memoryview, offset_bytes: int) -> int:
        flags.append(fcntl.fcntl(handle, fcntl.F_GETFL))
        return real_pwrite(handle, data, offset_bytes)

    monkeypatch.setattr(os, "pwrite", pwrite)
    written(tmp_path / "file", bytes(DIRECT_BYTES_MIN))
    assert flags
    assert all(flag & os.O_DIRECT for flag in flags)


def test_file_system_that_refuses_at_the_write_gets_it_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_pwrite = os.pwrite
    is_refused = False

    def pwrite(handle: int, data: memoryview, offset_bytes: int) -> int:
        nonlocal is_refused
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            is_refused = True
            raise OSError(errno.EINVAL, "not aligned enough")
        return real_pwrite(handle, data, offset_bytes)

    monkeypatch.setattr(os, "pwrite", pwrite)
    data = os.urandom(DIRECT_BYTES_MIN + 3)
    assert written(tmp_path / "file", data) == data
    assert is_refused


def test_short_write_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda handle, data, offset: real_pwrite(handle, data[: 64 * KIB], offset)
    )
    data = os.urandom(DIRECT_BYTES_MIN + 100)
    assert written(tmp_path / "file", data) == data


def test_full_disk_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(handle: int, data: memoryview, offset_bytes: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="full"):
        written(tmp_path / "file", bytes(DIRECT_BYTES_MIN))
