"""What a scraper gets of a mount, and what it cannot do to one."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock, wait_all_tasks_blocked

from cloudai_daemon.metrics import CONTENT_TYPE, MountMetrics
from cloudai_daemon.metrics_server import CONNECTION_SECONDS_MAX, CONNECTIONS_MAX, serve_metrics
from cloudai_fusefs.mount_control import MountCounters

COUNTERS = MountCounters(
    connected=True,
    watch_count=3,
    memory_hits=10,
    memory_misses=4,
    disk_hits=2,
    disk_misses=1,
    memory_read_bytes=1000,
    disk_read_bytes=200,
    fetched_bytes=30,
    fetched_ranges=5,
    cache_bytes=7,
    cache_bytes_max=70,
    pending_count=2,
    staged_bytes=99,
    request_counts={"read": 12, "lookup": 3},
    failure_counts={"lookup ENOENT": 1},
    open_directory_count=6,
    referenced_inode_count=17,
    known_inode_count=1700,
    let_go_count=4,
    unexpected_counts={"rename": 8},
)


class Pages:
    """Numbered pages, each made once the gate is open."""

    def __init__(self) -> None:
        self.made_count = 0
        self.gate = trio.Event()
        self.gate.set()

    async def render(self) -> bytes:
        self.made_count += 1
        await self.gate.wait()
        return b"page %d" % self.made_count


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
async def address(pages: Pages, nursery: trio.Nursery) -> str:
    address = await nursery.start(serve_metrics, "127.0.0.1:0", pages.render, "text/plain; version=0.0.4")
    return str(address)


async def connect(address: str) -> trio.SocketStream:
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def exchange(stream: trio.SocketStream, request: bytes) -> bytes:
    """All that comes until the other end closes."""
    received = b""
    with trio.fail_after(5), suppress(trio.BrokenResourceError):
        async with stream:
            await stream.send_all(request)
            async for part in stream:
                received += part
    return received


async def scrape(address: str) -> bytes:
    return await exchange(await connect(address), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")


def samples(page: bytes) -> dict[str, float]:
    """`name{label="value"}` to value."""
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_page_has_the_counters_by_their_conventional_names() -> None:
    page = MountMetrics(version="1.2.3", source="master.example:7443", mount_point="/mnt").render(COUNTERS)

    found = samples(page)

    assert found['cloudai_mount_read_bytes_total{source="memory"}'] == 1000
    assert found['cloudai_mount_read_bytes_total{source="disk"}'] == 200
    assert found['cloudai_mount_read_bytes_total{source="master"}'] == 30
    assert found["cloudai_mount_open_directories"] == 6
    assert found["cloudai_mount_referenced_inodes"] == 17
    assert found["cloudai_mount_known_inodes"] == 1700
    assert found["cloudai_mount_runs_let_go_total"] == 4
    assert found['cloudai_mount_unexpected_errors_total{handler="rename"}'] == 8
    assert found['cloudai_mount_cache_lookups_total{cache="memory",result="hit"}'] == 10
    assert found['cloudai_mount_cache_lookups_total{cache="disk",result="miss"}'] == 1
    assert found['cloudai_mount_fetches_total{kind="range"}'] == 5
    assert found["cloudai_mount_cache_bytes"] == 7
    assert found["cloudai_mount_cache_limit_bytes"] == 70
    assert found["cloudai_mount_pending_files"] == 2
    assert found["cloudai_mount_staged_bytes"] == 99
    assert found["cloudai_mount_connected"] == 1
    assert found["cloudai_mount_watches"] == 3
    assert found['cloudai_mount_requests_total{handler="read"}'] == 12
    assert found['cloudai_mount_request_failures_total{errno="ENOENT",handler="lookup"}'] == 1
    about = 'cloudai_mount_info{mount_point="/mnt",source="master.example:7443",version="1.2.3"}'
    assert found[about] == 1
    assert found["process_resident_memory_bytes"] > 0


def test_path_that_is_no_text_is_a_label_all_the_same() -> None:
    page = MountMetrics(version="1", source="s:1", mount_point="/mnt/caf\udce9\n").render(COUNTERS)

    assert 'mount_point="/mnt/caf\ufffd\\n"' in page.decode()


async def test_scrape_is_answered_with_type_and_length(address: str) -> None:
    assert await scrape(address) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n"
        b"Content-Length: 6\r\nConnection: close\r\n\r\npage 1"
    )


async def test_head_has_no_body(address: str) -> None:
    answer = await exchange(await connect(address), b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"nonsense", b"405"),
        (b"GET", b"404"),
    ],
)
async def test_other_requests_are_refused(address: str, request_line: bytes, status: bytes) -> None:
    answer = await exchange(await connect(address), request_line + b"\r\n\r\n")
    assert answer.split(b" ")[1] == status


async def test_request_without_end_is_closed(address: str) -> None:
    assert await exchange(await connect(address), b"GET /metrics HTTP/1.1\r\n" + b"x" * 100_000) == b""


async def test_page_is_made_once_however_many_ask(address: str, pages: Pages) -> None:
    pages.gate = trio.Event()
    answers: list[bytes] = []
    async with trio.open_nursery() as scrapers:

        async def scrape_once() -> None:
            answers.append(await scrape(address))

        for _ in range(3):
            scrapers.start_soon(scrape_once)
        await wait_all_tasks_blocked()
        pages.gate.set()
    assert [answer[-6:] for answer in answers] == [b"page 1"] * 3
    assert pages.made_count == 1


async def test_scrapers_that_hang_hold_places_and_not_the_server(address: str) -> None:
    hanging = [await connect(address) for _ in range(CONNECTIONS_MAX)]
    for stream in hanging:
        await stream.send_all(b"GET /met")
    await wait_all_tasks_blocked()
    assert await scrape(address) == b""  # closed at once, not left waiting
    for stream in hanging:
        await stream.aclose()
    with trio.fail_after(5):
        while not (await scrape(address)).endswith(b"page 1"):
            await trio.sleep(0.01)


async def test_scraper_that_says_nothing_is_given_up(
    autojump_clock: MockClock, pages: Pages, nursery: trio.Nursery
) -> None:
    address = await nursery.start(serve_metrics, "127.0.0.1:0", pages.render, "text/plain")
    async with await connect(address) as stream:
        began_seconds = trio.current_time()
        assert await stream.receive_some() == b""
    assert trio.current_time() - began_seconds == pytest.approx(CONNECTION_SECONDS_MAX)


async def test_fault_in_a_page_does_not_end_the_server(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> bytes:
        raise ZeroDivisionError

    address = await nursery.start(serve_metrics, "127.0.0.1:0", fail, "text/plain")
    assert await scrape(address) == b""
    assert await scrape(address) == b""
    assert "metrics could not be answered" in caplog.text


async def test_socket_is_for_its_owner_and_goes_with_the_server(pages: Pages, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    async with trio.open_nursery() as serving:
        assert await serving.start(serve_metrics, str(path), pages.render, "text/plain") == str(path)
        assert path.stat().st_mode & 0o777 == 0o600
        answer = await exchange(await trio.open_unix_socket(path), b"GET /metrics HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"page 1")
        serving.cancel_scope.cancel()
    assert not path.exists()


async def test_stale_socket_is_replaced(pages: Pages, tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    await nursery.start(serve_metrics, str(path), pages.render, "text/plain")
    assert (await exchange(await trio.open_unix_socket(path), b"GET /metrics HTTP/1.0\r\n\r\n")).endswith(
        b"1"
    )


async def test_address_in_use_is_named(pages: Pages, address: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Address already in use") as caught:
        await serve_metrics(address, pages.render, "text/plain")
    assert caught.value.filename == f"metrics={address}"


async def test_socket_of_another_and_file_are_left_alone(
    pages: Pages, tmp_path: Path, nursery: trio.Nursery
) -> None:
    path, file = tmp_path / "metrics.sock", tmp_path / "precious"
    await nursery.start(serve_metrics, str(path), pages.render, "text/plain")
    file.write_text("kept")
    for taken in (path, file):
        with pytest.raises(OSError):
            await serve_metrics(str(taken), pages.render, "text/plain")
    assert file.read_text() == "kept"
    assert (await exchange(await trio.open_unix_socket(path), b"GET /metrics HTTP/1.0\r\n\r\n")).endswith(
        b"1"
    )


def test_content_type_is_the_one_that_every_prometheus_takes() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
