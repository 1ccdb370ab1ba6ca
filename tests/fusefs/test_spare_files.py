"""Files that are staged again: always empty, never those of a mount before, and no more than are of use."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cloudai_fusefs import spare_files
from cloudai_fusefs.spare_files import SpareFiles


def put_file(spares: SpareFiles, path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDWR)
    try:
        return spares.put(path, descriptor)
    finally:
        os.close(descriptor)


def test_file_comes_back_empty_under_another_name(tmp_path: Path) -> None:
    spares = SpareFiles(tmp_path / "spare")
    assert put_file(spares, tmp_path / "first", b"of one node")
    assert not (tmp_path / "first").exists()
    assert spares.take(tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == b""
    assert not spares.take(tmp_path / "third")


def test_no_more_files_are_kept_than_are_of_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_files, "SPARE_FILES_MAX", 2)
    spares = SpareFiles(tmp_path / "spare")
    assert [put_file(spares, tmp_path / str(number), b"x") for number in range(3)] == [True, True, False]
    assert (tmp_path / "2").read_bytes() == b"x"


def test_what_an_earlier_mount_left_is_removed(tmp_path: Path) -> None:
    put_file(SpareFiles(tmp_path / "spare"), tmp_path / "file", b"x")
    spares = SpareFiles(tmp_path / "spare")
    assert list((tmp_path / "spare").iterdir()) == []
    assert not spares.take(tmp_path / "file")


def test_file_that_stays_in_its_place_keeps_its_content(tmp_path: Path) -> None:
    spares = SpareFiles(tmp_path / "spare")
    (tmp_path / "spare").rmdir()
    assert not put_file(spares, tmp_path / "file", b"of its node")
    assert (tmp_path / "file").read_bytes() == b"of its node"


def test_file_that_cannot_be_emptied_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _size_bytes: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    spares = SpareFiles(tmp_path / "spare")
    monkeypatch.setattr(os, "ftruncate", refuse)
    assert put_file(spares, tmp_path / "file", b"of its node")
    assert not (tmp_path / "file").exists()
    assert list((tmp_path / "spare").iterdir()) == []
    assert not spares.take(tmp_path / "another")


def test_spare_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    spares = SpareFiles(tmp_path / "spare")
    assert put_file(spares, tmp_path / "file", b"x")
    next((tmp_path / "spare").iterdir()).unlink()
    assert not spares.take(tmp_path / "file")
