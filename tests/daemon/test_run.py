"""`cloudai run`: one run around one command, and what `seal`, `ls`, `status`, `wait` say of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.fake_mount import FakeMount, RunCloudai
from support.mount_process import PROGRAM, wait_until

RUN = "user-123/digits/2026-11-20_15-04-05"


def run_arguments(*command: str) -> list[str]:
    return ["run", "--task", "digits", "--", *command]


@pytest.mark.parametrize("exit_status", [0, 3, 255])
def test_run_exits_with_the_status_of_its_command(
    cloudai: RunCloudai, fake_mount: FakeMount, exit_status: int
) -> None:
    done = cloudai(*run_arguments("sh", "-c", f"exit {exit_status}"))
    assert done.returncode == exit_status
    assert fake_mount.sealed_status(RUN) == str(exit_status)


def test_output_is_the_run_in_the_commands_own_namespace(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    script = 'echo "$CLOUDAI_OUTPUT $CLOUDAI_TASK $CLOUDAI_TASK_ID $CLOUDAI_RUN"; pwd > /output/where'
    done = cloudai(*run_arguments("sh", "-c", script))
    assert done.stdout == f"/output digits id-of-the-run {RUN}\n"
    assert (fake_mount.mount_point / RUN / "where").read_text() == f"{Path.cwd()}\n"
    assert not Path("/output/where").exists()


def test_arguments_reach_the_command_as_they_are(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    done = cloudai(*run_arguments("printf", "%s|", "a b", "$HOME", "--task", "'\"\n"))
    assert done.stdout == "a b|$HOME|--task|'\"\n|"


def test_without_the_right_to_mount_the_variable_alone_counts(
    cloudai: RunCloudai, fake_mount: FakeMount, tmp_path: Path
) -> None:
    (tmp_path / "unshare").write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2; exit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    done = cloudai(
        *run_arguments("sh", "-c", 'echo x > "$CLOUDAI_OUTPUT/file"'),
        environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0
    assert "no /output here (unshare: Operation not permitted)" in done.stderr
    assert (fake_mount.mount_point / RUN / "file").read_text() == "x\n"


@pytest.mark.parametrize(
    ("command", "exit_status"), [("no-such-program", 127), ("/etc/passwd", 126), ("/", 126)]
)
def test_command_that_cannot_be_executed_seals_its_run(
    cloudai: RunCloudai, fake_mount: FakeMount, command: str, exit_status: int
) -> None:
    done = cloudai(*run_arguments(command))
    assert done.returncode == exit_status
    assert f"cloudai: {command}: " in done.stderr
    assert fake_mount.sealed_status(RUN) == str(exit_status)


def test_command_killed_by_a_signal_is_128_and_its_number(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    done = cloudai(*run_arguments("sh", "-c", "kill -KILL $$"))
    assert done.returncode == 137
    assert fake_mount.sealed_status(RUN) == "137"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_go_to_the_command_which_decides(fake_mount: FakeMount, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [PROGRAM, *run_arguments("sh", "-c", script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == 7
    assert fake_mount.sealed_status(RUN) == "7"


def test_command_gets_signals_as_they_were(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    done = cloudai(*run_arguments("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"))
    _, blocked, _, ignored = done.stdout.split()
    assert int(blocked, 16) == 0
    # glibc ignores its two signals for threads (32 and 33) in what posix_spawn starts.
    assert int(ignored, 16) & ~(1 << 31 | 1 << 32) == 0


def test_output_that_is_not_durable_in_time_is_75_and_says_how_to_go_on(
    cloudai: RunCloudai, fake_mount: FakeMount
) -> None:
    fake_mount.hold_uploads()
    arguments = ["run", "--task", "digits", "--upload-timeout", "0.3", "--", "touch", "/output/file"]
    done = cloudai(*arguments)
    assert done.returncode == 75
    directory = fake_mount.mount_point / RUN
    assert f"Go on with `cloudai seal {directory} --exit-status 0`" in done.stderr
    assert fake_mount.sealed_status(RUN) is None
    fake_mount.release_uploads()
    assert cloudai("seal", directory, "--exit-status", "0").returncode == 0
    assert fake_mount.sealed_status(RUN) == "0"


def test_upload_that_needs_a_person_is_75_with_its_reason(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    fake_mount.fail_uploads("quota exceeded")
    fake_mount.hold_uploads()
    done = cloudai(*run_arguments("touch", "/output/file"))
    assert done.returncode == 75
    assert "quota exceeded" in done.stderr


def test_signal_while_uploads_are_waited_for_leaves_the_run_open(fake_mount: FakeMount) -> None:
    fake_mount.hold_uploads()
    with subprocess.Popen(
        [PROGRAM, *run_arguments("sh", "-c", "echo x > /output/file; echo ready")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        wait_until(lambda: not has_children(process.pid), "the command's end")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 75
    assert b"interrupted. Nothing is lost" in errors
    assert fake_mount.sealed_status(RUN) is None


def test_run_in_no_mount_is_125_and_starts_nothing(cloudai: RunCloudai, tmp_path: Path) -> None:
    done = cloudai(*run_arguments("touch", str(tmp_path / "started")))
    assert done.returncode == 125
    assert "nothing is mounted" in done.stderr
    assert not (tmp_path / "started").exists()


def test_run_that_cannot_be_made_is_125_and_starts_nothing(
    cloudai: RunCloudai, fake_mount: FakeMount, tmp_path: Path
) -> None:
    done = cloudai("run", "--task", "digits", "--name", "today", "--", "touch", str(tmp_path / "started"))
    assert done.returncode == 125
    assert "YYYY-MM-DD_HH-MM-SS" in done.stderr
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--task", "digits", "--"],
        ["--", "true"],
        ["--task", "digits", "--join", "/run", "--", "true"],
        ["--join", "/run", "--name", "2026-11-20_15-04-05", "--", "true"],
        ["--task", "digits", "--user", "1000", "--", "true"],
    ],
)
def test_words_that_do_not_go_together_are_a_usage_error(cloudai: RunCloudai, words: list[str]) -> None:
    assert cloudai("run", *words).returncode == 1


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [("", "podman or docker"), ("podman-of-mine", "podman-of-mine ($CLOUDAI_CONTAINER_ENGINE)")],
)
def test_image_without_an_engine_is_125_and_makes_no_run(
    cloudai: RunCloudai, fake_mount: FakeMount, tmp_path: Path, chosen: str, wanted: str
) -> None:
    done = cloudai(
        *["run", "--task", "digits", "--image", "busybox", "--", "true"],
        environment={"PATH": str(tmp_path), "CLOUDAI_CONTAINER_ENGINE": chosen},
    )

    assert done.returncode == 125
    assert done.stderr == f"cloudai: --image needs {wanted}, which is not installed\n"
    assert cloudai("ls").stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["--image=--help"],
        ["--image=busybox", "--container-option=--name=x"],
        ["--image=busybox", "--container-option=-d"],
    ],
)
def test_words_that_would_lose_the_container_are_125_and_make_no_run(
    cloudai: RunCloudai, fake_mount: FakeMount, words: list[str]
) -> None:
    done = cloudai("run", "--task", "digits", *words, "--", "true")

    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1
    assert cloudai("ls").stdout == ""


def test_sealed_run_is_not_joined(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    cloudai(*run_arguments("true"))
    assert fake_mount.sealed_status(RUN) == "0"

    done = cloudai("run", "--join", fake_mount.mount_point / RUN, "--", "true")

    assert done.returncode == 125
    assert done.stderr == f"cloudai: {fake_mount.mount_point / RUN}: the run is sealed\n"


def test_several_mounts_need_a_choice(cloudai: RunCloudai, mount_fake: Callable[[str], FakeMount]) -> None:
    one, other = mount_fake("one"), mount_fake("other")
    unclear = cloudai(*run_arguments("true"))
    assert unclear.returncode == 125
    assert "--mount" in unclear.stderr
    assert cloudai("run", "--task", "digits", "--mount", one.mount_point, "--", "true").returncode == 0
    chosen = cloudai(*run_arguments("true"), environment={"CLOUDAI_MOUNT": str(other.mount_point)})
    assert chosen.returncode == 0
    assert one.sealed_status(RUN) == other.sealed_status(RUN) == "0"


def test_seal_that_is_refused_is_one_line(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    cloudai(*run_arguments("true"))
    done = cloudai("seal", fake_mount.mount_point / RUN)
    assert done.returncode == 2
    assert "the run is sealed" in done.stderr


def test_ls_shows_the_state_of_runs(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    cloudai(*run_arguments("sh", "-c", "exit 3"))
    assert cloudai("ls").stdout == f"sealed, status 3    1970-01-01 00:00:00Z  {RUN}\n"
    [run] = json.loads(cloudai("ls", "--json").stdout)
    assert run["path"] == RUN
    assert run["sealed"] is True
    assert run["exit_status"] == 3


def test_status_shows_what_is_not_durable(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    assert "everything is durable" in cloudai("status").stdout
    (fake_mount.mount_point / "odd\nname").write_bytes(b"x" * 1536)
    fake_mount.hold_uploads()
    text = cloudai("status", fake_mount.mount_point).stdout
    assert "1 file not durable yet, 1.5 KiB to send" in text
    assert "odd\\nname" in text
    [report] = json.loads(cloudai("status", "--json").stdout)
    assert report["pending_bytes"] == 1536
    assert report["pending"][0]["path"] == "odd\nname"


def test_status_of_a_path_outside_is_refused(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    done = cloudai("status", "/etc")
    assert done.returncode == 2
    assert done.stderr == "cloudai: /etc: not in a CloudAI mount\n"


def test_wait_ends_when_it_is_durable(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    file = fake_mount.mount_point / "file"
    file.write_bytes(b"x")
    fake_mount.hold_uploads()
    assert cloudai("wait", file, "--timeout", "0.2").returncode == 75
    fake_mount.release_uploads()
    assert cloudai("wait", file).returncode == 0


def test_wait_for_a_missing_path_is_refused(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    done = cloudai("wait", fake_mount.mount_point / "missing")
    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_daemon_that_stopped_answering_is_named(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    fake_mount.entry.control_socket.unlink()
    done = cloudai("status")
    assert done.returncode == 2
    assert "does not answer" in done.stdout
    assert str(fake_mount.mount_point) in done.stderr


def has_children(pid: int) -> bool:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text() != ""
