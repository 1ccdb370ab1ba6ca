"""Extended attributes: kept with the node, whatever else is said of it."""

from __future__ import annotations

import pytest
import trio

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.storage_requests import (
    commit,
    commit_one,
    directory_commit,
    file_commit,
    link,
    make_run,
    node_id,
    rename,
    symlink_commit,
    tree_of,
)

XATTRS_BYTES_MAX = 4096


def xattrs(**values: bytes) -> types.Xattrs:
    """Of `user.`, in order."""
    return types.Xattrs(
        xattrs=[types.Xattr(name=b"user." + name.encode(), value=values[name]) for name in sorted(values)]
    )


def with_xattrs(one: names.NodeCommit, given: types.Xattrs) -> names.NodeCommit:
    one.xattrs.CopyFrom(given)
    one.xattrs.SetInParent()
    return one


async def test_master_says_that_it_keeps_them(client: MasterClient) -> None:
    assert (await client.get_capabilities()).keeps_xattrs


async def test_what_a_commit_gives_is_in_its_answer_in_listings_and_in_news(
    client: MasterClient, run: types.Run
) -> None:
    given = xattrs(binary=b"\0\xff", empty=b"")
    before = (await client.list_tree(run.task_id)).revision

    file = await commit_one(client, run, with_xattrs(file_commit(b"d/f", b"x"), given))
    directory = await commit_one(client, run, with_xattrs(directory_commit(b"d"), xattrs(of=b"d")))
    root = names.NodeCommit(
        node_id=run.root_node_id, kind=types.NODE_KIND_DIRECTORY, attributes=run.attributes
    )
    await commit_one(client, run, with_xattrs(root, xattrs(of=b"root")))

    assert (file.xattrs, directory.xattrs) == (given, xattrs(of=b"d"))
    tree = await tree_of(client, run)
    assert tree[b"d/f"].xattrs == given
    assert tree[b"d"].xattrs == xattrs(of=b"d")
    assert tree[b""].xattrs == xattrs(of=b"root")
    told = await news(client, run, before, count=4)
    assert told[1].edge_set.node.xattrs == given
    assert [change.node_changed.xattrs for change in told[2:]] == [xattrs(of=b"d"), xattrs(of=b"root")]


async def news(client: MasterClient, run: types.Run, after: int, *, count: int) -> list[names.Change]:
    found: list[names.Change] = []
    with trio.fail_after(20):
        request = names.WatchRequest(task_id=run.task_id, after_revision=after)
        async with client.watch(request) as messages:
            async for message in messages:
                found += message.changes
                if len(found) >= count:
                    break
    return found


async def test_what_a_commit_does_not_speak_of_stays(client: MasterClient, run: types.Run) -> None:
    given = xattrs(key=b"value")
    node = await commit_one(client, run, with_xattrs(file_commit(b"f", b"x"), given))

    for one in (
        file_commit(b"f", b"new content", node=node.node_id),
        file_commit(b"moved", node=node.node_id),
        file_commit(b"moved", node=node.node_id, place=False),
    ):
        assert (await commit_one(client, run, one)).xattrs == given
    linked = await link(client, run, node.node_id, run.root_node_id, b"link")
    assert linked.xattrs == given
    await rename(client, run, node.node_id, (run.root_node_id, b"moved"), (run.root_node_id, b"renamed"))
    tree = await tree_of(client, run)
    assert tree[b"renamed"].xattrs == tree[b"link"].xattrs == given


async def test_what_a_commit_gives_replaces_all_that_was_there(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, with_xattrs(file_commit(b"f", b"x"), xattrs(a=b"1", b=b"2")))

    for given in (xattrs(b=b"3"), types.Xattrs()):
        one = with_xattrs(file_commit(b"f", node=node.node_id, place=False), given)
        changed = await commit_one(client, run, one)
        assert changed.xattrs == given
        assert changed.HasField("xattrs") == bool(given.xattrs)
        # Once more it changes nothing.
        assert (await commit_one(client, run, one)).revision == changed.revision


async def test_directory_that_is_there_already_takes_those_of_the_commit(
    client: MasterClient, run: types.Run
) -> None:
    there = await commit_one(client, run, with_xattrs(directory_commit(b"d"), xattrs(a=b"1")))

    node = await commit_one(client, run, with_xattrs(directory_commit(b"d"), xattrs(b=b"2")))

    assert node.node_id == there.node_id
    assert node.xattrs == xattrs(b=b"2")


@pytest.mark.parametrize(
    "given",
    [
        [(b"user.", b"")],
        [(b"", b"")],
        [(b"key", b"")],
        [(b"security.selinux", b"")],
        [(b"user.nul\0", b"")],
        [(b"user." + b"n" * 251, b"")],
        [(b"user.b", b""), (b"user.a", b"")],
        [(b"user.a", b""), (b"user.a", b"")],
        [(b"user.a", bytes(XATTRS_BYTES_MAX - 5))],
    ],
)
async def test_what_cannot_be_kept_is_refused_and_nothing_of_it_is_there(
    client: MasterClient, run: types.Run, given: list[tuple[bytes, bytes]]
) -> None:
    message = types.Xattrs(xattrs=[types.Xattr(name=name, value=value) for name, value in given])

    response = await commit(
        client, run, with_xattrs(file_commit(b"f", b"x"), message), file_commit(b"g", b"y")
    )

    assert [result.WhichOneof("result") for result in response.results] == ["error", "node"]
    assert sorted(await tree_of(client, run)) == [b"", b"g"]


async def test_as_much_as_is_kept_is_taken_of_each_of_many(client: MasterClient, run: types.Run) -> None:
    given = xattrs(a=bytes(XATTRS_BYTES_MAX - 6))

    await commit(client, run, *(with_xattrs(file_commit(b"%03d" % n, b"x"), given) for n in range(900)))
    await commit(client, run, *(with_xattrs(file_commit(b"%04d" % n, b"x"), given) for n in range(900)))

    tree = await tree_of(client, run)
    assert len(tree) == 1801
    assert all(node.xattrs == given for path, node in tree.items() if path)


async def test_symlink_has_none(client: MasterClient, run: types.Run) -> None:
    with pytest.raises(errors.InvalidRequest):
        await commit_one(client, run, with_xattrs(symlink_commit(b"link", b"f"), xattrs(a=b"1")))


async def test_too_many_bytes_in_one_call_are_refused(client: MasterClient, run: types.Run) -> None:
    many = [
        with_xattrs(file_commit(b"%03d" % n, bytes(2000), node=node_id()), xattrs(a=bytes(3000)))
        for n in range(900)
    ]
    with pytest.raises(errors.InvalidRequest):
        await commit(client, run, *many)


async def test_they_are_of_their_run_alone(client: MasterClient, run: types.Run) -> None:
    other = await make_run(client, run.user)
    one = with_xattrs(file_commit(b"f", b"x"), xattrs(a=b"1"))
    await commit_one(client, run, one)

    node = await commit_one(client, other, file_commit(b"f", b"x", node=one.node_id))

    assert not node.HasField("xattrs")
