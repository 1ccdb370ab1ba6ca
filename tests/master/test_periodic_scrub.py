from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select, update

from cloudai_master.cli import serve
from cloudai_master.periodic_scrub import NS_PER_SECOND, PeriodicScrub
from cloudai_master.schema import scrub as scrub_rows
from cloudai_model.chunks import digest_of
from cloudai_model.errors import InternalError
from support.local_storage import LocalStorage
from support.master_process import MasterProcess
from support.storage_requests import USER, commit_one, file_commit, make_run

WEEK_SECONDS = 7 * 86_400.0
SECONDS_MAX = 20


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * NS_PER_SECOND

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * NS_PER_SECOND)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class SeenStore:
    """A store that notes which chunks are looked at, and can be asked to do something before the n-th."""

    def __init__(self, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[bytes] = []
        self.before: dict[int, Callable[[], None]] = {}
        real = storage.store.read_past_cache

        def noted(owner: str, digest: bytes) -> object:
            self.before.pop(len(self.seen), lambda: None)()
            self.seen.append(digest)
            return real(owner, digest)

        monkeypatch.setattr(storage.store, "read_past_cache", noted)


@pytest.fixture
def seen(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> SeenStore:
    return SeenStore(storage, monkeypatch)


def scrub_of(storage: LocalStorage, clock: Clock) -> PeriodicScrub:
    """As a master that starts has it."""
    return PeriodicScrub(storage.database, storage.store, WEEK_SECONDS, bytes_per_second=0, clock_ns=clock)


def digests(*data: bytes) -> list[bytes]:
    """In the order of a pass."""
    return sorted(map(digest_of, data))


def test_first_pass_is_due_an_interval_after_the_first_start(storage: LocalStorage, clock: Clock) -> None:
    assert scrub_of(storage, clock).seconds_until_due() == WEEK_SECONDS
    clock.advance(WEEK_SECONDS - 1)
    assert scrub_of(storage, clock).seconds_until_due() == 1
    clock.advance(1)
    assert scrub_of(storage, clock).seconds_until_due() == 0


def test_next_pass_is_due_an_interval_after_the_last_one_began(
    storage: LocalStorage, clock: Clock, seen: SeenStore, caplog: pytest.LogCaptureFixture
) -> None:
    storage.commit_file(b"f", b"data")
    scrub = scrub_of(storage, clock)
    clock.advance(WEEK_SECONDS + 100)
    seen.before[0] = lambda: clock.advance(500)
    scrub.do_pass()
    assert seen.seen == digests(b"data")
    assert scrub.seconds_until_due() == WEEK_SECONDS - 500
    assert [record.message for record in caplog.records if record.name.endswith("periodic_scrub")] == [
        "scrub: looked at 1 chunks, 0 MiB: 0 damaged now, 0 that files need are missing"
    ]


def test_stopped_pass_goes_on_after_a_restart_where_it_stood(
    storage: LocalStorage, clock: Clock, seen: SeenStore
) -> None:
    data = [b"%d" % index for index in range(5)]
    for chunk in data:
        storage.commit_file(b"f" + chunk, chunk)
    scrub = scrub_of(storage, clock)
    seen.before[2] = scrub.stop
    scrub.do_pass()
    assert seen.seen == digests(*data)[:3]
    again = scrub_of(storage, clock)
    assert again.seconds_until_due() == 0
    seen.seen.clear()
    again.do_pass()
    assert seen.seen == digests(*data)[3:]
    assert again.seconds_until_due() == WEEK_SECONDS
    seen.seen.clear()
    again.do_pass()
    assert seen.seen == digests(*data)


def test_pass_is_stopped_in_the_middle_of_a_chunk_and_begins_it_again(
    storage: LocalStorage, clock: Clock, seen: SeenStore
) -> None:
    storage.commit_file(b"f", b"data")
    # Of four seconds for each chunk, none is waited for.
    slow = PeriodicScrub(storage.database, storage.store, WEEK_SECONDS, bytes_per_second=1, clock_ns=clock)
    seen.before[0] = slow.stop
    slow.do_pass()
    scrub_of(storage, clock).do_pass()
    assert seen.seen == digests(b"data", b"data")


def test_killed_pass_goes_on_where_it_stood_half_a_minute_before(
    storage: LocalStorage, clock: Clock, seen: SeenStore
) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    data = [b"%d" % index for index in range(5)]
    for chunk in data:
        storage.commit_file(b"f" + chunk, chunk)
    seen.before = {1: lambda: clock.advance(31), 3: kill}
    with pytest.raises(Killed):
        scrub_of(storage, clock).do_pass()
    seen.seen.clear()
    scrub_of(storage, clock).do_pass()
    assert seen.seen == digests(*data)[2:]


def test_damage_is_set_aside_and_missed_until_it_is_healed(
    storage: LocalStorage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    storage.commit_file(b"f", b"data")
    storage.damage(b"data")
    scrub = scrub_of(storage, clock)
    scrub.do_pass()
    scrub.do_pass()
    storage.put(b"data")
    storage.chunk_path(b"data").write_bytes(b"data")
    scrub.do_pass()
    summaries = [record for record in caplog.records if record.message.startswith("scrub: ")]
    assert [(record.levelname, record.message.partition("MiB: ")[2]) for record in summaries] == [
        ("WARNING", "1 damaged now, 1 that files need are missing"),
        ("WARNING", "0 damaged now, 1 that files need are missing"),
        ("INFO", "0 damaged now, 0 that files need are missing"),
    ]


def test_run_waits_until_it_is_due_and_ends_when_it_is_stopped(storage: LocalStorage, clock: Clock) -> None:
    scrub = scrub_of(storage, clock)
    thread = threading.Thread(target=scrub.run)
    thread.start()
    scrub.stop()
    thread.join(SECONDS_MAX)
    assert not thread.is_alive()
    assert scrub.wait(0)


def test_run_does_a_pass_that_is_due(storage: LocalStorage, clock: Clock, seen: SeenStore) -> None:
    storage.commit_file(b"f", b"data")
    scrub = scrub_of(storage, clock)
    scrub.seconds_until_due()
    clock.advance(WEEK_SECONDS)
    seen.before[0] = scrub.stop
    scrub.run()
    assert seen.seen == digests(b"data")


def test_error_of_the_store_leaves_the_position(storage: LocalStorage, clock: Clock, seen: SeenStore) -> None:
    def fail() -> None:
        raise InternalError

    storage.commit_file(b"f", b"data")
    seen.before[0] = fail
    with pytest.raises(InternalError):
        scrub_of(storage, clock).do_pass()
    assert scrub_of(storage, clock).seconds_until_due() == 0


async def test_master_scrubs_in_the_background_while_it_serves(tmp_path: Path) -> None:
    master = MasterProcess(tmp_path / "master", "--scrub-interval-hours", "24")
    master.start()
    try:
        async with master.connect(master.make_token(USER)) as client:
            run = await make_run(client, USER)
            node = await commit_one(client, run, file_commit(b"f", b"data"))
        master.kill()
        # A day passes.
        storage = LocalStorage(tmp_path / "master")
        storage.damage(b"data")
        with storage.database.write() as transaction:
            earlier = {
                "started_at_ns": scrub_rows.c.started_at_ns - 25 * 3600 * NS_PER_SECOND,
            }
            assert transaction.connection.execute(update(scrub_rows).values(earlier)).rowcount == 1
        storage.close()
        master.start()
        master.wait_for_log("scrub: looked at 1 chunks, 0 MiB: 1 damaged now, 1 that files need are missing")
        assert f"/f, node {node.node_id}, chunk 0" in master.log_text()
    finally:
        assert master.terminate() == 0


def test_master_scrubs_each_week_where_nobody_says_how_often() -> None:
    (hours,) = [option.default for option in serve.params if option.name == "scrub_interval_hours"]

    assert hours == WEEK_SECONDS / 3600


async def test_master_that_is_told_so_never_scrubs(tmp_path: Path) -> None:
    master = MasterProcess(tmp_path / "master", "--scrub-interval-hours", "0")
    master.start()
    assert master.terminate() == 0
    storage = LocalStorage(tmp_path / "master")
    with storage.database.read() as connection:
        assert connection.execute(select(scrub_rows)).first() is None
    storage.close()
