"""When a cache is swept."""

from __future__ import annotations

import threading

import trio

from cloudai_fusefs.cache_sweeper import CacheSweeper


async def test_what_was_written_during_a_sweep_is_swept_without_another_write() -> None:
    goes_on = threading.Event()
    stored_bytes = [0]
    sweep_count = [0]

    def sweep() -> int:
        sweep_count[0] += 1
        found_bytes = stored_bytes[0]
        goes_on.wait(10)
        if found_bytes > 100:
            stored_bytes[0] = 100
        return min(found_bytes, 100)

    async with trio.open_nursery() as nursery:
        sweeper = CacheSweeper(sweep, bytes_max=100, nursery=nursery, note_failure=lambda _: None)
        while not sweep_count[0]:
            await trio.sleep(0.001)
        stored_bytes[0] = 500
        sweeper.note_written(500)
        goes_on.set()

    assert stored_bytes[0] == 100
    assert sweep_count[0] == 2
