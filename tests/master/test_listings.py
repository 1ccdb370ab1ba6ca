"""A run's tree in pages, at the service, with pages so short that they end anywhere."""

from __future__ import annotations

import random

import pytest

from cloudai_master import changes, listings
from cloudai_model.errors import GenerationChanged, NotSupported
from cloudai_model.limits import COMMIT_NODES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from support.local_storage import CALLER, LocalStorage
from support.storage_requests import directory_commit, file_commit


def make_tree(storage: LocalStorage, lot: random.Random) -> set[tuple[int, bytes]]:
    """Some directories, some in others, and many more files; returns each name with its directory."""
    paths = [b""]
    parent_ids = {b"": storage.run.root_node_id}
    found: set[tuple[int, bytes]] = set()
    for number in range(70):
        parent = lot.choice(paths)
        name = b"%d" % number
        path = parent + b"/" + name if parent else name
        if lot.random() < 0.2:
            parent_ids[path] = storage.commit(directory_commit(path)).node_id
            paths.append(path)
        else:
            storage.commit(file_commit(path, b"x"))
        found.add((parent_ids[parent], name))
    return found


def list_pages(storage: LocalStorage) -> list[names.ListTreeResponse]:
    request = names.ListTreeRequest(task_id=storage.run.task_id, takes_changes=True)
    pages = [storage.service.list_tree(CALLER, request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(storage.service.list_tree(CALLER, request))
    return pages


@pytest.mark.parametrize("page_edges", [1, 2, 7, 20, 69, 70, 71])
@pytest.mark.parametrize("seed", range(3))
def test_no_name_is_left_out_wherever_pages_end(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, seed: int, page_edges: int
) -> None:
    expected = make_tree(storage, random.Random(seed))
    monkeypatch.setattr(listings, "TREE_PAGE_EDGES_MAX", page_edges)
    pages = list_pages(storage)
    assert all(len(page.edges) <= page_edges for page in pages)
    listed = [edge for page in pages for edge in page.edges]
    assert sorted((edge.parent_node_id, edge.name) for edge in listed) == sorted(expected)


def test_run_of_ten_thousand_names_is_one_page(storage: LocalStorage) -> None:
    """A mount that looks into it waits for one answer."""
    name_count = 10_000
    for first in range(0, name_count, COMMIT_NODES_MAX):
        storage.commit_batch([(b"%d" % number, b"") for number in range(first, first + COMMIT_NODES_MAX)])

    (page,) = list_pages(storage)

    assert len(page.edges) == name_count


def test_pages_cut_by_their_bytes_leave_no_name_out(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_tree(storage, random.Random(5))
    monkeypatch.setattr(listings, "TREE_PAGE_BYTES_MAX", 4 * listings.EDGE_BYTES)
    pages = list_pages(storage)
    assert max(len(page.edges) for page in pages) <= 4
    listed = [edge for page in pages for edge in page.edges]
    assert sorted((edge.parent_node_id, edge.name) for edge in listed) == sorted(expected)


def test_listing_whose_changes_are_forgotten_begins_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(storage, random.Random(6))
    monkeypatch.setattr(listings, "TREE_PAGE_EDGES_MAX", 69)
    request = names.ListTreeRequest(task_id=storage.run.task_id, takes_changes=True)
    request.page_token = storage.service.list_tree(CALLER, request).next_page_token
    storage.commit(file_commit(b"new", b"x"))
    monkeypatch.setattr(changes, "KEPT_SECONDS", -1)
    with storage.database.write() as transaction:
        changes.forget_old_changes(transaction)

    with pytest.raises(GenerationChanged):
        storage.service.list_tree(CALLER, request)


def test_client_that_takes_no_changes_is_refused_and_shows_no_part_for_the_whole(
    storage: LocalStorage,
) -> None:
    with pytest.raises(NotSupported):
        storage.service.list_tree(CALLER, names.ListTreeRequest(task_id=storage.run.task_id))
