"""Prometheus metrics of a real mount, on a socket and on the loopback."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.mount_process import RUN, MakeMount, MountProcess, wait_until
from support.tools import run_tool

MOUNT_FAILED = 32
CONTENT = b"x" * 100_000
OWN_CONTENT = b"y" * 100_000


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def scrape(connection: http.client.HTTPConnection) -> dict[str, float]:
    """Each sample's name and the values of its labels, in the order of their names, joined by spaces, to its value."""
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert (response.status, response.getheader("Connection")) == (200, "close")
    families = text_string_to_metric_families(response.read().decode())
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def metrics_socket(tmp_path: Path) -> Path:
    return tmp_path / "metrics.sock"


@pytest.fixture
def mount(make_mount: MakeMount, metrics_socket: Path) -> MountProcess:
    return make_mount("measured", options=f"insecure,timeo=20,metrics={metrics_socket}")


def test_reads_and_writes_show_in_the_metrics(
    mount: MountProcess, make_mount: MakeMount, metrics_socket: Path
) -> None:
    other = make_mount("other")
    (other.make_run(RUN) / "file").write_bytes(CONTENT)
    other.wait_durable()
    assert metrics_socket.stat().st_mode & 0o777 == 0o600

    task = mount.mount_point / "user-123" / "training"
    wait_until((task / RUN / "file").exists, "the file")
    assert (task / RUN / "file").read_bytes() == CONTENT
    with pytest.raises(OSError):
        (task / "no-time").mkdir()
    (task / RUN / "own").write_bytes(OWN_CONTENT)
    mount.wait_durable()

    found: dict[str, float] = {}

    def has_all() -> bool:
        # A page may be a second old.
        found.update(scrape(UnixConnection(metrics_socket)))
        return found["cloudai_mount_sent_bytes_total"] >= len(OWN_CONTENT)

    wait_until(has_all, "the upload among the metrics")
    assert found["cloudai_mount_read_bytes_total master"] == len(CONTENT)
    assert found["cloudai_mount_connected"] == 1
    assert found["cloudai_mount_pending_files"] == 0
    assert found["cloudai_mount_requests_total read"] >= 1
    assert found["cloudai_mount_requests_total write"] >= 1
    assert found["cloudai_mount_request_failures_total EINVAL mkdir"] == 1
    assert found["cloudai_mount_memory_limit_bytes"] == mount.status()["counters"]["memory_bytes_max"]
    assert found["process_open_fds"] > 0


def test_socket_goes_with_the_mount_and_a_stale_one_is_replaced(
    mount: MountProcess, metrics_socket: Path
) -> None:
    mount.kill()
    assert metrics_socket.exists()
    mount.start()
    assert scrape(UnixConnection(metrics_socket))["cloudai_mount_connected"] == 1
    mount.umount()
    assert not metrics_socket.exists()


def test_metrics_on_the_loopback(make_mount: MakeMount) -> None:
    port = free_port()
    make_mount("on-a-port", options=f"insecure,timeo=20,metrics=localhost:{port}")
    assert scrape(http.client.HTTPConnection("127.0.0.1", port, timeout=5))["cloudai_mount_connected"] == 1


def test_mount_whose_metrics_cannot_be_served_is_refused(
    make_mount: MakeMount, mount: MountProcess, metrics_socket: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", str(metrics_socket)):
            other = MountProcess(
                metrics_socket.parent / "refused",
                mount.source,
                mount.token_file.read_text(),
                options=f"insecure,metrics={address}",
            )
            done = other.mount_command()
            assert done.returncode == MOUNT_FAILED
            assert done.stderr == f"cloudai: metrics={address}: Address already in use\n"
            assert not os.path.ismount(other.mount_point)
    assert scrape(UnixConnection(metrics_socket))["cloudai_mount_connected"] == 1


def test_scrapers_that_hang_keep_nobody_waiting(mount: MountProcess, metrics_socket: Path) -> None:
    hanging = []
    for _ in range(20):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(metrics_socket))
        hanging.append(client)
    run = mount.make_run(RUN)
    (run / "file").write_bytes(CONTENT)
    assert (run / "file").read_bytes() == CONTENT
    assert mount.status()["connected"]
    for client in hanging:
        client.close()
    wait_until(lambda: bool(_scrape_if_there(metrics_socket)), "an answer to a scraper that asks")


def _scrape_if_there(path: Path) -> dict[str, float]:
    try:
        return scrape(UnixConnection(path))
    except (OSError, http.client.HTTPException):
        return {}


@pytest.mark.parametrize("option", ["", ",xattr"])
def test_listing_with_attributes_asks_for_no_extended_ones_of_each_file(
    make_mount: MakeMount, metrics_socket: Path, option: str
) -> None:
    mount = make_mount("measured", options=f"insecure,timeo=20,metrics={metrics_socket}{option}")
    run = mount.make_run(RUN)
    for number in range(50):
        (run / f"{number}").touch()

    run_tool("ls", "-l", run)

    # It goes on to ask where it is told that there are none of a file, and not where there can be none.
    asked = "cloudai_mount_requests_total getxattr"
    wait_until(lambda: asked in scrape(UnixConnection(metrics_socket)), "the count")
    assert scrape(UnixConnection(metrics_socket))[asked] <= 3


def test_name_that_a_sealed_run_lacks_is_not_looked_up_for_each_stat(mount: MountProcess) -> None:
    """A search along a list of directories asks most of them in vain, again and again."""
    run = mount.make_run(RUN)
    mount.seal(run)
    # By a descriptor: the names above the run, which the kernel looks up every second, are not in the count.
    directory = os.open(run, os.O_RDONLY)
    try:
        before = lookup_count(mount)
        for _ in range(50):
            with pytest.raises(FileNotFoundError):
                os.stat("absent", dir_fd=directory)
        # One in the usual case; the kernel may let go of what it remembers.
        assert 1 <= lookup_count(mount) - before < 50
    finally:
        os.close(directory)


def test_file_that_is_opened_again_is_read_from_the_kernels_pages(
    mount: MountProcess, make_mount: MakeMount
) -> None:
    writer = make_mount("writer")
    (writer.make_run(RUN) / "file").write_bytes(CONTENT)
    writer.wait_durable()
    path = mount.mount_point / "user-123" / "training" / RUN / "file"
    wait_until(path.exists, "the file")
    assert path.read_bytes() == CONTENT
    before = request_count(mount, "read")

    for _ in range(20):
        assert path.read_bytes() == CONTENT

    # None in the usual case; the kernel may let go of what it remembers.
    assert request_count(mount, "read") - before < 10


def test_attributes_that_were_listed_are_not_asked_for_again(mount: MountProcess) -> None:
    run = mount.make_run(RUN)
    for number in range(100):
        (run / f"{number}").touch()
    mount.wait_durable()
    run_tool("ls", "-l", run)
    names = ("lookup", "getattr")
    before = sum(request_count(mount, name) for name in names)

    run_tool("ls", "-l", run)

    assert sum(request_count(mount, name) for name in names) - before < 50


def lookup_count(mount: MountProcess) -> int:
    return request_count(mount, "lookup")


def request_count(mount: MountProcess, name: str) -> int:
    return int(mount.status()["counters"]["request_counts"].get(name, 0))
