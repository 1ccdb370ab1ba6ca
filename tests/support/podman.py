"""Real containers: a podman whose store, configuration and images are a test's own, and gone with it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.mount_process import COMMAND_SECONDS_MAX, wait_until
from support.orphans import reaping_orphans

IMAGE = "localhost/busybox:1"
USER_ID = 1000
"""Somebody in the image who is not root."""

_BUSYBOX = "/bin/busybox"
_PASSWD = f"root:x:0:0::/:/bin/sh\nuser-123:x:{USER_ID}:{USER_ID}::/:/bin/sh\n"
# runc, cgroupfs and no network: what works in a container and in a virtual machine without systemd as well. Locks in
# files: those in shared memory are one set for all stores of the machine.
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
netns = "none"
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{directory}/tmp"
[engine.volume_plugins]
cloudai = "{directory}/plugin.sock"
"""
_STORAGE_CONF = """\
[storage]
driver = "vfs"
graphroot = "{directory}/graph"
runroot = "{directory}/run"
"""


# Every tenth of a second a line, in a file that is opened anew for each; what cannot be written is tried again.
WRITER = """
number=1
while [ ! -e /output/stop ]; do
    echo $number >> /output/lines 2>/dev/null && number=$((number + 1))
    sleep 0.1
done
"""


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_more_lines(path: Path) -> None:
    """Returns when the WRITER has written on."""
    before = line_count(path)
    wait_until(lambda: line_count(path) >= before + 2, "further lines of the container")


class Podman:
    """`podman` with a store in a directory of its own. Containers and images are made in it alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        containers_conf, storage_conf = directory / "containers.conf", directory / "storage.conf"
        containers_conf.write_text(_CONTAINERS_CONF.format(directory=directory))
        storage_conf.write_text(_STORAGE_CONF.format(directory=directory))
        self.environment = {
            "CONTAINERS_CONF": str(containers_conf),
            "CONTAINERS_STORAGE_CONF": str(storage_conf),
        }
        """What makes any podman of a child process this one."""
        self.plugin_socket = directory / "plugin.sock"
        """Where it looks for volumes of the driver `cloudai`."""

    def __call__(
        self, *arguments: str | Path, check: bool = True, seconds_max: float = COMMAND_SECONDS_MAX
    ) -> subprocess.CompletedProcess[str]:
        """Runs `podman ARGUMENTS` to its end."""
        done = subprocess.run(
            ["podman", *arguments],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds_max,
            check=False,
        )
        assert not check or done.returncode == 0, f"podman {arguments}: {done.returncode}\n{done.stderr}"
        return done

    def import_image(self, name: str = IMAGE, *changes: str) -> None:
        """An image of busybox alone, with changes as of `podman import --change`."""
        archive = self._directory / "image.tar"
        _write_busybox(archive)
        options = [word for change in changes for word in ("--change", change)]
        self("import", "--quiet", *options, archive, name)
        archive.unlink()

    @contextmanager
    def start(self, *arguments: str | Path) -> Iterator[str]:
        """A container in the background, from `podman run`'s arguments; its name. Gone afterwards."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self("run", "--detach", "--name", name, *arguments)
        try:
            yield name
        finally:
            self("rm", "--force", "--time", "0", name)

    @contextmanager
    def serve_docker(self) -> Iterator[dict[str, str]]:
        """Answers docker's own program, which has no engine otherwise; what that needs in its environment."""
        socket_path = self._directory / "docker.sock"
        command = ["podman", "system", "service", "--time", "0", f"unix://{socket_path}"]
        with subprocess.Popen(
            command, env=os.environ | self.environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as service:
            try:
                wait_until(socket_path.exists, "podman's service")
                yield {"DOCKER_HOST": f"unix://{socket_path}", "CLOUDAI_CONTAINER_ENGINE": "docker"}
            finally:
                service.terminate()

    def containers(self) -> list[str]:
        """The names of all that are there, running or not."""
        return self("ps", "--all", "--format", "{{.Names}}").stdout.split()

    def remove_everything(self) -> None:
        self("rm", "--all", "--force", "--time", "0", check=False)


@contextmanager
def private_podman() -> Iterator[Podman]:
    """With its image; everything is gone afterwards. Not below pytest's folders: conmon's sockets have short names."""
    directory = Path(tempfile.mkdtemp(prefix="cloudai-podman-", dir="/tmp"))
    podman = Podman(directory)
    try:
        with reaping_orphans():
            podman.import_image()
            yield podman
    finally:
        podman.remove_everything()
        shutil.rmtree(directory, ignore_errors=True)


def _write_busybox(path: Path) -> None:
    applets = subprocess.run([_BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(path, "w") as archive:
        for folder in ("bin", "etc", "output", "tmp"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        archive.add(_BUSYBOX, "bin/busybox")
        for applet in applets:
            member = tarfile.TarInfo(f"bin/{applet}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            if applet != "busybox":
                archive.addfile(member)
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size, passwd.mode = len(_PASSWD), 0o644
        archive.addfile(passwd, io.BytesIO(_PASSWD.encode()))
