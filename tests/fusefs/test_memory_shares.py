"""How a mount's memory is divided, for any budget."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from cloudai_fusefs.memory_shares import divide_memory
from cloudai_fusefs.mount_control import MEMORY_BYTES_DEFAULT, MEMORY_BYTES_MIN
from cloudai_model.limits import CHUNK_BYTES_MAX, MIB


@example(MEMORY_BYTES_MIN)
@example(MEMORY_BYTES_DEFAULT)
@given(st.integers(min_value=MEMORY_BYTES_MIN, max_value=4096 * MIB))
def test_shares_do_not_exceed_their_budget_and_each_is_enough_to_go_on(budget_bytes: int) -> None:
    shares = divide_memory(budget_bytes)
    waiting_for_disk_max = shares.fetches_max // 2
    chunk_count = shares.fetches_max + waiting_for_disk_max + shares.disk_threads_max
    assert shares.kept_bytes + shares.write_behind_bytes + chunk_count * CHUNK_BYTES_MAX == budget_bytes
    assert shares.kept_bytes >= 2 * CHUNK_BYTES_MAX
    assert shares.write_behind_bytes >= CHUNK_BYTES_MAX
    assert min(shares.fetches_max, shares.disk_threads_max) >= 2
    assert waiting_for_disk_max >= 1


def test_default_gives_eight_fetches_and_most_of_it_to_keeping() -> None:
    assert divide_memory(256 * MIB) == (160 * MIB, 8, 4, 32 * MIB)
