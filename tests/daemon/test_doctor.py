"""What `cloudai doctor` finds, and what it says to do about it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudai_daemon.control_protocol import StatusReport
from cloudai_daemon.control_server import report_status
from cloudai_daemon.doctor import daemon, machine, mounts
from cloudai_daemon.doctor.daemon import (
    check_cache_directory,
    check_clock,
    check_master,
    check_staged,
    check_state_directory,
    check_token,
    check_versions,
)
from cloudai_daemon.doctor.findings import Finding, FindingState
from cloudai_daemon.doctor.machine import (
    check_fuse_conf,
    check_fuse_device,
    check_fusermount,
    check_kernel,
    check_libfuse,
)
from cloudai_daemon.doctor.tree import CheckKnob, check_answer, check_background, check_read_ahead
from cloudai_fusefs.kernel_knobs import KernelKnob
from cloudai_fusefs.mount_control import FileState, FileStatus, MountCounters, MountInspection, MountStatus
from support.fake_mount import FakeMount, RunCloudai

OK, NOTE, PROBLEM = FindingState
NOW_NS = 1_800_000_000 * 10**9
DAY_NS = 86400 * 10**9


def inspection_of(**fields: object) -> MountInspection:
    """Of a mount whose master answers well."""
    usual = {
        "version": "1.0",
        "cache_dir": "/cache",
        "token_file": "",
        "master_failure": "",
        "master_version": "1.0",
        "round_trip_seconds": 0.002,
        "token_user": "user-123",
        "token_expires_at_ns": NOW_NS + 30 * DAY_NS,
    }
    return MountInspection(**{**usual, **fields})  # type: ignore[arg-type]


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks take this process for one of somebody other than root."""
    monkeypatch.setattr(machine, "is_root", lambda: False)


# --- the machine -----------------------------------------------------------------------------------------


def test_kernel_that_keeps_pages_which_writes_went_past_is_a_note() -> None:
    finding = check_kernel("6.1.0-18-amd64")
    assert (finding.state, finding.text, finding.advice) == (
        NOTE,
        "6.1.0-18-amd64, writing takes more CPU than it has to",
        "boot 6.18 or a later one",
    )
    assert check_kernel("6.18.44").state == OK


def test_version_of_libfuse_is_told_and_its_absence_a_problem() -> None:
    finding = check_libfuse()
    assert (finding.state, finding.text.split(".")[0]) == (OK, "3")
    missing = check_libfuse("libfuse3.so.nowhere")
    assert (missing.state, missing.advice) == (PROBLEM, "`apt-get install libfuse3-3`")


def test_device_that_everybody_may_open_is_ok(tmp_path: Path) -> None:
    device = tmp_path / "fuse"
    device.touch()
    device.chmod(0o666)
    assert check_fuse_device(device).state == OK


def test_device_for_root_alone_is_a_note_with_the_line_to_run(tmp_path: Path) -> None:
    device = tmp_path / "fuse"
    device.touch()
    device.chmod(0o600)
    finding = check_fuse_device(device)
    assert (finding.state, finding.advice) == (NOTE, f"`chmod 666 {device}` lets others mount")


def test_missing_device_is_a_problem(tmp_path: Path) -> None:
    finding = check_fuse_device(tmp_path / "fuse")
    assert (finding.state, finding.text) == (PROBLEM, "is missing")


def test_device_that_may_not_be_opened_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "fuse"
    device.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert check_fuse_device(device).state == PROBLEM


def test_fusermount_is_to_be_setuid_root(tmp_path: Path, as_user: None) -> None:
    program = tmp_path / "fusermount3"
    shutil.copy("/bin/true", program)
    finding = check_fusermount(str(program))
    assert (finding.state, finding.advice) == (PROBLEM, f"`chmod u+s {program}` as root")
    program.chmod(0o4755)
    assert check_fusermount(str(program)).state == OK


def test_root_does_without_fusermount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert check_fusermount().state == NOTE
    monkeypatch.setattr(machine, "is_root", lambda: False)
    assert check_fusermount().state == PROBLEM


def test_allow_other_is_roots_unless_the_configuration_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "fuse.conf"
    configuration.write_text("#user_allow_other\n")
    assert check_fuse_conf(configuration).state == OK
    monkeypatch.setattr(machine, "is_root", lambda: False)
    finding = check_fuse_conf(configuration)
    assert (finding.state, finding.advice) == (
        NOTE,
        f"a line `user_allow_other` in {configuration} makes it everybody's",
    )
    configuration.write_text("user_allow_other\n")
    assert check_fuse_conf(configuration).state == OK


# --- a mount ---------------------------------------------------------------------------------------------


def test_tree_that_answers_is_ok(tmp_path: Path) -> None:
    assert check_answer(tmp_path).state == OK


def test_tree_that_hangs_is_a_problem_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(path: Path) -> list[str]:
        release.wait()
        return []

    monkeypatch.setattr(os, "listdir", hang)
    finding = check_answer(tmp_path, 0.05)
    release.set()
    assert (finding.state, finding.text) == (PROBLEM, "does not answer within 0 s")


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (OSError(107, "Transport endpoint is not connected"), PROBLEM, "its daemon has ended"),
        (OSError(5, "Input/output error"), PROBLEM, "Input/output error"),
        (PermissionError(13, "Permission denied"), NOTE, "may not be looked into by this user"),
    ],
)
def test_tree_that_fails_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, state: FindingState, text: str
) -> None:
    def fail(path: Path) -> list[str]:
        raise error

    monkeypatch.setattr(os, "listdir", fail)
    finding = check_answer(tmp_path)
    assert (finding.state, finding.text) == (state, text)


@pytest.mark.parametrize("check", [check_read_ahead, check_background])
def test_small_knob_is_a_note_with_the_line_to_run(tmp_path: Path, check: CheckKnob) -> None:
    knob = KernelKnob(tmp_path / "knob", 1024)
    assert check(knob).state == NOTE
    knob.path.write_text("128\n")
    finding = check(knob)
    assert (finding.state, finding.advice) == (NOTE, f"`echo 1024 | sudo tee {knob.path}`")
    knob.path.write_text("1024\n")
    assert check(knob) == Finding(check="knob", state=OK, text="is 1024")


def test_directory_is_private_and_its_owners(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    owner = tmp_path.stat().st_uid
    assert check_state_directory(tmp_path, owner).state == OK
    assert check_cache_directory(tmp_path, owner, state_dir=tmp_path).text.endswith(
        "on one disk with the state"
    )
    assert check_cache_directory(tmp_path, owner, state_dir=tmp_path / "gone").state == OK
    assert check_state_directory(tmp_path, owner + 1).advice == f"`chown -R {owner + 1} {tmp_path}` as root"
    tmp_path.chmod(0o750)
    finding = check_state_directory(tmp_path, owner)
    assert (finding.state, finding.advice) == (PROBLEM, f"`chmod 700 {tmp_path}`")
    assert check_state_directory(tmp_path / "gone", owner).state == PROBLEM


@pytest.mark.parametrize(("least_bytes", "states"), [(0, (OK, OK)), (1 << 60, (PROBLEM, NOTE))])
def test_directory_needs_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_bytes: int, states: tuple[FindingState, ...]
) -> None:
    monkeypatch.setattr(daemon, "FREE_BYTES_MIN", least_bytes)
    monkeypatch.setattr(daemon, "CACHE_FREE_BYTES_MIN", least_bytes)
    tmp_path.chmod(0o700)
    owner = tmp_path.stat().st_uid
    state = check_state_directory(tmp_path, owner)
    cache = check_cache_directory(tmp_path, owner, state_dir=tmp_path)
    assert (state.state, cache.state) == states


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, OK),
        ({"round_trip_seconds": 3.0}, NOTE),
        ({"master_failure": "the master did not answer", "failure_reason": "MASTER_UNAVAILABLE"}, PROBLEM),
        ({"master_failure": "not authenticated: expired", "failure_reason": "UNAUTHENTICATED"}, OK),
    ],
)
def test_master_is_to_answer_soon(fields: dict[str, object], state: FindingState) -> None:
    assert check_master(inspection_of(**fields), "master.example:7443").state == state


@pytest.mark.parametrize(
    ("expires_at_ns", "state", "words"),
    [
        (0, OK, "without an end"),
        (NOW_NS + 30 * DAY_NS, OK, "until 2027-02-14 08:00:00Z"),
        (NOW_NS + 2 * DAY_NS, NOTE, "until 2027-01-17 08:00:00Z"),
        (NOW_NS - DAY_NS, PROBLEM, "ended 2027-01-14 08:00:00Z"),
    ],
)
def test_token_is_to_be_good_for_a_while(expires_at_ns: int, state: FindingState, words: str) -> None:
    (finding,) = check_token(inspection_of(token_expires_at_ns=expires_at_ns), NOW_NS)
    assert finding.state == state
    assert finding.text.startswith("of user-123")
    assert words in finding.text


def test_refused_token_is_a_problem_and_says_where_the_new_one_goes(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("secret")
    token_file.chmod(0o644)
    inspection = inspection_of(
        token_file=str(token_file),
        master_failure="not authenticated: the token has expired",
        failure_reason="UNAUTHENTICATED",
    )
    open_file, refused = check_token(inspection, NOW_NS)
    assert (open_file.state, open_file.advice) == (PROBLEM, f"`chmod 600 {token_file}`")
    assert (refused.state, refused.text) == (PROBLEM, "not authenticated: the token has expired")
    assert str(token_file) in refused.advice
    assert "secret" not in f"{open_file}{refused}"


def test_token_for_one_run_says_so() -> None:
    (finding,) = check_token(inspection_of(token_task_id="run-7"), NOW_NS)
    assert "for the run run-7" in finding.text


def test_nothing_is_said_of_a_token_while_the_master_is_away() -> None:
    assert list(check_token(inspection_of(master_failure="away"), NOW_NS)) == []


def test_versions_are_to_be_the_same() -> None:
    assert check_versions("1.0", inspection_of()).state == OK
    old_daemon = check_versions("2.0", inspection_of(master_version="2.0"))
    assert (old_daemon.state, old_daemon.text) == (NOTE, "this program 2.0, mount daemon 1.0, master 2.0")
    assert check_versions("1.0", inspection_of(master_version="0.9")).state == NOTE
    assert check_versions("1.0", inspection_of(master_version="")).state == OK


@pytest.mark.parametrize(
    ("ahead_seconds", "round_trip_seconds", "state", "text"),
    [
        (4.9, 0.01, OK, "agrees with the master's"),
        (-4.9, 0.01, OK, "agrees with the master's"),
        (60.0, 0.01, NOTE, "at least 60 s behind the master's"),
        (-60.0, 0.01, NOTE, "at least 60 s ahead of the master's"),
        (6.0, 4.0, OK, "agrees with the master's"),  # the answer may have been two seconds on its way
        (60.0, 4.0, NOTE, "at least 58 s behind the master's"),
    ],
)
def test_clock_that_is_not_the_masters_is_told(
    ahead_seconds: float, round_trip_seconds: float, state: str, text: str
) -> None:
    inspection = inspection_of(master_ahead_seconds=ahead_seconds, round_trip_seconds=round_trip_seconds)
    (finding,) = check_clock(inspection)
    assert (finding.state, finding.text) == (state, text)


def test_nothing_is_said_of_a_clock_that_the_master_does_not_tell() -> None:
    assert list(check_clock(inspection_of(master_ahead_seconds=None))) == []


def report_with(*states: FileState) -> StatusReport:
    pending = [FileStatus(path="x", state=state, size_bytes=2048, uploaded_bytes=1024) for state in states]
    status = MountStatus(source="s:1", user="user-123", connected=True, staged_bytes=0, pending=pending)
    return report_status(status, MountCounters())


def test_backlog_is_a_note_and_what_needs_a_person_a_problem() -> None:
    assert check_staged(report_with()).state == OK
    waiting = check_staged(report_with(FileState.STAGED))
    assert (waiting.state, waiting.text) == (NOTE, "1 file not durable yet, 1.0 KiB to send")
    assert check_staged(report_with(FileState.STAGED, FileState.FAILED)).state == PROBLEM


# --- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def stopped(fake_mount: FakeMount) -> Iterator[FakeMount]:
    """A mount whose daemon says nothing."""
    fake_mount.entry.process.send_signal(signal.SIGSTOP)
    yield fake_mount
    fake_mount.entry.process.send_signal(signal.SIGCONT)


def states_of(done_json: str) -> dict[str, str]:
    (mount,) = json.loads(done_json)["mounts"]
    return {finding["check"]: finding["state"] for finding in mount["findings"]}


def test_healthy_mount_has_no_problem(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    (fake_mount.entry.state_dir.parent / "cache").mkdir(mode=0o700)
    done = cloudai("doctor", fake_mount.mount_point)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    machine, mount = done.stdout.split(f"{fake_mount.mount_point}  127.0.0.1:7443\n")
    assert machine.startswith("this machine\n")
    assert "  ok       daemon          pid" in mount
    assert "  ok       staged          everything is durable" in mount
    assert "problem" not in done.stdout


def test_directory_inside_a_mount_means_the_mount(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    (fake_mount.mount_point / "below").mkdir()
    done = cloudai("doctor", "--json", fake_mount.mount_point / "below")
    assert states_of(done.stdout)["daemon"] == "ok"


def test_master_that_is_away_is_a_problem_and_the_status_1(
    cloudai: RunCloudai, fake_mount: FakeMount
) -> None:
    (fake_mount.entry.state_dir / "master-away").write_text("the master did not answer")
    done = cloudai("doctor", fake_mount.mount_point)
    assert done.returncode == 1
    assert (
        "  problem  master          127.0.0.1:7443: the master did not answer: is it running" in done.stdout
    )


def test_state_directory_that_is_open_to_others_is_a_problem(
    cloudai: RunCloudai, fake_mount: FakeMount
) -> None:
    fake_mount.entry.state_dir.chmod(stat.S_IRWXU | stat.S_IRGRP)
    done = cloudai("doctor", "--json", fake_mount.mount_point)
    assert (done.returncode, states_of(done.stdout)["state"]) == (1, "problem")


def test_daemon_that_says_nothing_is_a_problem_within_seconds(
    cloudai: RunCloudai, stopped: FakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "ANSWER_SECONDS_MAX", 0.2)
    (mount,) = mounts.look_at_mounts(stopped.mount_point)
    states = {finding.check: finding.state for finding in mount.findings}
    assert (states["daemon"], states["state"]) == (PROBLEM, OK)


def test_place_without_a_mount_is_a_problem(
    cloudai: RunCloudai, fake_mount: FakeMount, tmp_path: Path
) -> None:
    done = cloudai("doctor", tmp_path)
    assert done.returncode == 1
    assert f"problem  mount           {tmp_path} is in no CloudAI mount" in done.stdout


def test_daemon_whose_mount_is_elsewhere_is_a_note(
    fake_mount: FakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "list_mounted", list)
    (mount,) = mounts.look_at_mounts(fake_mount.mount_point)
    findings = {finding.check: finding.state for finding in mount.findings}
    assert (findings["tree"], findings["daemon"]) == (NOTE, OK)


def test_mount_whose_daemon_is_not_known_is_a_note(
    fake_mount: FakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "list_mounts", list)
    monkeypatch.setattr(mounts, "FILE_SYSTEM_TYPE", "tmpfs")
    (mount,) = mounts.look_at_mounts(fake_mount.mount_point)
    findings = {finding.check: finding.state for finding in mount.findings}
    assert (findings["tree"], findings["daemon"]) == (OK, NOTE)


def test_without_a_directory_every_mount_is_looked_at(
    cloudai: RunCloudai, mount_fake: Callable[[str], FakeMount]
) -> None:
    mounts = [mount_fake(name) for name in ("one", "two")]
    answer = json.loads(cloudai("doctor", "--json").stdout)
    assert {str(mount.mount_point) for mount in mounts} <= {
        mount["mount_point"] for mount in answer["mounts"]
    }
