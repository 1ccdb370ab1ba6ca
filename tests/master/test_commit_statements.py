"""What a batch of commits costs the database: the same statements, however many files it is of."""

from __future__ import annotations

from support.local_storage import LocalStorage, counted_queries


def statements_of_batch(storage: LocalStorage, *paths: bytes) -> int:
    with counted_queries() as queries:
        storage.commit_batch([(path, b"content of " + path) for path in paths])
    return len(queries)


def test_more_files_of_a_directory_are_no_more_statements(storage: LocalStorage) -> None:
    storage.commit_batch([(b"data/first", b"first")])
    few = statements_of_batch(storage, b"data/a0", b"data/a1")
    assert statements_of_batch(storage, *(b"data/b%d" % number for number in range(100))) == few


def test_more_files_of_the_run_itself_are_no_more_statements(storage: LocalStorage) -> None:
    few = statements_of_batch(storage, b"a0", b"a1")
    assert statements_of_batch(storage, *(b"b%d" % number for number in range(100))) == few


def test_files_that_are_there_are_no_more_statements_either(storage: LocalStorage) -> None:
    there = [b"data/%d" % number for number in range(100)]
    storage.commit_batch([(path, b"first") for path in there])
    few = statements_of_batch(storage, *there[:2])
    assert statements_of_batch(storage, *there[2:]) == few
