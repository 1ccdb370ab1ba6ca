"""A state disk with no room for another row, where no disk is filled."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cloudai_fusefs.journal import Journal


@contextmanager
def full_journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In here every row of a pending node is refused."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Journal, "put", refuse)
        yield
