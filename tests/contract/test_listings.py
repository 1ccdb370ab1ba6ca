from __future__ import annotations

import pytest

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_proto.storage.v1 import types_pb2 as types
from support.storage_requests import (
    commit,
    commit_one,
    directory_commit,
    file_commit,
    list_edges,
    rename,
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


async def test_parents_come_before_children(client: MasterClient, run: types.Run) -> None:
    for path in (b"z/y/x/w", b"a/b/c", b"top"):
        await commit_one(client, run, file_commit(path, b"x"))
    known = {run.root_node_id}
    for edge in await list_edges(client, run):
        assert edge.parent_node_id in known
        known.add(edge.node.node_id)
    assert len(known) == 9


async def test_empty_run_lists_its_root_alone(client: MasterClient, run: types.Run) -> None:
    page = await client.list_tree(run.task_id)
    assert page.root.node_id == run.root_node_id
    assert (list(page.edges), page.next_page_token, page.sealed) == ([], "", False)


async def test_pages_together_are_the_whole_tree(client: MasterClient, run: types.Run) -> None:
    await fill_pages(client, run)
    first = await client.list_tree(run.task_id)
    assert first.next_page_token
    second = await client.list_tree(run.task_id, first.next_page_token)
    assert second.revision == first.revision
    edges = [*first.edges, *second.edges]
    assert len(edges) == len({(edge.parent_node_id, edge.name) for edge in edges}) == LINK_COUNT + 3
    assert len(await tree_of(client, run)) == LINK_COUNT + 4


async def test_directory_moved_between_pages_asks_for_a_new_listing(
    client: MasterClient, run: types.Run
) -> None:
    await fill_pages(client, run)
    moved = await commit_one(client, run, directory_commit(b"moved"))
    first = await client.list_tree(run.task_id)
    root = run.root_node_id
    await rename(client, run, moved.node_id, (root, b"moved"), (root, b"again"))
    with pytest.raises(errors.GenerationChanged):
        await client.list_tree(run.task_id, first.next_page_token)


async def test_name_made_between_pages_does_not_disturb_them(client: MasterClient, run: types.Run) -> None:
    await fill_pages(client, run)
    first = await client.list_tree(run.task_id)
    await commit_one(client, run, file_commit(b"new/file", b"x"))
    second = await client.list_tree(run.task_id, first.next_page_token)
    links = [edge for edge in [*first.edges, *second.edges] if edge.name.startswith(b"link")]
    assert len(links) == LINK_COUNT
