"""Requests to a master as tests write them: short, with ids made up and results unwrapped."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from cloudai_fusefs.listing import Listing
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_model.chunks import digest_of
from cloudai_model.limits import NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.listings import edges_of

USER = "user-123"
OTHER_USER = "user-456"

FILE = types.NODE_KIND_FILE
DIRECTORY = types.NODE_KIND_DIRECTORY
SYMLINK = types.NODE_KIND_SYMLINK

ATTRIBUTES = types.Attributes(
    mode=0o640, uid=7, gid=8, mtime_ns=1_700_000_000_123_456_789, ctime_ns=2, atime_ns=3
)


def request_id() -> bytes:
    return os.urandom(16)


def node_id() -> int:
    return NODE_ID_MIN + secrets.randbits(60)


def chunk_of(data: bytes) -> types.Chunk:
    return types.Chunk(length_bytes=len(data), digest=digest_of(data))


def file_commit(
    path: bytes, data: bytes | None = None, *, node: int = 0, place: bool = True
) -> names.NodeCommit:
    """A file with its bytes inside the commit; `data` None leaves the content as it is."""
    commit = names.NodeCommit(
        node_id=node or node_id(), kind=FILE, path=path, place=place, attributes=ATTRIBUTES
    )
    if data is not None:
        commit.data = data
        commit.size_bytes = len(data)
        commit.digest = digest_of(data)
    return commit


def manifest_commit(
    path: bytes, chunks: Sequence[bytes], *, node: int = 0, place: bool = True
) -> names.NodeCommit:
    """A file as the list of its chunks, which were put before."""
    commit = file_commit(path, node=node, place=place)
    commit.manifest.chunks.extend(chunk_of(chunk) for chunk in chunks)
    commit.manifest.SetInParent()
    commit.size_bytes = sum(map(len, chunks))
    return commit


def directory_commit(path: bytes, *, node: int = 0) -> names.NodeCommit:
    attributes = types.Attributes(mode=0o750, mtime_ns=5)
    return names.NodeCommit(
        node_id=node or node_id(), kind=DIRECTORY, path=path, place=True, attributes=attributes
    )


def symlink_commit(path: bytes, target: bytes, *, node: int = 0) -> names.NodeCommit:
    return names.NodeCommit(
        node_id=node or node_id(), kind=SYMLINK, path=path, place=True, symlink_target=target
    )


async def make_run(client: MasterClient, user: str) -> types.Run:
    """An open run of a task of its own."""
    task = f"task-{secrets.token_hex(6)}"
    return await client.create_run(names.CreateRunRequest(request_id=request_id(), user=user, task=task))


async def seal(client: MasterClient, run: types.Run, exit_status: int = 0) -> types.Run:
    request = names.SealRunRequest(request_id=request_id(), task_id=run.task_id, exit_status=exit_status)
    return await client.seal_run(request)


async def commit(
    client: MasterClient, run: types.Run, *commits: names.NodeCommit
) -> names.CommitNodesResponse:
    request = names.CommitNodesRequest(request_id=request_id(), task_id=run.task_id, commits=commits)
    return await client.commit_nodes(request)


async def commit_one(client: MasterClient, run: types.Run, one: names.NodeCommit) -> types.Node:
    """The node afterwards; raises the error of the commit's result."""
    (result,) = (await commit(client, run, one)).results
    if result.HasField("error"):
        raise error_from_detail(result.error)
    return result.node


async def put(client: MasterClient, run: types.Run, *chunks: bytes) -> None:
    for chunk in chunks:
        await client.put_chunk(run.task_id, digest_of(chunk), chunk)


async def append(client: MasterClient, run: types.Run, node: types.Node, *chunks: bytes) -> types.Node:
    """Puts the chunks and adds them to the file at the generation that `node` has."""
    await put(client, run, *chunks)
    request = names.AppendFileRequest(
        request_id=request_id(),
        task_id=run.task_id,
        node_id=node.node_id,
        expected_generation=node.generation,
        chunks=[chunk_of(chunk) for chunk in chunks],
        size_bytes=node.size_bytes + sum(map(len, chunks)),
    )
    return (await client.append_file(request)).node


async def remove(client: MasterClient, run: types.Run, parent_id: int, name: bytes, node: int) -> None:
    await client.remove(
        names.RemoveRequest(
            request_id=request_id(),
            task_id=run.task_id,
            node_id=node,
            parent_node_id=parent_id,
            name=name,
            mtime_ns=77,
        )
    )


def removal_of(parent_id: int, name: bytes, node: types.Node) -> names.NodeRemoval:
    """Of the node as it is."""
    return names.NodeRemoval(
        node_id=node.node_id, parent_node_id=parent_id, name=name, generation=node.generation, mtime_ns=77
    )


async def remove_nodes(
    client: MasterClient, run: types.Run, *removals: names.NodeRemoval
) -> names.RemoveNodesResponse:
    request = names.RemoveNodesRequest(request_id=request_id(), task_id=run.task_id, removals=removals)
    return await client.remove_nodes(request)


async def rename(
    client: MasterClient,
    run: types.Run,
    node: int,
    old: tuple[int, bytes],
    new: tuple[int, bytes],
    *,
    no_replace: bool = False,
) -> names.RenameResponse:
    return await client.rename(
        names.RenameRequest(
            request_id=request_id(),
            task_id=run.task_id,
            node_id=node,
            old_parent_node_id=old[0],
            old_name=old[1],
            new_parent_node_id=new[0],
            new_name=new[1],
            no_replace=no_replace,
            mtime_ns=77,
        )
    )


async def link(client: MasterClient, run: types.Run, node: int, parent_id: int, name: bytes) -> types.Node:
    request = names.LinkRequest(
        request_id=request_id(),
        task_id=run.task_id,
        node_id=node,
        parent_node_id=parent_id,
        name=name,
        mtime_ns=77,
    )
    return (await client.link(request)).node


async def list_pages(client: MasterClient, run: types.Run) -> list[names.ListTreeResponse]:
    """All pages of the run's tree."""
    pages = [await client.list_tree(run.task_id)]
    while pages[-1].next_page_token:
        pages.append(await client.list_tree(run.task_id, pages[-1].next_page_token))
    return pages


async def tree_of(client: MasterClient, run: types.Run) -> dict[bytes, types.Node]:
    """The run's nodes by path; the root is b""."""
    listing = Listing(await list_pages(client, run))
    paths = {listing.root.node_id: b""}
    found = {b"": listing.root}
    for edge in edges_of(listing):
        parent = paths[edge.parent_node_id]
        path = parent + b"/" + edge.name if parent else edge.name
        paths[edge.node.node_id] = path
        found[path] = edge.node
    return found


async def read_file(client: MasterClient, run: types.Run, node: types.Node) -> bytes:
    """The content at the node's generation, by way of its manifest."""
    manifest = await client.get_manifest(run.task_id, node.node_id, node.generation)
    parts = [
        (await client.read_chunk(run.task_id, node.node_id, node.generation, index)).data
        for index in range(len(manifest))
    ]
    assert [digest_of(part) for part in parts] == [chunk.digest for chunk in manifest]
    return b"".join(parts)


async def published(client: MasterClient, run: types.Run) -> dict[bytes, bytes]:
    """The files at the master with their contents."""
    tree = await tree_of(client, run)
    return {
        path: await read_file(client, run, node)
        for path, node in tree.items()
        if node.kind == types.NODE_KIND_FILE
    }
