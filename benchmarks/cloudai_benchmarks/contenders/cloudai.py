"""This filesystem: a master on the loopback, fed through a mount, and mounts of it as users make them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.contenders.contender import FuseContender, Source, files_below
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.errors import BenchmarkError
from cloudai_benchmarks.processes import Server, family_of, has_process, run_command, wait_until
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


class CloudAIMount:
    """One `cloudai mount` with directories of its own."""

    def __init__(self, directory: Path, master: CloudAIMaster) -> None:
        self.mount_point = directory / "mnt"
        self.client_dir = directory / "client"
        self._master = master
        self.pid = 0
        """Of the mount daemon; 0 while nothing is mounted."""
        self.mount_point.mkdir(parents=True, exist_ok=True)

    def mount(self) -> None:
        master = self._master
        options = [
            f"token_file={master.token_file}",
            f"state_dir={self.client_dir}/state",
            f"cache_dir={self.client_dir}/cache",
            f"ca={master.certificate}" if master.certificate else "insecure",
        ]
        for name in ("state", "cache"):
            (self.client_dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        run_command(_PROGRAMS / "cloudai", "mount", master.address, self.mount_point, "-o", ",".join(options))
        self.pid = int(self.status()["pid"])

    def status(self) -> dict[str, Any]:
        (answer,) = json.loads(run_command(_PROGRAMS / "cloudai", "status", "--json", self.mount_point))
        return dict(answer)

    def unmount(self) -> None:
        """Nothing is mounted: nothing happens."""
        pid, self.pid = self.pid, 0
        if fuse_mounts.is_mounted(self.mount_point):
            with suppress(BenchmarkError):
                run_command(_PROGRAMS / "cloudai", "umount", "--now", self.mount_point)
        fuse_mounts.unmount_below(self.mount_point)
        if pid:
            wait_until(lambda: not has_process(pid), f"mount daemon {pid} ends", seconds_max=_END_SECONDS_MAX)

    def abort(self) -> None:
        fuse_mounts.abort(self.mount_point)


class CloudAI(FuseContender):
    """Mounted by whoever runs the benchmark, with all that the daemon may do on this machine."""

    def __init__(self, name: str, directory: Path, master: CloudAIMaster) -> None:
        super().__init__(name, directory)
        self.master = master
        self._mount = CloudAIMount(directory, master)

    def start(self, datasets: Sequence[Dataset]) -> None:
        self.master.start()
        self.master.feed(datasets)

    def start_client(self) -> None:
        self._mount.mount()

    def end_client(self) -> None:
        self._mount.unmount()

    def stop_servers(self) -> None:
        self.master.stop()

    def path_of(self, dataset: Dataset) -> Path:
        return self.mount_point / self.master.run_of(dataset)

    def served_files(self, dataset: Dataset) -> Iterable[Path]:
        return self.master.served_files(dataset)

    def client_pids(self) -> list[int]:
        return family_of(self._mount.pid) if self._mount.pid else []

    def server_pids(self) -> list[int]:
        return self.master.pids()

    def memory_budget_bytes(self) -> int | None:
        """What the daemon is to keep of contents in memory at most."""
        return MEMORY_BYTES_DEFAULT


class CloudAIAsUser(CloudAI):
    """Root mounts, and what only root may raise is put back: what a mount by somebody else gets."""

    def start_client(self) -> None:
        super().start_client()
        (mounted,) = fuse_mounts.mounts_below(self.mount_point)
        fuse_mounts.set_read_ahead(mounted, READ_AHEAD_KIB_OF_USERS)
        fuse_mounts.set_max_background(mounted, MAX_BACKGROUND_OF_USERS)
