"""`cloudai mount` and `umount`: what is refused, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_config_codec import decode_config, encode_config
from cloudai_daemon.mount_lookup import list_mounts
from cloudai_daemon.mount_table import find_mounted, is_dead
from cloudai_daemon.mounting import (
    prepare_mount,
    prepare_mount_point,
    resolve_config,
    resolve_mount_point,
    start_mount,
)
from support.fake_mount import FAKE_MOUNT_PROCESS, FakeMount, RunCloudai, make_config
from support.mount_process import PROGRAM, wait_until

TOKEN = "token-of-user-123"


def refusal(cloudai: RunCloudai, *arguments: str | Path) -> tuple[int, str]:
    done = cloudai("mount", *arguments, environment={"CLOUDAI_TOKEN": TOKEN})
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert TOKEN not in done.stderr
    return done.returncode, done.stderr


def test_missing_mount_point_is_refused(cloudai: RunCloudai, tmp_path: Path) -> None:
    exit_code, line = refusal(cloudai, "localhost", tmp_path / "missing", "-o", "insecure")
    assert exit_code == 32
    assert line == f"cloudai: {tmp_path / 'missing'}: No such file or directory\n"


def test_mount_point_that_is_a_file_is_refused(cloudai: RunCloudai, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    exit_code, line = refusal(cloudai, "localhost", tmp_path / "file", "-o", "insecure")
    assert exit_code == 32
    assert "Not a directory" in line


def test_mount_point_that_is_not_empty_is_refused(cloudai: RunCloudai, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "file").touch()
    exit_code, line = refusal(cloudai, "localhost", tmp_path / "mnt", "-o", "insecure")
    assert exit_code == 32
    assert "not empty" in line


def test_mount_point_that_is_mounted_is_refused(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    exit_code, line = refusal(cloudai, "localhost", fake_mount.mount_point, "-o", "insecure")
    assert exit_code == 32
    assert "already mounted" in line


def test_unknown_option_is_refused_by_name(cloudai: RunCloudai, tmp_path: Path) -> None:
    exit_code, line = refusal(cloudai, "localhost", tmp_path, "-o", "ro,sise=3")
    assert exit_code == 1
    assert "'sise'" in line


def test_insecure_is_for_the_loopback_only(cloudai: RunCloudai, tmp_path: Path) -> None:
    exit_code, line = refusal(cloudai, "10.0.0.1", tmp_path, "-o", "insecure")
    assert exit_code == 1
    assert "loopback" in line


def test_no_token_is_refused(cloudai: RunCloudai, tmp_path: Path) -> None:
    done = cloudai("mount", "localhost", tmp_path, "-o", "insecure")
    assert done.returncode == 1
    assert "no token" in done.stderr


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xff"])
def test_token_file_without_a_token_is_refused(cloudai: RunCloudai, tmp_path: Path, content: bytes) -> None:
    token_file = tmp_path / "token"
    token_file.write_bytes(content)
    exit_code, line = refusal(cloudai, "localhost", tmp_path, "--token-file", token_file)
    assert exit_code == 1
    assert f"token file {token_file}: holds no token" in line


def test_token_file_that_others_can_read_is_warned_of(cloudai: RunCloudai, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o644)
    done = cloudai("mount", "localhost", tmp_path / "missing", "-o", f"insecure,token_file={token_file}")
    assert "can be read by others" in done.stderr


def test_state_directory_that_others_can_write_into_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.state_dir.mkdir(parents=True, exist_ok=True)
    config.state_dir.chmod(0o777)
    with pytest.raises(CommandFailed) as raised:
        prepare_mount(config)
    assert raised.value.exit_code == ExitCode.MOUNT_FAILED
    assert raised.value.line == f"{config.state_dir}: others can write into the state directory: chmod 700 it"
    assert list(config.state_dir.iterdir()) == []


def test_command_line_and_fstab_give_the_same_config(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    config = resolve_config("localhost", tmp_path, {"token_file": token_file, "insecure": True})
    assert config.source == "localhost:7443"
    assert config.token == ""
    assert config.token_file == token_file


@pytest.mark.parametrize("name", ["state_dir", "cache_dir"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_directory_in_the_mount_point_is_refused(
    cloudai: RunCloudai, tmp_path: Path, name: str, is_linked: bool
) -> None:
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    place = mount_point / name
    if is_linked:
        (tmp_path / "link").symlink_to(mount_point)
        place = tmp_path / "link" / name

    exit_code, line = refusal(cloudai, "localhost", mount_point, "-o", f"insecure,{name}={place}")

    assert exit_code == ExitCode.USAGE
    assert line == (
        f"cloudai: {name}={place} is in {mount_point}, where it cannot be found once that is mounted\n"
    )
    assert list(mount_point.iterdir()) == []


@pytest.mark.parametrize("uid", [0, 1000])
def test_owner_is_shown_as_ones_own_except_to_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    monkeypatch.setenv("CLOUDAI_TOKEN", TOKEN)
    for name in ("geteuid", "getuid", "getgid"):
        monkeypatch.setattr(os, name, lambda: uid)
    config = resolve_config("localhost", tmp_path, {})
    assert config.uid == (None if uid == 0 else 1000)
    assert config.gid == (None if uid == 0 else 1000)


def test_config_survives_the_pipe(tmp_path: Path) -> None:
    config = replace(make_config(tmp_path), ca_file=Path("/ca.pem"), umask=0o22, kernel_words=("noexec",))
    assert decode_config(encode_config(config)) == config


def test_mount_answers_and_is_registered(fake_mount: FakeMount) -> None:
    assert find_mounted(fake_mount.mount_point) is not None
    assert list_mounts() == [fake_mount.entry]
    assert (fake_mount.entry.state_dir / "daemon.log").stat().st_mode & 0o777 == 0o600
    assert os.getsid(fake_mount.entry.process.pid) == fake_mount.entry.process.pid


def test_token_is_in_no_argument_environment_or_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount_fake: Callable[[str], FakeMount]
) -> None:
    monkeypatch.setenv("CLOUDAI_TOKEN", TOKEN)
    entry = mount_fake("mnt").entry
    process_dir = Path("/proc") / str(entry.process.pid)
    assert TOKEN.encode() not in (process_dir / "cmdline").read_bytes()
    assert TOKEN.encode() not in (process_dir / "environ").read_bytes()
    assert TOKEN not in (entry.state_dir / "daemon.log").read_text()


def test_master_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as raised:
        start_mount(make_config(tmp_path, source="127.0.0.9:7443"), FAKE_MOUNT_PROCESS)
    assert raised.value.exit_code == ExitCode.MOUNT_FAILED
    assert raised.value.line.startswith("127.0.0.9:7443: the master did not answer")
    assert find_mounted(tmp_path / "mnt") is None
    assert list_mounts() == []


def test_mount_process_that_dies_is_one_line(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(CommandFailed) as raised:
        start_mount(config, ("/bin/false",))
    assert str(config.state_dir / "daemon.log") in raised.value.line


def test_mount_process_that_dies_leaves_no_zombie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    spawn = os.posix_spawn

    def note_spawn(*arguments: Any, **words: Any) -> int:
        started.append(spawn(*arguments, **words))
        return started[-1]

    monkeypatch.setattr(os, "posix_spawn", note_spawn)

    with pytest.raises(CommandFailed):
        start_mount(make_config(tmp_path), ("/bin/false",))

    assert len(started) == 1
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0], os.WNOHANG)


def test_second_sigterm_skips_the_wait_and_takes_everything_down(fake_mount: FakeMount) -> None:
    log_file = fake_mount.entry.state_dir / "daemon.log"
    fake_mount.hold_uploads()
    fake_mount.entry.process.send_signal(signal.SIGTERM)
    # Not at once: two pending signals of one kind are one.
    wait_until(lambda: "SIGTERM: unmounting" in log_file.read_text(), "the first signal")
    fake_mount.entry.process.send_signal(signal.SIGTERM)
    assert fake_mount.entry.process.wait_gone(30)
    assert find_mounted(fake_mount.mount_point) is None
    assert list_mounts() == []
    assert not fake_mount.entry.control_socket.exists()


def test_failed_upload_at_sigterm_is_named_in_the_log(fake_mount: FakeMount) -> None:
    (fake_mount.mount_point / "model.safetensors").write_bytes(b"x" * 10)
    fake_mount.fail_uploads("quota exceeded")
    fake_mount.hold_uploads()
    fake_mount.entry.process.send_signal(signal.SIGTERM)
    assert fake_mount.entry.process.wait_gone(30)
    log = (fake_mount.entry.state_dir / "daemon.log").read_text()
    assert "staged: 'model.safetensors', 0 of 10 bytes sent" in log


def test_umount_waits_for_uploads(fake_mount: FakeMount) -> None:
    (fake_mount.mount_point / "file").write_bytes(b"x" * 2048)
    fake_mount.hold_uploads()
    with subprocess.Popen([PROGRAM, "umount", fake_mount.mount_point]) as umount:
        wait_until(fake_mount.is_drained, "the drain")
        assert find_mounted(fake_mount.mount_point) is not None
        fake_mount.release_uploads()
    assert umount.returncode == 0
    assert find_mounted(fake_mount.mount_point) is None
    assert not fake_mount.entry.process.is_alive


def test_umount_waits_no_longer_than_it_is_told(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    (fake_mount.mount_point / "file").write_bytes(b"x" * 2048)
    fake_mount.hold_uploads()
    done = cloudai("umount", fake_mount.mount_point, "--timeout", "0.3")
    assert done.returncode == 75
    assert "1 file not durable yet, 2.0 KiB to send; the master does not answer" in done.stderr
    assert find_mounted(fake_mount.mount_point) is None
    assert not fake_mount.entry.process.is_alive


def test_umount_now_leaves_what_is_staged(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    fake_mount.hold_uploads()
    assert cloudai("umount", "--now", fake_mount.mount_point).returncode == 0
    assert find_mounted(fake_mount.mount_point) is None


def test_busy_mount_stays(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    with (fake_mount.mount_point / "open").open("w"):
        done = cloudai("umount", fake_mount.mount_point)
    assert done.returncode == 32
    assert "busy" in done.stderr
    assert find_mounted(fake_mount.mount_point) is not None


def test_umount_of_what_is_not_mounted_is_refused(cloudai: RunCloudai, tmp_path: Path) -> None:
    done = cloudai("umount", tmp_path)
    assert done.returncode == 32
    assert done.stderr == f"cloudai: {tmp_path}: not mounted\n"


def test_umount_of_another_file_system_is_refused(cloudai: RunCloudai) -> None:
    done = cloudai("umount", "/proc")
    assert done.returncode == 32
    assert "not by CloudAI" in done.stderr


def test_kill_leaves_no_registry_entry(fake_mount: FakeMount) -> None:
    fake_mount.entry.process.send_signal(signal.SIGKILL)
    assert fake_mount.entry.process.wait_gone(10)
    assert list_mounts() == []


def test_mount_point_is_resolved_through_symlinks(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert resolve_mount_point(tmp_path / "link") == tmp_path / "real"
    assert resolve_mount_point(tmp_path / "link" / ".." / "real") == tmp_path / "real"


@pytest.fixture
def dead_mount(tmp_path: Path) -> Path:
    """A FUSE mount whose daemon was killed."""
    mount_point = tmp_path / "dead"
    mount_point.mkdir()
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0"
    subprocess.run(
        ["mount", "-i", "-t", "fuse", "-o", options, "dead", mount_point], pass_fds=[descriptor], check=True
    )
    os.close(descriptor)
    return mount_point


def test_dead_mount_is_cleared_away_before_mounting(dead_mount: Path) -> None:
    assert is_dead(dead_mount)
    assert resolve_mount_point(dead_mount) == dead_mount
    prepare_mount_point(dead_mount)
    assert find_mounted(dead_mount) is None


def test_umount_clears_a_dead_mount_away(cloudai: RunCloudai, dead_mount: Path) -> None:
    assert cloudai("umount", dead_mount).returncode == 0
    assert find_mounted(dead_mount) is None


def test_modules_in_the_working_directory_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trio.py").write_text("raise SystemExit('run by a mount')\n")
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, source="127.0.0.1:1")
    with pytest.raises(CommandFailed) as raised:
        start_mount(config)
    assert raised.value.line.startswith("127.0.0.1:1: the master did not answer")
