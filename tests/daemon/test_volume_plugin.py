"""Requests of the volume protocol that no engine makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudai_daemon.json_server import JsonAnswer
from cloudai_daemon.volume_driver import VolumeDriver
from cloudai_daemon.volume_plugin import VolumePlugin
from cloudai_daemon.volume_records import VolumeRecords


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
async def test_body_that_is_no_json_is_refused_and_ends_nothing(tmp_path: Path, body: bytes) -> None:
    driver = VolumeDriver(tmp_path / "mount", VolumeRecords(tmp_path / "records"), tmp_path / "stands")

    answer = await VolumePlugin(driver).answer("POST", "/VolumeDriver.Create", body)

    assert answer == JsonAnswer(500, {"Err": "the request is no JSON"})
