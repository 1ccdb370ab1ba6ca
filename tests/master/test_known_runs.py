from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudai_master.authorization import Caller, find_run
from cloudai_master.known_runs import KnownRuns
from cloudai_master.tokens import CHECKED_SECONDS
from cloudai_model.errors import NotFound
from support.local_storage import CALLER, OTHER_CALLER, LocalStorage, counted_queries


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_seconds = 100.0

    def __call__(self) -> float:
        return self.now_seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(storage: LocalStorage, clock: Clock) -> KnownRuns:
    return KnownRuns(storage.database, clock)


def text_of(refused: Callable[[], object]) -> str:
    with pytest.raises(NotFound) as caught:
        refused()
    return str(caught.value)


def test_run_found_lately_is_found_without_the_database(storage: LocalStorage, known: KnownRuns) -> None:
    task_id = storage.run.task_id
    assert known.found_lately(CALLER, task_id) is None
    first = known.find(CALLER, task_id)
    with counted_queries() as queries:
        assert known.find(CALLER, task_id) == known.found_lately(CALLER, task_id) == first
    assert (first.user, first.task, queries) == ("user-123", "task", [])


def test_what_another_process_removed_is_gone_a_second_later(
    storage: LocalStorage, known: KnownRuns, clock: Clock
) -> None:
    task_id = storage.run.task_id
    known.find(CALLER, task_id)
    storage.remove_run()
    clock.now_seconds += CHECKED_SECONDS / 2
    known.find(CALLER, task_id)
    clock.now_seconds += CHECKED_SECONDS / 2
    assert known.found_lately(CALLER, task_id) is None
    with pytest.raises(NotFound):
        known.find(CALLER, task_id)


def test_forgotten_run_is_looked_up_again(storage: LocalStorage, known: KnownRuns) -> None:
    known.find(CALLER, storage.run.task_id)
    known.forget(storage.run.task_id)
    known.forget("never known")
    assert known.found_lately(CALLER, storage.run.task_id) is None


@pytest.mark.parametrize(
    "stranger", [OTHER_CALLER, Caller(user="user-123", task_id="another-run")], ids=["user", "run token"]
)
def test_run_of_somebody_else_is_not_found_word_for_word(
    storage: LocalStorage, known: KnownRuns, stranger: Caller
) -> None:
    task_id = storage.run.task_id
    with storage.database.read() as connection:
        expected = text_of(lambda: find_run(connection, stranger, "no-such-run"))
    expected = expected.replace("no-such-run", task_id)
    assert text_of(lambda: known.find(stranger, task_id)) == expected
    known.find(CALLER, task_id)
    assert text_of(lambda: known.find(stranger, task_id)) == expected
    assert text_of(lambda: known.found_lately(stranger, task_id)) == expected


def test_threads_find_and_forget_at_the_same_time(storage: LocalStorage, known: KnownRuns) -> None:
    runs = [storage.make_run(f"task-{index}") for index in range(4)]

    def look(number: int) -> list[bool]:
        found = []
        for step in range(50):
            task_id = runs[(number + step) % 4].task_id
            found.append(known.find(CALLER, task_id).task_id == task_id)
            known.forget(task_id)
        return found

    with ThreadPoolExecutor(8) as threads:
        assert all(all(found) for found in threads.map(look, range(8)))
