"""`cloudai warmup`: one request for all paths of a mount, a report for people and programs, an end by Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from cloudai_daemon.cli import run_cli
from cloudai_daemon.commands.warmup import describe_warmup
from cloudai_fusefs.mount_control import WarmupReport
from support.fake_mount import FakeMount, RunCloudai
from support.mount_process import PROGRAM, wait_until
from support.terminal import TerminalProgram

FAILED = 2
USAGE = 1
INTERRUPTED = 130


@pytest.fixture
def run(fake_mount: FakeMount) -> Path:
    """Two directories with two files in one and one in the other."""
    run = fake_mount.mount_point / "user-123/digits/2026-11-20_15-04-05"
    for name in ("a/1", "a/2", "b/3"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"x")
    return run


def test_paths_of_a_mount_are_warmed_up_together(cloudai: RunCloudai, run: Path) -> None:
    done = cloudai("warmup", run / "a", run / "b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 files, 3 B: 3 B fetched\n", "")


def test_json_has_a_report_for_each_mount(cloudai: RunCloudai, fake_mount: FakeMount, run: Path) -> None:
    done = cloudai("warmup", run, "--json")
    assert json.loads(done.stdout) == [
        {
            "mount_point": str(fake_mount.mount_point),
            "files": 3,
            "size_bytes": 3,
            "fetched_bytes": 3,
            "skipped_files": 0,
            "failed_files": 0,
            "failed": [],
        }
    ]


def test_files_that_cannot_be_had_are_named_and_the_status_is_2(
    cloudai: RunCloudai, fake_mount: FakeMount, run: Path
) -> None:
    (fake_mount.entry.state_dir / "fail-warmup").write_text("a stored chunk is damaged")
    done = cloudai("warmup", run)
    assert done.returncode == FAILED
    assert done.stderr == (
        f"cloudai: {fake_mount.mount_point}/odd\\nname: a stored chunk is damaged\n"
        "cloudai: and 1 more\n"
        "cloudai: 2 files could not be brought into the cache\n"
    )


def test_path_in_no_mount_is_refused(cloudai: RunCloudai, fake_mount: FakeMount, tmp_path: Path) -> None:
    done = cloudai("warmup", tmp_path)
    assert (done.returncode, done.stderr) == (FAILED, f"cloudai: {tmp_path}: not in a CloudAI mount\n")


def test_more_paths_than_a_request_holds_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cloudai_daemon.commands.warmup.REQUEST_BYTES_MAX", 100)
    assert run_cli(["warmup", str(run / "a"), str(run / "b")]) == USAGE
    assert capsys.readouterr().err == "cloudai: 2 paths are too many at once: name their directories\n"


def test_ctrl_c_ends_it_here_and_at_the_mount(fake_mount: FakeMount, run: Path) -> None:
    fake_mount.hold_uploads()
    state_dir = fake_mount.entry.state_dir
    with subprocess.Popen([PROGRAM, "warmup", run], stderr=subprocess.PIPE, text=True) as process:
        wait_until((state_dir / "warmup-begun").exists, "the warm-up")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED
    assert said.endswith("cloudai: interrupted\n")
    wait_until((state_dir / "warmup-ended").exists, "its end at the mount")


def test_bar_is_drawn_on_a_terminal_and_gone_at_the_end(fake_mount: FakeMount, run: Path) -> None:
    fake_mount.hold_uploads()
    with TerminalProgram(PROGRAM, "warmup", run) as terminal:
        terminal.wait_for_text("warming up, 0 of 3 files", "━━━", "0 B of 3 B")
        fake_mount.release_uploads()
        assert terminal.wait_end() == 0
        assert "━" not in terminal.received[terminal.received.rfind("\x1b[2K") :]
        assert "3 files, 3 B: 3 B fetched" in terminal.text


def test_daemon_that_dies_meanwhile_is_an_error(fake_mount: FakeMount, run: Path) -> None:
    fake_mount.hold_uploads()
    with subprocess.Popen([PROGRAM, "warmup", run], stderr=subprocess.PIPE, text=True) as process:
        wait_until((fake_mount.entry.state_dir / "warmup-begun").exists, "the warm-up")
        fake_mount.entry.process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=20)
    assert process.returncode == FAILED
    assert said.startswith(f"cloudai: {fake_mount.mount_point}: the mount daemon does not answer")


@pytest.mark.parametrize(
    ("fetched_bytes", "skipped_files", "line"),
    [
        (1536, 0, "2 files, 3.0 KiB: 1.5 KiB fetched"),
        (0, 0, "2 files, 3.0 KiB: nothing to fetch"),
        (0, 1, "2 files, 3.0 KiB: nothing to fetch; 1 file being written left out"),
    ],
)
def test_report_is_a_line(fetched_bytes: int, skipped_files: int, line: str) -> None:
    report = WarmupReport(
        files=2,
        size_bytes=3072,
        fetched_bytes=fetched_bytes,
        skipped_files=skipped_files,
        failed_files=0,
        failed=[],
    )
    assert describe_warmup(report) == line
