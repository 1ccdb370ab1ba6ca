"""Runs as volumes: podman asks a real plugin, and docker's requests are replayed from its documentation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import PROGRAM, MakeMount, MountProcess, wait_until
from support.podman import IMAGE, USER_ID, WRITER, Podman, wait_for_more_lines
from support.readme_blocks import run_block
from support.tools import run_tool
from support.volume_plugin_process import VolumePluginProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers of root's podman")

EXAMPLES = Path(__file__).parents[2] / "examples"
PODMAN_COMPOSE = PROGRAM.with_name("podman-compose")


@pytest.fixture(scope="module")
def mount(mount_shared: Callable[..., MountProcess]) -> MountProcess:
    return mount_shared(options="insecure,timeo=20,allow_other")


@pytest.fixture(scope="module")
def plugin(
    mount: MountProcess, podman: Podman, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VolumePluginProcess]:
    state_dir = tmp_path_factory.mktemp("volumes") / "state"
    with VolumePluginProcess(mount, podman.plugin_socket, state_dir) as plugin:
        yield plugin


@pytest.fixture
def create(
    podman: Podman, plugin: VolumePluginProcess, request: pytest.FixtureRequest
) -> Iterator[Callable[..., str]]:
    """Creates a volume of the test's own task with options, by podman; its name. Gone afterwards."""
    task = request.node.name.removeprefix("test_")
    made: list[str] = []

    def create(*options: str) -> str:
        name = f"{task}-{len(made)}"
        words = [word for option in (f"task={task}", *options) for word in ("-o", option)]
        podman("volume", "create", "--driver", "cloudai", *words, name)
        made.append(name)
        return name

    yield create
    for name in made:
        podman("volume", "rm", "--force", name, check=False)


def run_dir(mount: MountProcess, volume: str) -> Path:
    """The newest run of the task that the volume's name begins with."""
    return (mount.mount_point / "user-123" / volume.rpartition("-")[0] / "latest").resolve()


def exit_status(mount: MountProcess, run: Path) -> int | None:
    """None for an open run."""
    path = str(run.relative_to(mount.mount_point))
    listing = json.loads(mount.cloudai("ls", "--json", str(mount.mount_point)).stdout)
    (status,) = [found["exit_status"] for found in listing if found["path"] == path]
    return None if status is None else int(status)


def test_volume_is_a_run_that_is_sealed_with_its_removal(
    mount: MountProcess, podman: Podman, create: Callable[..., str]
) -> None:
    volume = create("seal=on-remove")
    run = run_dir(mount, volume)

    for number in (1, 2):
        podman("run", "--rm", "--volume", f"{volume}:/output", IMAGE, "touch", f"/output/{number}")

    assert sorted(path.name for path in run.iterdir()) == ["1", "2"]
    assert exit_status(mount, run) is None
    podman("volume", "rm", volume)
    assert exit_status(mount, run) == 0


def test_commands_of_the_readme_make_a_sealed_run(
    mount: MountProcess, podman: Podman, plugin: VolumePluginProcess
) -> None:
    run_block(
        "volume",
        {"trainer:1": IMAGE, "python train.py": "touch /output/model"},
        environment=podman.environment,
    )

    run = run_dir(mount, "training-0")
    assert [path.name for path in run.iterdir()] == ["model"]
    assert exit_status(mount, run) == 0


def test_compose_file_of_the_examples_makes_a_sealed_run(
    mount: MountProcess, podman: Podman, plugin: VolumePluginProcess, tmp_path: Path
) -> None:
    text = (EXAMPLES / "compose.yaml").read_text()
    for word, meaning in {
        "trainer:1": IMAGE,
        "python train.py": "touch /output/model",
        "task: training": "task: composed",
    }.items():
        assert word in text
        text = text.replace(word, meaning)
    (tmp_path / "compose.yaml").write_text(text)
    variables = [f"{name}={value}" for name, value in podman.environment.items()]
    compose = ["env", *variables, str(PODMAN_COMPOSE), "--project-name", "test"]

    run_tool(*compose, "up", "--abort-on-container-exit", cwd=tmp_path)
    run = run_dir(mount, "composed-0")
    assert [path.name for path in run.iterdir()] == ["model"]
    run_tool(*compose, "down", "--volumes", cwd=tmp_path)

    assert exit_status(mount, run) == 0


def test_volume_with_uid_is_that_users(
    mount: MountProcess, podman: Podman, create: Callable[..., str]
) -> None:
    volume = create(f"uid={USER_ID}")

    podman(
        "run",
        "--rm",
        "--user",
        str(USER_ID),
        "--volume",
        f"{volume}:/output",
        IMAGE,
        "mkdir",
        "/output/folder",
    )

    folder = run_dir(mount, volume) / "folder"
    assert (folder.stat().st_uid, folder.parent.stat().st_uid) == (USER_ID, USER_ID)


def test_read_only_volume_of_a_run_that_is_there(
    mount: MountProcess, podman: Podman, create: Callable[..., str]
) -> None:
    first = create()
    run = run_dir(mount, first)
    (run / "file").write_text("content")

    reader = create(f"run={run.name}", "ro")

    output = ("--volume", f"{reader}:/output", IMAGE)
    assert podman("run", "--rm", *output, "cat", "/output/file").stdout == "content"
    refused = podman("run", "--rm", *output, "touch", "/output/more", check=False)
    assert "Read-only file system" in refused.stderr
    assert exit_status(mount, run) is None


def test_container_that_is_killed_leaves_its_volume_as_it_was(
    mount: MountProcess, podman: Podman, create: Callable[..., str]
) -> None:
    volume = create("seal=on-remove")
    run = run_dir(mount, volume)
    with podman.start("--volume", f"{volume}:/output", IMAGE, "sh", "-c", WRITER) as container:
        wait_for_more_lines(run / "lines")

        podman("kill", container)

    mount.wait_durable(run)
    podman("volume", "rm", volume)
    assert exit_status(mount, run) == 0
    assert (run / "lines").read_text().startswith("1\n2\n")


def test_volume_survives_the_restart_of_plugin_and_daemon_under_a_container(
    make_mount: MakeMount, podman: Podman, tmp_path: Path
) -> None:
    """
    C2. A volume outlives its plugin, and its mount daemon as in C1.
    """
    mount = make_mount()
    with VolumePluginProcess(
        mount, podman.plugin_socket.with_name("own.sock"), tmp_path / "volumes"
    ) as plugin:
        assert plugin.post("/VolumeDriver.Create", Name="v", Opts={"task": "restarts"}) == (200, {"Err": ""})
        (status, answer) = plugin.post("/VolumeDriver.Mount", Name="v", ID="container-1")
        output = Path(answer["Mountpoint"])
        with podman.start("--volume", f"{output}:/output", IMAGE, "sh", "-c", WRITER) as container:
            wait_for_more_lines(output / "lines")
            plugin.restart()
            mount.restart()
            wait_for_more_lines(output / "lines")
            assert plugin.post("/VolumeDriver.Mount", Name="v", ID="container-2") == (status, answer)
            (output / "stop").touch()
            assert podman("wait", container).stdout == "0\n"
    mount.umount()


def test_read_only_volume_is_there_again_for_the_next_container(
    make_mount: MakeMount, podman: Podman, tmp_path: Path
) -> None:
    mount = make_mount()
    with VolumePluginProcess(
        mount, podman.plugin_socket.with_name("own.sock"), tmp_path / "volumes"
    ) as plugin:
        run = mount.make_run("2026-11-20_15-04-05")
        (run / "file").write_text("content")
        options = {"task": run.parent.name, "run": run.name, "ro": ""}
        assert plugin.post("/VolumeDriver.Create", Name="v", Opts=options) == (200, {"Err": ""})
        output = Path(plugin.post("/VolumeDriver.Mount", Name="v", ID="container-1")[1]["Mountpoint"])
        assert (output / "file").read_text() == "content"

        mount.restart()

        # Of os.path: False, where the method of a Path raises for a dead mount.
        wait_until(lambda: os.path.isfile(output / "file"), "the volume is the new daemon's")
        assert (output / "file").read_text() == "content"
        assert plugin.post("/VolumeDriver.Remove", Name="v") == (200, {"Err": ""})
    mount.umount()


def test_requests_of_docker_are_answered_as_its_documentation_says(
    mount: MountProcess, plugin: VolumePluginProcess
) -> None:
    opts = {"task": "docker", "run": "2026-11-20_15-04-05"}
    place = str(mount.mount_point / "user-123" / "docker" / "2026-11-20_15-04-05")

    assert plugin.post("/Plugin.Activate") == (200, {"Implements": ["VolumeDriver"], "Err": ""})
    assert plugin.post("/VolumeDriver.Capabilities") == (200, {"Capabilities": {"Scope": "local"}, "Err": ""})
    for _ in range(2):
        assert plugin.post("/VolumeDriver.Create", Name="docker-1", Opts=opts) == (200, {"Err": ""})
    for container in ("id-1", "id-2", "id-2"):
        answer = plugin.post("/VolumeDriver.Mount", Name="docker-1", ID=container)
        assert answer == (200, {"Mountpoint": place, "Err": ""})
    assert plugin.post("/VolumeDriver.Path", Name="docker-1") == (200, {"Mountpoint": place, "Err": ""})
    status, got = plugin.post("/VolumeDriver.Get", Name="docker-1")
    assert (status, got["Volume"]["Name"], got["Volume"]["Mountpoint"]) == (200, "docker-1", place)
    assert got["Volume"] in plugin.post("/VolumeDriver.List")[1]["Volumes"]
    for container in ("id-1", "id-2", "id-2"):
        assert plugin.post("/VolumeDriver.Unmount", Name="docker-1", ID=container) == (200, {"Err": ""})
    for _ in range(2):
        assert plugin.post("/VolumeDriver.Remove", Name="docker-1") == (200, {"Err": ""})
    assert plugin.post("/VolumeDriver.Get", Name="docker-1") == (500, {"Err": "no volume docker-1"})


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        ({}, "the option task= is missing"),
        ({"task": "t", "rum": "x"}, "unknown option 'rum': there are task=, run=, seal=, uid= and ro"),
        ({"task": "t", "seal": "soon"}, "seal= is on-remove or never"),
        ({"task": "t", "uid": "somebody"}, "uid=: 'somebody' is no UID[:GID]"),
        ({"task": "t", "run": "today"}, "no run of 't' could be made: a run is named by its UTC time"),
    ],
)
def test_options_that_are_not_valid_are_an_error_with_a_sentence(
    plugin: VolumePluginProcess, opts: dict[str, str], sentence: str
) -> None:
    status, answer = plugin.post("/VolumeDriver.Create", Name="refused", Opts=opts)

    assert (status, answer["Err"][: len(sentence)]) == (500, sentence)
    assert plugin.post("/VolumeDriver.Get", Name="refused") == (500, {"Err": "no volume refused"})


def test_volume_of_the_same_name_with_other_options_is_refused(plugin: VolumePluginProcess) -> None:
    assert plugin.post("/VolumeDriver.Create", Name="same", Opts={"task": "one"}) == (200, {"Err": ""})

    other = plugin.post("/VolumeDriver.Create", Name="same", Opts={"task": "other"})

    assert other == (500, {"Err": "there is a volume same with other options"})
    plugin.post("/VolumeDriver.Remove", Name="same")


def test_volume_whose_uploads_go_on_is_not_removed_yet(
    master: MasterProcess, make_mount: MakeMount, podman: Podman, tmp_path: Path
) -> None:
    """
    C3. A volume with `seal=on-remove` is removed once its run is sealed; until its uploads are at the master that is an
      error, which says what to wait for.
    """
    mount = make_mount()
    with VolumePluginProcess(
        mount, podman.plugin_socket.with_name("own.sock"), tmp_path / "volumes"
    ) as plugin:
        opts = {"task": "pending", "seal": "on-remove"}
        plugin.post("/VolumeDriver.Create", Name="v", Opts=opts)
        run = Path(plugin.post("/VolumeDriver.Mount", Name="v", ID="container-1")[1]["Mountpoint"])
        with master.silent():
            (run / "file").write_text("content")

            status, answer = plugin.post("/VolumeDriver.Remove", Name="v")

        assert status == 500
        assert f"remove v again once `cloudai wait {run}` has ended" in answer["Err"]
        mount.wait_durable(run)
        assert plugin.post("/VolumeDriver.Remove", Name="v") == (200, {"Err": ""})
        assert exit_status(mount, run) == 0
    mount.umount()


def test_without_its_mount_the_plugin_says_what_to_do(
    make_mount: MakeMount, podman: Podman, tmp_path: Path
) -> None:
    mount = make_mount()
    mount.umount()
    with VolumePluginProcess(
        mount, podman.plugin_socket.with_name("own.sock"), tmp_path / "volumes"
    ) as plugin:
        status, answer = plugin.post("/VolumeDriver.Create", Name="v", Opts={"task": "t"})

    assert status == 500
    place = mount.mount_point
    assert answer["Err"] == f"nothing is mounted at {place}: `cloudai mount SOURCE {place}` first"
