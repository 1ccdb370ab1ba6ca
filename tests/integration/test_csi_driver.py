"""The CSI driver as a cluster uses it: its real socket, a real master, real mounts."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloudai_proto.csi.v1 import csi_pb2 as csi
from support.csi_client import BLOCK, MODE, capability, refusal
from support.csi_driver_process import CsiDriverProcess
from support.master_process import MasterProcess
from support.mount_process import MakeMount, MountProcess, wait_until
from support.podman import IMAGE, Podman

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the driver mounts as root")

USER = "user-123"
NOBODYS = "0123456789abcdef01234567"
"""The id of no run."""


@pytest.fixture(scope="module")
def reader(mount_shared: Callable[..., MountProcess]) -> MountProcess:
    """Another machine's mount."""
    return mount_shared()


@pytest.fixture(scope="module")
def token(shared_master: MasterProcess) -> str:
    return shared_master.make_token(USER)


@pytest.fixture(scope="module")
def driver(
    shared_master: MasterProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CsiDriverProcess]:
    """For tests that break nothing."""
    directory = tmp_path_factory.mktemp("csi")
    with CsiDriverProcess(directory, shared_master.address, "--node-id", "node-1") as driver:
        yield driver


@pytest.fixture
def volume(driver: CsiDriverProcess, token: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The id of one that is staged; gone afterwards."""
    volume_id = driver.create(f"pvc-{request.node.name}", token).volume_id
    driver.stage(volume_id, token)
    yield volume_id
    for place in driver.target_root.glob("*/mount"):
        driver.unpublish(volume_id, place.parent.name)
    driver.unstage(volume_id)


def exit_status(mount: MountProcess, run: str) -> int | None:
    """None for an open run."""
    listing = json.loads(mount.cloudai("ls", "--json", str(mount.mount_point)).stdout)
    (status,) = [found["exit_status"] for found in listing if found["path"] == run]
    return None if status is None else int(status)


def test_volume_lives_from_its_creation_to_a_sealed_run(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    """Each call twice, as a cluster repeats what it has no answer to."""
    volume, again = (driver.create("pvc-life", token, task="life") for _ in range(2))
    assert volume == again
    run = volume.volume_context["run"]

    for _ in range(2):
        staging = driver.stage(volume.volume_id, token, context=volume.volume_context)
    for _ in range(2):
        target = driver.publish(volume.volume_id, "pod-1")
    (target / "model").write_bytes(b"weights")
    os.chown(target / "model", 1000, 1000)
    for _ in range(2):
        driver.unpublish(volume.volume_id, "pod-1")
    assert not target.exists()
    assert (reader.mount_point / run / "model").read_bytes() == b"weights"
    for _ in range(2):
        driver.unstage(volume.volume_id)
    assert not os.path.ismount(staging)
    assert volume.volume_id not in os.listdir(driver.state_dir)
    assert exit_status(reader, run) is None
    for _ in range(2):
        driver.delete(volume.volume_id, token)
    assert exit_status(reader, run) == 0


def test_driver_says_who_it_is_and_what_it_can(driver: CsiDriverProcess) -> None:
    assert driver.call("Identity", csi.GetPluginInfoRequest()).name == "csi.cloudai"
    assert driver.call("Identity", csi.ProbeRequest()).ready.value
    (plugin,) = driver.call("Identity", csi.GetPluginCapabilitiesRequest()).capabilities
    assert plugin.service.type == csi.PluginCapability.Service.CONTROLLER_SERVICE
    controller = driver.call("Controller", csi.ControllerGetCapabilitiesRequest()).capabilities
    assert [one.rpc.type for one in controller] == [1, 13]  # CREATE_DELETE_VOLUME, SINGLE_NODE_MULTI_WRITER
    node = driver.call("Node", csi.NodeGetCapabilitiesRequest()).capabilities
    assert [one.rpc.type for one in node] == [1, 2, 5]  # STAGE_UNSTAGE, GET_STATS, SINGLE_NODE_MULTI_WRITER
    assert driver.call("Node", csi.NodeGetInfoRequest()).node_id == "node-1"


def test_socket_is_for_root_alone_and_other_files_have_the_modes_they_are_given(
    driver: CsiDriverProcess,
) -> None:
    (umask,) = re.findall(r"^Umask:\t(\d+)$", Path(f"/proc/{driver.pid}/status").read_text(), re.MULTILINE)

    assert stat.filemode(driver.socket_path.lstat().st_mode) == "srw-------"
    os.umask(before := os.umask(0))
    assert int(umask, 8) == before


def test_calls_that_are_not_offered_are_unimplemented(driver: CsiDriverProcess) -> None:
    with grpc.insecure_channel(f"unix://{driver.socket_path}") as channel:
        for call in ("Controller/ListVolumes", "Node/NodeExpandVolume", "GroupController/CreateVolumeGroup"):
            method: Any = channel.unary_unary(f"/csi.v1.{call}")
            assert refusal(partial(method, b"", timeout=10))[0] == "UNIMPLEMENTED"


def test_driver_without_a_node_makes_volumes_and_mounts_none(
    shared_master: MasterProcess, token: str, tmp_path: Path
) -> None:
    with CsiDriverProcess(tmp_path, shared_master.address, "--on-delete", "keep") as controller:
        volume = controller.create("pvc-controller", token)
        code, _ = refusal(lambda: controller.stage(volume.volume_id, token))
        assert code == "UNIMPLEMENTED"
        controller.delete(volume.volume_id, token)
        # Kept open: the same name is the same run.
        assert controller.create("pvc-controller", token) == volume
        assert not controller.state_dir.exists()


@pytest.mark.parametrize(
    ("fields", "code", "sentence"),
    [
        ({"name": ""}, "INVALID_ARGUMENT", "name: is missing"),
        ({"name": "n" * 129}, "INVALID_ARGUMENT", "name: has at most 128 bytes"),
        ({"name": "a\x07"}, "INVALID_ARGUMENT", "name: has control characters"),
        ({"volume_capabilities": []}, "INVALID_ARGUMENT", "volume_capabilities: is missing"),
        ({"volume_capabilities": [BLOCK]}, "INVALID_ARGUMENT", "volume_capability: a run is no block device"),
        (
            {"volume_capabilities": [csi.VolumeCapability()]},
            "INVALID_ARGUMENT",
            "volume_capability: access_type and access_mode are needed",
        ),
        (
            {"volume_capabilities": [capability(), capability(MODE.UNKNOWN)]},
            "INVALID_ARGUMENT",
            "volume_capability: the access mode is not known",
        ),
        (
            {"volume_capabilities": [capability(fs_type="ext4")]},
            "INVALID_ARGUMENT",
            "volume_capability: fs_type is for other drivers",
        ),
        (
            {"volume_capabilities": [capability(flags=("uid=1000", "cache_dir=/etc"))]},
            "INVALID_ARGUMENT",
            "mount_flags: there are uid=, gid=",
        ),
        ({"parameters": {}}, "INVALID_ARGUMENT", "parameters: task is missing"),
        ({"parameters": {"task": "../other"}}, "INVALID_ARGUMENT", "parameters: task: not a valid name"),
        ({"parameters": {"task": "t", "taks": "u"}}, "INVALID_ARGUMENT", "parameters: 'taks' is not known"),
        (
            {"volume_content_source": csi.VolumeContentSource()},
            "INVALID_ARGUMENT",
            "volume_content_source: a run begins empty",
        ),
        ({"capacity_range": csi.CapacityRange(required_bytes=-1)}, "INVALID_ARGUMENT", "capacity_range: is"),
        (
            {"capacity_range": csi.CapacityRange(required_bytes=2, limit_bytes=1)},
            "OUT_OF_RANGE",
            "capacity_range: more is required than is the limit",
        ),
        ({"secrets": {}}, "UNAUTHENTICATED", "secrets: `token` is missing"),
        ({"secrets": {"token": "no token"}}, "UNAUTHENTICATED", "secrets: what `token` holds is none"),
        ({"secrets": {"token": "e30.e30.e30"}}, "UNAUTHENTICATED", "not authenticated"),
    ],
)
def test_creation_that_cannot_be_is_refused_by_name(
    driver: CsiDriverProcess, token: str, fields: dict[str, Any], code: str, sentence: str
) -> None:
    found_code, found_sentence = refusal(lambda: driver.create(**{"name": "pvc-x", "token": token, **fields}))

    assert (found_code, found_sentence[: len(sentence)]) == (code, sentence)


def test_same_name_with_another_task_or_user_exists_already(
    driver: CsiDriverProcess, shared_master: MasterProcess, token: str
) -> None:
    volume = driver.create("pvc-same", token, task="one")
    other = shared_master.make_token("user-456")

    for call in (
        lambda: driver.create("pvc-same", token, task="two"),
        lambda: driver.create("pvc-same", other, task="one"),
    ):
        assert refusal(call) == (
            "ALREADY_EXISTS",
            "there is a volume of this name with another task, or of another user",
        )
    driver.delete(volume.volume_id, token)
    code, sentence = refusal(lambda: driver.create("pvc-same", token, task="one"))
    assert (code, sentence) == (
        "ALREADY_EXISTS",
        f"the run of this volume is sealed: {volume.volume_context['run']}",
    )


def task_id_of(volume: csi.Volume) -> str:
    return volume.volume_id.partition("~")[0]


def test_volume_is_deleted_with_a_token_of_its_user(
    driver: CsiDriverProcess, shared_master: MasterProcess, reader: MountProcess, token: str
) -> None:
    """
    K6. A volume that was made by a claim is deleted with a token of its user or an administrator's alone; with another
    it stays, and the cluster is told so.
    """
    volume = driver.create("pvc-owned", token)
    run = volume.volume_context["run"]
    other = shared_master.make_token("user-456")

    code, sentence = refusal(lambda: driver.delete(volume.volume_id, other))

    assert code == "PERMISSION_DENIED"
    assert "the volume is another user's than the token" in sentence
    assert exit_status(reader, run) is None
    driver.delete(volume.volume_id, token)
    assert exit_status(reader, run) == 0
    # Nor is it said then that there is nothing to do: to whom it does not belong a sealed run is hidden as well.
    assert refusal(lambda: driver.delete(volume.volume_id, other))[0] == "PERMISSION_DENIED"


def test_volume_is_deleted_with_the_token_of_an_administrator(
    driver: CsiDriverProcess, shared_master: MasterProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.create("pvc-administered", token)

    driver.delete(volume.volume_id, shared_master.make_token("user-456", admin=True))

    assert exit_status(reader, volume.volume_context["run"]) == 0


def test_volume_whose_run_is_kept_is_deleted_with_a_token_of_its_user(
    shared_master: MasterProcess, reader: MountProcess, token: str, tmp_path: Path
) -> None:
    """
    K6. A volume that was made by a claim is deleted with a token of its user or an administrator's alone; with another
    it stays, and the cluster is told so.
    """
    with CsiDriverProcess(tmp_path, shared_master.address, "--on-delete", "keep") as controller:
        volume = controller.create("pvc-kept", token)
        limited = shared_master.make_token(USER, task_id=task_id_of(volume))
        for refused, code in (
            (shared_master.make_token("user-456"), "PERMISSION_DENIED"),
            (limited, "PERMISSION_DENIED"),
            ("e30.e30.e30", "UNAUTHENTICATED"),
            ("", "UNAUTHENTICATED"),
        ):
            assert refusal(partial(controller.delete, volume.volume_id, refused))[0] == code

        controller.delete(volume.volume_id, token)
        controller.delete(volume.volume_id, shared_master.make_token("user-456", admin=True))
    assert exit_status(reader, volume.volume_context["run"]) is None


def test_volume_whose_run_a_person_has_removed_is_deleted(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.create("pvc-removed", token)
    run = reader.mount_point / volume.volume_context["run"]
    wait_until(run.exists, "the run in another mount")
    run.rmdir()

    driver.delete(volume.volume_id, token)


def test_task_is_that_of_the_claim_where_the_class_names_none(driver: CsiDriverProcess, token: str) -> None:
    parameters = {"csi.storage.k8s.io/pvc/name": "results", "csi.storage.k8s.io/pvc/namespace": "team"}

    volume = driver.create("pvc-claim", token, parameters=parameters)

    assert volume.volume_context["run"].split("/")[:2] == [USER, "results"]


def test_token_of_one_run_makes_no_volume(
    driver: CsiDriverProcess, shared_master: MasterProcess, token: str
) -> None:
    volume = driver.create("pvc-scope", token)
    limited = shared_master.make_token(USER, task_id=task_id_of(volume))

    assert refusal(lambda: driver.create("pvc-other", limited))[0] == "PERMISSION_DENIED"
    for volume_id in (volume.volume_id, driver.create("pvc-other", token).volume_id):
        assert refusal(partial(driver.delete, volume_id, limited))[0] == "PERMISSION_DENIED"
    # It is enough to mount that one.
    driver.stage(volume.volume_id, limited)
    driver.unstage(volume.volume_id)


def test_capabilities_are_confirmed_or_said_not_to_be(driver: CsiDriverProcess, token: str) -> None:
    volume = driver.create("pvc-validate", token)

    def validate(*wanted: csi.VolumeCapability, **fields: Any) -> csi.ValidateVolumeCapabilitiesResponse:
        request = csi.ValidateVolumeCapabilitiesRequest(
            **{
                "volume_id": volume.volume_id,
                "volume_capabilities": wanted,
                "volume_context": volume.volume_context,
                "secrets": {"token": token},
                **fields,
            }
        )
        response: csi.ValidateVolumeCapabilitiesResponse = driver.call("Controller", request)
        return response

    confirmed = validate(capability(), parameters={"task": "training"}).confirmed
    assert list(confirmed.volume_capabilities) == [capability()]
    assert dict(confirmed.parameters) == {"task": "training"}
    for refused in (
        validate(BLOCK),
        validate(capability(), volume_context={"run": f"{USER}/training/2026-01-01_00-00-00"}),
    ):
        assert not refused.HasField("confirmed")
        assert refused.message
    assert refusal(validate)[0] == "INVALID_ARGUMENT"
    assert refusal(lambda: validate(capability(), volume_id=""))[0] == "INVALID_ARGUMENT"
    assert refusal(lambda: validate(capability(), volume_id=NOBODYS))[0] == "NOT_FOUND"
    assert refusal(lambda: validate(capability(), secrets={}))[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("fields", "code", "sentence"),
    [
        ({"volume_id": ""}, "INVALID_ARGUMENT", "volume_id: is missing"),
        ({"volume_id": "../../etc"}, "NOT_FOUND", "volume_id: there is no such volume"),
        ({"volume_id": NOBODYS}, "NOT_FOUND", "not found"),
        ({"volume_id": f"{NOBODYS}~nobody"}, "NOT_FOUND", "volume_id: there is no such volume"),
        ({"staging_target_path": ""}, "INVALID_ARGUMENT", "staging_target_path: is missing"),
        ({"staging_target_path": "here"}, "INVALID_ARGUMENT", "staging_target_path: is no absolute path"),
        ({"staging_target_path": "/tmp/../etc/x"}, "INVALID_ARGUMENT", "staging_target_path: is no place"),
        ({"staging_target_path": "/" + "a/" * 3000}, "INVALID_ARGUMENT", "staging_target_path: is no"),
        ({"access": BLOCK}, "INVALID_ARGUMENT", "volume_capability: a run is no block device"),
        ({"access": csi.VolumeCapability()}, "INVALID_ARGUMENT", "volume_capability: access_type"),
        ({"secrets": {}}, "UNAUTHENTICATED", "secrets: `token` is missing"),
        ({"secrets": {"token": "e30.e30.e30"}}, "UNAUTHENTICATED", "not authenticated"),
        ({"context": {"run": "../../.."}}, "INVALID_ARGUMENT", "volume_context: run"),
        ({"context": {"run": f"{USER}/training"}}, "INVALID_ARGUMENT", "volume_context: run is USER/TASK"),
        (
            {"context": {"run": f"{USER}/training/2026-01-01_00-00-00"}},
            "NOT_FOUND",
            f"the run {USER}/training/2026-01-01_00-00-00 is not that of",
        ),
    ],
)
def test_staging_that_cannot_be_is_refused_by_name(
    driver: CsiDriverProcess, token: str, fields: dict[str, Any], code: str, sentence: str
) -> None:
    volume = driver.create("pvc-refused", token)
    wanted = {"volume_id": volume.volume_id, "token": token, **fields}
    if wanted["volume_id"] in ("", "../../etc"):
        wanted["staging_target_path"] = str(driver.staging("other"))

    found_code, found_sentence = refusal(lambda: driver.stage(**wanted))

    assert (found_code, found_sentence[: len(sentence)]) == (code, sentence)
    assert volume.volume_id not in os.listdir(driver.state_dir)
    assert driver.daemon_of(volume.volume_id) is None


def test_staging_path_that_cannot_be_made_leaves_nothing(
    driver: CsiDriverProcess, token: str, tmp_path: Path
) -> None:
    volume = driver.create("pvc-below-a-file", token).volume_id
    (tmp_path / "file").touch()

    code, sentence = refusal(
        lambda: driver.stage(volume, token, staging_target_path=str(tmp_path / "file" / "globalmount"))
    )

    assert (code, sentence) == ("INTERNAL", f"{tmp_path}/file/globalmount: Not a directory")
    assert volume not in os.listdir(driver.state_dir)
    assert not (Path(os.environ["CLOUDAI_RUNTIME_DIR"]) / "csi" / volume).exists()
    driver.delete(volume, token)


def test_publishing_what_is_not_staged_fails(driver: CsiDriverProcess, token: str) -> None:
    volume = driver.create("pvc-not-staged", token)

    code, sentence = refusal(lambda: driver.publish(volume.volume_id, "pod"))

    assert code == "FAILED_PRECONDITION"
    assert sentence.endswith("NodeStageVolume first")
    assert not driver.target("pod").exists()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"volume_id": ""}, "INVALID_ARGUMENT"),
        ({"target_path": ""}, "INVALID_ARGUMENT"),
        ({"target_path": "mount"}, "INVALID_ARGUMENT"),
        ({"target_path": "/tmp/a/../b"}, "INVALID_ARGUMENT"),
        ({"target_path": "/tmp"}, "INVALID_ARGUMENT"),
        ({"staging_target_path": ""}, "FAILED_PRECONDITION"),
        ({"volume_capability": BLOCK}, "INVALID_ARGUMENT"),
        ({"volume_capability": None}, "INVALID_ARGUMENT"),
    ],
)
def test_publishing_request_that_is_not_valid_is_refused(
    driver: CsiDriverProcess, fields: dict[str, Any], code: str
) -> None:
    request = {
        "volume_id": NOBODYS,
        "staging_target_path": str(driver.staging(NOBODYS)),
        "target_path": str(driver.target("pod")),
        "volume_capability": capability(),
        **fields,
    }

    assert refusal(lambda: driver.call("Node", csi.NodePublishVolumeRequest(**request)))[0] == code


def test_taking_away_what_is_not_there_is_done_already(driver: CsiDriverProcess, token: str) -> None:
    driver.unpublish(NOBODYS, "pod-of-nothing")
    driver.unstage(NOBODYS)
    driver.delete(NOBODYS, token)
    driver.delete("../../etc", token)
    requests = {
        "Node": (
            csi.NodeUnpublishVolumeRequest(volume_id=NOBODYS),
            csi.NodeUnpublishVolumeRequest(target_path="/tmp/x"),
            csi.NodeUnstageVolumeRequest(volume_id=NOBODYS),
            csi.NodeUnstageVolumeRequest(staging_target_path="/tmp/x"),
        ),
        "Controller": (csi.DeleteVolumeRequest(),),
    }
    for service, invalid in requests.items():
        for request in invalid:
            assert refusal(partial(driver.call, service, request))[0] == "INVALID_ARGUMENT"
    assert refusal(lambda: driver.delete(NOBODYS, ""))[0] == "UNAUTHENTICATED"


def test_unpublishing_removes_nothing_that_is_in_a_directory(driver: CsiDriverProcess) -> None:
    target = driver.target("bare")
    target.mkdir(parents=True)
    (target / "of somebody else").touch()

    code, sentence = refusal(lambda: driver.unpublish(NOBODYS, "bare"))

    assert (code, sentence) == ("INTERNAL", f"{target}: Directory not empty")
    assert (target / "of somebody else").exists()
    (target / "of somebody else").unlink()


def test_place_that_is_in_use_stays_published(driver: CsiDriverProcess, volume: str) -> None:
    target = driver.publish(volume, "pod-busy")
    with (target / "file").open("w") as file:
        assert refusal(lambda: driver.unpublish(volume, "pod-busy")) == (
            "INTERNAL",
            f"{target}: busy: a program has a file or its working directory there",
        )
        file.write("content")
    assert (target / "file").read_text() == "content"
    driver.unpublish(volume, "pod-busy")


def test_volume_at_two_places_may_be_written_at_one(driver: CsiDriverProcess, volume: str) -> None:
    writer = driver.publish(volume, "writer")
    reader = driver.publish(volume, "reader", readonly=True)

    (writer / "file").write_text("content")

    assert (reader / "file").read_text() == "content"
    for write in (lambda: (reader / "more").touch(), lambda: (reader / "file").write_text("other")):
        with pytest.raises(OSError) as refused:
            write()
        assert refused.value.errno == errno.EROFS
    # Nor can whoever mounts it again, as runtimes do for containers.
    again = subprocess.run(["mount", "-o", "remount,bind,rw", str(reader)], capture_output=True, check=False)
    assert again.returncode != 0
    assert refusal(lambda: driver.publish(volume, "reader")) == (
        "ALREADY_EXISTS",
        f"{volume} is published at {reader}, read-only",
    )
    assert refusal(lambda: driver.publish(volume, "writer", readonly=True))[0] == "ALREADY_EXISTS"
    assert refusal(lambda: driver.unstage(volume)) == (
        "FAILED_PRECONDITION",
        f"{volume} is published at {writer}: unpublish it first",
    )
    driver.unpublish(volume, "reader")
    (writer / "more").touch()


@pytest.mark.parametrize("mode", [MODE.SINGLE_NODE_WRITER, MODE.SINGLE_NODE_SINGLE_WRITER])
def test_volume_of_one_writer_is_at_one_place_at_a_time(
    driver: CsiDriverProcess, volume: str, mode: csi.VolumeCapability.AccessMode.Mode
) -> None:
    driver.publish(volume, "first", access=capability(mode))

    code, _ = refusal(lambda: driver.publish(volume, "second", access=capability(mode)))

    assert code == "FAILED_PRECONDITION"
    driver.unpublish(volume, "first")
    driver.publish(volume, "second", access=capability(mode))


@pytest.mark.parametrize(
    "access",
    [
        capability(MODE.MULTI_NODE_READER_ONLY),
        capability(MODE.SINGLE_NODE_READER_ONLY),
        capability(flags=("ro",)),
    ],
    ids=("many readers", "one reader", "flag"),
)
def test_volume_to_be_read_takes_no_writes_anywhere(
    driver: CsiDriverProcess, token: str, access: csi.VolumeCapability
) -> None:
    volume = driver.create("pvc-read", token).volume_id
    staging = driver.stage(volume, token, access=access)
    target = driver.publish(volume, "pod-read", access=access)

    for directory in (staging, target):
        with pytest.raises(OSError, match="Read-only file system"):
            (directory / "file").touch()
    code, sentence = refusal(lambda: driver.stage(volume, token))
    assert (code, sentence) == ("ALREADY_EXISTS", f"{volume} is staged at {staging} with another capability")
    driver.unpublish(volume, "pod-read")
    driver.unstage(volume)


def test_flags_of_a_volume_are_those_of_its_mount(driver: CsiDriverProcess, token: str) -> None:
    volume = driver.create("pvc-flags", token).volume_id
    staging = driver.stage(volume, token, access=capability(flags=("uid=1000,gid=1000", "noexec")))

    assert (staging.stat().st_uid, staging.stat().st_gid) == (1000, 1000)
    assert os.statvfs(staging).f_flag & os.ST_NOEXEC
    driver.unstage(volume)


def test_flags_of_a_volume_lift_nothing_that_the_driver_forbids(
    shared_master: MasterProcess, tmp_path: Path, token: str
) -> None:
    arguments = ("--node-id", "node-1", "-o", "noexec")
    with CsiDriverProcess(tmp_path, shared_master.address, *arguments) as driver:
        volume = driver.create("pvc-forbidden", token).volume_id
        staging = driver.stage(volume, token, access=capability(flags=("noatime",)))

        flags = os.statvfs(staging).f_flag
        assert flags & os.ST_NOEXEC
        assert flags & os.ST_NOATIME
        driver.unstage(volume)


def test_place_of_a_volume_is_no_other_ones(driver: CsiDriverProcess, volume: str, token: str) -> None:
    target = driver.publish(volume, "pod")
    (target / "file").write_text("content")
    other = driver.create("pvc-other", token).volume_id
    driver.stage(other, token)

    for call in (lambda: driver.publish(other, "pod"), lambda: driver.unpublish(other, "pod")):
        assert refusal(call) == ("FAILED_PRECONDITION", f"{target} is {volume}'s")

    assert (target / "file").read_text() == "content"
    driver.unstage(other)


def test_place_within_a_volume_is_refused(driver: CsiDriverProcess, volume: str, token: str) -> None:
    target = driver.publish(volume, "pod")
    other = driver.create("pvc-outer", token).volume_id
    driver.stage(other, token)

    for outer in (driver.staging(volume), target, driver.staging(other)):
        request = csi.NodePublishVolumeRequest(
            volume_id=volume,
            staging_target_path=str(driver.staging(volume)),
            target_path=str(outer / "within" / "mount"),
            volume_capability=capability(),
        )
        code, sentence = refusal(partial(driver.call, "Node", request))
        assert (code, sentence.partition(":")[0]) == ("INVALID_ARGUMENT", "target_path")
        assert not (outer / "within").exists()

    driver.unstage(other)


def test_mount_of_somebody_is_not_taken_away(driver: CsiDriverProcess, make_mount: MakeMount) -> None:
    mount = make_mount("somebody")
    request = csi.NodeUnpublishVolumeRequest(volume_id="nobody", target_path=str(mount.mount_point))

    assert refusal(lambda: driver.call("Node", request))[0] == "FAILED_PRECONDITION"

    assert mount.mount_point.is_mount()
    mount.umount()


@pytest.mark.parametrize("readonly", [False, True])
def test_place_that_is_a_symlink_is_refused(
    driver: CsiDriverProcess, volume: str, tmp_path: Path, readonly: bool
) -> None:
    place = driver.target("linked")
    place.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "aim").mkdir()
    place.symlink_to(tmp_path / "aim")

    assert refusal(lambda: driver.publish(volume, "linked", readonly=readonly))[0] == "INVALID_ARGUMENT"

    assert not (tmp_path / "aim").is_mount()
    place.unlink()


def test_run_that_is_there_is_a_volume_by_its_id(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    """As a PersistentVolume that a person has written."""
    run = reader.make_run("2026-11-20_15-04-05", task="by-hand")
    (run / "result").write_text("42")
    reader.seal(run)
    listing = json.loads(reader.cloudai("ls", "--json", str(reader.mount_point)).stdout)
    path = str(run.relative_to(reader.mount_point))
    (volume,) = [found["task_id"] for found in listing if found["path"] == path]

    driver.stage(volume, token)
    target = driver.publish(volume, "pod-by-hand")

    assert (target / "result").read_text() == "42"
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "more").touch()
    driver.unpublish(volume, "pod-by-hand")
    driver.unstage(volume)


def test_volume_is_staged_at_one_place(driver: CsiDriverProcess, volume: str, token: str) -> None:
    elsewhere = driver.staging_root / "elsewhere" / "globalmount"

    code, sentence = refusal(lambda: driver.stage(volume, token, staging_target_path=str(elsewhere)))

    assert (code, sentence) == (
        "FAILED_PRECONDITION",
        f"{volume} is staged at {driver.staging(volume)}: unstage it there",
    )
    # Nothing is at that place, so there is nothing to be done.
    request = csi.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=str(elsewhere))
    driver.call("Node", request)
    assert driver.daemon_of(volume) is not None


def test_volume_that_is_staged_is_not_deleted(driver: CsiDriverProcess, volume: str, token: str) -> None:
    assert refusal(lambda: driver.delete(volume, token)) == (
        "FAILED_PRECONDITION",
        f"{volume} is staged on this node: unstage it first",
    )


def test_run_that_is_staged_by_another_id_is_not_deleted(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    """As by a PersistentVolume that a person has written for the run of a claim."""
    volume = driver.create("pvc-by-hand", token)
    driver.stage(task_id_of(volume), token)

    assert refusal(lambda: driver.delete(volume.volume_id, token))[0] == "FAILED_PRECONDITION"

    assert exit_status(reader, volume.volume_context["run"]) is None
    driver.unstage(task_id_of(volume))
    driver.delete(volume.volume_id, token)


def test_usage_of_a_volume_is_what_df_says(driver: CsiDriverProcess, volume: str) -> None:
    target = driver.publish(volume, "pod-usage")

    def usage(path: Path, volume_id: str = volume) -> csi.VolumeUsage:
        request = csi.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(path))
        (found,) = driver.call("Node", request).usage
        assert isinstance(found, csi.VolumeUsage)
        return found

    found = usage(target)
    told = os.statvfs(target)
    assert (found.unit, found.total) == (csi.VolumeUsage.BYTES, told.f_blocks * told.f_frsize)
    assert 0 < found.available <= found.total
    assert refusal(lambda: usage(target, NOBODYS))[0] == "NOT_FOUND"
    assert refusal(lambda: usage(driver.target("another")))[0] == "NOT_FOUND"
    assert refusal(lambda: usage(target, ""))[0] == "INVALID_ARGUMENT"
    assert refusal(lambda: usage(Path("relative")))[0] == "INVALID_ARGUMENT"


def test_another_token_takes_the_place_of_the_first_only_if_it_is_good(
    driver: CsiDriverProcess, volume: str, token: str, shared_master: MasterProcess
) -> None:
    assert refusal(lambda: driver.stage(volume, "e30.e30.e30"))[0] == "UNAUTHENTICATED"
    token_file = Path(os.environ["CLOUDAI_RUNTIME_DIR"]) / "csi" / volume
    assert token_file.read_text() == token

    renewed = shared_master.make_token(USER, days=2)
    driver.stage(volume, renewed)

    assert token_file.read_text() == renewed
    assert (token_file.stat().st_mode & 0o777, token_file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_second_request_for_a_volume_is_aborted_while_the_first_is_not_answered(
    driver: CsiDriverProcess, token: str, shared_master: MasterProcess
) -> None:
    volume = driver.create("pvc-twice", token).volume_id
    with shared_master.silent():
        staging = driver.start_staging(volume, token)
        wait_until(
            lambda: refusal(lambda: driver.publish(volume, "twice"))[0] == "ABORTED", "a call that is aborted"
        )
    assert staging.result() == csi.NodeStageVolumeResponse()
    driver.unstage(volume)


def content_of(path: Path) -> bytes:
    """Nothing for a file that is gone by now, as those of a database are."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def test_secrets_are_in_no_answer_log_record_or_command_line(
    driver: CsiDriverProcess, token: str, shared_master: MasterProcess
) -> None:
    """
    K7. Of the secrets that come with calls the token alone is kept, in a file that is root's and in memory, until the
    volume is unstaged; none is in an answer, an error, a log, a record, a command line, an environment or the kernel's
    table of mounts.
    """
    hidden = (token.encode(), b"value-of-another-secret", b"value-of-a-flag")
    given = {"token": token, "password": "value-of-another-secret"}
    created = driver.create("pvc-secret", token, secrets=given)
    volume = created.volume_id
    driver.stage(volume, token, context=created.volume_context, secrets=given)
    target = driver.publish(volume, "pod-secret")

    flagged = capability(flags=("password=value-of-a-flag",))
    spoilt = (f"{token}x", f"{token} {token}", f"{token}\n{token}", f"{token}\x07")
    answers = [
        str(created),
        *(str(refusal(partial(driver.create, "pvc-spoilt", wrong))) for wrong in spoilt),
        *(str(refusal(partial(driver.stage, volume, wrong))) for wrong in spoilt),
        *(str(refusal(partial(driver.delete, NOBODYS, wrong))) for wrong in spoilt),
        str(refusal(partial(driver.create, "pvc-flag", token, volume_capabilities=[flagged]))),
        str(refusal(partial(driver.stage, volume, token, access=flagged))),
        str(refusal(partial(driver.publish, volume, "pod-flag", access=flagged))),
    ]
    shown = [answer.encode() for answer in answers]
    assert list(created.volume_context) == ["run"]
    processes = driver.mount_processes()
    assert len(processes) >= 2
    for pid in (driver.pid, *(process.pid for process in processes)):
        shown += [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ", "mountinfo")]
    token_dir = Path(os.environ["CLOUDAI_RUNTIME_DIR"]) / "csi"
    assert (token_dir / volume).read_text() == token
    kept = [token_dir.parent, driver.state_dir, driver.cache_dir]
    files = [found for directory in kept for found in directory.rglob("*") if found.is_file()]
    files.remove(token_dir / volume)
    assert driver.state_dir / volume / "volume.json" in files
    shown += [content_of(path) for path in (driver.log_path, shared_master.log_path, *files)]
    for secret in hidden:
        assert not [text[:200] for text in shown if secret in text]

    driver.unpublish(volume, "pod-secret")
    driver.unstage(volume)
    assert not target.exists()
    assert volume not in os.listdir(token_dir)


def test_container_writes_to_a_published_volume(
    driver: CsiDriverProcess, reader: MountProcess, podman: Podman, token: str
) -> None:
    volume = driver.create("pvc-container", token)
    driver.stage(volume.volume_id, token)
    target = driver.publish(volume.volume_id, "pod-container")

    podman("run", "--rm", "--volume", f"{target}:/output", IMAGE, "sh", "-c", "echo done > /output/log")

    driver.unpublish(volume.volume_id, "pod-container")
    run = volume.volume_context["run"]
    assert (reader.mount_point / run / "log").read_text() == "done\n"
    driver.unstage(volume.volume_id)


def test_container_of_another_user_writes_to_a_volume_of_its_group(
    driver: CsiDriverProcess, volume: str, podman: Podman
) -> None:
    """With a pod's fsGroup the kubelet gives the volume to the group, as here."""
    target = driver.publish(volume, "pod-group")
    output = ("--user", "1000:1000", "--volume", f"{target}:/output", IMAGE)
    refused = podman("run", "--rm", *output, "touch", "/output/before", check=False)
    assert "Permission denied" in refused.stderr

    os.chown(target, -1, 1000)
    target.chmod(0o2775)

    podman("run", "--rm", *output, "sh", "-c", "mkdir /output/folder && touch /output/folder/file")
    folder = target / "folder"
    assert (folder.stat().st_uid, folder.stat().st_gid) == (1000, 1000)
