"""The crash suite's judge, judged: it accepts what may be there, and says what may not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from crash.comparison import Observed, find_differences, find_losses, observe
from crash.expected_tree import ExpectedTree
from crash.log import Acknowledgement, WriterLog, read_log
from crash.operations import Call, Descriptors, Operation
from crash.script import Pause, Script

CREATE = Operation(call=Call.CREATE, path="file")
WRITE = Operation(call=Call.WRITE, number=3, length_bytes=100, content_seed=1)
APPEND = Operation(call=Call.WRITE, number=103, length_bytes=50, content_seed=2)
SET_XATTR = Operation(call=Call.SET_XATTR, path="file", target="user.a", length_bytes=10, content_seed=5)
SET_OTHER_XATTR = Operation(call=Call.SET_XATTR, path="file", target="user.b")
REMOVE_XATTR = Operation(call=Call.REMOVE_XATTR, path="file", target="user.a")
FSYNC = Operation(call=Call.FSYNC)
CLOSE = Operation(call=Call.CLOSE)


def tree_after(*operations: Operation) -> ExpectedTree:
    tree = ExpectedTree()
    for operation in operations:
        tree.apply(operation)
    return tree


def seen_after(root: Path, *operations: Operation) -> Observed:
    """What a local disk shows after these."""
    root.mkdir()
    descriptors = Descriptors(root)
    for operation in operations:
        descriptors.carry_out(operation)
    return observe(root)


@pytest.mark.parametrize("seed", range(4))
def test_local_disk_shows_what_the_reference_expects_of_a_script(tmp_path: Path, seed: int) -> None:
    tree = ExpectedTree()
    descriptors = Descriptors(tmp_path)
    steps = Script(seed, tree, sync_share=0.1, asks_master=True).operations()
    for step in (step for step, _ in zip(steps, range(400), strict=False) if not isinstance(step, Pause)):
        descriptors.carry_out(step)
        tree.apply(step)

    assert find_differences(tree, None, observe(tmp_path)) == []


def test_script_is_the_same_for_the_same_seed() -> None:
    def first_operations() -> list[Operation | Pause]:
        tree, found = ExpectedTree(), []
        for step, _ in zip(
            Script(7, tree, sync_share=0.1, asks_master=True).operations(), range(200), strict=False
        ):
            found.append(step)
            if not isinstance(step, Pause):
                tree.apply(step)
        return found

    assert first_operations() == first_operations()


def test_scripts_do_all_that_programs_do() -> None:
    tree, found = ExpectedTree(), []
    steps = Script(7, tree, sync_share=0.1, asks_master=True).operations()
    for step, _ in zip(steps, range(3000), strict=False):
        if not isinstance(step, Pause):
            size_bytes = len(tree.slots[step.slot].content) if step.call is Call.WRITE else 0
            is_rename_over = step.call is Call.RENAME and step.target in dict(tree.files())
            is_append = step.call is Call.WRITE and 0 < step.number == size_bytes
            is_overwrite = step.call is Call.WRITE and step.number < size_bytes
            kinds = {"rename over": is_rename_over, "append": is_append, "overwrite": is_overwrite}
            found += [step.call, *(kind for kind, is_one in kinds.items() if is_one)]
            tree.apply(step)

    assert {*found, Call.REMOVE_XATTR} == {*Call, "rename over", "append", "overwrite"}


def test_missing_file_is_a_difference(tmp_path: Path) -> None:
    seen = seen_after(tmp_path / "root")

    assert find_differences(tree_after(CREATE, WRITE), None, seen) == ["file: missing"]


def test_lost_write_is_a_difference(tmp_path: Path) -> None:
    seen = seen_after(tmp_path / "root", CREATE, WRITE)

    assert find_differences(tree_after(CREATE, WRITE, APPEND), None, seen) != []


def test_file_that_came_back_is_a_difference(tmp_path: Path) -> None:
    seen = seen_after(tmp_path / "root", CREATE, WRITE)
    tree = tree_after(CREATE, WRITE, Operation(call=Call.UNLINK, path="file"))

    assert find_differences(tree, None, seen) == ["file: not expected"]


def test_part_of_a_write_in_flight_is_no_difference(tmp_path: Path) -> None:
    root = tmp_path / "root"
    seen_after(root, CREATE, WRITE)
    with (root / "file").open("ab") as file:
        file.write(APPEND.content[:20])

    assert find_differences(tree_after(CREATE, WRITE), APPEND, observe(root)) == []


def test_zeros_for_a_write_in_flight_are_a_difference(tmp_path: Path) -> None:
    root = tmp_path / "root"
    seen_after(root, CREATE, WRITE)
    overwrite = Operation(call=Call.WRITE, number=3, length_bytes=40, content_seed=3)
    with (root / "file").open("r+b") as file:
        file.seek(3)
        file.write(bytes(40))

    assert find_differences(tree_after(CREATE, WRITE), overwrite, observe(root)) != []


@pytest.mark.parametrize("is_carried_out", [False, True])
def test_rename_in_flight_may_be_carried_out_or_not(tmp_path: Path, is_carried_out: bool) -> None:
    rename = Operation(call=Call.RENAME, path="file", target="other")
    seen = seen_after(tmp_path / "root", CREATE, WRITE, *[rename] * is_carried_out)

    assert find_differences(tree_after(CREATE, WRITE), rename, seen) == []


def test_half_of_a_rename_in_flight_is_a_difference(tmp_path: Path) -> None:
    rename = Operation(call=Call.RENAME, path="file", target="other")
    link = Operation(call=Call.LINK, path="file", target="other")
    seen = seen_after(tmp_path / "root", CREATE, WRITE, link)

    assert find_differences(tree_after(CREATE, WRITE), rename, seen) != []


def test_file_that_was_never_synced_is_no_loss(tmp_path: Path) -> None:
    assert find_losses(tree_after(CREATE, WRITE, CLOSE), None, {}) == ([], 0)


def test_missing_synced_file_is_a_loss(tmp_path: Path) -> None:
    losses, required_count = find_losses(tree_after(CREATE, WRITE, FSYNC, CLOSE), None, {})

    assert (losses, required_count) == (["file: synced, and missing"], 1)


def test_synced_file_may_have_what_was_written_later_but_nothing_older(tmp_path: Path) -> None:
    tree = tree_after(CREATE, WRITE, FSYNC, APPEND)

    assert find_losses(tree, None, seen_after(tmp_path / "synced", CREATE, WRITE)) == ([], 1)
    assert find_losses(tree, None, seen_after(tmp_path / "later", CREATE, WRITE, APPEND)) == ([], 1)
    assert find_losses(tree, None, seen_after(tmp_path / "older", CREATE))[0] != []


def test_synced_file_that_was_replaced_by_one_that_was_not_may_be_either(tmp_path: Path) -> None:
    create_new = Operation(call=Call.CREATE, path="new", slot=1)
    write_new = Operation(call=Call.WRITE, slot=1, length_bytes=10, content_seed=4)
    rename = Operation(call=Call.RENAME, path="new", target="file")
    tree = tree_after(CREATE, WRITE, FSYNC, create_new, write_new, rename)

    assert find_losses(tree, None, seen_after(tmp_path / "old", CREATE, WRITE)) == ([], 1)
    everything = (CREATE, WRITE, create_new, write_new, rename)
    assert find_losses(tree, None, seen_after(tmp_path / "new", *everything)) == ([], 1)
    assert find_losses(tree, None, {})[0] != []


def test_lost_extended_attribute_is_a_difference(tmp_path: Path) -> None:
    tree = tree_after(CREATE, SET_XATTR)

    assert find_differences(tree, None, seen_after(tmp_path / "whole", CREATE, SET_XATTR)) == []
    assert find_differences(tree, None, seen_after(tmp_path / "without", CREATE)) != []
    removed = seen_after(tmp_path / "removed", CREATE, SET_XATTR, REMOVE_XATTR)
    assert find_differences(tree, None, removed) != []
    assert find_differences(tree, REMOVE_XATTR, removed) == []


def test_synced_file_may_have_later_extended_attributes_but_none_older(tmp_path: Path) -> None:
    tree = tree_after(CREATE, SET_XATTR, FSYNC, SET_OTHER_XATTR)

    synced, later = (CREATE, SET_XATTR), (CREATE, SET_XATTR, SET_OTHER_XATTR)
    assert find_losses(tree, None, seen_after(tmp_path / "synced", *synced)) == ([], 1)
    assert find_losses(tree, None, seen_after(tmp_path / "later", *later)) == ([], 1)
    assert find_losses(tree, None, seen_after(tmp_path / "older", CREATE))[0] != []
    removed = seen_after(tmp_path / "removed", *later, REMOVE_XATTR)
    assert find_losses(tree, None, removed)[0] != []
    assert find_losses(tree, REMOVE_XATTR, removed)[0] == []


def test_log_is_read_back_with_what_was_in_flight(tmp_path: Path) -> None:
    log = WriterLog(tmp_path / "log")
    log.note_intent(CREATE)
    log.note_acknowledged("file", Acknowledgement())
    log.note_intent(WRITE)

    record = read_log(tmp_path / "log")

    assert record.acknowledged == [(CREATE, Acknowledgement())]
    assert record.in_flight == WRITE
    assert record.failure is None


def test_refused_operation_may_have_been_carried_out(tmp_path: Path) -> None:
    log = WriterLog(tmp_path / "log")
    log.note_intent(CREATE)
    log.note_failed(errno.EIO)

    record = read_log(tmp_path / "log")

    assert record.in_flight == CREATE
    assert record.failure is not None
    assert (record.failure.operation, record.failure.errno) == (CREATE, errno.EIO)
