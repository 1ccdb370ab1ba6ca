from __future__ import annotations

from itertools import pairwise

from cloudai_fusefs.relisting import (
    DOUBT_SECONDS_MAX,
    DOUBT_SECONDS_MIN,
    REST_SECONDS,
    UNFOLLOWED_SECONDS_MAX,
    Relisting,
)
from cloudai_fusefs.run_tree import RunTree
from cloudai_proto.storage.v1 import types_pb2 as types


def make_tree() -> RunTree:
    return RunTree(types.Run(root_node_id=1, task_id="run"), lambda _: None, lambda _: None)


def is_due(relisting: Relisting, now_seconds: float, *, is_news: bool = False, is_last: bool = False) -> bool:
    return relisting.is_due_after_news(now_seconds, is_news=is_news, is_last=is_last)


def test_news_that_leave_no_doubt_need_no_listing() -> None:
    relisting = Relisting(make_tree(), 0)
    for now_seconds in range(100):
        assert not is_due(relisting, now_seconds, is_news=True)
        assert not is_due(relisting, now_seconds + 0.5)


def test_doubt_that_stays_is_listed_at_growing_intervals() -> None:
    tree = make_tree()
    tree.is_in_doubt = True
    relisting = Relisting(tree, 0)
    listed_at_seconds = []
    for now_seconds in range(200):
        if is_due(relisting, now_seconds):
            relisting.note_listed(now_seconds)
            listed_at_seconds.append(now_seconds)

    pauses = [later - one for one, later in pairwise(listed_at_seconds)]
    assert pauses == [2, 4, 8, 16, *[DOUBT_SECONDS_MAX] * (len(pauses) - 4)]


def test_doubt_that_a_listing_ended_begins_anew_with_the_shortest_pause() -> None:
    tree = make_tree()
    relisting = Relisting(tree, 0)
    for now_seconds in (0, 10, 30):
        tree.is_in_doubt = True
        assert is_due(relisting, now_seconds)
        relisting.note_listed(now_seconds)
    tree.is_in_doubt = False
    relisting.note_listed(31)

    tree.is_in_doubt = True
    assert not is_due(relisting, 31)
    assert is_due(relisting, 31 + DOUBT_SECONDS_MIN)


def test_dispute_is_listed_once_all_is_at_rest() -> None:
    tree = make_tree()
    tree.is_disputed = True
    relisting = Relisting(tree, 0)

    assert not is_due(relisting, 100, is_news=True)
    assert not is_due(relisting, 100 + REST_SECONDS / 2)
    tree.answered.note_removed(7, revision=3)  # a change of its own is under way
    assert not is_due(relisting, 100 + REST_SECONDS)
    tree.answered.clear()
    assert not is_due(relisting, 100 + REST_SECONDS)
    assert is_due(relisting, 100 + 2 * REST_SECONDS)


def test_last_news_leave_no_dispute_behind() -> None:
    tree = make_tree()
    assert not is_due(Relisting(tree, 0), 1, is_news=True, is_last=True)
    tree.is_disputed = True
    assert is_due(Relisting(tree, 0), 1, is_news=True, is_last=True)


def test_run_whose_watch_breaks_each_time_is_listed_now_and_then() -> None:
    relisting = Relisting(make_tree(), 0)
    assert not is_due(relisting, 1)

    assert not relisting.is_due_without_news(UNFOLLOWED_SECONDS_MAX)
    assert relisting.is_due_without_news(1 + UNFOLLOWED_SECONDS_MAX)
    relisting.note_listed(1 + UNFOLLOWED_SECONDS_MAX)
    assert not relisting.is_due_without_news(2 * UNFOLLOWED_SECONDS_MAX)
    relisting.note_away(2 * UNFOLLOWED_SECONDS_MAX)
    assert not relisting.is_due_without_news(2 * UNFOLLOWED_SECONDS_MAX + 2)
