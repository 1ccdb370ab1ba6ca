"""When the CSI driver's keeper has a volume repaired, again, and not yet. Its clock goes on when a test says so."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.errors import VolumeFailed
from cloudai_daemon.csi.keeper import Keeper
from cloudai_daemon.csi.repairs import Repairs
from cloudai_daemon.csi.staged_records import StagedRecords
from cloudai_daemon.csi.volume_mounts import MountChoices, VolumeMounts
from cloudai_daemon.csi.volume_turns import VolumeTurns
from support.mount_process import wait_until


class FailingRepairs(Repairs):
    """Of volumes that are broken as long as a test says so: each attempt fails, some once they are let go on."""

    def __init__(self, mounts: VolumeMounts, records: StagedRecords) -> None:
        super().__init__(mounts, records, VolumeTurns())
        self.now_seconds = 0.0
        self.broken: list[str] = []
        self.slow: dict[str, threading.Event] = {}
        self.attempts: dict[str, list[float]] = defaultdict(list)
        """At what time, by volume."""

    def list_broken(self) -> list[str]:
        return list(self.broken)

    def repair(self, volume_id: str) -> None:
        self.attempts[volume_id].append(self.now_seconds)
        if volume_id in self.slow:
            self.slow[volume_id].wait()
        raise VolumeFailed(codes.UNAVAILABLE, "it cannot be mounted")


@pytest.fixture
def mounts(tmp_path: Path) -> VolumeMounts:
    choices = MountChoices(address="master.example:7443", options={}, drain_seconds=1.0)
    return VolumeMounts(choices, StagedRecords(tmp_path / "records", tmp_path / "tokens"))


@pytest.fixture
def repairs(mounts: VolumeMounts, tmp_path: Path) -> Iterator[FailingRepairs]:
    repairs = FailingRepairs(mounts, StagedRecords(tmp_path / "records", tmp_path / "tokens"))
    yield repairs
    for held in repairs.slow.values():
        held.set()


class AtOnce(Executor):
    """Has done what it is given when it has it: it is known then that nothing else was."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except VolumeFailed as error:
            done.set_exception(error)
        return done


@pytest.fixture
def keeper(repairs: FailingRepairs, mounts: VolumeMounts) -> Keeper:
    return Keeper(repairs, mounts, AtOnce(), lambda: repairs.now_seconds)


def look_at(second: int, keeper: Keeper, repairs: FailingRepairs) -> None:
    repairs.now_seconds = float(second)
    keeper.look()


def test_volume_that_cannot_be_repaired_is_tried_after_pauses_that_double(
    keeper: Keeper, repairs: FailingRepairs, caplog: pytest.LogCaptureFixture
) -> None:
    repairs.broken = ["0123"]

    for second in range(100):
        look_at(second, keeper, repairs)

    # The pause begins when the next look finds that it has failed; it is half a minute at most.
    assert repairs.attempts["0123"] == [0.0, 2.0, 5.0, 10.0, 19.0, 36.0, 67.0, 98.0]
    assert [record.message for record in caplog.records] == 8 * ["0123: it cannot be mounted"]


def test_volume_that_was_whole_meanwhile_is_tried_at_once(keeper: Keeper, repairs: FailingRepairs) -> None:
    for second in range(12):
        repairs.broken = [] if second == 7 else ["0123"]
        look_at(second, keeper, repairs)

    # Without the seventh second the next would have been the tenth. The pauses begin anew.
    assert repairs.attempts["0123"] == [0.0, 2.0, 5.0, 8.0, 10.0]


def test_volume_whose_repair_is_under_way_is_not_tried_twice_and_holds_up_no_other(
    repairs: FailingRepairs, mounts: VolumeMounts
) -> None:
    keeper = Keeper(repairs, mounts, clock=lambda: repairs.now_seconds)
    repairs.slow["slow"] = threading.Event()
    repairs.broken = ["slow", "other"]

    def are_tried() -> bool:
        look_at(int(repairs.now_seconds) + 1, keeper, repairs)
        return len(repairs.attempts["other"]) >= 3 and bool(repairs.attempts["slow"])

    wait_until(are_tried, "three attempts at the other one")

    assert len(repairs.attempts["slow"]) == 1
