"""How a mount ends while something is still staged: within a bound, with what is left named and kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import (
    PROGRAM,
    RUN,
    WAIT_SECONDS_MAX,
    MakeMount,
    MountProcess,
    run_in,
    wait_until,
)
from support.network_proxy import NetworkProxy
from support.terminal import TerminalProgram

MIB = 1024 * 1024

NOT_DURABLE = 75
FILE_BYTES = 200_000
"""Over what travels inside a commit."""


SENT_BY_NEXT_MOUNT = "unmounted: the next `cloudai mount` sends it"


def make_backlog(mount: MountProcess, master: MasterProcess) -> bytes:
    """A file that cannot be sent, since the master is gone."""
    run = mount.make_run(RUN)
    (run / "first").write_text("looked into, so that the master is not needed")
    mount.wait_durable(run)
    master.kill()
    content = os.urandom(FILE_BYTES)
    (run / "model.bin").write_bytes(content)
    return content


def assert_next_mount_sends(
    mount: MountProcess, master: MasterProcess, other: MountProcess, content: bytes
) -> None:
    mount.wait_durable()
    assert (run_in(other) / "model.bin").read_bytes() == content


def test_umount_names_what_is_left_after_its_time_and_the_next_mount_sends_it(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """U1. `cloudai umount`, `umount` and SIGTERM wait for uploads for as long as `drain=` says; what is not durable by
    then stays staged, is named, and is sent by the next mount.
    """
    mount = make_mount()
    content = make_backlog(mount, master)

    done = mount.cloudai("umount", str(mount.mount_point), "--timeout", "0.2")

    assert done.returncode == NOT_DURABLE
    assert f"user-123/training/{RUN}/model.bin" in done.stdout
    assert "1 file not durable yet, 195.3 KiB to send" in done.stderr
    assert done.stderr.endswith(f"; {SENT_BY_NEXT_MOUNT}\n")
    assert not os.path.ismount(mount.mount_point)
    assert mount.has_ended()
    master.start()
    mount.start()
    assert_next_mount_sends(mount, master, make_mount("other"), content)


def test_umount_names_what_is_left_as_json(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount()
    make_backlog(mount, master)

    done = mount.cloudai("umount", str(mount.mount_point), "--timeout", "0", "--json")

    assert done.returncode == NOT_DURABLE
    left = json.loads(done.stdout)
    assert left["pending_count"] == 1
    assert [(file["path"], file["size_bytes"], file["uploaded_bytes"]) for file in left["pending"]] == [
        (f"user-123/training/{RUN}/model.bin", FILE_BYTES, 0)
    ]


def test_umount_waits_as_long_as_the_mount_option_says(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount(options="insecure,timeo=20,drain=0.2")
    make_backlog(mount, master)

    done = mount.cloudai("umount", str(mount.mount_point))

    assert done.returncode == NOT_DURABLE
    assert not os.path.ismount(mount.mount_point)


def test_busy_mount_goes_on_after_an_umount_in_vain(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    with (run / "train.log").open("w") as log:
        done = mount.cloudai("umount", str(mount.mount_point))
        assert done.returncode == 32
        assert "busy" in done.stderr
        log.write("going on")
    mount.wait_durable()
    assert (run_in(make_mount("other")) / "train.log").read_text() == "going on"


def test_sigterm_drains_for_as_long_as_the_mount_option_says_and_names_what_is_left(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount(options="insecure,timeo=20,drain=0.2")
    content = make_backlog(mount, master)

    os.kill(mount.pid, signal.SIGTERM)
    wait_until(mount.has_ended, "the daemon's end")

    assert f"'user-123/training/{RUN}/model.bin', 0 of {FILE_BYTES} bytes sent" in mount.log_text()
    master.start()
    mount.start()
    assert_next_mount_sends(mount, master, make_mount("other"), content)


@pytest.mark.parametrize("drain_seconds", [0.2, 60], ids=["in-time", "asked-again"])
def test_mount_in_the_foreground_says_by_its_exit_status_that_something_is_left(
    make_mount: MakeMount, master: MasterProcess, drain_seconds: float
) -> None:
    mount = make_mount(options=f"insecure,timeo=20,drain={drain_seconds}")
    mount.umount()
    assert "SIGTERM" not in mount.log_text()
    command: list[str | Path] = [PROGRAM, *mount.mount_arguments, "--foreground"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        mount.pid = process.pid
        wait_until(mount.mount_point.is_mount, "the mount")
        content = make_backlog(mount, master)

        process.terminate()
        if drain_seconds > WAIT_SECONDS_MAX:
            wait_until(lambda: "SIGTERM" in mount.log_text(), "the first signal is taken")
            process.terminate()

        _, said = process.communicate(timeout=WAIT_SECONDS_MAX)
    assert process.returncode == NOT_DURABLE
    assert said.splitlines()[-1].endswith(
        f"{mount.mount_point}: not all is durable yet, see the log; {SENT_BY_NEXT_MOUNT}"
    )
    assert "1 files (200000 bytes) are staged in" in mount.log_text()
    master.start()
    mount.start()
    assert_next_mount_sends(mount, master, make_mount("other"), content)


def test_after_a_plain_umount_the_daemon_goes_on_uploading_and_then_ends(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    content = make_backlog(mount, master)

    subprocess.run(["umount", str(mount.mount_point)], check=True)
    assert not mount.has_ended()
    master.start()
    wait_until(mount.has_ended, "the daemon's end")

    assert "not durable" not in mount.log_text()
    assert (run_in(make_mount("other")) / "model.bin").read_bytes() == content


def test_new_mount_takes_over_from_a_daemon_that_still_uploads_after_a_plain_umount(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    content = make_backlog(mount, master)
    subprocess.run(["umount", str(mount.mount_point)], check=True)
    assert not mount.has_ended()

    refused = mount.mount_command()

    assert "did not answer" in refused.stderr  # the master, and not the first daemon
    wait_until(mount.has_ended, "the end of the first daemon")
    master.start()
    mount.start()
    assert_next_mount_sends(mount, master, make_mount("other"), content)


DRAIN_SECONDS = "10"
COMPLETE = [f"complete-{number:02}" for number in range(40)]
"""Files of one chunk each, in the order in which they are written."""
COMPLETE_BYTES = 2 * MIB
"""Over what is short, and so sent beside the others."""
LOG_BYTES = 3 * MIB
"""Less than a chunk, which would leave at once when it is full."""
BYTES_PER_SECOND = 5 * MIB
"""Of the network, once there is one: no more than 25 of the complete files within the time. What workers have in their
hands by then goes first, and the newest file is the next."""


@pytest.fixture
def network(master: MasterProcess) -> Iterator[NetworkProxy]:
    with NetworkProxy(master.address) as network:
        yield network


@pytest.fixture
def draining(
    network: NetworkProxy, master: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> MountProcess:
    """A mount behind the network, which is not mounted yet."""
    mount = MountProcess(tmp_path / "draining", network.address, master.make_token("user-123"))
    mounts.append(mount)
    return mount


def open_run_that_cannot_be_sent(mount: MountProcess, network: NetworkProxy) -> Path:
    run = mount.make_run(RUN)
    (run / "first").write_text("looked into, so that the master is not needed")
    mount.wait_durable(run)
    network.refuse()
    return run


def come_back_slow(network: NetworkProxy) -> None:
    network.slow_down(bytes_per_second=BYTES_PER_SECOND)
    network.restore()


def are_durable(mount: MountProcess, run: Path, names: list[str]) -> bool:
    pending = {Path(file["path"]).name for file in mount.status(run)["pending"]}
    return not pending & set(names)


def left_in_log(mount: MountProcess) -> dict[str, int]:
    """The files that the daemon has named as it ended, and how many bytes of each were sent."""
    pattern = rf"'user-123/training/{RUN}/([^']*)', (\d+) of \d+ bytes sent"
    return {name: int(sent) for name, sent in re.findall(pattern, mount.log_text())}


def assert_newest_went_first(left: Collection[str], contents: dict[str, bytes], other: MountProcess) -> None:
    newest = COMPLETE[-1]
    assert newest not in left
    assert set(COMPLETE[5:10]) <= set(left) <= set(contents)
    assert (run_in(other) / newest).read_bytes() == contents[newest]
    assert not (run_in(other) / COMPLETE[7]).exists()


def assert_next_mount_sends_the_rest(
    draining: MountProcess, network: NetworkProxy, other: MountProcess, contents: dict[str, bytes]
) -> None:
    network.slow_down()
    draining.start()
    draining.wait_durable()
    assert {name: (run_in(other) / name).read_bytes() for name in contents} == contents


def test_sigterm_sends_the_newest_complete_file_before_older_ones_and_an_open_log(
    draining: MountProcess, network: NetworkProxy, make_mount: MakeMount
) -> None:
    """U2. While a mount ends, complete files are sent before those that are still being written, and the newest of them
    first, once the chunks that are under way have arrived.
    """
    other = make_mount("other")
    contents = {name: os.urandom(COMPLETE_BYTES) for name in COMPLETE} | {"train.log": os.urandom(LOG_BYTES)}
    command: list[str | Path] = [PROGRAM, *draining.mount_arguments, "--foreground"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        draining.pid = process.pid
        wait_until(draining.mount_point.is_mount, "the mount")
        run = open_run_that_cannot_be_sent(draining, network)
        for name in COMPLETE[:-1]:
            (run / name).write_bytes(contents[name])
        log = os.open(run / "train.log", os.O_WRONLY | os.O_CREAT)
        assert os.write(log, contents["train.log"]) == LOG_BYTES
        (run / COMPLETE[-1]).write_bytes(contents[COMPLETE[-1]])

        process.terminate()
        wait_until(lambda: "SIGTERM" in draining.log_text(), "the signal is taken")
        come_back_slow(network)
        wait_until(lambda: are_durable(draining, run, COMPLETE[-8:]), "the newest files at the master")
        process.terminate()  # the time is over

        process.wait(WAIT_SECONDS_MAX)
    with suppress(OSError):  # the daemon is gone
        os.close(log)
    assert process.returncode == NOT_DURABLE
    left = left_in_log(draining)
    assert left["train.log"] == 0
    assert_newest_went_first(left, contents, other)
    assert_next_mount_sends_the_rest(draining, network, other, contents)


def test_umount_sends_the_newest_file_first_and_names_those_left(
    draining: MountProcess, network: NetworkProxy, make_mount: MakeMount
) -> None:
    other = make_mount("other")
    contents = {name: os.urandom(COMPLETE_BYTES) for name in COMPLETE}
    draining.start()
    run = open_run_that_cannot_be_sent(draining, network)
    for name, content in contents.items():
        (run / name).write_bytes(content)

    with TerminalProgram(PROGRAM, "umount", draining.mount_point, "--timeout", DRAIN_SECONDS) as terminal:
        terminal.wait_for_text("40 files ", "0 B of 80.0 MiB")  # the drain has begun
        come_back_slow(network)
        status = terminal.wait_end()

    assert status == NOT_DURABLE, terminal.text
    left = re.findall(rf"{RUN}/(\S+)", terminal.text)
    assert_newest_went_first(left, contents, other)
    assert_next_mount_sends_the_rest(draining, network, other, contents)
