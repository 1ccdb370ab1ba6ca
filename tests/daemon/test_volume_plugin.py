"""Requests of the volume protocol that no engine makes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_daemon.json_server import JsonAnswer
from cloudai_daemon.volume_driver import VolumeDriver
from cloudai_daemon.volume_plugin import VolumePlugin
from cloudai_daemon.volume_records import VolumeRecords


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
async def test_body_that_is_no_json_is_refused_and_ends_nothing(tmp_path: Path, body: bytes) -> None:
    driver = VolumeDriver(tmp_path / "mount", VolumeRecords(tmp_path / "records"), tmp_path / "stands")

    async with trio.open_nursery() as nursery:
        answer = await VolumePlugin(driver, nursery).answer("POST", "/VolumeDriver.Create", body)

    assert answer == JsonAnswer(500, {"Err": "the request is no JSON"})


async def test_request_that_takes_long_is_answered_in_time_and_goes_on(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    paths = []

    def path_of(driver: VolumeDriver, name: str) -> Path:
        may_end.wait()
        paths.append(name)
        return tmp_path / name

    monkeypatch.setattr(VolumeDriver, "path", path_of)
    driver = VolumeDriver(tmp_path / "mount", VolumeRecords(tmp_path / "records"), tmp_path / "stands")
    async with trio.open_nursery() as nursery:
        plugin = VolumePlugin(driver, nursery)
        for _ in range(2):
            late = await plugin.answer("POST", "/VolumeDriver.Path", b'{"Name": "v"}')
            assert (late.status, late.body["Err"]) == (500, "not done within 4.5 s; it goes on: ask again")
        async with trio.open_nursery() as engines:
            for _ in range(6):
                engines.start_soon(plugin.answer, "POST", "/VolumeDriver.Path", b'{"Name": "v"}')
            await trio.testing.wait_all_tasks_blocked()
            beyond = await plugin.answer("POST", "/VolumeDriver.Path", b'{"Name": "v"}')
        assert beyond.body["Err"] == "8 requests for v are not done yet: ask again later"
        may_end.set()
        await plugin.wait_idle()

        assert paths == ["v"] * 8
        assert not nursery.child_tasks
