"""The CSI driver and callers who do not wait for long: they are answered in time, and what was begun is found again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.csi_client import refusal, repeat
from support.csi_driver_process import CsiDriverProcess, run_driver, wait_for_supervisor
from support.master_process import MasterProcess
from support.mount_daemons import require_daemon, stopped
from support.mount_process import MakeMount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the driver mounts as root")

USER = "user-123"
SHORT_SECONDS = 6.0
"""Less than the driver's own limits, each of ten seconds or more."""

MASTER_SECONDS = 4.0
"""Less than the five seconds of one attempt at the master."""


@pytest.fixture
def token(master: MasterProcess) -> str:
    return master.make_token(USER)


@pytest.fixture
def driver(master: MasterProcess, tmp_path: Path) -> Iterator[CsiDriverProcess]:
    yield from run_driver(tmp_path / "csi", master.address)


def refused_in_time(call: Any) -> tuple[str, str]:
    """The same as `refusal`, which must be the driver's own answer: gRPC's, when none came in time, has these words."""
    code, sentence = refusal(call)
    assert sentence != "Deadline Exceeded"
    return code, sentence


def test_calls_that_wait_for_the_master_are_answered_in_the_callers_time(
    driver: CsiDriverProcess, master: MasterProcess, token: str, make_mount: MakeMount
) -> None:
    """
    K5. A call is answered before its caller gives it up; what it has begun goes on, and the same call finds it.
    """
    staged = driver.stage_new("pvc-staged", token)
    volume = driver.create("pvc", token)
    with master.silent():
        for call in (
            lambda: driver.create("pvc-new", token, seconds=MASTER_SECONDS),
            lambda: driver.create("pvc", token, seconds=MASTER_SECONDS),
            lambda: driver.stage(volume.volume_id, token, seconds=MASTER_SECONDS),
            lambda: driver.stage(staged.volume_id, "e30.e30.e30", seconds=MASTER_SECONDS),
            lambda: driver.delete(volume.volume_id, token, seconds=MASTER_SECONDS),
        ):
            code, sentence = refused_in_time(call)
            # The second where gRPC has given the connection up before.
            assert code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
            assert f"the master {master.address} is away" in sentence

    driver.create("pvc-new", token)
    # Whatever became of the deletion that was cut off.
    driver.delete(volume.volume_id, token)
    driver.unstage(staged.volume_id)
    assert not list(driver.state_dir.iterdir())


def test_mount_that_takes_longer_than_its_caller_waits_is_made_for_the_next(
    driver: CsiDriverProcess, token: str
) -> None:
    volume = driver.create("pvc", token).volume_id
    first = driver.start_staging(volume, token, seconds=SHORT_SECONDS)
    with stopped(wait_for_supervisor(driver)):
        assert refused_in_time(first.result) == (
            "DEADLINE_EXCEEDED",
            "it is not done yet, and goes on: repeat this request",
        )
        assert refused_in_time(lambda: driver.stage(volume, token, seconds=SHORT_SECONDS))[0] == "ABORTED"

    repeat(lambda: driver.stage(volume, token))

    driver.unstage(volume)
    assert not driver.mount_processes()
    assert not list(driver.state_dir.iterdir())


def test_publishing_what_is_not_served_is_answered_in_the_callers_time(
    driver: CsiDriverProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    supervisor, daemon = driver.mount_processes()
    with stopped(supervisor):
        daemon.send_signal(signal.SIGKILL)
        daemon.wait_gone(10)

        code, sentence = refused_in_time(
            lambda: driver.publish(volume.volume_id, "other", seconds=SHORT_SECONDS)
        )

        assert code == "UNAVAILABLE"
        assert "cannot be started yet" in sentence
    repeat(lambda: driver.publish(volume.volume_id, "other"))
    for pod in ("pod", "other"):
        repeat(partial(driver.unpublish, volume.volume_id, pod))
    driver.unstage(volume.volume_id)


def test_volume_whose_daemon_says_nothing_is_kept_in_the_callers_time(
    driver: CsiDriverProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    (volume.target / "result").write_text("content")
    with stopped(require_daemon(volume.staging)):
        for give_up in (
            lambda: driver.unpublish(volume.volume_id, "pod", seconds=SHORT_SECONDS),
            lambda: driver.unpublish(volume.volume_id, "pod", seconds=SHORT_SECONDS),
            lambda: driver.unstage(volume.volume_id, seconds=SHORT_SECONDS),
        ):
            code, sentence = refused_in_time(give_up)
            assert code == "DEADLINE_EXCEEDED"
            assert "nothing is lost: it stays mounted" in sentence

    # Nobody has the volume any more: not even once is it ABORTED.
    driver.unpublish(volume.volume_id, "pod")
    driver.unstage(volume.volume_id)
    assert not driver.mount_processes()
