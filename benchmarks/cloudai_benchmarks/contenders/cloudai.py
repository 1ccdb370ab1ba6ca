"""This filesystem: a master on the loopback, fed through a mount, and mounts of it as users make them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.arrival import Arrival
from cloudai_benchmarks.contenders.contender import (
    FuseContender,
    Source,
    files_below,
)
from cloudai_benchmarks.contenders.mounts import ClientMount
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.errors import BenchmarkError, WorkFailed
from cloudai_benchmarks.processes import Server, family_of, has_process, run_command, wait_until
from cloudai_benchmarks.write_place import MasterPlace, WritePlace
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.mount_lookup import find_at, require_alive
from cloudai_fusefs.mount_control import MEMORY_BYTES_DEFAULT

USER: Final = "user-123"
TASK: Final = "benchmark"
READ_AHEAD_KIB_OF_USERS: Final = 128
"""What the kernel gives a mount that only root may raise."""
MAX_BACKGROUND_OF_USERS: Final = 12

_PROGRAMS: Final = Path(sys.executable).parent
_FEED_SECONDS_MAX: Final = 1800.0
_END_SECONDS_MAX: Final = 30.0


class CloudAIMaster:
    """A master that has the datasets, each in a run of its own. Several contenders may share it."""

    def __init__(self, directory: Path, source: Source, *, tls: bool = False) -> None:
        self.directory = directory
        self.address = ""
        self.certificate: Path | None = None
        self.token_file = directory / "token"
        self._source = source
        self._tls = tls
        self._server: Server | None = None
        self._runs: dict[str, Path] = {}
        self._chunk_files: dict[str, list[Path]] = {}
        directory.mkdir(parents=True)

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    def make_empty_one(self, directory: Path) -> CloudAIMaster:
        """Another of the same kind, not started."""
        return CloudAIMaster(directory, self._source, tls=self._tls)

    def start(self) -> None:
        """Started already: nothing happens."""
        if self._server is not None:
            return
        arguments = ["--insecure"]
        if self._tls:
            self.certificate, key = self._make_certificate()
            arguments = ["--tls-cert", str(self.certificate), "--tls-key", str(key)]
        self._server = Server(
            _PROGRAMS / "cloudai-master",
            "serve",
            *("--data-dir", self.data_dir),
            *("--listen", "127.0.0.1:0"),
            *arguments,
            log=self.directory / "master.log",
            environment={"PYTHONUNBUFFERED": "1"},
        )
        self._server.wait_ready(lambda: bool(self._find_address()))
        self.address = self._find_address()
        token = run_command(
            _PROGRAMS / "cloudai-master", "token", "create", "--data-dir", self.data_dir, "--user", USER
        )
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(token)

    def feed(self, datasets: Sequence[Dataset]) -> None:
        """Copies what is not here yet through a mount, and waits until it is durable."""
        missing = [dataset for dataset in datasets if dataset.name not in self._runs]
        if not missing:
            return
        mount = CloudAIMount(self.directory / "feeder", self)
        mount.mount()
        try:
            for dataset in missing:
                run = Path(USER, TASK, f"2026-01-01_00-00-{len(self._runs):02}")
                there = set(files_below(self.data_dir / "chunks"))
                (mount.mount_point / run).mkdir(parents=True)
                run_command(
                    *("cp", "-r", "-T", self._source.path_of(dataset), mount.mount_point / run),
                    seconds_max=_FEED_SECONDS_MAX,
                    on_timeout=mount.abort,
                )
                run_command(
                    _PROGRAMS / "cloudai", "wait", mount.mount_point / run, seconds_max=_FEED_SECONDS_MAX
                )
                self._runs[dataset.name] = run
                self._chunk_files[dataset.name] = sorted(set(files_below(self.data_dir / "chunks")) - there)
        finally:
            mount.unmount()
        shutil.rmtree(mount.client_dir)

    def run_of(self, dataset: Dataset) -> Path:
        """Relative to a mount point."""
        return self._runs[dataset.name]

    def served_files(self, dataset: Dataset) -> Iterable[Path]:
        """The dataset's chunks, and the database."""
        yield from self._chunk_files[dataset.name]
        yield from (path for path in self.data_dir.iterdir() if path.is_file())

    def pids(self) -> list[int]:
        return family_of(self._server.pid) if self._server else []

    def stop(self) -> None:
        """Stopped already: nothing happens."""
        fuse_mounts.unmount_below(self.directory)
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def _find_address(self) -> str:
        assert self._server is not None
        for line in self._server.log_text().splitlines():
            if line.startswith("listening on "):
                return line.removeprefix("listening on ").strip()
        return ""

    def _make_certificate(self) -> tuple[Path, Path]:
        certificate, key = self.directory / "certificate.pem", self.directory / "key.pem"
        run_command(
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
            *("-keyout", key, "-out", certificate),
        )
        return certificate, key


class CloudAIMount(ClientMount):
    """One `cloudai mount` with directories of its own."""

    further_options: tuple[str, ...] = ()

    def __init__(self, directory: Path, master: CloudAIMaster) -> None:
        super().__init__(directory)
        self._master = master
        self._pid = 0
        """Of the mount daemon that was started here; 0 while nothing is mounted."""

    def mount_command(self) -> list[str]:
        """Mounts with the caches and the state that are there."""
        master = self._master
        options = [
            f"token_file={master.token_file}",
            f"state_dir={self.client_dir}/state",
            f"cache_dir={self.client_dir}/cache",
            f"ca={master.certificate}" if master.certificate else "insecure",
            *self.further_options,
        ]
        places = [master.address, str(self.mount_point)]
        return [str(_PROGRAMS / "cloudai"), "mount", *places, "-o", ",".join(options)]

    def start_client(self) -> None:
        for name in ("state", "cache"):
            (self.client_dir / name).mkdir(mode=0o700, exist_ok=True)
        run_command(*self.mount_command())
        try:
            self._pid = require_alive(self.mount_point).process.pid
        except DaemonUnreachable as error:
            raise WorkFailed(str(error)) from error

    def sent_bytes(self) -> int:
        """File contents that went to the master, counted by the daemon since it began. Raises WorkFailed."""
        try:
            with ControlClient(require_alive(self.mount_point)) as client:
                return client.status().sent_bytes
        except (DaemonUnreachable, RemoteError) as error:
            raise WorkFailed(str(error)) from error

    def pids(self) -> list[int]:
        return family_of(*self._daemon_pids())

    def end_client(self) -> None:
        pids, self._pid = self._daemon_pids(), 0
        if fuse_mounts.is_mounted(self.mount_point):
            with suppress(BenchmarkError):
                run_command(_PROGRAMS / "cloudai", "umount", "--now", self.mount_point)
        fuse_mounts.unmount_below(self.mount_point)
        for pid in pids:
            wait_until(partial(_has_ended, pid), f"mount daemon {pid} ends", seconds_max=_END_SECONDS_MAX)

    def _daemon_pids(self) -> set[int]:
        """Of the one that was started here, and of one that a job has put in its place."""
        entry = find_at(self.mount_point)
        return {self._pid, entry.process.pid if entry else 0} - {0}


def _has_ended(pid: int) -> bool:
    return not has_process(pid)


class CloudAIMountAsUser(CloudAIMount):
    """Root mounts, and what only root may raise is put back: what a mount by somebody else gets."""

    def start_client(self) -> None:
        super().start_client()
        (mounted,) = fuse_mounts.mounts_below(self.mount_point)
        fuse_mounts.set_read_ahead(mounted, READ_AHEAD_KIB_OF_USERS)
        fuse_mounts.set_max_background(mounted, MAX_BACKGROUND_OF_USERS)


class CloudAIMountWithXattrs(CloudAIMount):
    """With extended attributes switched on, for which the kernel then asks."""

    further_options = ("xattr",)


class CloudAI(FuseContender):
    """This filesystem. What is written goes to a master of its own each time, which is thrown away afterwards: in one
    that lasted, the same bytes would be there already, and would not be sent."""

    def __init__(
        self,
        name: str,
        directory: Path,
        master: CloudAIMaster,
        mount_class: type[CloudAIMount] = CloudAIMount,
    ) -> None:
        """Mounted by whoever runs the benchmark, with all that the daemon may do on this machine."""
        super().__init__(name, directory)
        self.master = master
        self._mount_class = mount_class
        self._written_master: CloudAIMaster | None = None
        self._writers: Sequence[CloudAIMount] = ()
        self._runs: Sequence[Path] = ()

    def start(self, datasets: Sequence[Dataset]) -> None:
        self.master.start()
        self.master.feed(datasets)

    def stop_servers(self) -> None:
        self.discard_written()
        self.master.stop()

    def path_of(self, dataset: Dataset) -> Path:
        return self.mount_point / self.master.run_of(dataset)

    def served_files(self, dataset: Dataset) -> Iterable[Path]:
        return self.master.served_files(dataset)

    def server_pids(self) -> list[int]:
        masters = [self.master, *([self._written_master] if self._written_master else [])]
        return [pid for master in masters for pid in master.pids()]

    def memory_budget_bytes(self) -> int | None:
        """What the daemon is to keep of contents in memory at most."""
        return MEMORY_BYTES_DEFAULT

    def make_reading_mount(self, directory: Path) -> ClientMount:
        return self._mount_class(directory, self.master)

    def prepare_server(self, writer_count: int) -> None:
        self._written_master = self.master.make_empty_one(self.directory / "written-master")
        self._written_master.start()
        self._runs = [Path(USER, TASK, f"2026-01-02_00-00-{number:02}") for number in range(writer_count)]

    def make_writing_mount(self, directory: Path) -> CloudAIMount:
        assert self._written_master is not None
        return self._mount_class(directory, self._written_master)

    def make_place(self, writers: Sequence[ClientMount], followers: Sequence[ClientMount]) -> WritePlace:
        assert self._written_master is not None
        self._writers = [mount for mount in writers if isinstance(mount, CloudAIMount)]
        directories = []
        for mount, run in zip(self._writers, self._runs, strict=True):
            (mount.mount_point / run).mkdir(parents=True, exist_ok=True)
            directories.append(mount.mount_point / run)
        return WritePlace(
            directories=directories,
            arrivals=[
                Arrival.at_master(mount.mount_point, run)
                for mount, run in zip(self._writers, self._runs, strict=True)
            ],
            followed=followers[0].mount_point / self._runs[0] if followers else None,
            master=MasterPlace(
                address=self._written_master.address,
                token_file=str(self._written_master.token_file),
                certificate=str(self._written_master.certificate)
                if self._written_master.certificate
                else None,
                user=USER,
                pids=self._written_master.pids(),
            ),
            mount_command=self._writers[0].mount_command(),
        )

    @contextmanager
    def stored(self) -> Iterator[Sequence[Path]]:
        """On another mount, which knows nothing but what the master tells it."""
        reader = self.make_writing_mount(self.directory / "checking")
        try:
            reader.mount()
            yield [reader.mount_point / run for run in self._runs]
        finally:
            reader.drop_caches()

    def sent_bytes(self) -> int | None:
        """File contents, counted by the daemons."""
        return sum(mount.sent_bytes() for mount in self._writers)

    def discard_written(self) -> None:
        self._writers, self._runs = (), ()
        master, self._written_master = self._written_master, None
        if master is not None:
            master.stop()
            shutil.rmtree(master.directory)
