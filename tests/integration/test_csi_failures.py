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

from cloudai_daemon.mount_table import find_mounted, list_mounted
from cloudai_daemon.places import runtime_dir
from cloudai_fusefs.state_lock import own_state_directory
from support.csi_client import refusal, repeat
from support.csi_driver_process import CsiDriverProcess
from support.master_process import MasterProcess
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
    driver = CsiDriverProcess(tmp_path / "csi", master.address, "--node-id", "node-1", "--drain", "3")
    driver.start()
    yield driver
    driver.clear()
    assert "Traceback" not in driver.log_text()


@pytest.fixture
def reader(make_mount: MakeMount) -> MountProcess:
    return make_mount()


def has(path: Path, content: str) -> bool:
    """Whether it can be read, and is that."""
    try:
        return path.read_text() == content
    except OSError:
        return False


def wait_for(path: Path, content: str) -> None:
    wait_until(lambda: has(path, content), str(path))


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
    volume = driver.create("pvc", token)
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    read_only = driver.publish(volume.volume_id, "reader", readonly=True)
    (target / "first").write_text("content")
    with podman.start("--volume", f"{target}:/output", IMAGE, "sh", "-c", WRITER) as container:
        wait_for_more_lines(target / "lines")
        daemon = driver.daemon_of(volume.volume_id)
        assert daemon is not None
        daemon.send_signal(signal.SIGKILL)
        daemon.wait_gone(10)
        wait_for(target / "first", "content")
        wait_for(read_only / "first", "content")
        wait_for_more_lines(target / "lines")
        (target / "stop").touch()
        assert podman("wait", container).stdout == "0\n"
    with pytest.raises(OSError, match="Read-only file system"):
        (read_only / "more").touch()

    for pod in ("pod", "reader"):
        driver.unpublish(volume.volume_id, pod)
    run = reader.mount_point / volume.volume_context["run"]
    wait_for(run / "first", "content")
    driver.unstage(volume.volume_id)
    assert not driver.mount_processes()


def test_volumes_are_there_again_when_the_container_of_the_driver_was_killed(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    """
    K3. A driver that starts anew mounts again what died with the one before it, and its uploads go on.
    """
    volume = driver.create("pvc", token)
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    (target / "looked into").touch()
    reader.wait_durable()
    with master.silent():
        (target / "staged").write_bytes(b"content")
        driver.kill_container()

    driver.start()

    wait_for(target / "staged", "content")
    driver.unpublish(volume.volume_id, "pod")
    wait_for(reader.mount_point / volume.volume_context["run"] / "staged", "content")
    driver.unstage(volume.volume_id)


def test_call_after_the_death_of_everything_is_carried_out(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.create("pvc", token)
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    (target / "file").write_text("content")
    driver.kill_container()
    driver.start()

    # At once, whoever is faster.
    driver.unpublish(volume.volume_id, "pod")

    wait_for(reader.mount_point / volume.volume_context["run"] / "file", "content")
    driver.kill_container()
    driver.start()
    driver.unstage(volume.volume_id)
    assert not driver.mount_processes()
    assert not os.path.ismount(driver.staging(volume.volume_id))
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
    volume = driver.create("pvc", token)
    staging = driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    (target / "looked into").touch()
    run = reader.mount_point / volume.volume_context["run"]
    wait_until(lambda: (run / "looked into").exists(), "the first file")
    master.kill()
    (target / "result").write_text("content")

    for call in (
        lambda: driver.unpublish(volume.volume_id, "pod"),
        lambda: driver.unpublish(volume.volume_id, "pod"),
        lambda: driver.unstage(volume.volume_id),
        lambda: driver.unstage(volume.volume_id, seconds=5),
    ):
        code, sentence = refusal(call)
        assert code == "DEADLINE_EXCEEDED"
        assert "nothing is lost: it stays mounted" in sentence
    assert not target.exists()
    assert has(staging / "result", "content")

    master.start()
    repeat(lambda: driver.unpublish(volume.volume_id, "pod"))
    repeat(lambda: driver.unstage(volume.volume_id))
    wait_for(run / "result", "content")


def test_what_died_with_its_driver_while_the_master_is_away_is_kept(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    volume = driver.create("pvc", token)
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    (target / "looked into").touch()
    run = reader.mount_point / volume.volume_context["run"]
    wait_until(lambda: (run / "looked into").exists(), "the first file")
    master.kill()
    (target / "result").write_text("content")
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
    wait_for(run / "result", "content")


def test_mount_daemon_that_does_not_answer_keeps_its_volume(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.create("pvc", token)
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    (target / "result").write_text("content")
    daemon = driver.daemon_of(volume.volume_id)
    assert daemon is not None
    daemon.send_signal(signal.SIGSTOP)

    code, _ = refusal(lambda: driver.unpublish(volume.volume_id, "pod"))

    assert code == "DEADLINE_EXCEEDED"
    daemon.send_signal(signal.SIGCONT)
    driver.unpublish(volume.volume_id, "pod")
    driver.unstage(volume.volume_id)
    wait_for(reader.mount_point / volume.volume_context["run"] / "result", "content")


def test_driver_ends_while_a_call_waits_for_uploads(
    master: MasterProcess, token: str, tmp_path: Path
) -> None:
    driver = CsiDriverProcess(tmp_path, master.address, "--node-id", "node-1", "--drain", "1h")
    try:
        driver.start()
        volume = driver.create("pvc", token)
        driver.stage(volume.volume_id, token)
        target = driver.publish(volume.volume_id, "pod")
        (target / "looked into").touch()
        driver.unpublish(volume.volume_id, "pod")
        target = driver.publish(volume.volume_id, "pod")
        master.kill()
        (target / "result").write_text("content")
        waiting = driver.start_unpublishing(volume.volume_id, "pod")
        wait_until(lambda: not target.exists(), "the call to wait for uploads")

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
    volume = driver.create("pvc", token)
    staging = driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    run = reader.mount_point / volume.volume_context["run"]
    with master.silent():
        (target / "late").write_text("content")
        daemon = driver.daemon_of(volume.volume_id)
        assert daemon is not None
        daemon.send_signal(signal.SIGSTOP)
    reader.seal(run)
    daemon.send_signal(signal.SIGCONT)

    driver.unpublish(volume.volume_id, "pod")

    code, sentence = refusal(lambda: driver.unstage(volume.volume_id))
    assert code == "FAILED_PRECONDITION"
    assert f"see `cloudai status {staging}` on this node" in sentence
    assert has(staging / "late", "content")


def test_what_is_left_of_before_a_reboot_is_sent_when_it_is_staged_again(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    """
    K4. What a machine had not sent when it was started again waits on its disk until the volume is staged there.
    """
    volume = driver.create("pvc", token)
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    (target / "looked into").touch()
    run = reader.mount_point / volume.volume_context["run"]
    wait_until(lambda: (run / "looked into").exists(), "the first file")
    with master.silent():
        (target / "staged").write_text("content")
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
    wait_for(run / "staged", "content")
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


@pytest.fixture
def shared_place(tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts are seen in other mount namespaces, as the kubelet's is in a driver's container."""
    place = tmp_path / "kubelet"
    place.mkdir()
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "--make-shared", place], check=True)
    yield place
    subprocess.run(["umount", "--recursive", "--lazy", place], check=True)


# What is mounted elsewhere when the namespace is made would stay mounted in it, whoever unmounts it outside, and the
# daemons of tests that run beside this one would wait for that in vain. Taking it away is to be seen nowhere else.
_IN_A_NAMESPACE = """
place=$1
shift
elsewhere() { findmnt --list --noheadings --output TARGET "$@" | grep -v "^$place"; }
elsewhere | while IFS= read -r other; do mount --make-private "$other"; done
elsewhere --types fuse.cloudai | while IFS= read -r other; do umount --lazy "$other"; done
exec "$@"
"""


def test_driver_in_a_container_of_its_own_serves_pods_outside_of_it(
    master: MasterProcess, token: str, shared_place: Path, reader: MountProcess
) -> None:
    """A mount namespace of its own, which is a new one each time, and mounts that go both ways."""
    driver = CsiDriverProcess(
        shared_place,
        master.address,
        *("--node-id", "node-1"),
        within=(
            *("unshare", "--mount", "--propagation", "unchanged", "--"),
            *("sh", "-c", _IN_A_NAMESPACE, "sh", str(shared_place)),
        ),
    )
    try:
        driver.start()
        volume = driver.create("pvc", token)
        driver.stage(volume.volume_id, token)
        target = driver.publish(volume.volume_id, "pod")
        read_only = driver.publish(volume.volume_id, "reader", readonly=True)
        (target / "file").write_text("content")
        assert has(read_only / "file", "content")
        with pytest.raises(OSError, match="Read-only file system"):
            (read_only / "more").touch()

        driver.kill_container()
        assert not has(target / "file", "content")
        driver.start()

        wait_for(target / "file", "content")
        wait_for(read_only / "file", "content")
        (target / "more").write_text("content")
        for pod in ("pod", "reader"):
            driver.unpublish(volume.volume_id, pod)
        driver.unstage(volume.volume_id)
        assert not target.exists()
        (place,) = [tree for tree in list_mounted() if tree.mount_point.is_relative_to(shared_place)]
        assert place.mount_point == shared_place
        wait_for(reader.mount_point / volume.volume_context["run"] / "more", "content")
        assert driver.end(signal.SIGTERM) == 0
    finally:
        driver.clear()


def test_volume_that_another_mount_namespace_has_still_is_unstaged(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.create("pvc", token)
    staging = driver.stage(volume.volume_id, token)
    (staging / "file").write_text("content")
    with subprocess.Popen(
        [
            *("unshare", "--mount", "--propagation", "private", "--"),
            *("sh", "-c", _IN_A_NAMESPACE, "sh", str(staging), "sh", "-c", "echo made; exec cat"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "made\n"

        driver.unstage(volume.volume_id)

        assert not driver.mount_processes()
        assert not list(driver.state_dir.iterdir())
        other.communicate(timeout=10)
    wait_for(reader.mount_point / volume.volume_context["run"] / "file", "content")


def test_volume_whose_record_is_damaged_keeps_what_is_at_no_master(
    driver: CsiDriverProcess, reader: MountProcess, master: MasterProcess, token: str
) -> None:
    volume = driver.create("pvc", token)
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod")
    with master.silent():
        (target / "staged").write_text("content")
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

    clear(driver.staging(volume.volume_id))
    repeat(lambda: driver.stage(volume.volume_id, token))
    wait_for(reader.mount_point / volume.volume_context["run"] / "staged", "content")


def test_volume_that_cannot_be_staged_again_yet_stays_published(
    driver: CsiDriverProcess, master: MasterProcess, token: str
) -> None:
    volume = driver.create("pvc", token).volume_id
    staging = driver.stage(volume, token)
    target = driver.publish(volume, "pod")
    (target / "file").write_text("content")
    driver.kill_container()
    clear(staging)
    with ExitStack() as held:
        wait_until(lambda: owns(held, driver.state_dir / volume / "mount"), "the end of what had it")
        driver.start()
        assert refusal(lambda: driver.stage(volume, token))[0] == "UNAVAILABLE"

    repeat(lambda: driver.stage(volume, token))

    wait_for(target / "file", "content")


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
    volume = driver.create("pvc", first)
    driver.stage(volume.volume_id, first)
    target = driver.publish(volume.volume_id, "pod")
    (target / "looked into").touch()
    token_id = json.loads(base64.urlsafe_b64decode(first.split(".")[1] + "=="))["jti"]
    master.run("token", "revoke", token_id)
    wait_until(lambda: is_refused(driver, first), "the revocation")
    (target / "file").write_text("content")

    assert refusal(lambda: driver.unpublish(volume.volume_id, "pod"))[0] == "DEADLINE_EXCEEDED"

    driver.stage(volume.volume_id, master.make_token(USER))
    repeat(lambda: driver.unpublish(volume.volume_id, "pod"))
    wait_for(reader.mount_point / volume.volume_context["run"] / "file", "content")


def test_volume_whose_record_is_damaged_is_not_given_up(driver: CsiDriverProcess, token: str) -> None:
    volume = driver.create("pvc", token).volume_id
    staging = driver.stage(volume, token)
    (driver.state_dir / volume / "volume.json").write_text('{"volume_id"')

    code, sentence = refusal(lambda: driver.unstage(volume))

    assert (code, sentence.rpartition(": ")[2]) == ("FAILED_PRECONDITION", "stage it once more")
    assert os.path.ismount(staging)
    repeat(lambda: driver.stage(volume, token))
    driver.unstage(volume)
    assert not os.path.ismount(staging)
    assert not list(driver.state_dir.iterdir())
