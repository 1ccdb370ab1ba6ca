"""Real containers of podman whose /output is a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import (
    COMMAND_SECONDS_MAX,
    PROGRAM,
    RUN,
    MakeMount,
    MountProcess,
)
from support.podman import IMAGE, USER_ID, WRITER, Podman, line_count, wait_for_more_lines
from support.readme_blocks import run_block
from support.terminal import TerminalProgram

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers of root's podman")


@pytest.fixture(scope="module")
def mount(mount_shared: Callable[..., MountProcess], podman: Podman) -> MountProcess:
    """One that lets everybody in; its `cloudai` finds the test's podman."""
    mount = mount_shared(options="insecure,timeo=20,allow_other")
    mount.environment = podman.environment
    return mount


def run_arguments(mount: MountProcess, task: str, *words: str) -> list[str]:
    return ["run", "--mount", str(mount.mount_point), "--task", task, *words]


def latest(mount: MountProcess, task: str) -> Path:
    return mount.mount_point / "user-123" / task / "latest"


def statuses(mount: MountProcess, task: str) -> list[int | None]:
    """The exit statuses of a task's runs, None for one that is open."""
    listing = json.loads(mount.cloudai("ls", "--json", str(mount.mount_point)).stdout)
    return [run["exit_status"] for run in listing if f"/{task}/" in run["path"]]


def test_container_writes_its_run_and_ends_with_its_own_status(mount: MountProcess, podman: Podman) -> None:
    script = "env | grep ^CLOUDAI_ | sort; cat > /output/input; id -u > /output/uid; exit 7"

    with subprocess.Popen(
        [PROGRAM, *run_arguments(mount, "status", "--image", IMAGE, "--", "sh", "-c", script)],
        env=os.environ | podman.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, errors = process.communicate("what was typed\n", timeout=COMMAND_SECONDS_MAX)

    assert process.returncode == 7, errors
    run = latest(mount, "status").resolve()
    variables = dict(line.split("=", 1) for line in output.splitlines())
    assert variables.pop("CLOUDAI_TASK_ID")
    assert variables == {
        "CLOUDAI_OUTPUT": "/output",
        "CLOUDAI_RUN": f"user-123/status/{run.name}",
        "CLOUDAI_SOURCE": f"{mount.source}/user-123/status/{run.name}",
        "CLOUDAI_TASK": "status",
        "CLOUDAI_TOKEN_FILE": "/run/cloudai/token",
    }
    assert (run / "input").read_text() == "what was typed\n"
    assert (run / "uid").read_text() == "0\n"
    assert statuses(mount, "status") == [7]
    assert podman.containers() == []


async def test_container_has_a_token_for_its_run_alone(
    mount: MountProcess, podman: Podman, shared_master: MasterProcess
) -> None:
    script = 'cat "$CLOUDAI_TOKEN_FILE"; echo "$CLOUDAI_TASK_ID"; touch /output/ready; while :; do sleep 0.05; done'
    user = ("--user", str(USER_ID))
    with subprocess.Popen(
        [PROGRAM, *run_arguments(mount, "token", "--image", IMAGE, *user, "--", "sh", "-c", script)],
        env=os.environ | podman.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        token, task_id = process.stdout.readline().strip(), process.stdout.readline().strip()
        (container,) = podman.containers()

        async with shared_master.connect(token) as client:
            capabilities = await client.get_capabilities()

        assert (capabilities.user, capabilities.task_id) == ("user-123", task_id)
        assert token not in podman("inspect", container).stdout
        podman("kill", container)
        process.wait(COMMAND_SECONDS_MAX)
    assert list(Path(os.environ["CLOUDAI_RUNTIME_DIR"], "tokens").iterdir()) == []


def test_container_of_another_user_owns_its_run(mount: MountProcess) -> None:
    script = "mkdir /output/folder && id -u > /output/folder/uid"

    done = mount.cloudai(
        *run_arguments(mount, "user", "--image", IMAGE, "--user", str(USER_ID), "--", "sh", "-c", script)
    )

    assert done.returncode == 0, done.stderr
    file = latest(mount, "user") / "folder" / "uid"
    assert file.read_text() == f"{USER_ID}\n"
    assert [path.stat().st_uid for path in (file, file.parent, file.parent.parent)] == [USER_ID] * 3


def test_image_that_is_nowhere_is_125_and_there_is_no_run(mount: MountProcess) -> None:
    done = mount.cloudai(*run_arguments(mount, "missing", "--image", "localhost/missing:1", "--", "true"))

    assert done.returncode == 125
    assert done.stderr.startswith(
        "cloudai: the image localhost/missing:1 is not here, and podman cannot pull it: "
    )
    assert len(done.stderr.splitlines()) == 1
    assert statuses(mount, "missing") == []


def test_command_that_the_image_lacks_is_127_and_seals_the_run(mount: MountProcess) -> None:
    done = mount.cloudai(*run_arguments(mount, "lacking", "--image", IMAGE, "--", "no-such-command"))

    assert done.returncode == 127
    assert statuses(mount, "lacking") == [127]


def test_user_who_may_not_look_into_the_mount_is_refused_before_there_is_a_run(
    shared_mount: MountProcess, podman: Podman
) -> None:
    shared_mount.environment = podman.environment

    done = shared_mount.cloudai(
        *run_arguments(shared_mount, "refused", "--image", IMAGE, "--user", str(USER_ID), "--", "true")
    )

    assert done.returncode == 125
    assert done.stderr == (
        f"cloudai: user {USER_ID} may not look into {shared_mount.mount_point}: mount it with -o allow_other\n"
    )
    assert statuses(shared_mount, "refused") == []


def test_image_whose_user_is_a_name_needs_a_number(mount: MountProcess, podman: Podman) -> None:
    podman.import_image("localhost/named:1", "USER user-123")

    done = mount.cloudai(*run_arguments(mount, "named", "--image", "localhost/named:1", "--", "true"))

    assert done.returncode == 125
    assert done.stderr == (
        "cloudai: the image localhost/named:1 runs as 'user-123': say with --user which UID[:GID] that is\n"
    )


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
def test_docker_runs_a_container_as_podman_does(mount: MountProcess, podman: Podman) -> None:
    script = "cat $CLOUDAI_TOKEN_FILE > /dev/null && echo $CLOUDAI_TASK > /output/file; exit 7"
    with podman.serve_docker() as environment:
        mount.environment = podman.environment | environment

        done = mount.cloudai(*run_arguments(mount, "docker", "--image", IMAGE, "--", "sh", "-c", script))
        missing = mount.cloudai(*run_arguments(mount, "docker", "--image", "localhost/x:1", "--", "true"))

    mount.environment = podman.environment
    assert done.returncode == 7, done.stderr
    assert (latest(mount, "docker") / "file").read_text() == "docker\n"
    assert missing.returncode == 125
    assert missing.stderr.startswith(
        "cloudai: the image localhost/x:1 is not here, and docker cannot pull it: "
    )
    assert statuses(mount, "docker") == [7]
    assert podman.containers() == []


def test_terminal_is_the_containers(
    mount: MountProcess, podman: Podman, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in podman.environment.items():
        monkeypatch.setenv(name, value)
    script = "trap 'exit 9' INT; tty; echo ready; while :; do sleep 0.05; done"
    with TerminalProgram(
        PROGRAM, *run_arguments(mount, "terminal", "--image", IMAGE, "--", "sh", "-c", script)
    ) as program:
        program.wait_for_text("ready")

        program.press(b"\x03")

        assert program.wait_end() == 9
        assert "/dev/pts/" in program.received


@contextmanager
def waiting_for_a_signal(mount: MountProcess, podman: Podman, task: str) -> Iterator[subprocess.Popen[bytes]]:
    """`cloudai run --image` of a command that ends with 9 and a line in its log when SIGTERM comes."""
    script = "trap 'echo ended > /output/log; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [PROGRAM, *run_arguments(mount, task, "--image", IMAGE, "--", "sh", "-c", script)],
        env=os.environ | podman.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process


def test_signal_reaches_the_command_in_the_container(mount: MountProcess, podman: Podman) -> None:
    with waiting_for_a_signal(mount, podman, "signals") as process:
        process.send_signal(signal.SIGTERM)

        assert process.wait(COMMAND_SECONDS_MAX) == 9
    assert (latest(mount, "signals") / "log").read_text() == "ended\n"
    assert statuses(mount, "signals") == [9]


def test_container_that_is_killed_leaves_what_it_wrote_in_a_sealed_run(
    mount: MountProcess, podman: Podman
) -> None:
    with subprocess.Popen(
        [PROGRAM, *run_arguments(mount, "killed", "--image", IMAGE, "--", "sh", "-c", WRITER)],
        env=os.environ | podman.environment,
        stdin=subprocess.DEVNULL,
    ) as process:
        wait_for_more_lines(latest(mount, "killed") / "lines")
        (container,) = podman.containers()

        podman("kill", container)

        assert process.wait(COMMAND_SECONDS_MAX) == 137
    assert line_count(latest(mount, "killed") / "lines") >= 2
    assert statuses(mount, "killed") == [137]


def test_container_whose_podman_was_killed_is_stopped_before_its_run_is_sealed(
    mount: MountProcess, podman: Podman
) -> None:
    with waiting_for_a_signal(mount, podman, "orphaned") as process:
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

        os.kill(int(child), signal.SIGKILL)

        assert process.wait(COMMAND_SECONDS_MAX) == 9
    assert (latest(mount, "orphaned") / "log").read_text() == "ended\n"
    assert podman.containers() == []
    assert statuses(mount, "orphaned") == [9]


def test_several_containers_write_to_one_run(mount: MountProcess, podman: Podman) -> None:
    run = mount.make_run(RUN, task="several")
    joining = [str(PROGRAM), "run", "--join", str(run), "--image", IMAGE, "--", "sh", "-c"]
    writers = [
        subprocess.Popen(
            [*joining, f"echo $CLOUDAI_TASK > /output/{number}"],
            env=os.environ | podman.environment,
            stdin=subprocess.DEVNULL,
        )
        for number in (1, 2)
    ]

    assert [writer.wait(COMMAND_SECONDS_MAX) for writer in writers] == [0, 0]

    assert [(run / name).read_text() for name in ("1", "2")] == ["several\n"] * 2
    assert statuses(mount, "several") == [None]
    assert mount.status(run)["pending_count"] == 0


def test_container_writes_on_after_its_mount_daemon_was_killed(make_mount: MakeMount, podman: Podman) -> None:
    """
    C1. A container has its `/output` again once a mount whose daemon died is mounted anew at the same place; what was
      open in it fails with ENOTCONN.
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    with (
        podman.start("--volume", f"{run}:/output", IMAGE, "sh", "-c", WRITER) as writer,
        podman.start("--volume", f"{run}:/output:ro", IMAGE, "sleep", "1000") as reader,
    ):
        wait_for_more_lines(run / "lines")

        for _ in range(2):
            mount.restart()
            wait_for_more_lines(run / "lines")

        refused = podman("exec", reader, "touch", "/output/file", check=False)
        assert "Read-only file system" in refused.stderr
        (run / "stop").touch()
        assert podman("wait", writer).stdout == "0\n"
        lines = (run / "lines").read_text().splitlines()
        assert podman("exec", reader, "cat", "/output/lines").stdout.splitlines() == lines
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    mount.umount()


def test_command_of_the_readme_makes_a_sealed_run(mount: MountProcess) -> None:
    run_block(
        "container",
        {
            "trainer:1": IMAGE,
            "python train.py": "touch /output/model",
            "--task training": "--task of-the-readme",
        },
        environment=mount.environment | {"CLOUDAI_MOUNT": str(mount.mount_point)},
    )

    assert [path.name for path in latest(mount, "of-the-readme").iterdir()] == ["model"]
    assert statuses(mount, "of-the-readme") == [0]
