"""The README's commands with a master that has a certificate, as they stand there: on a workstation, in Kubernetes."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from support.csi_client import CsiClient
from support.helped_machine import HelpedMachine
from support.mount_process import PROGRAM, WAIT_SECONDS_MAX, wait_until
from support.readme_blocks import read_blocks, run_block, say_on_this_machine

USER = "user-123"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Workplace:
    """Where the commands are typed: `ca.pem`, and `token` once the master runs. `source` is its address."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.source = f"localhost:{self.port}"
        self.data_dir = directory / "srv"
        self.token_file = directory / "token"
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
        certificate.private_key_pem.write_to_path(str(directory / "key.pem"))

    def options_in(self, state_dir: Path) -> str:
        """What a mount needs on this machine beside the README's options."""
        return f"ca={self.directory / 'ca.pem'},state_dir={state_dir},cache_dir={self.directory / 'cache'},timeo=20"


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path)
    words = {"/srv/cloudai": str(place.data_dir), "0.0.0.0:7443": f"127.0.0.1:{place.port}"}
    script = say_on_this_machine(read_blocks()["serve"], words)
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    with subprocess.Popen(
        ["bash", "-c", f"exec {script}"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as master:
        try:
            wait_until(lambda: answers(place.port), "the master")
            run_block("token", {"/srv/cloudai": str(place.data_dir)}, cwd=tmp_path)
            place.token_file.chmod(0o600)
            yield place
        finally:
            master.terminate()
            master.wait(WAIT_SECONDS_MAX)


@pytest.fixture
def machine(workplace: Workplace) -> Iterator[HelpedMachine]:
    with HelpedMachine(workplace.source, workplace.token_file.read_text()) as made:
        yield made


def test_mount_by_hand(workplace: Workplace, tmp_path: Path) -> None:
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    mount_words = f"token_file=token,{workplace.options_in(tmp_path / 'state')}"

    said = run_block(
        "mount",
        {
            "master.example:7443": workplace.source,
            "/mnt/cloudai": str(mount_point),
            "token_file=token,ca=ca.pem": f"{mount_words}\nls {mount_point}",
        },
        cwd=tmp_path,
    )

    assert said == f"{USER}\n"
    assert not os.path.ismount(mount_point)


def test_mount_like_any_other_filesystem(workplace: Workplace, machine: HelpedMachine) -> None:
    options = f"token_file={machine.token_file},{workplace.options_in(machine.directory / 'state')}"

    said = run_block(
        "mount-type",
        {
            "master.example:7443": workplace.source,
            "/mnt/cloudai": str(machine.mount_point),
            "token_file=/etc/cloudai/token,allow_other": f"{options},allow_other\nls {machine.mount_point}",
        },
        environment=machine.environment,
        before=machine.namespace.command(),
    )

    assert said == f"{USER}\n"
    assert machine.find_mounted("TARGET") == []


def test_line_of_fstab(workplace: Workplace, machine: HelpedMachine) -> None:
    options = f"token_file={machine.token_file},{workplace.options_in(machine.directory / 'state')}"
    words = {
        "master.example:7443": workplace.source,
        "/mnt/cloudai": str(machine.mount_point),
        "token_file=/etc/cloudai/token": options,
    }
    fstab = machine.write_fstab(say_on_this_machine(read_blocks()["fstab"], words).strip())

    done = machine.run("mount", "--all", "--fstab", fstab)

    assert (done.returncode, done.stderr) == (0, "")
    assert machine.find_mounted("SOURCE", "FSTYPE") == [workplace.source, "fuse.cloudai"]
    assert machine.run("ls", machine.mount_point).stdout == f"{USER}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="the driver mounts as root")
def test_driver_of_the_readme_serves_volumes_over_tls(workplace: Workplace, tmp_path: Path) -> None:
    token = workplace.token_file.read_text().strip()
    with tempfile.TemporaryDirectory(prefix="csi-") as socket_dir:
        socket_path = Path(socket_dir) / "csi.sock"
        words = {
            "/csi/csi.sock": str(socket_path),
            "master.example:7443": workplace.source,
            "ca=ca.pem": f"ca=ca.pem,timeo=20,cache_dir={tmp_path / 'cache'} --state {tmp_path / 'csi'}",
        }
        script = say_on_this_machine(read_blocks()["csi-driver"], words)
        with subprocess.Popen(
            ["bash", "-c", f"exec {PROGRAM.parent}/{script}"], cwd=tmp_path, stderr=subprocess.DEVNULL
        ) as process:
            client = CsiClient(socket_path, tmp_path / "kubelet")
            try:
                client.connect()
                volume = client.create("pvc-1", token)
                client.stage(volume.volume_id, token, context=volume.volume_context)
                (client.publish(volume.volume_id, "pod") / "model").write_bytes(b"weights")
                client.unpublish(volume.volume_id, "pod")
                client.unstage(volume.volume_id)
            finally:
                client.clear()
                process.terminate()
                assert process.wait(WAIT_SECONDS_MAX) == 0
