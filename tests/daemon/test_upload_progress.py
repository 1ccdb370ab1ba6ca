"""How far a backlog is, told from what is left of it."""

from __future__ import annotations

from cloudai_daemon.progress_bar import UploadProgress


def shown(*left_bytes: int) -> list[tuple[int, int]]:
    """What is done and what there is in all, after each report of what is left."""
    progress = UploadProgress()
    found = []
    for left in left_bytes:
        progress.update(left)
        found.append((progress.done_bytes, progress.total_bytes))
    return found


def test_what_is_sent_is_done() -> None:
    assert shown(100, 60, 60, 0) == [(0, 100), (40, 100), (40, 100), (100, 100)]


def test_what_is_written_meanwhile_adds_to_the_whole_and_takes_nothing_away() -> None:
    assert shown(100, 60, 90, 0) == [(0, 100), (40, 100), (40, 130), (130, 130)]
