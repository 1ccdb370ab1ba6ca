"""Refusals by errno, as tests write them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The block must end with an OSError of exactly this errno."""
    with pytest.raises(OSError) as caught:
        yield
    name = errno.errorcode.get(caught.value.errno or 0, str(caught.value.errno))
    assert name == errno.errorcode[number], f"{name} instead of {errno.errorcode[number]}: {caught.value}"
