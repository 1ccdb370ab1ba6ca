from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from cloudai_master import cached_open


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The errnos that the kernel answers with, in turn."""
    errnos: list[int] = []

    def refuse(*_: object) -> int:
        ctypes.set_errno(errnos.pop(0))
        return -1

    monkeypatch.setattr(cached_open, "_syscall", refuse)
    monkeypatch.setattr(cached_open, "_is_offered", True)
    return errnos


def test_file_in_memory_is_opened_for_reading(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    descriptor = cached_open.open_cached(os.fsencode(tmp_path / "file"))
    if descriptor is None:
        pytest.skip("this kernel has no openat2 with RESOLVE_CACHED")
    assert os.read(descriptor, 10) == b"data"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_file_that_is_not_there_is_not_opened(tmp_path: Path) -> None:
    assert cached_open.open_cached(os.fsencode(tmp_path / "absent")) is None


def test_kernel_that_would_have_to_wait_is_asked_again(answers: list[int]) -> None:
    answers.extend([errno.EAGAIN, errno.ENOENT, errno.EAGAIN])
    for _ in range(3):
        assert cached_open.open_cached(b"/file") is None
    assert answers == []


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_kernel_that_does_not_offer_it_is_asked_once(answers: list[int], refusal: int) -> None:
    answers.append(refusal)
    for _ in range(3):
        assert cached_open.open_cached(b"/file") is None
    assert answers == []
