from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudai_daemon.commands.parameters import PATH


def test_path_is_taken_without_a_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount whose daemon is stopped would not answer."""
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("the path was looked at"))
    assert PATH.convert("/mnt/cloudai/run", None, None) == Path("/mnt/cloudai/run")
