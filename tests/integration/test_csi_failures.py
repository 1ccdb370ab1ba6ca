"""The CSI driver when something dies or is away: its own process, a mount daemon, the container of both, the master."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from cloudai_daemon.mount_table import find_mounted
from cloudai_daemon.places import runtime_dir
from cloudai_fusefs.state_lock import own_state_directory
from cloudai_proto.csi.v1 import csi_pb2 as csi
from support.csi_client import PublishedVolume, refusal, repeat
from support.csi_driver_process import CsiDriverProcess, run_driver
from support.files import has_content, wait_for_content
from support.master_process import MasterProcess
from support.mount_daemons import kill_daemon, require_daemon, stopped
from support.mount_process import MakeMount, MountProcess, wait_until
from support.podman import IMAGE, WRITER, Podman, wait_for_more_lines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the driver mounts as root")

USER = "user-123"


@pytest.fixture
def token(master: MasterProcess) -> str:
    return master.make_token(USER)


@pytest.fixture
def driver(master: MasterProcess, tmp_path: Path) -> Iterator[CsiDriverProcess]:
    """One that a test may kill."""
    yield from run_driver(tmp_path / "csi", master.address, "--drain", "3")


@pytest.fixture
def reader(make_mount: MakeMount) -> MountProcess:
    return make_mount()


def look_into(volume: PublishedVolume, reader: MountProcess) -> Path:
    """The run in another mount, which has a first file by then: the volume's mount needs the master for no more."""
    (volume.target / "looked into").touch()
    run = reader.mount_point / volume.run
    wait_until((run / "looked into").exists, "the first file")
    return run


def test_driver_that_is_killed_between_calls_goes_on(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.create("pvc", token)
    driver.kill()
    driver.start()
    assert driver.create("pvc", token) == volume
    driver.stage(volume.volume_id, token)
    driver.kill()
    driver.start()
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    driver.kill()
    (target / "written while no driver runs").write_text("content")
    driver.start()
    assert driver.publish(volume.volume_id, "pod") == target
    (target / "more").write_text("content")
    driver.kill()
    driver.start()
    driver.unpublish(volume.volume_id, "pod")
    run = reader.mount_point / volume.volume_context["run"]
    wait_until(lambda: sorted(os.listdir(run)) == ["more", "written while no driver runs"], "both files")
    driver.kill()
    driver.start()
    driver.unstage(volume.volume_id)
    assert not driver.mount_processes()
    assert not os.path.ismount(driver.staging(volume.volume_id))


def test_published_volume_is_there_again_when_its_mount_daemon_was_killed(
    driver: CsiDriverProcess, reader: MountProcess, podman: Podman, token: str
) -> None:
    """
    K2. A published volume whose mount daemon dies is there again, in the containers that have it too.
    """
    volume = driver.publish_new(token)
    read_only = driver.publish(volume.volume_id, "reader", readonly=True)
    (volume.target / "first").write_text("content")
    with podman.start("--volume", f"{volume.target}:/output", IMAGE, "sh", "-c", WRITER) as container:
        wait_for_more_lines(volume.target / "lines")
        kill_daemon(volume.staging)
        wait_for_content(volume.target / "first", "content")
        wait_for_content(read_only / "first", "content")
        wait_for_more_lines(volume.target / "lines")
        (volume.target / "stop").touch()
        assert podman("wait", container).stdout == "0\n"
    with pytest.raises(OSError, match="Read-only file system"):
        (read_only / "more").touch()

    for pod in ("pod", "reader"):
        driver.unpublish(volume.volume_id, pod)
    run = reader.mount_point / volume.run
    wait_for_content(run / "first", "content")
    driver.unstage(volume.volume_id)
    assert not driver.mount_processes()


def test_volumes_are_there_again_when_the_container_of_the_driver_was_killed(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    """
    K3. A driver that starts anew mounts again what died with the one before it, and its uploads go on.
    """
    volume = driver.publish_new(token)
    (volume.target / "looked into").touch()
    reader.wait_durable()
    with master.silent():
        (volume.target / "staged").write_bytes(b"content")
        driver.kill_container()

    driver.start()

    wait_for_content(volume.target / "staged", "content")
    driver.unpublish(volume.volume_id, "pod")
    wait_for_content(reader.mount_point / volume.run / "staged", "content")
    driver.unstage(volume.volume_id)


def test_call_after_the_death_of_everything_is_carried_out(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    (volume.target / "file").write_text("content")
    driver.kill_container()
    driver.start()

    # At once, whoever is faster.
    driver.unpublish(volume.volume_id, "pod")

    wait_for_content(reader.mount_point / volume.run / "file", "content")
    driver.kill_container()
    driver.start()
    driver.unstage(volume.volume_id)
    assert not driver.mount_processes()
    assert not os.path.ismount(volume.staging)
    assert not list(driver.state_dir.iterdir())


def test_calls_are_refused_in_time_while_the_master_is_away(
    driver: CsiDriverProcess, master: MasterProcess, token: str
) -> None:
    volume = driver.create("pvc", token)
    master.kill()

    for call in (
        lambda: driver.create("pvc", token),
        lambda: driver.stage(volume.volume_id, token),
        lambda: driver.delete(volume.volume_id, token),
    ):
        code, sentence = refusal(call)
        assert code == "UNAVAILABLE"
        assert f"{master.address} is away" in sentence
    assert not list(driver.state_dir.iterdir())

    master.start()
    with master.silent():
        assert refusal(lambda: driver.stage(volume.volume_id, token))[0] == "UNAVAILABLE"
    driver.stage(volume.volume_id, token)
    driver.unstage(volume.volume_id)


def test_what_is_not_at_the_master_keeps_its_volume(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    """
    K1. A volume is taken from its last place, and unstaged, once all that was written to it is at the master; until
    then it stays mounted, and the cluster is told to ask again.
    """
    volume = driver.publish_new(token)
    run = look_into(volume, reader)
    master.kill()
    (volume.target / "result").write_text("content")

    for call in (
        lambda: driver.unpublish(volume.volume_id, "pod"),
        lambda: driver.unpublish(volume.volume_id, "pod"),
        lambda: driver.unstage(volume.volume_id),
        lambda: driver.unstage(volume.volume_id, seconds=5),
    ):
        code, sentence = refusal(call)
        assert code == "DEADLINE_EXCEEDED"
        assert "nothing is lost: it stays mounted" in sentence
    assert not volume.target.exists()
    assert has_content(volume.staging / "result", "content")

    master.start()
    repeat(lambda: driver.unpublish(volume.volume_id, "pod"))
    repeat(lambda: driver.unstage(volume.volume_id))
    wait_for_content(run / "result", "content")


def test_what_died_with_its_driver_while_the_master_is_away_is_kept(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    run = look_into(volume, reader)
    master.kill()
    (volume.target / "result").write_text("content")
    driver.kill_container()
    driver.start()

    for call in (
        lambda: driver.unpublish(volume.volume_id, "pod"),
        lambda: driver.unstage(volume.volume_id),
    ):
        code, sentence = refusal(call)
        assert code == "UNAVAILABLE"
        assert "the master did not answer" in sentence

    master.start()
    repeat(lambda: driver.unpublish(volume.volume_id, "pod"))
    repeat(lambda: driver.unstage(volume.volume_id))
    wait_for_content(run / "result", "content")


def test_mount_daemon_that_does_not_answer_keeps_its_volume(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    (volume.target / "result").write_text("content")
    with stopped(require_daemon(volume.staging)):
        code, _ = refusal(lambda: driver.unpublish(volume.volume_id, "pod"))

    assert code == "DEADLINE_EXCEEDED"
    driver.unpublish(volume.volume_id, "pod")
    driver.unstage(volume.volume_id)
    wait_for_content(reader.mount_point / volume.run / "result", "content")


def test_place_whose_daemon_does_not_answer_is_not_said_to_be_some_programs(
    driver: CsiDriverProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    look = csi.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=str(volume.target))
    with stopped(require_daemon(volume.staging)):
        assert refusal(lambda: driver.call("Node", look)) == (
            "INTERNAL",
            f"{volume.target}: Connection timed out",
        )

        # The driver's own look is there until the daemon answers.
        assert refusal(lambda: driver.unpublish(volume.volume_id, "pod")) == (
            "INTERNAL",
            f"{volume.target}: busy, and its mount daemon does not answer",
        )

    driver.call("Node", look)
    driver.unpublish(volume.volume_id, "pod")
    driver.unstage(volume.volume_id)


def test_driver_ends_while_a_call_waits_for_uploads(
    master: MasterProcess, token: str, tmp_path: Path
) -> None:
    driver = CsiDriverProcess(tmp_path, master.address, "--node-id", "node-1", "--drain", "1h")
    try:
        driver.start()
        volume = driver.publish_new(token)
        (volume.target / "looked into").touch()
        driver.unpublish(volume.volume_id, "pod")
        driver.publish(volume.volume_id, "pod")
        master.kill()
        (volume.target / "result").write_text("content")
        waiting = driver.start_unpublishing(volume.volume_id, "pod")
        wait_until(lambda: not volume.target.exists(), "the call to wait for uploads")

        assert driver.end(signal.SIGTERM) == 0

        assert waiting.code().name in ("CANCELLED", "UNAVAILABLE")
        master.start()
        driver.start()
        repeat(lambda: driver.unpublish(volume.volume_id, "pod"))
        repeat(lambda: driver.unstage(volume.volume_id))
    finally:
        driver.clear()


def test_files_that_need_a_person_hold_the_node_and_not_the_pod(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    run = reader.mount_point / volume.run
    with master.silent():
        (volume.target / "late").write_text("content")
        daemon = require_daemon(volume.staging)
        daemon.send_signal(signal.SIGSTOP)
    reader.seal(run)
    daemon.send_signal(signal.SIGCONT)

    driver.unpublish(volume.volume_id, "pod")

    code, sentence = refusal(lambda: driver.unstage(volume.volume_id))
    assert code == "FAILED_PRECONDITION"
    assert f"see `cloudai status {volume.staging}` on this node" in sentence
    assert has_content(volume.staging / "late", "content")


def test_what_is_left_of_before_a_reboot_is_sent_when_it_is_staged_again(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    """
    K4. What a machine had not sent when it was started again waits on its disk until the volume is staged there.
    """
    volume = driver.publish_new(token)
    run = look_into(volume, reader)
    with master.silent():
        (volume.target / "staged").write_text("content")
        driver.kill_container()
    reboot(driver, volume.volume_id)
    driver.start()

    for give_up in (
        lambda: driver.unpublish(volume.volume_id, "pod"),
        lambda: driver.unstage(volume.volume_id),
    ):
        code, sentence = refusal(give_up)
        assert (code, sentence.rpartition(": ")[2]) == (
            "FAILED_PRECONDITION",
            "stage it on this node once more",
        )
    assert refusal(lambda: driver.delete(volume.volume_id, token))[0] == "FAILED_PRECONDITION"

    driver.stage(volume.volume_id, token)
    driver.unpublish(volume.volume_id, "pod")
    wait_for_content(run / "staged", "content")
    driver.unstage(volume.volume_id)
    assert not list(driver.state_dir.iterdir())


def reboot(driver: CsiDriverProcess, volume_id: str) -> None:
    """What is left of a volume on a machine that was started again: what is on its disk."""
    for place in (driver.target("pod"), driver.staging(volume_id), driver.staging(volume_id)):
        subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)
    (runtime_dir() / "csi" / volume_id).unlink()
    record = driver.state_dir / volume_id / "volume.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "an earlier one"}))


def test_second_driver_on_a_socket_is_refused(driver: CsiDriverProcess, master: MasterProcess) -> None:
    second = driver.run_second()

    assert second.returncode == 2
    assert second.stderr == f"cloudai: {driver.socket_path}: Address already in use\n"


def test_volume_whose_record_is_damaged_keeps_what_is_at_no_master(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    with master.silent():
        (volume.target / "staged").write_text("content")
        driver.kill_container()
    record = driver.state_dir / volume.volume_id / "volume.json"
    record.write_text("[" * 100_000)
    driver.start()

    for give_up in (
        lambda: driver.unpublish(volume.volume_id, "pod"),
        lambda: driver.unstage(volume.volume_id),
        lambda: driver.delete(volume.volume_id, token),
    ):
        assert refusal(give_up)[0] == "FAILED_PRECONDITION"

    clear(volume.staging)
    repeat(lambda: driver.stage(volume.volume_id, token))
    wait_for_content(reader.mount_point / volume.run / "staged", "content")


def test_volume_that_cannot_be_staged_again_yet_stays_published(
    driver: CsiDriverProcess, master: MasterProcess, token: str
) -> None:
    volume = driver.publish_new(token)
    (volume.target / "file").write_text("content")
    driver.kill_container()
    clear(volume.staging)
    with ExitStack() as held:
        state_dir = driver.state_dir / volume.volume_id / "mount"
        wait_until(lambda: owns(held, state_dir), "the end of what had it")
        driver.start()
        assert refusal(lambda: driver.stage(volume.volume_id, token))[0] == "UNAVAILABLE"

    repeat(lambda: driver.stage(volume.volume_id, token))

    wait_for_content(volume.target / "file", "content")


def owns(held: ExitStack, state_dir: Path) -> bool:
    """Whether this process has it from now on, as long as the stack is open."""
    try:
        held.enter_context(own_state_directory(state_dir))
    except BlockingIOError:
        return False
    return True


def clear(staging: Path) -> None:
    """As the kubelet does with a dead mount."""
    while find_mounted(staging) is not None:
        subprocess.run(["umount", "--lazy", str(staging)], check=True, capture_output=True)


def is_refused(driver: CsiDriverProcess, token: str) -> bool:
    try:
        driver.delete("0" * 24, token)
    except grpc.RpcError:
        return True
    return False


def test_token_that_is_refused_for_a_while_holds_the_pod(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess
) -> None:
    """
    K1. A volume is taken from its last place, and unstaged, once all that was written to it is at the master; until
    then it stays mounted, and the cluster is told to ask again.
    """
    first = master.make_token(USER)
    volume = driver.publish_new(first)
    (volume.target / "looked into").touch()
    token_id = json.loads(base64.urlsafe_b64decode(first.split(".")[1] + "=="))["jti"]
    master.run("token", "revoke", token_id)
    wait_until(lambda: is_refused(driver, first), "the revocation")
    (volume.target / "file").write_text("content")

    assert refusal(lambda: driver.unpublish(volume.volume_id, "pod"))[0] == "DEADLINE_EXCEEDED"

    driver.stage(volume.volume_id, master.make_token(USER))
    repeat(lambda: driver.unpublish(volume.volume_id, "pod"))
    wait_for_content(reader.mount_point / volume.run / "file", "content")


def test_volume_whose_record_is_damaged_is_not_given_up(driver: CsiDriverProcess, token: str) -> None:
    volume = driver.stage_new("pvc", token).volume_id
    staging = driver.staging(volume)
    (driver.state_dir / volume / "volume.json").write_text('{"volume_id"')

    code, sentence = refusal(lambda: driver.unstage(volume))

    assert (code, sentence.rpartition(": ")[2]) == ("FAILED_PRECONDITION", "stage it once more")
    assert os.path.ismount(staging)
    repeat(lambda: driver.stage(volume, token))
    driver.unstage(volume)
    assert not os.path.ismount(staging)
    assert not list(driver.state_dir.iterdir())
