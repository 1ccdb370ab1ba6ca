from __future__ import annotations

from cloudai_fusefs.listing import Listing
from cloudai_fusefs.master_client import MasterClient
from cloudai_proto.storage.v1 import types_pb2 as types
from support.listings import edges_of
from support.storage_requests import (
    commit,
    commit_one,
    file_commit,
    list_pages,
    symlink_commit,
    tree_of,
)

# So many of these fill more than one page, which is cut at 4 MiB.
LONG_TARGET = b"t" * 4095
LINK_COUNT = 1200


async def fill_pages(client: MasterClient, run: types.Run) -> None:
    links = [symlink_commit(b"d%d/link%04d" % (i % 3, i), LONG_TARGET) for i in range(LINK_COUNT)]
    for start in range(0, LINK_COUNT, 400):
        response = await commit(client, run, *links[start : start + 400])
        assert not any(result.HasField("error") for result in response.results)


async def test_empty_run_lists_its_root_alone(client: MasterClient, run: types.Run) -> None:
    page = await client.list_tree(run.task_id)
    assert page.root.node_id == run.root_node_id
    assert (list(page.edges), page.next_page_token, page.sealed) == ([], "", False)


async def test_pages_together_are_the_whole_tree(client: MasterClient, run: types.Run) -> None:
    await fill_pages(client, run)
    pages = await list_pages(client, run)
    assert len(pages) > 1
    assert {page.revision for page in pages} == {pages[0].revision}
    edges = [edge for page in pages for edge in page.edges]
    assert len(edges) == len({(edge.parent_node_id, edge.name) for edge in edges}) == LINK_COUNT + 3
    assert len(await tree_of(client, run)) == LINK_COUNT + 4


async def test_last_page_tells_what_has_changed_since_the_first(client: MasterClient, run: types.Run) -> None:
    await fill_pages(client, run)
    first = await client.list_tree(run.task_id)
    assert first.next_page_token
    await commit_one(client, run, file_commit(b"new/file", b"x"))
    second = await client.list_tree(run.task_id, first.next_page_token)
    assert not second.next_page_token
    told = [change.edge_set.name for change in second.changes if change.HasField("edge_set")]
    assert told == [b"new", b"file"]
    assert second.revision == second.changes[-1].revision > first.revision


async def test_changes_of_more_than_one_page_are_paged(client: MasterClient, run: types.Run) -> None:
    await fill_pages(client, run)
    pages = [await client.list_tree(run.task_id)]
    for start in range(0, 1500, 500):
        await commit(
            client, run, *(file_commit(b"new%d" % number, b"") for number in range(start, start + 500))
        )
    while pages[-1].next_page_token:
        pages.append(await client.list_tree(run.task_id, pages[-1].next_page_token))

    changes = [change for page in pages for change in page.changes]
    revisions = [change.revision for change in changes]
    assert revisions == sorted(set(revisions))
    assert len(changes) >= 1500
    assert sum(bool(page.changes) for page in pages) > 1
    new = [edge for edge in edges_of(Listing(pages)) if edge.name.startswith(b"new")]
    assert len(new) == 1500
